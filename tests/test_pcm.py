from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.live.pcm import (
    SAMPLE_TYPES,
    DatagramCounter,
    Decoder,
    PcmSettings,
    PcmTcp,
    PcmUdp,
    TcpSettings,
    UdpSettings,
)
from producers.live.source import Block, SourceError


@given(
    st.sampled_from(sorted(SAMPLE_TYPES)),
    st.integers(1, 3),
    st.lists(st.integers(0, 40), max_size=12),
    st.integers(0, 60),
)
def test_pieces_of_any_size_give_the_same_samples(kind: Any, channels: int, cuts: list[int], rows: int) -> None:
    rng = np.random.default_rng(0)
    settings = PcmSettings(rate_hz=1_000, channels=channels, sample_type=kind)
    dtype = SAMPLE_TYPES[kind]
    values = rng.integers(0, 255, (rows, channels)) if dtype.kind in "iu" else rng.normal(0, 1, (rows, channels))
    data = values.astype(dtype).tobytes()
    decoder, parts, at = Decoder(settings), [], 0
    for size in [*cuts, len(data)]:
        if (part := decoder.push(data[at : at + size])) is not None:
            parts.append(part)
        at += size
    found = np.concatenate(parts) if parts else np.empty((0, channels))
    assert found.shape == (rows, channels)
    if dtype == np.dtype("u1"):
        assert np.array_equal(found, (values - 128) * 256)
    elif dtype.kind == "i" and dtype.itemsize == 4:
        np.testing.assert_allclose(found, values / 2**31, rtol=1e-6)
    else:
        np.testing.assert_allclose(found, values.astype(dtype), rtol=1e-6)
    assert found.dtype in (np.int16, np.float32) or not parts


async def taken(source: Any, count: int) -> list[Block]:
    blocks = []
    async for block in source.blocks():
        blocks.append(block)
        if sum(len(block.samples) for block in blocks) >= count:
            break
    return blocks


async def test_a_tcp_server_s_samples_come_whole() -> None:
    samples = np.arange(2_000, dtype="<i2").reshape(-1, 2)

    async def serve(reader: Any, writer: Any) -> None:
        data = samples.tobytes()
        for at in range(0, len(data), 333):
            writer.write(data[at : at + 333])
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    source = PcmTcp(TcpSettings(port=port, rate_hz=16_000, channels=2))
    blocks: list[Block] = []

    async def read_on() -> None:
        async for block in source.blocks():
            blocks.append(block)  # noqa: PERF401 - they must be kept when it fails

    with pytest.raises(SourceError, match=rf"127\.0\.0\.1:{port}: the server closed the connection"):
        await read_on()
    assert np.array_equal(np.concatenate([block.samples for block in blocks]), samples)
    server.close()


async def test_a_server_that_is_not_there_or_says_nothing_is_told() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(SourceError, match="does the server listen"):
        await taken(PcmTcp(TcpSettings(port=port, rate_hz=16_000)), 1)
    server = await asyncio.start_server(lambda reader, writer: asyncio.sleep(5), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(SourceError, match=r"silent for 0\.1 s"):
        await taken(PcmTcp(TcpSettings(port=port, rate_hz=16_000, silence_s=0.1)), 1)
    server.close()


async def test_datagrams_that_are_missing_or_late_are_seen_by_their_counter() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    source = PcmUdp(UdpSettings(port=port, rate_hz=16_000, counter="uint32"))

    async def send() -> None:
        await asyncio.sleep(0.05)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            for number in (2**32 - 1, 0, 3, 2, 4):
                out.sendto(number.to_bytes(4, "little") + np.full(10, number % 7, "<i2").tobytes(), ("127.0.0.1", port))

    sending = asyncio.create_task(send())
    async with asyncio.timeout(5):
        blocks = await taken(source, 40)
    await sending
    assert [(int(block.samples[0, 0]), block.lost) for block in blocks] == [
        ((2**32 - 1) % 7, 0),
        (0, 0),
        (3, 20),
        (4, 0),
    ]


async def test_a_datagram_of_the_wrong_size_says_what_to_check() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    reading = asyncio.create_task(taken(PcmUdp(UdpSettings(port=port, rate_hz=16_000, channels=2)), 1))
    await asyncio.sleep(0.05)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.sendto(b"abc", ("127.0.0.1", port))
    with pytest.raises(SourceError, match=r"a datagram of 3 bytes .* multiple of 4: check channels"):
        async with asyncio.timeout(5):
            await reading


def test_a_counter_that_came_twice_is_left_out() -> None:
    counter = DatagramCounter("uint64")
    told = [counter.next(number.to_bytes(8, "little") + b"x") for number in (5, 6, 6, 5, 9)]
    assert told == [(b"x", 0), (b"x", 0), None, None, (b"x", 2)]


def test_standard_input_ends_with_its_writer() -> None:
    program = (
        "import numpy as np\n"
        "from producers.live.pcm import PcmSettings, PcmStdin\n"
        "blocks = list(PcmStdin(PcmSettings(rate_hz=1000)).blocks())\n"
        "print(np.concatenate([block.samples for block in blocks]).sum())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=np.arange(100, dtype="<i2").tobytes(), capture_output=True, check=True
    )
    assert int(done.stdout) == 4_950
