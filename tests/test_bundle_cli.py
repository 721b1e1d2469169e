from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner, Result

from deploy.cli.bundle import bundle
from deploy.train_run import Listener as Quiet
from deploy.train_run import Order, train_dataset
from model.bundle import demo_bundle_path, load_weights, read_card
from model.data.manifest import read_manifest
from model.training.checkpoint import read_checkpoint
from model.training.import_weights import read_initial
from model.training.recipe import load_recipe
from model.training.run_folder import LAST
from tests.reference_ecapa import drawn, speechbrain_shapes, taoruijie_shapes
from tests.training_windows import TINY, bursts, tiny_recipe


@pytest.fixture(scope="module", autouse=True)
def _alone(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # of several, another number of them would give other last digits
        yield
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "bursts"
    windows = bursts(80)
    for number, (window, label) in enumerate(zip(windows.windows, windows.labels, strict=True)):
        path = folder / windows.label_names[label] / f"{number:03}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, window, 16_000, subtype="PCM_16")
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    train_dataset(Order(manifest=read_manifest(data), recipe=tiny_recipe(), out=out, device="cpu"), Quiet())
    return out


def _aewatch_bundle(*arguments: object) -> Result:
    return CliRunner().invoke(bundle, [str(argument) for argument in arguments], prog_name="aewatch bundle")


def _made(*arguments: object) -> Result:
    done = _aewatch_bundle("make", *arguments, "--device", "cpu")
    assert done.exit_code == 0, done.output
    return done


def test_a_run_gives_the_bundle_that_its_training_wrote(run: Path, tmp_path: Path) -> None:
    done = _made(run, "--out", tmp_path / "again")
    written, again = read_card(run / "bundle"), read_card(tmp_path / "again")
    assert again == written
    assert f"bundle first {written.version}; on the validation part accuracy" in done.output


def test_name_roles_and_the_last_weights_are_to_be_had(run: Path, data: Path, tmp_path: Path) -> None:
    _made(run, "--out", tmp_path / "b", "--name", "pump", "--role", "burst=calibration", "--checkpoint", "last")
    card = read_card(tmp_path / "b")
    assert (card.name, card.roles) == ("pump", {"burst": "calibration", "noise": "background"})
    assert card.thresholds == {"burst": 0.8}
    weights, (kept, _) = load_weights(tmp_path / "b", card), read_checkpoint(run / LAST)
    for name in ("network.entry.conv.weight", "head.weight"):
        np.testing.assert_array_equal(weights[name], kept[f"average.{name}"])


def test_data_that_have_moved_are_found_and_data_that_have_changed_are_not_taken(
    run: Path, data: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(data)
    _made(run, "--out", tmp_path / "b", "--data", moved)
    other = tmp_path / "other"
    for path in data.rglob("*.wav"):
        copy = other / path.relative_to(data)
        copy.parent.mkdir(parents=True, exist_ok=True)
        samples, rate = soundfile.read(path, dtype="int16")
        soundfile.write(copy, samples[::-1], rate)
    done = _aewatch_bundle("make", run, "--out", tmp_path / "c", "--data", other, "--device", "cpu")
    assert done.exit_code == 1
    assert "name the data set that was trained on" in done.output
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--role", "knock=fault"), "role of knock: no such label"),
        (("--role", "burst=alarm"), "'burst=alarm'; write LABEL=ROLE"),
        (("--checkpoint", "first"), "'first' is not one of 'best', 'last'"),
    ],
)
def test_what_cannot_be_made_is_told_in_one_line(
    arguments: tuple[str, str], said: str, run: Path, tmp_path: Path
) -> None:
    done = _aewatch_bundle("make", run, "--out", tmp_path / "b", "--device", "cpu", *arguments)
    assert done.exit_code != 0
    assert said in done.output
    assert "Traceback" not in done.output


def test_a_folder_without_a_training_is_named(tmp_path: Path) -> None:
    done = _aewatch_bundle("make", tmp_path, "--out", tmp_path / "b")
    assert done.exit_code == 1
    assert f"{tmp_path}/run.json: No such file" in done.output


@pytest.mark.parametrize("layout", ["taoruijie", "speechbrain"])
def test_weights_of_others_become_a_start(layout: str, tmp_path: Path) -> None:
    sizes = {"mfa": 24, "attention": 12, "se": 6, "scale": 4}
    shapes = taoruijie_shapes(32, **sizes) if layout == "taoruijie" else speechbrain_shapes(32, **sizes)
    torch.save(drawn(shapes, dtype=torch.float32), tmp_path / "pretrain.model")
    for named in ((), ("--layout", layout)):
        done = _aewatch_bundle("import", tmp_path / "pretrain.model", "--out", tmp_path / "start.safetensors", *named)
        assert done.exit_code == 0, done.output
        assert "32 channels, 80 mel bins" in done.output
        weights, dims = read_initial(tmp_path / "start.safetensors")
        assert (dims.channels, dims.mfa_channels) == (32, 24)
        assert np.isfinite(weights["network.embed.weight"]).all()
    other = {"taoruijie": "speechbrain", "speechbrain": "taoruijie"}[layout]
    done = _aewatch_bundle(
        "import", tmp_path / "pretrain.model", "--out", tmp_path / "x.safetensors", "--layout", other
    )
    assert done.exit_code == 1
    assert f"({other})" in done.output
    assert not (tmp_path / "x.safetensors").exists()


def test_a_training_begins_with_imported_weights_in_the_variant_they_are_of(data: Path, tmp_path: Path) -> None:
    theirs = drawn(speechbrain_shapes(16, mfa=16, attention=8, se=4), dtype=torch.float32)
    torch.save(theirs, tmp_path / "embedding_model.ckpt")
    kept = [setting for setting in TINY if not setting.startswith(("network.", "front_end."))]
    still = "optimizer.learning_rate=1e-12"  # so that what it begins with is what it ends with
    recipe = load_recipe("default", [*kept, still, "training.epochs=2", "training.ema=0"])
    order = Order(
        manifest=read_manifest(data),
        recipe=recipe,
        out=tmp_path / "run",
        initial=tmp_path / "embedding_model.ckpt",
        device="cpu",
    )
    train_dataset(order, Quiet())
    card = read_card(tmp_path / "run" / "bundle")
    assert (card.network.variant, card.network.channels, card.network.attention) == ("speechbrain", 16, 8)
    weights = load_weights(tmp_path / "run" / "bundle", card)
    expected = theirs["blocks.0.conv.conv.weight"].numpy()
    np.testing.assert_allclose(weights["network.entry.conv.weight"][:, :80], expected, atol=1e-6)


def test_a_start_is_written_as_safetensors_only(tmp_path: Path) -> None:
    (tmp_path / "pretrain.model").write_bytes(b"")
    done = _aewatch_bundle("import", tmp_path / "pretrain.model", "--out", tmp_path / "start.pt")
    assert done.exit_code == 2
    assert "name a .safetensors file" in done.output


def test_a_bundle_is_shown() -> None:
    done = _aewatch_bundle("show", demo_bundle_path())
    assert done.exit_code == 0
    assert "bf84e051c4d591ac" in done.output
    assert "pencil_lead_break (calibration)" in done.output
    assert "model.json" in _aewatch_bundle("show", "nowhere").output
