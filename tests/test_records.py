from __future__ import annotations

import re
import shutil
import struct
import subprocess
import time
import tracemalloc
import zlib
from collections.abc import Sequence
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from stream.records import (
    FRAME_HEADER,
    FRAME_MAGIC,
    MAX_INDEX,
    WINDOW_HEADER,
    BadRecord,
    Flags,
    Frame,
    Reject,
    Samples,
    Window,
    decode_frames,
    decode_sensor,
    decode_window,
    encode_frame,
    encode_window,
    samples_to_ns,
)

SENSOR = "plant1/pump3/ch0"
DOCUMENT = Path(__file__).parents[1] / "docs" / "records.md"

REASONS = {
    "truncated", "magic", "version", "sample-type", "crc", "rate", "empty", "epoch-ns", "first-sample",
    "start-sample", "time-ns", "scale", "not-finite",
}  # fmt: skip


def frame(samples: Any = (1, -2, 3), **values: Any) -> Frame:
    array: Samples = samples if isinstance(samples, np.ndarray) else np.array(samples, np.int16)
    defaults: dict[str, Any] = {
        "sensor": SENSOR,
        "epoch_ns": 1_700_000_000_000_000_000,
        "sequence": 7,
        "first_sample": 100,
        "time_ns": 1_700_000_000_100_000_000,
        "rate_hz": Fraction(1_000_000),
        "samples": array,
        "volts_per_count": 3e-6,
    }
    return Frame(**(defaults | values))


def window(**values: Any) -> Window:
    defaults: dict[str, Any] = {
        "sensor": SENSOR,
        "epoch_ns": 5,
        "start_sample": 64,
        "source_count": 3,
        "source_rate_hz": Fraction(44_100),
        "time_ns": 99,
        "rate_hz": Fraction(16_000),
        "samples": np.array([1.5, -2.5], np.float32),
        "volts_per_count": 3e-6,
        "flags": Flags.HISTORICAL,
    }
    return Window(**(defaults | values))


def patched(record: bytes, header: np.dtype[Any], **values: Any) -> bytes:
    row = np.frombuffer(record[: header.itemsize], header).copy()
    for name, value in values.items():
        row[name] = value
    return row.tobytes() + record[header.itemsize :]


def bad(**values: Any) -> bytes:
    return patched(encode_frame(frame()), FRAME_HEADER, **values)


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    for item in fields(a):
        mine, theirs = getattr(a, item.name), getattr(b, item.name)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == theirs.dtype
            assert mine.tobytes() == theirs.tobytes()
        else:
            assert mine == theirs, item.name


samples_of_any_kind = st.one_of(
    npst.arrays(np.int16, st.integers(1, 20)),
    npst.arrays(np.float32, st.integers(1, 20), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
)
indices = st.integers(0, MAX_INDEX)
rates = st.fractions(1, 100_000_000, max_denominator=40)
scales = st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False)

any_frame = st.builds(
    Frame,
    sensor=st.just(SENSOR),
    epoch_ns=indices,
    sequence=st.integers(0, 2**64 - 1),
    first_sample=indices,
    time_ns=indices,
    rate_hz=rates,
    samples=samples_of_any_kind,
    volts_per_count=scales,
    flags=st.integers(0, 63).map(Flags),
)
any_window = st.builds(
    Window,
    sensor=st.just(SENSOR),
    epoch_ns=indices,
    start_sample=indices,
    source_count=st.integers(1, 2**32 - 1),
    source_rate_hz=rates,
    time_ns=indices,
    rate_hz=rates,
    samples=samples_of_any_kind,
    volts_per_count=scales,
    flags=st.integers(0, 63).map(Flags),
)


