"""Averages of the weights over the last steps of a training: what is judged and kept."""

from __future__ import annotations

import copy

import torch

from model.network import Recogniser


class WeightAverage:
    """An exponential moving average of a recogniser's weights, itself a recogniser in evaluation mode.

    The statistics of the batch norms are averaged like the weights: they belong to the activations that the weights of
    their step give, so averaged weights go with statistics averaged over the same steps. Copied, they would be those of
    the last weights alone.
    """

    def __init__(self, model: Recogniser, keep: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self._keep = keep
        self._averages = _floats(self.model)

    def update(self, model: Recogniser, step: int) -> None:
        """Take in the weights after step `step`, counted from 1; `model` has the layers of the one at the beginning.

        The first steps count less than the recipe says: the average would remember the random weights of the start.
        """
        keep = min(self._keep, step / (10.0 + step))
        if self._keep:
            torch._foreach_lerp_(self._averages, _floats(model), 1.0 - keep)

    def settle(self, model: Recogniser) -> Recogniser:
        """The averaged recogniser, or one with the present weights where nothing is averaged."""
        if not self._keep:
            torch._foreach_copy_(self._averages, _floats(model))
        return self.model


def _floats(model: Recogniser) -> list[torch.Tensor]:
    return [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
