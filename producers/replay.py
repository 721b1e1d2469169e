"""Playing sources into a publisher: at their own pace, at a multiple of it, or as fast as it goes."""

from __future__ import annotations

import asyncio
import heapq
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from operator import attrgetter
from typing import Protocol

from producers.replay_clock import ReplayClock, faster, slower
from producers.replay_track import Cue, InTurn, Passage, Track, ending, later
from producers.sources import Source
from stream.records import NS_PER_S, BadRecord, Flags, Frame

log = logging.getLogger(__name__)

READ_AHEAD_BYTES = 256 * 1024
READ_AHEAD_FRAMES = 512
TELL_S = 0.1


class FrameSink(Protocol):
    """Where frames go: a `producers.publisher.Publisher`."""

    async def publish(self, frame: Frame) -> None:
        """Take `frame` on, waiting for room."""

    async def flush(self) -> None:
        """Wait until all that was taken on is delivered."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a replay has come."""

    frames: int = 0  #: published, over all turns
    samples: int = 0  #: published, over all turns
    position_s: float = 0.0  #: in the recordings' own time
    played_s: float = 0.0  #: of that time since this turn began
    behind_s: float = 0.0  #: how late the last frame was; 0 at full speed
    most_behind_s: float = 0.0  #: how late one frame was at most
    turn: int = 1
    rate: float | None = 1.0  #: None is full speed
    paused: bool = False


class IncompleteReplayError(Exception):
    """Sources failed; what they gave before, and all others, were published. The text tells every failure."""

    def __init__(self, done: Progress, failures: Sequence[Exception]) -> None:
        super().__init__("\n".join(map(str, failures)))
        self.done = done
        self.failures = tuple(failures)


class Controls:
    """What can be done to a replay while it runs. For the event loop that it runs in."""

    def __init__(self, rate: float | None = 1.0, *, paused: bool = False) -> None:
        self.clock = ReplayClock(rate, paused=paused)
        self.stopped = threading.Event()  # the thread that reads looks at it
        self._steps = 0
        self._changed = asyncio.Event()

    def toggle_pause(self) -> None:
        """Pause or go on."""
        now_s = asyncio.get_running_loop().time()
        if self.clock.paused:
            self.clock.resume(now_s)
        else:
            self.clock.pause(now_s)
        self._steps = 0
        self._changed.set()

    def step(self) -> None:
        """While paused, play the next frame."""
        if self.clock.paused:
            self._steps += 1
            self._changed.set()

    def faster(self) -> None:
        """Twice the pace."""
        self._set_rate(faster(self.clock.rate))

    def slower(self) -> None:
        """Half the pace."""
        self._set_rate(slower(self.clock.rate))

    def stop(self) -> None:
        """End the replay after the frame that is being published; what has begun gets its END, all is delivered."""
        self.stopped.set()
        self._changed.set()

    async def due(self, media_s: float, on_change: Callable[[], None]) -> float | None:
        """Wait until media time is `media_s`; returns how late it is, s, or None if the replay is to end."""
        loop = asyncio.get_running_loop()
        while not self.stopped.is_set():
            if self._steps and self.clock.paused:
                self._steps -= 1
                self.clock.reach(media_s)
                return 0.0
            due_s = self.clock.due_s(media_s)
            if due_s is not None and due_s <= loop.time():
                if self.clock.rate is not None:
                    return loop.time() - due_s
                self.clock.reach(media_s)
                return 0.0
            self._changed.clear()
            try:
                async with asyncio.timeout_at(due_s):
                    await self._changed.wait()
            except TimeoutError:
                continue
            on_change()
        return None

    def _set_rate(self, rate: float | None) -> None:
        self.clock.set_rate(rate, asyncio.get_running_loop().time())
        self._changed.set()


async def replay(
    sources: Sequence[Source | InTurn],
    publisher: FrameSink,
    rate: float | None = 1.0,
    progress: Callable[[Progress], None] | None = None,
    *,
    passage: Passage | None = None,
    controls: Controls | None = None,
) -> Progress:
    """Publish the frames of `sources`, merged by time, and flush.

    A frame is published when its last sample would have been there. Times count from each source's epoch, so that
    recordings with and without a clock play side by side; silence before the first sample of all is left out.

    In a loop, the epoch of each turn is later than that of the turn before by just as long as that turn was: event
    time goes on without a hole, and no window of one turn has the identity of another's.

    Parameters
    ----------
    rate
        1 is the recordings' own pace, 10 ten times as fast; None is as fast as the broker takes it.
    progress
        Called after every few frames, and when `controls` change something.
    passage
        Which part of the recordings, and how often; all of them, once, by default.
    controls
        To pause, change pace and stop; they hold the rate then.

    Raises
    ------
    ValueError
        If `rate` is not positive, or two sources have a sensor in common.
    IncompleteReplayError
        If sources failed, or frames could not be written; at the end.
    DeliveryError
        From the publisher, at once.
    """
    common = [name for name, times in Counter(s for source in sources for s in source.sensors).items() if times > 1]
    if common:
        raise ValueError(f"{', '.join(sorted(common)[:5])}: in two sources; replay them as separate runs")
    return await _Replay(
        publisher, progress or (lambda _: None), passage or Passage(), controls or Controls(rate)
    ).play(sources)


