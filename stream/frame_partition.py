"""One partition of `ae.frames` as it is read: messages in; windows and dead letters out. No Kafka in here."""

from __future__ import annotations

import traceback
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import NamedTuple

from stream.dead_letters import DeadLetter
from stream.ordered_acks import HoldLimits, OrderedAcks, Position
from stream.records import FRAME_HEADER, BadRecord, DecodedFrames, Frame, Window, decode_frames, decode_sensor
from stream.windows import SensorWindows, WindowCounts, WindowSpec

COMPONENT = "window-agent"

MAX_LETTERS_PER_MESSAGE = 64
MAX_RATES_PER_MESSAGE = 8  # the filter for a new rate may take half a second to design
MAX_TRACEBACK_CHARACTERS = 4000
FAILURES_BEFORE_RESET = 2


@dataclass(frozen=True, slots=True)
class PartitionLimits:
    """What one partition may cost."""

    hold: HoldLimits = HoldLimits()
    max_message_bytes: int = 16 * 2**20  #: a larger message is turned away whole
    idle_sensors: int = 10_000  #: sensors without a hold that are remembered
    idle_bytes: int = 256 * 2**20  #: size of the messages kept in memory for them


@dataclass(slots=True)
class FrameCounts:
    """What came and what became of it, for one partition or several."""

    messages: int = 0
    message_bytes: int = 0
    redelivered: int = 0  #: messages delivered a second time within one assignment, and ignored
    skipped_offsets: int = 0  #: offsets that never came: compacted, expired, or markers of transactions
    dead_letters: int = 0
    rejects: Counter[str] = field(default_factory=Counter)  #: parts of messages turned away, by reason
    sensors: int = 0  #: remembered now
    sensors_forgotten: int = 0  #: because too many were idle
    sensors_reset: int = 0  #: because windowing failed for them again and again
    holds_given_up: int = 0
    windows: WindowCounts = field(default_factory=WindowCounts)

    def add(self, other: FrameCounts) -> None:
        """Add the other's numbers to these."""
        for item in fields(self):
            mine, theirs = getattr(self, item.name), getattr(other, item.name)
            if isinstance(theirs, WindowCounts):
                add_window_counts(mine, theirs)
            elif isinstance(theirs, Counter):
                mine.update(theirs)
            else:
                setattr(self, item.name, mine + theirs)


def add_window_counts(total: WindowCounts, more: WindowCounts) -> None:
    """Add up what several sensors' frames came to."""
    for item in fields(total):
        setattr(total, item.name, getattr(total, item.name) + getattr(more, item.name))


class Output(NamedTuple):
    """A record to write, and its number in the partition's `OrderedAcks`, which is told when it is safe."""

    number: int
    record: Window | DeadLetter


@dataclass(frozen=True, slots=True)
class Step:
    """What came of one message."""

    outputs: list[Output]
    given_up: tuple[str, ...]  #: sensors whose hold on the commit has just been given up
    forgotten: tuple[str, ...]  #: sensors whose samples have just been dropped


@dataclass(slots=True)
class _Sensor:
    windows: SensorWindows
    failures: int = 0  #: in a row


@dataclass(slots=True)
class _Made:
    sensor: str | None = None
    records: list[Window | DeadLetter] = field(default_factory=list)
    letters: int = 0
    end: Position | None = None
    reset: bool = False
    not_lettered: int = 0
    not_lettered_from: int = 0


