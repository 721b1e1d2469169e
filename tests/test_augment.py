from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from model.training.augment import _Draw, augment_waveforms, mask_features, mix_pairs, random_responses, rms
from model.training.recipe import Augment, load_recipe

BATCH, SAMPLES = 64, 1_200
LENGTHS = torch.arange(BATCH) % 5 * 200 + 400

NOTHING: dict[str, Any] = {
    "shift_share": 0.0,
    "gain_db": 0.0,
    "polarity": False,
    "noise_share": 0.0,
    "response_share": 0.0,
    "reverb_share": 0.0,
    "mixup": 0.0,
    "mixup_share": 0.0,
    "mask_bands": 0,
    "mask_spans": 0,
    "drop_context_share": 0.0,
}
#: What makes each happen to every window.
KINDS: dict[str, dict[str, Any]] = {
    "shift": {"shift_share": 0.3},
    "gain": {"gain_db": 12.0},
    "polarity": {"polarity": True},
    "noise": {"noise_share": 1.0, "noise_snr_db": (0.0, 20.0)},
    "response": {"response_share": 1.0, "response_depth": 0.8},
    "reverberation": {"reverb_share": 1.0, "reverb_s": (0.05, 0.3)},
}
#: Fields that say what would be done, without saying that it happens.
DORMANT: dict[str, Any] = {
    "noise_snr_db": (-20.0, 0.0),
    "response_depth": 3.0,
    "reverb_s": (0.1, 0.9),
    "mask_band_share": 0.9,
    "mask_span_share": 0.9,
}


def _spec(**fields: Any) -> Augment:
    return msgspec.structs.replace(load_recipe("default").augment, **(NOTHING | fields))


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _windows(lengths: Tensor | None = None, seed: int = 0) -> Tensor:
    """Noise of many levels, so that no augmentation can be told from another by chance."""
    drawn = torch.randn(BATCH, SAMPLES, generator=_generator(seed + 1_000))
    windows = drawn * torch.logspace(-4, 0, BATCH)[:, None]
    return windows if lengths is None else windows * (torch.arange(SAMPLES) < lengths[:, None])


def _draw(batch: int, seed: int = 0) -> _Draw:
    return _Draw(batch, torch.device("cpu"), _generator(seed))


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "masked"])
def test_with_every_share_at_zero_windows_come_back_as_they_were(lengths: Tensor | None) -> None:
    windows = _windows(lengths)
    before = windows.clone()
    assert torch.equal(augment_waveforms(windows, lengths, _spec(**DORMANT), _generator()), before)
    mixed, _, weights = mix_pairs(windows, lengths, _spec(**DORMANT), _generator())
    assert torch.equal(mixed, before)
    assert torch.equal(weights, torch.ones(BATCH))
    features = torch.randn(BATCH, 30, 25)
    assert torch.equal(mask_features(features, 20, _spec(**DORMANT), _generator()), features)


@pytest.mark.parametrize("kind", KINDS)
def test_each_changes_windows_leaves_its_input_alone_and_nothing_lies_beyond_the_end(kind: str) -> None:
    windows = _windows(LENGTHS)
    before = windows.clone()
    changed = augment_waveforms(windows, LENGTHS, _spec(**KINDS[kind]), _generator())
    assert torch.equal(windows, before)
    assert changed.shape == windows.shape
    assert torch.isfinite(changed).all()
    assert (changed != windows).any(dim=1).float().mean() > (0.3 if kind == "polarity" else 0.9)
    assert not changed[torch.arange(SAMPLES) >= LENGTHS[:, None]].any()


@pytest.mark.parametrize("kind", [*KINDS, "mixup", "masks"])
def test_the_same_generator_gives_the_same_result_and_another_one_another(kind: str) -> None:
    windows = _windows(LENGTHS)
    mixup = {"mixup": 0.4, "mixup_share": 0.7}
    masks = {"mask_bands": 2, "mask_band_share": 0.3, "mask_spans": 2, "mask_span_share": 0.3}
    spec = _spec(**KINDS.get(kind, mixup | masks))

    def changed(seed: int) -> Tensor:
        if kind == "mixup":
            return mix_pairs(windows, LENGTHS, spec, _generator(seed))[0]
        if kind == "masks":
            return mask_features(torch.ones(BATCH, 40, 60), 40, spec, _generator(seed))
        return augment_waveforms(windows, LENGTHS, spec, _generator(seed))

    assert torch.equal(changed(3), changed(3))
    assert not torch.equal(changed(3), changed(4))


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_in_which_it_happens_to_no_window_or_that_holds_one_is_fine(kind: str) -> None:
    rarely = {name: 1e-12 if name.endswith("_share") else value for name, value in KINDS[kind].items()}
    windows = _windows()
    for batch in (windows, windows[:1]):
        changed = augment_waveforms(batch, None, _spec(**rarely), _generator())
        if kind not in ("gain", "polarity"):
            assert torch.equal(changed, batch)
        assert augment_waveforms(batch, None, _spec(**KINDS[kind]), _generator()).shape == batch.shape


