from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stream.frame_partition
from stream.dead_letters import DeadLetter
from stream.frame_partition import MAX_LETTERS_PER_MESSAGE, FramePartition, PartitionLimits, Step
from stream.ordered_acks import HoldLimits
from stream.records import Flags, Frame, Window, encode_frame
from stream.windows import SensorWindows, WindowSpec

SPEC = WindowSpec(length=64, hop=32)


def frame(first: int, count: int, *, flags: Flags | None = None) -> Frame:
    samples = np.arange(first, first + count).astype(np.int16)
    return Frame("s", 0, 0, first, 0, Fraction(1000), samples, flags=flags or Flags(0))


def message(*frames: Frame) -> bytes:
    return b"".join(map(encode_frame, frames))


def with_bad_crc(raw: bytes) -> bytes:
    return raw[:-1] + bytes([raw[-1] ^ 1])


def new(limits: PartitionLimits | None = None) -> FramePartition:
    return FramePartition("ae.frames", 3, SPEC, limits)


def windows(step: Step) -> list[int]:
    return [output.record.start_sample for output in step.outputs if isinstance(output.record, Window)]


def letters(step: Step) -> list[DeadLetter]:
    return [output.record for output in step.outputs if isinstance(output.record, DeadLetter)]


def all_safe(partition: FramePartition, step: Step) -> None:
    for output in step.outputs:
        partition.acks.safe(output.number)


def test_windows_are_made_as_messages_complete_them():
    partition = new()
    assert windows(partition.take(0, b"s", message(frame(0, 50)), 0)) == []
    assert windows(partition.take(1, b"s", message(frame(50, 50), frame(100, 30)), 0)) == [0, 32, 64]


def test_a_message_is_committable_when_no_window_needs_it_and_all_that_do_are_safe():
    partition = new()
    partition.take(0, b"s", message(frame(0, 50)), 0)
    step = partition.take(1, b"s", message(frame(50, 14)), 0)
    assert partition.acks.committable() is None
    all_safe(partition, step)
    assert partition.acks.committable() is None, "the window at sample 32 still needs the first message"
    step = partition.take(2, b"s", message(frame(64, 32)), 0)
    all_safe(partition, step)
    assert partition.acks.committable() == 2, "the window at sample 64 needs the third message and none before it"


def test_after_the_end_of_the_epoch_everything_is_committable():
    partition = new()
    partition.take(0, b"s", message(frame(0, 50)), 0)
    partition.take(1, b"s", message(frame(50, 0, flags=Flags.END)), 0)
    assert partition.acks.committable() == 2


def test_a_hit_waits_for_its_own_window_only():
    partition = new()
    step = partition.take(0, b"s", message(frame(0, 10, flags=Flags.HIT)), 0)
    assert partition.acks.committable() is None
    all_safe(partition, step)
    assert partition.acks.committable() == 1


def test_a_bad_frame_is_turned_away_with_its_bytes_and_the_frames_around_it_are_used():
    partition = new()
    good, bad, more = message(frame(0, 64)), with_bad_crc(message(frame(64, 10))), message(frame(64, 32))
    step = partition.take(7, b"s", good + bad + more, 0)
    assert windows(step) == [0, 32]
    (letter,) = letters(step)
    assert (letter.reason, letter.raw, letter.byte_offset) == ("crc", bad, len(good))
    assert (letter.topic, letter.partition, letter.offset, letter.key) == ("ae.frames", 3, 7, b"s")
    assert partition.counts.rejects == Counter(crc=1)


def test_a_late_frame_is_turned_away_with_the_bytes_of_that_frame_alone():
    partition = new()
    first, bad, gap, late = (
        message(frame(0, 64)),
        with_bad_crc(message(frame(64, 1))),
        message(frame(128, 64)),
        message(frame(64, 20)),
    )
    step = partition.take(0, b"s", first + bad + gap + late, 0)
    assert [letter.reason for letter in letters(step)] == ["crc", "late"]
    assert letters(step)[1].raw == late
    assert letters(step)[1].byte_offset == len(first + bad + gap)


def test_frames_sent_again_are_no_dead_letters_for_a_reader_that_took_over():
    first = FramePartition("ae.frames", 0, SPEC)
    taken_over = FramePartition("ae.frames", 0, SPEC, start=7)
    for partition, offset, reasons in ((first, 0, ["late"]), (taken_over, 7, [])):
        partition.take(offset, b"s", message(frame(320, 64)), 0.0)
        again = partition.take(offset + 1, b"s", message(frame(0, 64)), 0.0)
        assert [letter.reason for letter in letters(again)] == reasons


def test_a_message_waits_until_its_dead_letters_are_safe():
    partition = new()
    step = partition.take(0, b"s", b"", 0)
    assert partition.acks.committable() is None
    all_safe(partition, step)
    assert partition.acks.committable() == 1


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (b"\xff\xfe", message(frame(0, 10)), "sensor-id"),
        (None, message(frame(0, 10)), "sensor-id"),
        (b"s", None, "truncated"),
        (b"s", b"AEFR", "truncated"),
        (b"s", b"x" * 100, "magic"),
        (b"s", b"x" * 2000, "too-large"),
    ],
)
def test_what_cannot_be_read_is_turned_away_whole(key, value, reason):
    partition = new(PartitionLimits(max_message_bytes=1000))
    (letter,) = letters(partition.take(0, key, value, 0))
    assert (letter.reason, letter.key, letter.raw) == (reason, key, value or b"")


