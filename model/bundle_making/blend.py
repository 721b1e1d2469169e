"""How much network and statistics may each say: fitted on windows that training never saw."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import torch

from model.calibration import fit_temperature, surprise
from model.data.dataset import WindowSet
from model.network import Recogniser
from model.training.feed import Feed
from model.training.statistics_fit import statistics_logits

#: Of the network and of the statistics; what is common to both is left to the temperature.
SHARES = ((1.0, 0.0), (1.0, 0.25), (1.0, 0.5), (1.0, 1.0), (0.5, 1.0), (0.25, 1.0), (0.125, 1.0), (0.0, 1.0))


def fit_blend(
    network: npt.NDArray[np.float32], statistics: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> tuple[float, float]:
    """The shares, of `SHARES`, by which both logits are best multiplied before they are added.

    From few windows a network learns by heart what it should understand, and is then worth less than it believes; of
    sounds that differ in how they run, the statistics know little. Best is what makes the labels most likely, each
    pair with its own temperature. Where one alone is no worse than that by more than a standard error of the
    difference, it speaks alone: from few windows a blend is chosen by chance (Breiman et al., 1984, 3.4.3).

    Parameters
    ----------
    network, statistics
        (n, labels), of held-out windows.
    labels
        (n,), the true ones.
    """

    def cost(shares: tuple[float, float]) -> npt.NDArray[np.float64]:
        logits = shares[0] * network + shares[1] * statistics
        return surprise(logits.astype(np.float64) / fit_temperature(logits, labels), labels)

    costs = {shares: cost(shares) for shares in SHARES}
    best = min(SHARES, key=lambda shares: float(costs[shares].mean()))
    for alone in sorted(((1.0, 0.0), (0.0, 1.0)), key=lambda shares: float(costs[shares].mean())):
        worse = costs[alone] - costs[best]
        if worse.mean() <= worse.std() / np.sqrt(len(worse)):
            return alone
    return best


def set_shares(
    model: Recogniser, data: WindowSet, indices: npt.NDArray[np.int64], embeddings: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Give the model's network and statistics their shares, in place; its logits from then on, (n, labels).

    Parameters
    ----------
    model
        In evaluation mode, with statistics (`model.training.statistics_fit`).
    data, indices
        Windows that training never saw, (n,) of them.
    embeddings
        (n, embedding), theirs.
    """
    feed = Feed(data, model.front_end.spec.min_samples, model.head.weight.device)
    statistics = statistics_logits(model, feed, indices)
    with torch.inference_mode():
        network: npt.NDArray[np.float32] = model.head(torch.from_numpy(embeddings).to(feed.device)).cpu().numpy()
    of_network, of_statistics = fit_blend(network, statistics, data.labels[indices])
    with torch.no_grad():
        if model.head.spec.kind == "cosine" and of_network > 0:  # whatever its weights' length
            model.head.spec = dataclasses.replace(model.head.spec, scale=of_network * model.head.spec.scale)
        else:
            for parameter in model.head.parameters():
                parameter.mul_(of_network)
        assert model.statistics is not None
        model.statistics.share.fill_(of_statistics)
    logits: npt.NDArray[np.float32] = of_network * network + of_statistics * statistics
    return logits
