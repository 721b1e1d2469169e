"""What of the recordings is played, and when: parts cut out at the sample, one recording after another. Pure."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from producers.sources import Source
from stream.records import NS_PER_S, Flags, Frame, samples_to_ns

log = logging.getLogger(__name__)

#: A source's sensors come interleaved by time, but a hit's samples begin before the trigger it is sorted by.
ORDER_SLACK_NS = NS_PER_S


@dataclass(frozen=True, slots=True)
class Passage:
    """Which part is played, how recordings are laid side by side, and how often.

    Times are the recordings' own: they count from each source's epoch or, with `align_starts`, from its first sample.
    """

    start_ns: int = 0
    end_ns: int | None = None  #: the first moment that is not played; None is the end of all
    align_starts: bool = False  #: let all begin together, whatever their clocks say
    loop: bool = False  #: over and over, each turn as a new epoch
    epoch_ns: int | None = None  #: the epoch of the first turn, ns UTC; None leaves each source its own


@dataclass(frozen=True, slots=True)
class InTurn:
    """Recordings that are played one after another: each begins, with its first sample, when the last one has ended."""

    parts: tuple[Source, ...]

    @property
    def sensors(self) -> tuple[str, ...]:
        """Of all parts."""
        return tuple(sensor for part in self.parts for sensor in part.sensors)

    @property
    def duration_s(self) -> float | None:
        """Of all parts together; None if one does not say."""
        durations = [part.duration_s for part in self.parts]
        return None if None in durations else sum(duration or 0.0 for duration in durations)


@dataclass(frozen=True, slots=True, eq=False)
class Cue:
    """A frame and its place in the recordings' own time, ns."""

    frame: Frame
    begin_ns: int
    end_ns: int  #: when its last sample was there


class Track:
    """The cues of one source, or of several in turn. Each iteration begins anew, without the parts that failed before.

    Parameters
    ----------
    failures
        Takes what a part failed with; what it gave before is played, and the other parts go on.
    stopped
        Ends the iteration when set from another thread, also where it is skipping to a place far in.
    """

    def __init__(
        self, source: Source | InTurn, passage: Passage, failures: list[Exception], stopped: threading.Event
    ) -> None:
        self._parts = list(source.parts) if isinstance(source, InTurn) else [source]
        self._from_first_sample = passage.align_starts or isinstance(source, InTurn)
        self._passage = passage
        self._failures = failures
        self._stopped = stopped

    def __iter__(self) -> Generator[Cue, None, None]:
        """Cues in the order of their source; of one sensor by time."""
        base_ns = 0
        for part in tuple(self._parts):
            end_ns = self._passage.end_ns
            if self._stopped.is_set() or (end_ns is not None and base_ns >= end_ns):
                return
            base_ns = yield from self._part(part, base_ns)

    def _part(self, part: Source, base_ns: int) -> Generator[Cue, None, int]:
        """Cues of one part, whose time begins at `base_ns`; returns where it ends."""
        start_ns, end_ns = self._passage.start_ns, self._passage.end_ns
        shift_ns: int | None = None if self._from_first_sample else base_ns
        reached_ns = base_ns
        begun: dict[str, Frame] = {}  # last frame of each sensor that has not ended
        past: set[str] = set()
        early = False
        frames = _frames(part)
        with closing(frames):
            try:
                for frame in frames:
                    if self._stopped.is_set():
                        return reached_ns
                    own_ns = frame.time_ns - frame.epoch_ns
                    if shift_ns is None:
                        shift_ns = base_ns - own_ns
                    begin_ns, stop_ns = own_ns + shift_ns, _end_ns(frame) + shift_ns
                    reached_ns = max(reached_ns, stop_ns)
                    if end_ns is not None and not _begins_before(frame, end_ns - shift_ns):
                        early = True
                        past.add(frame.sensor)
                        if past.issuperset(part.sensors) or begin_ns > end_ns + ORDER_SLACK_NS:
                            break
                        continue
                    if begin_ns < start_ns or (end_ns is not None and stop_ns >= end_ns) or not len(frame.samples):
                        until_ns = None if end_ns is None else end_ns - shift_ns
                        kept = cut(frame, start_ns - shift_ns, until_ns, begun=frame.sensor in begun)
                        if kept is None:
                            continue
                        frame = kept
                        begin_ns, stop_ns = frame.time_ns - frame.epoch_ns + shift_ns, _end_ns(frame) + shift_ns
                    if Flags.END in frame.flags:
                        begun.pop(frame.sensor, None)
                    else:
                        begun[frame.sensor] = frame
                    yield Cue(frame, begin_ns, stop_ns)
            except Exception as error:
                # The frames that were read already, and the other parts, must not be lost with this one.
                log.error("%s", error)
                self._failures.append(error)
                self._parts.remove(part)
                early = True
        if early:
            for last in begun.values():
                end = ending(last)
                at_ns = end.time_ns - end.epoch_ns + (shift_ns or 0)
                yield Cue(end, at_ns, at_ns)
        return reached_ns


