from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file

from model.bundle import load_weights, read_card
from model.training.checkpoint import read_checkpoint
from model.training.history import read_history
from model.training.recipe import load_recipe
from model.training.run_folder import BEST, LAST
from model.training.train import train_run
from tests import two_processes
from tests.test_cli import imported_by
from tests.training_windows import TINY, bursts

ROOT = Path(__file__).parent.parent
SETTINGS = [word for setting in TINY if not setting.startswith("windows.") for word in ("--set", setting)]
EPOCHS = 45  # of 4 steps each, judged after every fifth; long enough that a signal comes before the end


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "bursts"
    windows = bursts(80)
    for number, (window, label) in enumerate(zip(windows.windows, windows.labels, strict=True)):
        path = folder / windows.label_names[label] / f"{number:03}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, window, 16_000, subtype="PCM_16")
    return folder


def _environment(cache: Path) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(cache), "PYTHONUNBUFFERED": "1"}


def _command(*arguments: object, launcher: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, *launcher, "-m", "deploy.cli", "train", *map(str, arguments)]


def _fresh(data: Path, run: Path) -> list[str]:
    return _command("--data", data, "--out", run, "--device", "cpu", *SETTINGS, "--epochs", EPOCHS)


def _train(command: list[str], cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=_environment(cache), timeout=240
    )


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("trained")
    done = _train([*_fresh(data, folder / "run"), "--role", "noise=background"], folder)
    assert done.returncode == 0, done.stderr
    return folder / "run", done


