from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from deploy.train_run import Listener, Order, sized_like, train_dataset
from model.architecture import EcapaDims
from model.data.manifest import read_manifest
from model.training.import_weights import for_front_end
from model.training.recipe import load_recipe
from model.training.recipe_choice import choose_rest, ecapa_dims, front_end_spec
from model.training.train import load_initial, new_recogniser

DIMS = EcapaDims(channels=48, mfa_channels=40, attention=12, embedding=20, se_bottleneck=6, scale=8)
WEIGHTS = {
    "network.entry.conv.weight": np.ones((48, 40, 5), np.float32),
    "network.embed.weight": np.full((20, 80, 1), 2.0, np.float32),
}


def test_a_training_takes_the_sizes_of_the_weights_it_begins_with() -> None:
    open_sizes = load_recipe("default", ["windows.rate_hz=16000", "windows.length_s=1.0", "windows.hop_s=0.5"])
    recipe, _ = choose_rest(sized_like(open_sizes, DIMS, 40), window_samples=16_000, counts=[100, 100], device="cpu")
    assert ecapa_dims(recipe) == DIMS
    assert recipe.front_end.n_mels == 40
    model = new_recogniser(recipe, 2)
    load_initial(model, for_front_end(WEIGHTS, front_end_spec(recipe)))
    assert float(model.network.embed.weight.detach().mean()) == 2.0
    assert float(model.network.entry.conv.weight.detach()[:, :40].min()) == 1.0


def test_weights_of_another_variant_are_trained_on_as_that_variant() -> None:
    recipe = sized_like(load_recipe("default"), replace(DIMS, variant="speechbrain"), 40)
    assert recipe.network.variant == "speechbrain"


@pytest.mark.parametrize(
    ("overrides", "dims", "told"),
    [
        (["network.channels=64"], DIMS, r"network\.channels 48, the recipe says 64; --set network\.channels=48"),
        ([], replace(DIMS, scale=4), r"network\.scale 4, the recipe says 8"),
        ([], replace(DIMS, dilations=(2, 3)), r"network\.dilations \(2, 3\), .*--set network\.dilations=\[2, 3\]"),
    ],
)
def test_a_size_that_the_recipe_settles_otherwise_is_named(overrides: list[str], dims: EcapaDims, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        sized_like(load_recipe("default", overrides), dims, 40)


def test_a_label_with_too_few_windows_is_named_before_anything_is_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("drop/0", "knock/0", "knock/1", "knock/2", "knock/3"):
        path = tmp_path / "data" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.uniform(-0.5, 0.5, 4_000), 16_000)
    order = Order(manifest=read_manifest(tmp_path / "data"), recipe=load_recipe("default"), out=tmp_path / "run")
    with pytest.raises(ValueError, match=r"fewer than two training windows of drop; .*windows\.length_s"):
        train_dataset(order, Listener())
    assert not order.out.exists()


def test_a_fold_that_is_not_there_is_told_before_recordings_are_read(tmp_path: Path) -> None:
    table = tmp_path / "data.csv"
    table.write_text("path,label,fold\na.wav,drop,1\nb.wav,knock,2\n")
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(b"no audio at all")
    order = Order(
        manifest=read_manifest(table), recipe=load_recipe("default"), out=tmp_path / "run", fold="3", device="cpu"
    )
    with pytest.raises(ValueError, match=r"fold '3': there is no such fold; the data set has folds 1, 2"):
        train_dataset(order, Listener())
