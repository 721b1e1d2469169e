from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from model.data.dataset import WindowSet
from model.network import Recogniser
from model.training.checkpoint import read_checkpoint
from model.training.history import Epoch, read_history
from model.training.interruption import TrainingInterruptedError
from model.training.judge import judge, validation_scores
from model.training.recipe import Recipe, load_recipe
from model.training.run_folder import BEST, FACTS_FILE, LAST, RECIPE_FILE, RunError
from model.training.train import Progress, TrainingDivergedError, new_recogniser, train_run
from tests.training_windows import SAMPLES, Parts, bursts, first_and_rest, tiny_recipe

DATA = bursts(120)
PARTS = first_and_rest(120, 88)  # 5 steps an epoch


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(run / LAST)[0]


def _assert_same_run(run: Path, other: Path) -> None:
    """Weights, average, optimizer, best weights and history, bit for bit."""
    for file in (LAST, BEST):
        mine, others = read_checkpoint(run / file)[0], read_checkpoint(other / file)[0]
        assert mine.keys() == others.keys()
        for name, tensor in mine.items():
            assert torch.equal(tensor, others[name]), f"{file}: {name}"
    assert _untimed(read_history(run)) == _untimed(read_history(other))


def _untimed(epochs: list[Epoch]) -> list[Epoch]:
    return [msgspec.structs.replace(epoch, windows_per_s=0.0, elapsed_s=0.0) for epoch in epochs]


@pytest.mark.parametrize("name", ["default", "paper"])
def test_training_learns_what_can_be_learnt(name: str, tmp_path: Path) -> None:
    seen: list[Epoch] = []
    recipe = tiny_recipe(name, ["training.epochs=16", "optimizer.learning_rate=5e-3"])
    model = train_run(DATA, PARTS, recipe, tmp_path / "run", on_epoch=seen.append)
    assert [epoch.epoch for epoch in seen] == [4, 8, 12, 16]
    assert seen[-1].validation.accuracy > 0.9
    assert seen[-1].loss < seen[0].loss
    assert seen[-1].train_accuracy > 0.8
    assert not model.training
    logits, embeddings = judge(model, DATA, PARTS.validation)
    assert logits.shape == (32, 2)
    assert embeddings.shape == (32, 8)
    best = next(epoch for epoch in reversed(seen) if epoch.best)
    assert validation_scores(torch.from_numpy(logits), DATA.labels[PARTS.validation]) == best.validation


