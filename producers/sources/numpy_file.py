"""Frames from .npy and .npz; pickled objects are never read.

An array is read from the file piece by piece, of .npz through the decompressor: memory does not grow with it.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from producers.sources.reading import Reading, RecordingError
from producers.sources.sampled import Block, Read, SampledRecording, readable
from producers.sources.stored_arrays import Signal, StoredArray, is_fact, signals

MAX_HEADER_BYTES = 10_000
MAX_FACT_BYTES = 10_000
MAX_SKIPPED_BYTES = 1 << 36  #: decompressed only to come to where a channel begins
SKIP_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where the numbers of an array lie in its stream."""

    array: StoredArray
    fortran: bool
    begin: int  #: byte of the first number

    @property
    def bytes(self) -> int:
        return math.prod(self.array.shape) * self.array.dtype.itemsize


def open_source(path: Path, reading: Reading) -> SampledRecording:
    """See `producers.sources.formats`."""
    with readable(path, "a NumPy file"):
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        return _open_npz(path, reading) if zipped or path.suffix.lower() == ".npz" else _open_npy(path, reading)


# --- One array, in a file ----------------------------------------------------------------------------------------


def _open_npy(path: Path, reading: Reading) -> SampledRecording:
    with path.open("rb") as file:
        stored = _header(path, path.stem, file)
        _refuse_missing(path, stored, path.stat().st_size)
        found = signals(path, [stored.array], {}, reading, lambda _, axis: partial(_placed, file, stored, axis))

    @contextmanager
    def open_tracks() -> Generator[Sequence[Read]]:
        with path.open("rb") as file:
            yield [partial(_placed, file, stored, found[0].time_axis)]

    return SampledRecording(path, reading.cuts, [found[0].track], open_tracks)


def _placed(file: IO[bytes], stored: _Stored, time_axis: int, begin: int, count: int) -> Block:
    """Samples from where they lie in the file."""
    width, samples = _width(stored, time_axis), stored.array.shape[time_axis]
    size = stored.array.dtype.itemsize
    if not _one_after_another(stored, time_axis):
        file.seek(stored.begin + begin * width * size)
        return _whole(file.read(count * width * size), stored, width)
    columns = []
    for column in range(width):
        file.seek(stored.begin + (column * samples + begin) * size)
        columns.append(_whole(file.read(count * size), stored, 1))
    return np.concatenate([column[: min(map(len, columns))] for column in columns], axis=1)


# --- Several arrays, in a zip ------------------------------------------------------------------------------------


def _open_npz(path: Path, reading: Reading) -> SampledRecording:
    with zipfile.ZipFile(path) as archive, ExitStack() as streams:
        members: dict[str, _Stored] = {}
        facts: dict[str, Any] = {}
        for info in archive.infolist():
            if not info.filename.endswith(".npy"):
                continue
            name = info.filename.removesuffix(".npy")
            if name in members:
                raise RecordingError(f"{path}: holds two arrays named {name}; save it anew")
            with archive.open(info) as member:
                stored = _header(path, name, member)
                _refuse_missing(path, stored, info.file_size)
                members[name] = stored
                single = math.prod(stored.array.shape) == 1 and 0 < stored.bytes <= MAX_FACT_BYTES
                if single and is_fact(name) and not stored.array.dtype.hasobject:
                    facts[name] = np.frombuffer(member.read(stored.bytes), stored.array.dtype)
        if not members:
            raise RecordingError(f"{path}: is a zip without arrays (.npy) in it; save it with numpy.savez")
        found = signals(
            path,
            [stored.array for stored in members.values()],
            {"": facts},
            reading,
            lambda array, axis: _streamed(
                streams, partial(archive.open, f"{array.name}.npy"), members[array.name], axis
            ),
        )
    for signal in found:
        _refuse_slow(path, members[signal.array.name], signal)

    @contextmanager
    def open_tracks() -> Generator[Sequence[Read]]:
        with zipfile.ZipFile(path) as archive, ExitStack() as streams:
            yield [
                _streamed(
                    streams,
                    partial(archive.open, f"{signal.array.name}.npy"),
                    members[signal.array.name],
                    signal.time_axis,
                )
                for signal in found
            ]

    return SampledRecording(path, reading.cuts, [signal.track for signal in found], open_tracks)


