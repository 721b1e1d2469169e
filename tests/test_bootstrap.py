from __future__ import annotations

import numpy as np
import pytest

from model.evaluation.bootstrap import difference_intervals, score_intervals

ALONE = np.array([""] * 400)


def test_the_interval_of_an_accuracy_is_that_of_a_binomial_share() -> None:
    true = np.zeros(400, dtype=np.int64)
    recognised = (np.arange(400) % 5 == 0).astype(np.int64)  # 80 % right
    found = score_intervals(true, recognised, 2, ALONE)
    deviation = np.sqrt(0.8 * 0.2 / 400)
    assert found.accuracy.value == pytest.approx(0.8)
    assert found.accuracy.low == pytest.approx(0.8 - 1.96 * deviation, abs=0.006)
    assert found.accuracy.high == pytest.approx(0.8 + 1.96 * deviation, abs=0.006)
    assert (found.unit, found.units) == ("windows", 400)


def test_windows_of_one_recording_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    true = np.zeros(400, dtype=np.int64)
    recordings = np.repeat([f"{n}.wav" for n in range(20)], 20)
    # A recording is recognised as a whole or not at all: 20 independent facts, not 400.
    recognised = np.repeat((rng.random(20) < 0.3).astype(np.int64), 20)
    together = score_intervals(true, recognised, 2, recordings)
    alone = score_intervals(true, recognised, 2, ALONE)
    assert (together.unit, together.units) == ("recordings", 20)
    width = together.accuracy.high - together.accuracy.low
    assert width / (alone.accuracy.high - alone.accuracy.low) == pytest.approx(np.sqrt(20), rel=0.15)


def test_windows_without_a_recording_are_drawn_alone() -> None:
    recordings = np.array(["a", "a", "", ""])
    found = score_intervals(np.array([0, 1, 0, 1]), np.array([0, 1, 1, 0]), 2, recordings)
    assert (found.unit, found.units) == ("recordings", 3)


def test_the_interval_covers_the_truth_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.evaluation.bootstrap.REPEATS", 300)
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(100):
        true = rng.integers(0, 3, 150)
        recognised = np.where(rng.random(150) < 0.7, true, (true + 1) % 3)
        interval = score_intervals(true, recognised, 3, ALONE[:150], seed).accuracy
        covered += interval.low <= 0.7 <= interval.high
    assert 88 <= covered <= 100


def test_the_same_seed_gives_the_same_interval() -> None:
    rng = np.random.default_rng(0)
    true, recognised = rng.integers(0, 3, 400), rng.integers(0, 3, 400)
    assert score_intervals(true, recognised, 3, ALONE, 5) == score_intervals(true, recognised, 3, ALONE, 5)
    assert score_intervals(true, recognised, 3, ALONE, 5) != score_intervals(true, recognised, 3, ALONE, 6)


def test_a_label_without_windows_counts_for_nothing() -> None:
    true = np.arange(400) % 2
    found = score_intervals(true, true, 5, ALONE)
    assert found.macro_f1.low == found.macro_f1.high == found.weakest_recall.low == 1.0


def test_the_weakest_label_is_named_once_and_not_in_every_drawing() -> None:
    rng = np.random.default_rng(0)
    true = np.arange(400) % 40
    recognised = np.where(rng.random(400) < 0.8, true, (true + 1) % 40)
    weakest = score_intervals(true, recognised, 40, ALONE).weakest_recall
    assert weakest.low < weakest.value < weakest.high


def test_two_models_are_compared_on_the_same_windows() -> None:
    rng = np.random.default_rng(0)
    true = rng.integers(0, 2, 400)
    first = np.where(rng.random(400) < 0.8, true, 1 - true)
    second = first.copy()
    second[:20] = 1 - true[:20]  # wrong where it may have been right: never better
    found = difference_intervals(true, first, second, 2, ALONE)
    expected = np.mean(first == true) - np.mean(second == true)
    assert found.accuracy.value == pytest.approx(expected)
    assert 0 < found.accuracy.low < expected < found.accuracy.high
    # Drawn apart, the noise of both would be added.
    apart = score_intervals(true, first, 2, ALONE).accuracy
    assert found.accuracy.high - found.accuracy.low < 0.7 * (apart.high - apart.low)
    same = difference_intervals(true, first, first, 2, ALONE).macro_f1
    assert same.value == same.low == same.high == 0.0


def test_nothing_to_draw_from_is_an_error() -> None:
    nothing = np.array([], dtype=np.int64)
    with pytest.raises(ValueError, match="no windows"):
        score_intervals(nothing, nothing, 2, np.array([], dtype=np.str_))
