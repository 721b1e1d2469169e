"""How strange a window is to a trained network: how far its embedding lies from those of every label."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

# Directions in which the embeddings hardly vary would count without bound; this share of the mean variance is added.
RIDGE = 0.01


class UnknownScore(nn.Module):
    """Squared Mahalanobis distance to the nearest label's mean, per dimension (Lee et al., 2018, arXiv:1807.03888).

    About 1 for windows like those it was fitted on. A softmax is as sure of a window from another world as of a
    familiar one; the embedding is not where the familiar ones are.
    """

    means: Tensor
    whitening: Tensor

    def __init__(self, embedding: int, labels: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(labels, embedding))
        self.register_buffer("whitening", torch.eye(embedding))

    def forward(self, embeddings: Tensor) -> Tensor:
        """(batch, embedding) float32 → (batch,), larger is stranger."""
        # Products by element: a matrix product may sum in another order for another number of rows.
        offsets = embeddings[:, None] - self.means
        white = (offsets[:, :, None] * self.whitening).sum(dim=3)
        return white.square().mean(dim=2).amin(dim=1)

    def fit(self, embeddings: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> None:
        """Means of each label, and one covariance within labels, each label counting the same.

        Parameters
        ----------
        embeddings
            (n, embedding), best of windows that training has not seen.
        labels
            (n,), each label at least twice.
        """
        exact = embeddings.astype(np.float64)
        count, size = self.means.shape
        means = np.stack([exact[labels == label].mean(axis=0) for label in range(count)])
        covariance = np.mean([np.cov(exact[labels == label], rowvar=False) for label in range(count)], axis=0)
        covariance += RIDGE * np.trace(covariance) / size * np.eye(size)
        # With the covariance L Lᵀ, the inverse of L turns offsets into independent ones of unit variance.
        whitening = np.linalg.inv(np.linalg.cholesky(covariance))
        self.means.copy_(torch.from_numpy(means))
        self.whitening.copy_(torch.from_numpy(whitening))