@pytest.mark.parametrize("share", [0.25, 0.75])
@pytest.mark.parametrize("field", ["noise_share", "response_share", "reverb_share", "mixup_share"])
def test_a_share_is_that_of_the_windows_it_happens_to(field: str, share: float) -> None:
    windows = torch.randn(2_000, 100, generator=_generator())
    spec = _spec(**{field: share}, response_depth=1.0, mixup=0.4)
    change: Callable[..., Any] = mix_pairs if field == "mixup_share" else augment_waveforms
    changed = change(windows, None, spec, _generator(1))
    changed = changed[0] if field == "mixup_share" else changed
    assert float((changed != windows).any(dim=1).float().mean()) == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "masked"])
def test_a_shifted_window_is_moved_by_up_to_its_share_and_mirrors_itself_at_the_end_it_leaves(
    lengths: Tensor | None,
) -> None:
    samples = torch.arange(1.0, SAMPLES + 1).expand(BATCH, -1)
    windows = samples if lengths is None else samples * (samples <= lengths[:, None])
    changed = augment_waveforms(windows, lengths, _spec(shift_share=0.2), _generator())
    shifts = set()
    for row, window in enumerate(changed.numpy()):
        length = SAMPLES if lengths is None else int(lengths[row])
        found = window[:length]
        assert found.min() >= 1  # no silence comes in
        assert found.max() <= length
        whole = np.arange(1.0, length + 1)
        mirrored = np.pad(whole, length - 1, mode="reflect")
        furthest = int(0.2 * length) + 1
        fits = [
            shift
            for shift in range(-furthest, furthest + 1)
            if np.array_equal(found, mirrored[length - 1 + shift :][:length])
        ]
        assert len(fits) == 1
        shifts.update(fits)
    assert min(shifts) < 0 < max(shifts)
    assert len(shifts) > 20


def test_a_gain_multiplies_the_whole_window_by_a_factor_within_its_bounds() -> None:
    windows = _windows()
    gains = augment_waveforms(windows, None, _spec(gain_db=12.0), _generator()) / windows
    in_db = 20 * gains.abs().log10()
    assert float((in_db.amax(dim=1) - in_db.amin(dim=1)).max()) < 1e-4
    assert (gains > 0).all()
    assert -12.001 < float(in_db.min()) < -9
    assert 9 < float(in_db.max()) < 12.001


def test_polarity_turns_about_half_of_the_windows_over_and_changes_nothing_else() -> None:
    windows = _windows()
    changed = augment_waveforms(windows, None, _spec(polarity=True), _generator())
    turned = (changed == -windows).all(dim=1)
    assert torch.equal(torch.where(turned[:, None], -windows, windows), changed)
    assert 0.3 < float(turned.float().mean()) < 0.7


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "masked"])
@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 30.0])
def test_noise_is_added_at_the_ratio_drawn_whatever_the_level_of_the_window(
    snr_db: float, lengths: Tensor | None
) -> None:
    windows = _windows(lengths)
    spec = _spec(noise_share=1.0, noise_snr_db=(snr_db, snr_db))
    noise = augment_waveforms(windows, lengths, spec, _generator()) - windows
    measured = 20 * (rms(windows, lengths) / rms(noise, lengths)).log10()
    assert float((measured - snr_db).abs().max()) < 0.05


def test_the_noise_ratios_fill_the_range_that_they_are_drawn_from() -> None:
    windows = _windows()
    noise = augment_waveforms(windows, None, _spec(noise_share=1.0, noise_snr_db=(3.0, 21.0)), _generator()) - windows
    measured = 20 * (rms(windows) / rms(noise)).log10()
    assert 2.9 < float(measured.min()) < 5
    assert 19 < float(measured.max()) < 21.1


def test_silence_gets_no_noise_that_could_be_heard_and_stays_finite() -> None:
    silence = torch.zeros(BATCH, SAMPLES)
    everything = {name: value for kind in KINDS.values() for name, value in kind.items()}
    changed = augment_waveforms(silence, None, _spec(**everything), _generator())
    mixed, _, _ = mix_pairs(changed, None, _spec(mixup=0.4, mixup_share=1.0), _generator())
    assert torch.isfinite(mixed).all()
    assert float(mixed.abs().max()) < 1e-9


def test_a_random_response_is_a_one_and_a_tail_up_to_its_depth_that_dies_away() -> None:
    taps = random_responses(16, 0.5, _draw(4_000))
    assert torch.equal(taps[:, 0], torch.ones(4_000))
    tails = taps[:, 1:].square().sum(dim=1).sqrt()
    assert float(tails.max()) <= 0.5 + 1e-6
    assert float(tails.mean()) == pytest.approx(0.25, abs=0.01)
    loudness = taps.square().mean(dim=0)
    assert float(loudness[1]) > 4 * float(loudness[8]) > 16 * float(loudness[15])


