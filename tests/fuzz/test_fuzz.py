"""Every target on its seeds and on thousands of damaged ones; `python -m tests.fuzz` goes on from here for millions."""

from __future__ import annotations

import importlib.util
import json
import time
from fractions import Fraction
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from producers.spool import Spool, SpoolSettings, encode_record
from stream.alarm_state import BadState, decode_state
from stream.alerts import decode_alert
from stream.frame_partition import MAX_LETTERS_PER_MESSAGE, MAX_RATES_PER_MESSAGE, FramePartition
from stream.model_board import _orders, _read_report
from stream.records import Flags, Frame, encode_frame
from stream.sensor_summary import read_summary
from stream.subscribe import _Reading
from stream.windows import SensorWindows, WindowSpec
from tests.fuzz.__main__ import main
from tests.fuzz.targets import TARGETS

#: What takes milliseconds is tried less often.
EXAMPLES = {"settings": 40, "spool": 60, "producer-pages": 25, "role-pages": 25}


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A seed, some bytes changed, a piece left out, taken from another or put in."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        size = draw(st.integers(0, 8))
        data[at : at + size] = draw(st.one_of(st.binary(max_size=8), st.binary(min_size=size, max_size=size)))
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_the_promise_holds_for_valid_input_and_for_nothing(name: str) -> None:
    for seed in (*TARGETS[name].seeds(), b""):
        TARGETS[name].run(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_the_promise_holds_for_damaged_input(name: str) -> None:
    target = TARGETS[name]
    seeds = list(target.seeds())

    @settings(
        max_examples=EXAMPLES.get(name, 120), deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.one_of(damaged(seeds), st.binary(max_size=200)))
    def holds(data: bytes) -> None:
        target.run(data)

    holds()


# What fuzzing has found.


@pytest.mark.parametrize("text", [b'{"id":"\xff"}', b'{"x":' + b"[" * 100_000], ids=["not UTF-8", "nested without end"])
def test_a_text_that_breaks_the_json_decoder_is_no_alert_and_no_state(text: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_alert(text)
    with pytest.raises(BadState):
        decode_state(text, "s")
    assert _Reading(None).take(b"1-0", {b"alert": text, b"n": b"1"}) is None


def test_a_number_with_thousands_of_digits_does_not_stop_a_reader_of_the_stream_or_the_board() -> None:
    digits = b"9" * 5000
    assert _Reading(None).take(b"1-0", {b"n": digits}) is None
    assert _orders({b"generation": digits}).live is None
    assert _read_report("w", {b"windows": digits}).windows == 0


def test_a_field_of_the_board_that_is_no_text_or_no_outcome_is_passed_over() -> None:
    assert _orders({b"generation": b"5", b"name": b"\xff"}).live is not None
    assert _read_report("w", {b"generation": b"5", b"outcome": b"married"}).answer is None
    assert _read_report("w", {b"generation": b"5"}).answer is None


def test_one_broken_sensor_does_not_hide_the_others() -> None:
    summary = read_summary("s", {b"windows": b"many", b"label": b"\xff", b"open": b"[", b"shelved": b'["a"]'})
    assert (summary.windows, summary.open, summary.shelved) == (0, (), ("a",))


def test_a_copy_of_a_record_in_a_segment_of_the_spool_is_not_read_again(tmp_path: Path) -> None:
    third, fourth = encode_record(3, 3, b"s", b"frame"), encode_record(3, 4, b"s", b"frame")
    (tmp_path / f"{3:020d}.spool").write_bytes(third + third + fourth)
    with Spool(tmp_path, SpoolSettings(2**20, "block")) as spool:
        assert spool.pending_frames == 2
        assert [[one.number for one in spool.read(1)] for _ in range(3)] == [[3], [4], []]


def test_a_sensor_far_slower_than_the_model_is_refused_before_it_costs_minutes() -> None:
    began = time.process_time()
    windows = SensorWindows("s", WindowSpec(16_000, 8000, Fraction(16_000)))
    pushed = windows.push(Frame("s", 0, 0, 0, 0, Fraction(2), np.zeros(1000, np.int16)))
    assert (pushed.rejected or "").startswith("rate: ")
    assert time.process_time() - began < 1


def test_a_message_with_many_sample_rates_costs_a_few_filters_and_no_more() -> None:
    frames = [
        Frame("s", 0, 0, 100 * number, 0, Fraction(16_000 * 101, 102 + number), np.zeros(100, np.int16))
        for number in range(500)
    ]
    partition = FramePartition("ae.frames", 0, WindowSpec(16_000, 8000, Fraction(16_000)))
    step = partition.take(0, b"s", b"".join(map(encode_frame, frames)), 0.0)
    assert partition.counts.rejects == {"rate": 500 - MAX_RATES_PER_MESSAGE}
    assert len(step.outputs) == MAX_LETTERS_PER_MESSAGE + 1


@pytest.mark.parametrize("kind", ["epochs that end at once", "hits of one sample", "gaps", "magics", "nothing sound"])
def test_the_largest_message_takes_seconds_at_worst(kind: str) -> None:
    flags = {"epochs that end at once": Flags.END, "hits of one sample": Flags.HIT}.get(kind, Flags(0))
    samples = np.zeros(1, np.int16)

    def one(number: int) -> bytes:
        epoch = number if flags == Flags.END else 0
        return encode_frame(Frame("s", epoch, 0, 3 * number, 0, Fraction(1000), samples, flags=flags))

    size = 16 * 2**20
    message = {"magics": b"AEFR" * (size // 4), "nothing sound": bytes(size)}.get(kind)
    if message is None:
        frames = b"".join(map(one, range(30_000)))
        message = (frames * (size // len(frames) + 1))[:size]
    partition = FramePartition("ae.frames", 0, WindowSpec(16, 8))
    began = time.process_time()
    partition.take(0, b"s", message, 0.0)
    assert time.process_time() - began < 8
    assert not partition.counts.rejects["error"]


# The runner.


def test_the_runner_says_what_a_target_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("atheris")
    status = main(["cursor", "--executions", "2000", "--json", str(tmp_path / "report.json")])
    said = capsys.readouterr()
    assert status == 0, said.out + said.err
    (report,) = json.loads((tmp_path / "report.json").read_text())
    assert report["target"] == "cursor"
    assert report["executions"] >= 2000
    assert report["edges"] > 0
    assert report["rss_last_mb"] > 0
    assert "cursor" in said.out


def test_an_input_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"1-2")
    assert main(["cursor", "--replay", str(path)]) == 0
    assert "holds" in capsys.readouterr().out


def test_an_unknown_target_is_told_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kursor"]) == 2
    assert "cursor" in capsys.readouterr().err


def test_without_atheris_the_runner_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["cursor"]) == 2
    assert "pip install atheris" in capsys.readouterr().err
