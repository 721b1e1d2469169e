"""From the clips of a data set to labelled windows, cut by the stream's own windowing core and kept in a cache on disk.

Windows of a clip lie on the stream's grid, counted from the clip's first sample. What the grid leaves at the clip's end
makes one more window, which ends with the clip, if it is more than half a hop; a clip shorter than a window makes one
that ends in zeros. A hit makes one window, whatever the grid; of one longer than a window only the beginning goes in.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from deploy.clip_survey import DatasetError, Survey, clips_by_file, read_all, refuse, surveys_of
from deploy.clip_windows import windows_of
from model.data.dataset import WindowSet
from model.data.manifest import Manifest
from model.training.recipe_choice import Facts
from stream.windows import WindowSpec

log = logging.getLogger(__name__)

OnProgress = Callable[[int, int], None]  #: recordings done, of how many

COLUMNS = ("lengths", "labels", "recordings", "sensors", "positions", "splits")
CACHE_VERSION = 1  #: a new one for every change of what windows come out
ABANDONED_S = 86_400.0  #: a cache still being built after so long belongs to a process that was killed
INT16_SCALE = np.float32(1.0 / 32768.0)


def dataset_facts(manifest: Manifest, on_progress: OnProgress | None = None) -> Facts:
    """Samples and rate of every clip, from the recordings' headers where these tell; of a clip of hits, of every hit.

    Raises
    ------
    DatasetError
        Naming the recordings that cannot be opened and the clips without samples.
    """
    samples: list[int] = []
    rates_hz: list[float] = []
    for survey in surveys_of(manifest, on_progress):
        for clip in survey.clips:
            for count, rate_hz in survey.pieces(clip):
                samples.append(count)
                rates_hz.append(float(rate_hz))
    return Facts(np.array(samples, dtype=np.int64), np.array(rates_hz))


def dataset_windows(
    manifest: Manifest,
    window_samples: int,
    hop_samples: int,
    rate_hz: Fraction | None,
    cache: Path | None = None,
    on_progress: OnProgress | None = None,
) -> WindowSet:
    """All windows of the data set, as a read-only memory map.

    int16 where every recording is and none is resampled, else float32 with full scale at ±1. A sensor that the data
    set does not name is `<recording>/ch<n>` in a recording of several channels, and "" in one of a single channel.

    Parameters
    ----------
    window_samples, hop_samples
        In samples at `rate_hz`.
    rate_hz
        What recordings of other rates are resampled to; None is a nominal rate: samples of any rate go in as they are,
        and the windows' `rate_hz` is the commonest among the clips.
    cache
        Folder of windows made before; None is `cache_folder()`. An entry is found again by the clips, the recordings'
        sizes and times of change, and the choice of windows. Several processes may share the folder.

    Raises
    ------
    DatasetError
        Naming the recordings that cannot be read, whole, and the clips without samples; or the cache, where it cannot
        be written.
    """
    spec = WindowSpec(window_samples, hop_samples, rate_hz)
    folder = cache_folder() if cache is None else Path(cache)
    entry = folder / _cache_key(manifest, spec)
    found = _load(entry)
    if found is None:
        try:
            _build(manifest, spec, entry, on_progress)
        except OSError as error:
            raise DatasetError(
                f"{folder}: windows cannot be kept here: {error.strerror or error}; "
                "set XDG_CACHE_HOME to a folder with room"
            ) from error
        found = _load(entry)
        if found is None:
            raise DatasetError(f"{entry}: was made and is gone or spoilt; is another program emptying {folder}?")
    return found


def cache_folder() -> Path:
    """Where windows are kept unless told: `aewatch/windows` in XDG_CACHE_HOME or else in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aewatch" / "windows"


def _cache_key(manifest: Manifest, spec: WindowSpec) -> str:
    clips = manifest.clips
    stamps = []
    for path in clips_by_file(manifest):
        # A file that is not there is told of where it is opened.
        with contextlib.suppress(OSError):
            stat = path.stat()
            stamps.append((stat.st_size, stat.st_mtime_ns))
    rows = [
        (os.path.abspath(c.path), c.label, c.start_s, c.end_s, c.channel, c.sensor, c.position, c.recording, c.split)
        for c in clips
    ]
    choice = (CACHE_VERSION, spec.length, spec.hop, str(spec.rate_hz))
    return hashlib.sha256(json.dumps((choice, rows, stamps)).encode()).hexdigest()[:32]