def _streamed(streams: ExitStack, open_member: Callable[[], IO[bytes]], stored: _Stored, time_axis: int) -> Read:
    """What reads on and on; a stream of its own for each channel where they lie one after another."""
    width, samples = _width(stored, time_axis), stored.array.shape[time_axis]
    size = stored.array.dtype.itemsize
    if not _one_after_another(stored, time_axis):
        member = streams.enter_context(open_member())
        _skip(member, stored.begin)
        return lambda _, count: _whole(member.read(count * width * size), stored, width)
    members = []
    for column in range(width):
        members.append(streams.enter_context(open_member()))
        _skip(members[-1], stored.begin + column * samples * size)

    def read(_: int, count: int) -> Block:
        columns = [_whole(member.read(count * size), stored, 1) for member in members]
        return np.concatenate([column[: min(map(len, columns))] for column in columns], axis=1)

    return read


def _skip(member: IO[bytes], count: int) -> None:
    while count > 0:
        skipped = len(member.read(min(count, SKIP_BYTES)))
        if skipped == 0:
            return
        count -= skipped


def _refuse_slow(path: Path, stored: _Stored, signal: Signal) -> None:
    width = _width(stored, signal.time_axis)
    if _one_after_another(stored, signal.time_axis) and stored.bytes * width // 2 > MAX_SKIPPED_BYTES:
        raise RecordingError(
            f"{path}: {stored.array.name} holds {width} channels one after another in a zip, which takes too long to "
            "read; "
            "save it with time as rows, or with numpy.save"
        )


# --- Headers and bytes -------------------------------------------------------------------------------------------


def _header(path: Path, name: str, stream: IO[bytes]) -> _Stored:
    lead = stream.read(8)
    if len(lead) < 8 or lead[:6] != b"\x93NUMPY":
        raise RecordingError(f"{path}: {name} does not begin like a NumPy array; is it one, and is it complete?")
    if lead[6] not in (1, 2):
        raise RecordingError(f"{path}: {name} is of version {lead[6]}, read are 1 and 2; save it as a plain array")
    lead += stream.read(2 if lead[6] == 1 else 4)
    length = int.from_bytes(lead[8:], "little")
    if length > MAX_HEADER_BYTES:
        raise RecordingError(f"{path}: {name} has a header of {length} bytes, which no plain array has; save it anew")
    header = io.BytesIO(lead + stream.read(length))
    with readable(path, "a NumPy array"):
        np.lib.format.read_magic(header)
        read = np.lib.format.read_array_header_1_0 if lead[6] == 1 else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(header)
    if any(length < 0 for length in shape):
        raise RecordingError(f"{path}: {name} has the shape {shape}; save it anew")
    return _Stored(StoredArray(name, shape, dtype), fortran, len(lead) + length)


def _refuse_missing(path: Path, stored: _Stored, there: int) -> None:
    left = max(there - stored.begin, 0)
    if not stored.array.dtype.hasobject and stored.bytes > left:
        raise RecordingError(
            f"{path}: {stored.array.name} announces {stored.bytes} bytes of numbers, but {left} are there; "
            "the file is cut off"
        )


def _width(stored: _Stored, time_axis: int) -> int:
    shape = stored.array.shape
    return shape[1 - time_axis] if len(shape) == 2 else 1


def _one_after_another(stored: _Stored, time_axis: int) -> bool:
    """Whether all of a channel lies before the next; otherwise all channels of a sample lie together."""
    return _width(stored, time_axis) > 1 and (time_axis == 0) == stored.fortran


def _whole(data: bytes, stored: _Stored, width: int) -> Block:
    """The whole samples in these bytes."""
    size = width * stored.array.dtype.itemsize
    return np.frombuffer(data[: len(data) // size * size], stored.array.dtype).reshape(-1, width)
