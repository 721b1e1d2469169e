"""Frames into Kafka: in order per sensor, each answered for until the broker has acknowledged it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, KafkaTimeoutError

from stream.records import BadRecord, Frame, decode_sensor, encode_frame

log = logging.getLogger(__name__)

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


@dataclass(frozen=True, slots=True)
class _Encoded:
    data: bytes
    samples: int


@dataclass(slots=True)
class _Lane:
    """What one sensor has waiting. One task sends it, so that order holds; it ends when nothing waits."""

    key: bytes
    waiting: deque[_Encoded] = field(default_factory=deque)
    waiting_bytes: int = 0
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
        Small frames of a sensor that come within this time go as one message of at most this size; larger frames,
        and those that find the sensor idle with this much waiting, go at once.
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
        join_bytes: int = 32 * 1024,
        drain_s: float = 30.0,
    ) -> None:
        self._options = {**PRODUCER_OPTIONS, **client_options}
        self._topic = topic
        self._max_bytes = max_bytes
        self._join_s = join_s
        self._join_bytes = join_bytes
        self._drain_s = drain_s
        self._lanes: dict[str, _Lane] = {}
        self._open_bytes = 0
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None
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
        lane = self._lanes.get(frame.sensor)
        if lane is None:
            key = frame.sensor.encode("utf-8", "surrogateescape")
            decode_sensor(key)
            lane = self._lanes[frame.sensor] = _Lane(key)
        encoded = _Encoded(encode_frame(frame), len(frame.samples))
        size = len(encoded.data)
        if size > MAX_MESSAGE_BYTES:
            raise BadRecord(
                "too-large", f"{frame.sensor}: a frame of {size} bytes; cut it to {MAX_MESSAGE_BYTES} at most"
            )
        while self._failure is None and self._open_bytes and self._open_bytes + size > self._max_bytes:
            await self._change()
        self._raise_failure()
        self._open_bytes += size
        self.counts.frames += 1
        self.counts.samples += encoded.samples
        self.counts.bytes += size
        lane.waiting.append(encoded)
        lane.waiting_bytes += size
        if lane.sending is None:
            lane.sending = asyncio.create_task(self._send(lane))

    async def flush(self, timeout_s: float | None = None) -> None:
        """Wait until everything published so far, and meanwhile, is acknowledged.

        Raises
        ------
        DeliveryError
            If something could not be delivered, or not within `timeout_s` seconds.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while self._failure is None and self._open_bytes:
                    await self._change()
        except TimeoutError:
            frames = self.counts.frames - self.counts.acknowledged_frames
            raise DeliveryError(
                f"{frames} frames were not acknowledged by {self._options.get('bootstrap_servers')} "
                f"within {timeout_s:g} s; is the broker there?"
            ) from None
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            frames = self.counts.frames - self.counts.acknowledged_frames
            raise DeliveryError(
                f"{frames} frames for {self._topic} were not delivered: {self._failure!r}"
            ) from self._failure

    async def _change(self) -> None:
        """Wait for the next acknowledgement or failure."""
        self._changed.clear()
        await self._changed.wait()

    async def _send(self, lane: _Lane) -> None:
        """Send what waits in `lane` until nothing does."""
        try:
            if lane.waiting_bytes < self._join_bytes:
                await asyncio.sleep(self._join_s)
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

    async def _send_message(self, key: bytes, joined: list[_Encoded], size: int) -> None:
        assert self._producer is not None, "publish inside `async with Publisher(...)`"
        message = joined[0].data if len(joined) == 1 else b"".join(encoded.data for encoded in joined)
        frames, samples = len(joined), sum(encoded.samples for encoded in joined)
        while True:
            try:
                delivery = await self._producer.send(self._topic, message, key)
                break
            except KafkaTimeoutError:
                # The message was not taken, so sending it again cannot repeat it. `max_bytes` holds the source back.
                log.warning("no broker takes messages for %s; %d bytes are waiting", self._topic, self._open_bytes)
        self.counts.messages += 1

        def answered(future: asyncio.Future[Any]) -> None:
            error = None if future.cancelled() else future.exception()
            if future.cancelled() or error is not None:
                self._fail(error or KafkaError("the producer was stopped"))
                return
            self.counts.acknowledged_frames += frames
            self.counts.acknowledged_samples += samples
            self.counts.acknowledged_bytes += size
            self._open_bytes -= size
            self._changed.set()

        delivery.add_done_callback(answered)

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
            log.error("delivery to %s failed: %r", self._topic, error)
        self._changed.set()

    async def _disconnect(self) -> None:
        producer, self._producer = self._producer, None
        if producer is None:
            return
        sending = [lane.sending for lane in self._lanes.values() if lane.sending is not None]
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
        if not self._open_bytes:
            await producer.stop()
            return
        # `stop` would wait for the broker for ever. aiokafka has no public way to give up what is left: without
        # connections its sender comes to rest, and the batches it holds go with it.
        producer._closed = True
        await producer.client.close()
        await producer._sender.close()
