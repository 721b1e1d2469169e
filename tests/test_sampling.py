from __future__ import annotations

import numpy as np
import pytest

from model.training.sampling import Balance, epoch_batches, label_shares

LABELS = np.array([0] * 900 + [1] * 90 + [2] * 10)


def test_every_label_comes_equally_often_however_rare() -> None:
    batches = epoch_batches(LABELS, 50, "equal", seed=1, epoch=0)
    assert batches.shape == (20, 50)
    seen = LABELS[batches.ravel()]
    counts = np.bincount(seen, minlength=3)
    assert counts.max() - counts.min() <= 1
    assert set(batches.ravel()[seen == 2]) == set(range(990, 1000))


def test_the_square_root_lies_between_equal_and_as_they_are() -> None:
    batches = epoch_batches(LABELS, 50, "square_root", seed=1, epoch=0)
    counts = np.bincount(LABELS[batches.ravel()], minlength=3)
    roots = np.sqrt([900, 90, 10])
    np.testing.assert_allclose(counts, 1000 * roots / roots.sum(), atol=1)


def test_without_balance_every_window_comes_once() -> None:
    batches = epoch_batches(LABELS, 50, "none", seed=1, epoch=0)
    assert sorted(batches.ravel()) == list(range(1000))


@pytest.mark.parametrize("balance", ["equal", "square_root", "none"])
def test_the_rest_that_fills_no_batch_is_dropped(balance: Balance) -> None:
    assert epoch_batches(LABELS, 64, balance, seed=1, epoch=0).shape == (15, 64)


@pytest.mark.parametrize("balance", ["equal", "square_root", "none"])
def test_the_shares_are_those_of_what_is_drawn(balance: Balance) -> None:
    seen = np.concatenate([LABELS[epoch_batches(LABELS, 50, balance, 1, epoch).ravel()] for epoch in range(5)])
    drawn = np.bincount(seen, minlength=4) / len(seen)
    np.testing.assert_allclose(label_shares(LABELS, 4, balance), drawn, atol=2e-3)


@pytest.mark.parametrize("balance", ["equal", "square_root", "none"])
def test_the_order_is_a_function_of_seed_and_epoch(balance: Balance) -> None:
    labels = np.arange(200) % 4
    first = epoch_batches(labels, 20, balance, seed=1, epoch=0)
    np.testing.assert_array_equal(first, epoch_batches(labels, 20, balance, seed=1, epoch=0))
    assert (first != epoch_batches(labels, 20, balance, seed=1, epoch=1)).any()
    assert (first != epoch_batches(labels, 20, balance, seed=2, epoch=0)).any()


def test_a_label_without_windows_is_left_out() -> None:
    labels = np.array([0, 2] * 20)
    assert set(labels[epoch_batches(labels, 10, "equal", 0, 0).ravel()]) == {0, 2}


def test_too_few_windows_for_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="8 windows do not fill a batch of 16"):
        epoch_batches(LABELS[:8], 16, "equal", 0, 0)
