"""What is on the wire in `ae.frames` and `ae.windows`: fixed little-endian headers, then raw samples.

`docs/records.md` gives the same layout byte by byte for programs in other languages.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.int16] | npt.NDArray[np.float32]

NS_PER_S = 1_000_000_000

FRAME_MAGIC = b"AEFR"
WINDOW_MAGIC = b"AEWN"
VERSION = 1

MAX_SENSOR_ID_BYTES = 200
MIN_RATE_HZ = 1
MAX_RATE_HZ = 100_000_000
MAX_PARTS_PER_MESSAGE = 20_000  # a quarter of a million would keep the reader busy for many seconds
MAX_INDEX = 2**62  # sample indices and nanosecond times stay well inside int64 after addition


class Flags(IntFlag):
    """What a frame, and the window cut from it, says of itself."""

    HIT = 1  #: one triggered transient, not part of a continuous stream
    OVERFLOW = 2  #: the device lost samples before this frame
    SATURATED = 4  #: the analogue input or the converter clipped
    HISTORICAL = 8  #: came late, through the disk spool
    TEST_PULSE = 16  #: the device pulsed itself (coupling check)
    END = 32  #: the last frame of this epoch; it may hold no samples


class SampleType(IntEnum):
    """How one sample is stored."""

    INT16 = 1
    FLOAT32 = 2


SAMPLE_DTYPES: dict[int, np.dtype[Any]] = {
    SampleType.INT16: np.dtype("<i2"),
    SampleType.FLOAT32: np.dtype("<f4"),
}

FRAME_HEADER = np.dtype(
    [
        ("magic", "S4"),
        ("version", "u1"),
        ("sample_type", "u1"),
        ("flags", "<u2"),
        ("sequence", "<u8"),
        ("epoch_ns", "<i8"),
        ("first_sample", "<i8"),
        ("time_ns", "<i8"),
        ("rate_numerator", "<u4"),
        ("rate_denominator", "<u4"),
        ("sample_count", "<u4"),
        ("payload_crc32", "<u4"),
        ("volts_per_count", "<f8"),
    ]
)
#: The same for writing: a producer writes one header for each frame, and this takes a tenth of the time.
_PACKED_FRAME_HEADER = struct.Struct("<4sBBHQqqqIIIId")
assert FRAME_HEADER.itemsize == _PACKED_FRAME_HEADER.size == 64

WINDOW_HEADER = np.dtype(
    [
        ("magic", "S4"),
        ("version", "u1"),
        ("sample_type", "u1"),
        ("flags", "<u2"),
        ("start_sample", "<i8"),
        ("epoch_ns", "<i8"),
        ("time_ns", "<i8"),
        ("source_rate_numerator", "<u4"),
        ("source_rate_denominator", "<u4"),
        ("source_count", "<u4"),
        ("sample_count", "<u4"),
        ("rate_numerator", "<u4"),
        ("rate_denominator", "<u4"),
        ("payload_crc32", "<u4"),
        ("reserved", "<u4"),
        ("volts_per_count", "<f8"),
    ]
)
assert WINDOW_HEADER.itemsize == 72


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A run of consecutive samples of one sensor.

    Times are nanoseconds UTC since 1970. `first_sample` counts samples since the epoch; the epoch is when
    this run of the sensor began, so that a reboot is a new epoch. `samples` has shape (sample_count,), dtype
    int16 or float32, in counts; multiply by `volts_per_count` for volts at the sensor.
    """

    sensor: str
    epoch_ns: int
    sequence: int
    first_sample: int
    time_ns: int
    rate_hz: Fraction
    samples: Samples
    volts_per_count: float = 1.0
    flags: Flags = Flags(0)

    @property
    def end_sample(self) -> int:
        """Index of the first sample after this frame."""
        return self.first_sample + len(self.samples)


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """What the network looks at once. Its identity is (sensor, epoch_ns, start_sample).

    `start_sample` and `source_count` are in samples of the sensor (rate `source_rate_hz`), so the place can be
    found in the recording; `samples`, shape (sample_count,), int16 or float32, are at `rate_hz`, which
    differs where the window was resampled to the model's rate.
    """

    sensor: str
    epoch_ns: int
    start_sample: int
    source_count: int
    source_rate_hz: Fraction
    time_ns: int
    rate_hz: Fraction
    samples: Samples
    volts_per_count: float = 1.0
    flags: Flags = Flags(0)

    @property
    def position(self) -> tuple[int, int]:
        """Where the window stands in its sensor's life; grows from window to window."""
        return (self.epoch_ns, self.start_sample)

    @property
    def end_time_ns(self) -> int:
        """Time of the first sample after the window, ns UTC."""
        return self.time_ns + samples_to_ns(self.source_count, self.source_rate_hz)


