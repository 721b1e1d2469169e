"""A Redis-compatible server of a test's own, a cable that can be cut, and the worker's way with the alert store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from deploy.local_stack.ports import free_port
from deploy.local_stack.valkey import Valkey
from stream.alarms import AlarmRules, advance
from stream.alert_store import AlertStore, SensorChange, StoredSensor
from stream.predictions import Prediction


@contextmanager
def own_server(folder: Path) -> Iterator[Valkey]:
    """A server that the test may restart, flush and reconfigure."""
    folder.mkdir(parents=True, exist_ok=True)
    server = Valkey(folder, folder / "valkey.log", free_port())
    server.start(owned=True)
    server.wait_ready(20)
    try:
        yield server
    finally:
        server.service.stop()


async def work(
    store: AlertStore,
    predictions: Sequence[Prediction],
    rules: AlarmRules,
    remembered: dict[str, StoredSensor] | None = None,
) -> int:
    """What the worker does with the windows of one batch; returns how often somebody else was faster.

    `remembered` is what this worker believes the store to hold: possibly long outdated.
    """
    pending: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        pending.setdefault(prediction.sensor, []).append(prediction)
    states = {} if remembered is None else remembered
    states |= await store.load([sensor for sensor in pending if sensor not in states])
    conflicts = 0
    while pending:
        changes = []
        for sensor, arrived in list(pending.items()):
            state = states[sensor].copy_state()
            before = state.position
            alerts = [alert for prediction in arrived for alert in advance(state, prediction, rules)]
            if state.position == before:
                del pending[sensor]
            else:
                changes.append(SensorChange(states[sensor], state, alerts, latest=arrived[-1]))
        for change, result in zip(changes, await store.apply(changes), strict=True):
            states[change.sensor] = result.stored
            if result.applied:
                del pending[change.sensor]
            else:
                conflicts += 1
    return conflicts


class Cable:
    """Forwards to a server; can swallow its answer to a command, or hold answers back until enough was asked."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self._server_port = port
        self._swallow: bytes | None = None
        self._lose: bytes | None = None
        self._hold: tuple[bytes, int] | None = None
        self.swallowed = 0
        self.meanwhile: Callable[[], Awaitable[object]] | None = None  #: done before a swallowed answer is noticed
        self._writers: set[asyncio.StreamWriter] = set()

    def url(self, database: int = 0) -> str:
        return f"redis://127.0.0.1:{self.port}/{database}"

    def swallow_answer_to(self, command: bytes) -> None:
        """The next connection that sends this command is cut once the server has answered, before the client knows."""
        self._swallow = command

    def lose(self, command: bytes) -> None:
        """The next connection that sends this command is cut before the server gets it."""
        self._lose = command

    def hold_answers_until(self, command: bytes, times: int) -> None:
        """Nothing comes back before the command was sent so often on a connection."""
        self._hold = (command, times)

    async def cut(self) -> None:
        """Cut every connection."""
        for writer in list(self._writers):
            writer.close()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        self._writers |= {writer, to_writer}
        asked = bytearray()
        doomed = asyncio.Event()
        enough = asyncio.Event()

        async def there() -> None:
            end = b""
            while data := await reader.read(65536):
                asked.extend(data)
                if self._swallow is not None and self._swallow in end + data:
                    self._swallow = None
                    doomed.set()
                if self._lose is not None and self._lose in end + data:
                    self._lose = None
                    if self.meanwhile is not None:
                        await self.meanwhile()
                    return
                end = data[-16:]
                if self._hold is not None and asked.count(self._hold[0]) >= self._hold[1]:
                    enough.set()
                to_writer.write(data)
                await to_writer.drain()

        async def back() -> None:
            while data := await to_reader.read(65536):
                if doomed.is_set():
                    self.swallowed += 1
                    if self.meanwhile is not None:
                        await self.meanwhile()
                    return
                if self._hold is not None and self._hold[0] in asked:
                    await enough.wait()
                writer.write(data)
                await writer.drain()

        tasks = [asyncio.create_task(there()), asyncio.create_task(back())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for end in (writer, to_writer):
            self._writers.discard(end)
            end.close()
            with contextlib.suppress(OSError):
                await end.wait_closed()


@asynccontextmanager
async def cable_to(url: str) -> AsyncIterator[Cable]:
    """A cable to the server at this URL, from a port of its own."""
    cable = Cable(urlsplit(url).port or 6379)
    server = await asyncio.start_server(cable.handle, "127.0.0.1", 0)
    cable.port = server.sockets[0].getsockname()[1]
    try:
        yield cable
    finally:
        server.close()
        await cable.cut()
