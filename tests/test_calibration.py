from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.special import softmax

from model.calibration import BINS, brier_score, expected_calibration_error, probability_loss, reliability


def _drawn(n: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and labels that come as often as the probabilities (at scale 1) say."""
    rng = np.random.default_rng(0)
    logits = 2.0 * rng.standard_normal((n, 4))
    honest = softmax(logits, axis=1)
    labels = (honest.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return softmax(scale * logits, axis=1), labels


def test_honest_probabilities_have_next_to_no_calibration_error() -> None:
    honest, labels = _drawn(50_000, 1.0)
    boastful, _ = _drawn(50_000, 3.0)
    assert expected_calibration_error(reliability(honest, labels)) < 0.01
    assert expected_calibration_error(reliability(boastful, labels)) > 0.1


def test_the_error_is_the_mean_distance_of_the_bins() -> None:
    probabilities = np.array([[0.95, 0.05], [0.95, 0.05], [0.6, 0.4], [0.6, 0.4]])
    bins = reliability(probabilities, np.array([0, 1, 0, 0]))
    filled = [found for found in bins if found.windows]
    assert [(found.windows, found.accuracy) for found in filled] == [(2, 1.0), (2, 0.5)]
    assert [found.confidence for found in filled] == pytest.approx([0.6, 0.95])
    assert expected_calibration_error(bins) == pytest.approx((0.4 + 0.45) / 2)


def test_the_bins_cover_everything_from_0_to_1_once() -> None:
    probabilities = np.stack([np.linspace(0.5, 1.0, 301), np.linspace(0.5, 0.0, 301)], axis=1)
    bins = reliability(probabilities, np.zeros(301, dtype=np.int64))
    assert len(bins) == BINS
    assert sum(found.windows for found in bins) == 301
    assert all(one.high == other.low for one, other in itertools.pairwise(bins))
    for found in bins:
        assert not found.windows or found.low <= found.confidence <= found.high
    assert bins[-1].windows > 0


def test_losses_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    probabilities, labels = _drawn(500, 2.0)
    assert probability_loss(probabilities, labels) == pytest.approx(metrics.log_loss(labels, probabilities))
    expected = metrics.brier_score_loss(labels, probabilities, scale_by_half=False)
    assert brier_score(probabilities, labels) == pytest.approx(expected)


def test_a_forest_that_says_never_of_what_happens_has_a_finite_loss() -> None:
    assert 15 < probability_loss(np.array([[1.0, 0.0]]), np.array([1])) < 16
