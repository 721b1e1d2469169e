"""Hits from MISTRAS AEwin recordings (`.DTA`), one frame each; each channel is a sensor.

A `.DTA` is a row of records: two bytes of length, one of kind, a body. Kinds and layouts are those of Appendix II of
the AEwin manuals ("Data File Definition"), checked against recordings; `docs/formats-hits.md` says which are used.
"""

from __future__ import annotations

import logging
import os
import re
import struct
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from producers.sources.reading import Reading, RecordingError
from stream.records import NS_PER_S, Flags, Frame, samples_to_ns

log = logging.getLogger(__name__)

TICK_NS = 250
TICKS_PER_S = NS_PER_S // TICK_NS

# Kinds of records; all others are passed over by their length.
CONTINUED_FILE = 8
PREAMPLIFIER_GAIN = 20
GAIN = 23
PRODUCT = 41
HARDWARE_SETUP = 42
TEST_START = 99
WAVEFORMS = 173
TIME_MARK = 211
TWO_BYTE_KINDS = range(40, 50)
SETTINGS = (PREAMPLIFIER_GAIN, GAIN, PRODUCT, HARDWARE_SETUP, WAVEFORMS)

# Of WAVEFORMS, by its first byte. Those of the sensor self-test (AST) are the answers to the device's own pulses.
HIT_WAVEFORM = 1
SELF_TEST_WAVEFORM = 10
DIGITISER_SETUP = 42

HEAD = struct.Struct("<HB")  # length of what follows it, kind
WAVEFORM_HEAD = struct.Struct("<BIHBB")  # sub-kind, time of test in ticks (48 bits), channel, padding
DIGITISER_HEAD = struct.Struct("<BHBHH")  # sub-kind, version, sample type, number of setups, bytes of each
# Channel, length in 1024 samples, unused, rate in kHz, trigger mode, trigger source, delay in samples (before the
# trigger is negative), full scale in V, threshold in dB AE.
DIGITISER = struct.Struct("<BHHHHHhHH")

INT16_SAMPLES = 2
COUNTS_OF_FULL_SCALE = 32768
HARDWARE_SETUP_HEAD_BYTES = 3  # between the first byte of its kind and its settings
DOS_TIME_BYTES = 8
PRODUCT_HEAD_BYTES = 3  # between the first byte of its kind and its name
TIME_MARK_BYTES = 7
EVERY_CHANNEL = 0

# Gain that a device has and does not record, dB. Found by comparing the energy of waveforms with the absolute energy
# that the device itself measured: apart by 14.00 dB in all of 31 hits (by 0.0 dB with an Express-8, which is not here).
UNRECORDED_GAIN_DB = {b"Micro-SHM-4": 14}


class _Damage(Exception):  # noqa: N818 - caught here, and turned into a RecordingError that names the file
    """Why a recording cannot be read on, and from which byte."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(f"byte {offset}: {reason}")


class _OtherTest(Exception):  # noqa: N818 - no error of the file's
    """A part is of a test that began before the first part's, or nobody knows when; the text is what it says of it."""


@dataclass(frozen=True, slots=True)
class _Digitiser:
    sample_type: int
    rate_khz: int
    delay: int  #: samples from the trigger to the first one; negative with a pre-trigger
    full_scale_v: int


@dataclass(frozen=True, slots=True)
class _Take:
    """What all waveforms of a channel have in common, as long as nobody turns a knob."""

    part: int
    channel: int
    rate_hz: Fraction
    delay: int
    volts_per_count: float
    shift_ticks: int  #: from the first part's beginning to that of this part's own clock


