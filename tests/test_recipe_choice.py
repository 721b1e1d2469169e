from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.architecture import HeadSpec
from model.training.recipe import Recipe, load_recipe
from model.training.recipe_choice import (
    ALIKE,
    LONGEST_CUT,
    LONGEST_WHOLE,
    MOST_FRAMES,
    SHORTEST_CUT,
    Facts,
    choose_rest,
    choose_windows,
    cosine_scale,
    ecapa_dims,
    front_end_spec,
    head_spec,
)

DEFAULT = load_recipe("default")


def _facts(samples: Any, rates_hz: Any = 16_000.0) -> Facts:
    lengths = np.atleast_1d(np.array(samples, np.int64))
    return Facts(lengths, np.broadcast_to(np.array(rates_hz, np.float64), lengths.shape))


def _windows(facts: Facts, *overrides: str, name: str = "default") -> tuple[float, int, int, list[str]]:
    """Rate, length and hop in samples, and what was said."""
    recipe, said = choose_windows(load_recipe(name, overrides), facts)
    rate_hz = float(recipe.windows.rate_hz)
    length, hop = (float(value) * rate_hz for value in (recipe.windows.length_s, recipe.windows.hop_s))
    assert length == pytest.approx(round(length), abs=1e-6)
    return rate_hz, round(length), round(hop), said


def _rest(window_samples: int, counts: list[int], *overrides: str, device: str = "cpu") -> tuple[Recipe, str]:
    settled = ("windows.rate_hz=16000", "windows.length_s=1.0", "windows.hop_s=0.5")
    recipe = load_recipe("default", (*settled, *overrides))
    recipe, said = choose_rest(recipe, window_samples=window_samples, counts=counts, device=device)
    return recipe, "\n".join(said)


# --- Windows -----------------------------------------------------------------------------------------------------


def test_facts_without_clips_or_with_unequal_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="one clip at least"):
        Facts(np.array([], np.int64), np.array([]))
    with pytest.raises(ValueError, match="2 lengths, 1 rates"):
        Facts(np.array([1, 2]), np.array([16_000.0]))


def test_one_rate_is_the_models() -> None:
    rate_hz, length, hop, said = _windows(_facts([48_000] * 5, 48_000.0))
    assert (rate_hz, length, hop) == (48_000, 48_000, 24_000)
    assert "rate: 48000 Hz, the rate of all clips" in said


def test_of_several_rates_the_lowest_that_is_not_rare_is_the_models() -> None:
    rate_hz, length, _, said = _windows(_facts([96_000] * 50 + [44_100] * 50, [96_000.0] * 50 + [44_100.0] * 50))
    assert (rate_hz, length) == (44_100, 44_100)
    assert any("the lowest of 2 rates that is not rare" in line for line in said)
    rate_hz, *_ = _windows(_facts([8_000] * 2 + [44_100] * 98, [8_000.0] * 2 + [44_100.0] * 98))
    assert rate_hz == 44_100


def test_where_every_rate_is_rare_one_of_them_is_chosen_all_the_same() -> None:
    rates = 1_000.0 * np.arange(10, 50)
    rate_hz, *_ = _windows(_facts([10_000] * 40, rates))
    assert rate_hz in rates


def test_nominal_samples_of_any_rate_go_in_as_they_are() -> None:
    rate_hz, length, _, said = _windows(_facts([65_536] * 4, [1e6, 1e6, 5e5, 5e5]), name="paper")
    assert (rate_hz, length) == (16_000, 65_536)
    assert "nominal" in said[0]


def test_what_the_recipe_settles_stays() -> None:
    facts = _facts([48_000] * 5, 48_000.0)
    rate_hz, length, hop, said = _windows(
        facts, "windows.rate_hz=16000", "windows.length_s=0.25", "windows.hop_s=0.125"
    )
    assert (rate_hz, length, hop) == (16_000, 4_000, 2_000)
    assert said == []


@pytest.mark.parametrize(
    ("source_hz", "model_hz", "seconds"),
    [(48_000, 16_000, 3), (44_100, 16_000, 5), (250_000, 16_000, 1), (2_500_000, 48_000, 1)],
)
def test_a_clip_of_whole_seconds_is_as_long_at_the_models_rate(source_hz: int, model_hz: int, seconds: int) -> None:
    _, length, *_ = _windows(_facts([source_hz * seconds], float(source_hz)), f"windows.rate_hz={model_hz}")
    assert length == model_hz * seconds