class _Replay:
    """One call of `replay`: what it has done so far."""

    def __init__(
        self, publisher: FrameSink, progress: Callable[[Progress], None], passage: Passage, controls: Controls
    ) -> None:
        self._publisher = publisher
        self._progress = progress
        self._passage = passage
        self._controls = controls
        self._frames = self._samples = 0
        self._position_ns = self._played_ns = 0
        self._behind_s = self._most_behind_s = 0.0
        self._turn_number = 1
        self._told: Progress | None = None
        self._told_s = 0.0
        self._failures: list[Exception] = []
        self._refused: set[str] = set()
        self._open: dict[str, Frame] = {}  # last frame of each sensor that has begun and not ended
        self._turns_ns = 0  # event time of the turns before
        self._media_ns = 0  # media time of the turns before

    async def play(self, sources: Sequence[Source | InTurn]) -> Progress:
        stopped = self._controls.stopped
        tracks = [Track(source, self._passage, self._failures, stopped) for source in sources]
        if self._controls.clock.paused:
            self._tell()
        try:
            while await self._turn(tracks) and self._passage.loop and not stopped.is_set():
                self._turn_number += 1
                self._played_ns = 0
            if stopped.is_set():
                for last in tuple(self._open.values()):
                    await self._publish(ending(last))
        finally:
            stopped.set()
        self._tell()
        await self._publisher.flush()
        if self._failures:
            raise IncompleteReplayError(self._so_far(), self._failures)
        return self._so_far()

    async def _turn(self, tracks: Sequence[Track]) -> bool:
        """Play all tracks once; whether that took any of their time."""
        loop = asyncio.get_running_loop()
        clock, stopped = self._controls.clock, self._controls.stopped
        first_ns: int | None = None
        begin_ns = end_ns = 0
        # One thread reads ahead while this one publishes: neither the disk nor a simulation holds up the event loop.
        reader = ThreadPoolExecutor(1, "replay-read")
        with ExitStack() as stack:
            cues = [stack.enter_context(closing(iter(track))) for track in tracks]
            merged = heapq.merge(*cues, key=attrgetter("end_ns"))
            # Leaves before the iterators are closed: one that is being read cannot be.
            stack.callback(reader.shutdown, wait=True)
            reading = loop.run_in_executor(reader, _read, merged)
            try:
                while batch := await reading:
                    reading = loop.run_in_executor(reader, _read, merged)
                    for cue in batch:
                        if first_ns is None:
                            first_ns, begin_ns, end_ns = cue.begin_ns, cue.begin_ns, cue.end_ns
                            if not clock.begun:
                                clock.begin(loop.time())
                        begin_ns, end_ns = min(begin_ns, cue.begin_ns), max(end_ns, cue.end_ns)
                        media_s = (self._media_ns + cue.end_ns - first_ns) / NS_PER_S
                        late_s = await self._controls.due(media_s, self._tell)
                        if late_s is None:
                            return False
                        await self._publish(self._in_its_epoch(cue.frame))
                        self._position_ns, self._played_ns = end_ns, end_ns - first_ns
                        self._behind_s, self._most_behind_s = late_s, max(late_s, self._most_behind_s)
                        self._tell_at_times()
                    # At full speed nothing above waits; let deliveries and cancellation through.
                    await asyncio.sleep(0)
                    self._tell()
            except BaseException:
                stopped.set()  # so that nobody waits until the reader has skipped to a place far in
                raise
        if first_ns is None or end_ns == begin_ns:
            return False
        self._media_ns += end_ns - first_ns
        self._turns_ns += end_ns - begin_ns
        return True

    def _in_its_epoch(self, frame: Frame) -> Frame:
        """The frame in the epoch that this turn has."""
        begun_ns = frame.epoch_ns if self._passage.epoch_ns is None else self._passage.epoch_ns
        return later(frame, begun_ns + self._turns_ns - frame.epoch_ns)

    async def _publish(self, frame: Frame) -> None:
        try:
            await self._publisher.publish(frame)
        except BadRecord as error:
            # Said once a sensor: what is too large once is so each time.
            if frame.sensor not in self._refused:
                self._refused.add(frame.sensor)
                self._failures.append(error)
                log.error("%s: not published: %s", frame.sensor, error)
            return
        if Flags.END in frame.flags:
            self._open.pop(frame.sensor, None)
        else:
            self._open[frame.sensor] = frame
        self._frames += 1
        self._samples += len(frame.samples)

    def _tell_at_times(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._told_s >= TELL_S:
            self._told_s = now_s
            self._tell()

    def _tell(self) -> None:
        if (progress := self._so_far()) != self._told:
            self._told = progress
            self._progress(progress)

    def _so_far(self) -> Progress:
        clock = self._controls.clock
        return Progress(
            frames=self._frames,
            samples=self._samples,
            position_s=self._position_ns / NS_PER_S,
            played_s=self._played_ns / NS_PER_S,
            behind_s=self._behind_s,
            most_behind_s=self._most_behind_s,
            turn=self._turn_number,
            rate=clock.rate,
            paused=clock.paused,
        )


def _read(cues: Iterator[Cue]) -> list[Cue]:
    batch: list[Cue] = []
    size = 0
    for cue in cues:
        batch.append(cue)
        size += cue.frame.samples.nbytes
        if size >= READ_AHEAD_BYTES or len(batch) >= READ_AHEAD_FRAMES:
            break
    return batch
