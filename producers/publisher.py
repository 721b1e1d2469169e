"""Frames into Kafka: in order per sensor, each answered for until the broker has acknowledged it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Self

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, KafkaTimeoutError

from stream.records import BadRecord, Frame, decode_sensor, encode_frame

log = logging.getLogger(__name__)

PROMPT_BYTES = 32 * 1024  # so much of one sensor is worth a message of its own
# With more than this unacknowledged, a frame waits for the broker anyway; larger messages make it wait less.
BACKLOG_BYTES = 1024 * 1024
BACKLOG_JOIN_S = 0.012

REST_S = 5.0  # for a producer that is given up to come to rest, before its requests are cancelled
MAX_MESSAGE_BYTES = 16 * 1024 * 1024  # the window agent turns larger messages away

PRODUCER_OPTIONS: dict[str, Any] = {
    "enable_idempotence": True,
    "acks": "all",
    # One request is in flight per partition, so throughput is batch size over round trip.
    "max_batch_size": 1024 * 1024,
    "linger_ms": 5,
    "max_request_size": 2 * MAX_MESSAGE_BYTES,
}


class DeliveryError(Exception):
    """Frames that were published could not be delivered, or not in time."""


@dataclass(slots=True)
class PublisherCounts:
    """What was taken on, and what of it the broker has acknowledged."""

    frames: int = 0
    samples: int = 0
    bytes: int = 0  #: of encoded frames
    messages: int = 0
    acknowledged_frames: int = 0
    acknowledged_samples: int = 0
    acknowledged_bytes: int = 0


@dataclass(slots=True, eq=False)  # not frozen: that would cost a microsecond for each frame
class EncodedFrame:
    """A frame as it goes out: its sensor's key, its bytes, and how many samples it has."""

    key: bytes
    data: bytes
    samples: int


def encoded(frame: Frame) -> EncodedFrame:
    """`frame` as it goes out.

    Raises
    ------
    BadRecord
        If the frame cannot be written: sensor id, sample type, or more than `MAX_MESSAGE_BYTES`.
    """
    key = _key(frame.sensor)
    data = encode_frame(frame)
    if len(data) > MAX_MESSAGE_BYTES:
        raise BadRecord(
            "too-large", f"{frame.sensor}: a frame of {len(data)} bytes; cut it to {MAX_MESSAGE_BYTES} at most"
        )
    return EncodedFrame(key, data, len(frame.samples))


@lru_cache(maxsize=4096)
def _key(sensor: str) -> bytes:
    """The key of a sensor's frames, looked at once."""
    key = sensor.encode("utf-8", "surrogateescape")
    decode_sensor(key)
    return key


@dataclass(slots=True, eq=False)
class _Lane:
    """What one sensor has waiting. One task sends it, so that order holds; it ends when nothing waits."""

    key: bytes
    waiting: deque[EncodedFrame] = field(default_factory=deque)
    waiting_bytes: int = 0
    timed: bool = False  #: it is sent when the timer is out
    sending: asyncio.Task[None] | None = None


