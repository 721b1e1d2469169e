"""In which order training sees its windows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt


def balanced_batches(
    labels: npt.NDArray[np.int64], batch: int, seed: int, epoch: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Indices of one epoch in batches of exactly `batch`; every label comes equally often, whatever its share.

    A rare label's windows come several times, a frequent one's not all; over the epochs all of them do. A function of
    (seed, epoch) alone, so that training can go on where it stopped. The rest that fills no batch is dropped, since
    batch norm must not see short ones.
    """
    rng = np.random.default_rng([seed, epoch])
    present = np.unique(labels)
    share = -(-len(labels) // len(present))
    drawn = [_repeated(np.flatnonzero(labels == label), share, rng) for label in present]
    order = np.concatenate(drawn)
    rng.shuffle(order)
    for start in range(0, len(order) - batch + 1, batch):
        yield order[start : start + batch]


def _repeated(indices: npt.NDArray[np.int64], count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """`count` of `indices`, each as often as any other but for one."""
    rounds = [rng.permutation(indices) for _ in range(-(-count // len(indices)))]
    return np.concatenate(rounds)[:count]