class BadRecord(ValueError):  # noqa: N818 - the domain's word; it reads better in `except BadRecord`
    """Bytes that are not the record they should be. `reason` is a short fixed code, `str()` the whole story."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Reject:
    """A part of a message that could not be decoded, with the bytes as they came."""

    reason: str
    detail: str
    byte_offset: int
    raw: bytes


@dataclass(slots=True)
class DecodedFrames:
    """The good frames of one message, in order, and what had to be turned away."""

    frames: list[Frame] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)


def samples_to_ns(count: int, rate_hz: Fraction) -> int:
    """Duration of `count` samples at `rate_hz` in whole nanoseconds, rounded down; exact integer arithmetic."""
    return count * NS_PER_S * rate_hz.denominator // rate_hz.numerator


def decode_sensor(key: bytes | None) -> str:
    """Sensor id from a message key.

    Raises
    ------
    BadRecord
        If the key is missing, empty, too long, not UTF-8, or holds control characters.
    """
    if not key:
        raise BadRecord("sensor-id", "the message has no key; the key is the sensor id in UTF-8")
    if len(key) > MAX_SENSOR_ID_BYTES:
        raise BadRecord("sensor-id", f"{len(key)} bytes long, at most {MAX_SENSOR_ID_BYTES} are allowed")
    try:
        sensor = key.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRecord("sensor-id", f"not UTF-8: {error.reason} at byte {error.start}") from error
    if not sensor.isprintable():
        raise BadRecord("sensor-id", f"control characters in {sensor!r}")
    return sensor


_SAMPLE_TYPES = {np.dtype(np.int16): SampleType.INT16, np.dtype(np.float32): SampleType.FLOAT32}


def _sample_type(samples: Samples) -> SampleType:
    try:
        return _SAMPLE_TYPES[samples.dtype]
    except KeyError:
        raise BadRecord("sample-type", f"samples are {samples.dtype}; the wire knows int16 and float32") from None


def encode_frame(frame: Frame) -> bytes:
    """One frame as bytes; several may be joined into one message."""
    sample_type = _sample_type(frame.samples)
    payload = np.ascontiguousarray(frame.samples, dtype=SAMPLE_DTYPES[sample_type]).data
    header = _PACKED_FRAME_HEADER.pack(
        FRAME_MAGIC,
        VERSION,
        sample_type,
        int(frame.flags),
        frame.sequence,
        frame.epoch_ns,
        frame.first_sample,
        frame.time_ns,
        frame.rate_hz.numerator,
        frame.rate_hz.denominator,
        len(payload),
        zlib.crc32(payload),
        frame.volts_per_count,
    )
    return b"".join((header, payload))


def decode_frames(sensor: str, message: bytes) -> DecodedFrames:
    """All frames of one message.

    The samples of each frame are a read-only view into `message`; nothing is copied. A frame with a sound header
    and a bad payload is turned away alone. Where nothing says where the next frame begins (an unsound header, a
    sample count that lies), it is searched for: the next place with a sound header and a payload that fits its CRC.
    What is left after `MAX_PARTS_PER_MESSAGE` frames and rejects is one more reject.
    """
    decoded = DecodedFrames()
    if not message:
        decoded.rejects.append(Reject("truncated", "the message is empty", 0, b""))
    search = _Search(message)
    offset = 0
    while offset < len(message):
        if len(decoded.frames) + len(decoded.rejects) >= MAX_PARTS_PER_MESSAGE:
            detail = f"more than {MAX_PARTS_PER_MESSAGE} frames and broken places in one message"
            decoded.rejects.append(Reject("too-many", detail, offset, message[offset:]))
            break
        try:
            header, end = _frame_header(message, offset)
        except BadRecord as error:
            end = search.next_frame(offset + 1, len(message))
            decoded.rejects.append(Reject(error.reason, error.detail, offset, message[offset:end]))
            offset = end
            continue
        try:
            decoded.frames.append(_frame(sensor, header, message, offset, end))
        except BadRecord as error:
            if error.reason == "crc":
                end = search.next_frame(offset + FRAME_HEADER.itemsize, end)
                if message[end : end + 4] != FRAME_MAGIC:
                    end = search.next_frame(end, len(message))
            decoded.rejects.append(Reject(error.reason, error.detail, offset, message[offset:end]))
        offset = end
    return decoded


class _Search:
    """Looks for frames behind broken ones, with an end to its patience: a message full of magics is not worth more."""

    def __init__(self, message: bytes) -> None:
        self._message = message
        self._headers_left = 1000
        self._bytes_left = 4 * len(message)

    def next_frame(self, begin: int, end: int) -> int:
        """Where the first whole and sound frame from `begin` on begins, or else `end`."""
        while self._headers_left > 0 and self._bytes_left > 0:
            begin = self._message.find(FRAME_MAGIC, begin, end + len(FRAME_MAGIC) - 1)
            if begin < 0:
                break
            self._headers_left -= 1
            try:
                header, frame_end = _frame_header(self._message, begin)
            except BadRecord:
                begin += 1
                continue
            self._bytes_left -= frame_end - begin
            if zlib.crc32(_payload(self._message, begin, frame_end)) == header["payload_crc32"]:
                return begin
            begin += 1
        return end


def _payload(message: bytes, offset: int, end: int) -> memoryview:
    return memoryview(message)[offset + FRAME_HEADER.itemsize : end]


def _frame_header(message: bytes, offset: int) -> tuple[dict[str, Any], int]:
    """The header's fields, and where its frame ends; BadRecord if that end cannot be trusted."""
    left = len(message) - offset
    if left < FRAME_HEADER.itemsize:
        raise BadRecord("truncated", f"{left} bytes left at byte {offset}, a header has {FRAME_HEADER.itemsize}")
    header = _fields(FRAME_HEADER, message, offset)
    if header["magic"] != FRAME_MAGIC:
        raise BadRecord("magic", f"{header['magic']!r} at byte {offset}, a frame begins with {FRAME_MAGIC!r}")
    if header["version"] != VERSION:
        raise BadRecord("version", f"frame version {header['version']}, this program knows {VERSION}")
    if header["sample_type"] not in SAMPLE_DTYPES:
        raise BadRecord("sample-type", f"sample type {header['sample_type']}, known are 1 (int16) and 2 (float32)")
    size = header["sample_count"] * SAMPLE_DTYPES[header["sample_type"]].itemsize
    end = offset + FRAME_HEADER.itemsize + size
    if end > len(message):
        missing = end - len(message)
        raise BadRecord(
            "truncated", f"{header['sample_count']} samples announced at byte {offset}, {missing} bytes are missing"
        )
    return header, end