class FramePartition:
    """Reads the messages of one partition in offset order.

    Parameters
    ----------
    topic, partition
        Where the messages come from.
    spec
        How the model wants windows to be cut.
    limits
        What this partition may cost.
    start
        The committed offset, where reading begins; None where nothing was committed.
    """

    def __init__(
        self,
        topic: str,
        partition: int,
        spec: WindowSpec,
        limits: PartitionLimits | None = None,
        start: int | None = None,
    ) -> None:
        self.topic = topic
        self.partition = partition
        self._spec = spec
        self._limits = limits or PartitionLimits()
        self.acks = OrderedAcks(self._limits.hold, start)
        self._start = start or 0
        self._sensors: dict[str, _Sensor] = {}
        self._counts = FrameCounts()

    @property
    def counts(self) -> FrameCounts:
        """A snapshot, with the windows of all sensors so far."""
        counts = FrameCounts()
        counts.add(self._counts)
        for state in self._sensors.values():
            add_window_counts(counts.windows, state.windows.counts)
        counts.sensors = len(self._sensors)
        counts.holds_given_up = self.acks.holds_given_up
        counts.skipped_offsets = self.acks.skipped_offsets
        return counts

    def take(self, offset: int, key: bytes | None, value: bytes | None, now_s: float) -> Step:
        """Read one message. Nothing that a message holds makes this raise.

        Parameters
        ----------
        offset, key, value
            Of the message. An offset that was taken before is ignored.
        now_s
            Local monotonic time, seconds.
        """
        if not self.acks.is_new(offset):
            self._counts.redelivered += 1
            return Step([], (), ())
        message = value or b""
        self._counts.messages += 1
        self._counts.message_bytes += len(message)
        made = _Made()
        try:
            self._read(made, offset, key, message)
        except Exception as error:  # whatever one message does to us, the next one must be read
            self._turn_away(made, offset, key, message, 0, "error", story(error))
        if made.not_lettered:
            self._letter_for_the_rest(made, offset, key, message)
        state = self._sensors.get(made.sensor) if made.sensor is not None else None
        taken = self.acks.take(
            offset,
            len(message),
            now_s=now_s,
            outputs=len(made.records),
            sensor=made.sensor if state is not None else None,
            end=made.end,
            needed_from=(0, 0) if state is None else state.windows.needed_from,
        )
        if made.reset and made.sensor is not None:
            self.acks.forget(made.sensor)
        outputs = [Output(number, record) for number, record in zip(taken.outputs, made.records, strict=True)]
        return Step(outputs, taken.given_up, self._forget_idle())

    def _read(self, made: _Made, offset: int, key: bytes | None, message: bytes) -> None:
        try:
            sensor = decode_sensor(key)
        except BadRecord as error:
            self._turn_away(made, offset, key, message, 0, error.reason, error.detail)
            return
        if len(message) > self._limits.max_message_bytes:
            detail = f"{len(message)} bytes, at most {self._limits.max_message_bytes} are read; send shorter frames"
            self._turn_away(made, offset, key, message, 0, "too-large", detail)
            return
        made.sensor = sensor
        decoded = decode_frames(sensor, message)
        for reject in decoded.rejects:
            self._turn_away(made, offset, key, reject.raw, reject.byte_offset, reject.reason, reject.detail)
        rates = set()
        for frame, begin, end in _places(decoded):
            rates.add(frame.rate_hz)
            if len(rates) > MAX_RATES_PER_MESSAGE:
                detail = f"more than {MAX_RATES_PER_MESSAGE} sample rates in one message"
                self._turn_away(made, offset, key, message[begin:end], begin, "rate", detail)
            else:
                self._push(made, offset, key, message, frame, begin, end)

    def _push(
        self, made: _Made, offset: int, key: bytes | None, message: bytes, frame: Frame, begin: int, end: int
    ) -> None:
        state = self._sensors.get(frame.sensor)
        if state is None:
            state = self._sensors[frame.sensor] = self._begin(frame.sensor)
        try:
            pushed = state.windows.push(frame)
        except Exception as error:  # a fault of ours; see `_turn_away`
            state.failures += 1
            self._turn_away(made, offset, key, message[begin:end], begin, "error", story(error))
            if state.failures >= FAILURES_BEFORE_RESET:
                # Once it may be the frame; again it is what we remember of the sensor.
                add_window_counts(self._counts.windows, state.windows.counts)
                self._counts.sensors_reset += 1
                self._sensors[frame.sensor] = self._begin(frame.sensor)
                made.reset, made.end = True, None
            return
        state.failures = 0
        made.records.extend(pushed.windows)
        if pushed.held:
            made.end = (frame.epoch_ns, frame.end_sample)
        if pushed.rejected is not None:
            reason, _, detail = pushed.rejected.partition(": ")
            self._turn_away(made, offset, key, message[begin:end], begin, reason, detail)

    def _begin(self, sensor: str) -> _Sensor:
        """With a memory that is whole only where this is the first reader, and has forgotten nobody."""
        goes_on = self._start > 0 or self._counts.sensors_forgotten + self._counts.sensors_reset > 0
        return _Sensor(SensorWindows(sensor, self._spec, goes_on=goes_on))

    def _turn_away(
        self, made: _Made, offset: int, key: bytes | None, raw: bytes, byte_offset: int, reason: str, detail: str
    ) -> None:
        self._counts.rejects[reason] += 1
        if made.letters >= MAX_LETTERS_PER_MESSAGE:
            # Thousands of tiny bad frames in one message must not become thousands of records.
            made.not_lettered_from = min(byte_offset, made.not_lettered_from) if made.not_lettered else byte_offset
            made.not_lettered += 1
            return
        made.letters += 1
        made.records.append(self.letter(offset, key, reason, raw, detail, byte_offset))

    def _letter_for_the_rest(self, made: _Made, offset: int, key: bytes | None, message: bytes) -> None:
        begin = made.not_lettered_from
        detail = f"{made.not_lettered} more parts of this message were turned away, the first one at byte {begin}"
        made.records.append(self.letter(offset, key, "many-rejects", message[begin:], detail, begin))

    def letter(
        self, offset: int, key: bytes | None, reason: str, raw: bytes, detail: str, byte_offset: int = 0
    ) -> DeadLetter:
        """A dead letter for the message at `offset` or the part of it that begins at `byte_offset`, counted."""
        self._counts.dead_letters += 1
        return DeadLetter(
            component=COMPONENT,
            reason=reason,
            detail=detail,
            topic=self.topic,
            partition=self.partition,
            offset=offset,
            key=key,
            raw=raw,
            byte_offset=byte_offset,
        )

    def _forget_idle(self) -> tuple[str, ...]:
        forgotten: list[str] = []
        while (
            self.acks.idle_sensors > self._limits.idle_sensors or self.acks.idle_bytes > self._limits.idle_bytes
        ) and (sensor := self.acks.longest_idle) is not None:
            self.acks.forget(sensor)
            state = self._sensors.pop(sensor, None)
            if state is not None:
                add_window_counts(self._counts.windows, state.windows.counts)
            self._counts.sensors_forgotten += 1
            forgotten.append(sensor)
        return tuple(forgotten)


def _places(decoded: DecodedFrames) -> list[tuple[Frame, int, int]]:
    """Each good frame with where in the message it begins and ends: good and bad ones together fill it."""
    rejected = {reject.byte_offset: len(reject.raw) for reject in decoded.rejects}
    places = []
    offset = 0
    for frame in decoded.frames:
        while offset in rejected:
            offset += rejected[offset]
        end = offset + FRAME_HEADER.itemsize + frame.samples.nbytes
        places.append((frame, offset, end))
        offset = end
    return places


def story(error: Exception) -> str:
    """The end of the traceback."""
    text = "".join(traceback.format_exception(error))
    return text if len(text) <= MAX_TRACEBACK_CHARACTERS else "… " + text[-MAX_TRACEBACK_CHARACTERS:]