def _load(entry: Path) -> WindowSet | None:
    """The windows of that entry; None where there is none, or none that can be read."""
    try:
        windows = np.load(entry / "windows.npy", mmap_mode="r", allow_pickle=False)
        with np.load(entry / "columns.npz", allow_pickle=False) as columns:
            labels = columns["label_names"].tolist()
            return WindowSet(
                windows=windows,
                label_names=tuple(labels),
                rate_hz=float(columns["rate_hz"]),
                **{
                    name: columns[name]
                    for name in ("lengths", "labels", "recordings", "sensors", "positions", "splits")
                },
            )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        log.warning("%s: cannot be read (%s), so it is made anew", entry, error)
        shutil.rmtree(entry, ignore_errors=True)
        return None


def _build(manifest: Manifest, spec: WindowSpec, entry: Path, on_progress: OnProgress | None) -> None:
    """Make the entry beside its place and move it there whole, so that no reader ever sees half of it."""
    surveys = surveys_of(manifest)
    entry.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(entry.parent)
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=entry.parent))
    try:
        with (building / "windows.npy").open("wb") as file:
            columns = _write_windows(manifest, surveys, spec, file, on_progress)
        np.savez(building / "columns.npz", allow_pickle=False, **columns)
        try:
            building.rename(entry)
        except OSError:
            # Another process was first; its windows are the same.
            if not entry.is_dir():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    for building in folder.glob(".building-*"):
        with contextlib.suppress(OSError):
            newest = max(path.stat().st_mtime for path in (building, *building.iterdir()))
            if time.time() - newest > ABANDONED_S:
                shutil.rmtree(building, ignore_errors=True)


def _write_windows(
    manifest: Manifest, surveys: Sequence[Survey], spec: WindowSpec, file: BinaryIO, on_progress: OnProgress | None
) -> dict[str, npt.NDArray[Any]]:
    """Writes all windows as one .npy array, whose rows are counted on the way; returns the other columns."""
    resampled = spec.rate_hz is not None and any(found.rates_hz != {spec.rate_hz} for found in surveys)
    whole_numbers = not resampled and all(found.dtype == np.int16 for found in surveys)
    dtype = np.dtype(np.int16 if whole_numbers else np.float32)
    label_names = manifest.label_names
    label_of = {label: index for index, label in enumerate(label_names)}
    lengths: list[int] = []
    labels: list[int] = []
    texts: dict[str, list[str]] = {"recordings": [], "sensors": [], "positions": [], "splits": []}
    reasons: list[str] = []
    cut_short = 0
    _write_header(file, dtype, 0, spec.length)
    ready = read_all(surveys, lambda found: windows_of(found, spec))
    for done, (found, windows, failed) in enumerate(ready, start=1):
        for clip, channel, samples in windows:
            if reasons:
                continue  # nothing will come of it, but all that is wrong shall be told
            cut_short += len(samples) > spec.length
            samples = samples[: spec.length]
            row = np.zeros(spec.length, dtype)
            if whole_numbers:
                row[: len(samples)] = samples
            else:
                scale = INT16_SCALE if samples.dtype == np.int16 else np.float32(1.0)
                np.multiply(samples, scale, out=row[: len(samples)], dtype=np.float32)
            file.write(row.data)
            lengths.append(len(samples))
            labels.append(label_of[clip.label])
            texts["recordings"].append(clip.recording)
            texts["sensors"].append(clip.sensor or (f"{clip.recording}/ch{channel}" if found.several else ""))
            texts["positions"].append(clip.position)
            texts["splits"].append(clip.split)
        reasons += failed
        if on_progress:
            on_progress(done, len(surveys))
    refuse(manifest, reasons)
    if cut_short:
        log.warning(
            "%d hits are longer than a window of %d samples; only their beginning goes in", cut_short, spec.length
        )
    file.seek(0)
    _write_header(file, dtype, len(lengths), spec.length)
    return {
        "lengths": np.array(lengths, dtype=np.int64),
        "labels": np.array(labels, dtype=np.int64),
        "label_names": np.array(label_names),
        "rate_hz": np.array(_window_rate_hz(surveys, spec)),
        **{name: np.array(values) for name, values in texts.items()},
    }


def _write_header(file: BinaryIO, dtype: np.dtype[Any], rows: int, samples: int) -> None:
    # NumPy leaves room in it for the first axis to grow, so both headers are equally long.
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows, samples)}
    )


def _window_rate_hz(surveys: Sequence[Survey], spec: WindowSpec) -> float:
    if spec.rate_hz is not None:
        return float(spec.rate_hz)
    common: Counter[Fraction] = Counter()
    for found in surveys:
        for clip in found.clips:
            common.update(rate_hz for _, rate_hz in found.pieces(clip))
    return float(common.most_common(1)[0][0])
