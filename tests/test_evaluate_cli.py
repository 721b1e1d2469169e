from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

from deploy.cli.evaluate import evaluate as command
from model.architecture import EcapaDims, FrontEndSpec
from model.bundle import Label
from model.untrained import write_untrained_bundle
from tests.labelled_windows import LABELS, labelled_windows

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("model.evaluation.bootstrap.REPEATS", 50)
    monkeypatch.setattr("model.evaluation.evaluate.TIMED_S", 0.02)
    monkeypatch.setattr("model.evaluation.baseline.TREES", 20)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_untrained_bundle(
        tmp_path / "bundle",
        network=EcapaDims(channels=16, mfa_channels=16, attention=8, embedding=8, se_bottleneck=8),
        front_end=FrontEndSpec(n_mels=20, level="rms"),
        labels=tuple(Label(name, "fault") for name in reversed(LABELS)),
        rate_hz=16_000.0,
        window_samples=2_048,
        hop_samples=1_024,
    )
    return tmp_path / "bundle"


def _write(folder: Path, parts: tuple[str, ...] = ("train", "train", "test")) -> Path:
    """Forty-five recordings in class folders; the parts take turns, recording by recording."""
    windows = labelled_windows(45, 2_048)
    for number, (window, label) in enumerate(zip(windows.windows, windows.labels, strict=True)):
        part = parts[number // 3 % len(parts)]
        path = folder / part / LABELS[label] / f"{number:02}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, window, 16_000, subtype="PCM_16")
    return folder


def _table(folder: Path, part: str) -> Path:
    """The same as a table, with a column `part` and positions."""
    _write(folder / "files")
    files = sorted((folder / "files").rglob("*.wav"))
    rows = [
        f"{path.relative_to(folder)},{path.parent.name},P{number % 2},{number % 3}"
        for number, path in enumerate(files)
    ]  # fmt: skip
    (folder / "table.csv").write_text("\n".join([f"path,label,position,{part}", *rows]) + "\n")
    return folder / "table.csv"


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [*map(str, arguments), "--device", "cpu"], catch_exceptions=False)


def test_the_test_part_is_measured_beside_a_baseline_of_the_training_part(bundle: Path, tmp_path: Path) -> None:
    data = _write(tmp_path / "data")
    done = _run(bundle, "--data", data, "--json", "--out", tmp_path / "report", "--html", tmp_path / "p" / "page.html")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["part"], found["windows"], found["recordings"]) == ("test", 15, 15)
    assert found["labels"] == list(reversed(LABELS))
    assert found["counts"] == {"tone": 5, "hiss": 5, "click": 5}
    assert found["baseline"]["accuracy"] > 0.9
    assert found["difference"]["accuracy"]["value"] < 0
    assert json.loads((tmp_path / "report" / "evaluation.json").read_text()) == found
    names = sorted(path.name for path in (tmp_path / "report").iterdir())
    assert names == ["confusion.png", "evaluation.json", "labels.png", "reliability.png", "report.html", "report.txt"]
    assert (tmp_path / "p" / "page.html").read_text() == (tmp_path / "report" / "report.html").read_text()
    assert f"wrote {tmp_path / 'report' / 'report.txt'}" in done.stderr


def test_a_fold_of_a_table_with_positions(bundle: Path, tmp_path: Path) -> None:
    done = _run(bundle, "--data", _table(tmp_path, "fold"), "--fold", "1")
    assert done.exit_code == 0, done.stderr
    assert "fold 1: 15 windows" in done.stdout
    assert "position" in done.stdout
    assert "P1" in done.stdout
    assert "baseline" in done.stdout


def test_without_parts_all_is_measured_and_the_baseline_needs_a_data_set(bundle: Path, tmp_path: Path) -> None:
    data = _write(tmp_path / "data", ("",))
    alone = _run(bundle, "--data", data)
    assert alone.exit_code == 0, alone.stderr
    assert "all: 45 windows" in alone.stdout
    assert "nothing tells which of it is new" in alone.stdout
    assert "--train-data names a data set for it" in alone.stdout
    other = _write(tmp_path / "other", ("train", "test"))
    beside = _run(bundle, "--data", data, "--train-data", other)
    assert beside.exit_code == 0, beside.stderr
    assert f"the baseline learned from {other}, its train part" in beside.stdout
    assert "of the baseline: " in beside.stdout, "the same recordings lie on both sides"
    assert "difference" in beside.stdout
    assert "--train-data" not in _run(bundle, "--data", data, "--no-baseline").stdout


def test_the_same_command_gives_the_same_figures(bundle: Path, tmp_path: Path) -> None:
    data = _write(tmp_path / "data")
    one, two = (json.loads(_run(bundle, "--data", data, "--json").stdout) for _ in range(2))
    assert one["results"] == two["results"]
    assert (one["baseline"], one["difference"]) == (two["baseline"], two["difference"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--split", "test", "--fold", "1"), "choose one"),
        (("--train-data", ".", "--no-baseline"), "leave out --no-baseline"),
        (("--fold", "9"), "no fold '9'; it has test, train"),
        (("--split", "validation"), "no validation part; it has test, train"),
    ],
)
def test_what_does_not_fit_ends_with_one_line(
    options: tuple[str, ...], said: str, bundle: Path, tmp_path: Path
) -> None:
    done = _run(bundle, "--data", _write(tmp_path / "data"), *options)
    assert done.exit_code in (1, 2)
    assert said in done.stderr.splitlines()[-1]


def test_other_labels_are_refused_before_any_recording_is_read(bundle: Path, tmp_path: Path) -> None:
    data = _write(tmp_path / "data")
    for part in ("train", "test"):
        (data / part / "tone").rename(data / part / "whistle")
    (data / "test" / "hiss" / "05.wav").write_bytes(np.zeros(3).tobytes())
    done = _run(bundle, "--data", data)
    assert done.exit_code == 1
    assert "does not know whistle; it knows tone, hiss, click" in done.stderr


@pytest.mark.parametrize("left_out", [("tone",), ("tone", "hiss")])
def test_a_data_set_with_some_of_the_labels_is_measured(
    left_out: tuple[str, ...], bundle: Path, tmp_path: Path
) -> None:
    data = _write(tmp_path / "data")
    for part in ("train", "test"):
        for label in left_out:
            shutil.rmtree(data / part / label)
    done = _run(bundle, "--data", data)
    assert done.exit_code == 0, done.stderr
    assert f"the data set has no {', '.join(left_out)}, which the bundle knows too" in done.stdout


def test_a_folder_that_is_no_bundle_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = _run(tmp_path / "empty", "--data", _write(tmp_path / "data"))
    assert done.exit_code == 1
    assert "a bundle is a folder with model.json" in done.stderr