class TestRoundTrips:
    @given(frames=st.lists(any_frame, min_size=1, max_size=5))
    @settings(max_examples=150, deadline=None)
    def test_frames_come_back_as_they_went_several_in_one_message(self, frames: list[Frame]) -> None:
        decoded = decode_frames(SENSOR, b"".join(map(encode_frame, frames)))
        assert decoded.rejects == []
        assert len(decoded.frames) == len(frames)
        for sent, received in zip(frames, decoded.frames, strict=True):
            assert_same(sent, received)

    @given(sent=any_window)
    @settings(max_examples=150, deadline=None)
    def test_windows_come_back_as_they_went(self, sent: Window) -> None:
        assert_same(sent, decode_window(SENSOR, encode_window(sent)))

    def test_an_empty_frame_may_end_an_epoch(self) -> None:
        end = frame([], flags=Flags.END)
        assert_same(decode_frames(SENSOR, encode_frame(end)).frames[0], end)

    def test_decoding_copies_no_samples_and_nobody_can_change_them(self) -> None:
        message = encode_frame(frame(np.arange(1000, dtype=np.int16))) * 3
        for received in decode_frames(SENSOR, message).frames:
            assert np.shares_memory(received.samples, np.frombuffer(message, np.uint8))
            assert not received.samples.flags.writeable
        record = encode_window(window())
        assert np.shares_memory(decode_window(SENSOR, record).samples, np.frombuffer(record, np.uint8))

    def test_strided_samples_are_written_in_order(self) -> None:
        every_other = np.arange(10, dtype=np.int16)[::2]
        received = decode_frames(SENSOR, encode_frame(frame(every_other))).frames[0]
        np.testing.assert_array_equal(received.samples, [0, 2, 4, 6, 8])

    def test_other_sample_types_are_an_error_that_names_the_type(self) -> None:
        with pytest.raises(BadRecord, match="float64"):
            encode_frame(frame(np.zeros(3)))

    @pytest.mark.parametrize(
        ("count", "rate", "ns"), [(1, Fraction(3), 333_333_333), (2**62, Fraction(10**8), 10 * 2**62)]
    )
    def test_durations_are_exact_and_rounded_down(self, count: int, rate: Fraction, ns: int) -> None:
        assert samples_to_ns(count, rate) == ns

    def test_the_end_of_a_window_is_counted_in_the_sensors_samples(self) -> None:
        assert window(source_count=44_100, time_ns=7).end_time_ns == 7 + 10**9


