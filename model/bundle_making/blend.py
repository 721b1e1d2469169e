"""How much network and statistics may each say: fitted on windows that training never saw."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from model.calibration import fit_temperature, negative_log_likelihood

#: Of the network and of the statistics; what is common to both is left to the temperature.
SHARES = ((1.0, 0.0), (1.0, 0.25), (1.0, 0.5), (1.0, 1.0), (0.5, 1.0), (0.25, 1.0), (0.125, 1.0), (0.0, 1.0))


def fit_blend(
    network: npt.NDArray[np.float32], statistics: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> tuple[float, float]:
    """The shares, of `SHARES`, by which both logits are best multiplied before they are added.

    From few windows a network learns by heart what it should understand, and is then worth less than it believes; of
    sounds that differ in how they run, the statistics know little. Best is what makes the labels most likely, each
    pair with its own temperature.

    Parameters
    ----------
    network, statistics
        (n, labels), of held-out windows.
    labels
        (n,), the true ones.
    """

    def cost(shares: tuple[float, float]) -> float:
        logits = shares[0] * network + shares[1] * statistics
        return negative_log_likelihood(logits.astype(np.float64) / fit_temperature(logits, labels), labels)

    return min(SHARES, key=cost)
