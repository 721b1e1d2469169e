"""What training minimises: cross-entropy for a linear head, AAM-softmax for a cosine head."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from model.network import Head

MARGIN = 0.2
# The sine's derivative is infinite where the cosine is ±1, which easy data reaches; inside this bound it is finite.
MAX_COSINE = 1.0 - 1e-6


def aam_softmax(cosine: Tensor, labels: Tensor, *, margin: float = MARGIN, scale: float = 30.0) -> Tensor:
    """Additive angular margin softmax (Deng et al., 2019, arXiv:1801.07698), mean over the batch, in float32.

    Parameters
    ----------
    cosine
        (batch, labels), cosine of the angle between embedding and label direction.
    labels
        (batch,) int64, the true ones.
    margin
        Added to the angle to the true label, radians.
    scale
        Multiplies the cosines before the softmax.
    """
    cosine = cosine.float().clamp(-MAX_COSINE, MAX_COSINE)
    sine = (1.0 - cosine.square()).sqrt()
    turned = cosine * math.cos(margin) - sine * math.sin(margin)
    # Beyond π - margin the turned cosine would rise again; a straight line goes on falling instead.
    turned = torch.where(cosine > -math.cos(margin), turned, cosine - margin * math.sin(margin))
    true = functional.one_hot(labels, cosine.shape[1]).bool()
    return functional.cross_entropy(scale * torch.where(true, turned, cosine), labels)


def classification_loss(head: Head, embeddings: Tensor, labels: Tensor) -> Tensor:
    """The loss that belongs to the head, mean over the batch, in float32.

    Parameters
    ----------
    head
        Linear: cross-entropy. Cosine: AAM-softmax with the head's scale.
    embeddings
        (batch, embedding).
    labels
        (batch,) int64.
    """
    if head.spec.kind == "cosine":
        return aam_softmax(head.cosine(embeddings), labels, scale=head.spec.scale)
    return functional.cross_entropy(head(embeddings), labels)
