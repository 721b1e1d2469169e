import builtins
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest

from producers.sources import open_recording, tdms_file
from tests.played_recordings import (
    assert_damage_is_told,
    assert_prefix_or_told,
    assert_whole,
    channels,
    frames_until,
    joined,
    refusal,
)

nptdms = pytest.importorskip("nptdms", reason="reading TDMS needs the tdms extra")

FLOATS = np.random.default_rng(1).standard_normal(3_000)
COUNTS = np.random.default_rng(2).integers(-32768, 32768, 3_000).astype(np.int16)
LINE = {
    "NI_Number_Of_Scales": 1,
    "NI_Scale[0]_Scale_Type": "Linear",
    "NI_Scale[0]_Linear_Slope": 2e-4,
    "NI_Scale[0]_Linear_Y_Intercept": 0.0,
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pump.tdms"


def write(path, segments=3, mode="w", **stored):
    """Channels by name, (samples, properties), written in so many pieces."""
    with nptdms.TdmsWriter(path, mode) as file:
        for part in range(segments):
            pieces = []
            for name, (samples, properties) in stored.items():
                length = -(-len(samples) // segments)
                piece = samples[part * length : (part + 1) * length]
                pieces.append(nptdms.ChannelObject("night", name, piece, properties))
            file.write_segment(pieces)
    return path


def test_what_the_library_says_of_a_file_is_said_once(path, caplog, capfd):
    whole = write(path, near=(COUNTS, {"wf_increment": 1e-6})).read_bytes()
    path.write_bytes(whole[:-700])
    for _ in range(2):
        frames_until(open_recording(path, "r"))
    said = "Last segment of file has less data than expected"
    assert caplog.text.count(said) == 2  # once for each opening by us
    assert said not in capfd.readouterr().err


@pytest.mark.parametrize("segments", [1, 7])
def test_each_channel_is_a_sensor_with_its_own_rate_and_length(path, segments):
    write(path, segments, near=(COUNTS, {"wf_increment": 1e-6}), far=(FLOATS[:2_000], {"wf_increment": 1 / 44_100}))
    assert_whole(path, [COUNTS, FLOATS[:2_000].astype(np.float32)])
    source = open_recording(path, "r", sensor_pattern="{file}/{name}/ch{channel}")
    assert source.sensors == ("pump/near/ch0", "pump/far/ch1")
    assert source.total_samples == 5_000
    assert [frames[0].rate_hz for frames in channels(path).values()] == [1_000_000, 44_100]


def test_units_and_one_line_through_zero_become_volts_per_count(path):
    rate = {"wf_increment": 1e-6}
    write(
        path,
        plain=(COUNTS, rate | {"unit_string": "mV"}),
        line=(COUNTS, rate | LINE | {"unit_string": "mV"}),
        offset=(COUNTS, rate | LINE | {"NI_Scale[0]_Linear_Y_Intercept": 1.0, "unit_string": "uV"}),
        applied=(FLOATS, rate | LINE | {"NI_Scaling_Status": "scaled"}),
        unknown=(COUNTS, rate),
    )
    found = channels(path, full_scale_v=0.5)
    assert [frames[0].samples.dtype.name for frames in found.values()] == ["int16"] * 2 + ["float32"] * 2 + ["int16"]
    scales = [frames[0].volts_per_count for frames in found.values()]
    assert scales == pytest.approx([1e-3, 2e-7, 1e-6, 0.5, 0.5 / 32768], rel=1e-12)
    np.testing.assert_array_equal(joined(found[1]), COUNTS)
    np.testing.assert_array_equal(joined(found[2]), (COUNTS * 2e-4 + 1.0).astype(np.float32))
    np.testing.assert_array_equal(joined(found[3]), FLOATS.astype(np.float32))


def test_the_rate_comes_from_the_file_or_the_option_and_never_from_both(path):
    write(path, x=(COUNTS, {}))
    assert "--sample-rate" in refusal(path)
    assert channels(path, rate_hz=44_100)[0][0].rate_hz == 44_100
    write(path, x=(COUNTS, {"wf_increment": 1e-6}))
    assert "says 1000000 Hz" in refusal(path, rate_hz=44_100)


@pytest.mark.parametrize("increment", [0.0, -1e-6, float("nan"), float("inf"), 1e-12, 1e9])
def test_a_step_that_is_none_is_refused(path, increment):
    assert "wf_increment of night/x is" in refusal(write(path, x=(COUNTS, {"wf_increment": increment})))


def test_what_is_no_signal(path):
    write(path, 1, x=(FLOATS.astype(complex), {}))
    assert "complex" in refusal(path, rate_hz=1_000)
    write(path, 1, note=(["good", "bad"], {}), empty=(np.empty(0), {}))
    assert "no samples" in refusal(path, rate_hz=1_000)
    write(path, 1, note=(["good", "bad"], {}), x=(COUNTS, {}))
    assert_whole(path, [COUNTS], rate_hz=1_000)


def test_a_sample_that_is_nan_is_told_after_what_came_before(path):
    samples = FLOATS.copy()
    samples[2_345] = np.nan
    write(path, x=(samples, {"wf_increment": 1e-6}), y=(COUNTS, {"wf_increment": 1e-6}))
    frames, why = frames_until(open_recording(path, "r"))
    assert "sample 2345 of night/x is nan" in why
    assert sum(len(frame.samples) for frame in frames if frame.sensor.endswith("ch0")) == 2_345


@pytest.mark.parametrize("segments", [1, 4])
def test_a_file_cut_off_anywhere_is_told_or_played_so_far(path, segments):
    write(path, segments, x=(COUNTS, {"wf_increment": 1e-6}), y=(FLOATS, {"wf_increment": 1e-6}))
    whole = path.read_bytes()
    for hundredth in range(100):
        path.write_bytes(whole[: len(whole) * hundredth // 100])
        assert_prefix_or_told(path, [COUNTS, FLOATS.astype(np.float32)])


def test_damage_raises_nothing_else(path):
    write(path, x=(COUNTS[:300], LINE), y=(FLOATS[:300], {"wf_increment": 1e-3}))
    assert_damage_is_told(path)


def test_a_header_that_announces_more_than_is_there_is_refused_before_memory_is_taken(path):
    write(path, 1, x=(FLOATS, {"wf_increment": 1e-6}))
    content = path.read_bytes()
    count = (3_000).to_bytes(8, "little")
    assert content.count(count) == 1
    path.write_bytes(content.replace(count, (2**28).to_bytes(8, "little")))
    tracemalloc.start()
    frames, why = frames_until(open_recording(path, "r"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000
    assert why is not None or len(joined(frames)) == 3_000


def test_pieces_too_large_to_hold_are_refused(path, monkeypatch):
    monkeypatch.setattr(tdms_file, "MAX_CHUNK_BYTES", 20_000)
    write(path, 1, x=(FLOATS, {"wf_increment": 1e-6}))
    assert "shorter pieces" in refusal(path)
    write(path, 3, x=(FLOATS, {"wf_increment": 1e-6}))
    assert channels(path)


def test_other_files_of_that_name_are_refused(path):
    for content in (b"", b"TDSm", b"RIFF....WAVE" * 10):
        path.write_bytes(content)
        refusal(path, rate_hz=1_000)


def test_without_nptdms_the_extra_is_named(path, monkeypatch):
    write(path, x=(COUNTS, {}))
    imported = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "nptdms":
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install 'aewatch[tdms]'" in refusal(path)


def test_memory_does_not_grow_with_the_file(path):
    piece = np.zeros(100_000, np.int16)
    with nptdms.TdmsWriter(path) as file:
        for _ in range(60):
            file.write_segment([nptdms.ChannelObject("g", name, piece, {"wf_increment": 1e-6}) for name in "abc"])
    source = open_recording(path, "r", rate_hz=Fraction(1_000_000))
    tracemalloc.start()
    for _ in source:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 35_000_000
    assert peak < 6_000_000
