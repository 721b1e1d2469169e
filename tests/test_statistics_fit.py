from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from model.architecture import EcapaDims, FrontEndSpec, HeadSpec
from model.bundle import read_card
from model.bundle_making.make import RunFacts, SplitFacts, make_bundle
from model.data.dataset import WindowSet
from model.engine import Engine
from model.network import DOUBT, Recogniser, with_doubt
from model.training.feed import Feed
from model.training.recipe import Augment, load_recipe
from model.training.statistics_fit import (
    FOLDS,
    StatisticsError,
    _cross_fit,
    _discriminant,
    assign_folds,
    fit_statistics,
    statistics_logits,
    unlike_groups,
)

SAMPLES = 600
SPEC = FrontEndSpec(n_fft=64, win_length=64, hop_length=32, n_mels=8, level="rms", context="window")
DIMS = EcapaDims(channels=8, mfa_channels=8, attention=4, embedding=6, scale=2, se_bottleneck=4, dilations=(2,))
CPU = torch.device("cpu")
AUGMENT = msgspec.structs.replace(load_recipe("default").augment, gain_db=0.0, noise_share=0.0)

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


def _data(
    levels: Any = 1.0,
    *,
    labels: Indices | None = None,
    windows_a_recording: int = 10,
    count: int = 240,
    coloured: bool = True,
    **columns: Any,
) -> WindowSet:
    """Noise whose colour is that of its label, times `levels`; so many windows a recording, with all labels in each."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 3 if labels is None else labels
    windows = rng.standard_normal((count, SAMPLES + 2))
    if coloured:
        windows[labels == 1, 1:] += 0.6 * windows[labels == 1, :-1]
        windows[labels == 2, 1:] -= 0.6 * windows[labels == 2, :-1]
    windows = windows[:, 2:] * 0.02 * np.broadcast_to(np.asarray(levels, float), (count,))[:, None]
    values: dict[str, Any] = {
        "windows": windows.astype(np.float32),
        "lengths": np.full(count, SAMPLES),
        "labels": labels,
        "label_names": ("white", "low", "high")[: int(labels.max()) + 1],
        "rate_hz": 16_000.0,
        "recordings": np.array([f"r{number // windows_a_recording}" for number in range(count)]),
        "sensors": np.repeat("", count),
        "positions": np.repeat("", count),
        "splits": np.repeat("", count),
    }
    return WindowSet(**(values | columns))


def _model(labels: int = 3, spec: FrontEndSpec = SPEC, head: HeadSpec | None = None) -> Recogniser:
    torch.manual_seed(0)
    return Recogniser(spec, DIMS, head or HeadSpec(), labels)


def _fit(data: WindowSet, augment: Augment = AUGMENT, seed: int = 0) -> tuple[Recogniser, str]:
    model, rows = _model(len(data.label_names)), np.arange(len(data))
    feed = Feed(data, model.front_end.spec.min_samples, CPU)
    return model, fit_statistics(model, feed, rows, data.labels, unlike_groups(data, rows), augment, seed)


def _macro_f1_and_trust(note: str) -> tuple[float, float]:
    found = re.search(r"macro F1 of ([\d.]+) % on groups not seen; trusted ([\d.]+)-fold", note)
    assert found, note
    return float(found[1]), float(found[2])


def _blobs(count: int, labels: int, apart: float, seed: int = 0) -> tuple[Floats, Indices]:
    """Rows of correlated noise about a mean for each label."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((6, 6)) + 2 * np.eye(6)
    truth = np.arange(count) % labels
    return rng.standard_normal((count, 6)) @ mixing + apart * np.eye(6)[truth] @ mixing, truth


# --- The linear recogniser ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [2, 3, 5])
def test_it_finds_what_is_linear_and_says_the_probabilities_that_are_true(labels: int) -> None:
    rows, truth = _blobs(6_000, labels, 3.0)
    weight, bias = _discriminant(rows, truth, labels)
    unseen, answers = _blobs(6_000, labels, 3.0, seed=0)[0][::-1], truth[::-1]
    logits = unseen @ weight.T + bias
    centres = 3.0 * np.eye(6)[:labels]
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((6, 6)) + 2 * np.eye(6)
    own = unseen @ np.linalg.inv(mixing)
    exact = -0.5 * np.square(own[:, None] - centres).sum(axis=2)
    exact -= exact.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(logits - logits.mean(axis=1, keepdims=True), exact, atol=0.15 * np.abs(exact).max())
    right = (logits.argmax(axis=1) == answers).mean()
    assert right > (exact.argmax(axis=1) == answers).mean() - 0.01
    assert np.abs(weight.sum(axis=0)).max() < 1e-9