class TestBadFrames:
    GOOD = (encode_frame(frame(np.arange(50, dtype=np.int16))), encode_frame(frame(np.arange(9, dtype=np.float32))))

    @pytest.mark.parametrize(
        ("broken", "reason"),
        [
            (bad(magic=b"XXXX"), "magic"),
            (bad(version=2), "version"),
            (bad(sample_type=3), "sample-type"),
            (bad(payload_crc32=1), "crc"),
            (bad(sample_count=4_000_000_000), "truncated"),
            (bad(sample_count=4), "truncated"),
            (bad(sample_count=2), "crc"),
            (bad(sample_count=0, payload_crc32=0)[: FRAME_HEADER.itemsize], "empty"),
            (bad(rate_numerator=0), "rate"),
            (bad(rate_denominator=0), "rate"),
            (bad(rate_numerator=100_000_001), "rate"),
            (bad(rate_numerator=1, rate_denominator=2), "rate"),
            (bad(epoch_ns=-1), "epoch-ns"),
            (bad(first_sample=2**62 + 1), "first-sample"),
            (bad(time_ns=-(2**63)), "time-ns"),
            (bad(volts_per_count=0), "scale"),
            (bad(volts_per_count=-1), "scale"),
            (bad(volts_per_count=np.nan), "scale"),
            (bad(volts_per_count=np.inf), "scale"),
            (encode_frame(frame(np.array([1, np.nan, 3], np.float32))), "not-finite"),
            (encode_frame(frame(np.array([np.inf, -np.inf], np.float32))), "not-finite"),
            (encode_frame(frame(np.arange(100, dtype=np.int16)))[:-50], "truncated"),
            (encode_frame(frame())[:30], "truncated"),
            (b"\x00", "truncated"),
            (b"{}" * 100, "magic"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_a_bad_frame_is_named_and_the_frames_around_it_survive(self, broken: bytes, reason: str) -> None:
        before, after = self.GOOD
        decoded = decode_frames(SENSOR, before + broken + after)
        assert [(reject.byte_offset, reject.raw) for reject in decoded.rejects] == [(len(before), broken)]
        assert len(decoded.frames) == 2
        np.testing.assert_array_equal(decoded.frames[0].samples, np.arange(50))
        np.testing.assert_array_equal(decoded.frames[1].samples, np.arange(9))
        alone = decode_frames(SENSOR, broken)
        assert alone.rejects[0].reason == reason
        assert alone.frames == []

    def test_rejected_bytes_are_kept_as_they_came_and_nothing_is_lost(self) -> None:
        broken = bad(payload_crc32=1)
        decoded = decode_frames(SENSOR, self.GOOD[0] + broken + self.GOOD[1])
        assert [(r.reason, r.byte_offset, r.raw) for r in decoded.rejects] == [("crc", len(self.GOOD[0]), broken)]

    def test_two_bad_frames_in_a_row_are_two_rejects(self) -> None:
        decoded = decode_frames(SENSOR, bad(payload_crc32=1) + bad(payload_crc32=2) + bad(rate_numerator=0))
        assert [r.reason for r in decoded.rejects] == ["crc", "crc", "rate"]

    def test_an_empty_message_is_a_reject(self) -> None:
        assert [r.reason for r in decode_frames(SENSOR, b"").rejects] == ["truncated"]

    def test_finite_samples_whose_float32_sum_overflows_are_accepted(self) -> None:
        loud = frame(np.full(100, np.finfo(np.float32).max, np.float32))
        assert len(decode_frames(SENSOR, encode_frame(loud)).frames) == 1

    def test_a_lying_sample_count_allocates_nothing(self) -> None:
        message = bad(sample_count=2**32 - 1)
        tracemalloc.start()
        decode_frames(SENSOR, message)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 100_000

    def test_a_message_full_of_false_beginnings_is_given_up_and_not_searched_for_ever(self) -> None:
        liar = bad(payload_crc32=1, sample_count=300_000)[: FRAME_HEADER.itemsize]
        message = liar * 20_000 + self.GOOD[0]
        decoded = decode_frames(SENSOR, message)
        assert b"".join(r.raw for r in decoded.rejects) == message
        assert decode_frames(SENSOR, FRAME_MAGIC * 100_000).frames == []

    @given(
        parts=st.lists(
            st.one_of(
                st.binary(max_size=200),
                any_frame.map(encode_frame),
                st.tuples(any_frame.map(encode_frame), st.integers(0, 1000), st.integers(1, 255)).map(
                    lambda t: (
                        t[0][: t[1] % len(t[0])] + bytes([t[0][t[1] % len(t[0])] ^ t[2]]) + t[0][t[1] % len(t[0]) + 1 :]
                    )
                ),
                st.tuples(any_frame.map(encode_frame), st.integers(0, 1000)).map(lambda t: t[0][: t[1]]),
            ),
            max_size=6,
        )
    )
    @example(parts=[FRAME_MAGIC])
    @settings(max_examples=500, deadline=None)
    def test_no_bytes_make_the_decoder_raise_and_every_byte_is_accounted_for(self, parts: list[bytes]) -> None:
        message = b"".join(parts)
        decoded = decode_frames(SENSOR, message)
        size = sum(FRAME_HEADER.itemsize + f.samples.nbytes for f in decoded.frames)
        assert size + sum(len(r.raw) for r in decoded.rejects) == len(message)
        for reject in decoded.rejects:
            assert isinstance(reject, Reject)
            assert reject.reason in REASONS
            assert message[reject.byte_offset :].startswith(reject.raw)
        for received in decoded.frames:
            assert_same(decode_frames(SENSOR, encode_frame(received)).frames[0], received)


class TestBadWindows:
    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"magic": b"AEFR"}, "magic"),
            ({"version": 9}, "version"),
            ({"sample_type": 0}, "sample-type"),
            ({"payload_crc32": 5}, "crc"),
            ({"sample_count": 4_000_000_000}, "truncated"),
            ({"source_count": 0}, "empty"),
            ({"rate_numerator": 0}, "rate"),
            ({"source_rate_denominator": 0}, "rate"),
            ({"start_sample": -1}, "start-sample"),
            ({"volts_per_count": np.inf}, "scale"),
        ],
    )
    def test_a_bad_window_is_refused_with_its_reason(self, change: dict[str, Any], reason: str) -> None:
        with pytest.raises(BadRecord) as caught:
            decode_window(SENSOR, patched(encode_window(window()), WINDOW_HEADER, **change))
        assert caught.value.reason == reason

    def test_bytes_before_or_after_the_window_are_refused(self) -> None:
        record = encode_window(window())
        for wrong in (record[:-1], record + b"\x00", record[:20], b""):
            with pytest.raises(BadRecord, match="truncated"):
                decode_window(SENSOR, wrong)

    def test_samples_that_are_not_finite_are_refused(self) -> None:
        with pytest.raises(BadRecord, match="sample 1 is nan"):
            decode_window(SENSOR, encode_window(window(samples=np.array([0, np.nan], np.float32))))

    @given(record=st.one_of(st.binary(max_size=300), any_window.map(encode_window)), at=st.integers(0, 400))
    @settings(max_examples=300, deadline=None)
    def test_no_bytes_raise_anything_but_bad_record(self, record: bytes, at: int) -> None:
        changed = record[:at] + bytes([record[at] ^ 0x41]) + record[at + 1 :] if at < len(record) else record
        reason = None
        try:
            decode_window(SENSOR, changed)
        except BadRecord as error:
            reason = error.reason
        assert reason is None or reason in REASONS


