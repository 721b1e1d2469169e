"""Frames into Kafka or, while no broker acknowledges them, onto disk and from there into Kafka later.

Order per sensor holds by one rule: a frame goes to the broker at once only if nothing of its sensor is in the spool;
else it goes behind what is there. `docs/spool.md` says what may be lost when, and how the way back is found.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

from aiokafka.errors import InvalidMessageError, MessageSizeTooLargeError, RecordListTooLargeError

from producers.publisher import DeliveryError, EncodedFrame, Publisher, encoded
from producers.spool import Spool, SpoolFull, SpoolRecord, SpoolSettings
from stream.records import BadRecord, Flags, Frame

log = logging.getLogger(__name__)

LIVE_BYTES = 16 * 1024 * 1024  # not acknowledged yet, so held in memory
DRAIN_BYTES = 1024 * 1024  # a live frame waits for so much of the spool at most
BUSY_BYTES = 256 * 1024  # more live bytes that wait for an acknowledgement mean that the way is not free
RETRY_S = 1.0  # between two attempts to connect, or to find room on the disk
CONNECT_S = 10.0  # a broker that takes the connection may take some time to answer; a stopped one never does

# What the broker will never take, however often it is sent.
_REFUSALS = (MessageSizeTooLargeError, RecordListTooLargeError, InvalidMessageError)


@dataclass(frozen=True, slots=True)
class ForwarderStatus:
    """How it stands. Frames and bytes of encoded frames since the start, but for what is in the spool now."""

    connected: bool
    since_ns: int  #: when that last changed, ns UTC
    last_error: str  #: why it was disconnected last; empty if it never was
    frames: int  #: taken on
    bytes: int
    acknowledged_frames: int  #: by the broker, live and out of the spool
    historical_frames: int  #: those of them that came out of the spool
    spooled_frames: int  #: in the spool now
    spooled_bytes: int
    dropped_frames: int  #: for want of room
    dropped_bytes: int
    refused_frames: int  #: set aside, as the broker takes others but not these
    damaged_places: int  #: in the spool's files


@dataclass(frozen=True, slots=True)
class _Link:
    """Two producers, so that live frames never stand behind spooled ones."""

    live: Publisher
    drain: Publisher


def historical(frame: bytes) -> bytes:
    """An encoded frame, flagged as one that came through the spool; the CRC of a frame is of its samples alone."""
    flags = int.from_bytes(frame[6:8], "little") | Flags.HISTORICAL
    return b"".join((frame[:6], flags.to_bytes(2, "little"), memoryview(frame)[8:]))


def sample_count(frame: bytes) -> int:
    """Of an encoded frame, as its header says."""
    return int.from_bytes(frame[48:52], "little")


class Forwarder:
    """An asynchronous context manager; a `FrameSink` that outlives the broker's absence, and its own restart.

    A sensor's frames must be published one after the other, not by several tasks at once.

    Parameters
    ----------
    client_options, topic
        As of `Publisher`.
    folder, spool
        Where frames are kept while they cannot be sent, and how many. One forwarder to a folder.
    give_up_s
        How long the broker may owe acknowledgements and give none before what it owes goes to the spool.
    drain_share
        What spooled frames get of the bytes sent while live ones queue up; without a queue, they get all that is free.
    drain_s
        How long leaving the context waits for the spool to drain while the broker is there.
    """

    def __init__(
        self,
        client_options: Mapping[str, Any],
        topic: str = "ae.frames",
        *,
        folder: Path | str,
        spool: SpoolSettings,
        give_up_s: float = 5.0,
        drain_share: float = 0.5,
        drain_s: float = 30.0,
    ) -> None:
        if not 0 < give_up_s < float("inf"):
            raise ValueError(f"give_up_s={give_up_s}; give a positive number of seconds")
        if not 0 < drain_share < 1:
            raise ValueError(f"drain_share={drain_share}; give a share between 0 and 1")
        self._options = client_options
        self._topic = topic
        self._folder = folder
        self._settings = spool
        self._give_up_s = give_up_s
        self._drain_share = drain_share
        self._drain_s = drain_s
        self._link: _Link | None = None
        self._since_ns = time.time_ns()
        self._last_error = ""
        self._told: dict[type[Exception], str] = {}
        self._unplaced: deque[EncodedFrame] = deque()  # given up by the broker, not in the spool yet
        self._one_by_one = 0  # how many spooled frames are to be sent alone, to find the one that is refused
        self._refused_bytes: int | None = None  # the smallest frame that was too large for the broker
        self._taken_s: dict[bytes, float] = {}  # when a frame of this sensor was taken on last
        self._appended_bytes = self._drained_bytes = 0  # since the broker is there
        self._frames = self._bytes = self._live_acknowledged = self._historical = self._refused = 0
        self._changed = asyncio.Event()
        self._tried = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Open the spool, and try to connect; without a broker, frames go to the spool.

        Raises
        ------
        SpoolInUse, OSError
            If the spool cannot be opened.
        """
        self._spool = await asyncio.to_thread(Spool, self._folder, self._settings)
        if self._spool.pending_frames:
            log.info("%s: %d frames wait to be sent", self._spool.folder, self._spool.pending_frames)
        self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(self._keep_safe())]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._give_up_s):
                await self._tried.wait()
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Leave everything acknowledged or in the spool, safely on disk.

        Raises
        ------
        DeliveryError
            If the disk was full and frames are lost with this process.
        """
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._drain_s):
                    await self.flush()
                    while self._link is not None and self._spool.pending_frames:
                        await self._change()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._place()
            waiting = self._spool.pending_frames
            self._spool.close()
        if waiting:
            log.warning("%s: %d frames wait in the spool for the next start", self._spool.folder, waiting)
        if self._unplaced:
            lost = f"{self._spool.folder}: no room for {len(self._unplaced)} frames that no broker acknowledged"
            if error is None:
                raise DeliveryError(lost)
            log.error("%s", lost)

    @property
    def status(self) -> ForwarderStatus:
        """How it stands now."""
        live = self._live_acknowledged
        if self._link is not None:
            live += self._link.live.counts.acknowledged_frames
        return ForwarderStatus(
            connected=self._link is not None,
            since_ns=self._since_ns,
            last_error=self._last_error,
            frames=self._frames,
            bytes=self._bytes,
            acknowledged_frames=live + self._historical,
            historical_frames=self._historical,
            spooled_frames=self._spool.pending_frames,
            spooled_bytes=self._spool.pending_bytes,
            dropped_frames=self._spool.counts.dropped_frames,
            dropped_bytes=self._spool.counts.dropped_bytes,
            refused_frames=self._refused,
            damaged_places=self._spool.counts.damaged_places,
        )

    def spooled_frames(self, sensor: str) -> int:
        """Frames of this sensor in the spool now."""
        return self._spool.pending_of(sensor.encode())

    async def publish(self, frame: Frame) -> None:
        """Take `frame` on, waiting for room where the spool is full and its policy is "block".

        Raises
        ------
        BadRecord
            If the frame cannot be written: sensor id, sample type, more than `MAX_MESSAGE_BYTES` or than the broker
            has been found to take.
        OSError
            If it has to go to the spool and the disk fails, other than for being full.
        """
        taken = encoded(frame)
        if self._refused_bytes is not None and len(taken.data) >= self._refused_bytes:
            # Each attempt would cost all sensors the connection.
            raise BadRecord(
                "too-large",
                f"{frame.sensor}: a frame of {len(taken.data)} bytes; the broker refused one of {self._refused_bytes}; "
                f"cut frames smaller, or raise max.message.bytes of {self._topic} and start again",
            )
        if not self._take_at_once(taken):
            while not await self._take(taken, frame.rate_hz):
                pass
        self._taken_s[taken.key] = time.monotonic()
        self._frames += 1
        self._bytes += len(taken.data)

    def _take_at_once(self, frame: EncodedFrame) -> bool:
        """The usual case, in short: the broker is there, nothing is spooled of any sensor, and there is room."""
        link = self._link
        return (
            link is not None and not self._unplaced and not self._spool.pending_bytes and link.live.take_at_once(frame)
        )

    async def _take(self, frame: EncodedFrame, rate_hz: Fraction) -> bool:
        """False after waiting for what was in the way."""
        link = self._link
        if self._unplaced:  # they may be of this sensor, and are older
            await self._change()
        elif link is None or self._spool.is_unread(frame.key):
            early_s = self._early_s(frame, rate_hz)
            if link is not None and early_s > 0:
                await self._change(early_s)
                return False
            try:
                self._spool.append(frame.key, frame.data)
            except SpoolFull:
                await self._change(RETRY_S)
                return False
            self._appended_bytes += len(frame.data)
            self._changed.set()
            await asyncio.sleep(0)  # a source that never waits must let the way back be found
            return True
        elif self._spool.is_pending(frame.key):
            # All that is spooled of this sensor is on its way. Its answer ends the detour through the disk, which
            # a source that never pauses would otherwise make for ever.
            await self._change()
        else:
            try:
                await link.live.publish_encoded(frame)
                return True
            except DeliveryError:
                while self._link is link:
                    await self._change()
        return False

    def _early_s(self, frame: EncodedFrame, rate_hz: Fraction) -> float:
        """How long a sensor's next frame may wait, so that the spool shrinks while it drains.

        A recording played at full speed would fill it faster than it drains. No source is made slower than real time.
        """
        if self._appended_bytes <= self._drained_bytes / 2 + DRAIN_BYTES:
            return 0.0
        return self._taken_s.get(frame.key, 0.0) + float(frame.samples / rate_hz) - time.monotonic()

    async def flush(self) -> None:
        """Wait until all that was taken on is acknowledged, or safe in the spool.

        Raises
        ------
        OSError
            If the disk fails.
        """
        while (link := self._link) is not None or self._unplaced:
            if self._unplaced or link is None:
                await self._change()
                continue
            try:
                await link.live.flush()
                break
            except DeliveryError:
                while self._link is link:
                    await self._change()
        await asyncio.to_thread(self._spool.sync)

    async def _change(self, timeout_s: float | None = None) -> None:
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()

    async def _run(self) -> None:
        """Connect, stay connected, and begin anew."""
        while True:
            try:
                async with AsyncExitStack() as stack:
                    async with asyncio.timeout(max(CONNECT_S, self._give_up_s)):
                        live = Publisher(self._options, self._topic, max_bytes=LIVE_BYTES)
                        drain = Publisher(self._options, self._topic)
                        link = _Link(await stack.enter_async_context(live), await stack.enter_async_context(drain))
                    self._join(link)
                    try:
                        await self._serve(link)
                    finally:
                        self._part(link)
            except Exception as error:
                # Whatever it is, a broken frame among thousands or a disk, later frames must not be lost for it.
                self._note(error)
                if isinstance(error.__cause__, _REFUSALS):
                    continue  # a broker that refuses is there
            self._tried.set()
            await asyncio.sleep(RETRY_S)

    def _join(self, link: _Link) -> None:
        log.info("connected to %s", self._options.get("bootstrap_servers"))
        self._link = link
        self._appended_bytes = self._drained_bytes = 0
        self._since_ns = time.time_ns()
        self._tried.set()
        self._changed.set()

    def _part(self, link: _Link) -> None:
        """What was not acknowledged goes to the spool before any later frame does."""
        self._live_acknowledged += link.live.counts.acknowledged_frames
        self._unplaced.extend(link.live.abandon())
        link.drain.abandon()
        self._spool.rewind()
        self._link = None
        self._since_ns = time.time_ns()
        self._place()

    def _note(self, error: Exception) -> None:
        told = str(error) or repr(error)
        # By kind: while the broker is away and the disk is full, the two take turns every second.
        if told != self._told.get(type(error)):
            log.error("not connected; frames go to %s: %s", self._spool.folder, told)
        self._told[type(error)] = self._last_error = told

    def _place(self) -> None:
        """Frames that the broker did not acknowledge into the spool; beyond its cap, since nobody else has them."""
        try:
            while self._unplaced:
                self._spool.append(self._unplaced[0].key, self._unplaced[0].data, beyond_cap=True)
                self._unplaced.popleft()
        except (SpoolFull, OSError) as error:
            self._note(error)
        self._changed.set()

    async def _keep_safe(self) -> None:
        """Sync the spool in time, and look whether a full disk has room again."""
        interval_s = min(self._settings.sync_s / 2 or RETRY_S, RETRY_S)
        while True:
            await asyncio.sleep(interval_s)
            if self._unplaced:
                self._place()
            try:
                await asyncio.to_thread(self._spool.sync)
            except OSError as error:
                self._note(error)

    async def _serve(self, link: _Link) -> None:
        """Drain until the live frames or the spooled ones are not acknowledged any more."""
        tasks = [asyncio.create_task(link.live.watch(self._give_up_s)), asyncio.create_task(self._drain(link))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            done.pop().result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _drain(self, link: _Link) -> None:
        while True:
            batch = self._spool.read(1 if self._one_by_one else DRAIN_BYTES)
            if not batch:
                self._changed.set()
                await self._change()
                continue
            try:
                await self._send(link.drain, batch)
            except DeliveryError as error:
                if not isinstance(error.__cause__, _REFUSALS):
                    raise
                if len(batch) > 1:
                    self._one_by_one = len(batch)
                    raise
                self._set_aside(batch[0], error.__cause__)
                raise
            self._historical += len(batch)
            self._spool.acknowledge(batch[-1])
            self._one_by_one = max(self._one_by_one - len(batch), 0)
            self._place()
            size = sum(len(record.frame) for record in batch)
            self._drained_bytes += size
            await self._let_live_pass(link.live, size)

    def _set_aside(self, record: SpoolRecord, why: BaseException) -> None:
        self._spool.set_aside(record, str(why))
        self._one_by_one = max(self._one_by_one - 1, 0)
        self._refused += 1
        if not isinstance(why, InvalidMessageError):
            self._refused_bytes = min(self._refused_bytes or len(record.frame), len(record.frame))

    async def _send(self, drain: Publisher, batch: list[SpoolRecord]) -> None:
        for record in batch:
            await drain.publish_encoded(EncodedFrame(record.key, historical(record.frame), sample_count(record.frame)))
        await drain.flush(give_up_s=self._give_up_s)

    async def _let_live_pass(self, live: Publisher, drained_bytes: int) -> None:
        """Wait while live frames queue up, until they have had their share."""
        due = live.counts.acknowledged_bytes + drained_bytes * (1 - self._drain_share) / self._drain_share
        while live.open_bytes > BUSY_BYTES and live.counts.acknowledged_bytes < due:
            await live.change()
