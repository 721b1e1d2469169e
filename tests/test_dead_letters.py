from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from aiokafka import ConsumerRecord
from hypothesis import given
from hypothesis import strategies as st

from stream.dead_letters import (
    MAX_DETAIL_BYTES,
    TRUNCATED_BYTES,
    DeadLetter,
    decode_dead_letter,
    encode_dead_letter,
)
from stream.records import BadRecord

LETTER = DeadLetter(
    component="window-agent",
    reason="crc",
    detail="CRC-32 00000001, the header says 00000002",
    topic="ae.frames",
    partition=3,
    offset=2**40,
    key=b"plant1/pump3/ch0",
    raw=b"\x00\xff" * 40,
    byte_offset=128,
)


@dataclass
class Written:
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


def written(letter: DeadLetter) -> Written:
    key, value, headers = encode_dead_letter(letter)
    return Written(key, value, tuple(headers))


def record(key: bytes | None, value: bytes | None) -> ConsumerRecord:
    return ConsumerRecord("ae.windows", 2, 77, 0, 0, key, value, None, 0, 0, ())


@given(
    st.builds(
        DeadLetter,
        component=st.text(),
        reason=st.text(),
        detail=st.text(max_size=2000),
        topic=st.text(),
        partition=st.integers(0, 2**31 - 1),
        offset=st.integers(0, 2**63 - 1),
        key=st.none() | st.binary(),
        raw=st.binary(),
        byte_offset=st.integers(0, 2**40),
        truncated_from=st.none() | st.integers(0, 2**40),
    )
)
def test_a_dead_letter_reads_back_as_it_was_written(letter):
    assert decode_dead_letter(written(letter)) == letter


def test_the_record_is_the_rejected_bytes_under_the_original_key_and_headers_are_text():
    key, value, headers = encode_dead_letter(LETTER)
    assert (key, value) == (LETTER.key, LETTER.raw)
    assert dict(headers) == {
        "topic": b"ae.frames",
        "partition": b"3",
        "offset": b"1099511627776",
        "byte_offset": b"128",
        "reason": b"crc",
        "detail": LETTER.detail.encode(),
        "component": b"window-agent",
    }


def test_a_letter_of_a_whole_record_takes_its_place_key_and_bytes_from_it():
    letter = DeadLetter.of_record(record(b"\xff", b"raw"), "magic", "no window", component="worker")
    assert letter == DeadLetter("worker", "magic", "no window", "ae.windows", 2, 77, b"\xff", b"raw")


def test_a_record_without_value_makes_an_empty_letter():
    assert DeadLetter.of_record(record(b"k", None), "truncated", "empty", component="worker").raw == b""


@pytest.mark.parametrize("shift", range(10))
def test_a_long_story_is_cut_between_characters(shift):
    detail = "x" * shift + "aé€😀" * 1000
    read = decode_dead_letter(written(replace(LETTER, detail=detail)))
    assert detail.startswith(read.detail)
    assert MAX_DETAIL_BYTES - 4 < len(read.detail.encode()) <= MAX_DETAIL_BYTES


def test_a_story_that_is_no_unicode_does_not_keep_the_letter_from_being_written():
    assert decode_dead_letter(written(replace(LETTER, detail="name \udcff"))).detail == "name ?"


def test_a_truncated_letter_says_how_long_it_was():
    long = replace(LETTER, raw=b"x" * (TRUNCATED_BYTES + 1))
    cut = long.truncated()
    assert (len(cut.raw), cut.truncated_from) == (TRUNCATED_BYTES, TRUNCATED_BYTES + 1)
    assert cut.truncated(10).truncated_from == TRUNCATED_BYTES + 1
    assert decode_dead_letter(written(cut)) == cut


def test_a_letter_that_is_short_enough_is_not_truncated():
    assert LETTER.truncated() is LETTER


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ((), "no header 'component'"),
        (tuple((n, b"?" if n == "offset" else v) for n, v in written(LETTER).headers), "a header is not what"),
        (tuple((n, b"\xff" if n == "reason" else v) for n, v in written(LETTER).headers), "a header is not what"),
    ],
)
def test_a_record_that_is_no_dead_letter_is_named(headers, message):
    with pytest.raises(BadRecord, match=message):
        decode_dead_letter(Written(b"k", b"v", headers))