def _frame(sensor: str, header: dict[str, Any], message: bytes, offset: int, end: int) -> Frame:
    payload = _payload(message, offset, end)
    if zlib.crc32(payload) != header["payload_crc32"]:
        detail = f"CRC-32 {zlib.crc32(payload):08x}, the header says {header['payload_crc32']:08x}"
        if end < len(message) and message[end : end + 4] != FRAME_MAGIC:
            detail += f"; no frame begins after {header['sample_count']} samples, so the sample count is suspect"
        raise BadRecord("crc", detail)
    rate_hz = _rate(header["rate_numerator"], header["rate_denominator"])
    flags = Flags(header["flags"])
    if header["sample_count"] == 0 and Flags.END not in flags:
        raise BadRecord("empty", "a frame without samples that does not end an epoch")
    for name in ("epoch_ns", "first_sample", "time_ns"):
        if not 0 <= header[name] <= MAX_INDEX:
            raise BadRecord(name.replace("_", "-"), f"{name} is {header[name]}, allowed are 0 to 2^62")
    _check_scale(header["volts_per_count"])
    samples = np.frombuffer(payload, dtype=SAMPLE_DTYPES[header["sample_type"]])
    _check_finite(samples)
    return Frame(
        sensor=sensor,
        epoch_ns=header["epoch_ns"],
        sequence=header["sequence"],
        first_sample=header["first_sample"],
        time_ns=header["time_ns"],
        rate_hz=rate_hz,
        samples=samples,
        volts_per_count=header["volts_per_count"],
        flags=flags,
    )


