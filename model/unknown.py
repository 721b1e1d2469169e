"""How strange a window is to a trained network, by one of several scores.

`model.bundle_making.unknown_choice` measures which of them serves.

A softmax is as sure of a window from another world as of a familiar one; its embedding is not where the familiar ones
are, and its logits are not as large.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.architecture import UnknownKind

# Directions in which the embeddings hardly vary would count without bound; this share of the mean variance is added.
RIDGE = 0.01


class UnknownScore(nn.Module):
    """The score of one kind, larger is stranger. Every kind has the same tensors, whether it uses them or not.

    - "mahalanobis": squared Mahalanobis distance to the nearest label's mean, per dimension (Lee et al., 2018,
      arXiv:1807.03888); about 1 for windows like those it was fitted on
    - "prototype": squared Euclidean distance to the nearest label's mean, per dimension (Snell et al., 2017,
      arXiv:1703.05175)
    - "cosine": 1 less the largest cosine with a label's mean
    - "energy": minus the logarithm of the sum of the exponentials of the logits (Liu et al., 2020, arXiv:2010.03759)
    - "max_logit": minus the largest logit (Hendrycks et al., 2022, arXiv:1911.11132)
    - "max_softmax": minus the logarithm of the largest probability (Hendrycks & Gimpel, 2017, arXiv:1610.02136)

    Logits are those of the network, before the temperature.
    """

    means: Tensor
    whitening: Tensor

    def __init__(self, kind: UnknownKind, embedding: int, labels: int) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("means", torch.zeros(labels, embedding))
        self.register_buffer("whitening", torch.eye(embedding))

    def forward(self, embeddings: Tensor, logits: Tensor) -> Tensor:
        """(batch, embedding) and (batch, labels), both float32 → (batch,)."""
        # Products by element: a matrix product may sum in another order for another number of rows.
        match self.kind:
            case "mahalanobis":
                offsets = embeddings[:, None] - self.means
                white = (offsets[:, :, None] * self.whitening).sum(dim=3)
                return white.square().mean(dim=2).amin(dim=1)
            case "prototype":
                return (embeddings[:, None] - self.means).square().mean(dim=2).amin(dim=1)
            case "cosine":
                towards = functional.normalize(embeddings)[:, None] * functional.normalize(self.means)
                return 1.0 - towards.sum(dim=2).amax(dim=1)
            case "energy":
                return -torch.logsumexp(logits, dim=1)
            case "max_logit":
                return -logits.amax(dim=1)
            case "max_softmax":
                return torch.logsumexp(logits, dim=1) - logits.amax(dim=1)

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
