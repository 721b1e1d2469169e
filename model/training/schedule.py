"""The learning rate at each step. A function of the step alone, so that a resumed training has nothing to remember."""

from __future__ import annotations

import math

from model.training.recipe import Optimizer

FIRST_SHARE = 1.0 / 25.0  # of the peak, where the warm-up begins
LAST_SHARE = 1.0 / 100.0  # and where the cosine ends


def learning_rate(spec: Optimizer, step: int, steps: int, steps_per_epoch: int) -> float:
    """Learning rate of step `step`, counted from 0, of `steps`.

    "one_cycle" (Smith and Topin, 2018, arXiv:1708.07120): up to the peak along half a cosine during the warm-up share
    of all steps, then down to a hundredth of it along another. "steps": multiplied by `spec.decay` every
    `spec.decay_every_epochs` epochs.
    """
    peak = spec.learning_rate
    if spec.schedule == "steps":
        return peak * spec.decay ** (step // (steps_per_epoch * spec.decay_every_epochs))
    warm_up = round(spec.warm_up_share * steps)
    if step < warm_up:
        return _along_cosine(FIRST_SHARE * peak, peak, step / warm_up)
    return _along_cosine(peak, LAST_SHARE * peak, (step - warm_up) / max(1, steps - 1 - warm_up))


def _along_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * share))
