"""In which order training sees its windows, and how often those of each label."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Balance = Literal["equal", "square_root", "none"]
Indices = npt.NDArray[np.int64]


def label_shares(labels: npt.NDArray[np.int64], count: int, balance: Balance) -> npt.NDArray[np.float64]:
    """Share of each of `count` labels among the windows that training sees: (count,), sum 1.

    "none": as in the data; "equal": the same for every label that is there; "square_root": in proportion to the root of
    the label's windows, half way between the two.
    """
    counts = np.bincount(labels, minlength=count).astype(np.float64)
    exponent = {"none": 1.0, "square_root": 0.5, "equal": 0.0}[balance]
    weights = np.where(counts > 0, counts**exponent, 0.0)
    shares: npt.NDArray[np.float64] = weights / weights.sum()
    return shares


def epoch_batches(labels: npt.NDArray[np.int64], batch: int, balance: Balance, seed: int, epoch: int) -> Indices:
    """Indices of one epoch, (batches, batch); as many windows as there are, in whole batches.

    Where labels are balanced, a rare label's windows come several times and a frequent one's not all; over the epochs
    all of them do. A function of (seed, epoch) alone, so that training can go on where it stopped. The rest that fills
    no batch is dropped, since batch norm must not see short ones.

    Raises
    ------
    ValueError
        If the windows do not fill one batch.
    """
    batches = len(labels) // batch
    if not batches:
        raise ValueError(f"{len(labels)} windows do not fill a batch of {batch}; lower the batch")
    rng = np.random.default_rng([seed, epoch])
    if balance == "none":
        order = rng.permutation(len(labels))
    else:
        shares = label_shares(labels, int(labels.max()) + 1, balance)
        wanted = _whole(shares * batches * batch)
        drawn = [_repeated(np.flatnonzero(labels == label), int(wanted[label]), rng) for label in np.unique(labels)]
        order = np.concatenate(drawn)
        rng.shuffle(order)
    return order[: batches * batch].reshape(batches, batch)


def _whole(amounts: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Whole numbers with the same sum: rounded down, and one more for those that lost most."""
    whole = np.floor(amounts).astype(np.int64)
    missing = round(float(amounts.sum())) - int(whole.sum())
    whole[np.argsort(whole - amounts, kind="stable")[:missing]] += 1
    return whole


def _repeated(indices: Indices, count: int, rng: np.random.Generator) -> Indices:
    """`count` of `indices`, each as often as any other but for one."""
    rounds = [rng.permutation(indices) for _ in range(-(-count // len(indices)))]
    return np.concatenate([indices[:0], *rounds])[:count]
