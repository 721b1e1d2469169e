from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.training.recipe import RECIPES, Recipe, RecipeError, load_recipe, recipe_text

NAMES = sorted(file.stem for file in RECIPES.glob("*.toml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_that_comes_along_shows_each_of_its_values_in_its_file(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    text = (RECIPES / f"{name}.toml").read_text()
    for section, values in msgspec.to_builtins(recipe).items():
        for field in values if isinstance(values, dict) else ():
            assert f"\n{field} = " in text, f"{section}.{field}"


def test_the_papers_recipe_is_the_papers() -> None:
    paper = load_recipe("paper")
    assert (paper.loss.kind, paper.loss.margin, paper.loss.scale) == ("aam_softmax", 0.2, 30.0)
    assert (paper.optimizer.kind, paper.optimizer.learning_rate) == ("adam", 1e-3)
    assert (paper.optimizer.decay, paper.optimizer.decay_every_epochs) == (0.97, 100)
    assert (paper.front_end.n_fft, paper.front_end.win_length, paper.front_end.hop_length) == (512, 400, 160)
    assert (paper.front_end.context, paper.augment.audition, paper.windows.nominal) == ("none", False, True)
    assert paper.unresolved() == ["windows.rate_hz", "windows.length_s", "windows.hop_s"]


def test_overrides_are_read_as_toml_and_taken_for_text_where_they_are_none() -> None:
    overrides = [
        "training.epochs=7",
        "optimizer.learning_rate = 5e-4",
        "augment.polarity=false",
        "network.dilations=[2, 3]",
        "augment.noise_snr_db=[3.0, 9.0]",
        "front_end.context=none",
        'loss.kind="aam_softmax"',
        "training.epochs=9",
    ]
    recipe = load_recipe("default", overrides)
    assert recipe.training.epochs == 9  # the last one counts
    assert recipe.optimizer.learning_rate == 5e-4
    assert recipe.augment.polarity is False
    assert recipe.network.dilations == (2, 3)
    assert recipe.augment.noise_snr_db == (3.0, 9.0)
    assert (recipe.front_end.context, recipe.loss.kind) == ("none", "aam_softmax")
    untouched = load_recipe("default")
    assert (recipe.sampling, recipe.windows) == (untouched.sampling, untouched.windows)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("epochs=7", r"epochs=7: an override is written section\.field=value"),
        ("training.epochs", r"training\.epochs: an override is written section\.field=value"),
        ("trainning.epochs=7", "trainning.epochs=7: no section trainning; there are windows, front_end, network"),
        ("name.first=x", "no section name; there are windows"),
        ("training.epoch=7", "training.epoch=7: training has no epoch; it has epochs, batch, ema"),
        ("training.epochs=many", r'^training\.epochs = "many"; it may be a whole number at least 1 or auto$'),
        ("training.epochs=0", r"^training\.epochs = 0; it may be a whole number at least 1 or auto$"),
        ("training.ema=2", r"^training\.ema = 2; it may be a number at least 0 and under 1$"),
        ("network.channels=true", r"^network\.channels = true; it may be a whole number at least 1 or auto$"),
        (
            "network.dilations=[0]",
            r"^network\.dilations = \[0\]; .*a list of any length, each a whole number at least 1$",
        ),
        ("loss.kind=hinge", r'^loss\.kind = "hinge"; it may be cross_entropy or aam_softmax$'),
        ("augment.noise_snr_db=[1.0]", r"^augment\.noise_snr_db = \[1\.0\]; it may be a list of 2, each a number$"),
        ("augment.polarity=1", r"^augment\.polarity = 1; it may be true or false$"),
    ],
)
def test_an_override_that_cannot_be_is_refused_with_the_field_and_what_it_may_be(override: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        load_recipe("default", [override])


def test_a_value_that_cannot_be_is_refused_in_a_file_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(recipe_text(load_recipe("default")).replace("gain_db = 6.0", "gain_db = -6.0"))
    with pytest.raises(RecipeError, match=r"mine\.toml: augment\.gain_db = -6\.0; it may be a number at least 0"):
        load_recipe(path, ["training.epochs=3"])


def test_a_recipe_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(RecipeError, match=rf"^best: no such recipe; there are {', '.join(NAMES)}, or name a \.toml"):
        load_recipe("best")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "No such file"),
        ("name = ", "Invalid value"),
        (b"\xff\xfe", "decode"),
        ("name = 'x'", "missing required field `windows`"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_by_its_name(tmp_path: Path, text: str | bytes | None, told: str) -> None:
    path = tmp_path / "mine.toml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError, match=rf"mine\.toml: .*{told}"):
        load_recipe(path)


def test_a_field_that_no_recipe_has_is_refused_in_a_file_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(recipe_text(load_recipe("default")).replace("[loss]", "[loss]\ntemperature = 1.0"))
    with pytest.raises(RecipeError, match=r"unknown field `temperature` - at `\$\.loss`"):
        load_recipe(path)


def test_what_is_left_to_the_data_is_named() -> None:
    assert "network.channels" in load_recipe("default").unresolved()
    assert "network.channels" not in load_recipe("default", ["network.channels=32"]).unresolved()
    assert "training.precision" not in load_recipe("default").unresolved()  # chosen by the device, and never left open


numbers = st.floats(min_value=-1e12, max_value=1e12)
changes: dict[str, st.SearchStrategy[Any]] = {
    "windows.rate_hz": st.one_of(st.just("auto"), st.floats(1.0, 1e8)),
    "front_end.n_fft": st.one_of(st.just("auto"), st.integers(16, 65_536)),
    "network.dilations": st.lists(st.integers(1, 64), min_size=1, max_size=5),
    "loss.margin": st.floats(0.0, 1.5),
    "augment.polarity": st.booleans(),
    "augment.noise_snr_db": st.tuples(numbers, numbers),
    "optimizer.learning_rate": st.floats(min_value=5e-324, max_value=1.0),
    "training.seed": st.integers(0, 2**53),
}


@given(name=st.sampled_from(NAMES), values=st.fixed_dictionaries({}, optional=changes), title=st.text(max_size=20))
@settings(max_examples=100, deadline=None)
def test_a_recipes_text_reads_back_as_the_same_recipe(
    tmp_path_factory: pytest.TempPathFactory, name: str, values: dict[str, Any], title: str
) -> None:
    built = msgspec.to_builtins(load_recipe(name)) | {"name": title}
    for place, value in values.items():
        section, field = place.split(".")
        built[section][field] = value
    recipe = msgspec.convert(built, type=Recipe)
    path = tmp_path_factory.getbasetemp() / "recipe.toml"
    path.write_text(recipe_text(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe
