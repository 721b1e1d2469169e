import asyncio
import sqlite3
import sys
import threading
import time
from contextlib import aclosing

import numpy as np
import pytest

from producers.sources import open_recording
from producers.sources.vallen_live import READ_HITS, VallenFollower
from stream.records import Flags

vallenae = pytest.importorskip("vallenae", reason="the writer of these tests is vallenae")

EPOCH_NS = 1_700_000_000 * 10**9
TR_MV = 0.003
RATE_HZ = 1_000_000


def burst(seed, count=100):
    return np.random.default_rng(seed).integers(-3000, 3000, count).astype(np.int16)


def tra(number, channel=1):
    return vallenae.io.TraRecord(
        time=number * 0.01,
        channel=channel,
        param_id=1,
        pretrigger=0,
        threshold=0.0001,
        samplerate=RATE_HZ,
        samples=100,
        data=burst(number).astype(np.float32) * np.float32(TR_MV * 1e-3),
        trai=number,
    )


def new_recording(path):
    vallenae.io.TraDatabase.create(str(path))
    with sqlite3.connect(path) as con:
        con.execute("INSERT INTO tr_params VALUES (1, 1, 1, 1.5, ?)", (TR_MV,))
    con.close()


def write(path, numbers, pause_s=0.0):
    """As an acquisition program does, hit by hit; every second hit is of channel 2."""
    with vallenae.io.TraDatabase(str(path), mode="rwc", compression=True) as database:
        for number in numbers:
            database.write(tra(number, channel=1 + number % 2))
            time.sleep(pause_s)


def follower(path, **options):
    return VallenFollower(path, lambda channel: f"plant/ch{channel}", EPOCH_NS, poll_s=0.01, **options)


async def take(following, count, timeout_s=10.0):
    frames = []
    async with asyncio.timeout(timeout_s), aclosing(following.frames()) as source:
        async for frame in source:
            frames.append(frame)
            if len(frames) == count:
                break
    return frames


async def nothing_more(following, for_s=0.1):
    with pytest.raises(TimeoutError):
        await take(following, 1, for_s)


def assert_hits(frames, numbers):
    for frame, number in zip(frames, numbers, strict=True):
        assert frame.sensor == f"plant/ch{1 + number % 2}"
        np.testing.assert_array_equal(frame.samples, burst(number))
        assert frame.time_ns == pytest.approx(EPOCH_NS + number * 10**7, abs=100)
        assert frame.epoch_ns == EPOCH_NS
        assert frame.flags == Flags.HIT


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "running.tradb"
    new_recording(path)
    return path


async def test_every_hit_comes_once_and_in_order_while_another_thread_writes(path):
    writer = threading.Thread(target=write, args=(path, range(1, 201), 0.001))
    writer.start()
    following = follower(path)
    frames = await take(following, 200)
    writer.join()
    assert_hits(frames, range(1, 201))
    assert [frame.sequence for frame in frames if frame.sensor == "plant/ch1"] == list(range(100))
    assert following.cursor == 200
    await nothing_more(following)


WRITER = """
import sqlite3, sys
con = sqlite3.connect(sys.argv[1], isolation_level=None)
con.execute("PRAGMA synchronous = off")
for number in range(1, 101):
    con.execute("BEGIN IMMEDIATE")
    con.execute("INSERT INTO tr_data VALUES (NULL, ?, ?, 0, 1, 1, 0, 66, 1000000, 2, 0, ?)",
                (number * 100, number, number.to_bytes(4, "little")))
    if number == 100:
        print("at 100", flush=True)
        sys.stdin.readline()
    con.execute("COMMIT")
"""


@pytest.mark.parametrize("journal", ["delete", "wal"])
async def test_another_process_writes_undisturbed_and_what_it_has_not_committed_is_not_there(path, journal):
    with sqlite3.connect(path) as con:
        con.execute(f"PRAGMA journal_mode = {journal}")
    con.close()
    writer = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, path, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        following = follower(path)
        frames = await take(following, 99)
        assert [frame.samples.tobytes() for frame in frames] == [n.to_bytes(4, "little") for n in range(1, 100)]
        assert await writer.stdout.readline() == b"at 100\n"
        await nothing_more(following)
        writer.stdin.write(b"\n")
        assert [frame.first_sample for frame in await take(following, 1)] == [1000]
        assert await writer.wait() == 0
    finally:
        if writer.returncode is None:
            writer.kill()
            await writer.wait()


async def test_a_restart_with_the_cursor_goes_on_behind_it(path):
    write(path, range(1, 21))
    first = follower(path)
    assert_hits(await take(first, 7), range(1, 8))
    assert first.cursor == 7
    second = follower(path, cursor=first.cursor)
    assert_hits(await take(second, 13), range(8, 21))