def test_clips_that_are_alike_are_taken_whole_and_a_few_long_ones_do_not_pad_the_rest() -> None:
    _, length, _, said = _windows(_facts([10_000] * 50 + [10_500] * 50))
    assert length == 10_500
    assert any("the whole of each clip" in line for line in said)
    assert _windows(_facts([10_000] * 98 + [10_900] * 2))[1] == 10_900
    assert _windows(_facts([10_000] * 99 + [50_000]))[1] == 10_000
    assert _windows(_facts([16] * 100))[1] == 16


def test_clips_that_differ_are_cut_at_their_median() -> None:
    lengths = [4_000] * 40 + [9_000] * 20 + [40_000] * 40
    _, length, hop, said = _windows(_facts(lengths))
    assert (length, hop) == (9_000, 4_500)
    assert any("clips are 4000 to 40000 samples long" in line for line in said)
    just_alike = [1_000] * 50 + [int(ALIKE * 1_000)] * 50
    assert _windows(_facts(just_alike))[1] == 1_500
    assert _windows(_facts([1_000] * 51 + [1_600] * 49))[1] == SHORTEST_CUT  # and not the median, 1,000


def test_very_long_clips_are_cut_and_very_short_ones_are_not_cut_shorter() -> None:
    assert _windows(_facts([LONGEST_WHOLE] * 10))[1] == LONGEST_WHOLE
    assert _windows(_facts([LONGEST_WHOLE + 1] * 10))[1] == LONGEST_CUT
    assert _windows(_facts([10**8] * 3))[1] == LONGEST_CUT
    assert _windows(_facts([20] * 50 + [500] * 50))[1] == SHORTEST_CUT


# --- The rest ----------------------------------------------------------------------------------------------------


def test_the_papers_front_end_is_chosen_where_the_window_has_room_for_it() -> None:
    recipe, said = _rest(16_000, [500, 500])
    front = front_end_spec(recipe)
    assert (front.hop_length, front.win_length, front.n_fft, front.n_mels) == (160, 400, 512, 80)
    assert "80 mel bands of 512-point transforms, 160 samples apart: 101 frames a window" in said


def test_longer_windows_have_wider_frames_and_shorter_ones_narrower() -> None:
    long = front_end_spec(_rest(LONGEST_WHOLE, [500, 500])[0])
    assert MOST_FRAMES - 5 <= long.frames(LONGEST_WHOLE) <= MOST_FRAMES + 1
    assert 2 * long.hop_length < long.win_length <= long.n_fft
    short = front_end_spec(_rest(1_024, [500, 500])[0])
    assert short.frames(1_024) >= 100
    assert short.win_length < 400


@pytest.mark.parametrize("samples", [16, 63, 64, 100, 1_024, 16_000, 100_000])
def test_as_many_frames_are_announced_as_there_will_be(samples: int) -> None:
    recipe, said = _rest(samples, [500, 500])
    assert f"apart: {front_end_spec(recipe).frames(samples)} frames a window" in said


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("front_end.n_fft=256",), {"n_fft": 256, "win_length": 256}),
        (("front_end.n_fft=64",), {"n_fft": 64, "n_mels": 16}),
        (("front_end.win_length=1000",), {"win_length": 1_000, "n_fft": 1_024}),
        (("front_end.hop_length=700",), {"hop_length": 700}),
        (("front_end.n_mels=200",), {"n_mels": 200}),
        (("front_end.n_mels=400",), {"n_mels": 400, "n_fft": 1_024}),
        (("front_end.win_length=32",), {"win_length": 32}),
    ],
)
def test_what_is_settled_of_the_front_end_bounds_what_is_chosen(
    overrides: tuple[str, ...], expected: dict[str, int]
) -> None:
    spec = front_end_spec(_rest(16_000, [500, 500], *overrides)[0])
    assert {name: getattr(spec, name) for name in expected} == expected


def test_the_network_grows_with_the_windows_and_with_the_device() -> None:
    sizes = {
        (device, windows): ecapa_dims(_rest(16_000, [windows], device=device)[0]).channels
        for device in ("cpu", "cuda")
        for windows in (100, 10_000, 100_000)
    }
    assert [sizes["cpu", n] for n in (100, 10_000, 100_000)] == [64, 64, 128]
    assert [sizes["cuda", n] for n in (100, 10_000, 100_000)] == [256, 512, 1_024]


@pytest.mark.parametrize("scale", [2, 3, 5, 7, 8, 48])
def test_the_channels_divide_into_any_number_of_groups(scale: int) -> None:
    dims = ecapa_dims(_rest(16_000, [500], f"network.scale={scale}")[0])
    assert 64 <= dims.channels < 64 + scale


def test_settled_sizes_stay_and_the_others_follow_them() -> None:
    recipe, said = _rest(16_000, [500, 500], "network.channels=8192", "network.embedding=10", "training.epochs=3")
    dims = ecapa_dims(recipe)
    assert (dims.channels, dims.embedding, recipe.training.epochs) == (8_192, 10, 3)
    assert "network:" not in said
    assert "training:" not in said


