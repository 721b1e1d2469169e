"""Makes probabilities mean what they say, by one temperature fitted on windows that training never saw; measures it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

MIN_TEMPERATURE = 0.5
MAX_TEMPERATURE = 20.0

BINS = 15
#: The smallest step of float32 from 1. A forest says 0 of what it never saw; one such window would make a mean endless.
FLOOR = float(np.finfo(np.float32).eps)


def fit_temperature(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """Temperature that minimises the negative log likelihood of `labels` (Guo et al., 2017, arXiv:1706.04599).

    Parameters
    ----------
    logits
        (n, labels), of held-out windows.
    labels
        (n,), the true ones.

    Returns
    -------
    float
        Within `MIN_TEMPERATURE` and `MAX_TEMPERATURE`: held-out windows without a single error would ask for ever
        lower ones.
    """
    exact = logits.astype(np.float64)

    def cost(log_temperature: float) -> float:
        return negative_log_likelihood(exact / np.exp(log_temperature), labels)

    bounds = (float(np.log(MIN_TEMPERATURE)), float(np.log(MAX_TEMPERATURE)))
    found: Any = minimize_scalar(cost, bounds=bounds, method="bounded")
    return float(np.exp(found.x))


def negative_log_likelihood(logits: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> float:
    """Mean over the windows, in nats."""
    return float(np.mean(surprise(logits, labels)))


def surprise(logits: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Of each window (n,), in nats: minus the logarithm of the probability of its label."""
    return np.asarray(logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels])


@dataclass(frozen=True, slots=True)
class Bin:
    """Windows of about the same confidence: the largest probability, that of the label recognised."""

    low: float  #: confidence over this …
    high: float  #: … up to this
    windows: int
    confidence: float  #: their mean; 0 without windows
    accuracy: float  #: share of them recognised rightly; 0 without windows


def reliability(probabilities: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> list[Bin]:
    """Confidence against accuracy in `BINS` bins of equal width from 0 to 1 (Guo et al., 2017).

    Parameters
    ----------
    probabilities
        (n, labels), each row sums to 1.
    labels
        (n,), the true ones.
    """
    confidences = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0.0, 1.0, BINS + 1)
    number = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, BINS - 1)
    bins = []
    for index in range(BINS):
        inside = number == index
        count = int(np.count_nonzero(inside))
        confidence, accuracy = (float(confidences[inside].mean()), float(right[inside].mean())) if count else (0.0, 0.0)
        bins.append(Bin(float(edges[index]), float(edges[index + 1]), count, confidence, accuracy))
    return bins


def expected_calibration_error(bins: list[Bin]) -> float:
    """Mean distance between confidence and accuracy of the bins of `reliability`, each weighing by its windows."""
    total = sum(found.windows for found in bins)
    return sum(found.windows * abs(found.confidence - found.accuracy) for found in bins) / max(total, 1)


def brier_score(probabilities: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> float:
    """Mean over the windows of the summed squares between probabilities and truth (Brier, 1950): from 0 to 2."""
    distances = probabilities.astype(np.float64)
    distances[np.arange(len(labels)), labels] -= 1.0
    return float(np.square(distances).sum(axis=1).mean())


def probability_loss(probabilities: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> float:
    """Mean negative log likelihood in nats, of probabilities; one below `FLOOR` counts as that."""
    likely = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(likely, FLOOR)).mean())