@pytest.mark.parametrize("kind", ["response", "reverberation"])
def test_a_filtered_window_is_the_causal_convolution_with_what_an_impulse_becomes(kind: str) -> None:
    spec = _spec(**KINDS[kind])
    windows = _windows()
    impulses = torch.zeros(BATCH, SAMPLES)
    impulses[:, 0] = 1.0
    answers = augment_waveforms(impulses, None, spec, _generator()).double().numpy()
    changed = augment_waveforms(windows, None, spec, _generator()).double().numpy()
    for window, answer, found in zip(windows.double().numpy(), answers, changed, strict=True):
        assert answer[0] == pytest.approx(1.0, abs=1e-5)
        expected = np.convolve(window, answer)[:SAMPLES]
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(window).max())


def test_reverberation_dies_away_within_the_share_of_the_window_that_it_may_take() -> None:
    impulses = torch.zeros(BATCH, SAMPLES)
    impulses[:, 0] = 1.0
    answers = augment_waveforms(impulses, None, _spec(reverb_share=1.0, reverb_s=(0.1, 0.1)), _generator())
    tail = answers.square().mean(dim=0)
    early, late = float(tail[1:20].mean()), float(tail[100:119].mean())  # 60 dB in 120 samples: 50 dB in 100
    assert 10 * np.log10(early / late) == pytest.approx(50, abs=2)
    assert float(answers[:, 121:].abs().max()) < 1e-5


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 1.0])
def test_the_beta_distribution_has_its_mean_variance_and_support(alpha: float) -> None:
    drawn = _draw(40_000).beta(alpha)
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) <= 1
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(drawn.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.02)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "masked"])
def test_mixup_adds_the_partner_at_the_windows_own_level_in_the_share_that_the_weight_says(
    lengths: Tensor | None,
) -> None:
    windows = _windows(lengths)
    mixed, partners, weights = mix_pairs(windows, lengths, _spec(mixup=0.4, mixup_share=0.8), _generator())
    assert sorted(partners.tolist()) == list(range(BATCH))
    assert 0.5 <= float(weights.min()) < 0.75
    assert 0.05 < float((weights == 1).float().mean()) < 0.5
    assert torch.equal(mixed[weights == 1], windows[weights == 1])
    real = torch.ones(BATCH, SAMPLES) if lengths is None else (torch.arange(SAMPLES) < lengths[:, None]).float()
    partner = windows[partners]
    level = (windows.square().sum(dim=1) / real.sum(dim=1)).sqrt()
    expected = windows * weights[:, None] + (1 - weights[:, None]) * partner * (level / level[partners])[:, None]
    torch.testing.assert_close(mixed, expected * real, rtol=1e-4, atol=1e-7)


# --- Masks -------------------------------------------------------------------------------------------------------

BANDS, CONTEXT, FRAMES = 40, 12, 50


@pytest.mark.parametrize(
    ("field", "share_field", "axis", "size"),
    [("mask_bands", "mask_band_share", 1, BANDS), ("mask_spans", "mask_span_share", 2, FRAMES)],
)
def test_one_stripe_is_one_run_no_wider_than_its_share_that_crosses_the_whole_window(
    field: str, share_field: str, axis: int, size: int
) -> None:
    features = torch.randn(500, BANDS, FRAMES, generator=_generator())
    masked = mask_features(features, BANDS, _spec(**{field: 1, share_field: 0.2}), _generator(1))
    gone = masked == 0
    assert torch.equal(masked[~gone], features[~gone])
    lines = gone.all(dim=3 - axis)  # whole bands, or whole frames
    assert torch.equal(gone, lines.unsqueeze(3 - axis).expand_as(gone))
    widths = lines.sum(dim=1)
    assert int(widths.max()) <= 0.2 * size + 1
    assert int(widths.max()) >= 0.2 * size - 1
    starts = np.diff(lines.int().numpy(), axis=1, prepend=0) == 1
    assert starts.sum(axis=1).max() == 1
    assert lines.any(dim=0).all()  # somewhere in a batch it may be anywhere


def test_masks_leave_rows_of_context_alone_which_are_dropped_whole_or_not_at_all() -> None:
    features = torch.randn(500, BANDS + CONTEXT, FRAMES, generator=_generator())
    masks = {"mask_bands": 2, "mask_band_share": 0.5, "mask_spans": 2, "mask_span_share": 0.5}
    masked = mask_features(features, BANDS, _spec(**masks), _generator(1))
    assert torch.equal(masked[:, BANDS:], features[:, BANDS:])
    assert (masked[:, :BANDS] == 0).any()
    masked = mask_features(features, BANDS, _spec(drop_context_share=0.3), _generator(1))
    assert torch.equal(masked[:, :BANDS], features[:, :BANDS])
    dropped = (masked[:, BANDS:] == 0).all(dim=2).all(dim=1)
    assert torch.equal(masked[~dropped], features[~dropped])
    assert float(dropped.float().mean()) == pytest.approx(0.3, abs=0.06)
