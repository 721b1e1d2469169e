from __future__ import annotations

from aiokafka import TopicPartition

from deploy.chaos.progress import Stage, Standing, recovered_after_s

ONE, TWO = TopicPartition("windows", 0), TopicPartition("windows", 1)

WORKERS = Stage("windows")
AGENTS = Stage("frames", output="windows")
FRAMES = TopicPartition("frames", 0)


def standing(at_s: float, one: int, two: int, ends: tuple[int, int] = (100, 100)) -> Standing:
    return Standing(at_s, {ONE: one, TWO: two}, {ONE: ends[0], TWO: ends[1]})


def test_the_time_to_recover_lasts_until_the_last_partition_that_stood_still_moves() -> None:
    noted = [standing(0, 5, 5), standing(1, 6, 6), standing(2, 6, 7), standing(8, 6, 9), standing(9, 7, 10)]
    assert recovered_after_s(noted, 1.5, [WORKERS]) == 7.5


def test_a_partition_in_which_nothing_waits_does_not_stand_still() -> None:
    noted = [standing(second, 6, 6, ends=(6, 6)) for second in range(10)]
    assert recovered_after_s(noted, 1.5, [WORKERS]) == 0.0


def test_one_that_never_moves_again_counts_to_the_end_and_one_that_stops_later_is_another_matter() -> None:
    never = [standing(second, 6, 6 + second) for second in range(10)]
    assert recovered_after_s(never, 1.5, [WORKERS]) == 7.5
    later = [standing(second, min(second, 7), second) for second in range(12)]
    assert recovered_after_s(later, 1.5, [WORKERS]) == 0.0


def test_topics_of_others_do_not_count_and_without_a_look_afterwards_nothing_is_said() -> None:
    noted = [standing(second, 6, 6) for second in range(10)]
    assert recovered_after_s(noted, 1.5, [AGENTS]) == 0.0
    assert recovered_after_s(noted, 9.5, [WORKERS]) is None
    assert recovered_after_s([], 0.0, [WORKERS]) is None


def test_what_waits_is_what_is_written_and_not_committed() -> None:
    assert standing(0, 98, 100).waiting == {ONE: 2}
    assert Standing(0, {}, {ONE: 3}).waiting == {ONE: 3}


def test_an_agent_stands_still_while_frames_come_and_no_windows_do_whatever_it_commits() -> None:
    windows = [3, 4, 5, 5, 5, 5, 6, 7]
    noted = [Standing(s, {FRAMES: 0}, {FRAMES: 10 * s, ONE: made}) for s, made in enumerate(windows)]
    assert recovered_after_s(noted, 2.5, [AGENTS]) == 3.5
    silent = [Standing(s, {FRAMES: 0}, {FRAMES: 10, ONE: 3}) for s in range(8)]
    assert recovered_after_s(silent, 2.5, [AGENTS]) == 0.0
