from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch

from model.data.dataset import WindowSet
from model.metrics import confusion_matrix, scores
from model.training.audition import CANDIDATES, audition
from model.training.recipe import Recipe
from tests.training_windows import tiny_recipe

COUNT, SAMPLES = 240, 400
LABELS = np.arange(COUNT) % 2
CPU = torch.device("cpu")
#: A front end as small as the windows.
OVERRIDES = ("front_end.n_fft=64", "front_end.win_length=64", "front_end.hop_length=32", "front_end.n_mels=8")

Windows = npt.NDArray[np.float64]


def _noise(seed: int = 0) -> Windows:
    return np.random.default_rng(seed).standard_normal((COUNT, SAMPLES))


def _by_level() -> Windows:
    """Noise at two levels, 5 dB apart."""
    return _noise() * 0.02 * np.where(LABELS == 1, 1.8, 1.0)[:, None]


def _by_sign() -> Windows:
    """The same spikes upwards or downwards."""
    skewed = np.random.default_rng(0).exponential(1.0, (COUNT, SAMPLES)) - 1.0
    return skewed * 0.02 * np.where(LABELS == 1, 1, -1)[:, None]


def _by_colour() -> Windows:
    """Dull or bright noise of every level and either sign: no augmentation hides it."""
    noise = _noise()
    noise[:, 1:] += np.where(LABELS == 1, 0.95, -0.95)[:, None] * noise[:, :-1].copy()
    return noise * 0.02 * np.random.default_rng(1).uniform(0.3, 3.0, (COUNT, 1))


def _data(windows: Windows, recordings: npt.NDArray[np.str_] | None = None) -> WindowSet:
    named = np.array([f"r{number // 8}" for number in range(COUNT)]) if recordings is None else recordings
    return WindowSet(
        windows=windows.astype(np.float32),
        lengths=np.full(COUNT, SAMPLES),
        labels=LABELS,
        label_names=("one", "other"),
        rate_hz=16_000.0,
        recordings=named,
        sensors=np.repeat("", COUNT),
        positions=np.repeat("", COUNT),
        splits=np.repeat("", COUNT),
    )


def _recipe(*overrides: str) -> Recipe:
    return tiny_recipe(overrides=(*OVERRIDES, *overrides))


def _dropped(before: Recipe, after: Recipe) -> set[str]:
    """The augmentations that `after` is without, by their names; all else must be as it was."""
    off = {
        name
        for name, fields in CANDIDATES.items()
        if any(getattr(before.augment, field) != getattr(after.augment, field) for field in fields)
    }
    for name, fields in CANDIDATES.items():
        for field, value in fields.items():
            expected = value if name in off else getattr(before.augment, field)
            assert getattr(after.augment, field) == expected
    return off


@pytest.mark.parametrize(("windows", "told_by"), [(_by_level, "gain"), (_by_sign, "polarity")], ids=["level", "sign"])
def test_what_tells_the_labels_apart_is_not_augmented_away(windows: Callable[[], Windows], told_by: str) -> None:
    recipe = _recipe("augment.gain_db=12.0")
    found, said = audition(_data(windows()), np.arange(COUNT), recipe, CPU)
    assert told_by in _dropped(recipe, found)
    assert ("polarity" if told_by == "gain" else "gain") not in _dropped(recipe, found)
    assert "time shift" not in _dropped(recipe, found)
    assert any(line.startswith(f"augmentation: no {told_by}, a ") for line in said)
    assert len(said) == len(_dropped(recipe, found))


def test_where_nothing_of_it_matters_all_of_them_stay() -> None:
    recipe = _recipe()
    found, said = audition(_data(_by_colour()), np.arange(COUNT), recipe, CPU)
    assert found == recipe
    assert said == [f"augmentation: all of {', '.join(CANDIDATES)}; none does harm"]


def test_only_what_the_recipe_asks_for_is_tried_and_nothing_is_switched_on() -> None:
    recipe = _recipe("augment.gain_db=12.0", "augment.polarity=false", "augment.noise_share=0.0")
    found, said = audition(_data(_by_colour()), np.arange(COUNT), recipe, CPU)
    assert found == recipe
    assert said == ["augmentation: all of gain, time shift, random response, reverberation; none does harm"]


@pytest.mark.parametrize(
    "overrides",
    [
        ("augment.audition=false",),
        tuple(
            f"augment.{field}={str(value).lower()}" for fields in CANDIDATES.values() for field, value in fields.items()
        ),
    ],
    ids=["not wanted", "nothing to try"],
)
def test_without_an_audition_the_recipe_stays_as_it_is_and_nothing_is_said(overrides: tuple[str, ...]) -> None:
    recipe = _recipe(*overrides)
    assert audition(_data(_by_level()), np.arange(COUNT), recipe, CPU) == (recipe, [])


def test_only_training_windows_are_heard() -> None:
    windows = _by_colour()
    train = np.arange(160)
    recipe = _recipe()
    before = audition(_data(windows), train, recipe, CPU)
    windows[160:] = np.nan
    assert audition(_data(windows), train, recipe, CPU) == before


def test_the_same_data_and_seed_give_the_same_answer() -> None:
    data, recipe = _data(_by_sign()), _recipe()
    assert audition(data, np.arange(COUNT), recipe, CPU) == audition(data, np.arange(COUNT), recipe, CPU)


@pytest.mark.parametrize("recordings", ["one", "one a label", "one of the other label"])
def test_data_of_few_recordings_is_tried_as_well(recordings: str) -> None:
    names = {
        "one": np.repeat("r", COUNT),
        "one a label": np.array([f"r{label}" for label in LABELS]),
        "one of the other label": np.array([f"r{0 if label else number // 8}" for number, label in enumerate(LABELS)]),
    }[recordings]
    recipe = _recipe("augment.gain_db=12.0")
    found, _ = audition(_data(_by_level(), names), np.arange(COUNT), recipe, CPU)
    assert "gain" in _dropped(recipe, found)


def test_a_judge_that_is_far_worse_than_the_other_has_nothing_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forest is right in all it says; the discriminant goes from bad to nothing with every augmentation."""
    calls = []

    def judged(*arguments: object) -> dict[str, object]:
        calls.append(arguments)
        right = np.arange(COUNT) < (0.5 if len(calls) > 1 else competence) * COUNT
        bad = scores(confusion_matrix(LABELS, np.where(right, LABELS, 1 - LABELS), 2))
        return {"a forest": scores(confusion_matrix(LABELS, LABELS, 2)), "a linear discriminant": bad}

    monkeypatch.setattr("model.training.audition._held_out", judged)
    recipe = _recipe()
    competence = 0.9
    found, _ = audition(_data(_by_colour()), np.arange(COUNT), recipe, CPU)
    assert _dropped(recipe, found) == set()
    calls.clear()
    competence = 0.97
    found, said = audition(_data(_by_colour()), np.arange(COUNT), recipe, CPU)
    assert _dropped(recipe, found) == set(CANDIDATES)
    assert said[0] == "augmentation: no gain, a linear discriminant went from 97.1 to 50.0 % by it"
