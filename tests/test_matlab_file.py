import struct

import numpy as np
import pytest
import scipy.io

from producers.sources import matlab_file, open_recording
from tests.played_recordings import assert_cut_anywhere_is_told, assert_damage_is_told, assert_whole, channels, refusal

FLOATS = np.random.default_rng(1).standard_normal((3_000, 3)).astype(np.float32)
COUNTS = np.random.default_rng(2).integers(-32768, 32768, (3_000, 3)).astype(np.int16)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pump.mat"


def save(path, compressed=True, **variables):
    scipy.io.savemat(path, variables, do_compression=compressed)
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_variables_and_fields_of_structures_are_channels(path, compressed):
    record = {"signal": COUNTS[:, 0], "dt": 1e-6, "operator": "Ada"}
    save(path, compressed, Fs=48_000.0, DE_time=FLOATS.T, RPM=1_797, day=record, note="fine")
    assert_whole(path, [*FLOATS.T, COUNTS[:, 0]])
    found = channels(path)
    assert [frames[0].rate_hz for frames in found.values()] == [48_000] * 3 + [1_000_000]
    source = open_recording(path, "r", sensor_pattern="{name}/ch{channel}")
    assert source.sensors[2:] == ("DE_time[2]/ch2", "day/signal/ch3")


def test_version_4_is_read(path):
    scipy.io.savemat(path, {"fs": 1_000, "x": FLOATS[:, 0].astype(float)}, format="4")
    assert_whole(path, [FLOATS[:, 0]])


def test_a_vector_of_times_tells_the_rate(path):
    save(path, t=np.arange(3_000) / 51_200, x=FLOATS[:, 0])
    found = channels(path)
    assert (list(found), found[0][0].rate_hz) == ([0], 51_200)


def write_v73(path, variables, square=False):
    """As MATLAB writes it: axes the other way about, a header of 512 bytes before."""
    h5py = pytest.importorskip("h5py", reason="reading .mat v7.3 needs the hdf5 extra")
    classes = {"i": "int16", "f": "double", "u": "char"}
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in variables.items():
            text = isinstance(value, str)
            stored = np.array([[ord(mark)] for mark in value], np.uint16) if text else np.atleast_2d(value).T
            file[name] = stored
            file[name].attrs["MATLAB_class"] = np.bytes_(classes[stored.dtype.kind])
        file["#refs#/a"] = np.ones(50)
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512, b" "))
    return path


def test_version_7_3_is_read_as_matlab_meant_it(path):
    write_v73(path, {"fs": 48_000.0, "x": FLOATS.astype(float), "y": COUNTS[:, :1].T, "units": "mV"})
    assert_whole(path, [*FLOATS.T, COUNTS[:, 0]])
    assert channels(path)[3][0].volts_per_count == 1e-3


def test_rows_of_a_square_are_time_in_both_kinds(path, caplog):
    square = FLOATS[:3].astype(float)
    assert_whole(save(path, fs=1_000, x=square), list(FLOATS[:3].T))
    assert "as long as wide; its rows are taken as time" in caplog.text
    assert_whole(write_v73(path, {"fs": 1_000.0, "x": square}), list(FLOATS[:3].T))


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"x": np.ones(5) * 1j}, "x holds complex"),
        ({"x": "text"}, "no samples"),
        ({"x": np.array([1, "a"], dtype=object)}, "no samples"),
        ({"x": np.ones((2, 3, 4))}, "3 dimensions"),
        ({"x": np.ones((50, 2)), "fs": 0}, "fs is 0"),
        ({"x": np.ones((50, 2)), "fs": np.nan}, "fs is nan"),
        ({"x": np.ones((50, 2))}, "--sample-rate"),
    ],
)
def test_what_cannot_be_played_is_named(path, variables, why):
    assert why in refusal(save(path, **({"fs": 1_000} if why[:3] not in ("fs ", "--s") else {}), **variables))


def test_one_too_large_to_load_is_refused_with_the_way_out(path, monkeypatch):
    monkeypatch.setattr(matlab_file, "MAX_LOADED_BYTES", 100_000)
    assert "-v7.3" in refusal(save(path, fs=1_000, x=np.zeros(20_000)))
    assert "-v7.3" in refusal(save(path, fs=1_000, s={"x": np.zeros(20_000)}))


def test_a_header_that_announces_more_than_is_there_is_refused(path):
    save(path, False, x=np.zeros(20))
    content = bytearray(path.read_bytes())
    place = content.index(struct.pack("<II", 1, 20))  # the dimensions
    content[place : place + 8] = struct.pack("<II", 1, 2**28)
    path.write_bytes(content)
    assert "announces 268435456 values, but 20 are there" in refusal(path, rate_hz=1_000)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_cut_off_anywhere_is_told(path, compressed):
    assert_cut_anywhere_is_told(save(path, compressed, fs=1_000, x=FLOATS), FLOATS.T)


def test_damage_raises_nothing_else(path):
    assert_damage_is_told(save(path, fs=1_000, x=FLOATS[:200], s={"y": COUNTS[:100]}), trials=100)
    assert_damage_is_told(save(path, False, fs=1_000, x=FLOATS[:200], s={"y": COUNTS[:100]}), trials=100)


def test_other_files_of_that_name_are_refused(path):
    for content in (b"", b"\0" * 20, b"RIFF....WAVE" * 20, b"MATLAB 5.0".ljust(124) + b"\x00\x01IM"):
        path.write_bytes(content)
        refusal(path, rate_hz=1_000)
