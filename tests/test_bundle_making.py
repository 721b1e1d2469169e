from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch

from model.architecture import EcapaDims, FrontEndSpec, HeadSpec
from model.bundle import BundleCard, load_weights, read_card
from model.bundle_making.make import (
    Indices,
    Judged,
    RunFacts,
    SplitFacts,
    fit_unknown,
    judged,
    make_bundle,
    read_run,
    unknown_scores,
    unknown_threshold,
)
from model.bundle_making.model_card import model_card
from model.calibration import fit_temperature
from model.data.dataset import WindowSet
from model.engine import Engine
from model.metrics import scores
from model.network import Recogniser
from model.training.recipe import load_recipe, recipe_text

DIMS = EcapaDims(channels=16, mfa_channels=8, attention=4, embedding=6, scale=2, se_bottleneck=4, dilations=(2,))
SPEC = FrontEndSpec(n_mels=20, level="rms")
SAMPLES = 2_048
NAMES = ("noise", "plb", "knock")
FACTS = RunFacts(
    rate_hz=500_000.0,
    rate_is_nominal=False,
    window_samples=SAMPLES,
    hop_samples=1_024,
    data="/data/plant",
    data_hash="abc",
    split=SplitFacts(kind="position", note="Positions of the plant."),
    device="cpu",
    command="aewatch train --data /data/plant --out RUN",
    started="2026-11-24T10:00:00+00:00",
    recipe=recipe_text(load_recipe("paper", ["training.seed=7"])),
)


@dataclass(frozen=True)
class Plant:
    """A data set, and which of its windows are for what."""

    data: WindowSet
    train: Indices
    validation: Indices

    def of(self, part: Indices) -> npt.NDArray[np.int64]:
        return self.data.labels[part]


def _plant(train: int, validation: int, seed: int = 0) -> Plant:
    """So many windows of each label, told apart by their colour; a third of them is shorter than the room."""
    rng = np.random.default_rng(seed)
    count = len(NAMES) * (train + validation)
    numbers = np.arange(count)
    labels = numbers % len(NAMES)
    windows = rng.standard_normal((count, SAMPLES))
    windows[labels == 1] = np.cumsum(windows[labels == 1], axis=1)
    windows[labels == 2] = np.diff(windows[labels == 2], axis=1, append=0.0)
    lengths = np.where(numbers % 3 == 0, 1_500, SAMPLES)
    windows[np.arange(SAMPLES) >= lengths[:, None]] = 0.0
    in_training = numbers < len(NAMES) * train
    data = WindowSet(
        windows=(windows / np.abs(windows).max(axis=1, keepdims=True) * 20_000).astype(np.int16),
        lengths=lengths,
        labels=labels,
        label_names=NAMES,
        rate_hz=500_000.0,
        recordings=np.array([f"{'t' if early else 'v'}{n // 2}.wav" for n, early in enumerate(in_training)]),
        sensors=np.full(count, ""),
        positions=np.array([f"{'t' if early else 'v'}-{n % 2}" for n, early in enumerate(in_training)]),
        splits=np.full(count, ""),
    )
    return Plant(data, np.flatnonzero(in_training), np.flatnonzero(~in_training))


def _model(seed: int = 0) -> Recogniser:
    torch.manual_seed(seed)
    return Recogniser(SPEC, DIMS, HeadSpec(), len(NAMES), "mahalanobis").train()


def _make(out: Path, plant: Plant, facts: RunFacts = FACTS, roles: dict[str, str] | None = None) -> BundleCard:
    return make_bundle(out, "plant", facts, _model(), plant.data, plant.train, plant.validation, roles)


@pytest.fixture(scope="module")
def plant() -> Plant:
    return _plant(30, 20)


