"""What training minimises: cross-entropy for a linear head, AAM-softmax for a cosine head."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from model.network import Head
from model.training.recipe import Loss

MARGIN = 0.2
# The sine's derivative is infinite where the cosine is ±1, which easy data reaches; inside this bound it is finite.
MAX_COSINE = 1.0 - 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Mixed:
    """What mixup put into the windows of a batch."""

    labels: Tensor  #: (batch,) int64, of the window that was added to each
    weights: Tensor  #: (batch,), share of the window's own label in its target


def with_margin(cosine: Tensor, labels: Tensor, margin: float) -> Tensor:
    """The cosines, that to the true label with `margin` (radians) added to its angle: (batch, labels) float32.

    Additive angular margin (Deng et al., 2019, arXiv:1801.07698).
    """
    cosine = cosine.float().clamp(-MAX_COSINE, MAX_COSINE)
    sine = (1.0 - cosine.square()).sqrt()
    turned = cosine * math.cos(margin) - sine * math.sin(margin)
    # Beyond π - margin the turned cosine would rise again; a straight line goes on falling instead.
    turned = torch.where(cosine > -math.cos(margin), turned, cosine - margin * math.sin(margin))
    true = functional.one_hot(labels, cosine.shape[1]).bool()
    return torch.where(true, turned, cosine)


def aam_softmax(cosine: Tensor, labels: Tensor, *, margin: float = MARGIN, scale: float = 30.0) -> Tensor:
    """Additive angular margin softmax, mean over the batch, in float32.

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
    return functional.cross_entropy(scale * with_margin(cosine, labels, margin), labels)


def head_outputs(head: Head, embeddings: Tensor) -> Tensor:
    """What `classification_loss` takes: logits of a linear head, cosines of a cosine head; (batch, labels) float32."""
    return head.cosine(embeddings) if head.spec.kind == "cosine" else head(embeddings)


def classification_loss(
    outputs: Tensor, labels: Tensor, spec: Loss, *, mixed: Mixed | None = None, shares: Tensor | None = None
) -> Tensor:
    """Mean over the batch, in float32.

    Parameters
    ----------
    outputs
        (batch, labels): logits for `cross_entropy`, cosines for `aam_softmax`.
    labels
        (batch,) int64, the true ones.
    spec
        The recipe's; its scale is a number.
    mixed
        Where mixup was at work: the loss is that to either label, weighted.
    shares
        (labels,), share of each label in what training sees; needed where `spec.logit_adjustment` is not 0. Its
        logarithm is added to the logits (Menon et al., 2021, arXiv:2007.07314), so that the network itself learns to
        recognise as if all labels were equally frequent.
    """
    loss = _loss_of_each(outputs, labels, spec, shares)
    if mixed is not None:
        other = _loss_of_each(outputs, mixed.labels, spec, shares)
        loss = mixed.weights * loss + (1.0 - mixed.weights) * other
    return loss.mean()


def _loss_of_each(outputs: Tensor, labels: Tensor, spec: Loss, shares: Tensor | None) -> Tensor:
    """(batch,)."""
    logits = outputs.float()
    if spec.kind == "aam_softmax":
        logits = float(spec.scale) * with_margin(outputs, labels, spec.margin)
    if spec.logit_adjustment:
        if shares is None:
            raise ValueError("logit adjustment needs the share of each label")
        logits = logits + spec.logit_adjustment * shares.log()
    return functional.cross_entropy(logits, labels, reduction="none", label_smoothing=spec.label_smoothing)