@dataclass(slots=True)
class _Setup:
    """The device's settings as the records before have left them; channel 0 stands for those not named."""

    digitisers: dict[int, _Digitiser] = field(default_factory=dict)
    gain_db: dict[int, int] = field(default_factory=dict)
    preamplifier_db: dict[int, int] = field(default_factory=dict)
    unrecorded_db: int = 0

    def change(self, kind: int, body: bytes, offset: int) -> None:
        """Take on what a record says, if it is one that sets anything."""
        if kind in (GAIN, PREAMPLIFIER_GAIN):
            if len(body) < 2:
                raise _Damage(offset, f"a gain in {len(body)} bytes")
            gains = self.gain_db if kind == GAIN else self.preamplifier_db
            gains[body[0]] = body[1]
        elif kind == PRODUCT:
            name = body[PRODUCT_HEAD_BYTES:].split(b"\n")[0].strip()
            self.unrecorded_db = UNRECORDED_GAIN_DB.get(name, 0)
        elif kind == HARDWARE_SETUP:
            at = HARDWARE_SETUP_HEAD_BYTES
            while at < len(body):
                if at + HEAD.size > len(body):
                    raise _Damage(offset, "the hardware setup ends within a setting")
                length, inner = HEAD.unpack_from(body, at)
                end = at + 2 + length
                if length == 0 or end > len(body):
                    raise _Damage(offset, f"a setting of {length} bytes does not fit into the hardware setup")
                if inner in (PREAMPLIFIER_GAIN, GAIN, WAVEFORMS):
                    self.change(inner, body[at + HEAD.size : end], offset)
                at = end
        elif kind == WAVEFORMS and body[:1] == bytes([DIGITISER_SETUP]):
            if len(body) < DIGITISER_HEAD.size:
                raise _Damage(offset, "the waveform setup is cut short")
            _, _, sample_type, count, size = DIGITISER_HEAD.unpack_from(body)
            if size < DIGITISER.size or DIGITISER_HEAD.size + count * size > len(body):
                raise _Damage(offset, f"{count} waveform setups of {size} bytes do not fit into {len(body)} bytes")
            for at in range(DIGITISER_HEAD.size, DIGITISER_HEAD.size + count * size, size):
                channel, _, _, rate_khz, _, _, delay, full_scale_v, _ = DIGITISER.unpack_from(body, at)
                self.digitisers[channel] = _Digitiser(sample_type, rate_khz, delay, full_scale_v)

    def take(self, part: int, channel: int, offset: int, shift_ticks: int) -> _Take:
        """How a waveform of `channel` is to be understood now."""
        digitiser = self.digitisers.get(channel, self.digitisers.get(EVERY_CHANNEL))
        gain_db = self.gain_db.get(channel, self.gain_db.get(EVERY_CHANNEL))
        if digitiser is None or gain_db is None:
            lacking = "waveform setup" if digitiser is None else "gain"
            raise _Damage(offset, f"a waveform of channel {channel}, of which no record before it has a {lacking}")
        if digitiser.sample_type != INT16_SAMPLES:
            raise _Damage(offset, f"samples of type {digitiser.sample_type}; only 2 (16 bits, signed) is known")
        if digitiser.rate_khz == 0 or digitiser.full_scale_v == 0:
            lacking = "sample rate" if digitiser.rate_khz == 0 else "full scale"
            raise _Damage(offset, f"a waveform of channel {channel}, whose {lacking} is set to 0")
        before_db = self.preamplifier_db.get(channel, self.preamplifier_db.get(EVERY_CHANNEL, 0))
        # Full scale is behind all amplifiers; a frame counts in volts at the sensor.
        gain = 10 ** ((gain_db + before_db + self.unrecorded_db) / 20)
        volts_per_count = digitiser.full_scale_v / COUNTS_OF_FULL_SCALE / gain
        rate_hz = Fraction(1000 * digitiser.rate_khz)
        return _Take(part, channel, rate_hz, digitiser.delay, volts_per_count, shift_ticks)


