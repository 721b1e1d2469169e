from __future__ import annotations

import pytest
import torch

from model.network import Recogniser
from model.training.averaging import WeightAverage
from model.training.train import new_recogniser
from tests.training_windows import tiny_recipe


def _filled(model: Recogniser, value: float) -> Recogniser:
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.fill_(value)
    return model


def test_each_step_keeps_its_share_of_weights_and_batch_norm_statistics() -> None:
    model = _filled(new_recogniser(tiny_recipe(), 2), 1.0)
    average = WeightAverage(model, 0.9)
    average.update(_filled(model, 2.0), step=1_000)
    average.update(_filled(model, 4.0), step=1_001)
    averaged = average.settle(model).state_dict()
    for name in ("network.entry.conv.weight", "network.entry.norm.running_var", "head.bias"):
        expected = 0.9 * (0.9 * 1.0 + 0.1 * 2.0) + 0.1 * 4.0
        torch.testing.assert_close(averaged[name], torch.full_like(averaged[name], expected))
    assert float(model.state_dict()["head.bias"][0]) == 4.0


def test_the_random_weights_of_the_start_are_soon_forgotten() -> None:
    model = _filled(new_recogniser(tiny_recipe(), 2), 1_000.0)
    average = WeightAverage(model, 0.999)
    for step in range(1, 31):
        average.update(_filled(model, 1.0), step)
    assert float(average.settle(model).head.weight[0, 0]) == pytest.approx(1.0, abs=1e-3)


def test_without_averaging_the_present_weights_are_judged() -> None:
    model = _filled(new_recogniser(tiny_recipe(), 2), 1.0)
    average = WeightAverage(model, 0.0)
    average.update(_filled(model, 2.0), step=1)
    assert float(average.settle(model).head.weight[0, 0]) == 2.0


def test_the_average_does_not_learn_and_is_in_evaluation_mode() -> None:
    model = new_recogniser(tiny_recipe(), 2).train()
    average = WeightAverage(model, 0.9)
    assert not average.model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