async def test_the_same_follower_can_go_on_itself(path):
    write(path, range(1, 4))
    following = follower(path)
    assert_hits(await take(following, 2), (1, 2))
    (third,) = await take(following, 1)
    assert_hits([third], (3,))
    assert third.sequence == 1


async def test_a_file_that_is_not_there_yet_is_waited_for(tmp_path, caplog):
    caplog.set_level("INFO")
    path = tmp_path / "tomorrow.tradb"
    following = follower(path)
    taking = asyncio.create_task(take(following, 3))
    await asyncio.sleep(0.1)
    path.touch()
    await asyncio.sleep(0.05)
    path.unlink()
    new_recording(path)
    write(path, range(1, 4))
    assert_hits(await taking, range(1, 4))
    assert 1 <= caplog.text.count("is not there yet; waiting") <= 2


async def test_a_locked_file_is_waited_for(path):
    write(path, range(1, 4))
    with sqlite3.connect(path) as con:
        con.execute("PRAGMA journal_mode = delete")
    con.execute("BEGIN EXCLUSIVE")
    following = follower(path)
    taking = asyncio.create_task(take(following, 3))
    await asyncio.sleep(0.2)
    assert not taking.done()
    con.rollback()
    con.close()
    assert_hits(await taking, range(1, 4))


@pytest.mark.parametrize("rows_of_the_new_one", [1, 5, 9])
async def test_a_replaced_file_is_a_new_epoch_from_its_beginning(path, tmp_path, rows_of_the_new_one):
    write(path, range(1, 6))
    following = follower(path)
    async with asyncio.timeout(10), aclosing(following.frames()) as source:
        assert_hits([await anext(source) for _ in range(5)], range(1, 6))
        other = tmp_path / "other.tradb"
        new_recording(other)
        write(other, range(101, 101 + rows_of_the_new_one))
        other.replace(path)
        ends = [await anext(source) for _ in range(2)]
        assert [(end.sensor, end.flags, end.epoch_ns) for end in ends] == [
            ("plant/ch2", Flags.END, EPOCH_NS),
            ("plant/ch1", Flags.END, EPOCH_NS),
        ]
        fresh = [await anext(source) for _ in range(rows_of_the_new_one)]
    for number, frame in enumerate(fresh, 101):
        np.testing.assert_array_equal(frame.samples, burst(number))
        assert frame.epoch_ns == following.epoch_ns
    assert EPOCH_NS < following.epoch_ns <= time.time_ns()
    assert fresh[0].sequence == 0


async def test_a_cursor_beyond_the_file_is_of_another_one_and_reading_begins_anew(path, caplog):
    write(path, range(1, 4))
    frames = await take(follower(path, cursor=500), 3)
    assert [frame.time_ns - frame.epoch_ns for frame in frames] == pytest.approx([10**7, 2 * 10**7, 3 * 10**7], abs=100)
    assert "was replaced by another recording" in caplog.text


async def test_damaged_hits_are_passed_over_and_counted(path, caplog):
    write(path, range(1, 2 * READ_HITS))
    with sqlite3.connect(path) as con:
        con.execute("UPDATE tr_data SET SampleRate = 0 WHERE SetID <= ?", (READ_HITS + 3,))
    con.close()
    following = follower(path)
    assert_hits(await take(following, 5), range(READ_HITS + 4, READ_HITS + 9))
    assert following.skipped == READ_HITS + 3
    assert "row 1 (TRAI 1): sample rate 0" in caplog.text


async def test_a_file_that_is_no_recording_is_complained_of_once(tmp_path, caplog):
    path = tmp_path / "text.tradb"
    path.write_bytes(b"no database at all, only text" * 100)
    await nothing_more(follower(path), 0.2)
    assert caplog.text.count("text.tradb: cannot be read now: file is not a database; waiting") == 1


async def test_live_and_replayed_hits_are_the_same(path):
    write(path, range(1, 11))
    replayed = [frame for frame in open_recording(path, "r") if Flags.HIT in frame.flags]
    for live, frame in zip(await take(follower(path), 10), replayed, strict=True):
        assert live.first_sample == frame.first_sample
        assert live.time_ns - live.epoch_ns == frame.time_ns
        assert live.volts_per_count == frame.volts_per_count
        np.testing.assert_array_equal(live.samples, frame.samples)


@pytest.mark.parametrize("options", [{"poll_s": 0.0}, {"poll_s": float("inf")}, {"cursor": -1}])
def test_what_makes_no_sense_is_refused(tmp_path, options):
    with pytest.raises(ValueError, match="a positive time and a row from 0 on are needed"):
        VallenFollower(tmp_path / "a.tradb", str, EPOCH_NS, **options)
