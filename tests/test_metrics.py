from __future__ import annotations

import numpy as np
import pytest
import torch

from model.calibration import fit_temperature, negative_log_likelihood
from model.metrics import confusion_matrix, scores
from model.unknown import UnknownScore

PAPER = np.array([[5154, 124, 14, 9], [19, 27761, 143, 40], [0, 3081, 13983, 1229], [0, 40, 520, 31143]])


def test_the_papers_confusion_matrix_gives_the_papers_table() -> None:
    found = scores(PAPER)
    assert round(100 * found.accuracy, 2) == 93.73
    np.testing.assert_array_equal(np.round(100 * found.precision, 2), [99.63, 89.53, 95.38, 96.06])
    np.testing.assert_array_equal(np.round(100 * found.recall, 2), [97.23, 99.28, 76.44, 98.23])
    np.testing.assert_array_equal(np.round(100 * found.f1, 2), [98.42, 94.15, 84.87, 97.13])
    assert PAPER.sum(axis=1).tolist() == [5_301, 27_963, 18_293, 31_703]


def test_rows_of_the_confusion_matrix_are_the_true_labels() -> None:
    matrix = confusion_matrix(np.array([0, 0, 1, 2]), np.array([1, 0, 1, 1]), 4)
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_a_label_that_never_comes_scores_zero_and_not_nan() -> None:
    found = scores(np.array([[3, 0], [0, 0]]))
    assert found.recall.tolist() == [1.0, 0.0]
    assert found.precision.tolist() == [1.0, 0.0]
    assert found.macro_f1 == 1.0, "a label without windows counts neither for nor against"
    assert found.weakest_recall == 1.0
    assert scores(np.zeros((2, 2))).accuracy == 0.0


def test_the_table_and_the_card_show_the_same_scores() -> None:
    found = scores(np.array([[9, 1], [0, 10]]))
    table = found.table(["quiet", "knock"])
    assert "| quiet" in table
    assert "90.00 %" in table
    assert "accuracy 95.00 %" in table
    card = found.as_card(["quiet", "knock"])
    assert card["accuracy"] == 0.95
    assert card["per_label"]["quiet"] == {"precision": 1.0, "recall": 0.9, "f1": 0.9474}
    assert card["confusion"] == [[9, 1], [0, 10]]


def test_the_fitted_temperature_makes_probabilities_match_how_often_they_are_right() -> None:
    rng = np.random.default_rng(0)
    true_logits = rng.standard_normal((20_000, 3)) * 2.0
    shares = np.exp(true_logits) / np.exp(true_logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(3, p=row) for row in shares])
    overconfident = (true_logits * 4.0).astype(np.float32)
    temperature = fit_temperature(overconfident, labels)
    assert temperature == pytest.approx(4.0, rel=0.05)
    exact = overconfident.astype(np.float64)
    assert negative_log_likelihood(exact / temperature, labels) < negative_log_likelihood(exact, labels)


def test_what_lies_far_from_every_label_scores_as_unknown() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(600) % 2
    spread = np.array([5.0, 1.0, 0.1, 1.0])
    centres = np.array([[0.0, 0.0, 0.0, 0.0], [20.0, 3.0, 0.0, -3.0]])
    familiar = (centres[labels] + spread * rng.standard_normal((600, 4))).astype(np.float32)
    score = UnknownScore("mahalanobis", 4, 2)
    score.fit(familiar[:400], labels[:400])
    logits = torch.zeros(200, 2)
    known = score(torch.from_numpy(familiar[400:]), logits)
    assert float(known.mean()) == pytest.approx(1.0, abs=0.3)
    # As far off as familiar windows lie from one another, but in a direction in which those never differ.
    strange = torch.tensor([[0.0, 0.0, 4.0, 0.0], [10.0, 1.5, 0.0, 6.0]])
    assert score(strange, logits[:2]).min() > known.max()
