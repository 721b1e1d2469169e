"""The optimizer of a recipe, and its state by the names of the weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from model.training.recipe import Optimizer


def build_optimizer(modules: nn.Module, spec: Optimizer) -> torch.optim.Optimizer:
    """Adam or AdamW. Norms and biases do not decay: it would only shrink what scales and shifts for good reason."""
    parameters = [parameter for parameter in modules.parameters() if parameter.requires_grad]
    groups = [
        {"params": [one for one in parameters if one.ndim > 1], "weight_decay": spec.weight_decay},
        {"params": [one for one in parameters if one.ndim <= 1], "weight_decay": 0.0},
    ]
    if spec.kind == "adam":
        return torch.optim.Adam(groups, lr=spec.learning_rate, fused=True)
    return torch.optim.AdamW(groups, lr=spec.learning_rate, fused=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer, modules: nn.Module) -> dict[str, Tensor]:
    """All that it remembers, as "weight's name:kind"."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in modules.named_parameters()}
    return {
        f"{names[parameter]}:{kind}": value
        for parameter, state in optimizer.state.items()
        for kind, value in state.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, modules: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Let it remember what `optimizer_tensors` gave."""
    parameters = dict(modules.named_parameters())
    for key, value in tensors.items():
        name, _, kind = key.rpartition(":")
        parameter = parameters[name]
        # The count of steps stays a single float32, on the device where fused kernels want it: that of the weight.
        optimizer.state[parameter][kind] = value.to(parameter.device)
