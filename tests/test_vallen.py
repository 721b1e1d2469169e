import builtins
import sqlite3

import numpy as np
import pytest

from producers.sources import RecordingError, open_recording
from stream.records import Flags

vallenae = pytest.importorskip("vallenae", reason="reading .tradb needs the vallen extra")

TR_MV = 0.003
RATE_HZ = 2_000_000


def write_hits(path, hits):
    """A `.tradb` of (time_s, channel, samples int16, status, pretrigger) rows, in the given order."""
    vallenae.io.TraDatabase.create(str(path))
    with sqlite3.connect(path) as con:
        con.execute("INSERT INTO tr_params VALUES (1, 1, 1, 1.5, ?)", (TR_MV,))
        for trai, (time_s, channel, samples, status, pretrigger) in enumerate(hits, start=1):
            con.execute(
                "INSERT INTO tr_data (Time, TRAI, Status, ParamID, Chan, Pretrigger, Thr, SampleRate, Samples,"
                " DataFormat, Data) VALUES (?, ?, ?, 1, ?, ?, 66, ?, ?, 0, ?)",
                (round(time_s * 1e7), trai, status, channel, pretrigger, RATE_HZ, len(samples), samples.tobytes()),
            )
    con.close()


def burst(seed, count=400):
    return np.random.default_rng(seed).integers(-3000, 3000, count).astype(np.int16)


@pytest.fixture
def tradb(tmp_path):
    path = tmp_path / "valve.tradb"
    write_hits(
        path,
        [
            (0.5, 1, burst(1), 1 << 15, 100),
            (0.3, 2, burst(2), (1 << 15) | (1 << 4), 0),
            (0.7, 1, burst(3), (1 << 15) | (1 << 6), 0),
            (0.9, 2, burst(4), (1 << 15) | (1 << 11), 0),
        ],
    )
    return path


def test_each_hit_is_a_frame_and_hits_come_in_order_of_time(tradb):
    source = open_recording(tradb, "r")
    frames = list(source)
    assert source.sensors == ("replay/r/valve/ch1", "replay/r/valve/ch2")
    hits = [frame for frame in frames if Flags.HIT in frame.flags]
    assert [frame.sensor[-3:] for frame in hits] == ["ch2", "ch1", "ch1", "ch2"]
    for frame, seed in zip(hits, (2, 1, 3, 4), strict=True):
        assert frame.samples.dtype == np.int16
        np.testing.assert_array_equal(frame.samples, burst(seed))
        assert frame.volts_per_count == pytest.approx(TR_MV * 1e-3)
        assert frame.rate_hz == RATE_HZ
    assert len(frames) == source.total_frames
    assert sum(len(frame.samples) for frame in frames) == source.total_samples == 1_600


def test_a_frame_begins_its_pretrigger_before_the_stored_time(tradb):
    late = next(frame for frame in open_recording(tradb, "r") if frame.sensor.endswith("ch1"))
    assert late.first_sample == RATE_HZ // 2 - 100
    assert late.time_ns == 500_000_000 - 50_000
    assert late.epoch_ns == 0


def test_a_pretrigger_before_the_beginning_is_kept_at_zero(tmp_path):
    path = tmp_path / "a.tradb"
    write_hits(path, [(0.0, 1, burst(1), 0, 100)])
    frame = next(iter(open_recording(path, "r")))
    assert (frame.first_sample, frame.time_ns) == (0, 0)


