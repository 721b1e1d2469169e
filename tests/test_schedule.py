from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest

from model.training.recipe import load_recipe
from model.training.schedule import learning_rate

ONE_CYCLE = msgspec.structs.replace(load_recipe("default").optimizer, learning_rate=1.0, warm_up_share=0.1)
STEPS = load_recipe("paper").optimizer


def test_one_cycle_rises_to_its_peak_and_falls_to_a_hundredth() -> None:
    rates = [learning_rate(ONE_CYCLE, step, 200, 10) for step in range(200)]
    assert rates[0] == pytest.approx(0.04)
    assert rates.index(max(rates)) == 20
    assert max(rates) == 1.0
    assert rates[-1] == pytest.approx(0.01)
    assert all(after > before for before, after in pairwise(rates[:21]))
    assert all(after < before for before, after in pairwise(rates[20:]))


def test_the_paper_takes_three_hundredths_off_every_hundred_epochs() -> None:
    def rate_in(epoch: int) -> float:
        return learning_rate(STEPS, epoch * 7 + 6, 7 * 2000, 7)

    assert rate_in(0) == rate_in(99) == 1e-3
    assert rate_in(100) == pytest.approx(0.97e-3)
    assert rate_in(1999) == pytest.approx(1e-3 * 0.97**19)


def test_a_training_of_a_single_step_has_a_rate() -> None:
    assert learning_rate(ONE_CYCLE, 0, 1, 1) == 1.0