def test_a_training_ends_with_a_bundle_and_says_what_next(
    data: Path, trained: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    run, done = trained
    card = read_card(run / "bundle")
    load_weights(run / "bundle", card)
    assert card.roles == {"burst": "fault", "noise": "background"}
    assert (card.window_samples, card.hop_samples, card.rate_hz) == (2_000, 1_000, 16_000.0)
    assert f"next: aewatch evaluate {run / 'bundle'} --data {data}" in done.stdout
    assert f"bundle run {card.version}" in done.stdout
    assert "macro F1" in done.stdout
    assert f"train --data {data} --out {run}" in card.training.command


def test_it_says_what_it_chose_and_a_line_for_each_epoch(
    trained: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    run, done = trained
    lines = done.stderr.splitlines()
    assert any(line.startswith("rate: 16000 Hz, the rate of all clips") for line in lines)
    assert any("windows to train on" in line and "split by recording" in line for line in lines)
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert [line.split(":")[0] for line in epochs] == [f"epoch {epoch}/{EPOCHS}" for epoch in range(5, 46, 5)]
    assert "windows/s" in epochs[0]
    assert "left" in epochs[0]
    assert not load_recipe(run / "recipe.toml").unresolved()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_training_that_was_stopped_or_killed_goes_on_to_the_same_weights(
    number: signal.Signals, data: Path, trained: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        _fresh(data, run),
        cwd=ROOT,
        env=_environment(tmp_path),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (run / LAST).exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, told = process.communicate(timeout=120)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 128 + number
        assert f"{number.name}: stopped after step" in told
        assert f"aewatch train --resume --out {run}" in told
        assert "Traceback" not in told
    assert not (run / "bundle").exists()

    done = _train(_command("--resume", "--out", run, "--device", "cpu"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "augmentation:" not in done.stderr  # what was begun with is not chosen anew
    for file in (LAST, BEST):
        uninterrupted, resumed = (read_checkpoint(folder / file)[0] for folder in (trained[0], run))
        assert uninterrupted.keys() == resumed.keys()
        for name, tensor in uninterrupted.items():
            assert torch.equal(tensor, resumed[name]), f"{file}: {name}"
    assert [epoch.epoch for epoch in read_history(run)] == list(range(5, 46, 5))
    assert read_card(run / "bundle").training.recipe == read_card(trained[0] / "bundle").training.recipe


def test_a_run_that_exists_is_refused_and_left_alone(
    data: Path, trained: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    run, _ = trained
    before = (run / LAST).stat().st_mtime_ns
    done = _train(_fresh(data, run), tmp_path)
    assert done.returncode == 1
    assert "--resume goes on with it" in done.stderr
    done = _train([*_command("--resume", "--out", run, "--seed", 3)], tmp_path)
    assert done.returncode == 2
    assert "goes on with what" in done.stderr
    assert (run / LAST).stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--data", "nowhere"), "nowhere"),
        (("--data", "{data}", "--recipe", "nonesuch"), "there are default, paper"),
        (("--data", "{data}", "--set", "training.epoch=3"), "training has no epoch"),
        (("--data", "{data}", "--epochs", "0"), "0 is not in the range"),
        (("--data", "{data}", "--role", "noise=harmless"), "a role is one of background, calibration, fault"),
        (("--data", "{data}", "--role", "hum=fault"), "no such label; there are burst, noise"),
        (("--data", "{data}", "--device", "gpu"), "choose auto, cpu, cuda or cuda:N"),
        (("--data", "{data}/burst"), "holds a recording"),
        (("--resume",), "holds no training yet"),
    ],
)
def test_what_cannot_be_trained_is_named_before_torch_is_imported(
    arguments: tuple[str, ...], told: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(data=data) for word in arguments]
    script = (
        "import sys\nfrom deploy.cli import main\n"
        f"try: main({['train', '--out', str(tmp_path / 'run'), *words]!r})\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode != 0
    assert told in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout.strip() == "False"
    assert not (tmp_path / "run").exists()


def test_help_does_not_import_torch() -> None:
    assert not imported_by("train", "--help") & {"torch", "numpy", "scipy"}


# --- Several processes -------------------------------------------------------------------------------------------

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights_and_about_the_loss_of_one(tmp_path: Path) -> None:
    command = [sys.executable, *TORCHRUN, "-m", "tests.two_processes", str(tmp_path)]
    done = _train(command, tmp_path)
    assert done.returncode == 0, done.stderr
    one, other = (load_file(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1))
    heard = [ranks.pop("trained on").reshape(12, -1).tolist() for ranks in (one, other)]
    for epochs in zip(*heard, strict=True):
        assert sorted(epochs[0] + epochs[1]) == list(range(256))
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    train_run(two_processes.DATA, two_processes.PARTS, two_processes.RECIPE, tmp_path / "alone", device="cpu")
    together, alone = read_history(tmp_path / "run"), read_history(tmp_path / "alone")
    assert [epoch.step for epoch in together] == [epoch.step for epoch in alone]
    for pair in zip(together, alone, strict=True):
        losses = [epoch.loss for epoch in pair]
        assert losses[0] == pytest.approx(losses[1], rel=0.25)


@pytest.mark.slow
def test_torchrun_trains_with_the_same_command_and_one_process_talks(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = _fresh(data, run)[1:]
    done = _train([sys.executable, *TORCHRUN, *arguments], tmp_path)
    assert done.returncode == 0, done.stderr
    assert sum(line.startswith("epoch 45/45") for line in done.stderr.splitlines()) == 1
    assert "batch norm: each of 2 processes" in done.stderr
    assert done.stdout.count("next: aewatch evaluate") == 1
    assert json.loads((run / LAST).with_suffix(".json").read_text())["step"] == 180
    read_card(run / "bundle")


@pytest.mark.slow
def test_two_processes_told_to_stop_save_and_go_on(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = _fresh(data, run)[1:]
    process = subprocess.Popen(
        [sys.executable, *TORCHRUN, *arguments], cwd=ROOT, env=_environment(tmp_path), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (run / LAST).exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=120)
    assert process.returncode != 0
    assert told.count("SIGTERM: stopped after step") == 1
    step = read_checkpoint(run / LAST)[1]["step"]
    assert 20 < step < 180
    resumed = _command("--resume", "--out", run, "--device", "cpu", launcher=TORCHRUN)
    done = _train(resumed, tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_checkpoint(run / LAST)[1]["step"] == 180
