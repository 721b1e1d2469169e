"""How much the network may add to what the statistics say: fitted on windows that training never saw."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from model.calibration import fit_temperature, negative_log_likelihood

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


def fit_blend(
    network: npt.NDArray[np.float32], statistics: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> float:
    """The share of `SHARES` by which the network's logits are best multiplied before the statistics' are added.

    From few windows a network learns by heart what it should understand; it is then worth less than it believes.
    Best is what makes the labels most likely, each share with its own temperature.

    Parameters
    ----------
    network, statistics
        (n, labels), of held-out windows.
    labels
        (n,), the true ones.
    """

    def cost(share: float) -> float:
        logits = share * network + statistics
        return negative_log_likelihood(logits.astype(np.float64) / fit_temperature(logits, labels), labels)

    return min(SHARES, key=cost)
