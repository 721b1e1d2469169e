from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from model.bundle_making.blend import SHARES, fit_blend

Logits = npt.NDArray[np.float32]
COUNT, LABELS = 400, 4
TRUTH = np.arange(COUNT) % LABELS


def _logits(right: float, sure: float, seed: int) -> Logits:
    """Of windows recognised rightly in this share; by how much is drawn."""
    rng = np.random.default_rng(seed)
    said = np.where(rng.uniform(size=COUNT) < right, TRUTH, rng.integers(0, LABELS, COUNT))
    logits = rng.standard_normal((COUNT, LABELS))
    logits[np.arange(COUNT), said] += sure
    return logits.astype(np.float32)


NOISE = 5 * np.random.default_rng(9).standard_normal((COUNT, LABELS)).astype(np.float32)


def test_a_network_that_is_noise_has_no_say() -> None:
    assert fit_blend(NOISE, _logits(0.8, 3, 0), TRUTH) == (0.0, 1.0)


def test_statistics_that_are_noise_have_no_say() -> None:
    assert fit_blend(_logits(0.8, 3, 0), NOISE, TRUTH) == (1.0, 0.0)


def test_what_knows_something_that_the_other_does_not_is_heard() -> None:
    of_network, of_statistics = fit_blend(_logits(0.8, 3, 0), _logits(0.8, 3, 1), TRUTH)
    assert of_network > 0
    assert of_statistics > 0


def test_a_network_that_is_right_where_the_statistics_are_not_gets_the_larger_say() -> None:
    of_network, of_statistics = fit_blend(_logits(0.98, 3, 0), _logits(0.4, 3, 1), TRUTH)
    assert of_network > of_statistics
    of_network, of_statistics = fit_blend(_logits(0.4, 3, 0), _logits(0.98, 3, 1), TRUTH)
    assert of_network < of_statistics


def test_from_few_windows_one_alone_speaks_unless_the_other_clearly_helps() -> None:
    network, statistics = _logits(0.1, 3, 0), _logits(0.9, 3, 1)
    alone = [fit_blend(network[part], statistics[part], TRUTH[part]) for part in np.split(np.arange(COUNT), 10)]
    assert alone.count((0.0, 1.0)) >= 7  # 5 are, where only the best counts
    helped = fit_blend(_logits(0.8, 3, 0), _logits(0.8, 3, 1), TRUTH)
    assert min(helped) > 0


@pytest.mark.parametrize("scale", [0.7, 1.5, 3.0])
def test_how_sure_both_are_together_does_not_matter_to_the_choice(scale: float) -> None:
    for right in (0.3, 0.6, 0.9):
        network, statistics = _logits(right, 3, 0), _logits(0.7, 3, 1)
        chosen = fit_blend(network, statistics, TRUTH)
        assert chosen in SHARES
        scaled = np.float32(scale)
        assert fit_blend(scaled * network, scaled * statistics, TRUTH) == chosen


def test_a_constant_added_to_all_logits_of_a_window_does_not_matter() -> None:
    network, statistics = _logits(0.6, 3, 0), _logits(0.7, 3, 1)
    moved = network + np.random.default_rng(2).uniform(-5, 5, (COUNT, 1)).astype(np.float32)
    assert fit_blend(moved, statistics, TRUTH) == fit_blend(network, statistics, TRUTH)
