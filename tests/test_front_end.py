from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.architecture import STATISTICS, FrontEndSpec
from model.front_end import FAR, FrontEnd, mel_filters
from model.window_statistics import window_statistics


def _reference(samples: np.ndarray, spec: FrontEndSpec) -> np.ndarray:
    """The front end written out in float64, a frame at a time."""
    x = samples.astype(np.float64)
    if spec.level == "rms":
        x = x / np.sqrt(np.mean(x**2))
    x = np.concatenate([[x[0] - spec.pre_emphasis * x[1]], x[1:] - spec.pre_emphasis * x[:-1]])
    x = np.pad(x, spec.n_fft // 2, mode="reflect")
    window = np.zeros(spec.n_fft)
    before = (spec.n_fft - spec.win_length) // 2
    n = np.arange(spec.win_length)
    window[before : before + spec.win_length] = 0.54 - 0.46 * np.cos(2 * np.pi * n / spec.win_length)

    def mel(f: np.ndarray) -> np.ndarray:
        return 2595.0 * np.log10(1.0 + f / 700.0)

    edges = np.linspace(mel(np.float64(spec.f_min_hz)), mel(np.float64(spec.f_max_hz)), spec.n_mels + 2)
    edges = 700.0 * (10.0 ** (edges / 2595.0) - 1.0)
    bins = np.linspace(0, spec.sample_rate_hz / 2, spec.n_fft // 2 + 1)
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    filters = np.maximum(0.0, np.minimum(rising, falling))
    frames = [
        filters @ np.abs(np.fft.rfft(window * x[at : at + spec.n_fft])) ** 2
        for at in range(0, len(samples) + 1, spec.hop_length)
    ]
    features = np.log(np.array(frames).T + spec.log_floor)
    return features - features.mean(axis=1, keepdims=True)


def _windows(*lengths: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    rng = np.random.default_rng(seed)
    alone = [torch.from_numpy(rng.standard_normal(length).astype(np.float32))[None] for length in lengths]
    batch = torch.zeros(len(lengths), max(lengths) + 777)
    for row, window in zip(batch, alone, strict=True):
        row[: window.shape[1]] = window[0]
    return batch, torch.tensor(lengths), alone


def test_a_window_of_65536_samples_has_80_mels_and_410_frames() -> None:
    features, mask = FrontEnd(FrontEndSpec())(torch.randn(2, 65_536))
    assert features.shape == (2, 80, 410)
    assert mask is None
    assert FrontEndSpec().frames(65_536) == 410


@pytest.mark.parametrize("level", ["none", "rms"])
@pytest.mark.parametrize("length", [512, 4_000, 16_001])
def test_features_are_those_of_the_formulas_written_out(level: str, length: int) -> None:
    spec = FrontEndSpec(level=level)  # type: ignore[arg-type]
    samples = np.random.default_rng(1).standard_normal(length).astype(np.float32) * np.float32(0.05)
    features, _ = FrontEnd(spec)(torch.from_numpy(samples)[None])
    np.testing.assert_allclose(features[0].numpy(), _reference(samples, spec), atol=2e-3)


def test_a_tone_stands_out_in_the_mel_bin_of_its_frequency() -> None:
    spec = FrontEndSpec()
    t = np.arange(32_000) / spec.sample_rate_hz
    tone = np.where(t > 1.0, np.sin(2 * np.pi * 2_000.0 * t), 0.0) + 1e-3 * np.random.default_rng(0).standard_normal(
        len(t)
    )
    features, _ = FrontEnd(spec)(torch.from_numpy(tone.astype(np.float32))[None])
    loudest = int(features[0, :, 150].argmax())
    filters = mel_filters(spec)
    centre_hz = float((filters[loudest] * torch.linspace(0, 8_000, 257)).sum() / filters[loudest].sum())
    assert centre_hz == pytest.approx(2_000.0, abs=80.0)


SMALL = FrontEndSpec(n_fft=128, win_length=100, hop_length=40, n_mels=12, level="rms", context="window")


def test_rows_of_context_are_the_same_in_every_frame_below_the_bins_that_are_there_without_them() -> None:
    samples = torch.randn(3, 4_000, generator=torch.Generator().manual_seed(0))
    features, _ = FrontEnd(SMALL)(samples)
    without, _ = FrontEnd(replace(SMALL, context="none"))(samples)
    assert features.shape == (3, 12 + 2 * 12 + STATISTICS, without.shape[2])
    assert features.shape[1] == SMALL.features
    assert torch.equal(features[:, :12], without)
    rows = features[:, 12:]
    assert torch.equal(rows, rows[:, :, :1].expand_as(rows))
    assert torch.equal(rows[:, :, 0], FrontEnd(SMALL).standardised(FrontEnd(SMALL).context(samples)))


def test_the_context_is_the_mean_spectrum_how_much_it_varies_and_the_windows_statistics() -> None:
    samples = torch.randn(2, 4_000, generator=torch.Generator().manual_seed(1)) * 0.02
    front_end = FrontEnd(replace(SMALL, level="none"))
    context = front_end.context(samples)
    spectrum = front_end.log_mel(samples).double()
    means = spectrum.mean(dim=2)
    torch.testing.assert_close(context[:, :12].double(), means - means.mean(dim=1, keepdim=True), atol=1e-4, rtol=0)
    deviations = spectrum.std(dim=2, correction=0)
    torch.testing.assert_close(context[:, 12:24].double(), deviations, atol=1e-4, rtol=0)
    assert torch.equal(context[:, 24:], window_statistics(samples))


def test_how_loud_a_window_is_stands_in_the_context_alone() -> None:
    samples = torch.randn(1, 4_000, generator=torch.Generator().manual_seed(2)) * 0.1
    front_end = FrontEnd(SMALL)
    torch.testing.assert_close(front_end(samples)[0][:, :36], front_end(samples / 8)[0][:, :36], atol=1e-3, rtol=0)
    loudness = front_end.context(samples)[0, 24 + 4] - front_end.context(samples / 8)[0, 24 + 4]
    assert float(loudness) == pytest.approx(np.log(8), abs=1e-3)


@given(lengths=st.lists(st.integers(128, 5_000), min_size=1, max_size=4), level=st.sampled_from(["none", "rms"]))
@settings(max_examples=25, deadline=None)
def test_a_padded_window_has_the_context_that_it_has_alone_and_zeros_beyond_its_end(
    lengths: list[int], level: str
) -> None:
    front_end = FrontEnd(replace(SMALL, level=level))  # type: ignore[arg-type]
    batch, real, alone = _windows(*lengths)
    front_end.standardise(front_end.context(*_windows(*range(400, 4_000, 200), seed=1)[:2]))
    context, (features, _) = front_end.context(batch, real), front_end(batch, real)
    for row, window in enumerate(alone):
        torch.testing.assert_close(context[row], front_end.context(window)[0], atol=1e-3, rtol=1e-3)
        frames = front_end.spec.frames(window.shape[1])
        expected, _ = front_end(window)
        torch.testing.assert_close(features[row, 12:, :frames], expected[0, 12:], atol=5e-3, rtol=1e-3)
        assert not features[row, :, frames:].any()


def test_over_the_windows_that_it_was_taken_of_each_row_has_mean_zero_and_deviation_one() -> None:
    front_end = FrontEnd(SMALL)
    samples = torch.randn(200, 1_000, generator=torch.Generator().manual_seed(3)) * torch.logspace(-3, 0, 200)[:, None]
    context = front_end.context(samples)
    front_end.standardise(context)
    standardised = ((context - front_end.context_mean) * front_end.context_scale).double()
    assert float(standardised.mean(dim=0).abs().max()) < 1e-2
    torch.testing.assert_close(standardised.std(dim=0), torch.ones(SMALL.context_rows).double(), atol=1e-2, rtol=0)


def test_what_never_varied_is_bounded_and_what_is_far_outside_too() -> None:
    front_end = FrontEnd(SMALL)
    context = torch.randn(50, SMALL.context_rows, generator=torch.Generator().manual_seed(4))
    context[:, 7] = 3.0
    front_end.standardise(context)
    strange = context[:1] + 1e6
    assert torch.isfinite(front_end.standardised(context)).all()
    assert float(front_end.standardised(context)[:, 7].abs().max()) < 1.0
    assert torch.equal(front_end.standardised(strange), torch.full((1, SMALL.context_rows), FAR))


def test_only_a_front_end_with_context_has_numbers_that_belong_into_a_bundle() -> None:
    assert FrontEnd(replace(SMALL, context="none")).state_dict() == {}
    assert FrontEnd(SMALL).state_dict().keys() == {"context_mean", "context_scale"}


@given(lengths=st.lists(st.integers(512, 9_000), min_size=1, max_size=4), level=st.sampled_from(["none", "rms"]))
@settings(max_examples=25, deadline=None)
def test_padding_and_neighbours_change_nothing_and_what_lies_beyond_the_end_is_zero(
    lengths: list[int], level: str
) -> None:
    front_end = FrontEnd(FrontEndSpec(level=level))  # type: ignore[arg-type]
    batch, real, alone = _windows(*lengths)
    features, mask = front_end(batch, real)
    assert mask is not None
    for row, window in enumerate(alone):
        expected, _ = front_end(window)
        frames = expected.shape[2]
        assert frames == front_end.spec.frames(window.shape[1])
        torch.testing.assert_close(features[row, :, :frames], expected[0], atol=5e-4, rtol=0)
        assert not features[row, :, frames:].any()
        assert mask[row, 0].sum() == frames


def test_with_level_rms_the_gain_of_the_sensor_does_not_matter() -> None:
    samples = torch.randn(1, 8_000)
    by_rms, plain = FrontEnd(FrontEndSpec(level="rms")), FrontEnd(FrontEndSpec())
    torch.testing.assert_close(by_rms(samples)[0], by_rms(samples * 1e-4)[0], atol=1e-3, rtol=0)
    assert (plain(samples)[0] - plain(samples * 1e-4)[0]).abs().max() > 0.1


@pytest.mark.parametrize("context", ["none", "window"])
@pytest.mark.parametrize("level", ["none", "rms"])
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
def test_silence_and_constant_windows_give_finite_features(level: str, value: float, context: str) -> None:
    spec = FrontEndSpec(level=level, context=context)  # type: ignore[arg-type]
    features, _ = FrontEnd(spec)(torch.full((1, 4_000), value))
    assert torch.isfinite(features).all()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"win_length": 600}, "win_length is 600"),
        ({"f_max_hz": 9_000.0}, "9000"),
        ({"n_mels": 0}, "n_mels is 0"),
        ({"hop_length": 0}, "hop_length is 0"),
        ({"log_floor": 0.0}, "log_floor is 0"),
        ({"n_fft": 1 << 30}, "n_fft is 1073741824"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused_with_the_number_named(change: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        FrontEndSpec(**change)  # type: ignore[arg-type]