def encode_window(window: Window) -> bytes:
    """One window as one message value; the key is the sensor id."""
    payload = np.ascontiguousarray(window.samples, dtype=SAMPLE_DTYPES[_sample_type(window.samples)])
    header = np.zeros((), dtype=WINDOW_HEADER)
    header["magic"] = WINDOW_MAGIC
    header["version"] = VERSION
    header["sample_type"] = _sample_type(window.samples)
    header["flags"] = int(window.flags)
    header["start_sample"] = window.start_sample
    header["epoch_ns"] = window.epoch_ns
    header["time_ns"] = window.time_ns
    header["source_rate_numerator"] = window.source_rate_hz.numerator
    header["source_rate_denominator"] = window.source_rate_hz.denominator
    header["source_count"] = window.source_count
    header["sample_count"] = len(payload)
    header["rate_numerator"] = window.rate_hz.numerator
    header["rate_denominator"] = window.rate_hz.denominator
    header["payload_crc32"] = zlib.crc32(payload.data)
    header["volts_per_count"] = window.volts_per_count
    return b"".join((header.tobytes(), payload.data))


def decode_window(sensor: str, message: bytes) -> Window:
    """The window in `message`; its samples are a read-only view, nothing is copied.

    Raises
    ------
    BadRecord
        If the bytes are not exactly one sound window.
    """
    if len(message) < WINDOW_HEADER.itemsize:
        raise BadRecord("truncated", f"{len(message)} bytes, a window header has {WINDOW_HEADER.itemsize}")
    header = _fields(WINDOW_HEADER, message, 0)
    if header["magic"] != WINDOW_MAGIC:
        raise BadRecord("magic", f"{header['magic']!r}, a window begins with {WINDOW_MAGIC!r}")
    if header["version"] != VERSION:
        raise BadRecord("version", f"window version {header['version']}, this program knows {VERSION}")
    if header["sample_type"] not in SAMPLE_DTYPES:
        raise BadRecord("sample-type", f"sample type {header['sample_type']}, known are 1 (int16) and 2 (float32)")
    dtype = SAMPLE_DTYPES[header["sample_type"]]
    payload = memoryview(message)[WINDOW_HEADER.itemsize :]
    if len(payload) != header["sample_count"] * dtype.itemsize:
        raise BadRecord(
            "truncated", f"{len(payload)} bytes of samples, {header['sample_count']} samples of {dtype} announced"
        )
    if zlib.crc32(payload) != header["payload_crc32"]:
        raise BadRecord("crc", f"CRC-32 {zlib.crc32(payload):08x}, the header says {header['payload_crc32']:08x}")
    if header["sample_count"] == 0 or header["source_count"] == 0:
        raise BadRecord("empty", "a window without samples")
    for name in ("epoch_ns", "start_sample", "time_ns"):
        if not 0 <= header[name] <= MAX_INDEX:
            raise BadRecord(name.replace("_", "-"), f"{name} is {header[name]}, allowed are 0 to 2^62")
    _check_scale(header["volts_per_count"])
    samples = np.frombuffer(payload, dtype=dtype)
    _check_finite(samples)
    return Window(
        sensor=sensor,
        epoch_ns=header["epoch_ns"],
        start_sample=header["start_sample"],
        source_count=header["source_count"],
        source_rate_hz=_rate(header["source_rate_numerator"], header["source_rate_denominator"]),
        time_ns=header["time_ns"],
        rate_hz=_rate(header["rate_numerator"], header["rate_denominator"]),
        samples=samples,
        volts_per_count=header["volts_per_count"],
        flags=Flags(header["flags"]),
    )


def _fields(dtype: np.dtype[Any], message: bytes, offset: int) -> dict[str, Any]:
    """Header fields as Python scalars: later arithmetic on them must not wrap as NumPy integers do."""
    row = np.frombuffer(message, dtype=dtype, count=1, offset=offset)[0]
    return dict(zip(dtype.names or (), row.item(), strict=True))


@lru_cache(maxsize=256)
def _rate(numerator: int, denominator: int) -> Fraction:
    if numerator == 0 or denominator == 0:
        raise BadRecord("rate", f"sample rate {numerator}/{denominator} Hz")
    rate_hz = Fraction(numerator, denominator)
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise BadRecord("rate", f"sample rate {float(rate_hz):g} Hz, allowed are {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz")
    return rate_hz


def _check_scale(volts_per_count: float) -> None:
    if not (np.isfinite(volts_per_count) and volts_per_count > 0):
        raise BadRecord("scale", f"volts per count is {volts_per_count}, it must be positive and finite")


def _check_finite(samples: Samples) -> None:
    if samples.dtype == np.int16:
        return
    # A finite sum in float64 proves every sample finite, at a third of the cost of looking at each.
    with np.errstate(invalid="ignore"):
        total = samples.sum(dtype=np.float64)
    if not np.isfinite(total):
        first = int(np.flatnonzero(~np.isfinite(samples))[0])
        raise BadRecord("not-finite", f"sample {first} is {samples[first]}")
