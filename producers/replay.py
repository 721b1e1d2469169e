"""Playing sources into a publisher: at their own pace, at a multiple of it, or as fast as it goes."""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Protocol

from producers.sources import Source
from stream.records import NS_PER_S, Frame, samples_to_ns

log = logging.getLogger(__name__)

READ_AHEAD_BYTES = 256 * 1024
READ_AHEAD_FRAMES = 512


class FrameSink(Protocol):
    """Where frames go: a `producers.publisher.Publisher`."""

    async def publish(self, frame: Frame) -> None:
        """Take `frame` on, waiting for room."""

    async def flush(self) -> None:
        """Wait until all that was taken on is delivered."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a replay has come."""

    frames: int  #: published
    samples: int  #: published
    position_s: float  #: in the recordings' own time, from the first sample on
    behind_s: float  #: how late the last frame was; 0 at full speed


async def replay(
    sources: Sequence[Source],
    publisher: FrameSink,
    rate: float | None = 1.0,
    progress: Callable[[Progress], None] | None = None,
) -> Progress:
    """Publish all frames of `sources`, merged by time, and flush.

    A frame is published when its last sample would have been there. Times count from each source's epoch, so that
    recordings with and without a clock play side by side; silence before the first sample of all is left out.

    Parameters
    ----------
    rate
        1 is the recordings' own pace, 10 ten times as fast; None is as fast as the broker takes it.
    progress
        Called after every few frames.

    Raises
    ------
    ValueError
        If `rate` is not positive, or two sources have a sensor in common.
    RecordingError, DeliveryError
        From a source, after what it gave before and all of the other sources were published; from the publisher,
        at once.
    """
    if rate is not None and not 0 < rate < float("inf"):
        raise ValueError(f"rate {rate}; a positive multiple of the recording's pace, or None for full speed")
    common = [name for name, times in Counter(s for source in sources for s in source.sensors).items() if times > 1]
    if common:
        raise ValueError(f"{', '.join(sorted(common)[:5])}: in two sources; replay them as separate runs")

    loop = asyncio.get_running_loop()
    done = Progress(0, 0, 0.0, 0.0)
    failures: list[Exception] = []
    began_s = loop.time()
    began_ns: int | None = None
    # One thread reads ahead while this one publishes: neither the disk nor a simulation holds up the event loop.
    reader = ThreadPoolExecutor(1, "replay-read")
    with ExitStack() as stack:
        iterators = [stack.enter_context(closing(_frames(source, failures))) for source in sources]
        merged = heapq.merge(*iterators, key=_end_ns)
        # Leaves before the iterators are closed: one that is being read cannot be.
        stack.callback(reader.shutdown, wait=True)
        reading = loop.run_in_executor(reader, _read, merged)
        while batch := await reading:
            reading = loop.run_in_executor(reader, _read, merged)
            for frame in batch:
                if began_ns is None:
                    began_ns = frame.time_ns - frame.epoch_ns
                played_s = (_end_ns(frame) - began_ns) / NS_PER_S
                behind_s = 0.0
                if rate is not None:
                    due_s = began_s + played_s / rate
                    if due_s > loop.time():
                        await asyncio.sleep(due_s - loop.time())
                    behind_s = loop.time() - due_s
                await publisher.publish(frame)
                done = Progress(
                    done.frames + 1, done.samples + len(frame.samples), max(done.position_s, played_s), behind_s
                )
            # At full speed nothing above waits; let deliveries and cancellation through.
            await asyncio.sleep(0)
            if progress is not None:
                progress(done)
    await publisher.flush()
    if failures:
        raise failures[0]
    return done


def _frames(source: Source, failures: list[Exception]) -> Generator[Frame, None, None]:
    """`source` as a generator, so that it can be closed; it ends early where the source fails."""
    try:
        yield from source
    except Exception as error:
        # The frames that were read already, and the other sources, must not be lost with this one.
        log.error("%s", error)
        failures.append(error)


def _end_ns(frame: Frame) -> int:
    """When the frame's last sample was there, since its epoch."""
    return frame.time_ns - frame.epoch_ns + samples_to_ns(len(frame.samples), frame.rate_hz)


def _read(frames: Iterator[Frame]) -> list[Frame]:
    batch: list[Frame] = []
    size = 0
    for frame in frames:
        batch.append(frame)
        size += frame.samples.nbytes
        if size >= READ_AHEAD_BYTES or len(batch) >= READ_AHEAD_FRAMES:
            break
    return batch
