import io
import tracemalloc
import zipfile
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from producers.sources import open_recording
from tests.played_recordings import (
    assert_cut_anywhere_is_told,
    assert_damage_is_told,
    assert_whole,
    by_channel,
    channels,
    frames_until,
    joined,
    refusal,
)

RATE = Fraction(48_000)
FLOATS = np.random.default_rng(1).standard_normal((3_000, 3)).astype(np.float32)
COUNTS = np.random.default_rng(2).integers(-32768, 32768, (3_000, 3)).astype(np.int16)


def npy(path, array):
    np.save(path, array)
    return path


def header_only(path, shape, dtype="<f8"):
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": dtype})
    return path


@pytest.mark.parametrize("array", [FLOATS, COUNTS, COUNTS.astype(">i2"), FLOATS.astype(np.float16)])
@pytest.mark.parametrize("lay", [np.ascontiguousarray, np.asfortranarray, np.transpose])
def test_a_channel_is_the_same_whatever_the_cut_the_layout_and_the_byte_order(tmp_path, array, lay):
    native = np.int16 if array.dtype.kind == "i" else np.float32
    path = npy(tmp_path / "a.npy", lay(array))
    assert_whole(path, [np.ascontiguousarray(array[:, k].astype(native)) for k in range(3)], rate_hz=RATE)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("lay", [np.ascontiguousarray, np.asfortranarray, np.transpose])
def test_arrays_of_a_zip_are_channels_in_their_order_and_a_zip_knows_its_rate(tmp_path, save, lay):
    path = tmp_path / "a.npz"
    save(path, far=lay(COUNTS), sample_rate=96_000, near=FLOATS[:1_000, 0], label="knock")
    assert_whole(path, [*COUNTS.T, FLOATS[:1_000, 0]])
    source = open_recording(path, "r", sensor_pattern="{file}/{name}/ch{channel}")
    assert source.sensors == ("a/far[0]/ch0", "a/far[1]/ch1", "a/far[2]/ch2", "a/near/ch3")
    assert source.total_samples == COUNTS.size + 1_000
    assert {frame.rate_hz for frame in source} == {96_000}


@settings(max_examples=40, deadline=None)
@given(
    array=arrays.arrays(
        st.sampled_from([np.int16, np.int32, np.uint8, np.float32]),
        st.tuples(st.integers(1, 80), st.integers(1, 80)),
        elements={"allow_nan": False, "allow_infinity": False},
    ),
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    fortran=st.booleans(),
)
def test_any_array_comes_out_as_it_went_in(tmp_path_factory, array, sizes, fortran):
    path = npy(tmp_path_factory.mktemp("any") / "a.npy", np.asfortranarray(array) if fortran else array)
    found = channels(path, rate_hz=RATE, frame_sizes=sizes)
    by_time = array if array.shape[0] >= array.shape[1] else array.T
    assert len(found) == by_time.shape[1]
    for number, frames in found.items():
        np.testing.assert_array_equal(joined(frames), by_time[:, number].astype(np.float32))


def test_int16_has_a_full_scale_and_other_numbers_are_volts_times_it(tmp_path):
    counts = npy(tmp_path / "counts.npy", COUNTS[:, 0])
    floats = npy(tmp_path / "floats.npy", FLOATS[:, 0])
    wide = npy(tmp_path / "wide.npy", COUNTS[:, 0].astype(np.int32))
    scales = [
        next(iter(open_recording(path, "r", rate_hz=RATE, full_scale_v=0.5))).volts_per_count
        for path in (counts, floats, wide)
    ]
    assert scales == [0.5 / 32768, 0.5, 0.5]


def test_int64_loses_no_more_than_float32_does(tmp_path):
    values = np.array([2**31 - 1, -(2**53), 16_777_217, 3], dtype=np.int64)
    found = channels(npy(tmp_path / "a.npy", values), rate_hz=RATE)
    np.testing.assert_array_equal(joined(found[0]), values.astype(np.float32))


@pytest.mark.parametrize(("value", "shown"), [(np.nan, "nan"), (-np.inf, "-inf"), (1e39, "1e+39")])
def test_what_is_no_finite_float32_is_refused_after_all_before_it_was_played(tmp_path, value, shown):
    samples = FLOATS[:, :2].astype(np.float64)
    samples[1_234, 1] = value
    frames, why = frames_until(open_recording(npy(tmp_path / "a.npy", samples), "r", rate_hz=RATE))
    assert f"a.npy: sample 1234 of a[1] is {shown}" in why
    for number, own in by_channel(frames).items():
        np.testing.assert_array_equal(joined(own), FLOATS[:1_234, number])