def test_a_message_of_thousands_of_bad_frames_becomes_few_dead_letters():
    partition = new()
    bad = with_bad_crc(message(frame(0, 1)))
    step = partition.take(0, b"s", bad * 1000, 0)
    assert len(letters(step)) == MAX_LETTERS_PER_MESSAGE + 1
    rest = letters(step)[-1]
    assert rest.reason == "many-rejects"
    assert rest.byte_offset == MAX_LETTERS_PER_MESSAGE * len(bad)
    assert rest.raw == bad * (1000 - MAX_LETTERS_PER_MESSAGE)
    assert partition.counts.rejects == Counter(crc=1000)


@pytest.fixture
def broken_windowing(monkeypatch):
    """Windowing that fails for frames that begin at sample 7."""
    push = SensorWindows.push

    def failing(self: SensorWindows, given: Frame):
        if given.first_sample == 7:
            raise ZeroDivisionError("a fault of ours")
        return push(self, given)

    monkeypatch.setattr(SensorWindows, "push", failing)


@pytest.mark.usefixtures("broken_windowing")
def test_a_message_at_which_our_own_code_fails_is_turned_away_and_the_next_one_is_read():
    partition = new()
    fatal = message(frame(7, 10))
    step = partition.take(0, b"s", message(frame(0, 50)) + fatal + message(frame(50, 14)), 0)
    assert windows(step) == [0]
    (letter,) = letters(step)
    assert (letter.reason, letter.raw) == ("error", fatal)
    assert "ZeroDivisionError: a fault of ours" in letter.detail
    assert "failing" in letter.detail


@pytest.mark.usefixtures("broken_windowing")
def test_a_sensor_at_which_our_own_code_fails_again_begins_anew():
    partition = new()
    partition.take(0, b"s", message(frame(0, 60)), 0)
    steps = [partition.take(offset, b"s", message(frame(7, 10)), 0) for offset in (1, 2)]
    assert partition.counts.sensors_reset == 1
    for step in steps:
        all_safe(partition, step)
    assert partition.acks.committable() == 3
    assert windows(partition.take(3, b"s", message(frame(60, 100)), 0)) == [64, 96]


def test_a_fault_in_reading_a_message_does_not_keep_the_next_one_from_being_read(monkeypatch):
    partition = new()
    with monkeypatch.context() as broken:
        broken.setattr(stream.frame_partition, "decode_frames", lambda *_: 1 / 0)
        (letter,) = letters(partition.take(0, b"s", message(frame(0, 64)), 0))
    assert (letter.reason, letter.raw) == ("error", message(frame(0, 64)))
    assert windows(partition.take(1, b"s", message(frame(0, 64)), 0)) == [0]


def test_a_message_that_is_delivered_again_is_ignored():
    partition = new()
    partition.take(5, b"s", message(frame(0, 64)), 0)
    step = partition.take(5, b"s", message(frame(0, 64)), 0)
    assert step.outputs == []
    assert partition.counts.redelivered == 1
    assert partition.counts.windows.duplicates == 0


def test_of_too_many_idle_sensors_the_longest_idle_is_forgotten():
    partition = new(PartitionLimits(idle_sensors=2))
    steps = [
        partition.take(offset, f"s{offset}".encode(), message(frame(0, 10, flags=Flags.HIT)), 0) for offset in range(4)
    ]
    assert [step.forgotten for step in steps] == [(), (), ("s0",), ("s1",)]
    counts = partition.counts
    assert (counts.sensors, counts.sensors_forgotten, counts.windows.hit_windows) == (2, 2, 4)


def test_samples_of_sensors_that_died_in_mid_window_are_dropped_when_they_are_too_many():
    body = message(frame(0, 63))
    limits = PartitionLimits(hold=HoldLimits(messages=10), idle_bytes=5 * len(body))
    partition = new(limits)
    for offset in range(100):
        partition.take(offset, f"s{offset}".encode(), body, 0)
        assert partition.acks.idle_bytes <= limits.idle_bytes
    assert partition.counts.sensors <= 10 + 5
    assert partition.acks.committable() == 90


def test_a_sensor_whose_hold_was_given_up_still_gets_its_window_when_it_speaks_again():
    partition = new(PartitionLimits(hold=HoldLimits(messages=1)))
    partition.take(0, b"s", message(frame(0, 63)), 0)
    assert partition.take(1, b"other", b"", 0).given_up == ("s",)
    assert windows(partition.take(2, b"s", message(frame(63, 1)), 0)) == [0]


def test_counts_of_several_partitions_add_up():
    total = new().counts
    for partition in (new(), new()):
        partition.take(0, b"s", message(frame(0, 64)), 0)
        partition.take(1, b"s", b"", 0)
        total.add(partition.counts)
    assert (total.messages, total.windows.windows, total.sensors) == (4, 2, 2)
    assert total.rejects == Counter(truncated=2)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([b"a", b"b", b"\xff", None]), st.binary(max_size=200)), max_size=30),
    st.binary(max_size=300),
)
def test_whatever_comes_every_message_is_accounted_for(hostile, tail):
    partition = new()
    good = message(frame(0, 64))
    for offset, (key, value) in enumerate(hostile):
        all_safe(partition, partition.take(offset, key, value, 0))
    step = partition.take(len(hostile), b"good", good + tail, 0)
    assert windows(step)[0] == 0
    all_safe(partition, step)
    partition.take(len(hostile) + 1, b"good", message(frame(1000, 0, flags=Flags.END)), 0)
    assert partition.acks.outputs_pending == 0
    assert partition.acks.committable() == len(hostile) + 2
    assert partition.counts.dead_letters >= len(hostile)
