import builtins
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest

from producers.sources import open_recording
from tests.played_recordings import (
    assert_cut_anywhere_is_told,
    assert_damage_is_told,
    assert_whole,
    channels,
    frames_until,
    joined,
    refusal,
)

h5py = pytest.importorskip("h5py", reason="reading HDF5 needs the hdf5 extra")

FLOATS = np.random.default_rng(1).standard_normal((3_000, 3)).astype(np.float32)
COUNTS = np.random.default_rng(2).integers(-32768, 32768, (3_000, 3)).astype(np.int16)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pump.h5"


def write(path, attributes, **datasets):
    with h5py.File(path, "w") as file:
        file.attrs.update(attributes)
        for name, data in datasets.items():
            file[name] = data
    return path


def test_datasets_in_groups_are_channels_sorted_as_people_count(path):
    with h5py.File(path, "w") as file:
        file.attrs["Fs"] = 1_000_000
        file["night/ch10"] = COUNTS[:, 0]
        file["night/ch2"] = FLOATS[:900, 1]
        file["both"] = COUNTS[:, 1:].T
        file["remark"] = "pump 3"
    assert_whole(path, [COUNTS[:, 1], COUNTS[:, 2], FLOATS[:900, 1], COUNTS[:, 0]])
    source = open_recording(path, "r", sensor_pattern="{name}/ch{channel}")
    assert source.sensors == ("both[0]/ch0", "both[1]/ch1", "night/ch2/ch2", "night/ch10/ch3")
    assert source.duration_s == pytest.approx(3e-3)


@pytest.mark.parametrize("how", [{"chunks": (100, 3), "compression": "gzip"}, {"chunks": (700, 1)}, {}])
def test_chunks_and_compression_make_no_difference(path, how):
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=FLOATS, **how).attrs["sampling_rate"] = 44_100.0
    assert_whole(path, list(FLOATS.T))


def test_the_nearest_says_the_rate_and_the_unit(path):
    with h5py.File(path, "w") as file:
        file.attrs.update(fs=1_000_000, units="mV")
        file["a"] = COUNTS[:, 0]
        file["b"] = COUNTS[:, 0]
        file["b"].attrs.update(dt=np.float32(1 / 44_100), volts_per_count=1e-4)
        file["c/x"] = FLOATS[:, 0]
        file["c/fs"] = 5_000
        file["c/x"].attrs["scale"] = 2.0
        file["d"] = FLOATS[:, 0]
        file["d"].attrs["unit"] = b"g"
    first = [frames[0] for frames in channels(path, full_scale_v=0.5).values()]
    assert [frame.rate_hz for frame in first] == [1_000_000, 44_100, 5_000, 1_000_000]
    assert [frame.volts_per_count for frame in first] == [1e-3, 1e-4, 2e-3, 0.5]


def test_channels_of_different_rates_come_in_order_of_time(path):
    with h5py.File(path, "w") as file:
        for name, fs in (("fast", 10_000), ("slow", 1_000)):
            file[name] = COUNTS[:, 0] if fs > 1_000 else COUNTS[:300, 1]
            file[name].attrs["fs"] = fs
    times = [frame.time_ns for frame in open_recording(path, "r", frame_s=0.02)]
    assert times == sorted(times)
    assert_whole(path, [COUNTS[:, 0], COUNTS[:300, 1]])


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        ({}, "--sample-rate"),
        ({"fs": 0}, "fs is 0"),
        ({"fs": float("nan")}, "fs is nan"),
        ({"fs": 1e3, "dt": 1e-6}, "says 1000 Hz"),
        ({"fs": 1e3, "scale": -1.0}, "scale is"),
        ({"fs": 1e3, "volts_per_count": 0}, "volts_per_count is"),
        ({"fs": "about 1000"}, "about 1000"),
    ],
)
def test_what_is_no_rate_or_scale_is_named(path, attributes, why):
    assert why in refusal(write(path, attributes, x=FLOATS))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (np.ones(5, complex), "x holds complex"),
        (np.ones((2, 3, 4)), "3 dimensions"),
        (np.empty(0), "no samples"),
        (np.zeros(3, [("t", "f4"), ("y", "f4")]), "records"),
        ("only text", "no array of numbers"),
        (["some", "texts"], "no array of numbers"),
        (3.5, "no array of numbers"),
    ],
)
def test_what_is_no_signal_is_refused_by_name(path, data, why):
    assert why in refusal(write(path, {"fs": 1000}, x=data))


def test_a_dataset_that_was_announced_but_not_written_is_refused(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("x", shape=(2**28,), dtype="f8")
    tracemalloc.start()
    assert "announces 2147483648 bytes, but 0 were written" in refusal(path, rate_hz=1000)
    with h5py.File(path, "w") as file:
        file.create_dataset("x", shape=(2**28,), dtype="f8", chunks=(2**16,))[:10] = 1
    assert "announces 4096 chunks, but 1 were written" in refusal(path, rate_hz=1000)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_chunks_too_large_to_hold_are_refused(path):
    with h5py.File(path, "w") as file:
        data = file.create_dataset("x", shape=(2**26 + 1,), dtype="f8", chunks=(2**26 + 1,), compression="gzip")
        data.id.write_direct_chunk((0,), b"small")
    assert "smaller chunks" in refusal(path, rate_hz=1000)


def test_data_in_other_files_are_not_read(path, tmp_path):
    (tmp_path / "secret").write_bytes(b"\1" * 800)
    with h5py.File(path, "w") as file:
        file.create_dataset("x", shape=(100,), dtype="f8", external=[(str(tmp_path / "secret"), 0, 800)])
    assert "lies in other files" in refusal(path, rate_hz=1000)
    with h5py.File(path, "w") as file:
        file["x"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "x")
    assert "no samples" in refusal(path, rate_hz=1000)


def test_a_damaged_chunk_is_told_after_what_came_before(path):
    with h5py.File(path, "w") as file:
        data = file.create_dataset("x", shape=(600_000,), dtype="i2", chunks=(100_000,), compression="gzip")
        data[:] = np.tile(COUNTS[:, 0], 200)
        place = data.id.get_chunk_info(5)
    content = bytearray(path.read_bytes())
    content[place.byte_offset : place.byte_offset + 50] = bytes(50)
    path.write_bytes(content)
    frames, why = frames_until(open_recording(path, "r", rate_hz=Fraction(1000)))
    assert "x cannot be read on from sample 262144" in why
    np.testing.assert_array_equal(joined(frames), np.tile(COUNTS[:, 0], 200)[:262_144])


def test_a_file_cut_off_anywhere_is_told(path):
    write(path, {"fs": 1000}, x=FLOATS[:, 0], y=FLOATS[:, 1])
    assert_cut_anywhere_is_told(path, FLOATS.T)


def test_damage_raises_nothing_else(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("g/x", data=COUNTS[:500], chunks=(100, 3), compression="gzip").attrs["fs"] = 1000
    assert_damage_is_told(path)


def test_other_files_of_that_name_are_refused(path):
    for content in (b"", b"no HDF5", b"\x89HDF\r\n\x1a\n"):
        path.write_bytes(content)
        assert "HDF5" in refusal(path)


def test_hdf5_is_known_by_its_content(path, tmp_path):
    renamed = write(path, {"fs": 1000}, x=COUNTS).rename(tmp_path / "pump.nxs")
    assert open_recording(renamed, "r").total_samples == COUNTS.size


def test_without_h5py_the_extra_is_named(path, monkeypatch):
    write(path, {"fs": 1000}, x=COUNTS)
    imported = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "h5py":
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install 'aewatch[hdf5]'" in refusal(path)
