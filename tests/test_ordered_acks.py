from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.ordered_acks import HoldLimits, OrderedAcks

NO_LIMITS = HoldLimits(silence_s=1e9, size_bytes=2**60, messages=2**60)


def held(acks: OrderedAcks, offset: int, sensor: str, end: int, needed_from: int, outputs: int = 0, now_s: float = 0.0):
    return acks.take(
        offset, 100, now_s=now_s, outputs=outputs, sensor=sensor, end=(0, end), needed_from=(0, needed_from)
    )


def test_nothing_is_committable_before_the_first_message():
    assert OrderedAcks(NO_LIMITS).committable() is None


def test_a_message_of_which_nothing_was_made_is_committable_at_once():
    acks = OrderedAcks(NO_LIMITS)
    acks.take(41, 10, now_s=0, outputs=0)
    assert acks.committable() == 42


def test_a_message_waits_until_its_outputs_are_safe():
    acks = OrderedAcks(NO_LIMITS)
    first, second = acks.take(5, 10, now_s=0, outputs=2).outputs
    acks.safe(second)
    assert acks.committable() is None
    acks.safe(first)
    assert acks.committable() == 6


def test_a_message_whose_samples_are_needed_waits_for_the_window_that_a_later_message_completes():
    acks = OrderedAcks(NO_LIMITS)
    held(acks, 0, "a", end=50, needed_from=0)
    held(acks, 1, "a", end=100, needed_from=50, outputs=1)
    assert acks.committable() is None
    acks.safe(0)
    assert acks.committable() == 1


def test_acks_go_strictly_in_offset_order():
    acks = OrderedAcks(NO_LIMITS)
    held(acks, 37, "slow", end=50, needed_from=0)
    for offset in (38, 39):
        acks.take(offset, 10, now_s=0, outputs=0, sensor="quick", end=(0, offset), needed_from=(0, offset))
    assert acks.committable() is None
    held(acks, 40, "slow", end=100, needed_from=100)
    assert acks.committable() == 41


def test_offsets_that_never_come_do_not_hold_up_the_commit():
    acks = OrderedAcks(NO_LIMITS)
    for offset in (3, 7, 20):
        acks.take(offset, 10, now_s=0, outputs=0)
    assert acks.committable() == 21
    assert acks.skipped_offsets == 3 + 12


def test_an_offset_is_taken_once():
    acks = OrderedAcks(NO_LIMITS)
    acks.take(7, 10, now_s=0, outputs=0)
    assert not acks.is_new(7)
    with pytest.raises(ValueError, match="offset 7 was taken before, the next one is 8"):
        acks.take(7, 10, now_s=0, outputs=0)


def test_the_end_of_an_epoch_lets_everything_of_it_go():
    acks = OrderedAcks(NO_LIMITS)
    held(acks, 0, "a", end=50, needed_from=0)
    acks.take(1, 10, now_s=0, outputs=0, sensor="a", needed_from=(1, 0))
    assert acks.committable() == 2


def test_a_sensor_that_falls_silent_holds_the_commit_no_longer_than_the_limit():
    acks = OrderedAcks(HoldLimits(silence_s=10))
    held(acks, 0, "dead", end=50, needed_from=0)
    given_up = []
    for second in range(1, 13):
        taken = acks.take(second, 10, now_s=second, outputs=0)
        given_up += taken.given_up
        assert acks.committable() == (None if second <= 10 else second + 1)
    assert given_up == ["dead"]
    assert acks.holds_given_up == 1


def test_time_in_which_nothing_was_read_is_no_silence():
    acks = OrderedAcks(HoldLimits(silence_s=10))
    held(acks, 0, "a", end=50, needed_from=0, now_s=0)
    taken = held(acks, 1, "b", end=50, needed_from=0, now_s=3600)
    assert not taken.given_up
    assert acks.committable() is None


def test_a_sensor_that_goes_on_speaking_holds_the_commit_for_as_long_as_its_window_takes():
    acks = OrderedAcks(HoldLimits(silence_s=10))
    for second in range(100):
        assert not held(acks, second, "slow", end=second + 1, needed_from=0, now_s=second).given_up
    assert acks.committable() is None


@pytest.mark.parametrize("limits", [HoldLimits(size_bytes=1000), HoldLimits(messages=10)])
def test_a_hold_is_given_up_when_a_restart_would_have_to_read_too_much_again(limits):
    acks = OrderedAcks(limits)
    held(acks, 0, "dead", end=50, needed_from=0)
    given_up = [acks.take(offset, 100, now_s=0, outputs=0).given_up for offset in range(1, 12)]
    assert given_up.count(("dead",)) == 1
    assert acks.committable() == 12


def test_a_hold_that_was_given_up_still_waits_for_outputs_that_are_not_safe():
    acks = OrderedAcks(HoldLimits(messages=1))
    held(acks, 0, "dead", end=50, needed_from=0, outputs=1)
    assert acks.take(1, 10, now_s=0, outputs=0).given_up == ("dead",)
    assert acks.committable() is None
    acks.safe(0)
    assert acks.committable() == 2


def test_a_sensor_that_speaks_again_after_its_hold_was_given_up_holds_again():
    acks = OrderedAcks(HoldLimits(messages=2))
    held(acks, 0, "a", end=50, needed_from=0)
    acks.take(1, 10, now_s=0, outputs=0)
    acks.take(2, 10, now_s=0, outputs=0)
    assert acks.committable() == 3
    held(acks, 3, "a", end=80, needed_from=0)
    assert acks.committable() == 3
    held(acks, 4, "a", end=120, needed_from=80, outputs=1)
    assert acks.committable() == 3
    acks.safe(0)
    assert acks.committable() == 4