class _Contents:
    """Where the waveforms are: a few bytes for each, so that files of any size can be put in order of time."""

    def __init__(self) -> None:
        self.start_ns = array("q")
        self.offsets = array("q")
        self.take_of = array("I")
        self.takes: list[_Take] = []
        self.samples = 0
        self.end_ns = 0
        self.test_start: str | None = None
        self._shift_ticks = 0
        self._setup = _Setup()
        self._numbers: dict[_Take, int] = {}

    def add(self, part: int, path: Path) -> None:
        """Look through one part; what was found before a damage stays.

        Raises
        ------
        _Damage, _OtherTest, OSError
        """
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            found = len(self.offsets)
            self._shift_ticks = 0
            takes: dict[int, int] = {}  # by channel, until a setting changes
            at = 0
            while at < size:
                length, kind = _head(file, at, size)
                if at == 0 and kind not in (PRODUCT, CONTINUED_FILE):
                    raise _Damage(at, f"begins with a record of kind {kind}; AEwin recordings begin with 41 or 8")
                end = at + 2 + length
                if kind == CONTINUED_FILE and at == 0 and length > 1 + DOS_TIME_BYTES:
                    # The first part's setup follows inside; its records are read as if they stood alone.
                    end = at + HEAD.size + DOS_TIME_BYTES
                elif kind == TIME_MARK and length > TIME_MARK_BYTES:
                    # A record that was given a time stamp: a gain that was changed during the test.
                    end = at + 2 + TIME_MARK_BYTES
                elif kind == TEST_START and len(self.offsets) == found:
                    self._begin(part, file.read(length - 1))
                elif kind == WAVEFORMS and (head := _waveform_head(file, at, length)) is not None:
                    ticks, channel, count, _ = head
                    if channel not in takes:
                        takes[channel] = self._number(self._setup.take(part, channel, at, self._shift_ticks))
                    self._add_waveform(at, ticks, count, takes[channel])
                elif kind in SETTINGS:
                    file.seek(at + HEAD.size)
                    self._setup.change(kind, file.read(length - 1), at)
                    takes.clear()
                file.seek(end)
                at = end

    def _begin(self, part: int, text: bytes) -> None:
        start = text.decode("latin-1").strip("\0\r\n ")
        if part == 0:
            self.test_start = start
        elif self.test_start is not None and start != self.test_start:
            # The test was stopped and begun again under one name: its clock then counts from the new beginning.
            try:
                later_s = (_test_time(start) - _test_time(self.test_start)).total_seconds()
            except ValueError as error:
                raise _OtherTest(start) from error
            if later_s < 0:
                raise _OtherTest(start)
            self._shift_ticks = round(later_s) * TICKS_PER_S

    def _number(self, take: _Take) -> int:
        if take not in self._numbers:
            self._numbers[take] = len(self.takes)
            self.takes.append(take)
        return self._numbers[take]

    def _add_waveform(self, offset: int, ticks: int, count: int, number: int) -> None:
        take = self.takes[number]
        start_ns = _start_ns(ticks + take.shift_ticks, take)
        self.start_ns.append(start_ns)
        self.offsets.append(offset)
        self.take_of.append(number)
        self.samples += count
        self.end_ns = max(self.end_ns, start_ns + samples_to_ns(count, take.rate_hz))


