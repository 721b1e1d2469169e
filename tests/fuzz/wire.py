"""Targets: what comes from Kafka: frames, windows, dead letters, predictions, and messages as the agent reads them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from fractions import Fraction
from types import SimpleNamespace

import msgspec
import numpy as np

from stream.dead_letters import DeadLetter, decode_dead_letter, encode_dead_letter
from stream.frame_partition import FramePartition, PartitionLimits
from stream.ordered_acks import HoldLimits
from stream.predictions import HitFeatures, Prediction, decode_prediction, encode_prediction
from stream.records import (
    FRAME_HEADER,
    FRAME_MAGIC,
    BadRecord,
    Flags,
    Frame,
    Window,
    decode_frames,
    decode_sensor,
    decode_window,
    encode_frame,
    encode_window,
)
from stream.windows import WindowSpec
from tests.fuzz.bytes_reader import Reader, chunked
from tests.fuzz.target import Target

EPOCH_NS = 1_700_000_000_000_000_000


def a_frame(first: int = 0, count: int = 40, *, flags: int = 0, rate: int = 1000, floats: bool = False) -> Frame:
    samples = np.arange(count).astype(np.float32 if floats else np.int16)
    return Frame("s", EPOCH_NS, 3, first, EPOCH_NS, Fraction(rate), samples, 1e-6, Flags(flags))


def frame_seeds() -> list[bytes]:
    frames = [
        a_frame(),
        a_frame(40, 7, floats=True),
        a_frame(100, 30, flags=Flags.HIT),
        a_frame(140, 0, flags=Flags.END),
        a_frame(130, 10, flags=Flags.OVERFLOW, rate=500),
    ]
    raw = [encode_frame(frame) for frame in frames]
    return [*raw, b"".join(raw), raw[0][:50], b"RIFF" + raw[0] + raw[1]]


def with_sound_checksums(message: bytes) -> bytes:
    """So that the fuzzer comes past the CRC, which it could not guess."""
    mended = bytearray(message)
    at = mended.find(FRAME_MAGIC)
    while 0 <= at <= len(mended) - FRAME_HEADER.itemsize:
        (count,) = struct.unpack_from("<I", mended, at + 48)
        begin = at + FRAME_HEADER.itemsize
        end = begin + count * (4 if mended[at + 5] == 2 else 2)
        if end <= len(mended):
            struct.pack_into("<I", mended, at + 52, zlib.crc32(mended[begin:end]))
            at = end - len(FRAME_MAGIC)
        at = mended.find(FRAME_MAGIC, at + len(FRAME_MAGIC))
    return bytes(mended)


def both_ways(seeds: Sequence[bytes]) -> list[bytes]:
    """The first byte says whether checksums are mended."""
    return [bytes([mended]) + seed for seed in seeds for mended in (0, 1)]


def message_of(data: bytes) -> bytes:
    return with_sound_checksums(data[1:]) if data[:1] and data[0] & 1 else data[1:]


def check_frames(data: bytes) -> None:
    message = message_of(data)
    decoded = decode_frames("s", message)
    rejected = {reject.byte_offset: reject for reject in decoded.rejects}
    assert len(rejected) == len(decoded.rejects)
    frames = iter(decoded.frames)
    at = 0
    while at < len(message):
        if (reject := rejected.pop(at, None)) is not None:
            assert reject.raw, "a reject without bytes"
            assert message[at : at + len(reject.raw)] == reject.raw
            assert reject.reason
            assert reject.detail
            at += len(reject.raw)
            continue
        frame = next(frames)
        raw = message[at : at + FRAME_HEADER.itemsize + frame.samples.nbytes]
        at += len(raw)
        again = decode_frames("s", encode_frame(frame))
        assert not again.rejects
        check_same(again.frames[0], frame)
        assert encode_frame(frame)[:40] + encode_frame(frame)[48:] == raw[:40] + raw[48:], "more than the rate differs"
        assert frame.samples.base is not None, "samples were copied"
    assert at == len(message)
    assert next(frames, None) is None
    assert not rejected or not message


def check_same(one: Frame | Window, other: Frame | Window) -> None:
    for name in type(one).__slots__:
        mine, theirs = getattr(one, name), getattr(other, name)
        if name == "samples":
            assert mine.dtype == theirs.dtype
            assert mine.tobytes() == theirs.tobytes()
        else:
            assert mine == theirs, name


def window_seeds() -> list[bytes]:
    def window(samples: np.ndarray, flags: int = 0) -> bytes:
        return encode_window(Window("s", 5, 64, 3, Fraction(44_100), 99, Fraction(16_000), samples, 3e-6, Flags(flags)))

    return [window(np.arange(9, dtype=np.int16)), window(np.arange(5, dtype=np.float32), 8), b"AEWN"]


def check_window(data: bytes) -> None:
    message = data[1:]
    if data[:1] and data[0] & 1 and len(message) >= 72:
        message = message[:56] + struct.pack("<I", zlib.crc32(message[72:])) + message[60:]
    try:
        window = decode_window("s", message)
    except BadRecord:
        return
    check_same(decode_window("s", encode_window(window)), window)
    assert window.samples.base is not None, "samples were copied"


HEADERS = ("topic", "partition", "offset", "byte_offset", "reason", "detail", "component", "truncated_from", "other")


def dead_letter_seeds() -> list[bytes]:
    seeds = []
    for truncated in (None, 900):
        letter = DeadLetter("worker", "crc", "CRC-32 …", "ae.frames", 3, 17, b"key", b"raw", 5, truncated)
        key, value, headers = encode_dead_letter(letter)
        parts = [bytes([HEADERS.index(name)]) + chunked(text) for name, text in headers]
        seeds.append(chunked(key or b"", value) + b"".join(parts))
    return seeds


def check_dead_letter(data: bytes) -> None:
    reader = Reader(data)
    key, value = reader.chunk() or None, reader.chunk() or None
    headers: list[tuple[str, bytes | None]] = []
    while reader:
        name = reader.choice(HEADERS)
        headers.append((name, reader.chunk() or None))  # Kafka knows headers without a value
    try:
        letter = decode_dead_letter(SimpleNamespace(key=key, value=value, headers=headers))  # type: ignore[arg-type]
    except BadRecord:
        return
    again_key, again_value, again_headers = encode_dead_letter(letter)
    again = SimpleNamespace(key=again_key, value=again_value, headers=again_headers)
    assert decode_dead_letter(again) == letter or len(letter.detail.encode()) > 8192  # type: ignore[arg-type]


def a_prediction(**values: object) -> Prediction:
    features = HitFeatures(60.0, 50.0, 10.0, 20.0, 3, 1.0, 2.0, 0.0, False)
    fields: dict[str, object] = {
        "sensor": "s",
        "epoch_ns": 5,
        "start_sample": 64,
        "source_count": 64,
        "time_ns": 6,
        "end_time_ns": 7,
        "source_rate_hz": 1000.0,
        "flags": 0,
        "probabilities": {"rub": 0.9, "quiet": 0.1},
        "unknown_score": 0.5,
        "unknown": False,
        "model_version": "v",
        "features": features,
    }
    return Prediction(**(fields | values))  # type: ignore[arg-type]


def check_prediction(data: bytes) -> None:
    try:
        prediction = decode_prediction(data)
    except msgspec.DecodeError:
        return
    assert decode_prediction(encode_prediction(prediction)) == prediction
    assert len(prediction.position) == 2


KEYS = (b"s", b"", None, b"\xff\xfe", b"a\x00b", b"t" * 201, "pümp/1".encode(), b"t")
LIMITS = PartitionLimits(HoldLimits(5.0, 4096, 5), max_message_bytes=3000, idle_sensors=2, idle_bytes=2000)
#: None that resamples: the filter for each rate that the fuzzer makes up would take half a second.
SPECS = (WindowSpec(16, 8), WindowSpec(16, 16), WindowSpec(8, 24), WindowSpec(1, 1))


def agent_message_seeds() -> list[bytes]:
    seeds = []
    for number, raw in enumerate(frame_seeds()):
        one = bytes([number % 8, number, 1]) + chunked(raw)
        seeds += [bytes([number % 4, 1]) + one, bytes([number % 4, 0]) + one * 3]
    return seeds


def check_agent_messages(data: bytes) -> None:
    """Any keys and values; what comes out can be written, and nothing is committed too early."""
    reader = Reader(data)
    partition = FramePartition("ae.frames", 0, reader.choice(SPECS), LIMITS, start=0)
    mended = reader.number(1) & 1
    offset, now_s, numbers = 0, 0.0, 0
    while reader:
        key = reader.choice(KEYS)
        now_s += reader.number(1) / 16
        step = reader.number(1)
        value: bytes | None = reader.chunk()
        if mended:
            value = with_sound_checksums(value or b"")
        if step == 255:
            value = None
        offset += step % 3
        made = partition.take(offset, key, value, now_s)
        assert [output.number for output in made.outputs] == list(range(numbers, numbers + len(made.outputs)))
        numbers += len(made.outputs)
        for output in made.outputs:
            record = output.record
            if isinstance(record, Window):
                check_same(decode_window(record.sensor, encode_window(record)), record)
            else:
                assert isinstance(record, DeadLetter)
                assert record.raw in (value or b"")
                encode_dead_letter(record)
        committable = partition.acks.committable()
        assert committable is None or committable <= offset + 1
        if step & 4:
            for output in made.outputs:
                partition.acks.safe(output.number)
    counts = partition.counts
    assert not counts.rejects["error"], "a fault of ours"
    assert partition.acks.idle_sensors <= 2
    for key in KEYS:
        if key is not None and len(key) < 5:
            try:
                decode_sensor(key)
            except BadRecord:
                continue


TARGETS = [
    Target(
        "frames",
        "never raises; frames and rejects cover the message; what was read is written the same; nothing is copied",
        check_frames,
        lambda: both_ways(frame_seeds()),
        max_bytes=1024,
    ),
    Target(
        "window", "a window that is written the same, or BadRecord", check_window, lambda: both_ways(window_seeds())
    ),
    Target("dead-letter", "a letter that is written the same, or BadRecord", check_dead_letter, dead_letter_seeds),
    Target(
        "prediction",
        "a prediction that is written the same, or DecodeError",
        check_prediction,
        lambda: [encode_prediction(a_prediction()), b"{}", b'{"sensor":[[[[]]]]}'],
    ),
    Target(
        "agent-messages",
        "any keys and values: never raises, no fault of ours, outputs can be written, no early commit",
        check_agent_messages,
        agent_message_seeds,
        share=0.3,
    ),
]
