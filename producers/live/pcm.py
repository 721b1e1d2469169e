"""Raw samples, channels interleaved, from standard input, a TCP connection or UDP datagrams."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from producers.live.source import Block, SourceError, SourceSettings

#: What may be declared. What is no int16 becomes float32, full scale at ±1.
SAMPLE_TYPES: dict[str, np.dtype[Any]] = {
    "int16": np.dtype("<i2"),
    "int16_be": np.dtype(">i2"),
    "int32": np.dtype("<i4"),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
    "uint8": np.dtype("u1"),
}
READ_S = 0.02
MOST_READ_BYTES = 1 << 20
LARGEST_DATAGRAM = 65_535
WAITING_DATAGRAMS = 1_000


class PcmSettings(SourceSettings):
    """What the bytes are; they do not say it themselves."""

    rate_hz: Annotated[float, Field(ge=1, le=100_000_000, description="samples a second and channel")]
    channels: Annotated[int, Field(ge=1, le=1_000)] = 1
    sample_type: Literal["int16", "int16_be", "int32", "float32", "float64", "uint8"] = "int16"


class StdinSettings(PcmSettings):
    """Of standard input; there is one."""

    def claim(self) -> str:
        """All of it."""
        return "standard input"


class TcpSettings(PcmSettings):
    """Of a server to connect to."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65_535)]
    silence_s: Annotated[float, Field(gt=0)] = 10.0  #: without a byte for so long, the connection is made anew


class UdpSettings(PcmSettings):
    """Of a port to listen on."""

    host: str = "127.0.0.1"  #: address to listen at; 0.0.0.0 is all of this machine's
    port: Annotated[int, Field(ge=1, le=65_535)]
    counter: Literal["none", "uint32", "uint64"] = "none"  #: little-endian number of the datagram at its beginning

    def claim(self) -> str:
        """The port."""
        return f"UDP port {self.host}:{self.port}"


class Decoder:
    """Bytes in pieces of any size into blocks of whole samples of all channels."""

    def __init__(self, settings: PcmSettings) -> None:
        self._dtype = SAMPLE_TYPES[settings.sample_type]
        self._channels = settings.channels
        self.row_bytes = self._dtype.itemsize * settings.channels
        self._rest = b""

    def push(self, data: bytes) -> npt.NDArray[Any] | None:
        """(n, channels), int16 or float32; None while not even one sample of each channel is there."""
        data = self._rest + data if self._rest else data
        whole = len(data) - len(data) % self.row_bytes
        self._rest = data[whole:]
        return self.rows(data[:whole]) if whole else None

    def rows(self, data: bytes) -> npt.NDArray[Any]:
        """Of whole rows."""
        samples = np.frombuffer(data, self._dtype).reshape(-1, self._channels)
        if self._dtype.kind == "i" and self._dtype.itemsize == 2:
            return samples.astype(np.int16)
        if self._dtype.kind == "i":
            return (samples * 2.0**-31).astype(np.float32)
        if self._dtype.kind == "u":
            return (samples.astype(np.int16) - 128) * np.int16(256)
        with np.errstate(over="ignore"):  # infinite ones count as lost further on
            return samples.astype(np.float32)


class PcmStdin:
    """`some-program | aewatch produce …`: ends with the input."""

    Settings: ClassVar[type[SourceSettings]] = StdinSettings

    def __init__(self, settings: StdinSettings) -> None:
        self.rate_hz, self.channels = Fraction(settings.rate_hz), settings.channels
        self._settings = settings

    def blocks(self) -> Iterator[Block]:
        """As they come; a block holds about 20 ms or what there is."""
        decoder = Decoder(self._settings)
        size = _read_bytes(decoder, self._settings)
        while data := os.read(sys.stdin.fileno(), size):  # what there is, not waiting for all of it
            if (samples := decoder.push(data)) is not None:
                yield Block(samples)


