"""Whatever a file holds, claims and is called: it is played or refused by name, soon, and in little memory."""

from __future__ import annotations

import json
import os
import resource
import select
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from producers.sources import RecordingError, open_recording
from producers.sources.formats import FORMATS, RECORDING_SUFFIXES
from tests import test_replay_cli
from tests.played_recordings import by_channel, frames_until, joined
from tests.test_mistras import head, waveform

ROOT = Path(__file__).parent.parent

run = test_replay_cli.run  # a fixture

RATE_HZ = 48_000
COUNTS = np.random.default_rng(1).integers(-9_000, 9_000, (3_000, 2)).astype(np.int16)
FLOATS = np.random.default_rng(2).uniform(-0.5, 0.5, (3_000, 2)).astype(np.float32)

#: What opening and playing files may take on top of the interpreter and its libraries.
MEMORY_BYTES = 256 * 2**20
SECONDS = 20.0
GIGABYTES = 2**31

LOSSY = {".ogg", ".oga", ".opus"}
#: A cut between two lines, or within the last number, cannot be seen.
CUT_UNSEEN = {".csv", ".tsv"}
AUDIO = {
    ".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".oga": "OGG", ".opus": "OGG", ".aif": "AIFF", ".aiff": "AIFF",
    ".w64": "W64", ".rf64": "RF64", ".caf": "CAF", ".au": "AU",
}  # fmt: skip
HITS = {".tradb", ".dta"}


