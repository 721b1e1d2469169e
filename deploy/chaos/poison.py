"""Messages that are none: what a broken or hostile program might publish, among the sensors' own."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError

from deploy.settings import KafkaSettings
from stream.records import FRAME_MAGIC, WINDOW_MAGIC, Frame, Window, encode_frame, encode_window

CONNECT_S = 120.0


@dataclass(frozen=True, slots=True)
class Poison:
    """One such message, where it was written."""

    topic: str
    partition: int
    offset: int
    value: bytes


async def sprinkle(kafka: KafkaSettings, sensors: Sequence[str], seed: int, each: int = 1) -> list[Poison]:
    """Write `each` of every sort to frames and windows, most of them under the names of real sensors."""
    draw = random.Random(seed)
    written = []
    frame = encode_frame(Frame("x", 0, 0, 0, 0, Fraction(500_000), _noise(draw, 200)))
    window = encode_window(Window("x", 0, 0, 200, Fraction(500_000), 0, Fraction(500_000), _noise(draw, 200)))
    async with _connected(kafka) as producer:
        for topic, sound, magic in (
            (kafka.frames_topic, frame, FRAME_MAGIC),
            (kafka.windows_topic, window, WINDOW_MAGIC),
        ):
            broken = _broken(sound, magic, draw)
            messages = [(draw.choice(sensors).encode(), value) for value in broken for _ in range(each)]
            messages += [(key, sound) for key in (b"\xff\xfe", b"", b"plant\n1", b"x" * 300)]
            draw.shuffle(messages)
            for key, value in messages:
                sent = await producer.send_and_wait(topic, value, key=key)
                written.append(Poison(topic, sent.partition, sent.offset, value))
    return written


@contextlib.asynccontextmanager
async def _connected(kafka: KafkaSettings) -> AsyncIterator[AIOKafkaProducer[bytes, bytes]]:
    """A producer that writes each message once, as soon as there is a broker: it may be broken just now."""
    deadline = time.monotonic() + CONNECT_S
    while True:
        producer = AIOKafkaProducer(acks="all", enable_idempotence=True, **kafka.client_options())
        try:
            await producer.start()
            break
        except KafkaConnectionError:
            await producer.stop()
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.5)
    try:
        yield producer
    finally:
        await producer.stop()


def _broken(sound: bytes, magic: bytes, draw: random.Random) -> list[bytes]:
    spoilt = bytearray(sound)
    spoilt[-draw.randrange(1, 300)] ^= 0x10
    return [
        draw.randbytes(draw.randrange(1, 400)),
        sound[: draw.randrange(1, len(sound))],
        magic,
        bytes(spoilt),  # a CRC that does not fit
        _with(sound, 4, b"\x63"),  # a version of the future
        _with(sound, 5, b"\x09"),  # a sample type that there is not
        b"\x00" * 64,
        b"{}",
    ]


def _with(message: bytes, at: int, changed: bytes) -> bytes:
    return message[:at] + changed + message[at + len(changed) :]


def _noise(draw: random.Random, count: int) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    return np.random.default_rng(draw.getrandbits(32)).integers(-500, 500, count, np.int16)