class PcmTcp:
    """Connects to a server that sends samples; a closed connection is tried again, as a new epoch."""

    Settings: ClassVar[type[SourceSettings]] = TcpSettings

    def __init__(self, settings: TcpSettings) -> None:
        self.rate_hz, self.channels = Fraction(settings.rate_hz), settings.channels
        self._settings = settings

    async def blocks(self) -> AsyncIterator[Block]:
        """As they come."""
        settings = self._settings
        decoder = Decoder(settings)
        where = f"{settings.host}:{settings.port}"
        try:
            async with asyncio.timeout(settings.silence_s):
                reader, writer = await asyncio.open_connection(settings.host, settings.port)
        except (OSError, TimeoutError) as error:
            raise SourceError(f"{where}: no connection: {error or 'no answer'}; does the server listen?") from error
        try:
            while True:
                try:
                    async with asyncio.timeout(settings.silence_s):
                        data = await reader.read(_read_bytes(decoder, settings))
                except TimeoutError as error:
                    raise SourceError(f"{where}: silent for {settings.silence_s:g} s") from error
                except OSError as error:
                    raise SourceError(f"{where}: the connection broke: {error}") from error
                if not data:
                    raise SourceError(f"{where}: the server closed the connection")
                if (samples := decoder.push(data)) is not None:
                    yield Block(samples)
        finally:
            writer.close()


class PcmUdp:
    """Listens for datagrams of whole samples. With a counter at their beginning losses are seen and their place kept.

    Datagrams without a counter that are lost shorten the time; prefer one, or TCP.
    """

    Settings: ClassVar[type[SourceSettings]] = UdpSettings

    def __init__(self, settings: UdpSettings) -> None:
        self.rate_hz, self.channels = Fraction(settings.rate_hz), settings.channels
        self._settings = settings

    async def blocks(self) -> AsyncIterator[Block]:
        """One for each datagram, in the order of their counters; late ones are dropped, as their place was given up."""
        settings = self._settings
        where = f"{settings.host}:{settings.port}"
        waiting: asyncio.Queue[bytes] = asyncio.Queue(WAITING_DATAGRAMS)
        try:
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: _Datagrams(waiting), local_addr=(settings.host, settings.port)
            )
        except OSError as error:
            raise SourceError(f"{where}: cannot be listened on: {error}; is the port taken?") from error
        decoder = Decoder(settings)
        counted = DatagramCounter(settings.counter)
        try:
            while True:
                place = counted.next(await waiting.get())
                if place is None:
                    continue
                data, missing = place
                if not data or len(data) % decoder.row_bytes:
                    raise SourceError(
                        f"{where}: a datagram of {len(data)} bytes of samples; {settings.channels} channels of "
                        f"{settings.sample_type} take a multiple of {decoder.row_bytes}: check channels, sample_type, "
                        "and counter"
                    )
                samples = decoder.rows(data)
                yield Block(samples, lost=missing * len(samples))
        finally:
            transport.close()


class DatagramCounter:
    """Takes the number off datagrams and tells how many are missing before each."""

    def __init__(self, kind: Literal["none", "uint32", "uint64"]) -> None:
        self._bytes = {"none": 0, "uint32": 4, "uint64": 8}[kind]
        self._expected: int | None = None

    def next(self, datagram: bytes) -> tuple[bytes, int] | None:
        """The samples' bytes and the datagrams missing before them; None for one that is late or came twice."""
        if not self._bytes:
            return datagram, 0
        number = int.from_bytes(datagram[: self._bytes], "little")
        span = 1 << (8 * self._bytes)
        ahead = 0 if self._expected is None else (number - self._expected) % span
        if ahead >= span // 2:
            return None
        self._expected = (number + 1) % span
        return datagram[self._bytes :], ahead


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, waiting: asyncio.Queue[bytes]) -> None:
        self._waiting = waiting

    def datagram_received(self, data: bytes, addr: object) -> None:
        if self._waiting.full():  # as the kernel would: the counter shows it
            return
        self._waiting.put_nowait(data)


def _read_bytes(decoder: Decoder, settings: PcmSettings) -> int:
    rows = max(1, int(READ_S * settings.rate_hz))
    return min(MOST_READ_BYTES, rows * decoder.row_bytes)