def test_without_a_rate_the_option_is_named_and_a_contradiction_names_both(tmp_path):
    assert "--sample-rate" in refusal(npy(tmp_path / "a.npy", FLOATS))
    path = tmp_path / "a.npz"
    np.savez(path, dt=1e-6, x=FLOATS)
    assert channels(path, rate_hz=1_000_000)[0][0].rate_hz == 1_000_000
    said = refusal(path, rate_hz=44_100)
    assert "44100 Hz" in said
    assert "1000000 Hz" in said
    np.savez(path, dt=1e-6, fs=44_100, x=FLOATS)
    assert "fs (44100) says 44100 Hz" in refusal(path) or "dt (1e-06) says 1000000 Hz" in refusal(path)


def test_an_array_of_times_tells_the_rate_and_is_no_channel(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, t=np.arange(3_000) / 44_100, x=FLOATS[:, 0])
    found = channels(path)
    assert list(found) == [0]
    assert found[0][0].rate_hz == 44_100
    times = np.arange(3_000) / 44_100
    times[2_000:] += 1e-3
    np.savez(path, t=times, x=FLOATS[:, 0])
    assert "t is uneven at sample 2000" in refusal(path)


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (np.array([{"a": 1}] * 3), "Python objects, which are never unpickled"),
        (np.ones(5, complex), "complex"),
        (np.array(["a", "b"]), "text"),
        (np.ones((2, 3, 4)), "3 dimensions"),
        (np.empty(0), "no samples"),
        (np.array(3.0), "no samples"),
        (np.zeros((5_000, 5_001), np.int8), "4096"),
        (np.zeros(3, [("x", "f4"), ("y", "f4")]), "records"),
    ],
)
def test_what_is_no_signal_is_refused_by_name(tmp_path, array, why):
    path = tmp_path / "odd.npy"
    np.save(path, array, allow_pickle=True)
    assert why in refusal(path, rate_hz=RATE)


@pytest.mark.parametrize("fs", [0, -1, np.nan, np.inf, 1e12, "fast", 0.001])
def test_a_rate_that_is_none_is_refused(tmp_path, fs):
    path = tmp_path / "a.npz"
    np.savez(path, fs=fs, x=FLOATS)
    assert "fs is" in refusal(path)


def test_a_thousand_channels_are_played(tmp_path):
    path = npy(tmp_path / "wide.npy", np.tile(np.arange(2_000, dtype=np.int16)[:, None], 1_000))
    found = channels(path, rate_hz=RATE, frame_s=1.0)
    assert len(found) == 1_000
    np.testing.assert_array_equal(joined(found[999]), np.arange(2_000))


def test_a_header_that_announces_more_than_is_there_is_refused_before_memory_is_taken(tmp_path):
    path = header_only(tmp_path / "big.npy", (2**28,))
    zipped = tmp_path / "big.npz"
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("x.npy", path.read_bytes() + b"\0" * 800)
    tracemalloc.start()
    assert "2147483648 bytes of numbers, but 0 are there" in refusal(path, rate_hz=RATE)
    assert "x announces 2147483648 bytes of numbers, but 800 are there" in refusal(zipped, rate_hz=RATE)
    long_header = tmp_path / "long.npy"
    long_header.write_bytes(b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{}")
    assert "2147483647 bytes" in refusal(long_header, rate_hz=RATE)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_a_file_cut_off_anywhere_is_told(tmp_path, name):
    path = tmp_path / name
    (np.save if name.endswith("y") else np.savez_compressed)(path, FLOATS)
    assert_cut_anywhere_is_told(path, FLOATS.T, rate_hz=RATE)


def test_damage_raises_nothing_else(tmp_path):
    np.save(tmp_path / "a.npy", COUNTS[:300])
    np.savez_compressed(tmp_path / "a.npz", fs=1000, x=COUNTS[:300], y=FLOATS[:300].T)
    assert_damage_is_told(tmp_path / "a.npy")
    assert_damage_is_told(tmp_path / "a.npz")


def test_other_files_of_that_name_are_refused(tmp_path):
    for name in ("a.npy", "b.npz"):
        path = tmp_path / name
        for content in (b"", b"RIFF....WAVE", b"\x93NUMPY\x03\x00\x01\x00x", b"PK\x03\x04 no more"):
            path.write_bytes(content)
            refusal(path, rate_hz=RATE)
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("letter.txt", "dear all")
    assert "zip without arrays" in refusal(tmp_path / "b.npz", rate_hz=RATE)


def test_an_array_is_known_by_its_content(tmp_path):
    path = npy(tmp_path / "a.npy", COUNTS).rename(tmp_path / "a.dat")
    assert open_recording(path, "r", rate_hz=RATE).total_samples == COUNTS.size


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_memory_does_not_grow_with_the_file(tmp_path, name):
    path = tmp_path / name
    content = io.BytesIO()
    np.save(content, np.zeros((2_000_000, 4), np.float64))
    if name == "a.npy":
        path.write_bytes(content.getvalue())
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr("x.npy", content.getvalue())
    content.close()
    source = open_recording(path, "r", rate_hz=RATE, frame_s=1.0)
    tracemalloc.start()
    for _ in source:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12_000_000