def test_sensors_without_a_hold_are_idle_longest_first_with_the_bytes_kept_for_them():
    acks = OrderedAcks(HoldLimits(messages=2))
    held(acks, 0, "dead", end=50, needed_from=0)
    acks.take(1, 10, now_s=0, outputs=0, sensor="hits")
    acks.take(2, 10, now_s=0, outputs=0, sensor="other")
    held(acks, 3, "busy", end=50, needed_from=0)
    assert acks.idle_sensors == 3
    assert acks.longest_idle == "hits"
    assert acks.idle_bytes == 100
    held(acks, 4, "dead", end=60, needed_from=0)
    assert acks.idle_sensors == 2
    assert acks.idle_bytes == 0


def test_forgetting_a_sensor_lets_its_messages_go():
    acks = OrderedAcks(NO_LIMITS)
    held(acks, 0, "a", end=50, needed_from=0)
    acks.forget("a")
    acks.forget("never heard of")
    assert acks.committable() == 1
    assert acks.idle_sensors == 0


def test_what_is_remembered_of_sensors_does_not_grow_with_the_messages():
    acks = OrderedAcks(NO_LIMITS)
    for offset in range(1000):
        taken = held(acks, offset, f"s{offset % 3}", end=offset, needed_from=offset, outputs=1)
        acks.safe(taken.outputs[0])
        acks.committable()
    assert acks.messages_pending == 0
    assert acks.outputs_pending == 0
    assert acks.idle_sensors == 3
    assert acks.idle_bytes == 0


@dataclass
class Reader:
    """A window agent reduced to its counting: messages of so many samples, windows on a grid, one ledger."""

    length: int
    hop: int
    acks: OrderedAcks
    ends: dict[str, int] = field(default_factory=dict)
    next_window: dict[str, int] = field(default_factory=dict)
    outputs: dict[int, tuple[str, int]] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)

    @property
    def pending(self) -> list[int]:
        return sorted(set(self.outputs) - self.done)

    def acknowledge(self, number: int) -> tuple[str, int]:
        self.done.add(number)
        self.acks.safe(number)
        return self.outputs[number]

    def read(self, offset: int, sensor: str, start: int, count: int) -> None:
        end = start + count
        if sensor not in self.ends:
            self.next_window[sensor] = -(-start // self.hop) * self.hop
        self.ends[sensor] = end
        made = []
        while self.next_window[sensor] + self.length <= end:
            made.append((sensor, self.next_window[sensor]))
            self.next_window[sensor] += self.hop
        taken = self.acks.take(
            offset,
            count,
            now_s=float(offset),
            outputs=len(made),
            sensor=sensor,
            end=(0, end),
            needed_from=(0, self.next_window[sensor]),
        )
        self.outputs |= dict(zip(taken.outputs, made, strict=True))


messages = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 40)), min_size=1, max_size=60)


def on_the_log(drawn: list[tuple[str, int]]) -> list[tuple[int, str, int, int]]:
    ends: dict[str, int] = {}
    log = []
    for offset, (sensor, count) in enumerate(drawn):
        start = ends.get(sensor, 0)
        ends[sensor] = start + count
        log.append((offset, sensor, start, count))
    return log


def all_windows(log: list[tuple[int, str, int, int]], length: int, hop: int) -> set[tuple[str, int]]:
    reader = Reader(length, hop, OrderedAcks(NO_LIMITS))
    for message in log:
        reader.read(*message)
    return set(reader.outputs.values())


@settings(max_examples=300, deadline=None)
@given(
    messages,
    st.integers(1, 60),
    st.integers(1, 60),
    st.randoms(use_true_random=False),
    st.lists(st.integers(0, 60), max_size=4),
)
def test_whenever_the_process_dies_the_next_one_finds_every_window_that_is_not_safe(drawn, length, hop, random, deaths):
    log = on_the_log(drawn)
    safe: set[tuple[str, int]] = set()
    committed = 0
    for death in [*deaths, None]:
        reader = Reader(length, hop, OrderedAcks(NO_LIMITS))
        for message in log[committed : None if death is None else committed + death]:
            reader.read(*message)
            while reader.pending and random.random() < 0.7:
                safe.add(reader.acknowledge(random.choice(reader.pending)))
            offset = reader.acks.committable()
            assert offset is None or offset >= committed
            committed = committed if offset is None else offset
        if death is None:
            safe.update(map(reader.acknowledge, reader.pending))
    assert safe == all_windows(log, length, hop)


@settings(max_examples=200, deadline=None)
@given(messages, st.integers(1, 60), st.integers(1, 60), st.integers(1, 8))
def test_whatever_sensors_do_a_restart_reads_no_more_messages_than_the_limit(drawn, length, hop, limit):
    acks = OrderedAcks(HoldLimits(messages=limit))
    reader = Reader(length, hop, acks)
    for message in on_the_log(drawn):
        reader.read(*message)
        for number in reader.pending:
            reader.acknowledge(number)
        committed = acks.committable() or 0
        assert message[0] + 1 - committed <= limit


@settings(max_examples=200, deadline=None)
@given(messages, st.integers(1, 60), st.integers(1, 60), st.integers(1, 8))
def test_giving_up_a_hold_changes_no_window_while_the_process_lives(drawn, length, hop, limit):
    log = on_the_log(drawn)
    reader = Reader(length, hop, OrderedAcks(HoldLimits(messages=limit)))
    for message in log:
        reader.read(*message)
    assert set(reader.outputs.values()) == all_windows(log, length, hop)
