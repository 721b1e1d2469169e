from __future__ import annotations

from pathlib import Path

import pytest

from deploy.demo_windows import LABELS, WindowsSpec
from deploy.train_demo import RECIPE, DemoPlan, train_demo_bundle
from model.bundle import load_weights, read_card
from model.training.recipe import load_recipe
from producers.propagation import draw_positions

TINY = (
    "network.channels=16",
    "network.mfa_channels=16",
    "network.attention=8",
    "network.embedding=8",
    "network.se_bottleneck=4",
    "network.dilations=[2]",
    "front_end.n_mels=24",
    "training.epochs=2",
    "training.batch=16",
)


def test_the_demos_recipe_leaves_nothing_open() -> None:
    assert load_recipe("paper", RECIPE).unresolved() == []


@pytest.mark.slow
def test_the_demo_bundle_is_made_from_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = DemoPlan(
        train=draw_positions(11, 3),
        validation=draw_positions(12, 2),
        test=draw_positions(13, 1),
        windows=WindowsSpec(events=1, backgrounds=4),
        held_out=WindowsSpec(events=1, backgrounds=4),
        recipe=(*RECIPE, *TINY),
        validation_streams_s=12.0,
        test_streams_s=12.0,
    )
    written = train_demo_bundle(tmp_path / "demo", seed=3, plan=plan)
    card = read_card(tmp_path / "demo")
    load_weights(tmp_path / "demo", card)
    assert card == written
    assert card.label_names == LABELS
    assert card.training.seed == 3
    assert card.training.recipe.startswith('name = "demo"')
    assert card.front_end.level == "rms"
    assert card.metrics["windows"]["windows"] > 0
    assert "time shift of up to 0.5 ms" in (tmp_path / "demo" / "README.md").read_text()
    assert "epoch 2/2" in capsys.readouterr().out
