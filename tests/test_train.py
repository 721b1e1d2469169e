from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.architecture import EcapaDims, FrontEndSpec, HeadSpec
from model.augment import AugmentSpec, augment, random_filters
from model.sampling import balanced_batches
from model.train import LabelledWindows, Progress, TrainingDivergedError, TrainSpec, judge, train

SAMPLES = 4_000
SPEC = TrainSpec(
    labels=2,
    window_samples=SAMPLES,
    front_end=FrontEndSpec(n_mels=24, level="rms"),
    network=EcapaDims(channels=16, mfa_channels=16, attention=8, embedding=8, scale=2, se_bottleneck=4, dilations=(2,)),
    epochs=6,
    batch=16,
    seed=3,
)


def _data(count: int, seed: int, group: str) -> LabelledWindows:
    """Label 0: steady noise. Label 1: noise with a burst somewhere."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    windows = rng.standard_normal((count, SAMPLES + 100)) * 300.0
    for window, label in zip(windows, labels, strict=True):
        if label:
            at = int(rng.integers(200, 2_500))
            window[at : at + 1_000] += rng.standard_normal(1_000) * 6_000.0 * np.exp(-np.arange(1_000) / 250.0)
    return LabelledWindows(windows.astype(np.int16), labels.astype(np.int64), np.repeat(group, count))


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_training_learns_what_can_be_learnt(kind: str) -> None:
    seen: list[Progress] = []
    spec = replace(SPEC, head=HeadSpec(kind=kind, scale=10.0))  # type: ignore[arg-type]
    model = train(_data(160, 0, "a"), _data(40, 1, "b"), spec, seen.append)
    assert seen[-1].held_out.accuracy > 0.9
    assert [progress.epoch for progress in seen] == [1, 2, 3, 4, 5, 6]
    assert not model.training
    logits, embeddings = judge(model, _data(40, 1, "b"), spec)
    assert logits.shape == (40, 2)
    assert embeddings.shape == (40, 8)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    data, held_out = _data(32, 0, "a"), _data(8, 1, "b")
    spec = replace(SPEC, epochs=1)
    first, second = train(data, held_out, spec).weights(), train(data, held_out, spec).weights()
    other = train(data, held_out, replace(spec, seed=4)).weights()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
    assert any((other[name] != array).any() for name, array in first.items())


def test_a_position_in_training_and_held_out_windows_alike_is_refused() -> None:
    with pytest.raises(ValueError, match="the first is pump1; split by group"):
        train(_data(32, 0, "pump1"), _data(8, 1, "pump1"), SPEC)


def test_too_few_windows_for_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="8 windows do not fill a batch of 16"):
        train(_data(8, 0, "a"), _data(8, 1, "b"), SPEC)


def test_training_stops_at_a_loss_that_is_not_finite_and_names_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> torch.Tensor:
        return torch.tensor(float("nan"), requires_grad=True)

    monkeypatch.setattr("model.train.classification_loss", broken)
    with pytest.raises(TrainingDivergedError, match=r"loss is nan in epoch 1, batch 0, windows \[\d+, "):
        train(_data(32, 0, "a"), _data(8, 1, "b"), SPEC)


def test_arrays_of_unlike_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 windows, 1 labels, 2 groups"):
        LabelledWindows(np.zeros((2, 9), np.int16), np.zeros(1, np.int64), np.array(["a", "b"]))


def test_every_label_comes_equally_often_however_rare() -> None:
    labels = np.array([0] * 900 + [1] * 90 + [2] * 10)
    batches = list(balanced_batches(labels, 50, seed=1, epoch=0))
    assert all(len(batch) == 50 for batch in batches)
    counts = np.bincount(labels[np.concatenate(batches)], minlength=3)
    assert counts.min() > 0.9 * counts.max()
    assert set(np.concatenate(batches)[labels[np.concatenate(batches)] == 2]) == set(range(990, 1000))


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    labels = np.arange(200) % 4
    first = np.concatenate(list(balanced_batches(labels, 20, seed=1, epoch=0)))
    np.testing.assert_array_equal(first, np.concatenate(list(balanced_batches(labels, 20, seed=1, epoch=0))))
    assert (first != np.concatenate(list(balanced_batches(labels, 20, seed=1, epoch=1)))).any()
    assert (first != np.concatenate(list(balanced_batches(labels, 20, seed=2, epoch=0)))).any()


def test_without_noise_and_filter_only_place_and_polarity_change() -> None:
    spec = AugmentSpec(noise_share=0.0, filter_share=0.0)
    windows = torch.arange(1.0, 111.0).repeat(64, 1)
    changed = augment(windows, 100, spec, torch.Generator().manual_seed(0))
    assert changed.shape == (64, 100)
    assert (changed.abs().diff(dim=1) == 1).all()
    assert set(changed[:, 0].abs().tolist()) == {float(n) for n in range(1, 12)}
    assert set(changed.sign()[:, 0].tolist()) == {-1.0, 1.0}


def test_noise_comes_at_the_level_that_was_drawn() -> None:
    spec = AugmentSpec(noise_share=1.0, noise_snr_db=(20.0, 20.0), filter_share=0.0)
    windows = torch.sin(torch.arange(8_000.0) / 7.0).repeat(8, 1)
    changed = augment(windows, 8_000, spec, torch.Generator().manual_seed(0))
    plain = torch.where(((changed * windows).sum(dim=1, keepdim=True)) > 0, windows, -windows)
    snr_db = 20.0 * torch.log10(plain.std(dim=1) / (changed - plain).std(dim=1))
    torch.testing.assert_close(snr_db, torch.full((8,), 20.0), atol=0.5, rtol=0)


def test_filters_begin_with_the_sound_itself_and_each_window_has_its_own() -> None:
    spec = AugmentSpec(filter_share=1.0, noise_share=0.0)
    taps = random_filters(16, spec, torch.Generator().manual_seed(0))
    assert (taps[:, 0] == 1.0).all()
    assert taps[:, 1:].square().sum(dim=1).sqrt().max() <= spec.filter_depth + 1e-6
    impulse = torch.zeros(16, 200)
    impulse[:, 50] = 1.0
    changed = augment(impulse, 200, spec, torch.Generator().manual_seed(1))
    assert not changed[:, :50].any()
    assert len({tuple(row.tolist()) for row in changed[:, 50:66].abs()}) == 16


def test_silent_windows_survive_augmentation() -> None:
    changed = augment(torch.zeros(8, 600), 500, AugmentSpec(), torch.Generator().manual_seed(0))
    assert torch.isfinite(changed).all()
