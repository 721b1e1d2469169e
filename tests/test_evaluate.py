from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from model.architecture import EcapaDims, FrontEndSpec
from model.bundle import Label
from model.data.dataset import WindowSet
from model.engine import Engine, Inference, Windows
from model.evaluation import baseline as baseline_module
from model.evaluation import evaluate as module
from model.evaluation.baseline import fit_baseline
from model.evaluation.evaluate import EvaluationError, Subject, evaluate
from model.evaluation.report import report
from model.untrained import write_untrained_bundle
from tests.labelled_windows import LABELS, labelled_windows

sklearn_metrics = pytest.importorskip("sklearn.metrics")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.evaluation.bootstrap.REPEATS", 100)
    monkeypatch.setattr(module, "TIMED_S", 0.02)
    monkeypatch.setattr(baseline_module, "TREES", 20)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Of an untrained network: any answers will do, so long as the figures made of them are right."""
    folder = tmp_path_factory.mktemp("bundle")
    write_untrained_bundle(
        folder / "b",
        network=EcapaDims(channels=16, mfa_channels=16, attention=8, embedding=8, se_bottleneck=8),
        front_end=FrontEndSpec(n_mels=20, level="rms"),
        labels=tuple(Label(name, "fault") for name in LABELS),
        rate_hz=16_000.0,
        window_samples=2_048,
        hop_samples=1_024,
    )
    return Engine(folder / "b", device="cpu", threads=1)


def _answers(engine: Engine, windows: WindowSet) -> Inference:
    return engine.infer(list(windows.windows))


def test_the_figures_are_those_of_scikit_learn(engine: Engine) -> None:
    windows = labelled_windows(60)
    found = evaluate(engine, windows).results
    probabilities = _answers(engine, windows).probabilities
    recognised = probabilities.argmax(axis=1)
    precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(
        windows.labels, recognised, labels=[0, 1, 2], zero_division=0
    )
    assert found.accuracy == pytest.approx(sklearn_metrics.accuracy_score(windows.labels, recognised))
    assert [label.precision for label in found.labels] == pytest.approx(precision)
    assert [label.recall for label in found.labels] == pytest.approx(recall)
    assert [label.f1 for label in found.labels] == pytest.approx(f1)
    assert [label.windows for label in found.labels] == support.tolist()
    assert found.macro_f1 == pytest.approx(sklearn_metrics.f1_score(windows.labels, recognised, average="macro"))
    assert found.weighted_f1 == pytest.approx(sklearn_metrics.f1_score(windows.labels, recognised, average="weighted"))
    assert found.weakest_recall == pytest.approx(recall.min())
    assert found.weakest_label == LABELS[int(recall.argmin())]
    assert found.confusion == sklearn_metrics.confusion_matrix(windows.labels, recognised).tolist()
    loss = sklearn_metrics.log_loss(
        windows.labels, probabilities / probabilities.sum(axis=1, keepdims=True, dtype=np.float64)
    )
    assert found.negative_log_likelihood == pytest.approx(loss, rel=1e-5)
    assert found.intervals.accuracy.low <= found.accuracy <= found.intervals.accuracy.high
    assert sum(found_bin.windows for found_bin in found.reliability) == 60


def test_labels_may_come_in_another_order(engine: Engine) -> None:
    order = ("tone", "click", "hiss")
    as_they_are, other = labelled_windows(45), labelled_windows(45, label_names=order)
    one = evaluate(engine, as_they_are, baseline=fit_baseline(as_they_are))
    two = evaluate(engine, other, baseline=fit_baseline(other))
    assert one.results == two.results
    assert two.baseline is not None
    assert two.baseline.accuracy > 0.9
    assert two.labels == list(LABELS)


def test_rows_choose_the_windows(engine: Engine) -> None:
    windows = labelled_windows(60)
    rows = np.arange(10, 40)
    baseline = fit_baseline(windows)
    one = evaluate(engine, windows, rows, baseline=baseline)
    two = evaluate(engine, windows.select(rows), baseline=baseline)
    assert (one.results, one.baseline, one.windows) == (two.results, two.baseline, 30)


def test_positions_sensors_and_recordings_have_their_own_accuracy(engine: Engine) -> None:
    windows = labelled_windows(60, positions=3)
    half = replace(windows, positions=np.where(np.arange(60) < 30, windows.positions, ""))
    found = evaluate(engine, half).results
    right = _answers(engine, windows).probabilities.argmax(axis=1) == windows.labels
    assert [group.name for group in found.by_position] == ["P1", "P2", "P3"]
    for group in found.by_position:
        inside = half.positions == group.name
        assert (group.windows, group.accuracy) == (inside.sum(), pytest.approx(right[inside].mean()))
    assert found.by_sensor == []
    assert sum(group.windows for group in found.by_recording) == 60


def test_the_baseline_stands_beside_on_the_same_windows(engine: Engine) -> None:
    found = evaluate(engine, labelled_windows(60, seed=2), baseline=fit_baseline(labelled_windows(60, seed=1)))
    assert found.baseline is not None
    assert found.difference is not None
    assert "20 trees" in found.baseline.name
    assert found.baseline.accuracy > 0.9
    assert found.difference.accuracy.value == pytest.approx(found.results.accuracy - found.baseline.accuracy)
    assert found.difference.macro_f1.value == pytest.approx(found.results.macro_f1 - found.baseline.macro_f1)
    assert found.difference.accuracy.high < 0, "an untrained network is worse for certain"


def test_shorter_windows_are_recognised_without_the_zeros_behind_them(engine: Engine) -> None:
    windows = labelled_windows(12)
    lengths = np.where(np.arange(12) % 2 == 0, 1_200, 2_048)
    filled = windows.windows.copy()
    filled[::2, 1_200:] = 9_999
    found = evaluate(engine, replace(windows, windows=filled, lengths=lengths)).results
    alone = engine.infer([row[:length] for row, length in zip(filled, lengths, strict=True)]).probabilities
    assert found.accuracy == pytest.approx((alone.argmax(axis=1) == windows.labels).mean())


def test_what_is_called_unknown_is_counted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = labelled_windows(30)
    answers = _answers(engine, windows)
    threshold = float(np.median(answers.unknown_scores))
    rule = msgspec.structs.replace(engine.card.unknown, threshold=threshold)
    monkeypatch.setattr(engine, "card", msgspec.structs.replace(engine.card, unknown=rule))
    found = evaluate(engine, windows).unknown
    strange = answers.unknown_scores > np.float32(threshold)
    right = answers.probabilities.argmax(axis=1) == windows.labels
    assert found.share == pytest.approx(strange.mean())
    assert found.by_label["tone"] == pytest.approx(strange[windows.labels == 2].mean())
    assert found.accuracy_of_others == pytest.approx(right[~strange].mean())
    assert found.kind == "mahalanobis"


def test_speed_names_device_and_precision(engine: Engine) -> None:
    speed = evaluate(engine, labelled_windows(9)).speed
    assert 0 < speed.lowest <= speed.windows_per_s <= speed.highest
    assert speed.precision == "float32"
    assert speed.device == "cpu"
    assert speed.sensors == pytest.approx(speed.windows_per_s * 1_024 / 16_000)


def test_everything_goes_into_json_and_back(engine: Engine) -> None:
    windows = labelled_windows(30)
    subject = Subject(bundle="b", data="d", part="test", notes=["n"], leakage=["l"], command="aewatch evaluate")
    found = evaluate(engine, windows, baseline=fit_baseline(windows), subject=subject)
    text = msgspec.json.encode(found)
    assert msgspec.json.decode(text, type=module.Evaluation) == found
    assert b"NaN" not in text


def test_a_label_that_the_bundle_does_not_know_is_refused_by_name(engine: Engine) -> None:
    windows = replace(labelled_windows(9), label_names=("click", "hiss", "whistle"))
    with pytest.raises(EvaluationError, match=r"does not know whistle; it knows click, hiss, tone"):
        evaluate(engine, windows)


@pytest.mark.parametrize("kept", [("hiss", "tone"), ("tone",)])
def test_windows_of_some_labels_alone_are_measured_as_among_all(engine: Engine, kept: tuple[str, ...]) -> None:
    windows = labelled_windows(30)
    number = {name: windows.label_names.index(name) for name in kept}
    rows = np.flatnonzero(np.isin(windows.labels, list(number.values())))
    whole = evaluate(engine, windows, rows, baseline=fit_baseline(windows))
    renumbered = np.array([kept.index(windows.label_names[label]) for label in windows.labels[rows]])
    some = replace(windows.select(rows), labels=renumbered, label_names=kept)
    alone = evaluate(engine, some, baseline=fit_baseline(windows))
    assert alone.results == whole.results
    assert alone.counts == {"click": 0, **dict.fromkeys(("hiss", "tone"), 0), **dict.fromkeys(kept, 10)}
    assert report(alone)


def test_another_rate_and_no_windows_are_refused(engine: Engine) -> None:
    windows = labelled_windows(9)
    with pytest.raises(EvaluationError, match="at 8000 Hz and the bundle wants 16000 Hz"):
        evaluate(engine, replace(windows, rate_hz=8_000.0))
    with pytest.raises(EvaluationError, match="no windows to evaluate on"):
        evaluate(engine, windows, np.array([], dtype=np.int64))


def test_progress_ends_where_it_should(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INFERRED_WINDOWS", 8)
    told: list[tuple[int, int]] = []
    evaluate(engine, labelled_windows(20), on_progress=lambda done, of: told.append((done, of)))
    assert told == [(8, 20), (16, 20), (20, 20)]


def test_an_engine_sees_windows_in_their_own_type(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.dtype] = []
    infer = engine.infer

    def watch(windows: Windows) -> Inference:
        seen.extend(window.dtype for window in windows)
        return infer(windows)

    monkeypatch.setattr(engine, "infer", watch)
    evaluate(engine, labelled_windows(6))
    assert set(seen) == {np.dtype(np.int16)}