def test_a_bundle_holds_the_model_its_calibration_and_where_it_is_from(tmp_path: Path, plant: Plant) -> None:
    model = _model()
    card = make_bundle(
        tmp_path / "b", "plant", FACTS, model, plant.data, plant.train, plant.validation, {"plb": "fault"}
    )
    assert read_card(tmp_path / "b") == card
    weights = load_weights(tmp_path / "b", card)
    assert all(np.array_equal(weights[name], array) for name, array in model.weights().items())
    assert (card.front_end, card.network, card.head) == (SPEC, DIMS, HeadSpec())
    assert (card.rate_hz, card.rate_is_nominal, card.window_samples, card.hop_samples) == (
        500_000.0,
        False,
        2_048,
        1_024,
    )
    assert card.roles == {"noise": "background", "plb": "fault", "knock": "fault"}
    assert card.thresholds == {"plb": 0.6, "knock": 0.6}
    found = judged(model, plant.data, plant.validation)
    truth = plant.of(plant.validation)
    assert card.temperature == pytest.approx(fit_temperature(found.logits, truth))
    accuracy = float(np.mean(found.logits.argmax(axis=1) == truth))
    assert card.metrics["windows"]["accuracy"] == pytest.approx(accuracy, abs=1e-4)
    training = card.training
    assert (training.data_hash, training.command, training.seed, training.date, training.split) == (
        ("abc", FACTS.command, 7, "2026-11-24", "position")
    )
    assert training.counts["train"] == {"noise": 30, "plb": 30, "knock": 30}
    assert training.positions == {"train": "2: t-0, t-1", "validation": "2: v-0, v-1"}
    assert training.recordings["train"] == tuple(sorted({f"t{number // 2}.wav" for number in range(90)}))
    assert set(training.recordings["validation"]) == {f"v{number // 2}.wav" for number in range(90, 150)}
    assert training.recipe == FACTS.recipe


def test_the_engine_says_of_a_made_bundle_what_its_training_measured(tmp_path: Path, plant: Plant) -> None:
    model, data = _model(), plant.data
    card = make_bundle(tmp_path / "b", "plant", FACTS, model, data, plant.train, plant.validation)
    inference = Engine(tmp_path / "b", device="cpu", threads=1).infer(
        [data.windows[index][: data.lengths[index]] for index in plant.validation]
    )
    found = judged(model, data, plant.validation)
    np.testing.assert_allclose(inference.embeddings, found.embeddings, atol=1e-4)
    np.testing.assert_allclose(inference.unknown_scores, unknown_scores(model.unknown, found), rtol=1e-2, atol=1e-3)
    strange = float(np.mean(inference.unknown_scores > card.unknown.threshold))
    assert strange == pytest.approx(card.metrics["called_unknown"], abs=1e-3)
    assert strange < 0.05


def test_the_readme_says_what_went_in_what_came_out_and_what_not_to_expect(tmp_path: Path, plant: Plant) -> None:
    card = _make(tmp_path / "b", plant)
    text = (tmp_path / "b" / "README.md").read_text()
    for said in (
        "# plant\n",
        "2,048 samples (4.096 ms) every 1,024 at 500,000 Hz",
        "/data/plant",
        "Parted by position",
        "Positions of the plant.",
        "| plb | calibration | 30 | 20 |",
        "- validation positions: 2: v-0, v-1",
        "| precision",
        f"temperature {card.temperature:.3g}",
        "Fewer than 50 training windows of noise (30), plb (30), knock (30).",
        "Trained at 2 sensor positions only.",
        FACTS.command,
        "On 2026-11-24, seed 7 (cpu)",
        '[optimizer]\nkind = "adam"',
    ):
        assert said in text, said
    assert "parted at random" not in text
    assert "{" not in text


def test_the_readme_says_whether_the_gain_of_a_sensor_matters(tmp_path: Path, plant: Plant) -> None:
    card = _make(tmp_path / "b", plant)
    found = scores(np.diag([7, 7, 7]))
    for front_end, said in (
        (FrontEndSpec(level="rms"), "the gain of a sensor does not matter"),
        (FrontEndSpec(level="none"), "the gain of a sensor matters"),
        (FrontEndSpec(level="rms", context="window"), "the gain of a sensor matters"),
    ):
        assert said in model_card(msgspec.structs.replace(card, front_end=front_end), found, "", None, "")


def test_the_readme_warns_of_windows_parted_at_random_and_of_a_fold_left_out(tmp_path: Path, plant: Plant) -> None:
    _make(tmp_path / "b", plant, msgspec.structs.replace(FACTS, split=SplitFacts(kind="random windows"), fold="3"))
    text = (tmp_path / "b" / "README.md").read_text()
    assert "nothing about recordings that are new" in text.replace("\n", " ")
    assert "fold 3 was left out" in text