def test_more_windows_and_labels_get_more_steps_and_a_gpu_the_larger_batch() -> None:
    def steps(counts: list[int], device: str = "cpu") -> float:
        recipe, _ = _rest(16_000, counts, device=device)
        return int(recipe.training.epochs) * sum(counts) / int(recipe.training.batch)

    assert steps([50, 50]) < steps([50] * 10) < steps([500] * 10)
    assert steps([4_000] * 10) < 1.1 * 3_000 < 5_000 < steps([4_000] * 10, "cuda")
    assert _rest(16_000, [5_000])[0].training.batch == 64
    assert _rest(16_000, [5_000], device="cuda")[0].training.batch == 128
    assert int(_rest(16_000, [10**8])[0].training.epochs) >= 2


@pytest.mark.parametrize("windows", [1, 7, 31, 32, 100])
def test_the_windows_there_are_fill_a_batch(windows: int) -> None:
    assert _rest(16_000, [windows])[0].training.batch == min(32, windows)


def test_the_cosines_scale_is_that_of_adacos_and_never_too_small_to_be_sure() -> None:
    assert cosine_scale(1_000) == pytest.approx(math.sqrt(2) * math.log(999), abs=1e-3)
    assert cosine_scale(1) == cosine_scale(2) == cosine_scale(3) == cosine_scale(17) == 4.0
    recipe, _ = _rest(16_000, [500] * 2)
    assert recipe.loss.scale == 4.0
    softmax = math.exp(2 * 4.0) / (math.exp(2 * 4.0) + 1)
    assert softmax > 0.999


def test_the_head_is_that_of_the_loss() -> None:
    assert head_spec(_rest(16_000, [500])[0]) == HeadSpec(kind="linear")
    cosine = head_spec(_rest(16_000, [500], "loss.kind=aam_softmax", "loss.scale=12.0")[0])
    assert cosine == HeadSpec(kind="cosine", scale=12.0)


@given(
    lengths=st.lists(st.integers(16, 10**8), min_size=1, max_size=30),
    rates=st.lists(st.sampled_from([8e3, 16e3, 22_050.0, 44_100.0, 1e6, 2.5e6]), min_size=1, max_size=30),
    counts=st.lists(st.integers(0, 10**6), min_size=1, max_size=60),
    device=st.sampled_from(["cpu", "cuda"]),
    name=st.sampled_from(["default", "paper"]),
    context=st.sampled_from(["none", "window"]),
)
@settings(max_examples=300, deadline=None)
def test_whatever_the_data_nothing_stays_open_and_the_sizes_make_a_model(
    lengths: list[int], rates: list[float], counts: list[int], device: str, name: str, context: str
) -> None:
    rates_hz = [rates[number % len(rates)] for number in range(len(lengths))]
    recipe = load_recipe(name, [f"front_end.context={context}"])
    recipe, said = choose_windows(recipe, _facts(lengths, rates_hz))
    samples = round(float(recipe.windows.length_s) * float(recipe.windows.rate_hz))
    hop = round(float(recipe.windows.hop_s) * float(recipe.windows.rate_hz))
    assert 1 <= hop <= samples <= LONGEST_WHOLE
    recipe, more = choose_rest(recipe, window_samples=samples, counts=counts, device=device)
    assert recipe.unresolved() == []
    front = front_end_spec(recipe)
    if name == "default":
        assert 13 <= front.frames(samples) <= MOST_FRAMES + 2
    ecapa_dims(recipe)
    assert head_spec(recipe).scale > 0
    assert int(recipe.training.epochs) >= 2
    assert all(said)
    assert all(more)
    assert choose_rest(recipe, window_samples=samples, counts=counts, device=device)[0] == recipe


@given(samples=st.integers(16, 10**8), windows=st.integers(0, 10**9))
@settings(max_examples=200, deadline=None)
def test_windows_of_a_length_that_the_user_chose_have_a_front_end_too(samples: int, windows: int) -> None:
    recipe, _ = _rest(samples, [windows])
    spec = front_end_spec(recipe)
    assert spec.frames(samples) >= 13
    assert msgspec.json.encode(recipe)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("network.channels=30", "30 channels do not divide into 8 Res2 groups"),
        ("network.mfa_channels=100000", "mfa_channels is 100000"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_before_a_training(override: str, told: str) -> None:
    recipe = load_recipe("default", [override, "windows.rate_hz=16000", "windows.length_s=0.1", "windows.hop_s=0.05"])
    with pytest.raises(ValueError, match=told):
        choose_rest(recipe, window_samples=1_600, counts=[50, 50], device="cpu")
