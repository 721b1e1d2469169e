"""Many live sources in one process: each by itself, started again with growing pauses when it fails."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from producers.live.beginning import WATCHED_NS, Beginning
from producers.live.framer import Framer
from producers.live.sensor_meter import SensorMeter
from producers.live.source import BlockSource, FrameSource, Milestone, SourceError, as_columns
from producers.replay import FrameSink
from producers.sensors_file import SensorsFile, SensorTable, SourcePlan
from stream.records import NS_PER_S, Frame, Samples, samples_to_ns

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
#: A source that ran for so long before it failed is tried again at once.
RAN_WELL_S = 30.0
#: Items between the thread of a plain iterator and the event loop.
HANDED_OVER = 16
#: The first blocks are kept until it is known when the first sample was taken, or at most for so long, or so many.
KEPT_NS = 2 * NS_PER_S
KEPT_BYTES = 4 * 1024 * 1024
#: Samples that are so far ahead of the clock get a new epoch. Blocks that are merely late or early do not come to it.
AHEAD_NS = NS_PER_S // 2


@dataclass(frozen=True, slots=True)
class Pauses:
    """Before a source is tried again: doubled from one failure to the next."""

    first_s: float = FIRST_PAUSE_S
    longest_s: float = LONGEST_PAUSE_S

    def after(self, failures: int) -> float:
        """Seconds after so many failures one upon the other (1 is the first), a little at random."""
        pause_s = min(self.longest_s, self.first_s * 2.0 ** (failures - 1))
        return pause_s * random.uniform(0.75, 1.25)


class Ingest:
    """Runs all sources of a file into one sink.

    `meters` has one for each sensor, in the order of the file; they can be read at any time.
    """

    def __init__(
        self,
        file: SensorsFile,
        sink: FrameSink,
        *,
        pauses: Pauses | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._file = file
        self._sink = sink
        self._pauses = pauses or Pauses()
        self._now_ns = now_ns
        self.meters = {
            sensor.id: SensorMeter(sensor.id, plan.name, file.producer.flat_s, sensor.metadata)
            for plan in file.sources
            for sensor in plan.sensors
        }

    async def run(self) -> None:
        """Until every source has ended by itself; most never do. Cancel it to stop: then each epoch is ended.

        Raises
        ------
        DeliveryError
            From the sink, if it cannot take frames any more.
        """
        async with asyncio.TaskGroup() as group:
            for plan in self._file.sources:
                group.create_task(self._keep_running(plan), name=plan.name)

    async def _keep_running(self, plan: SourcePlan) -> None:
        failures = 0
        last_epoch_ns = 0
        while True:
            begun = time.monotonic()
            run = _Run(plan, self, last_epoch_ns)
            try:
                await run.play()
            except (SourceError, OSError) as error:
                why = str(error)
            except Exception as error:
                if run.sink_failed:
                    raise
                # The code of a source may raise anything; the other sensors must not feel it.
                log.exception("source %s: %r", plan.name, error)
                why = repr(error)
            else:
                self._set_state(plan, "ended")
                log.info("source %s: ended", plan.name)
                return
            last_epoch_ns = run.epoch_ns
            failures = 1 if time.monotonic() - begun >= RAN_WELL_S else failures + 1
            pause_s = self._pauses.after(failures)
            log.warning("source %s: %s; tried again in %.1f s", plan.name, why, pause_s)
            self._set_state(plan, "retrying", why)
            await asyncio.sleep(pause_s)

    def _set_state(self, plan: SourcePlan, state: str, error: str | None = None) -> None:
        for sensor in plan.sensors:
            meter = self.meters[sensor.id]
            meter.state = state
            if error is not None:
                meter.error = error

    async def take(self, frame: Frame, *, cut_here: bool = False) -> None:
        """A frame of any source on its way; `cut_here` by a `Framer`."""
        meter = self.meters[frame.sensor]
        meter.state = "running"
        meter.frame(frame, self._now_ns(), looked_at=cut_here)
        await self._sink.publish(frame)

    async def settle(self) -> None:
        """Wait until all that was taken is delivered or safe."""
        await self._sink.flush()

    def frame_samples(self, rate_hz: Fraction) -> int:
        """Of a frame at this rate, at least one."""
        return max(1, round(Fraction(self._file.producer.frame_ms).limit_denominator(10**6) * rate_hz / 1000))

    def now_ns(self) -> int:
        """The clock of this machine, ns UTC."""
        return self._now_ns()


class _Run:
    """One start of one source: one epoch, or two where a backlog was too long to know its beginning from the first."""

    def __init__(self, plan: SourcePlan, ingest: Ingest, last_epoch_ns: int) -> None:
        self._plan = plan
        self._ingest = ingest
        self.epoch_ns = last_epoch_ns
        self._framers: dict[str, Framer] = {}
        self._beginning: Beginning | None = Beginning()  # None once it is certain
        self._begun_ns = 0  # what is taken for it now
        self._counted = 0
        self._kept: list[tuple[Samples, int]] = []  # columns, and what was lost before them
        self._kept_bytes = 0
        self.sink_failed = False

    async def play(self) -> None:
        source = self._plan.start()
        if isinstance(source, BlockSource):
            try:
                async for block in _items(source.blocks()):
                    columns = as_columns(block.samples, source.channels)
                    if self._beginning is None:
                        await self._cut(((columns, block.lost),))
                    else:
                        await self._cut(await self._ready(source, columns, block.lost, self._beginning))
            finally:
                if self._kept:
                    await self._cut(self._begin(source))
                await self._end()
        else:
            assert isinstance(source, FrameSource)
            sensors = {sensor.channel: sensor.id for sensor in self._plan.sensors}
            async for item in _items(source.frames(sensors)):
                if isinstance(item, Milestone):
                    await self._settle()
                    await asyncio.to_thread(item.reached)
                else:
                    await self._take((item,))

    async def _cut(self, blocks: Sequence[tuple[Samples, int]]) -> None:
        for columns, lost in blocks:
            for sensor in self._plan.sensors:
                if frames := self._framers[sensor.id].push(columns[:, sensor.channel], lost):
                    await self._take(frames, cut_here=True)

    async def _ready(
        self, source: BlockSource, columns: Samples, lost: int, beginning: Beginning
    ) -> Sequence[tuple[Samples, int]]:
        """What of the first seconds can be cut now that this block has come; nothing until the beginning is known."""
        self._counted += lost + len(columns)
        beginning.arrived(samples_to_ns(self._counted, source.rate_hz), self._ingest.now_ns())
        if not self._framers:
            if not self._kept:
                self._check_channels(source)
            self._kept.append((columns.copy(), lost))  # as the device may use its buffer again
            self._kept_bytes += columns.nbytes
            if beginning.settled or beginning.watched_ns >= KEPT_NS or self._kept_bytes >= KEPT_BYTES:
                return self._begin(source)
            return ()
        if beginning.settled:
            assert beginning.begun_ns is not None
            await self._begin_anew(self._begun_ns - beginning.begun_ns)
            if beginning.watched_ns >= WATCHED_NS:
                self._beginning = None
        return ((columns, lost),)

    def _check_channels(self, source: BlockSource) -> None:
        if missing := [sensor for sensor in self._plan.sensors if sensor.channel >= source.channels]:
            raise SourceError(
                f"has {source.channels} channels; sensor {missing[0].id} is on channel {missing[0].channel} "
                "(the first is 0)"
            )

    def _begin(self, source: BlockSource) -> Sequence[tuple[Samples, int]]:
        """Begin the epoch; returns what was kept."""
        assert self._beginning is not None
        assert self._beginning.begun_ns is not None
        # A new epoch is later than the one before, whatever the clock does.
        self.epoch_ns = self._begun_ns = max(self._beginning.begun_ns, self.epoch_ns + 1)
        counts = self._kept[0][0].dtype.kind == "i"
        for sensor in self._plan.sensors:
            self._framers[sensor.id] = Framer(
                sensor.id,
                source.rate_hz,
                _volts_per_count(sensor, counts),
                self._ingest.frame_samples(source.rate_hz),
                self.epoch_ns,
            )
        kept, self._kept = self._kept, []
        return kept

    async def _begin_anew(self, ahead_ns: int) -> None:
        """A new epoch at the right time, where the count is well ahead of the clock."""
        epoch_ns = next(iter(self._framers.values())).end_ns - ahead_ns
        if ahead_ns <= AHEAD_NS or epoch_ns <= self.epoch_ns:
            return
        log.warning(
            "source %s: what had waited for it at the start put its samples %.1f s ahead of the clock; "
            "a new epoch has the right time",
            self._plan.name,
            ahead_ns / NS_PER_S,
        )
        await self._end()
        self.epoch_ns = epoch_ns
        self._begun_ns -= ahead_ns
        for sensor in self._plan.sensors:
            self._framers[sensor.id] = self._framers[sensor.id].anew(epoch_ns)
            self._ingest.meters[sensor.id].corrections += 1

    async def _end(self) -> None:
        for framer in self._framers.values():
            await self._take(framer.end(), cut_here=True)

    async def _take(self, frames: Sequence[Frame], *, cut_here: bool = False) -> None:
        try:
            for frame in frames:
                await self._ingest.take(frame, cut_here=cut_here)
        except Exception:
            self.sink_failed = True
            raise

    async def _settle(self) -> None:
        try:
            await self._ingest.settle()
        except Exception:
            self.sink_failed = True
            raise


def _volts_per_count(sensor: SensorTable, counts: bool) -> float:
    if sensor.volts_per_count is not None:
        return sensor.volts_per_count
    return (sensor.full_scale_v or 1.0) / (32_768.0 if counts else 1.0)


async def _items(source: AsyncIterator[Any] | Iterator[Any]) -> AsyncIterator[Any]:
    """The items of either kind of iterator; a plain one runs in a thread, which is not waited for when it hangs."""
    if isinstance(source, AsyncIterator):
        try:
            async for item in source:
                yield item
        finally:
            close = getattr(source, "aclose", None)
            if close is not None:
                await close()
        return
    loop = asyncio.get_running_loop()
    items: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
    room = threading.Semaphore(HANDED_OVER)
    stopped = threading.Event()

    def read() -> None:
        ended: tuple[str, Any] = ("end", None)
        try:
            for item in source:
                room.acquire()
                if stopped.is_set():
                    break
                loop.call_soon_threadsafe(items.put_nowait, ("item", item))
        except Exception as error:
            ended = ("error", error)
        finally:
            close = getattr(source, "close", None)
            if close is not None:
                with suppress(Exception):
                    close()
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(items.put_nowait, ended)

    threading.Thread(target=read, name="live-source", daemon=True).start()
    try:
        while True:
            what, item = await items.get()
            room.release()
            if what == "end":
                return
            if what == "error":
                raise item
            yield item
    finally:
        stopped.set()
        room.release()
