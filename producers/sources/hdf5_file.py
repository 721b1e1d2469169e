"""Frames from HDF5, and from .mat v7.3, which is HDF5: every dataset of numbers is a signal, read slice by slice."""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from producers.sources.reading import Reading, RecordingError
from producers.sources.sampled import Block, Read, SampledRecording, readable
from producers.sources.stored_arrays import StoredArray, is_fact, signals

MAX_CHUNKS_BYTES = 1 << 29  #: of one chunk of each dataset: so much is decompressed at once
MAX_FACT_BYTES = 10_000
MATLAB_LEFT_OUT = frozenset({b"char", b"cell", b"struct", b"function_handle", b"logical", b"table", b"string"})


def open_source(path: Path, reading: Reading) -> SampledRecording:
    """See `producers.sources.formats`."""
    return open_hdf5(path, reading, "HDF5", matlab=False)


def open_hdf5(path: Path, reading: Reading, kind: str, *, matlab: bool) -> SampledRecording:
    """An HDF5 file, or one of MATLAB, whose axes are stored the other way about.

    Raises
    ------
    RecordingError
        If `h5py` is not installed, or the file holds nothing that can be played.
    """
    try:
        import h5py
    except ImportError as error:
        raise RecordingError(
            f"{path}: reading {path.suffix.lower() or kind} needs h5py; pip install 'aewatch[hdf5]'"
        ) from error
    with readable(path, kind), h5py.File(path, "r") as file:
        datasets: dict[str, Any] = {}
        facts: dict[str, dict[str, Any]] = {"": _facts(file.attrs)}

        def visit(name: str, item: Any) -> None:
            if name.startswith("#") or (matlab and item.attrs.get("MATLAB_empty")):
                return
            facts.setdefault(name, {}).update(_facts(item.attrs))
            if isinstance(item, h5py.Dataset):
                group, _, last = name.rpartition("/")
                if is_fact(last) and (value := _fact(item, matlab)) is not None:
                    facts.setdefault(group, {})[last] = value
                elif not (matlab and item.attrs.get("MATLAB_class") in MATLAB_LEFT_OUT):
                    datasets[name] = item

        # Links, which may lead out of the file, are not followed by this.
        file.visititems(visit)
        arrays = [_announced(path, name, datasets[name], matlab) for name in sorted(datasets, key=_natural)]
        found = signals(path, arrays, facts, reading, lambda array, axis: partial(_read, datasets[array.name], axis))
        chunks = sum(_refuse_unread(path, signal.array.name, datasets[signal.array.name]) for signal in found)
    if chunks > MAX_CHUNKS_BYTES:
        raise RecordingError(
            f"{path}: its chunks take {chunks} bytes at once, at most {MAX_CHUNKS_BYTES} are read; write it with "
            "smaller "
            "chunks (h5repack)"
        )

    @contextmanager
    def open_tracks() -> Generator[Sequence[Read]]:
        # A cache that holds a chunk of each: blocks do not end where chunks end.
        with h5py.File(path, "r", rdcc_nbytes=max(1 << 20, chunks)) as file:
            yield [partial(_read, file[signal.array.name], signal.time_axis) for signal in found]

    return SampledRecording(path, reading.cuts, [signal.track for signal in found], open_tracks)


def _read(dataset: Any, time_axis: int, begin: int, count: int) -> Block:
    end = begin + count
    block: Block
    if dataset.ndim == 1:
        block = dataset[begin:end].reshape(-1, 1)
    else:
        block = dataset[begin:end] if time_axis == 0 else dataset[:, begin:end].T
    return block


def _announced(path: Path, name: str, dataset: Any, matlab: bool) -> StoredArray:
    try:
        dtype = dataset.dtype
    except TypeError as error:
        raise RecordingError(f"{path}: {name} holds {error}; save it as arrays of int16 or float32") from error
    shape = dataset.shape or ()
    # Texts come as objects.
    dtype = np.dtype("S1") if dtype.metadata and dtype.kind == "O" else dtype
    return StoredArray(name, tuple(shape), dtype, rows_are_time=not matlab)


def _refuse_unread(path: Path, name: str, dataset: Any) -> int:
    """Bytes of a chunk; refuses what is announced but not in this file."""
    if dataset.is_virtual or dataset.external:
        raise RecordingError(f"{path}: {name} lies in other files; copy it into this one (h5repack)")
    announced = math.prod(dataset.shape) * dataset.dtype.itemsize
    if dataset.chunks is None:
        if dataset.id.get_storage_size() < announced:
            raise RecordingError(
                f"{path}: {name} announces {announced} bytes, but {dataset.id.get_storage_size()} were written; cut "
                "it to "
                "what was written"
            )
        return 0
    needed = math.prod(-(-length // chunk) for length, chunk in zip(dataset.shape, dataset.chunks, strict=True))
    there = dataset.id.get_num_chunks()
    if there < needed:
        raise RecordingError(
            f"{path}: {name} announces {needed} chunks, but {there} were written; cut it to what was written (resize)"
        )
    return math.prod(map(int, dataset.chunks)) * int(dataset.dtype.itemsize)


def _facts(attributes: Any) -> dict[str, Any]:
    """Those attributes that say something; one that cannot be read says nothing."""
    return {
        name: attributes[name] for name in attributes if is_fact(name) and attributes.get_id(name).shape in ((), (1,))
    }


def _fact(dataset: Any, matlab: bool) -> Any:
    """The value of a dataset of one, or of a text; None if it is longer."""
    size = 0 if dataset.shape is None else math.prod(dataset.shape)
    if matlab and dataset.attrs.get("MATLAB_class") == b"char" and 0 < size <= MAX_FACT_BYTES:
        return "".join(map(chr, dataset[()].ravel()))
    if size != 1 or dataset.dtype.itemsize > MAX_FACT_BYTES:
        return None
    value = dataset[()]
    return value.reshape(())[()] if isinstance(value, np.ndarray) else value


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts ch2 before ch10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
