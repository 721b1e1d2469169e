"""Writes windows and dead letters to Kafka, and says of each when the broker has it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from aiokafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError

from stream.dead_letters import DeadLetter, deliver
from stream.records import Window, encode_window

if TYPE_CHECKING:
    from aiokafka import AIOKafkaProducer

log = logging.getLogger("aewatch.window_agent")

BATCH_BYTES = 1024 * 1024
RETRY_S = 0.5

Result = TypeVar("Result")


class WindowOutput:
    """The writing end of a window agent.

    Windows of one sensor reach the broker in the order in which they are written. Acknowledgements come out of
    line, in any order. While the broker is away, writing waits; what cannot be mended by waiting (no rights, an
    idempotent producer that lost its place) is reported to `on_failure` and never counts as written.

    Parameters
    ----------
    producer
        Started, idempotent, with `BATCH_BYTES` as its batch size.
    max_in_flight_bytes
        `write` waits while more than this is not acknowledged.
    """

    def __init__(
        self,
        producer: AIOKafkaProducer[bytes, bytes],
        windows_topic: str,
        deadletter_topic: str,
        on_failure: Callable[[BaseException], None],
        max_in_flight_bytes: int = 64 * 2**20,
    ) -> None:
        self._producer = producer
        self._windows_topic = windows_topic
        self._deadletter_topic = deadletter_topic
        self._on_failure = on_failure
        self._max_in_flight_bytes = max_in_flight_bytes
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._room = asyncio.Event()
        self._room.set()
        self._deliveries: set[asyncio.Task[None]] = set()
        self.in_flight_bytes = 0
        self.windows = 0  #: acknowledged
        self.window_bytes = 0  #: of these
        self.windows_refused = 0  #: larger than the broker takes, dead-lettered

    async def idle(self) -> None:
        """Wait until everything written is acknowledged."""
        await self._idle.wait()

    async def write_window(
        self,
        window: Window,
        key: bytes | None,
        on_safe: Callable[[], None],
        refused: Callable[[bytes, str], DeadLetter],
    ) -> None:
        """Hand a window to the producer; `on_safe` is called when the broker has it.

        `refused` makes the dead letter of a window that alone is larger than the topic takes, of its bytes and a
        description; only a hit can be, continuous windows are all alike and fit or nothing works.
        """
        await self._room.wait()
        value = encode_window(window)
        self._begin(len(value))

        async def send() -> asyncio.Future[object]:
            future: asyncio.Future[object] = await self._producer.send(self._windows_topic, value, key=key)
            return future

        def on_done(future: asyncio.Future[object]) -> None:
            error = None if future.cancelled() else future.exception()
            if isinstance(error, MessageSizeTooLargeError) and len(value) > BATCH_BYTES:
                refuse(error)
                return
            self._end(len(value))
            if error is not None:
                self._on_failure(error)
            elif not future.cancelled():
                self.windows += 1
                self.window_bytes += len(value)
                on_safe()

        def refuse(error: MessageSizeTooLargeError) -> None:
            self.windows_refused += 1
            detail = (
                f"a window of {len(value)} bytes is more than topic {self._windows_topic} takes ({error}); "
                "raise its max.message.bytes or send shorter hits"
            )
            self._end(len(value))
            self._deliver(refused(value, detail), on_safe)

        try:
            future = await self._persist(send)
        except MessageSizeTooLargeError as error:
            refuse(error)
        else:
            future.add_done_callback(on_done)

    async def write_letter(self, letter: DeadLetter, on_safe: Callable[[], None]) -> None:
        """Hand a dead letter to the producer; `on_safe` is called when the broker has it."""
        await self._room.wait()
        self._deliver(letter, on_safe)

    def _deliver(self, letter: DeadLetter, on_safe: Callable[[], None]) -> None:
        async def run() -> None:
            try:
                await self._persist(lambda: deliver(self._producer, self._deadletter_topic, letter))
            except Exception as error:
                self._on_failure(error)
            else:
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
                # A timeout here says that the message was never queued.
                if not (error.retriable or isinstance(error, KafkaTimeoutError)):
                    raise
                log.warning("cannot write now, waiting", extra={"error": str(error) or type(error).__name__})
                await asyncio.sleep(RETRY_S)

    def _begin(self, size_bytes: int) -> None:
        self._in_flight += 1
        self.in_flight_bytes += size_bytes
        self._idle.clear()
        if self.in_flight_bytes > self._max_in_flight_bytes:
            self._room.clear()

    def _end(self, size_bytes: int) -> None:
        self._in_flight -= 1
        self.in_flight_bytes -= size_bytes
        if not self._in_flight:
            self._idle.set()
        if self.in_flight_bytes <= self._max_in_flight_bytes:
            self._room.set()