def test_a_rare_label_weighs_as_much_as_a_frequent_one() -> None:
    rows, truth = _blobs(3_000, 2, 1.5)
    few = (truth == 0) | (np.arange(3_000) < 200)
    weight, bias = _discriminant(rows[few], truth[few], 2)
    said = (rows @ weight.T + bias).argmax(axis=1)
    recalls = [(said[truth == label] == label).mean() for label in (0, 1)]
    assert recalls[1] == pytest.approx(recalls[0], abs=0.15)  # by the shares of the labels it would be 0.4


def test_a_label_that_is_not_there_is_as_unlikely_as_can_be() -> None:
    rows, truth = _blobs(300, 3, 5.0)
    there = truth != 1
    weight, bias = _discriminant(rows[there], truth[there], 3)
    logits = rows[there] @ weight.T + bias
    assert (logits.argmax(axis=1) == truth[there]).mean() > 0.95
    assert (logits.max(axis=1) - logits[:, 1]).min() > 10


@pytest.mark.parametrize("labels", [[2, 2, 2, 2], [0, 2], [1]])
def test_where_nothing_can_be_told_apart_what_is_there_is_equally_likely(labels: list[int]) -> None:
    weight, bias = _discriminant(np.random.default_rng(0).standard_normal((len(labels), 6)), np.array(labels), 3)
    assert not weight.any()
    assert {label for label in range(3) if bias[label] == bias.max()} == set(labels)


def test_what_is_said_of_a_fold_does_not_depend_on_that_folds_labels_or_changed_copies() -> None:
    rows, truth = _blobs(300, 3, 2.0)
    fold_of = np.arange(300) // 60
    changed = [rows, rows + 0.1]
    before = _cross_fit(changed, truth, fold_of, FOLDS, 3)
    for fold in range(FOLDS):
        inside = fold_of == fold
        other_truth = np.where(inside, (truth + 1) % 3, truth)
        other_copy = np.where(inside[:, None], 1_000.0, rows + 0.1)
        after = _cross_fit([rows, other_copy], other_truth, fold_of, FOLDS, 3)
        np.testing.assert_array_equal(after.unseen[inside], before.unseen[inside])
        assert not np.allclose(after.unseen[~inside], before.unseen[~inside])
        assert not np.allclose(after.whole[0], before.whole[0])


# --- Groups ------------------------------------------------------------------------------------------------------


@given(
    labels=st.lists(st.integers(0, 3), min_size=8, max_size=60),
    groups=st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=60),
    most=st.integers(2, 5),
)
@settings(max_examples=80, deadline=None)
@pytest.mark.filterwarnings("ignore:The least populated class")
def test_a_group_is_in_one_fold_but_for_labels_that_would_be_lost_with_it(
    labels: list[int], groups: list[str], most: int
) -> None:
    truth = np.array([0, 0, 1, 1, *labels])
    _, truth = np.unique(truth, return_inverse=True)
    of = np.array([groups[number % len(groups)] for number in range(len(truth))])
    fold_of, folds = assign_folds(truth, of, 0, most)
    assert 2 <= folds <= max(2, most)
    assert fold_of.min() >= 0
    assert fold_of.max() < folds
    alone = [label for label in np.unique(truth) if len(np.unique(of[truth == label])) == 1]
    for group in np.unique(of):
        assert len(np.unique(fold_of[(of == group) & ~np.isin(truth, alone)])) <= 1


def test_a_label_of_one_recording_is_parted_in_its_order_so_that_every_fit_knows_it() -> None:
    truth = np.repeat([0, 1, 2], 50)
    groups = np.array(["one"] * 50 + [f"r{number // 5}" for number in range(100)])
    fold_of, folds = assign_folds(truth, groups, 0)
    for fold in range(folds):
        assert set(truth[fold_of != fold]) == {0, 1, 2}
    assert np.count_nonzero(np.diff(fold_of[:50])) == FOLDS - 1


