import errno
import itertools
import multiprocessing
import os
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producers import spool as spool_module
from producers.spool import RECORD_HEADER, RECORD_MAGIC, Spool, SpoolFull, SpoolInUse, SpoolSettings

SMALL = SpoolSettings(max_bytes=1_000_000, full="block", segment_bytes=500, sync_s=1000)

records = st.lists(
    st.tuples(st.sampled_from([b"a", b"plant/b", "plant/\u00fc".encode()]), st.binary(max_size=200)), max_size=25
)


def everything(spool):
    return [(record.key, record.frame) for record in read_all(spool)]


def read_all(spool, step=300):
    found = []
    while batch := spool.read(step):
        found += batch
    return found


def segments(folder):
    return sorted(Path(folder).glob("*.spool"))


def whole_records(appended, size):
    """How many of these records, one after another, are whole within `size` bytes."""
    ends = itertools.accumulate(RECORD_HEADER.size + len(key) + len(frame) for key, frame in appended)
    return sum(end <= size for end in ends)


@pytest.fixture(scope="module", autouse=True)
def quick_disk():
    """No test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool_module.os, "fsync", lambda descriptor: None)
        yield


def fill(spool, count, size=100, key=b"s"):
    """Appends frames that say their number."""
    sent = [(key, n.to_bytes(4, "little") * (size // 4)) for n in range(count)]
    for record in sent:
        assert spool.append(*record)
    return sent


@given(records, st.integers(0, 400))
@settings(max_examples=60, deadline=None)
def test_what_is_appended_is_read_in_order_now_and_after_a_restart(appended, step):
    with tempfile.TemporaryDirectory() as folder:
        with Spool(folder, SMALL) as spool:
            for record in appended:
                spool.append(*record)
            assert [(one.key, one.frame) for one in read_all(spool, max(step, 1))] == appended
            assert spool.pending_frames == len(appended)
            assert spool.pending_bytes == sum(len(frame) for _, frame in appended)
        with Spool(folder, SMALL) as spool:
            assert spool.pending_frames == len(appended)
            assert everything(spool) == appended


@given(records.filter(bool), st.data())
@settings(max_examples=150, deadline=None)
def test_after_a_crash_at_any_byte_a_sound_beginning_is_left_and_appending_goes_on(appended, data):
    with tempfile.TemporaryDirectory() as folder:
        with Spool(folder, SMALL) as spool:
            for record in appended:
                spool.append(*record)
        last = segments(folder)[-1]
        whole = last.read_bytes()
        keep = data.draw(st.integers(0, len(whole)), label="bytes kept")
        garbage = data.draw(st.one_of(st.binary(max_size=300), st.just(RECORD_MAGIC * 20)), label="garbage")
        last.write_bytes(whole[:keep] + garbage)
        with Spool(folder, SMALL) as spool:
            left = everything(spool)
            assert left == appended[: len(left)]
            assert len(left) >= int(last.stem) + whole_records(appended[int(last.stem) :], keep)
            spool.append(b"new", b"frame")
            assert everything(spool) == [(b"new", b"frame")]
        with Spool(folder, SMALL) as spool:
            assert everything(spool) == [*left, (b"new", b"frame")]


@given(records, st.lists(st.tuples(st.integers(1, 400), st.booleans(), st.booleans()), max_size=12))
@settings(max_examples=100, deadline=None)
def test_what_is_acknowledged_is_never_read_again_and_nothing_else_is_lost(appended, steps):
    """Each step reads some, may acknowledge it, and may restart."""
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(folder, SMALL)
        at = done = 0
        for n, record in enumerate(appended):
            spool.append(*record)
            if n >= len(steps):
                continue
            size, acknowledge, restart = steps[n]
            batch = spool.read(size)
            assert [(one.key, one.frame) for one in batch] == appended[at : at + len(batch)]
            at += len(batch)
            if acknowledge and batch:
                spool.acknowledge(batch[-1])
                done = at
            if restart:
                spool.close()
                spool = Spool(folder, SMALL)
                at = done
            assert spool.pending_frames == n + 1 - done
        spool.rewind()
        assert everything(spool) == appended[done:]
        spool.close()


@given(records.filter(lambda some: len(some) > 4), st.data())
@settings(max_examples=100, deadline=None)
def test_damage_in_the_middle_costs_the_frames_that_it_touches_and_no_other(appended, data):
    with tempfile.TemporaryDirectory() as folder:
        with Spool(folder, SMALL) as spool:
            for record in appended:
                spool.append(*record)
        path = data.draw(st.sampled_from(segments(folder)), label="segment")
        content = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1), label="byte")
        content[at] ^= data.draw(st.integers(1, 255), label="bits")
        path.write_bytes(content)
        with Spool(folder, SMALL) as spool:
            left = everything(spool)
            assert len(left) == len(appended) - 1
            missing = next((n for n, one in enumerate(left) if one != appended[n]), len(left))
            assert left == appended[:missing] + appended[missing + 1 :]
            assert spool.counts.damaged_places == 1 or spool.counts.cut_bytes > 0


def test_damage_is_told_once_with_file_and_byte(tmp_path, caplog):
    with Spool(tmp_path, SMALL) as spool:
        fill(spool, 20)
    first = segments(tmp_path)[0]
    size = RECORD_HEADER.size + 1 + 100
    content = bytearray(first.read_bytes())
    content[size + 60] ^= 1
    first.write_bytes(content)
    with Spool(tmp_path, SMALL) as spool:
        assert len(everything(spool)) == 19
        spool.rewind()
        assert len(everything(spool)) == 19
        assert spool.counts.damaged_places == 1
        assert spool.counts.damaged_bytes == size
    assert caplog.text.count(f"{first}: bytes {size} to {2 * size} are damaged") == 1


def test_a_frame_damaged_after_the_start_is_not_waited_for(tmp_path):
    with Spool(tmp_path, SMALL) as spool:
        fill(spool, 20)
        last = segments(tmp_path)[-1]
        last.write_bytes(bytes(last.stat().st_size))
        batch = read_all(spool)
        assert 0 < len(batch) < 20
        assert not spool.is_unread(b"s")
        spool.acknowledge(batch[-1])
        assert spool.read(1) == []
        assert spool.pending_frames == spool.pending_bytes == spool.disk_bytes == 0
        assert not spool.is_pending(b"s")


def test_a_record_of_another_segment_is_not_sound_here(tmp_path):
    with Spool(tmp_path, SMALL) as spool:
        sent = fill(spool, 20)
    first, second, *_ = segments(tmp_path)
    first.write_bytes(first.read_bytes() + second.read_bytes())
    with Spool(tmp_path, SMALL) as spool:
        assert everything(spool) == sent


def test_a_record_within_a_damaged_frame_is_not_taken_for_one(tmp_path):
    with Spool(tmp_path / "other", SMALL) as other:
        fill(other, 3)
    inner = segments(tmp_path / "other")[0].read_bytes()
    with Spool(tmp_path / "outer", SMALL) as spool:
        fill(spool, 6)
        spool.append(b"s", b"x" + inner)
    last = segments(tmp_path / "outer")[-1]
    assert last.name != segments(tmp_path / "other")[0].name
    content = bytearray(last.read_bytes())
    content[content.index(b"x" + inner)] ^= 1
    last.write_bytes(content)
    with Spool(tmp_path / "outer", SMALL) as spool:
        assert len(everything(spool)) == 6


def test_segments_are_deleted_as_they_are_acknowledged_and_the_last_when_nothing_is_left(tmp_path):
    with Spool(tmp_path, SMALL) as spool:
        fill(spool, 40)
        before = len(segments(tmp_path))
        assert before > 5
        batch = spool.read(2_000)
        spool.acknowledge(batch[-1])
        assert len(segments(tmp_path)) < before
        assert spool.disk_bytes == sum(path.stat().st_size for path in segments(tmp_path))
        spool.acknowledge(read_all(spool)[-1])
        assert segments(tmp_path) == []
        assert spool.disk_bytes == 0
        fill(spool, 1)
        assert len(everything(spool)) == 1


def test_numbers_go_on_after_everything_was_acknowledged(tmp_path):
    with Spool(tmp_path, SMALL) as spool:
        fill(spool, 10)
        spool.acknowledge(read_all(spool)[-1])
    with Spool(tmp_path, SMALL) as spool:
        sent = fill(spool, 3)
    with Spool(tmp_path, SMALL) as spool:
        assert everything(spool) == sent


def test_frames_that_a_crash_took_after_they_were_acknowledged_do_not_swallow_new_ones(tmp_path):
    with Spool(tmp_path, SMALL) as spool:
        fill(spool, 3)
        spool.acknowledge(spool.read(200)[-1])
    segments(tmp_path)[0].write_bytes(b"")
    with Spool(tmp_path, SMALL) as spool:
        sent = fill(spool, 3)
    with Spool(tmp_path, SMALL) as spool:
        assert everything(spool) == sent


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"acknowledged": 9, "crc32": 1}', b'{"acknowledged": "9"}'])
def test_a_damaged_cursor_sends_frames_again_and_loses_none(tmp_path, content, caplog):
    with Spool(tmp_path, SMALL) as spool:
        sent = fill(spool, 3)
        spool.acknowledge(spool.read(100)[-1])
    (tmp_path / "cursor").write_bytes(content)
    with Spool(tmp_path, SMALL) as spool:
        assert everything(spool) == sent
    assert f"{tmp_path / 'cursor'}: damaged" in caplog.text


def test_a_full_spool_that_blocks_refuses_until_a_segment_is_free(tmp_path, caplog):
    with Spool(tmp_path, SpoolSettings(max_bytes=4_000, full="block")) as spool:
        with pytest.raises(SpoolFull, match=f"{tmp_path}: full"):
            fill(spool, 1_000)
        with pytest.raises(SpoolFull):
            spool.append(b"s", b"frame")
        assert spool.disk_bytes <= 4_000
        assert spool.full
        assert spool.append(b"s", b"nobody else has it", beyond_cap=True)
        assert spool.full
        sent = spool.read(1_000)
        spool.acknowledge(sent[-1])
        assert spool.append(b"s", b"frame")
        assert not spool.full
        assert spool.counts.dropped_frames == 0
        assert len(everything(spool)) == spool.pending_frames
    assert caplog.text.count("full (") == 1
    assert caplog.text.count("takes frames again") == 1


def test_a_full_spool_that_drops_counts_what_is_lost_and_keeps_what_it_has(tmp_path, caplog):
    with Spool(tmp_path, SpoolSettings(max_bytes=4_000, full="drop_newest")) as spool:
        kept = [n for n in range(100) if spool.append(b"s", bytes([n]) * 100)]
        assert kept == list(range(len(kept)))
        assert 20 < len(kept) < 40
        assert spool.counts.dropped_frames == 100 - len(kept)
        assert spool.counts.dropped_bytes == 100 * (100 - len(kept))
        assert [frame[0] for _, frame in everything(spool)] == kept
    assert caplog.text.count("new frames are dropped") == 1


def test_a_frame_larger_than_all_room_is_taken_by_an_empty_spool(tmp_path):
    with Spool(tmp_path, SpoolSettings(max_bytes=100, full="block")) as spool:
        assert spool.append(b"s", bytes(1_000))
        with pytest.raises(SpoolFull):
            spool.append(b"s", b"")
        assert len(everything(spool)) == 1


class FullDisk:
    """Takes `room` bytes in all, then says ENOSPC, after part of a record."""

    def __init__(self, room):
        self.room = room

    def write(self, descriptor, content):
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        part = min(self.room, len(content), 64)
        self.room -= part
        return REAL_WRITE(descriptor, content[:part])


REAL_WRITE = os.write


@given(st.integers(0, 3_000), st.integers(0, 3_000))
@settings(max_examples=40, deadline=None)
def test_a_full_disk_leaves_no_half_record_and_later_frames_are_sound(room, later):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        disk = FullDisk(room)
        patch.setattr(spool_module.os, "write", disk.write)
        limits = SpoolSettings(max_bytes=10**6, full="drop_newest", segment_bytes=700, sync_s=1000)
        with Spool(folder, limits) as spool:
            kept = [n for n in range(20) if spool.append(b"s", bytes([n]) * 100)]
            disk.room = later
            kept += [n for n in range(20, 40) if spool.append(b"s", bytes([n]) * 100)]
            assert spool.counts.dropped_frames == 40 - len(kept)
            assert spool.disk_bytes == sum(path.stat().st_size for path in segments(folder))
            assert [frame[0] for _, frame in everything(spool)] == kept
        with Spool(folder, limits) as spool:
            assert [frame[0] for _, frame in everything(spool)] == kept
            assert spool.counts.damaged_places == spool.counts.cut_bytes == 0


def test_a_full_disk_blocks_where_the_policy_says_so_and_is_told_once(tmp_path, monkeypatch, caplog):
    disk = FullDisk(300)
    monkeypatch.setattr(spool_module.os, "write", disk.write)
    with Spool(tmp_path, SMALL) as spool:
        fill(spool, 2)
        for _ in range(3):
            with pytest.raises(SpoolFull, match="No space left"):
                spool.append(b"s", bytes(100), beyond_cap=True)
        disk.room = 10_000
        assert spool.append(b"s", bytes(100))
        assert len(everything(spool)) == 3
    assert caplog.text.count("No space left") == 1


def test_a_disk_that_fails_otherwise_is_an_error_and_leaves_no_half_record(tmp_path, monkeypatch):
    with Spool(tmp_path, SMALL) as spool:
        sent = fill(spool, 2)

        def fails(descriptor, content):
            REAL_WRITE(descriptor, content[:10])
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(spool_module.os, "write", fails)
        with pytest.raises(OSError, match="Input/output error"):
            spool.append(b"s", bytes(100))
        monkeypatch.setattr(spool_module.os, "write", REAL_WRITE)
        sent += fill(spool, 2)
        assert everything(spool) == sent


def test_a_folder_has_one_owner_whose_process_the_other_is_told(tmp_path):
    with Spool(tmp_path, SMALL), pytest.raises(SpoolInUse, match=rf"{tmp_path}: process {os.getpid()} has this spool"):
        Spool(tmp_path, SMALL)
    Spool(tmp_path, SMALL).close()


def test_a_folder_is_free_again_when_its_owner_was_killed(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    owner = context.Process(target=hold, args=(tmp_path, ready))
    owner.start()
    assert ready.wait(20)
    with pytest.raises(SpoolInUse, match=f"process {owner.pid} has"):
        Spool(tmp_path, SMALL)
    owner.kill()
    owner.join()
    with Spool(tmp_path, SMALL) as spool:
        assert len(everything(spool)) == 3


def hold(folder, ready):
    spool = Spool(folder, SMALL)
    fill(spool, 3)
    ready.set()
    multiprocessing.Event().wait()


@pytest.fixture
def synced(monkeypatch):
    """Descriptors that were synced, one by one."""
    calls = []
    real = os.fsync
    monkeypatch.setattr(spool_module.os, "fsync", lambda descriptor: (calls.append(descriptor), real(descriptor))[1])
    return calls


def test_with_no_time_to_lose_each_frame_is_synced(tmp_path, synced):
    with Spool(tmp_path, SpoolSettings(max_bytes=10**6, full="block", sync_s=0)) as spool:
        for n in range(1, 6):
            fill(spool, 1)
            assert len(synced) >= n


def test_otherwise_frames_are_synced_together_once_the_time_is_over(tmp_path, synced, monkeypatch):
    now = 100.0
    monkeypatch.setattr(spool_module.time, "monotonic", lambda: now)
    with Spool(tmp_path, SpoolSettings(max_bytes=10**6, full="block", sync_s=1)) as spool:
        fill(spool, 50)
        assert synced == []
        now += 1.0
        fill(spool, 1)
        assert synced != []


def test_full_segments_are_synced_too(tmp_path, synced):
    with Spool(tmp_path, SMALL) as spool:
        fill(spool, 40)
        count = len(segments(tmp_path))
        spool.sync()
        assert len(synced) == count + 1  # and the folder
        spool.sync()
        assert len(synced) == count + 1


def test_a_sync_that_failed_is_done_again(tmp_path, monkeypatch, synced):
    with Spool(tmp_path, SMALL) as spool:
        fill(spool, 40)
        count = len(segments(tmp_path))
        with monkeypatch.context() as patch:
            patch.setattr(spool_module.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "bad")))
            with pytest.raises(OSError, match="bad"):
                spool.sync()
        spool.sync()
        assert len(synced) >= count


def test_a_frame_set_aside_is_kept_in_a_spool_of_its_own(tmp_path, caplog):
    with Spool(tmp_path, SMALL) as spool:
        sent = fill(spool, 3)
        spool.set_aside(spool.read(1)[0], "too large")
        assert everything(spool) == sent[1:]
    with Spool(tmp_path / "refused", SMALL) as refused:
        assert everything(refused) == sent[:1]
    assert "of s is set aside: too large" in caplog.text


def test_the_read_state_is_known_for_each_sensor(tmp_path):
    with Spool(tmp_path, SMALL) as spool:
        assert not spool.is_pending(b"a")
        for key in (b"a", b"b", b"a"):
            spool.append(key, bytes(100))
        first, second = spool.read(150)
        assert (first.key, second.key) == (b"a", b"b")
        assert spool.is_unread(b"a")
        assert not spool.is_unread(b"b")
        assert spool.is_pending(b"b")
        spool.acknowledge(second)
        assert not spool.is_pending(b"b")
        assert spool.is_pending(b"a")
        spool.read(100)
        assert not spool.is_unread(b"a")
        spool.rewind()
        assert spool.is_unread(b"a")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"full": "drop_oldest"}, "full='drop_oldest'"),
        ({"max_bytes": 0}, "max_bytes=0"),
        ({"segment_bytes": -1}, "segment_bytes=-1"),
        ({"sync_s": float("nan")}, "sync_s=nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong, told):
    with pytest.raises(ValueError, match=told):
        SpoolSettings(**{"max_bytes": 1, "full": "block"} | wrong)


def test_frames_go_behind_a_last_segment_of_which_nothing_is_sound(tmp_path):
    with Spool(tmp_path, SMALL) as spool:
        sent = fill(spool, 3)
    (tmp_path / f"{7:020d}.spool").write_bytes(bytes(300))
    with Spool(tmp_path, SMALL) as spool:
        sent += fill(spool, 3)
        assert spool.counts.cut_bytes == 300
    with Spool(tmp_path, SMALL) as spool:
        assert everything(spool) == sent


def test_bytes_without_any_meaning_are_no_frames_and_do_not_hang(tmp_path):
    noise = random.Random(1)
    (tmp_path / f"{0:020d}.spool").write_bytes(noise.randbytes(200_000) + RECORD_MAGIC * 50_000)
    (tmp_path / f"{7:020d}.spool").write_bytes(noise.randbytes(10_000))
    (tmp_path / "notes.spool").write_bytes(b"not ours")
    with Spool(tmp_path, SMALL) as spool:
        assert everything(spool) == []
        sent = fill(spool, 5)
        assert everything(spool) == sent
    assert (tmp_path / "notes.spool").exists()
