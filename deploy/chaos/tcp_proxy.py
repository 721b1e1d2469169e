"""A way between two programs that can be made slow, cut without a word, or reset."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from enum import StrEnum
from typing import Self

from deploy.local_stack.ports import HOST

CHUNK_BYTES = 64 * 1024
SLOW_DELAY_S = 0.15  #: of each piece, each way
SLOW_BYTES_PER_S = 4_000_000  #: of each connection, each way
CONNECT_S = 5.0


class Way(StrEnum):
    """How it is."""

    FREE = "free"
    SLOW = "slow"
    CUT = "cut"  #: connections stay and new ones are taken, but nothing comes through


class TcpProxy:
    """Listens on a port of 127.0.0.1 and passes all on to another. A context manager with a thread of its own.

    Parameters
    ----------
    port
        Where clients connect.
    target
        Host and port that they mean.
    """

    def __init__(self, port: int, target: tuple[str, int]) -> None:
        self.port = port
        self._target = target
        self._way = Way.FREE
        self._passable = asyncio.Event()
        self._passable.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{port}", daemon=True)

    @property
    def address(self) -> str:
        """Host and port, as clients want it."""
        return f"{HOST}:{self.port}"

    def __enter__(self) -> Self:
        """Begin to listen.

        Raises
        ------
        OSError
            If the port cannot be had.
        """
        self._thread.start()
        self._server: asyncio.Server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, HOST, self.port), self._loop
        ).result()
        return self

    def __exit__(self, *exception: object) -> None:
        """Cut everything and stop."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def go(self, way: Way) -> None:
        """From now on like this, for the connections there are as well."""
        self._loop.call_soon_threadsafe(self._go, way)

    def _go(self, way: Way) -> None:
        self._way = way
        self._passable.clear() if way is Way.CUT else self._passable.set()

    def reset(self) -> None:
        """Reset every connection; new ones are taken."""
        self._loop.call_soon_threadsafe(self._reset)

    def _reset(self) -> None:
        for writer in list(self._writers):
            _abort(writer)

    async def _close(self) -> None:
        self._server.close()
        self._reset()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self._passable.wait()
            try:
                async with asyncio.timeout(CONNECT_S):
                    there_reader, there_writer = await asyncio.open_connection(*self._target)
            except (OSError, TimeoutError):
                _abort(writer)  # as if the server itself had refused
                return
            self._writers.add(there_writer)
            try:
                ways = [
                    asyncio.create_task(self._pass_on(reader, there_writer)),
                    asyncio.create_task(self._pass_on(there_reader, writer)),
                ]
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
            finally:
                self._writers.discard(there_writer)
                there_writer.close()
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                await self._passable.wait()
                if self._way is Way.SLOW:
                    await asyncio.sleep(SLOW_DELAY_S + len(data) / SLOW_BYTES_PER_S)
                    await self._passable.wait()
                writer.write(data)
                await writer.drain()


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close with a reset instead of in order."""
    connection = writer.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