class MistrasRecording:
    """All hits with a waveform of a `.DTA` and of the parts that continue it, in order of time.

    Opening goes once through the heads of all records; in memory are then some 30 bytes a hit, and one waveform at a
    time. Hits that were stored without a waveform make no frame. What lies behind a damaged place of a part is not
    played; the damage is raised after all that is sound.

    Raises
    ------
    RecordingError
        If the file is no AEwin recording, has no waveform before it is damaged, or a part is missing; while
        iterating, at the end, where a part is damaged.
    """

    def __init__(self, path: Path, reading: Reading) -> None:
        self._parts = _parts(path)
        self._damages: list[str] = []
        contents = _Contents()
        for part, part_path in enumerate(self._parts):
            try:
                contents.add(part, part_path)
            except _OtherTest as other:
                log.warning(
                    "%s: is of a test begun %s, not behind that begun %s in %s; left out here, play it by itself",
                    part_path, other, contents.test_start, path.name,
                )  # fmt: skip
            except _Damage as damage:
                self._damages.append(f"{part_path}: {damage}")
            except OSError as error:
                self._damages.append(f"{part_path}: cannot be read: {error.strerror}")
        if not contents.offsets:
            if self._damages:
                raise RecordingError(f"{self._damages[0]}; there is no hit before it. Is the file complete?")
            raise RecordingError(f"{path}: holds no waveforms; was waveform recording switched on?")
        self._contents = contents
        # By the time of the first sample, and as they stand in the file where that is the same.
        self._order: npt.NDArray[np.intp] = np.argsort(np.frombuffer(contents.start_ns, dtype=np.int64), kind="stable")
        self._sensor_of = {
            channel: reading.sensor(path, channel) for channel in sorted({take.channel for take in contents.takes})
        }
        self.sensors = tuple(self._sensor_of.values())
        self.total_frames = len(contents.offsets) + (0 if self._damages else len(self.sensors))
        self.total_samples = contents.samples
        self.duration_s = (contents.end_ns - contents.start_ns[self._order[0]]) / NS_PER_S

    def __iter__(self) -> Iterator[Frame]:
        """Hit by hit, then one END frame a sensor."""
        sequences = dict.fromkeys(self._sensor_of, 0)
        last: dict[int, Frame] = {}
        with ExitStack() as stack:
            open_part = -1
            for index in self._order:
                take = self._contents.takes[self._contents.take_of[index]]
                if take.part != open_part:
                    # One at a time: parts follow each other in time, and there may be hundreds.
                    stack.close()
                    file = stack.enter_context(self._open(take.part))
                    open_part = take.part
                frame = self._hit(file, self._contents.offsets[index], take, sequences[take.channel])
                sequences[take.channel] += 1
                previous = last.get(take.channel)
                if previous is None or frame.end_sample >= previous.end_sample:
                    last[take.channel] = frame
                yield frame
        if self._damages:
            raise RecordingError(
                f"{self._damages[0]}; the hits before it have been played. Is the file complete? Copy it again"
            )
        for channel, sensor in self._sensor_of.items():
            frame = last[channel]
            yield Frame(
                sensor=sensor,
                epoch_ns=0,
                sequence=sequences[channel],
                first_sample=frame.end_sample,
                time_ns=frame.time_ns + samples_to_ns(len(frame.samples), frame.rate_hz),
                rate_hz=frame.rate_hz,
                samples=np.empty(0, dtype=np.int16),
                volts_per_count=frame.volts_per_count,
                flags=Flags.END,
            )

    def _open(self, part: int) -> BinaryIO:
        try:
            return self._parts[part].open("rb")
        except OSError as error:
            raise RecordingError(f"{self._parts[part]}: cannot be read: {error.strerror}") from error

    def _hit(self, file: BinaryIO, offset: int, take: _Take, sequence: int) -> Frame:
        path = self._parts[take.part]
        try:
            file.seek(offset)
            length, _ = _head(file, offset, os.fstat(file.fileno()).st_size)
            head = _waveform_head(file, offset, length)
            payload = file.read(length - 1 - WAVEFORM_HEAD.size)
        except (_Damage, OSError) as error:
            raise RecordingError(f"{path}: {error}; the file was changed while it was played") from error
        if head is None or head[1] != take.channel or len(payload) != 2 * head[2]:
            raise RecordingError(
                f"{path}: byte {offset}: no waveform any more; the file was changed while it was played"
            )
        ticks, channel, _, flags = head
        ticks += take.shift_ticks
        samples = np.frombuffer(payload, dtype="<i2").astype(np.int16, copy=False)
        if samples.max() == COUNTS_OF_FULL_SCALE - 1 or samples.min() == -COUNTS_OF_FULL_SCALE:
            flags |= Flags.SATURATED
        return Frame(
            sensor=self._sensor_of[channel],
            epoch_ns=0,
            sequence=sequence,
            first_sample=max(0, round(ticks * take.rate_hz / TICKS_PER_S) + take.delay),
            time_ns=_start_ns(ticks, take),
            rate_hz=take.rate_hz,
            samples=samples,
            volts_per_count=take.volts_per_count,
            flags=flags,
        )


