import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.data.manifest import read_manifest
from producers.sources import RecordingError, open_recording
from producers.sources.csv_file import TEXT_AT_ONCE
from tests.played_recordings import assert_whole, by_channel, channels, frames_until, joined, refusal

VALUES = np.random.default_rng(1).standard_normal((3_000, 2)).round(5)


def written(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def table(values, mark=",", end="\n"):
    return "".join(mark.join(f"{value:.5f}" for value in row) + end for row in values)


def timed(rate_hz, decimals, count=3_000):
    return [f"{k / rate_hz:.{decimals}f},{VALUES[k, 0]:.5f}\n" for k in range(count)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pump.csv"


@pytest.mark.parametrize(
    "text",
    [
        table(VALUES),
        "near,far\n" + table(VALUES),
        '"near","far [V]"\r\n' + table(VALUES, end="\r\n"),
        "\ufeffnear,far\n" + table(VALUES),
        "# pump 3\n\nnear;far\n" + table(VALUES, ";"),
        "near;far\n" + table(VALUES, ";").replace(".", ","),
        table(VALUES, "\t").replace(".", ","),
        "\n" + table(VALUES[:50]) + "\n# a pause\n  \n" + table(VALUES[50:]).rstrip("\n"),
        table(VALUES).replace(",", " , "),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_columns_are_channels_however_the_table_is_written(path, text, encoding):
    if encoding == "utf-16":
        text = text.removeprefix("\ufeff")
    assert_whole(written(path, text, encoding), list(VALUES.astype(np.float32).T), rate_hz=48_000)


def test_the_suffix_tsv_means_tabs(tmp_path):
    path = written(tmp_path / "pump.tsv", "a, near\tb\n" + table(VALUES, "\t"))
    assert_whole(path, list(VALUES.astype(np.float32).T), rate_hz=48_000)


def test_names_and_units_of_the_header_are_kept(path):
    written(path, "time (ms),near [mV],far (g)\n" + "".join(f"{k},{k},1\n" for k in range(9)))
    source = open_recording(path, "r", full_scale_v=0.5, sensor_pattern="{file}/{name}")
    assert source.sensors == ("pump/near", "pump/far")
    first = {frame.sensor: frame for frame in source}
    assert [frame.volts_per_count for frame in first.values()] == [1e-3, 0.5]
    assert first["pump/far"].rate_hz == 1_000


@pytest.mark.parametrize(
    ("rate_hz", "decimals"), [(44_100, 6), (44_100, 9), (1_000_000, 6), (48_828.125, 8), (1_000, 3), (51_200, 7)]
)
def test_a_column_of_rounded_times_tells_the_exact_rate(path, rate_hz, decimals):
    written(path, "t,x\n" + "".join(timed(rate_hz, decimals)))
    frame = channels(path)[0][0]
    assert frame.rate_hz == Fraction(rate_hz)
    assert channels(path, rate_hz=rate_hz)[0][0].rate_hz == Fraction(rate_hz)
    assert "leave --sample-rate out" in refusal(path, rate_hz=rate_hz * 1.01)


@pytest.mark.parametrize("name", ["time", "T", "Time [s]", "time_s", "timestamp", '"time"'])
def test_a_time_column_is_known_by_its_name(path, name):
    written(path, f"{name},x\n" + "".join(timed(44_100, 9)))
    assert_whole(path, [VALUES[:, 0].astype(np.float32)])


def test_a_rate_in_a_comment_is_heard(path):
    written(path, "# Sample Rate: 51200 Hz\n# unit = mV\n" + table(VALUES))
    frame = channels(path)[1][0]
    assert (frame.rate_hz, frame.volts_per_count) == (51_200, 1e-3)
    assert "51200 Hz" in refusal(path, rate_hz=48_000)


def test_a_counting_column_is_no_channel(path):
    written(path, ",x\n" + "".join(f"{k},{VALUES[k, 0]:.5f}\n" for k in range(3_000)))
    assert_whole(path, [VALUES[:, 0].astype(np.float32)], rate_hz=1_000)


def test_times_without_a_header_are_not_taken_for_a_sensor(path):
    written(path, "".join(timed(44_100, 6)))
    assert "rises evenly, as times do" in refusal(path, rate_hz=44_100)


def test_a_gap_in_the_times_is_told_with_its_line_after_what_came_before(path):
    lines = timed(44_100, 6)
    del lines[1_500]
    written(path, "t,x\n" + "".join(lines))
    frames, why = frames_until(open_recording(path, "r"))
    assert "line 1502: the time" in why
    np.testing.assert_array_equal(joined(frames), VALUES[:1_500, 0].astype(np.float32))


def test_a_gap_far_from_the_beginning_is_told_too(path):
    lines = timed(44_100, 6) * 30
    lines = [f"{k / 44_100:.6f},1.00000\n" for k in range(90_000)]
    del lines[70_000]
    written(path, "t,x\n" + "".join(lines))
    frames, why = frames_until(open_recording(path, "r"))
    assert "line 70002: the time" in why
    assert len(joined(frames)) == 70_000


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no line of numbers"),
        ("\n\n# nothing\n", "no line of numbers"),
        ("a,b\n", "no line of numbers"),
        ("1,2\n3\n", "line 2: 1 fields, the first line has 2"),
        ("1,2\n3,4,5\n", "line 2: 3 fields, the first line has 2"),
        ("a,b\n1,2\n\n3,\n", "line 4, column 2: is empty"),
        ("1,2\n3,x y\n", "line 2, column 2: 'x y' is no number"),
        ("1,\n2,3\n", "line 1, column 2: is empty"),
        ("a,b,c\n1,2\n", "line 2: 2 fields, the header has 3"),
        ("volts\n0,5\n0,25\n", "semicolons"),
        ("a,b\n1,2\n3,nan\n", "sample 1 of b is nan"),
        ("a,b\n1,2\n3,1e39\n", "sample 1 of b is 1e+39"),
        ("a\n1\n2\x00\n", "line 3, column 1"),
        ("a,b\n1,2\n1_0,2\n", "line 3"),
        ("time [h],x\n0,1\n1,2\n", "give times in s, ms, us or ns"),
        ("t,x\n0,1\n", "one time only"),
        ("t,x\n0,1\n0,2\n", "that rise"),
        ("t,x\n0,1\n0.001,2\n0.002,2\n0.0033,2\n0.004,2\n", "line 5: the time 0.0033"),
        ("t,x\n0,1\n0.001,2\n0.002,2\n0.004,2\n", "line 5: the time 0.004"),
        ("t,x\n2024-01-01,1\n", "line 2, column 1"),
        ("t\n0\n1\n2\n", "the only one"),
        ("time,x\n0,1\n100,1\n200,1\n", "tells no rate of 1"),
        ("1" * (2 * TEXT_AT_ONCE), "line 1: is longer than"),
        (",".join("1" * 5_000) + "\n", "4096 channels"),
        ("# fs = fast\n1\n2\n", "fs is 'fast'"),
    ],
)
def test_what_cannot_be_played_is_told_with_its_line(path, text, why):
    told = refusal(written(path, text), rate_hz=None if text.startswith(("t", "#")) else 1_000)
    assert why in told
    assert len(told) < 500


def test_without_times_the_option_is_named(path):
    assert "--sample-rate" in refusal(written(path, table(VALUES)))


@settings(max_examples=150, deadline=None)
@example(text="#\n", suffix=".csv")
@given(
    text=st.text(st.sampled_from('0123456789.,;\t\n\r"#-+e xt:=\x00µ\ud7ff'), max_size=80),
    suffix=st.sampled_from([".csv", ".tsv"]),
)
def test_any_text_is_played_or_refused(tmp_path_factory, text, suffix):
    path = written(tmp_path_factory.mktemp("any") / f"any{suffix}", text)
    try:
        frames = by_channel(open_recording(path, "r", rate_hz=Fraction(1_000)))
    except RecordingError as error:
        assert str(path) in str(error)  # noqa: PT017 - either is right
    else:
        assert all(np.isfinite(joined(own)).all() for own in frames.values())


def test_a_file_cut_off_anywhere_is_told_or_played_so_far(path):
    whole = written(path, "a,b\n" + table(VALUES)).read_bytes()
    expected = VALUES.astype(np.float32)
    for hundredth in range(100):
        path.write_bytes(whole[: len(whole) * hundredth // 100])
        try:
            frames, why = frames_until(open_recording(path, "r", rate_hz=Fraction(1_000)))
        except RecordingError:
            continue
        assert why is None or "is the line cut off?" in why or "column" in why
        for number, own in by_channel(frames).items():
            # A last line without its end is taken as it stands.
            samples = joined(own)[:-1]
            np.testing.assert_array_equal(samples, expected[: len(samples), number])


def test_a_class_folder_of_tables_holds_clips_and_tables_beside_other_recordings_are_notes(tmp_path):
    for name in ("leak/a.csv", "leak/b.tsv", "knock/c.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert len(read_manifest(tmp_path).clips) == 3
    (tmp_path / "meta").mkdir()
    for name in ("leak/a.wav", "knock/c.npy", "meta/all.csv"):
        (tmp_path / name).touch()
    manifest = read_manifest(tmp_path)
    assert [clip.path.name for clip in manifest.clips] == ["c.npy", "a.wav"]
    assert "left out: 3 .csv, 1 .tsv" in " ".join(manifest.notes)


def test_memory_does_not_grow_with_the_file(path):
    written(path, table(VALUES) * 200)
    source = open_recording(path, "r", rate_hz=Fraction(48_000), frame_s=1.0)
    tracemalloc.start()
    for _ in source:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 9_000_000
    assert peak < 20_000_000