class Publisher:
    """An asynchronous context manager; on leaving it everything published is delivered, or `DeliveryError` is raised.

    Parameters
    ----------
    client_options
        For `aiokafka.AIOKafkaProducer`: `bootstrap_servers`, security. They win over the publisher's own.
    max_bytes
        Bytes taken on and not yet acknowledged; `publish` waits for room beyond it.
    join_s, join_bytes
        Frames of a sensor that wait together go as one message of at most `join_bytes`. They wait for `join_s` at
        most, or until `PROMPT_BYTES` of them are there; while the broker is behind, when each waits for it anyway,
        for `BACKLOG_JOIN_S` at most, or until the message is full. A larger frame goes alone.
    drain_s
        How long leaving the context waits for the broker.
    """

    def __init__(
        self,
        client_options: Mapping[str, Any],
        topic: str = "ae.frames",
        *,
        max_bytes: int = 64 * 1024 * 1024,
        join_s: float = 0.003,
        join_bytes: int = 128 * 1024,
        drain_s: float = 30.0,
    ) -> None:
        self._options = {**PRODUCER_OPTIONS, **client_options}
        self._topic = topic
        self._max_bytes = max_bytes
        self._join_s = join_s
        # Whoever has made batches smaller has a topic that takes no more.
        self._join_bytes = min(join_bytes, self._options["max_batch_size"] // 2)
        self._drain_s = drain_s
        self._lanes: dict[bytes, _Lane] = {}
        self._timed: list[_Lane] = []
        self._timer: asyncio.TimerHandle | None = None  # one for all lanes: they are many, and seldom full
        self._open: dict[EncodedFrame, None] = {}  # not acknowledged, in the order of publishing
        self._open_bytes = 0
        self._progress_s = 0.0
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None
        self._abandoned = False
        self._producer: AIOKafkaProducer | None = None
        self.counts = PublisherCounts()

    async def __aenter__(self) -> Self:
        """Connect.

        Raises
        ------
        aiokafka.errors.KafkaError
            If no broker answers.
        """
        producer = AIOKafkaProducer(**self._options)
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        self._producer = producer
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Deliver what was published, then disconnect."""
        try:
            if not self._abandoned:
                await self.flush(self._drain_s)
        except DeliveryError as failure:
            if error is None:
                raise
            log.error("%s", failure)
        finally:
            await self._disconnect()

    async def publish(self, frame: Frame) -> None:
        """Take `frame` on; returns once there is room for it, before it is acknowledged.

        Frames of one sensor are delivered in the order of these calls.

        Raises
        ------
        BadRecord
            If the frame cannot be written: sensor id, sample type, or more than `MAX_MESSAGE_BYTES`.
        DeliveryError
            If an earlier frame could not be delivered; nothing is taken on any more.
        """
        await self.publish_encoded(encoded(frame))

    async def publish_encoded(self, frame: EncodedFrame) -> None:
        """Take on a frame that is encoded already, as `publish` does.

        Raises
        ------
        DeliveryError
            If an earlier frame could not be delivered; this one is not taken on.
        """
        while not self.take_at_once(frame):
            self._raise_failure()
            await self.change()

    def take_at_once(self, frame: EncodedFrame) -> bool:
        """Take on a frame that is encoded already; False if there is no room for it, or delivery has failed."""
        size = len(frame.data)
        if self._failure is not None or (self._open_bytes and self._open_bytes + size > self._max_bytes):
            return False
        if not self._open:
            self._progress_s = time.monotonic()
            self._changed.set()  # for whoever watches
        self._open[frame] = None
        self._open_bytes += size
        counts = self.counts
        counts.frames += 1
        counts.samples += frame.samples
        counts.bytes += size
        lane = self._lanes.get(frame.key)
        if lane is None:
            lane = self._lanes[frame.key] = _Lane(frame.key)
        lane.waiting.append(frame)
        lane.waiting_bytes += size
        if lane.sending is None:
            self._set_off(lane)
        return True

    @property
    def open_bytes(self) -> int:
        """Bytes of frames that are taken on and not acknowledged."""
        return self._open_bytes

    async def watch(self, give_up_s: float) -> None:
        """Run until delivery has failed, or no acknowledgement came for `give_up_s` seconds although some are due.

        Raises
        ------
        DeliveryError
            Always, in the end; it says which.
        """
        while True:
            await self.flush(give_up_s=give_up_s)
            await self.change()

    def abandon(self) -> list[EncodedFrame]:
        """Stop sending and answering for what was taken on; leave the context next.

        Returns
        -------
        list of EncodedFrame
            What is not acknowledged, in order; some of it may have arrived all the same.
        """
        left = list(self._open)
        self._open.clear()
        self._open_bytes = 0
        self._abandoned = True
        if self._failure is None:
            self._failure = KafkaError("given up")
        for lane in self._lanes.values():
            lane.waiting.clear()
            lane.waiting_bytes = 0
        self._changed.set()
        return left

    async def flush(self, timeout_s: float | None = None, *, give_up_s: float | None = None) -> None:
        """Wait until everything published so far, and meanwhile, is acknowledged.

        Raises
        ------
        DeliveryError
            If something could not be delivered, or not within `timeout_s` seconds, or if nothing at all was
            acknowledged for `give_up_s` seconds.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while self._failure is None and self._open:
                    left_s = None if give_up_s is None else self._progress_s + give_up_s - time.monotonic()
                    if left_s is not None and left_s <= 0:
                        raise DeliveryError(self._unanswered(give_up_s))
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(left_s):
                            await self.change()
        except TimeoutError:
            raise DeliveryError(self._unanswered(timeout_s)) from None
        self._raise_failure()

    def _unanswered(self, waited_s: float | None) -> str:
        return (
            f"{len(self._open)} frames were not acknowledged by {self._options.get('bootstrap_servers')} "
            f"within {waited_s:g} s; is the broker there?"
        )

    def _raise_failure(self) -> None:
        if self._failure is not None:
            frames = self.counts.frames - self.counts.acknowledged_frames
            raise DeliveryError(
                f"{frames} frames for {self._topic} were not delivered: {self._failure!r}"
            ) from self._failure

    async def change(self) -> None:
        """Wait for the next acknowledgement or failure, or for frames to be taken on where none were open."""
        self._changed.clear()
        await self._changed.wait()

    def _set_off(self, lane: _Lane) -> None:
        """Have what waits in `lane` sent: at once if it is enough for a message, else in time."""
        behind = self._open_bytes >= BACKLOG_BYTES
        enough_bytes = self._join_bytes if behind else min(PROMPT_BYTES, self._join_bytes)
        if lane.waiting_bytes >= enough_bytes:
            lane.sending = asyncio.create_task(self._send(lane))
        elif not lane.timed:
            lane.timed = True
            self._timed.append(lane)
            if self._timer is None:
                after_s = max(self._join_s, BACKLOG_JOIN_S) if behind else self._join_s
                self._timer = asyncio.get_running_loop().call_later(after_s, self._send_timed)

    def _send_timed(self) -> None:
        """Send what waited for company long enough."""
        self._timer = None
        timed, self._timed = self._timed, []
        for lane in timed:
            lane.timed = False
            if lane.waiting and lane.sending is None:
                lane.sending = asyncio.create_task(self._send(lane))

    async def _send(self, lane: _Lane) -> None:
        """Send what waits in `lane` until nothing does."""
        try:
            while lane.waiting:
                joined = [lane.waiting.popleft()]
                size = len(joined[0].data)
                while lane.waiting and size + len(lane.waiting[0].data) <= self._join_bytes:
                    joined.append(lane.waiting.popleft())
                    size += len(joined[-1].data)
                lane.waiting_bytes -= size
                await self._send_message(lane.key, joined, size)
        except Exception as error:
            self._fail(error)
        finally:
            lane.sending = None

    async def _send_message(self, key: bytes, joined: list[EncodedFrame], size: int) -> None:
        assert self._producer is not None, "publish inside `async with Publisher(...)`"
        message = joined[0].data if len(joined) == 1 else b"".join(frame.data for frame in joined)
        while True:
            try:
                delivery = await self._producer.send(self._topic, message, key)
                break
            except KafkaTimeoutError:
                # The message was not taken, so sending it again cannot repeat it. `max_bytes` holds the source back.
                log.warning("no broker takes messages for %s; %d bytes are waiting", self._topic, self._open_bytes)
        self.counts.messages += 1
        delivery.add_done_callback(partial(self._answered, joined, size))

    def _answered(self, joined: list[EncodedFrame], size: int, delivery: asyncio.Future[Any]) -> None:
        error = None if delivery.cancelled() else delivery.exception()
        if self._abandoned:
            return  # whoever took the frames over answers for them
        if delivery.cancelled() or error is not None:
            self._fail(error or KafkaError("the producer was stopped"))
            return
        for frame in joined:
            del self._open[frame]
        self.counts.acknowledged_frames += len(joined)
        self.counts.acknowledged_samples += sum(frame.samples for frame in joined)
        self.counts.acknowledged_bytes += size
        self._open_bytes -= size
        self._progress_s = time.monotonic()
        self._changed.set()

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
            log.error("delivery to %s failed: %r", self._topic, error)
        self._changed.set()

    async def _disconnect(self) -> None:
        producer, self._producer = self._producer, None
        if producer is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        sending = [lane.sending for lane in self._lanes.values() if lane.sending is not None]
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
        if not self._open_bytes and not self._abandoned:
            await producer.stop()
            return
        # `stop` would wait for the broker for ever. aiokafka has no public way to give up what is left: without
        # connections its sender comes to rest, and the batches it holds go with it. After `client.close` nobody
        # answers a wait for metadata, which a request that fails now begins.
        producer._closed = True
        producer.client._maybe_wait_metadata = _nothing
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REST_S):
                await producer.client.close()
                await producer._sender.close()


async def _nothing() -> None:
    pass