def write(path: Path, samples: Any, rate_hz: float = RATE_HZ) -> Path:
    """A sound recording of these samples, shape (samples, channels), as the suffix says."""
    suffix = path.suffix
    if suffix in AUDIO:
        subtype = {".ogg": "VORBIS", ".oga": "VORBIS", ".opus": "OPUS"}.get(suffix)
        if subtype is None:
            subtype = "PCM_16" if samples.dtype == np.int16 else "FLOAT"
        soundfile.write(path, samples, int(rate_hz), subtype=subtype, format=AUDIO[suffix])
    elif suffix == ".npy":
        np.save(path, samples)
    elif suffix == ".npz":
        np.savez(path, signal=samples, fs=rate_hz)
    elif suffix == ".mat":
        pytest.importorskip("scipy.io").savemat(path, {"signal": samples, "fs": float(rate_hz)})
    elif suffix in (".h5", ".hdf5"):
        with pytest.importorskip("h5py").File(path, "w") as file:
            file["signal"] = samples
            file.attrs["fs"] = rate_hz
    elif suffix == ".tdms":
        _write_tdms(path, samples, rate_hz)
    elif suffix in (".csv", ".tsv"):
        mark = "," if suffix == ".csv" else "\t"
        rows = "".join(mark.join(map(str, row)) + "\n" for row in samples.tolist())
        names = mark.join(f"ch{number}" for number in range(samples.shape[1]))
        path.write_text(f"# fs = {rate_hz:g}\n{names}\n{rows}")
    elif suffix == ".dta":
        hits = [waveform(0.1 * n, samples[n::8, n % 2], channel=1 + n % 2) for n in range(8)]
        path.write_bytes(b"".join([*head(1, 2, rate_khz=int(rate_hz) // 1000), *hits]))
    else:
        assert suffix == ".tradb", f"a recording format without a writer here: {suffix}"
        _write_tradb(path, samples, rate_hz)
    return path


def _write_tdms(path: Path, samples: Any, rate_hz: float) -> None:
    nptdms = pytest.importorskip("nptdms")
    step = {"wf_increment": 1 / rate_hz if rate_hz else 0.0}
    with nptdms.TdmsWriter(path) as file:
        file.write_segment(
            [
                nptdms.ChannelObject("night", f"ch{n}", np.ascontiguousarray(samples[:, n]), step)
                for n in range(samples.shape[1])
            ]
        )


def _write_tradb(path: Path, samples: Any, rate_hz: float) -> None:
    pytest.importorskip("vallenae").io.TraDatabase.create(str(path))
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO tr_params VALUES (1, 1, 1, 1.5, 0.003)")
        for n in range(8):
            hit = np.ascontiguousarray(samples[n::8, n % 2])
            connection.execute(
                "INSERT INTO tr_data (Time, TRAI, Status, ParamID, Chan, Pretrigger, Thr, SampleRate, Samples,"
                " DataFormat, Data) VALUES (?, ?, 0, 1, ?, 0, 66, ?, ?, 0, ?)",
                (1_000_000 * n, n + 1, 1 + n % 2, int(rate_hz), len(hit), hit.tobytes()),
            )
    connection.close()


def given_hz(path: Path) -> Fraction | None:
    """A bare array does not say its rate."""
    return Fraction(RATE_HZ) if path.suffix == ".npy" else None


# --- What becomes of a file, found out in a process of little memory ---------------------------------------------


def judge() -> None:
    """For each path that comes in, one JSON line: what became of it."""
    import h5py  # noqa: F401
    import nptdms  # noqa: F401

    for known in FORMATS:
        __import__(known.module)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, resource.RLIM_INFINITY))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print("ready", flush=True)
    for line in sys.stdin:
        path = Path(line.rstrip("\n"))
        samples: dict[str, list[bytes]] = {}
        why: str | None = None
        try:
            for frame in open_recording(path, "r", rate_hz=given_hz(path)):
                samples.setdefault(frame.sensor.rpartition("/")[2], []).append(frame.samples.tobytes())
        except RecordingError as error:
            why = str(error)
        except BaseException as error:
            why = f"not told, but raised: {error!r}"
        print(
            json.dumps(
                {
                    "path": str(path),
                    "why": why,
                    "samples": {channel: b"".join(parts).hex() for channel, parts in samples.items()},
                    "grown": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024,
                }
            ),
            flush=True,
        )


Result = dict[str, Any]
Judged = Callable[[list[Path]], list[Result]]


@pytest.fixture(scope="module")
def judged() -> Iterator[Judged]:
    """`judged(paths)`: what became of each.

    Fails where one hangs, eats memory, or raises anything but a `RecordingError` that names it.
    """
    child = subprocess.Popen(
        [sys.executable, "-c", "from tests.test_hostile_recordings import judge; judge()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert child.stdin is not None
    assert child.stdout is not None
    stdin, stdout = child.stdin, child.stdout
    assert stdout.readline() == "ready\n"

    def one(path: Path) -> Result:
        print(path, file=stdin, flush=True)
        assert select.select([stdout], [], [], SECONDS)[0], f"{path}: hangs"
        line = stdout.readline()
        assert line, f"{path}: ended the process"
        result: Result = json.loads(line)
        why = result["why"]
        assert why is None or why.startswith(str(path)), why
        assert "MemoryError" not in str(why)
        assert "llocate" not in str(why)
        assert result["grown"] < MEMORY_BYTES, path
        return result

    with child:
        try:
            yield lambda paths: [one(path) for path in paths]
        finally:
            child.kill()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A sound file of every kind, by suffix."""
    folder = tmp_path_factory.mktemp("sound")
    return {suffix: write(folder / f"pump{suffix}", COUNTS).read_bytes() for suffix in sorted(RECORDING_SUFFIXES)}


# --- The tests ---------------------------------------------------------------------------------------------------


def test_a_file_cut_off_at_any_hundredth_is_played_so_far_and_told(
    judged: Judged, tmp_path: Path, sound: dict[str, bytes]
) -> None:
    paths = []
    for suffix, content in sound.items():
        for hundredth in range(101):
            paths.append(tmp_path / f"{hundredth:03d}{suffix}")
            paths[-1].write_bytes(content[: len(content) * hundredth // 100])
    results = {result["path"]: result for result in judged(paths)}
    for path in paths:
        result, whole = results[str(path)], results[str(path.with_stem("100"))]
        assert whole["why"] is None
        assert len(whole["samples"]) == 2
        if path.stem != "100" and path.suffix not in CUT_UNSEEN:
            assert result["why"] is not None, path
        if path.suffix not in LOSSY:
            # A hit or a line is whole or not there, but the last line of a text.
            spare = 8 if path.suffix in CUT_UNSEEN else 0
            for channel, samples in result["samples"].items():
                assert whole["samples"][channel].startswith(samples[: len(samples) - spare]), path


def test_files_of_nothing_and_of_zeros_are_refused_however_long(judged: Judged, tmp_path: Path) -> None:
    paths = []
    for suffix in sorted(RECORDING_SUFFIXES):
        for name, size in (("nothing", 0), ("zeros", 4_096), ("gigabytes", GIGABYTES - 4_096)):
            paths.append(tmp_path / f"{name}{suffix}")
            with paths[-1].open("wb") as file:
                file.truncate(size)
    for result in judged(paths):
        assert result["why"] is not None, result["path"]
        assert not result["samples"]


def test_a_file_under_the_ending_of_any_other_kind_is_played_or_refused(
    judged: Judged, tmp_path: Path, sound: dict[str, bytes]
) -> None:
    paths = []
    for suffix, content in sound.items():
        for other in sorted(RECORDING_SUFFIXES | {".bin", ".txt", ".pridb", ""} - {suffix}):
            paths.append(tmp_path / f"{suffix[1:]}{other}")
            paths[-1].write_bytes(content)
    for result in judged(paths):
        assert (result["why"] is None) == (len(result["samples"]) == 2), result


def claiming(path: Path, sound: bytes) -> None:
    """The sound file of this kind, but its header announces gigabytes."""
    size = GIGABYTES - 4_096
    if path.suffix in (".wav", ".rf64", ".w64", ".caf", ".aif", ".aiff", ".au"):
        place, width, order = {
            ".wav": (sound.find(b"data") + 4, 4, "little"),
            ".rf64": (sound.find(b"ds64") + 8, 8, "little"),
            ".w64": (16, 8, "little"),
            ".caf": (sound.find(b"data") + 4, 8, "big"),
            ".aif": (sound.find(b"SSND") + 4, 4, "big"),
            ".aiff": (sound.find(b"SSND") + 4, 4, "big"),
            ".au": (8, 4, "big"),
        }[path.suffix]
        assert 4 <= place < 8_192
        path.write_bytes(sound[:place] + size.to_bytes(width, order) + sound[place + width :])  # type: ignore[arg-type]
    elif path.suffix == ".flac":
        # The 36 bits of the number of samples in STREAMINFO.
        path.write_bytes(sound[:22] + (GIGABYTES).to_bytes(4, "big") + sound[26:])
    elif path.suffix == ".npy":
        assert b"(3000, 2), }           " in sound
        path.write_bytes(sound.replace(b"(3000, 2), }      ", b"(300000000, 2), } ", 1))
    elif path.suffix in (".h5", ".hdf5"):
        with pytest.importorskip("h5py").File(path, "w") as file:
            file.create_dataset("signal", (GIGABYTES // 4, 2), np.int16)
            file.attrs["fs"] = RATE_HZ
    elif path.suffix == ".mat":
        place = sound.find(b"signal") - 4 - 24 - 16
        place = sound.rfind((14).to_bytes(4, "little"), 0, place + 24) + 4
        path.write_bytes(sound[:place] + size.to_bytes(4, "little") + sound[place + 4 :])
    elif path.suffix == ".tradb":
        path.write_bytes(sound)
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE tr_data SET Samples = ?, Data = zeroblob(100000000)", (GIGABYTES,))
        connection.close()
    elif path.suffix == ".tdms":
        # Where the next segment begins, and how many values each channel has here.
        values = sound.find((3_000).to_bytes(8, "little"))
        path.write_bytes(sound[:12] + size.to_bytes(8, "little") + sound[20:values] + size.to_bytes(8, "little")
                         + sound[values + 8 :])  # fmt: skip
    else:
        pytest.skip(f"{path.suffix}: has no header that announces a length")


@pytest.mark.parametrize("suffix", sorted(RECORDING_SUFFIXES))
def test_a_header_that_claims_gigabytes_takes_no_memory_and_is_told(
    judged: Judged, tmp_path: Path, sound: dict[str, bytes], suffix: str
) -> None:
    path = tmp_path / f"claim{suffix}"
    claiming(path, sound[suffix])
    (result,) = judged([path])
    if suffix == ".tradb":
        assert not result["samples"]  # each hit is left out and logged
    else:
        assert result["why"] is not None


@pytest.mark.parametrize("suffix", sorted(RECORDING_SUFFIXES - HITS - LOSSY - {".flac"}))
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_sample_that_is_no_number_is_told_with_its_place_after_all_before_it(
    tmp_path: Path, suffix: str, value: float
) -> None:
    samples = FLOATS.copy()
    samples[1_234, 1] = value
    path = write(tmp_path / f"pump{suffix}", samples)
    frames, why = frames_until(open_recording(path, "r", rate_hz=given_hz(path)))
    assert why is not None
    assert why.startswith(str(path))
    assert "sample 1234" in why
    for number, own in by_channel(frames).items():
        # Channels of a file that keeps them apart go on up to the time of what is wrong.
        samples = joined(own)
        assert len(samples) == 1_234 if number else len(samples) >= 1_234 - RATE_HZ // 20
        np.testing.assert_array_equal(samples, FLOATS[: len(samples), number])


def without_rate(path: Path) -> None:
    """A file of this kind that says 0 Hz."""
    if path.suffix in AUDIO:
        place, width, order = {
            ".wav": (24, 4, "little"),
            ".rf64": (60, 4, "little"),
            ".au": (16, 4, "big"),
        }.get(path.suffix, (0, 0, "big"))
        if not width:
            pytest.skip(f"{path.suffix}: its rate is no plain number in the header")
        sound = write(path, COUNTS).read_bytes()
        assert sound[place : place + 4] == RATE_HZ.to_bytes(4, order)  # type: ignore[arg-type]
        path.write_bytes(sound[:place] + bytes(width) + sound[place + width :])
    elif path.suffix == ".npy":
        pytest.skip(".npy: does not say its rate")
    else:
        write(path, COUNTS, 0)


@pytest.mark.parametrize("suffix", sorted(RECORDING_SUFFIXES))
def test_a_rate_of_0_hz_is_refused(tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / f"pump{suffix}"
    without_rate(path)
    frames, why = [], None
    try:
        frames, why = frames_until(open_recording(path, "r"))
    except RecordingError as error:
        why = str(error)
    assert not frames
    told = caplog.text if suffix == ".tradb" else why  # hits of no rate are left out one by one
    assert told is not None
    assert str(path) in told


@pytest.mark.parametrize("suffix", sorted(RECORDING_SUFFIXES - HITS))
def test_a_thousand_channels_are_a_thousand_sensors_or_refused(judged: Judged, tmp_path: Path, suffix: str) -> None:
    samples = np.arange(20_000, dtype=np.int16).reshape(20, 1_000)[:, :: 1 if suffix not in LOSSY else 500]
    if suffix == ".flac":
        pytest.skip("FLAC holds eight channels at most")
    if suffix in (".npy", ".npz", ".mat", ".h5", ".hdf5"):
        samples = np.arange(2_000_000).astype(np.int16).reshape(2_000, 1_000)  # the longer axis is time
    path = write(tmp_path / f"pump{suffix}", samples)
    (result,) = judged([path])
    if result["why"] is None and suffix not in LOSSY:
        assert len(result["samples"]) == 1_000
        assert bytes.fromhex(result["samples"]["ch999"]) == _as_played(samples[:, 999], suffix).tobytes()


def _as_played(samples: Any, suffix: str) -> Any:
    return samples.astype(np.float32) if suffix in (".csv", ".tsv") else samples


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
@pytest.mark.parametrize("suffix", [".wav", ".csv", ".mat", ".bin"])
def test_a_pipe_or_a_device_is_not_waited_for(
    judged: Judged, tmp_path: Path, suffix: str, make: Callable[[Path], None]
) -> None:
    path = tmp_path / f"pump{suffix}"
    make(path)
    (result,) = judged([path])
    assert "is a device or a pipe" in result["why"]


# --- A whole run -------------------------------------------------------------------------------------------------


def test_of_a_run_with_damaged_files_every_sound_one_is_played_whole(
    run: Any,
    tmp_path: Path,
    sound: dict[str, bytes],
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    whole = {".wav", ".flac", ".h5", ".npz", ".tdms", ".tradb", ".dta", ".mat"}
    for suffix, content in sound.items():
        (folder / f"cut_{suffix[1:]}{suffix}").write_bytes(content[: len(content) // 3])
        (folder / f"empty_{suffix[1:]}{suffix}").touch()
        if suffix in whole:
            (folder / f"sound_{suffix[1:]}{suffix}").write_bytes(content)
    output, published = run(folder, "--run", "r", code=1)
    found: dict[str, int] = {}
    for frame in published:
        if "sound_" in frame.sensor:
            file = frame.sensor.split("/")[2]
            found[file] = found.get(file, 0) + len(frame.samples)
    assert found == {f"sound_{suffix[1:]}": 6_000 if suffix not in HITS else 3_000 for suffix in whole}
    for suffix in sound:
        assert f"empty_{suffix[1:]}{suffix}" in output
        if suffix not in CUT_UNSEEN:
            assert f"cut_{suffix[1:]}{suffix}" in output
    assert "recordings failed; all others were played" in output


def test_of_several_paths_those_that_can_be_played_are(
    run: Any,
    tmp_path: Path,
    sound: dict[str, bytes],
) -> None:
    for name in ("one", "three"):
        (tmp_path / f"{name}.wav").write_bytes(sound[".wav"])
    (tmp_path / "two.wav").write_bytes(sound[".wav"][:30])
    paths = [tmp_path / f"{name}.wav" for name in ("one", "two", "three", "four")]
    output, published = run(*paths, "--run", "r", code=1)
    assert set(published.order()) == {f"replay/r/{name}/ch{n}" for name in ("one", "three") for n in (0, 1)}
    assert "two.wav: cannot be opened as audio" in output
    assert "four.wav: there is no such file" in output
    assert "2 recordings failed; all others were played" in output


@pytest.mark.parametrize("escape", ["../secret.wav", "sub/../../secret.wav", "{outside}", "inside/../../secret.wav"])
def test_a_manifest_plays_nothing_outside_its_folder(
    run: Any,
    tmp_path: Path,
    sound: dict[str, bytes],
    escape: str,
) -> None:
    (tmp_path / "set/sub").mkdir(parents=True)
    (tmp_path / "set/inside").mkdir()
    (tmp_path / "secret.wav").write_bytes(sound[".wav"])
    (tmp_path / "set/sub/pump.wav").write_bytes(sound[".wav"])
    named = escape.format(outside=tmp_path / "secret.wav")
    manifest = tmp_path / "set/clips.csv"
    manifest.write_text(f"path,label\n{named},knock\nsub/pump.wav,drop\n")
    output, published = run(manifest, "--run", "r", code=1)
    assert set(published.order()) == {"replay/r/sub/pump/ch0", "replay/r/sub/pump/ch1"}
    assert f"{manifest}: names" in output
    assert "which lies outside" in output


@pytest.mark.parametrize("name", ["../../pump", "a/../pump", "/pump"])
def test_names_inside_a_file_lead_to_no_other_file_and_no_other_sensor(tmp_path: Path, name: str) -> None:
    path = tmp_path / "pump.npz"
    np.savez(path, **{name: COUNTS[:, 0], "fs": RATE_HZ})
    before = sorted(tmp_path.rglob("*"))
    source = open_recording(path, "r")
    assert source.sensors == ("replay/r/pump/ch0",)
    np.testing.assert_array_equal(joined(list(source)), COUNTS[:, 0])
    assert sorted(tmp_path.rglob("*")) == before