def cut(frame: Frame, start_ns: int, end_ns: int | None, begun: bool = True) -> Frame | None:
    """What of `frame` lies from `start_ns` to before `end_ns` since its epoch; None if nothing does.

    Samples keep their index. A hit is one event, and whole or not there: it belongs where it begins. An END without
    samples stays if its sensor has `begun`.
    """
    own_ns = frame.time_ns - frame.epoch_ns
    if not len(frame.samples):
        return frame if begun else None
    if Flags.HIT in frame.flags:
        return frame if start_ns <= own_ns and (end_ns is None or own_ns < end_ns) else None
    first = max(frame.first_sample, _sample_at(frame, start_ns))
    stop = frame.end_sample if end_ns is None else min(frame.end_sample, _sample_at(frame, end_ns))
    if first >= stop:
        return None
    if stop - first == len(frame.samples):
        return frame
    return replace(
        frame,
        first_sample=first,
        time_ns=_time_of(frame, first),
        samples=frame.samples[first - frame.first_sample : stop - frame.first_sample],
    )


def ending(last: Frame) -> Frame:
    """The END of a sensor whose last frame this is."""
    return replace(
        last,
        sequence=last.sequence + 1,
        first_sample=last.end_sample,
        time_ns=_time_of(last, last.end_sample),
        samples=np.empty(0, dtype=last.samples.dtype),
        flags=Flags.END,
    )


def later(frame: Frame, by_ns: int) -> Frame:
    """`frame` in an epoch that began `by_ns` later."""
    return frame if by_ns == 0 else replace(frame, epoch_ns=frame.epoch_ns + by_ns, time_ns=frame.time_ns + by_ns)


def _frames(source: Iterable[Frame]) -> Generator[Frame, None, None]:
    """`source` as a generator, so that it can be closed."""
    yield from source


def _end_ns(frame: Frame) -> int:
    """When the frame's last sample was there, since its epoch."""
    return frame.time_ns - frame.epoch_ns + samples_to_ns(len(frame.samples), frame.rate_hz)


def _begins_before(frame: Frame, moment_ns: int) -> bool:
    """Whether any of it can lie before `moment_ns`; an END without samples may lie at that very moment."""
    own_ns = frame.time_ns - frame.epoch_ns
    return own_ns < moment_ns or (not len(frame.samples) and own_ns == moment_ns)


def _keeps_count(frame: Frame) -> bool:
    """Whether its time is that of its sample counter, which holds to the fraction of a nanosecond."""
    return frame.time_ns - frame.epoch_ns == samples_to_ns(frame.first_sample, frame.rate_hz)


def _sample_at(frame: Frame, moment_ns: int) -> int:
    """Index of the first sample at or after `moment_ns` since the epoch, the same however frames are cut."""
    if _keeps_count(frame):
        return math.ceil(moment_ns * frame.rate_hz / NS_PER_S)
    after_ns = moment_ns - (frame.time_ns - frame.epoch_ns)
    return frame.first_sample + math.ceil(after_ns * frame.rate_hz / NS_PER_S)


def _time_of(frame: Frame, sample: int) -> int:
    """Time of one of its samples, or of the one after them, ns UTC."""
    if _keeps_count(frame):
        return frame.epoch_ns + samples_to_ns(sample, frame.rate_hz)
    return frame.time_ns + samples_to_ns(sample - frame.first_sample, frame.rate_hz)
