import io
import sqlite3
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from producers.sources import RecordingError, open_recording, vallen
from stream.records import Flags, decode_frames, encode_frame

vallenae = pytest.importorskip("vallenae", reason="the writer of these tests is vallenae")

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


def test_reading_needs_no_other_package(tradb):
    code = "import sys; sys.modules['vallenae'] = None\nfrom producers.sources import open_recording\n"
    code += f"print(len(list(open_recording({str(tradb)!r}, 'r'))))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "6\n"


def test_hit_features_beside_it_do_not_matter(tradb):
    expected = encoded(tradb)
    pridb = tradb.with_suffix(".pridb")
    pridb.write_bytes(b"not even a database")
    assert encoded(tradb) == expected
    with pytest.raises(RecordingError, match=r"valve\.pridb: holds hit features but no waveforms; give valve\.tradb"):
        open_recording(pridb, "r")


def change(path, statement, *values):
    with sqlite3.connect(path) as con:
        con.execute(statement, values)
    con.close()


FLAC_OF_2_GB = io.BytesIO()
soundfile.write(FLAC_OF_2_GB, np.zeros(400, np.int16), 44_100, format="FLAC")
FLAC_OF_2_GB = bytearray(FLAC_OF_2_GB.getvalue())
# Number of samples in the stream's own description: 36 bits that end 26 bytes into the file.
FLAC_OF_2_GB[22:26] = (2**30).to_bytes(4, "big")


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("SampleRate", 0, "sample rate 0, allowed are"),
        ("SampleRate", None, "sample rate None"),
        ("SampleRate", -5, "sample rate -5"),
        ("SampleRate", 2**40, "sample rate 1099511627776"),
        ("SampleRate", "fast", "sample rate 'fast'"),
        ("Samples", 2**30, "1073741824 samples announced"),
        ("Samples", 0, "0 samples announced"),
        ("Samples", None, "None samples announced"),
        ("Samples", 399, "800 bytes of samples, 399 samples announced"),
        ("Data", None, "no samples"),
        ("Data", "text", "samples that are no blob"),
        ("Data", b"", "0 bytes of samples"),
        ("DataFormat", 1, "data format 1; known are 0"),
        ("DataFormat", None, "data format None"),
        ("DataFormat", 2, "its FLAC cannot be decoded"),
        ("Time", 2**62, "beyond all counting"),
        ("Pretrigger", "early", "pretrigger 'early'"),
        ("Pretrigger", -(2**62), "beyond all counting"),
        ("Status", "good", "status 'good'"),
        ("ParamID", 9, "None mV per count"),
    ],
)
def test_a_hit_with_an_impossible_value_is_left_out_alone(tradb, caplog, column, value, reason):
    change(tradb, f"UPDATE tr_data SET {column} = ? WHERE TRAI = 3", value)
    source = open_recording(tradb, "r")
    hits = [frame for frame in source if Flags.HIT in frame.flags]
    assert [frame.time_ns // 10**8 for frame in hits] == [3, 4, 9]
    assert source.skipped == 1
    assert "hit in row 3 (TRAI 3) left out" in caplog.text
    assert reason in caplog.text


@pytest.mark.parametrize(
    ("column", "value"), [("Time", -1), ("Time", None), ("Time", 0.5), ("Chan", None), ("Chan", "a")]
)
def test_a_hit_without_a_sound_time_or_channel_is_counted_as_left_out(tradb, column, value):
    change(tradb, f"UPDATE tr_data SET {column} = ? WHERE TRAI = 3", value)
    source = open_recording(tradb, "r")
    frames = list(source)
    assert (len(frames), source.total_frames, source.skipped) == (5, 5, 1)


@pytest.mark.parametrize("millivolts", [0.0, -1.0, None, 1e400, 1e-323, "loud"])
def test_a_scale_that_is_none_leaves_hits_out(tradb, millivolts):
    change(tradb, "UPDATE tr_params SET TR_mV = ?", millivolts)
    source = open_recording(tradb, "r")
    assert (list(source), source.skipped) == ([], 4)


def test_a_blob_that_claims_gigabytes_takes_no_memory(tradb, caplog):
    change(tradb, "UPDATE tr_data SET DataFormat = 2, Data = ? WHERE TRAI = 3", bytes(FLAC_OF_2_GB))
    change(tradb, "UPDATE tr_data SET DataFormat = 2, Samples = ?, Data = ? WHERE TRAI = 1", 2**23, bytes(FLAC_OF_2_GB))
    change(tradb, "UPDATE tr_data SET Data = zeroblob(?) WHERE TRAI = 2", 2**25)
    source = open_recording(tradb, "r")
    tracemalloc.start()
    frames = list(source)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(frames) == 2
    assert peak < 2**21
    assert "1073741824 samples, 400 announced" in caplog.text


@pytest.mark.parametrize("timebase", [0, -5, None, "many", 10**12])
def test_a_recording_whose_clock_is_unknown_is_refused(tradb, timebase):
    change(tradb, "UPDATE tr_globalinfo SET Value = ? WHERE Key = 'TimeBase'", timebase)
    with pytest.raises(RecordingError, match=f"TimeBase in tr_globalinfo is {timebase}"):
        open_recording(tradb, "r")


def test_a_query_in_place_of_the_table_is_not_run(tradb):
    change(tradb, "ALTER TABLE tr_data RENAME TO hidden")
    change(
        tradb,
        "CREATE VIEW tr_data AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
        " SELECT i AS Time, i AS Chan, i AS SampleRate, i AS Samples FROM n",
    )
    with pytest.raises(RecordingError, match="has no table tr_data"):
        open_recording(tradb, "r")


def test_a_thousand_channels_are_a_thousand_sensors(tmp_path):
    path = tmp_path / "many.tradb"
    write_hits(path, [(channel / 1000, channel, burst(channel, 10), 0, 0) for channel in range(1, 1001)])
    source = open_recording(path, "r")
    frames = list(source)
    assert len(source.sensors) == len({frame.sensor for frame in frames}) == 1000
    assert len(frames) == source.total_frames == 2000


def test_hits_of_one_time_keep_the_order_of_writing(tmp_path):
    path = tmp_path / "same.tradb"
    write_hits(path, [(0.5, channel, burst(channel, 10), 0, 0) for channel in (3, 1, 2)])
    assert [frame.sensor[-3:] for frame in open_recording(path, "r")][:3] == ["ch3", "ch1", "ch2"]


def test_a_recording_that_is_being_written_is_played_and_the_writer_not_disturbed(tradb):
    writer = sqlite3.connect(tradb, isolation_level=None)
    writer.execute("PRAGMA journal_mode = wal")
    writer.execute("UPDATE tr_data SET Thr = 1 WHERE TRAI = 1")
    assert tradb.with_name("valve.tradb-wal").stat().st_size > 0
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("DELETE FROM tr_data WHERE TRAI > 1")
    frames = iter(open_recording(tradb, "r"))
    first = next(frames)
    writer.execute("INSERT INTO tr_data (Time, TRAI) VALUES (5, 5)")
    writer.execute("COMMIT")
    writer.close()
    assert first.sensor.endswith("ch2")
    # What was deleted meanwhile is missed, and the rest is played.
    assert [len(frame.samples) for frame in frames] == [400, 0, 0]


def test_nothing_is_left_beside_a_recording_that_was_closed_in_wal_mode(tradb):
    change(tradb, "PRAGMA journal_mode = wal")
    before = sorted(tradb.parent.iterdir())
    assert len(encoded(tradb)) == 6
    assert sorted(tradb.parent.iterdir()) == before


def test_a_locked_recording_is_said_to_be_open_elsewhere(tradb, monkeypatch):
    monkeypatch.setattr(vallen, "LOCK_WAIT_S", 0.05)
    writer = sqlite3.connect(tradb, isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    with pytest.raises(RecordingError, match="database is locked; is the file complete, and not open in the acq"):
        open_recording(tradb, "r")
    writer.rollback()
    frames = iter(open_recording(tradb, "r"))
    next(frames)
    writer.execute("BEGIN EXCLUSIVE")
    with pytest.raises(RecordingError, match="database is locked"):
        next(frames)
    writer.close()


def test_a_crashed_write_is_said_to_lie_beside_it(tradb):
    tradb.with_name("valve.tradb-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(2000))
    tradb.write_bytes(tradb.read_bytes()[:3000])
    with pytest.raises(RecordingError, match="an unfinished write lies beside it"):
        open_recording(tradb, "r")


def encoded(path):
    return [encode_frame(frame) for frame in open_recording(path, "r")]


def play(path):
    """Hits played, hits left out, and whether it ended with an error; anything but a RecordingError is the reader's."""
    hits, skipped, failed = [], 0, False
    try:
        source = open_recording(path, "r")
    except RecordingError:
        return hits, skipped, True
    try:
        for frame in source:
            assert decode_frames(frame.sensor, encode_frame(frame)).rejects == []
            if Flags.HIT in frame.flags:
                hits.append(frame)
    except RecordingError:
        failed = True
    return hits, source.skipped, failed


@pytest.mark.parametrize(
    "name", ["bearing/bearing.tradb", "steel_plate/sample.tradb", "steel_plate/sample_plain.tradb"]
)
def test_a_file_cut_at_any_percent_gives_all_of_its_hits_or_an_error(real_data, tmp_path, name):
    recording = real_data / "vallen" / name
    assert_cuts_are_told(recording, tmp_path / "cut.tradb")


def test_a_made_file_cut_at_any_percent_gives_all_of_its_hits_or_an_error(tmp_path):
    path = tmp_path / "whole.tradb"
    write_hits(path, [(number / 10, 1, burst(number, 2000), 0, 0) for number in range(1, 51)])
    assert_cuts_are_told(path, tmp_path / "cut.tradb")


def assert_cuts_are_told(recording, path):
    whole = recording.read_bytes()
    complete = [encode_frame(frame)[40:] for frame in play(recording)[0]]
    for percent in range(100):
        path.write_bytes(whole[: len(whole) * percent // 100])
        hits, skipped, failed = play(path)
        assert failed or (skipped == 0 and [encode_frame(frame)[40:] for frame in hits] == complete)


def test_damaged_pages_cost_the_hits_on_them_and_are_told(tmp_path):
    path = tmp_path / "damaged.tradb"
    write_hits(path, [(number / 10, 1, burst(number, 2000), 0, 0) for number in range(1, 51)])
    complete = {frame.time_ns: frame for frame in play(path)[0]}
    content = bytearray(path.read_bytes())
    # The page that the 30th hit begins on, and with it the list of rows from there on.
    page = content.index(burst(30, 2000).tobytes()[:50]) // 4096
    content[page * 4096 : (page + 1) * 4096] = b"\xff" * 4096
    path.write_bytes(bytes(content))
    hits, _, failed = play(path)
    assert failed
    assert len(hits) > 20
    assert all(hit.samples.tobytes() == complete[hit.time_ns].samples.tobytes() for hit in hits)


@example([(2690, 128)])  # a name in the layout of the tables that is no text
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_file_with_changed_bytes_gives_sound_hits_or_an_error(tradb, changes):
    original = tradb.read_bytes()
    content = bytearray(original)
    for at, value in changes:
        content[at % len(content)] = value
    tradb.write_bytes(bytes(content))
    try:
        play(tradb)
    finally:
        tradb.write_bytes(original)


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
