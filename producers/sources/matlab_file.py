"""Frames from MATLAB's .mat: v7.3 as HDF5, slice by slice; older ones as a whole, up to a bound.

The older kinds are parsed here: scipy.io, which also reads them, can end the whole process on a damaged file.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from producers.sources.hdf5_file import open_hdf5
from producers.sources.reading import Reading, RecordingError
from producers.sources.sampled import Block, Read, SampledRecording, readable
from producers.sources.stored_arrays import StoredArray, is_fact, signals

MAX_LOADED_BYTES = 2 << 30
MAX_DEPTH = 20  #: of structures in structures
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"

# MAT-file level 5: how numbers are stored, and the classes of arrays.
STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
TEXT_STORED = {1: "utf-8", 2: "utf-8", 4: "utf-16", 16: "utf-8", 17: "utf-16"}
HEAD_BYTES = 128
MATRIX, COMPRESSED = 14, 15
STRUCTURE, TEXT = 2, 4
NUMBERS = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
COMPLEX = 0x0800
LOGICAL = 0x0200

# MAT-file level 4.
HEAD_4 = struct.Struct("<5i")
STORED_4 = {0: "f8", 1: "f4", 2: "i4", 3: "i2", 4: "u2", 5: "u1"}


@dataclass(frozen=True, slots=True)
class _Variable:
    """An array of numbers, or a text."""

    name: str  #: with the structures that it is in, "a/b"
    dtype: np.dtype[Any]  #: as MATLAB knows it; numbers are stored as short as they can be
    values: npt.NDArray[Any] | str


def open_source(path: Path, reading: Reading) -> SampledRecording:
    """See `producers.sources.formats`."""
    with readable(path, "a MATLAB file"):
        with path.open("rb") as file:
            head = file.read(8)
            file.seek(512)
            if HDF5_MAGIC in (head, file.read(8)):
                return open_hdf5(path, reading, "a MATLAB file (v7.3)", matlab=True)
        return _open_old(path, reading)


def _open_old(path: Path, reading: Reading) -> SampledRecording:
    if path.stat().st_size > MAX_LOADED_BYTES:
        raise _too_large(path)
    with path.open("rb") as file:
        head = memoryview(file.read(HEAD_BYTES))
    # What is no such file is refused before gigabytes of it are in memory.
    level_4 = 0 in bytes(head[:4])
    if level_4:
        _head_4(path, head, 0)
    else:
        _order_5(path, head)
    content = memoryview(path.read_bytes())
    values: dict[str, npt.NDArray[Any]] = {}
    arrays: list[StoredArray] = []
    facts: dict[str, dict[str, Any]] = {}
    for variable in _level_4(path, content) if level_4 else _level_5(path, content):
        group, _, last = variable.name.rpartition("/")
        if is_fact(last) and (isinstance(variable.values, str) or variable.values.size == 1):
            facts.setdefault(group, {})[last] = variable.values
        elif not isinstance(variable.values, str) and variable.values.size:
            values[variable.name] = variable.values
            arrays.append(StoredArray(variable.name, variable.values.shape, variable.dtype))
    found = signals(path, arrays, facts, reading, lambda array, axis: partial(_slice, values[array.name], axis))

    @contextmanager
    def open_tracks() -> Generator[Sequence[Read]]:
        yield [partial(_slice, values[signal.array.name], signal.time_axis) for signal in found]

    return SampledRecording(path, reading.cuts, [signal.track for signal in found], open_tracks)


def _slice(values: npt.NDArray[Any], time_axis: int, begin: int, count: int) -> Block:
    return values[begin : begin + count] if time_axis == 0 else values[:, begin : begin + count].T


def _too_large(path: Path) -> RecordingError:
    return RecordingError(
        f"{path}: takes over {MAX_LOADED_BYTES >> 30} GB of memory, as this kind of .mat must be loaded whole; "
        "save it with -v7.3 in MATLAB"
    )


# --- Level 5: MATLAB 5 to 7.2 ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Bytes:
    """Elements one after another."""

    path: Path
    data: memoryview
    order: str  #: "<" or ">"

    def elements(self) -> Iterator[tuple[int, memoryview]]:
        """(type, data) of each."""
        at = 0
        while at < len(self.data):
            kind, length = self._two_numbers(at)
            begin = at + 8
            if kind >> 16:  # a small one: its data stand in the tag
                kind, length, begin = kind & 0xFFFF, kind >> 16, at + 4
                at += 8
            else:
                at = begin + length if kind == COMPRESSED else begin + -(-length // 8) * 8
            if begin + length > len(self.data):
                raise RecordingError(
                    f"{self.path}: announces {length} bytes where {len(self.data) - begin} are; the file is cut off"
                )
            yield kind, self.data[begin : begin + length]

    def _two_numbers(self, at: int) -> tuple[int, int]:
        if at + 8 > len(self.data):
            raise RecordingError(f"{self.path}: ends in the middle of a variable; the file is cut off")
        first, second = struct.unpack_from(f"{self.order}II", self.data, at)
        return int(first), int(second)


def _order_5(path: Path, content: memoryview) -> str:
    mark = bytes(content[124:HEAD_BYTES])
    if mark not in (b"\x00\x01IM", b"\x01\x00MI"):
        raise RecordingError(f"{path}: does not begin like a MATLAB file; is it one, and is it complete?")
    return "<" if mark.endswith(b"IM") else ">"


def _level_5(path: Path, content: memoryview) -> Iterator[_Variable]:
    order = _order_5(path, content)
    loaded = len(content)
    for kind, data in _Bytes(path, content[HEAD_BYTES:], order).elements():
        if kind != COMPRESSED:
            inner = [(kind, data)]
        else:
            inflate = zlib.decompressobj()
            inflated = inflate.decompress(data, max(1, MAX_LOADED_BYTES - loaded))
            loaded += len(inflated)
            if loaded >= MAX_LOADED_BYTES:
                raise _too_large(path)
            if not inflate.eof:
                raise RecordingError(f"{path}: a compressed variable does not end; the file is cut off")
            inner = list(_Bytes(path, memoryview(inflated), order).elements())
        for kind_inside, matrix in inner:
            if kind_inside == MATRIX:
                yield from _matrix(_Bytes(path, matrix, order), "", "", 0)


def _matrix(inside: _Bytes, group: str, called: str, depth: int) -> Iterator[_Variable]:
    """The arrays and texts in it; `called` is its name where it is a field of a structure."""
    parts = list(inside.elements())
    if len(parts) < 3 or len(parts[0][1]) < 8:
        return
    flags = struct.unpack_from(f"{inside.order}I", parts[0][1])[0]
    shape = tuple(np.frombuffer(parts[1][1], f"{inside.order}i4").tolist())
    name = called or bytes(parts[2][1]).decode("ascii", "replace")
    whole = f"{group}/{name}" if group else name
    kind = flags & 0xFF
    if kind == STRUCTURE and math.prod(shape) == 1 and len(parts) >= 5 and depth < MAX_DEPTH:
        length = int.from_bytes(parts[3][1], "little" if inside.order == "<" else "big")
        names = bytes(parts[4][1])
        for number, (_, field) in enumerate(parts[5:]):
            own = names[number * length : (number + 1) * length].partition(b"\0")[0].decode("ascii", "replace")
            yield from _matrix(_Bytes(inside.path, field, inside.order), whole, own, depth + 1)
    elif kind == TEXT and len(parts) > 3 and parts[3][0] in TEXT_STORED:
        encoding = TEXT_STORED[parts[3][0]]
        if encoding == "utf-16":
            encoding += "-le" if inside.order == "<" else "-be"
        yield _Variable(whole, np.dtype("U"), bytes(parts[3][1]).decode(encoding, "replace"))
    elif kind in NUMBERS and not flags & LOGICAL and len(parts) > 3 and parts[3][0] in STORED:
        stored, data = parts[3]
        if flags & COMPLEX:
            raise RecordingError(f"{inside.path}: {whole} holds complex numbers; save its real part")
        values = _numbers(inside.path, whole, data, np.dtype(f"{inside.order}{STORED[stored]}"), shape)
        yield _Variable(whole, np.dtype(NUMBERS[kind]), values)


def _numbers(
    path: Path, name: str, data: memoryview, stored: np.dtype[Any], shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    """An array as it lies in the file, column by column."""
    announced = math.prod(shape)
    if min(shape, default=0) < 0 or announced * stored.itemsize != len(data):
        raise RecordingError(
            f"{path}: {name} announces {announced} values, but {len(data) // stored.itemsize} are there; "
            "the file is damaged"
        )
    return np.frombuffer(data, stored).reshape(shape, order="F")


# --- Level 4 -----------------------------------------------------------------------------------------------------


def _head_4(path: Path, content: memoryview, at: int) -> tuple[int, np.dtype[Any], int, int, bool, int]:
    """Kind, type of number, rows, columns, whether complex, and bytes of the name of the variable that begins here."""
    if at + HEAD_4.size > len(content):
        raise RecordingError(f"{path}: ends in the middle of a variable; the file is cut off")
    order = "<" if 0 <= HEAD_4.unpack_from(content, at)[0] < 1_000 else ">"
    kind, rows, columns, imaginary, name_length = struct.unpack_from(f"{order}5i", content, at)
    stored = STORED_4.get(kind // 10 % 10)
    if not 0 <= kind < 2_000 or stored is None or min(rows, columns) < 0 or not 0 < name_length < 1_000:
        raise RecordingError(f"{path}: does not look like a MATLAB file; is it one, and is it complete?")
    return kind, np.dtype(f"{order}{stored}"), rows, columns, bool(imaginary), name_length


def _level_4(path: Path, content: memoryview) -> Iterator[_Variable]:
    at = 0
    while at < len(content):
        kind, dtype, rows, columns, imaginary, name_length = _head_4(path, content, at)
        begin = at + HEAD_4.size + name_length
        name = bytes(content[at + HEAD_4.size : begin]).partition(b"\0")[0].decode("ascii", "replace")
        at = begin + rows * columns * dtype.itemsize * (2 if imaginary else 1)
        if at > len(content):
            raise RecordingError(
                f"{path}: {name} announces {rows * columns} values, but the file ends before them; it is cut off"
            )
        if kind % 10 == 0:
            if imaginary:
                raise RecordingError(f"{path}: {name} holds complex numbers; save its real part")
            yield _Variable(name, np.dtype("f8"), _numbers(path, name, content[begin:at], dtype, (rows, columns)))