def _head(file: BinaryIO, at: int, size: int) -> tuple[int, int]:
    """Length, without its own two bytes, and kind of the record that begins here."""
    head = file.read(HEAD.size)
    if len(head) < HEAD.size:
        raise _Damage(at, f"the file ends after {len(head)} bytes of a record")
    length, kind = HEAD.unpack(head)
    if length == 0 or kind == 0:
        raise _Damage(at, f"a record of length {length} and kind {kind}, which there is not")
    if at + 2 + length > size:
        raise _Damage(at, f"a record of kind {kind} has {length} bytes, but only {size - at - 2} are left")
    if kind in TWO_BYTE_KINDS and (length < 2 or file.peek(1)[:1] != b"\0"):  # type: ignore[attr-defined]
        raise _Damage(at, f"a record of kind {kind} whose second byte is not 0")
    return length, kind


def _waveform_head(file: BinaryIO, at: int, length: int) -> tuple[int, int, int, Flags] | None:
    """Ticks, channel, number of samples and flags; None if the record holds something else."""
    head = file.read(min(length - 1, WAVEFORM_HEAD.size))
    if head[:1] not in (bytes([HIT_WAVEFORM]), bytes([SELF_TEST_WAVEFORM])):
        return None
    size = length - 1 - WAVEFORM_HEAD.size
    if size <= 0 or size % 2:
        raise _Damage(at, f"a waveform record of {length} bytes, which is no whole number of samples")
    kind, low, high, channel, _ = WAVEFORM_HEAD.unpack(head)
    flags = Flags.HIT | Flags.TEST_PULSE if kind == SELF_TEST_WAVEFORM else Flags.HIT
    return low | high << 32, channel, size // 2, flags


def _test_time(text: str) -> datetime:
    """As AEwin writes it: Wed Jan 14 09:39:04 2026, in the time zone of the machine."""
    return datetime.strptime(text, "%a %b %d %H:%M:%S %Y")


def _start_ns(ticks: int, take: _Take) -> int:
    """Time of the first sample: the stored time is the trigger's."""
    if take.delay < 0:
        return max(0, ticks * TICK_NS - samples_to_ns(-take.delay, take.rate_hz))
    return ticks * TICK_NS + samples_to_ns(take.delay, take.rate_hz)


def _parts(path: Path) -> list[Path]:
    """`path` and, if it is a first part, what continues it: `test.DTA`, `test__2.DTA`, `test__3.DTA`, ….

    Raises
    ------
    RecordingError
        If one between others is missing, or the folder cannot be listed.
    """
    if later := re.fullmatch(r"(.+)__(\d+)", path.stem):
        log.info("%s: is part %s of %s, and played alone", path, later[2], later[1])
        return [path]
    pattern = re.compile(re.escape(path.stem) + r"__([2-9]|[1-9]\d+)")
    found = {}
    try:
        beside = list(path.parent.iterdir())
    except OSError as error:
        raise RecordingError(f"{path.parent}: cannot be searched for later parts: {error.strerror}") from error
    for other in beside:
        if other.suffix.lower() == path.suffix.lower() and (match := pattern.fullmatch(other.stem)):
            found[int(match[1])] = other
    for number in range(2, max(found, default=1)):
        if number not in found:
            missing = path.with_name(f"{path.stem}__{number}{path.suffix}")
            raise RecordingError(
                f"{missing}: is missing, though {found[max(found)].name} is there; put it back, "
                "or move the later parts elsewhere and play each by itself"
            )
    return [path, *(found[number] for number in sorted(found))]


def open_source(path: Path, reading: Reading) -> MistrasRecording:
    """See `producers.sources.formats`."""
    return MistrasRecording(path, reading)
