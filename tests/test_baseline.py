from __future__ import annotations

import builtins
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.data.dataset import WindowSet
from model.evaluation import baseline as module
from model.evaluation.baseline import BaselineError, features, fit_baseline
from tests.labelled_windows import LABELS, labelled_windows

GPLA_12 = Path(__file__).parents[2] / "shared" / "data" / "gpla12"


@pytest.fixture(autouse=True)
def _few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TREES", 40)


def test_it_tells_apart_what_anybody_would_hear() -> None:
    found = fit_baseline(labelled_windows(90, seed=1))
    heard = labelled_windows(60, seed=2)
    probabilities = found.probabilities(heard)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
    assert (probabilities.argmax(axis=1) == heard.labels).mean() > 0.95
    assert (found.windows, found.label_names) == (90, LABELS)
    assert "40 trees" in found.description


def test_the_same_windows_and_seed_give_the_same_votes() -> None:
    train, heard = labelled_windows(45, seed=1), labelled_windows(30, seed=2, noise=2.0)
    votes = [fit_baseline(train, seed).probabilities(heard) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(votes[0], votes[1])
    assert (votes[0] != votes[2]).any()


def test_some_rows_of_a_set_are_as_good_as_a_set_of_them() -> None:
    data = labelled_windows(60)
    rows = np.arange(0, 60, 2)
    one, other = fit_baseline(data, 0, rows), fit_baseline(data.select(rows), 0)
    np.testing.assert_array_equal(one.probabilities(data, rows), other.probabilities(data.select(rows)))


def test_only_the_real_samples_of_a_window_count() -> None:
    whole = labelled_windows(12, 2_048)
    short = replace(whole, windows=np.ascontiguousarray(whole.windows[:, :1_500]), lengths=np.full(12, 1_500))
    filled = np.zeros((12, 2_048), dtype=np.int16)
    filled[:, :1_500] = short.windows
    padded = replace(whole, windows=filled, lengths=np.full(12, 1_500))
    rubbish = filled.copy()
    rubbish[:, 1_500:] = 1_234
    np.testing.assert_array_equal(features(padded), features(replace(padded, windows=rubbish)))
    a, b = features(short), features(padded)
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-3)


def test_counts_and_full_scale_are_the_same_to_it() -> None:
    counts = labelled_windows(9)
    floats = replace(counts, windows=(counts.windows / np.float32(32_768)).astype(np.float32))
    np.testing.assert_allclose(features(counts), features(floats), rtol=1e-4, atol=1e-4)


def test_a_window_is_measured_the_same_in_any_block(monkeypatch: pytest.MonkeyPatch) -> None:
    data = labelled_windows(12)
    whole = features(data)
    monkeypatch.setattr(module, "BLOCK_SAMPLES", 5 * data.samples)
    np.testing.assert_array_equal(features(data), whole)


@pytest.mark.parametrize("samples", [1, 3, 50, 64, 65, 200])
def test_silence_constants_and_very_short_windows_have_finite_features(samples: int) -> None:
    loud = np.full((4, samples), 32_767, dtype=np.int16)
    loud[0], loud[1, samples // 2] = 0, 0
    names = np.array([""] * 4)
    data = WindowSet(
        windows=loud,
        lengths=np.array([samples, samples, 1, samples]),
        labels=np.zeros(4, dtype=np.int64),
        label_names=("a", "b"),
        rate_hz=1.0,
        recordings=names,
        sensors=names,
        positions=names,
        splits=names,
    )
    assert np.isfinite(features(data)).all()


def test_a_label_it_was_never_shown_gets_no_votes() -> None:
    data = labelled_windows(60)
    found = fit_baseline(data, 0, np.flatnonzero(data.labels != 1))
    assert (found.probabilities(data)[:, 1] == 0).all()


def test_one_label_is_nothing_to_tell_apart() -> None:
    data = labelled_windows(30)
    with pytest.raises(BaselineError, match="holds nothing but click; it needs two labels"):
        fit_baseline(data, 0, np.flatnonzero(data.labels == 0))
    with pytest.raises(BaselineError, match="holds nothing; it needs"):
        fit_baseline(data, 0, np.array([], dtype=np.int64))


def test_without_scikit_learn_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_sklearn(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", no_sklearn)
    with pytest.raises(BaselineError, match=r"pip install 'aewatch\[train\]'"):
        fit_baseline(labelled_windows(9))


@pytest.mark.slow
@pytest.mark.skipif(not GPLA_12.is_dir(), reason="GPLA-12 is not part of the project; put it into ../shared/data")
def test_on_gpla_12_it_is_no_straw_man(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.model_selection import StratifiedKFold

    monkeypatch.setattr(module, "TREES", 200)
    labels = np.loadtxt(GPLA_12 / "label.csv", delimiter=",").astype(np.int64) - 1
    nowhere = np.array([""] * len(labels))
    data = WindowSet(
        windows=np.loadtxt(GPLA_12 / "data.csv", delimiter=",").astype(np.int16),
        lengths=np.full(len(labels), 1_460),
        labels=labels,
        label_names=tuple(map(str, range(1, 13))),
        rate_hz=16_000.0,
        recordings=nowhere,
        sensors=nowhere,
        positions=nowhere,
        splits=nowhere,
    )
    right = 0
    for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(labels, labels):
        guessed = fit_baseline(data, 0, train).probabilities(data, test).argmax(axis=1)
        right += int((guessed == labels[test]).sum())
    assert right / len(labels) > 0.93
