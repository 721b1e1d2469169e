"""Which messages of one partition may be committed: bookkeeping only, no Kafka.

A message may be committed when nothing that is still to be made needs it and everything that was made of it is safe
with the broker, and when the same holds for every message before it. Whoever reads the partition again from the
committed offset then finds every sample that goes into a window the broker does not have yet.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

Position = tuple[int, int]  #: (epoch_ns, sample)

MAX_STEP_S = 1.0


@dataclass(frozen=True, slots=True)
class HoldLimits:
    """How long sensors that fell silent in mid-window may keep a partition from being committed.

    Silence is counted in time during which the partition was read: an hour in which nothing could be read (broker
    away, machine asleep) counts as a second. It is local time, because a producer's clock may be days off.
    """

    silence_s: float = 600.0  #: since the sensor's last message
    size_bytes: int = 512 * 2**20  #: of all messages from the first held one on: what a restart would read again
    messages: int = 200_000  #: the same in messages


@dataclass(slots=True, eq=False)
class _Message:
    offset: int
    size_bytes: int
    order: int  #: messages taken before it
    bytes_before: int  #: bytes taken before it
    end: Position | None  #: needed until its sensor's `needed_from` has come to this
    outputs: int | None = None  #: may go when this many outputs are safe; None while it is held


@dataclass(slots=True)
class _Sensor:
    needed: deque[_Message] = field(default_factory=deque)  #: with samples for windows to come, oldest first
    needed_bytes: int = 0
    held: int = 0  #: how many of these keep the partition from being committed
    last_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Taken:
    """What `OrderedAcks.take` has noted."""

    outputs: range  #: the numbers of this message's outputs, in the order in which they are made
    given_up: tuple[str, ...]  #: sensors whose hold has just been given up


class OrderedAcks:
    """The messages of one partition since it was assigned, in offset order, and how far they may be committed.

    Outputs (windows, dead letters) are numbered in the order in which they are made, through the whole partition. A
    message that is no longer needed goes when every output made until then is safe: its own, and those of the later
    messages that completed its windows. Numbering by partition and not by sensor makes it wait for a few outputs of
    others, too, which costs milliseconds and saves a ledger for each sensor.

    A sensor that falls silent in mid-window needs its last messages for ever. Its hold on the commit is *given up*
    beyond `HoldLimits`: the partition goes on being committed. The samples stay where they are, so when the sensor
    speaks again its window is made as if nothing had happened. Only if the process ends in between are the windows
    lost that begin in these messages, because the next owner does not read them again; it sees the sensor begin
    where it speaks again.

    Sensors without a hold are *idle*, and can be forgotten if there are too many of them; what that loses is at
    most the open window of a sensor that was given up.

    Parameters
    ----------
    limits
        Beyond which a hold is given up.
    start
        The offset at which reading should begin, if it is known; only `skipped_offsets` depends on it.
    """

    def __init__(self, limits: HoldLimits, start: int | None = None) -> None:
        self._limits = limits
        self._start = start
        self._messages: deque[_Message] = deque()
        self._held: OrderedDict[int, tuple[str, _Message]] = OrderedDict()
        self._sensors: dict[str, _Sensor] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()
        self._taken = 0
        self._taken_bytes = 0
        self._outputs = 0
        self._safe = 0  #: this many outputs, from the first one on, are safe
        self._safe_beyond: set[int] = set()
        self._committable: int | None = None
        self._clock_s = 0.0
        self._read_s: float | None = None
        self.next_offset: int | None = None  #: the first one not taken; None before the first message
        self.idle_bytes = 0  #: size of the messages whose samples are in memory for idle sensors
        self.holds_given_up = 0
        self.skipped_offsets = 0  #: never delivered: compacted, expired, or markers of transactions

    @property
    def outputs_pending(self) -> int:
        """Outputs made and not safe yet."""
        return self._outputs - self._safe - len(self._safe_beyond)

    @property
    def messages_pending(self) -> int:
        """Messages taken and, as far as was asked, not committable yet."""
        return len(self._messages)

    @property
    def idle_sensors(self) -> int:
        """Sensors without a hold that are remembered."""
        return len(self._idle)

    @property
    def longest_idle(self) -> str | None:
        """The idle sensor to forget first."""
        return next(iter(self._idle), None)

    def is_new(self, offset: int) -> bool:
        """Whether this offset was not taken yet; a consumer that was sent back delivers some twice."""
        return self.next_offset is None or offset >= self.next_offset

    def take(
        self,
        offset: int,
        size_bytes: int,
        *,
        now_s: float,
        outputs: int,
        sensor: str | None = None,
        end: Position | None = None,
        needed_from: Position = (0, 0),
    ) -> Taken:
        """Note a message and what came of it.

        Parameters
        ----------
        offset
            Larger than every offset taken before.
        size_bytes
            Of the whole message.
        now_s
            Local monotonic time, seconds.
        outputs
            How many windows and dead letters were made when it was read.
        sensor
            Whose it is; None where the message does not say.
        end
            End of its last sample that went into the sensor's stream; None if none did.
        needed_from
            The sensor's `needed_from` after this message.

        Raises
        ------
        ValueError
            If the offset was taken before: one that is counted twice could let others be passed over.
        """
        if not self.is_new(offset):
            raise ValueError(f"offset {offset} was taken before, the next one is {self.next_offset}")
        expected = self._start if self.next_offset is None else self.next_offset
        if expected is not None:
            self.skipped_offsets += max(0, offset - expected)
        self.next_offset = offset + 1
        self._advance_clock(now_s)
        message = _Message(offset, size_bytes, self._taken, self._taken_bytes, end)
        self._messages.append(message)
        self._taken += 1
        self._taken_bytes += size_bytes
        numbers = range(self._outputs, self._outputs + outputs)
        self._outputs += outputs
        if sensor is None or end is None:
            message.outputs = self._outputs
        if sensor is not None:
            self._take_for(sensor, message, needed_from)
        return Taken(numbers, self._enforce_limits())

    def safe(self, output: int) -> None:
        """Note that the broker has acknowledged this output."""
        self._safe_beyond.add(output)
        while self._safe in self._safe_beyond:
            self._safe_beyond.remove(self._safe)
            self._safe += 1

    def committable(self) -> int | None:
        """The offset to commit: the first one that a new owner has to read. None while there is none to commit."""
        while self._messages:
            message = self._messages[0]
            if message.outputs is None or message.outputs > self._safe:
                break
            self._messages.popleft()
            self._committable = message.offset + 1
        return self._committable

    def forget(self, sensor: str) -> None:
        """Note that the sensor's samples were dropped: nothing of it is needed any more."""
        self._not_idle(sensor)
        state = self._sensors.pop(sensor, None)
        if state is not None:
            for message in state.needed:
                self._release(state, message)

    def _take_for(self, sensor: str, message: _Message, needed_from: Position) -> None:
        self._not_idle(sensor)
        state = self._sensors.setdefault(sensor, _Sensor())
        state.last_s = self._clock_s
        if message.end is not None:
            state.needed.append(message)
            state.needed_bytes += message.size_bytes
            state.held += 1
            self._held[message.offset] = (sensor, message)
        while state.needed and (state.needed[0].end or needed_from) <= needed_from:
            done = state.needed.popleft()
            state.needed_bytes -= done.size_bytes
            self._release(state, done)
        if not state.held:
            self._make_idle(sensor, state)

    def _release(self, state: _Sensor, message: _Message) -> None:
        if message.outputs is None:
            del self._held[message.offset]
            state.held -= 1
        # Where the hold was given up before, too: windows that were made of it since are worth waiting for.
        message.outputs = self._outputs

    def _make_idle(self, sensor: str, state: _Sensor) -> None:
        self._idle[sensor] = None
        self.idle_bytes += state.needed_bytes

    def _not_idle(self, sensor: str) -> None:
        if sensor in self._idle:
            del self._idle[sensor]
            self.idle_bytes -= self._sensors[sensor].needed_bytes

    def _advance_clock(self, now_s: float) -> None:
        if self._read_s is not None:
            self._clock_s += min(max(now_s - self._read_s, 0.0), MAX_STEP_S)
        self._read_s = now_s

    def _enforce_limits(self) -> tuple[str, ...]:
        """Give up holds, beginning with the one that blocks the commit, until the rest is within the limits."""
        given_up: list[str] = []
        while self._held:
            sensor, first = next(iter(self._held.values()))
            state = self._sensors[sensor]
            if (
                self._clock_s - state.last_s <= self._limits.silence_s
                and self._taken_bytes - first.bytes_before <= self._limits.size_bytes
                and self._taken - first.order <= self._limits.messages
            ):
                break
            for message in state.needed:
                if message.outputs is None:
                    self._release(state, message)
            self._make_idle(sensor, state)
            self.holds_given_up += 1
            given_up.append(sensor)
        return tuple(given_up)