def test_the_same_labels_and_groups_are_parted_in_the_same_way_each_time() -> None:
    data = _data()
    first, second, other = (assign_folds(data.labels, data.recordings, seed)[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


def test_windows_are_judged_on_unknown_positions_where_three_are_known_and_else_on_unknown_recordings() -> None:
    rows = np.arange(240)
    places = np.array([f"P{number // 60}" for number in rows])
    data = _data()
    np.testing.assert_array_equal(unlike_groups(data, rows), data.recordings)
    np.testing.assert_array_equal(unlike_groups(_data(positions=places), rows), places)
    np.testing.assert_array_equal(unlike_groups(_data(positions=places), rows[:120]), data.recordings[:120])
    where_unknown = np.where(rows < 5, "", places)
    np.testing.assert_array_equal(unlike_groups(_data(positions=where_unknown), rows), data.recordings)
    of_one_label = np.array([f"P{label}" for label in data.labels])
    np.testing.assert_array_equal(unlike_groups(_data(positions=of_one_label), rows), data.recordings)


# --- The fit of a model ------------------------------------------------------------------------------------------


def test_a_fitted_model_recognises_by_its_statistics_what_they_tell() -> None:
    data = _data()
    model, note = _fit(data)
    macro_f1, trust = _macro_f1_and_trust(note)
    assert macro_f1 > 85
    assert trust > 0.5
    logits = statistics_logits(model, Feed(data, SPEC.min_samples, CPU), np.arange(240))
    assert (logits.argmax(axis=1) == data.labels).mean() > 0.9
    np.testing.assert_allclose(np.exp(logits).sum(axis=1), 1.0, atol=1e-5)
    assert model.statistics is not None
    assert float(model.statistics.share) == 0.0  # until the network has been heard


def test_two_labels_are_told_apart_too() -> None:
    data = _data(labels=np.arange(240) % 2 + 0)
    macro_f1, _ = _macro_f1_and_trust(_fit(data)[1])
    assert macro_f1 > 85


def test_rows_of_context_are_standardised_over_the_training_windows() -> None:
    data = _data(np.geomspace(0.01, 1, 240))
    model, _ = _fit(data)
    own = model.front_end.context(torch.from_numpy(data.windows))
    torch.testing.assert_close(model.front_end.context_mean, own.mean(dim=0), atol=1e-4, rtol=1e-4)


def test_what_recordings_do_not_agree_about_is_trusted_less() -> None:
    numbers = np.arange(240)
    labels, turned = numbers % 2, numbers // 10 % 2
    agreed = _data(np.where(labels == 1, 3.0, 1.0), labels=labels, coloured=False)
    disputed = _data(np.where(labels ^ turned, 3.0, 1.0), labels=labels, coloured=False)
    sure, unsure = (_macro_f1_and_trust(_fit(data)[1]) for data in (agreed, disputed))
    assert sure[0] > 95 > 75 > unsure[0]
    assert sure[1] > 4 * unsure[1]


def test_a_recording_that_tells_its_label_by_its_own_sound_is_not_taken_for_knowledge() -> None:
    rng = np.random.default_rng(1)
    of_recording = rng.permutation(np.arange(12) % 2)  # each recording has one label, and a colour of its own
    colours = rng.standard_normal((12, 16))
    numbers = np.arange(240) // 20
    heard = _data(labels=of_recording[numbers], coloured=False, windows_a_recording=20)
    coloured = [np.convolve(window, colours[n], mode="same") for window, n in zip(heard.windows, numbers, strict=True)]
    heard = replace(heard, windows=np.array(coloured, np.float32))
    anew = replace(heard, recordings=np.array([f"w{number}" for number in range(240)]))
    grouped, ungrouped = (_macro_f1_and_trust(_fit(data)[1]) for data in (heard, anew))
    assert ungrouped[0] > 95 > 75 > grouped[0]
    assert ungrouped[1] > 2 * grouped[1]


def test_the_fit_holds_for_changed_windows_unless_that_loses_what_tells_the_labels_apart() -> None:
    labels = np.arange(240) % 2
    by_level = _data(np.where(labels == 1, 1.5, 1.0), labels=labels, coloured=False)
    deafening = msgspec.structs.replace(AUGMENT, gain_db=40.0)
    assert "fitted on windows as they are," in _fit(by_level, deafening)[1]
    assert "fitted on windows as they are and changed," in _fit(_data())[1]


def test_the_same_seed_gives_the_same_bits_and_leaves_the_programs_own_random_state_alone() -> None:
    data = _data()
    torch.manual_seed(7)
    np.random.seed(7)
    one, other = _fit(data)[0].state_dict(), _fit(data)[0].state_dict()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    with torch.random.fork_rng():
        _fit(data)
        rest = torch.rand(3)
        _fit(data)
        torch.manual_seed(0)
        _model()
    torch.manual_seed(0)
    _model()
    assert torch.equal(torch.rand(3), rest)


@pytest.mark.parametrize("recordings", ["one", "of a label each", "one label in one"])
def test_few_recordings_are_fitted_too(recordings: str) -> None:
    labels = np.arange(90) % 3
    names = {
        "one": np.repeat("r", 90),
        "of a label each": np.array([f"r{label}" for label in labels]),
        "one label in one": np.array([f"r{label}-{0 if label == 1 else n // 9}" for n, label in enumerate(labels)]),
    }[recordings]
    model, note = _fit(_data(count=90, labels=labels, recordings=names))
    assert _macro_f1_and_trust(note)[0] > 75
    assert all(np.isfinite(array).all() for array in model.weights().values())


def test_a_label_with_two_windows_is_fitted_and_one_with_a_single_window_refused() -> None:
    labels = np.array([0] * 40 + [1] * 40 + [2] * 2)
    _fit(_data(count=82, labels=labels, recordings=np.array([f"r{number // 2}" for number in range(82)])))
    _fit(_data(count=6, labels=np.arange(6) % 3))
    with pytest.raises(StatisticsError, match="label 2 has fewer than two training windows; label more"):
        _fit(_data(count=81, labels=labels[:81]))


def test_a_model_without_context_has_no_statistics_to_ask() -> None:
    with pytest.raises(ValueError, match="no statistics to ask"):
        statistics_logits(_model(spec=replace(SPEC, context="none")), Feed(_data(), 64, CPU), np.arange(3))


# --- Doubt, and the engine ---------------------------------------------------------------------------------------


@given(
    logits=npst.arrays(
        np.float32, st.tuples(st.integers(1, 4), st.integers(2, 9)), elements=st.floats(-1e4, 1e4, width=32)
    )
)
@settings(max_examples=60, deadline=None)
def test_with_doubt_no_label_is_ruled_out_or_certain_and_the_order_stays(logits: npt.NDArray[np.float32]) -> None:
    found = with_doubt(torch.from_numpy(logits)).double().numpy()
    labels = logits.shape[1]
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1.0, atol=1e-5)
    assert found.min() >= np.log(DOUBT / labels) - 1e-5
    assert found.max() <= np.log(1 - DOUBT + DOUBT / labels) + 1e-5
    for row, said in zip(logits, found, strict=True):
        assert said[row.argmax()] == said.max()


def _facts() -> RunFacts:
    return RunFacts(
        rate_hz=16_000.0,
        rate_is_nominal=False,
        window_samples=SAMPLES,
        hop_samples=SAMPLES // 2,
        data="/data/plant",
        data_hash="abc",
        split=SplitFacts(kind="recording"),
        command="aewatch train",
        started="2026-11-24T10:00:00+00:00",
        recipe="[training]\nseed = 0\n",
    )


@pytest.mark.parametrize("head", [HeadSpec(), HeadSpec(kind="cosine", scale=8.0)], ids=["linear", "cosine"])
def test_the_engine_says_of_a_bundle_with_context_what_the_model_says_in_any_company(
    head: HeadSpec, tmp_path: Path
) -> None:
    data = _data(np.geomspace(0.05, 1, 240))
    model, train, validation = _model(head=head), np.arange(160), np.arange(160, 240)
    feed = Feed(data, SPEC.min_samples, CPU)
    fit_statistics(model, feed, train, data.labels[train], data.recordings[train], AUGMENT, 0)
    make_bundle(tmp_path / "b", "plant", _facts(), model, data, train, validation)
    engine = Engine(tmp_path / "b", device="cpu", threads=1)
    batch = [window[:length] for window, length in zip(data.windows, [SAMPLES, 431, 70, 20] * 5, strict=False)]
    together = engine.infer(batch)
    for row, window in enumerate(batch):
        alone = engine.infer([window])
        np.testing.assert_array_equal(alone.probabilities[0], together.probabilities[row])
        np.testing.assert_array_equal(alone.embeddings[0], together.embeddings[row])
    card = read_card(tmp_path / "b")
    assert float(model.statistics.share) > 0  # type: ignore[union-attr]  # the network is untrained
    for row, window in enumerate(batch):
        samples = torch.zeros(1, max(len(window), SPEC.min_samples))
        samples[0, : len(window)] = torch.from_numpy(window)
        with torch.inference_mode():
            logits, _ = model.eval()(samples)
        expected = torch.softmax(logits / card.temperature, dim=1)[0].numpy()
        np.testing.assert_allclose(together.probabilities[row], expected, atol=1e-6)
    said = engine.infer(list(data.windows[validation])).probabilities.argmax(axis=1)
    assert (said == data.labels[validation]).mean() > 0.8


@pytest.mark.parametrize("shares", [(1.0, 0.5), (0.5, 1.0), (0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_temperature_and_metrics_of_a_bundle_are_of_what_it_says_with_its_shares(
    kind: str, shares: tuple[float, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.bundle_making.blend.fit_blend", lambda network, statistics, labels: shares)
    data = _data()
    model, train, validation = _model(head=HeadSpec(kind=kind)), np.arange(160), np.arange(160, 240)  # type: ignore[arg-type]
    feed = Feed(data, SPEC.min_samples, CPU)
    fit_statistics(model, feed, train, data.labels[train], data.recordings[train], AUGMENT, 0)
    card = make_bundle(tmp_path / "b", "plant", _facts(), model, data, train, validation)
    probabilities = Engine(tmp_path / "b", device="cpu", threads=1).infer(list(data.windows[validation])).probabilities
    likely = probabilities[np.arange(80), data.labels[validation]]
    assert -np.log(likely).mean() == pytest.approx(card.metrics["negative_log_likelihood"]["calibrated"], abs=2e-4)
