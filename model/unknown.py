"""How strange a window is to a trained network: larger scores are stranger."""

from __future__ import annotations

import torch
from torch import Tensor


def energy(logits: Tensor, temperature: float) -> Tensor:
    """Free energy -T logsumexp(logits / T) (Liu et al., 2020, arXiv:2010.03759).

    (batch, labels) → (batch,). Low where some label's evidence is strong, high where no label has any, which the
    softmax hides by dividing it out.
    """
    return -temperature * torch.logsumexp(logits / temperature, dim=1)