def test_status_bits_become_flags(tradb):
    flags = {frame.time_ns // 100_000_000: frame.flags for frame in open_recording(tradb, "r") if len(frame.samples)}
    assert flags == {
        3: Flags.HIT | Flags.SATURATED,
        4: Flags.HIT,
        7: Flags.HIT | Flags.TEST_PULSE,
        9: Flags.HIT | Flags.TEST_PULSE,
    }


def test_each_channel_ends_with_an_end_frame(tradb):
    frames = list(open_recording(tradb, "r"))
    assert [frame.flags for frame in frames[-2:]] == [Flags.END, Flags.END]
    for end in frames[-2:]:
        own = [frame for frame in frames if frame.sensor == end.sensor]
        assert end.first_sample == own[-2].end_sample
        assert [frame.sequence for frame in own] == [0, 1, 2]


def test_damaged_hits_are_left_out_and_counted_and_the_others_played(tradb, caplog):
    with sqlite3.connect(tradb) as con:
        con.execute("UPDATE tr_data SET Data = substr(Data, 1, 100) WHERE TRAI = 1")
        con.execute("UPDATE tr_data SET DataFormat = 2 WHERE TRAI = 2")
        con.execute("UPDATE tr_data SET ParamID = 77 WHERE TRAI = 3")
    con.close()
    source = open_recording(tradb, "r")
    frames = list(source)
    assert source.skipped == 3
    assert [frame.flags for frame in frames] == [Flags.HIT | Flags.TEST_PULSE, Flags.END]
    np.testing.assert_array_equal(frames[0].samples, burst(4))
    assert all(f"TRAI {trai}" in caplog.text for trai in (1, 2, 3))


def test_the_file_is_only_read(tradb):
    tradb.chmod(0o444)
    before = (tradb.read_bytes(), sorted(tradb.parent.iterdir()))
    list(open_recording(tradb, "r"))
    assert (tradb.read_bytes(), sorted(tradb.parent.iterdir())) == before


def test_an_unfinished_iteration_leaves_nothing_open(tradb):
    frames = iter(open_recording(tradb, "r"))
    next(frames)
    frames.close()
    tradb.unlink()


@pytest.mark.parametrize("content", [b"no database at all, only text", b"SQLite format 3\0" + b"\0" * 100, b""])
def test_a_file_that_is_no_recording_is_named(tmp_path, content):
    path = tmp_path / "broken.tradb"
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=r"broken\.tradb: cannot be read as a Vallen recording"):
        open_recording(path, "r")


def test_a_recording_without_hits_is_refused(tmp_path):
    path = tmp_path / "none.tradb"
    write_hits(path, [])
    with pytest.raises(RecordingError, match="holds no hits"):
        open_recording(path, "r")


def test_without_vallenae_the_error_says_what_to_install(tradb, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("vallenae"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RecordingError, match=r"pip install 'aewatch\[vallen\]'"):
        open_recording(tradb, "r")


def test_the_bearing_recording_gives_its_490_hits(real_data):
    source = open_recording(real_data / "vallen/bearing/bearing.tradb", "r")
    hits = [frame for frame in source if Flags.HIT in frame.flags]
    assert source.sensors == ("replay/r/bearing/ch1",)
    assert len(hits) == 490
    assert source.skipped == 0
    assert all(len(frame.samples) == 5_000 and frame.rate_hz == 500_000 for frame in hits)
    # vallenae's own reading of the first hit, in volts.
    with vallenae.io.TraDatabase(str(real_data / "vallen/bearing/bearing.tradb")) as database:
        volts, _ = database.read_wave(1, time_axis=False)
    np.testing.assert_allclose(hits[0].samples * hits[0].volts_per_count, volts, rtol=1e-6)


def test_compressed_and_plain_recordings_of_one_event_are_equal_sample_for_sample(real_data):
    folder = real_data / "vallen/steel_plate"
    compressed, plain = (list(open_recording(folder / name, "r")) for name in ("sample.tradb", "sample_plain.tradb"))
    assert len(compressed) == len(plain) == 8
    for one, other in zip(compressed, plain, strict=True):
        assert (one.first_sample, one.time_ns, one.flags) == (other.first_sample, other.time_ns, other.flags)
        assert one.sensor[-3:] == other.sensor[-3:]
        np.testing.assert_array_equal(one.samples, other.samples)