def test_the_folder_says_what_was_trained_on_what(tmp_path: Path) -> None:
    run, recipe = tmp_path / "run", tiny_recipe(overrides=["training.epochs=1"])
    train_run(DATA, PARTS, recipe, run)
    assert load_recipe(run / RECIPE_FILE) == recipe
    facts = json.loads((run / FACTS_FILE).read_text())
    assert facts["labels"] == ["noise", "burst"]
    assert facts["data_hash"] == DATA.fingerprint()
    assert facts["split"]["train"] == {"noise": 44, "burst": 44}
    assert facts["recordings"]["validation"] == [f"recording {number}" for number in range(11, 15)]
    assert (facts["window_samples"], facts["hop_samples"]) == (SAMPLES, SAMPLES // 2)
    assert [epoch.epoch for epoch in read_history(run)] == [1]
    tensors, _ = read_checkpoint(run / BEST)
    assert tensors.keys() == {f"model.{name}" for name in new_recogniser(recipe, 2).state_dict()}


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    recipe = tiny_recipe(overrides=["training.epochs=1"])
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        chosen = msgspec.structs.replace(recipe, training=msgspec.structs.replace(recipe.training, seed=seed))
        train_run(DATA, PARTS, chosen, tmp_path / name)
    _assert_same_run(tmp_path / "one", tmp_path / "two")
    assert not torch.equal(
        _weights(tmp_path / "one")["model.head.weight"], _weights(tmp_path / "other")["model.head.weight"]
    )


def test_training_leaves_the_random_state_of_the_program_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_run(DATA, PARTS, tiny_recipe(overrides=["training.epochs=1"]), tmp_path / "run")
    assert torch.equal(torch.rand(3), expected)


# --- Stopped and resumed -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["default", "paper"])
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return tiny_recipe(request.param, ["training.epochs=10"])  # 50 steps, judged after 20, 40 and 50


@pytest.fixture(scope="module")
def uninterrupted(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    train_run(DATA, PARTS, recipe, run)
    torch.set_num_threads(threads)
    return run


def _stopped_at(step: int, number: int, recipe: Recipe, run: Path, *, resume: bool = False) -> None:
    def on_step(progress: Progress) -> None:
        if progress.step == step:
            signal.raise_signal(number)

    with pytest.raises(TrainingInterruptedError, match=r"stopped after step .* of 50; --resume goes on") as caught:
        train_run(DATA, PARTS, recipe, run, on_step=on_step, resume=resume)
    assert caught.value.signal_number == number
    assert read_checkpoint(run / LAST)[1]["step"] == step + 1  # the signal came after a step, and one more was done


@pytest.mark.parametrize("step", [3, 20, 33, 48])
def test_stopped_by_a_signal_and_resumed_is_the_same_as_uninterrupted(
    step: int, recipe: Recipe, uninterrupted: Path, tmp_path: Path
) -> None:
    _stopped_at(step, signal.SIGTERM, recipe, tmp_path / "run")
    train_run(DATA, PARTS, recipe, tmp_path / "run", resume=True)
    _assert_same_run(tmp_path / "run", uninterrupted)


def test_stopped_several_times_is_still_the_same(recipe: Recipe, uninterrupted: Path, tmp_path: Path) -> None:
    _stopped_at(7, signal.SIGINT, recipe, tmp_path / "run")
    _stopped_at(9, signal.SIGTERM, recipe, tmp_path / "run", resume=True)
    _stopped_at(41, signal.SIGINT, recipe, tmp_path / "run", resume=True)
    train_run(DATA, PARTS, recipe, tmp_path / "run", resume=True)
    _assert_same_run(tmp_path / "run", uninterrupted)


def test_a_crash_after_an_epoch_before_its_checkpoint_is_made_good(
    recipe: Recipe, uninterrupted: Path, tmp_path: Path
) -> None:
    def crash(epoch: Epoch) -> None:
        if epoch.step == 40:
            raise MemoryError

    with pytest.raises(MemoryError):
        train_run(DATA, PARTS, recipe, tmp_path / "run", on_epoch=crash)
    assert [epoch.step for epoch in read_history(tmp_path / "run")] == [20, 40]
    assert read_checkpoint(tmp_path / "run" / LAST)[1]["step"] == 20
    train_run(DATA, PARTS, recipe, tmp_path / "run", resume=True)
    _assert_same_run(tmp_path / "run", uninterrupted)


def test_resuming_a_finished_training_gives_its_best_model_again(recipe: Recipe, uninterrupted: Path) -> None:
    model = train_run(DATA, PARTS, recipe, uninterrupted, resume=True)
    best = read_checkpoint(uninterrupted / BEST)[0]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, best[f"model.{name}"])


def test_the_signals_do_what_they_did_before_once_training_is_over(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    train_run(DATA, PARTS, tiny_recipe(overrides=["training.epochs=1"]), tmp_path / "run")
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_second_control_c_does_not_wait(tmp_path: Path) -> None:
    def twice(progress: Progress) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_run(DATA, PARTS, tiny_recipe(), tmp_path / "run", on_step=twice)


# --- What is refused ---------------------------------------------------------------------------------------------


def test_a_folder_that_holds_a_training_is_not_overwritten(recipe: Recipe, uninterrupted: Path) -> None:
    before = (uninterrupted / LAST).read_bytes()
    with pytest.raises(RunError, match="holds a training already; --resume goes on with it"):
        train_run(DATA, PARTS, recipe, uninterrupted)
    assert (uninterrupted / LAST).read_bytes() == before


def test_a_folder_with_other_things_in_it_is_not_trained_into(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RunError, match="not empty, and no training"):
        train_run(DATA, PARTS, tiny_recipe(), tmp_path)


def test_resuming_with_other_data_another_split_or_another_recipe_is_refused(
    recipe: Recipe, uninterrupted: Path
) -> None:
    with pytest.raises(RunError, match="name the data set it was begun with"):
        train_run(bursts(120, seed=1), PARTS, recipe, uninterrupted, resume=True)
    with pytest.raises(RunError, match="parted in another way"):
        train_run(DATA, first_and_rest(120, 80), recipe, uninterrupted, resume=True)
    other = msgspec.structs.replace(recipe, loss=msgspec.structs.replace(recipe.loss, label_smoothing=0.25))
    with pytest.raises(RunError, match=r"loss\.label_smoothing was 0\.\d+, is 0\.25"):
        train_run(DATA, PARTS, other, uninterrupted, resume=True)


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        (Parts(np.arange(8), np.arange(8, 120)), "8 windows do not fill a batch of 16"),
        (Parts(np.arange(100), np.arange(0)), "the validation part has no windows"),
        (Parts(np.arange(100), np.arange(90, 120)), "10 windows are in the training and the validation part"),
        (Parts(np.arange(0, 100, 2), np.arange(100, 120)), "no training windows of burst"),
    ],
)
def test_parts_that_cannot_be_trained_on_are_named(parts: Parts, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        train_run(DATA, parts, tiny_recipe(), tmp_path / "run")


def test_a_recipe_with_open_choices_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"leaves .*network\.channels.* open"):
        train_run(DATA, PARTS, load_recipe("default"), tmp_path / "run")