class TestSensorIds:
    @given(sensor=st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=50))
    @settings(max_examples=100)
    def test_any_printable_text_is_an_id(self, sensor: str) -> None:
        assert decode_sensor(sensor.encode()) == sensor

    @given(key=st.none() | st.binary(max_size=250))
    @settings(max_examples=300)
    def test_no_key_raises_anything_but_bad_record(self, key: bytes | None) -> None:
        try:
            found = decode_sensor(key).encode()
        except BadRecord as error:
            found = error.reason.encode()
        assert found in (key, b"sensor-id")

    @pytest.mark.parametrize("key", [None, b"", b"\xff\xfe", b"a\nb", b"a\x00", b"x" * 201])
    def test_what_is_no_id_is_refused(self, key: bytes | None) -> None:
        with pytest.raises(BadRecord, match="sensor-id"):
            decode_sensor(key)


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)


def table_rows(section: str) -> list[Sequence[str]]:
    """Cells of the first table under a heading of the document."""
    text = DOCUMENT.read_text()
    body = text[text.index(f"## {section}\n") :]
    table = re.search(r"\n((?:\|.*\n)+)", body)
    assert table is not None
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()[2:]]


class TestTheDocument:
    @pytest.mark.parametrize(("section", "header"), [("Frame", FRAME_HEADER), ("Window", WINDOW_HEADER)])
    def test_its_tables_are_the_layout_in_the_code(self, section: str, header: np.dtype[Any]) -> None:
        names = {"S4": "4 bytes", "|u1": "uint8", "<u2": "uint16", "<u4": "uint32", "<u8": "uint64"}
        names |= {"<i8": "int64", "<f8": "float64", "|S4": "4 bytes"}
        assert header.names is not None
        assert header.fields is not None
        expected = [
            (str(header.fields[name][1]), names[header.fields[name][0].str], f"`{name}`") for name in header.names
        ]
        rows = table_rows(section)
        assert [tuple(row[:3]) for row in rows if row[2] != "samples"] == expected
        assert rows[-1][0] == str(header.itemsize)

    def test_its_flags_are_those_in_the_code(self) -> None:
        assert [(row[0], row[1]) for row in table_rows("Flags")] == [(str(f.value), f"`{f.name}`") for f in Flags]

    def test_its_reasons_are_those_of_the_decoder(self) -> None:
        assert {
            code for row in table_rows("Dead letter reasons") for code in re.findall(r"`(.*?)`", row[0])
        } >= REASONS | {"sensor-id", "late", "too-large"}

    @pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (cc) on this machine")
    def test_its_c_program_compiles_and_writes_a_frame(self, tmp_path: Path) -> None:
        (program,) = code_blocks("c")
        assert len(program.splitlines()) <= 40
        source = tmp_path / "frame.c"
        source.write_text(program)
        compiler = ["cc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-o", str(tmp_path / "frame"), str(source), "-lm"]
        subprocess.run(compiler, check=True, timeout=60)
        message = subprocess.run([tmp_path / "frame"], check=True, capture_output=True, timeout=60).stdout
        before = time.time_ns()
        decoded = decode_frames(SENSOR, message)
        assert decoded.rejects == []
        (received,) = decoded.frames
        expected = np.array([round(1000 * np.sin(0.1 * i)) for i in range(1000)], np.int16)
        np.testing.assert_allclose(received.samples, expected, atol=1)
        assert (received.first_sample, received.sequence, received.rate_hz) == (0, 0, 1_000_000)
        assert received.volts_per_count == 3.05e-6
        assert 0 <= received.epoch_ns == received.time_ns <= before + 10**9

    def test_its_hexadecimal_example_is_the_frame_it_describes(self) -> None:
        (dump,) = code_blocks("text")
        message = bytes.fromhex("".join(line.split("  ")[1] for line in dump.splitlines()))
        (received,) = decode_frames(SENSOR, message).frames
        expected = frame(
            [1, -1, 300], epoch_ns=1_700_000_000_000_000_000, sequence=2, first_sample=3, volts_per_count=0.5
        )
        expected = Frame(
            **{f.name: getattr(expected, f.name) for f in fields(Frame)} | {"time_ns": expected.epoch_ns + 3000}
        )
        assert_same(received, expected)
        assert struct.unpack_from("<I", message, 52)[0] == zlib.crc32(message[64:])

    def test_its_python_examples_are_python(self) -> None:
        blocks = code_blocks("python")
        assert blocks
        for block in blocks:
            compile(block, str(DOCUMENT), "exec")