def test_too_little_to_calibrate_with_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no validation windows"):
        _make(tmp_path / "b", _plant(2, 0))
    plant = _plant(2, 2)
    with pytest.raises(ValueError, match="fewer than two training windows of knock"):
        _make(tmp_path / "b", replace(plant, train=plant.train[:5]))
    with pytest.raises(ValueError, match="role of friction: no such label"):
        _make(tmp_path / "b", plant, roles={"friction": "fault"})
    assert not (tmp_path / "b").exists()


def test_a_few_windows_are_enough_for_a_bundle(tmp_path: Path) -> None:
    card = _make(tmp_path / "b", _plant(3, 1))
    assert np.isfinite(card.unknown.threshold)
    load_weights(tmp_path / "b", card)


def test_with_few_validation_windows_the_unknown_score_is_fitted_on_training_windows() -> None:
    few, many = _plant(30, 5), _plant(30, 30)
    for plant, heard in ((few, few.train), (many, many.validation)):
        model = _model()
        fit_unknown(model, plant.data, plant.train, plant.validation, judged(model, plant.data, plant.validation))
        embeddings = judged(model, plant.data, heard).embeddings
        for label in range(len(NAMES)):
            mean = embeddings[plant.of(heard) == label].mean(axis=0)
            np.testing.assert_allclose(model.unknown.means[label], mean, atol=1e-4)


def test_the_threshold_comes_from_scores_of_windows_that_the_fit_has_not_seen(plant: Plant) -> None:
    # A fit to sixty windows takes their own chance for the way of the world and finds them all too near.
    rng = np.random.default_rng(0)
    model = _model()
    embeddings = rng.standard_normal((len(plant.validation), DIMS.embedding)).astype(np.float32)
    found = Judged(np.zeros((len(embeddings), 3), np.float32), embeddings)
    threshold = fit_unknown(model, plant.data, plant.train, plant.validation, found)
    seen = unknown_scores(model.unknown, found)
    assert threshold > unknown_threshold(seen, plant.of(plant.validation))
    more = Judged(np.zeros((9_000, 3), np.float32), rng.standard_normal((9_000, DIMS.embedding)).astype(np.float32))
    assert np.mean(unknown_scores(model.unknown, more) > threshold) < 0.01


def test_the_threshold_leaves_more_room_the_fewer_scores_there_are() -> None:
    rng = np.random.default_rng(0)
    few = [unknown_threshold(rng.chisquare(8, 30) / 8, np.zeros(30, np.int64)) for _ in range(200)]
    many = [unknown_threshold(rng.chisquare(8, 3_000) / 8, np.zeros(3_000, np.int64)) for _ in range(200)]
    new = rng.chisquare(8, 100_000) / 8
    assert np.mean(few) > np.mean(many)
    assert max(np.mean(new > threshold) for threshold in many) < 0.002
    assert np.mean([np.mean(new > threshold) for threshold in few]) < 0.01


def test_one_window_under_a_wrong_label_does_not_make_the_whole_world_familiar() -> None:
    found = np.append(np.random.default_rng(0).chisquare(8, 60) / 8, 500.0).astype(np.float32)
    assert unknown_threshold(found, np.zeros(61, np.int64)) < 10.0


def test_no_label_is_lost_to_the_unknown_for_being_rare() -> None:
    rng = np.random.default_rng(0)
    found = np.concatenate([rng.chisquare(8, 5_000) / 8, 20.0 + rng.chisquare(8, 25) / 8]).astype(np.float32)
    labels = np.repeat([0, 1], [5_000, 25])
    assert np.mean(found[labels == 1] > unknown_threshold(found, labels)) == 0.0


def test_a_run_folder_gives_the_facts_and_may_say_more(tmp_path: Path) -> None:
    facts = msgspec.to_builtins(FACTS)
    recipe = facts.pop("recipe")
    (tmp_path / "recipe.toml").write_text(recipe)
    (tmp_path / "run.json").write_text(json.dumps({**facts, "labels": ["a", "b"], "recordings": {}}))
    assert read_run(tmp_path) == FACTS


def test_a_folder_that_is_no_run_is_named_and_so_is_a_fact_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run\.json: No such file.*aewatch train"):
        read_run(tmp_path)
    (tmp_path / "recipe.toml").write_text("")
    (tmp_path / "run.json").write_text('{"rate_hz": 1.0}')
    with pytest.raises(ValueError, match=r"run\.json: .*rate_is_nominal"):
        read_run(tmp_path)