def test_masks_choose_windows_like_indices_do(tmp_path: Path) -> None:
    recipe = tiny_recipe(overrides=["training.epochs=1"])
    masks = Parts(np.arange(120) < 88, np.arange(120) >= 88)
    train_run(DATA, PARTS, recipe, tmp_path / "indices")
    train_run(DATA, masks, recipe, tmp_path / "masks")
    _assert_same_run(tmp_path / "indices", tmp_path / "masks")


# --- What goes wrong while training ------------------------------------------------------------------------------


def _broken_at(step: int, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from model.training import train

    real, calls = train.classification_loss, iter(range(1_000))

    def broken(*arguments: object, **options: object) -> torch.Tensor:
        loss = real(*arguments, **options)  # type: ignore[arg-type]
        return loss * value if next(calls) == step else loss

    monkeypatch.setattr(train, "classification_loss", broken)


def test_a_loss_that_is_not_finite_stops_and_names_windows_and_recordings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _broken_at(7, float("nan"), monkeypatch)
    told = r"loss is nan in epoch 2, batch 2, windows \[\d+, .*\] of recordings recording \d+, .*look at these windows"
    with pytest.raises(TrainingDivergedError, match=told):
        train_run(DATA, PARTS, tiny_recipe(), tmp_path / "run")
    assert not (tmp_path / "run" / LAST).exists()


def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model.training import train

    class Exploding(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, *gradients: torch.Tensor) -> torch.Tensor:
            return gradients[0] * float("inf")

    real = train.classification_loss
    monkeypatch.setattr(train, "classification_loss", lambda *a, **o: Exploding.apply(real(*a, **o)))
    with pytest.raises(TrainingDivergedError, match=r"the gradient's norm is (nan|inf) at a loss of 0\.\d+ in epoch 1"):
        train_run(DATA, PARTS, tiny_recipe(), tmp_path / "run")


# --- The best epoch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choose_by", "best"),
    [
        ("macro_f1", [True, True, True, False, False]),  # ties go to the lower loss
        ("loss", [True, True, True, False, True]),
        ("last", [True, True, True, True, True]),
    ],
)
def test_the_epoch_that_is_kept_is_the_one_that_the_recipe_chooses_by(
    choose_by: str, best: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model.training import train
    from model.training.history import Validation

    told = iter([(0.5, 1.0), (0.8, 0.9), (0.8, 0.4), (0.8, 0.6), (0.7, 0.1)])
    kept: list[torch.Tensor] = []

    def scored(logits: torch.Tensor, labels: object) -> Validation:
        macro_f1, loss = next(told)
        kept.append(logits.clone())
        return Validation(accuracy=0.5, macro_f1=macro_f1, weakest_recall=0.5, loss=loss)

    monkeypatch.setattr(train, "validation_scores", scored)
    seen: list[Epoch] = []
    recipe = tiny_recipe(overrides=["training.epochs=20", f"training.choose_by={choose_by}"])
    model = train_run(DATA, PARTS, recipe, tmp_path / "run", on_epoch=seen.append)
    assert [epoch.best for epoch in seen] == best
    last_best = max(number for number, one in enumerate(best) if one)
    assert read_checkpoint(tmp_path / "run" / BEST)[1]["epoch"]["epoch"] == seen[last_best].epoch
    assert np.array_equal(judge(model, DATA, PARTS.validation)[0], kept[last_best].numpy())


# --- Windows -----------------------------------------------------------------------------------------------------


def test_windows_of_float32_train_like_the_int16_they_came_from(tmp_path: Path) -> None:
    recipe = tiny_recipe("paper", ["training.epochs=1"])  # which does not level windows
    floats = _with(DATA, windows=DATA.windows.astype(np.float32) / np.float32(32768.0))
    one, other = train_run(DATA, PARTS, recipe, tmp_path / "a"), train_run(floats, PARTS, recipe, tmp_path / "b")
    assert torch.equal(one.head.weight, other.head.weight)


def test_what_lies_beyond_a_short_window_does_not_matter(tmp_path: Path) -> None:
    recipe = tiny_recipe(overrides=["training.epochs=1"])
    lengths = np.where(np.arange(120) % 3 == 0, 1_500, SAMPLES)
    windows = np.where(np.arange(SAMPLES) < lengths[:, None], DATA.windows, 0).astype(np.int16)
    short = _with(DATA, windows=windows, lengths=lengths)
    model = train_run(short, PARTS, recipe, tmp_path / "run")
    room = _with(short, windows=np.pad(windows, ((0, 0), (0, 500))))
    np.testing.assert_allclose(judge(model, room)[0], judge(model, short)[0], atol=1e-5)
    assert np.abs(judge(model, DATA)[0] - judge(model, short)[0])[::3].max() > 1e-3


def test_windows_shorter_than_a_transform_are_filled_up_with_zeros(tmp_path: Path) -> None:
    tiny = _with(DATA, windows=DATA.windows[:, 900:1_100], lengths=np.full(120, 200))
    model = train_run(tiny, PARTS, tiny_recipe(overrides=["training.epochs=1"]), tmp_path / "run")
    padded = torch.from_numpy(np.pad(tiny.windows, ((0, 0), (0, 56)))) / 32768.0
    with torch.inference_mode():
        np.testing.assert_allclose(judge(model, tiny)[0], model(padded)[0].numpy(), atol=1e-5)


def _with(data: WindowSet, **columns: object) -> WindowSet:
    return replace(data, **columns)  # type: ignore[arg-type]


# --- Weights to begin with ---------------------------------------------------------------------------------------


def test_initial_weights_are_begun_with(tmp_path: Path) -> None:
    recipe = tiny_recipe(overrides=["training.epochs=1", "optimizer.learning_rate=1e-12", "training.ema=0.0"])
    other = new_recogniser(tiny_recipe(overrides=["training.seed=9"]), 2)
    initial = {name: array for name, array in other.weights().items() if name.startswith("network.")}
    model = train_run(DATA, PARTS, recipe, tmp_path / "run", initial=initial)
    torch.testing.assert_close(model.network.embed.weight, other.network.embed.weight)
    torch.testing.assert_close(model.head.weight, new_recogniser(recipe, 2).head.weight)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("network.embed.weight", r"network\.embed\.weight is \(3, 4\), the recipe's is \(8, 32, 1\)"),
        ("network.nothing", r"hold network\.nothing, which the recipe's network has not"),
    ],
)
def test_initial_weights_that_do_not_fit_are_named(name: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        train_run(DATA, PARTS, tiny_recipe(), tmp_path / "run", initial={name: np.zeros((3, 4), np.float32)})


# --- The optimizer -----------------------------------------------------------------------------------------------


def test_norms_and_biases_do_not_decay() -> None:
    from model.training.optimizer import build_optimizer

    model: Recogniser = new_recogniser(tiny_recipe(), 2)
    decaying, others = build_optimizer(model, tiny_recipe().optimizer).param_groups
    assert decaying["weight_decay"] == 0.01
    assert others["weight_decay"] == 0.0
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert {names[one].rpartition(".")[2] for one in decaying["params"]} == {"weight"}
    assert not any("norm" in names[one] for one in decaying["params"])
    assert len(decaying["params"]) + len(others["params"]) == len(names)
