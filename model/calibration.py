"""Makes probabilities mean what they say: one temperature, fitted on windows that training never saw."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

MIN_TEMPERATURE = 0.5
MAX_TEMPERATURE = 20.0


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
    return float(np.mean(logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]))
