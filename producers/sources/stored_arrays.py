"""Which arrays of a container are channels, and what they are: time axis, rate and scale.

Common to .npy, .npz, HDF5 and .mat. One-dimensional arrays are channels, of two-dimensional ones the longer axis is
time. What stands beside them as single values (`fs`, `units`, …) says what they are; so does an array of times.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from producers.sources.reading import Reading, RecordingError
from producers.sources.sample_rate import (
    PERIOD_NAMES,
    RATE_NAMES,
    StatedRate,
    agreed_rate,
    one_number,
    rate_of_times,
    stated_rate,
    time_unit_s,
)
from producers.sources.sampled import MAX_CHANNELS, Channel, Read, Track, plain_volts

log = logging.getLogger(__name__)

VOLTS = {"v": 1.0, "volt": 1.0, "volts": 1.0, "mv": 1e-3, "uv": 1e-6, "µv": 1e-6, "μv": 1e-6, "nv": 1e-9}
SCALE_NAMES = frozenset({"volts_per_count", "scale"})
UNIT_NAMES = frozenset({"unit", "units"})

TIMES_AT_ONCE = 1 << 18

Facts = Mapping[str, Mapping[str, Any]]  #: of each scope ("" is the file, "a/b" a group or array) names and values


@dataclass(frozen=True, slots=True)
class StoredArray:
    """An array as the container announces it."""

    name: str  #: with the groups that it lies in, "a/b"
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    rows_are_time: bool = True  #: where both axes are equally long
    read_samples: int = 1  #: fewer at once would be read more than once


@dataclass(frozen=True, slots=True)
class Signal:
    """An array that holds channels, and the track that it becomes."""

    array: StoredArray
    time_axis: int
    track: Track


OpenRead = Callable[[StoredArray, int], Read]  #: (array, time axis): what reads it


def signals(
    path: Path, arrays: Sequence[StoredArray], facts: Facts, reading: Reading, open_read: OpenRead
) -> list[Signal]:
    """The arrays that are channels, which are numbered in their order.

    Single values, texts and times are left out.

    Raises
    ------
    RecordingError
        If none is left, one cannot be a channel, or no rate or scale can be told.
    """
    found: list[Signal] = []
    left_out: list[str] = []
    times = {array.name: array for array in arrays if _is_clock(array)}
    if len(times) == len(arrays):
        times = {}
    longest = max((math.prod(array.shape) for array in arrays), default=0)
    number = 0
    for array in arrays:
        if array.name in times:
            continue
        if reason := _left_out(array, longest):
            left_out.append(f"{array.name} ({reason})")
            continue
        _refuse(path, array)
        axis = _time_axis(path, array)
        count = array.shape[1 - axis] if len(array.shape) == 2 else 1
        if number + count > MAX_CHANNELS:
            raise RecordingError(
                f"{path}: {array.name} has {count} channels of {array.shape[axis]} samples; at most {MAX_CHANNELS} "
                "channels are played; split the file"
            )
        rate_hz = _rate(path, array, axis, facts, times, reading, open_read)
        int16 = array.dtype.kind == "i" and array.dtype.itemsize == 2
        volts = volts_per_count(path, array.name, facts, reading, int16)
        channels = []
        for column in range(count):
            name = array.name if count == 1 else f"{array.name}[{column}]"
            channels.append(Channel(reading.sensor(path, number, name), name, volts))
            number += 1
        track = Track(tuple(channels), rate_hz, array.shape[axis], int16, array.read_samples)
        found.append(Signal(array, axis, track))
    if not found:
        held = f"; there are {', '.join(left_out[:5])}" if left_out else ""
        raise RecordingError(f"{path}: holds no samples: no array of numbers is in it{held}")
    if left_out:
        log.info("%s: left out, as no channels: %s", path, ", ".join(left_out))
    return found


def is_fact(name: str) -> bool:
    """Whether a single value of this name says something of the arrays beside it."""
    plain = name.lower()
    return plain in SCALE_NAMES | UNIT_NAMES | RATE_NAMES | PERIOD_NAMES


def _is_clock(array: StoredArray) -> bool:
    name = array.name.rpartition("/")[2]
    lengthwise = len(array.shape) == 1 or (len(array.shape) == 2 and min(array.shape) == 1)
    return lengthwise and array.dtype.kind in "iuf" and math.prod(array.shape) > 1 and time_unit_s(name) is not None


def _left_out(array: StoredArray, longest: int) -> str:
    """Why an array is no channel, and need not be."""
    if array.dtype.kind in "SU":
        return "text"
    if array.dtype.kind in "Mm":
        return "dates"
    if array.dtype.kind == "b":
        return "true or false"
    if not array.shape or (math.prod(array.shape) == 1 and longest > 1):
        return "a single value"
    return ""


def _refuse(path: Path, array: StoredArray) -> None:
    kinds = {"c": "complex numbers", "O": "Python objects, which are never unpickled", "V": "records of several fields"}
    if array.dtype.kind not in "iuf":
        held = kinds.get(array.dtype.kind, str(array.dtype))
        raise RecordingError(f"{path}: {array.name} holds {held}; save it as arrays of int16 or float32")
    if len(array.shape) > 2:
        raise RecordingError(
            f"{path}: {array.name} has {len(array.shape)} dimensions; save its channels as rows or columns of two"
        )
    if 0 in array.shape:
        raise RecordingError(f"{path}: {array.name} holds no samples; leave it out")


def _time_axis(path: Path, array: StoredArray) -> int:
    if len(array.shape) == 1 or array.shape[0] > array.shape[1]:
        return 0
    if array.shape[0] < array.shape[1]:
        return 1
    if array.shape[0] > 1:
        log.warning("%s: %s is as long as wide; its rows are taken as time", path, array.name)
    return 0 if array.rows_are_time else 1


def _scopes(name: str) -> Iterator[str]:
    """The array, and the groups around it, the nearest first; "" is the file."""
    while name:
        yield name
        name = name.rpartition("/")[0]
    yield ""


def _rate(
    path: Path,
    array: StoredArray,
    axis: int,
    facts: Facts,
    times: Mapping[str, StoredArray],
    reading: Reading,
    open_read: OpenRead,
) -> Fraction:
    """What the nearest scope that says something says."""
    for scope in _scopes(array.name):
        stated = []
        for name, value in facts.get(scope, {}).items():
            said = stated_rate(path, f"{name} of {scope}" if scope else name, name, value)
            if said is not None:
                stated.append(said)
        if stated:
            return agreed_rate(path, stated, reading.rate_hz)
    for scope in _scopes(array.name.rpartition("/")[0]):
        for clock in times.values():
            if clock.name.rpartition("/")[0] == scope and max(clock.shape) == array.shape[axis]:
                return agreed_rate(path, [_rate_of_clock(path, clock, open_read)], reading.rate_hz)
    return agreed_rate(path, [], reading.rate_hz)


def _rate_of_clock(path: Path, clock: StoredArray, open_read: OpenRead) -> StatedRate:
    axis = 0 if len(clock.shape) == 1 else int(np.argmax(clock.shape))
    unit_s = time_unit_s(clock.name.rpartition("/")[2]) or 1.0
    return rate_of_times(path, clock.name, _blocks(open_read(clock, axis), clock.shape[axis], unit_s))


def _blocks(read: Read, samples: int, unit_s: float) -> Iterable[npt.NDArray[Any]]:
    for begin in range(0, samples, TIMES_AT_ONCE):
        block = read(begin, min(TIMES_AT_ONCE, samples - begin))[:, 0]
        yield block if unit_s == 1.0 else block.astype(np.float64) * unit_s


def volts_per_count(path: Path, array: str, facts: Facts, reading: Reading, int16: bool) -> float:
    """What 1 in this array is in volts: as the nearest scope says, or else as `reading` does.

    Raises
    ------
    RecordingError
        If a scale is no positive number.
    """
    said: dict[str, tuple[str, Any]] = {}
    for scope in _scopes(array):
        for name, value in facts.get(scope, {}).items():
            said.setdefault(name.lower(), (f"{name} of {scope}" if scope else name, value))
    factors = {name: _factor(path, *said[name]) for name in SCALE_NAMES if name in said}
    if "volts_per_count" in factors:
        return factors["volts_per_count"]
    unit = next((volts_of(said[name][1]) for name in sorted(UNIT_NAMES) if name in said), None)
    if "scale" in factors:
        return factors["scale"] * (plain_volts(reading, int16=False) if unit is None else unit)
    return plain_volts(reading, int16) if unit is None else unit


def volts_of(unit: Any) -> float | None:
    """Volts of one of this unit; None if it is no voltage."""
    if isinstance(unit, np.ndarray) and unit.size == 1:
        unit = unit.reshape(())[()]
    if isinstance(unit, bytes):
        unit = unit.decode("utf-8", "replace")
    return VOLTS.get(unit.strip().lower()) if isinstance(unit, str) else None


def _factor(path: Path, where: str, value: Any) -> float:
    number = one_number(value)
    if number is None or not 0 < number < math.inf:
        raise RecordingError(f"{path}: {where} is {value!r}; it must be one positive number; mend it in the file")
    return float(number)
