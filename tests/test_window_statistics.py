from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from model.architecture import STATISTICS
from model.window_statistics import PARTS, SORTED, window_statistics


def _reference(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Written out in float64 for one window without padding."""
    x = samples.astype(np.float64)
    n = len(x)
    centred = x - x.mean()
    rms = np.sqrt(np.mean(centred**2))
    power = (centred / rms) ** 2
    time = (np.arange(n) + 0.5) / n
    centre = np.mean(power * time)
    every = -(-n // SORTED)

    def quantiles(values: npt.NDArray[np.float64], shares: tuple[float, ...]) -> list[float]:
        ascending = np.sort(values[::every])
        return [float(ascending[int(np.rint(np.float32(share) * (len(ascending) - 1)))]) for share in shares]

    parts = [power[(np.arange(n) * PARTS) // n == part].sum() for part in range(PARTS)]
    return np.array(
        [
            x.mean(),
            rms,
            np.arcsinh(x.mean() / rms),
            np.log(np.sqrt(np.mean(x**2))),
            np.log(rms),
            np.log(np.abs(x).max()),
            np.log(np.abs(centred).max() / rms),
            np.arcsinh(stats.skew(x)),
            np.log(stats.kurtosis(x, fisher=False)),
            np.count_nonzero(centred[1:] * centred[:-1] < 0) / n,
            *np.log(quantiles(np.abs(x), (0.5, 0.75, 0.9, 0.98))),
            *np.log(quantiles(np.abs(centred) / rms, (0.1, 0.5, 0.9))),
            centre,
            np.sqrt(np.mean(power * (time - centre) ** 2)),
            np.log(max(parts) / n),
        ]
    )


def _window(kind: str, samples: int, seed: int = 0) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(samples)
    windows = {
        "noise": 0.1 * noise,
        "offset": 0.05 * noise + 0.2,
        "burst": noise * np.exp(-np.arange(samples) / (samples / 10)) + 0.01 * rng.standard_normal(samples),
        "skewed": rng.exponential(0.05, samples) - 0.02,
        "tone": 0.3 * np.sin(np.arange(samples) * 0.7 + 0.1),
    }
    return windows[kind].astype(np.float32)


def _padded(windows: list[npt.NDArray[np.float32]], room: int) -> tuple[torch.Tensor, torch.Tensor]:
    batch = torch.zeros(len(windows), room)
    for row, window in zip(batch, windows, strict=True):
        row[: len(window)] = torch.from_numpy(window)
    return batch, torch.tensor([len(window) for window in windows])


KINDS = ("noise", "offset", "burst", "skewed", "tone")


@pytest.mark.parametrize("samples", [100, 1_601, SORTED, SORTED + 1, 40_000])
@pytest.mark.parametrize("kind", KINDS)
def test_a_full_window_has_the_statistics_of_the_formulas_written_out(kind: str, samples: int) -> None:
    window = _window(kind, samples)
    found = window_statistics(torch.from_numpy(window)[None])
    assert found.shape == (1, STATISTICS)
    np.testing.assert_allclose(found[0].numpy(), _reference(window), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("room", [4_000, SORTED, SORTED + 500])
def test_a_masked_window_has_the_statistics_of_its_real_samples_alone(room: int) -> None:
    windows = [_window(kind, 700 + 611 * number, number) for number, kind in enumerate(KINDS)]
    batch, lengths = _padded(windows, room)
    found = window_statistics(batch, lengths).numpy()
    every = -(-room // SORTED)
    for row, window in zip(found, windows, strict=True):
        expected = _reference(window)
        close = np.ones(STATISTICS, bool)
        close[10:17] = every == 1  # in long room the quantiles are of every other sample
        np.testing.assert_allclose(row[close], expected[close], rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(row[~close], expected[~close], atol=0.2)


@given(
    lengths=st.lists(st.integers(16, 5_000), min_size=1, max_size=4),
    padding=st.integers(0, 3_000),
    seed=st.integers(0, 9),
)
@settings(max_examples=30, deadline=None)
def test_what_a_window_is_padded_with_and_stands_beside_changes_nothing(
    lengths: list[int], padding: int, seed: int
) -> None:
    windows = [_window(KINDS[(seed + row) % len(KINDS)], length, seed) for row, length in enumerate(lengths)]
    batch, real = _padded(windows, max(lengths) + padding)
    found = window_statistics(batch, real)
    for row, window in enumerate(windows):
        alone = window_statistics(torch.from_numpy(window)[None])[0]
        torch.testing.assert_close(found[row], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_a_window_gets_the_same_bits_at_every_place_of_a_batch(masked: bool) -> None:
    windows = torch.from_numpy(np.stack([_window(KINDS[row % 5], 3_000, row) for row in range(7)]))
    lengths = torch.tensor([3_000, 2_000, 2_500, 16, 1_999, 3_000, 700]) if masked else None
    if lengths is not None:
        windows = windows * (torch.arange(3_000) < lengths[:, None])
    together = window_statistics(windows, lengths)
    for row in range(7):
        alone = window_statistics(windows[row : row + 1], None if lengths is None else lengths[row : row + 1])
        assert torch.equal(together[row], alone[0])
    turned = window_statistics(windows.flip(0), None if lengths is None else lengths.flip(0))
    assert torch.equal(together, turned.flip(0))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-7, 1.0, 2.0**20])
@pytest.mark.parametrize("kind", ["constant", "impulse", "one-sided", "square", "first sample", "noise"])
def test_whatever_a_window_holds_the_statistics_are_finite(kind: str, scale: float, masked: bool) -> None:
    window = torch.zeros(2, 1_000)
    if kind == "constant":
        window[:] = 1.0
    elif kind == "impulse":
        window[:, 500] = 1.0
    elif kind == "one-sided":
        window[:, 300:] = torch.linspace(0, 1, 700)
    elif kind == "square":
        window[:] = torch.tensor([1.0, -1.0]).repeat(500)
    elif kind == "first sample":
        window[:, 0] = -1.0
    else:
        window[:] = torch.randn(2, 1_000, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([1_000, 600]) if masked else None
    if lengths is not None:
        window = window * (torch.arange(1_000) < lengths[:, None])
    found = window_statistics(window * scale, lengths)
    assert torch.isfinite(found).all()
    assert float(found[:, 2:].abs().max()) < 50  # logarithms and shares; only mean and RMS grow with the scale


def test_loudness_moves_the_levels_and_nothing_that_is_about_shape() -> None:
    window = torch.from_numpy(_window("burst", 2_000))[None]
    quiet, loud = window_statistics(window)[0], window_statistics(8 * window)[0]
    levels = [3, 4, 5, 10, 11, 12, 13]
    np.testing.assert_allclose((loud - quiet)[levels], np.log(8), atol=1e-3)
    shapes = [row for row in range(2, STATISTICS) if row not in levels]
    torch.testing.assert_close(loud[shapes], quiet[shapes], rtol=1e-4, atol=1e-4)


def test_a_burst_is_found_where_it_is_and_told_from_steady_noise() -> None:
    early, late, steady = (np.random.default_rng(0).standard_normal(3_200) * 0.01 for _ in range(3))
    early[320:480] *= 100
    late[2_720:2_880] *= 100
    found = window_statistics(torch.from_numpy(np.stack([early, late, steady]).astype(np.float32))).numpy()
    assert found[0, 17] == pytest.approx(0.125, abs=0.01)
    assert found[1, 17] == pytest.approx(0.875, abs=0.01)
    assert found[2, 17] == pytest.approx(0.5, abs=0.02)
    assert found[0, 18] < 0.05 < 0.25 < found[2, 18]
    assert np.exp(found[0, 19]) > 0.5 > 0.1 > np.exp(found[2, 19])
