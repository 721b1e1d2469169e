"""Writes windows and dead letters to Kafka, and says of each when the broker has it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError

from stream.dead_letters import DeadLetter, deliver

log = logging.getLogger("aewatch.window_agent")

BATCH_BYTES = 1024 * 1024
LINGER_MS = 5
MAX_REQUEST_BYTES = 40 * 2**20
MAX_IN_FLIGHT_BYTES = 64 * 2**20
RETRY_S = 0.5
CLOSE_TIMEOUT_S = 3.0

Result = TypeVar("Result")


@dataclass(slots=True)
class OutputCounts:
    """What the broker has acknowledged, and what it refused."""

    windows_written: int = 0
    window_bytes_written: int = 0
    windows_refused: int = 0  #: larger than the topic takes, dead-lettered
    letters_written: int = 0


class WindowOutput:
    """The writing end of a window agent; an asynchronous context manager.

    Windows of one sensor reach the broker in the order in which they are written. Acknowledgements come out of
    line, in any order. While the broker is away, writing waits; what cannot be mended by waiting (no rights, an
    idempotent producer that lost its place) is reported to `on_failure` and never counts as written.

    There are two producers. What a broker may refuse for its size must not go through the idempotent one: a refused
    batch leaves a hole in its sequence numbers, and from then on it is refused everything in that partition. Dead
    letters and windows that fill a batch alone (long hits) therefore go through a plain one.

    Parameters
    ----------
    client_options
        Keyword arguments of every aiokafka client.
    windows_topic, deadletter_topic
        Where to write.
    on_failure
        Told what was tried, and the error.
    """

    def __init__(
        self,
        client_options: Mapping[str, Any],
        windows_topic: str,
        deadletter_topic: str,
        on_failure: Callable[[str, Exception], None],
    ) -> None:
        self._client_options = dict(client_options)
        self._windows_topic = windows_topic
        self._deadletter_topic = deadletter_topic
        self._on_failure = on_failure
        self._producers = contextlib.AsyncExitStack()
        self._producer: AIOKafkaProducer[bytes, bytes]
        self._plain_producer: AIOKafkaProducer[bytes, bytes]
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._room = asyncio.Event()
        self._room.set()
        self._deliveries: set[asyncio.Task[None]] = set()
        self.in_flight_bytes = 0
        self.counts = OutputCounts()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as producers:
            self._producer = await self._start(producers, enable_idempotence=True, max_batch_size=BATCH_BYTES)
            self._plain_producer = await self._start(producers)
            self._producers = producers.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for delivery in self._deliveries:
            delivery.cancel()
        await asyncio.gather(*self._deliveries, return_exceptions=True)
        await self._producers.aclose()

    async def _start(self, producers: contextlib.AsyncExitStack, **options: Any) -> AIOKafkaProducer[bytes, bytes]:
        producer: AIOKafkaProducer[bytes, bytes] = AIOKafkaProducer(
            acks="all", linger_ms=LINGER_MS, max_request_size=MAX_REQUEST_BYTES, **options, **self._client_options
        )
        producers.push_async_callback(_stop, producer)
        await producer.start()
        return producer

    async def idle(self) -> None:
        """Wait until everything written is acknowledged."""
        await self._idle.wait()

    async def write_window(
        self,
        value: bytes,
        key: bytes | None,
        on_safe: Callable[[], None],
        refused: Callable[[bytes, str], DeadLetter],
    ) -> None:
        """Hand an encoded window to the producer; `on_safe` is called when the broker has it.

        `refused` makes the dead letter, of bytes and a description, where this one window is larger than the topic
        takes. That can be a hit; continuous windows are all of one size, and if they do not fit nothing works.
        """
        await self._room.wait()
        size = len(value)
        if size > BATCH_BYTES:
            await self._write_large(value, key, on_safe, refused)
            return
        self._begin(size)

        def on_done(future: asyncio.Future[object]) -> None:
            self._end(size)
            if future.cancelled():
                return
            error = future.exception()
            if error is None:
                self._written(size, on_safe)
            else:
                self._failed(size, error)

        try:
            future = await self._persist(lambda: self._producer.send(self._windows_topic, value, key=key))
        except KafkaError as error:
            self._end(size)
            self._failed(size, error)
        else:
            future.add_done_callback(on_done)

    async def _write_large(
        self,
        value: bytes,
        key: bytes | None,
        on_safe: Callable[[], None],
        refused: Callable[[bytes, str], DeadLetter],
    ) -> None:
        # In line, between what was written before and what comes after, because it is another producer's.
        await self._idle.wait()
        self._begin(len(value))
        try:
            await self._persist(lambda: self._plain_producer.send_and_wait(self._windows_topic, value, key=key))
        except MessageSizeTooLargeError:
            self.counts.windows_refused += 1
            detail = (
                f"a window of {len(value)} bytes is more than topic {self._windows_topic} takes; "
                "raise its max.message.bytes or send shorter hits"
            )
            self._deliver(refused(value, detail), on_safe)
        except KafkaError as error:
            self._failed(len(value), error)
        else:
            self._written(len(value), on_safe)
        finally:
            self._end(len(value))

    async def write_letter(self, letter: DeadLetter, on_safe: Callable[[], None]) -> None:
        """Hand a dead letter to the producer; `on_safe` is called when the broker has it."""
        await self._room.wait()
        self._deliver(letter, on_safe)

    def _deliver(self, letter: DeadLetter, on_safe: Callable[[], None]) -> None:
        async def run() -> None:
            try:
                await self._persist(lambda: deliver(self._plain_producer, self._deadletter_topic, letter))
            except Exception as error:
                self._on_failure(f"writing a dead letter to {self._deadletter_topic}", error)
            else:
                self.counts.letters_written += 1
                on_safe()
            finally:
                self._end(len(letter.raw))

        self._begin(len(letter.raw))
        task = asyncio.create_task(run())
        self._deliveries.add(task)
        task.add_done_callback(self._deliveries.discard)

    async def _persist(self, action: Callable[[], Awaitable[Result]]) -> Result:
        """Try again for as long as trying again can help."""
        while True:
            try:
                return await action()
            except KafkaError as error:
                # A timeout says that the message was never queued, or that a plain producer may send it again.
                if not (error.retriable or isinstance(error, KafkaTimeoutError)):
                    raise
                log.warning("cannot write now, waiting", extra={"error": str(error) or type(error).__name__})
                await asyncio.sleep(RETRY_S)

    def _written(self, size_bytes: int, on_safe: Callable[[], None]) -> None:
        self.counts.windows_written += 1
        self.counts.window_bytes_written += size_bytes
        on_safe()

    def _failed(self, size_bytes: int, error: BaseException) -> None:
        if isinstance(error, Exception):
            self._on_failure(f"writing a window of {size_bytes} bytes to {self._windows_topic}", error)

    def _begin(self, size_bytes: int) -> None:
        self._in_flight += 1
        self.in_flight_bytes += size_bytes
        self._idle.clear()
        if self.in_flight_bytes > MAX_IN_FLIGHT_BYTES:
            self._room.clear()

    def _end(self, size_bytes: int) -> None:
        self._in_flight -= 1
        self.in_flight_bytes -= size_bytes
        if not self._in_flight:
            self._idle.set()
        if self.in_flight_bytes <= MAX_IN_FLIGHT_BYTES:
            self._room.set()


async def _stop(producer: AIOKafkaProducer[bytes, bytes]) -> None:
    # What is still to be sent is not acknowledged, so nothing is lost by not waiting until the broker is back.
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(producer.stop(), CLOSE_TIMEOUT_S)
