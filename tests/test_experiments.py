from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from deploy.experiments import gas_leaks
from deploy.experiments.plan import Effort, run
from deploy.experiments.position_windows import LABELS, SHARES, TEST, TRAINING, WINDOW_SAMPLES, position_windows
from deploy.experiments.table import errors_left, results_in, table
from deploy.experiments.trial import RESULT, Result, held_out
from deploy.experiments.unknown_scores import measure
from model.data.dataset import WindowSet


def result(what: str, case: str, confusion: list[list[int]], training_s: float = 10.0) -> Result:
    matrix = np.array(confusion)
    accuracy = float(np.trace(matrix) / matrix.sum())
    return Result(
        what=what,
        case=case,
        accuracy=accuracy,
        macro_f1=accuracy,
        weakest_recall=accuracy,
        confusion=confusion,
        training_s=training_s,
    )


def test_folds_of_one_seed_are_added_up_so_that_every_window_counts_once() -> None:
    folds = [
        result("paper", "seed 0 fold 0", [[9, 1], [0, 10]]),
        result("paper", "seed 0 fold 1", [[1, 1], [1, 1]]),
    ]
    assert "| paper | 2 | 87.5 % |" in table(folds, pooled=True)  # 21 of 24, not the mean of 95 and 50 %
    assert "| paper | 2 | 72.5 % (50.0–95.0) |" in table(folds, pooled=False)


def test_errors_are_compared_on_common_cases_only() -> None:
    results = [
        result("paper", "seed 0", [[6, 4], [0, 10]]),
        result("default", "seed 0", [[9, 1], [0, 10]]),
        result("default", "seed 1", [[0, 10], [10, 0]]),
    ]
    assert errors_left(results, "default", "paper") == pytest.approx(0.25)
    assert errors_left(results, "default", "forest") is None


def test_what_was_not_finished_is_not_in_the_table(tmp_path: Path) -> None:
    (tmp_path / "paper-seed-0").mkdir()
    done = tmp_path / "paper-seed-1"
    done.mkdir()
    (done / RESULT).write_text(json.dumps(asdict(result("paper", "seed 1", [[1, 0], [0, 1]]))))
    assert [one.case for one in results_in(tmp_path)] == ["seed 1"]


def test_no_test_position_is_heard_in_training() -> None:
    assert not {position.seed for position in TRAINING} & {position.seed for position in TEST}
    assert len(TRAINING) == len(TEST) == 4


@pytest.fixture(scope="module")
def simulated() -> WindowSet:
    return position_windows(TRAINING[:2], 40, 1)


def test_simulated_windows_have_the_shares_asked_for_and_the_same_seed_gives_the_same(simulated: WindowSet) -> None:
    assert simulated.windows.shape[1] == WINDOW_SAMPLES
    counts = np.array(list(simulated.counts.values()))
    assert simulated.label_names == LABELS
    np.testing.assert_allclose(counts / counts.sum(), SHARES, atol=0.06)
    again = position_windows(TRAINING[:2], 40, 1)
    assert again.fingerprint() == simulated.fingerprint()


def test_validation_shares_no_recording_with_training(simulated: WindowSet) -> None:
    test = simulated.positions == TRAINING[1].name
    parts = held_out(simulated, test, seed=0)
    assert not (parts.train & parts.validation).any()
    assert not ((parts.train | parts.validation) & test).any()
    heard, kept = (set(simulated.recordings[part].tolist()) for part in (parts.train, parts.validation))
    assert kept
    assert not heard & kept


def leaks(folder: Path, rows: int = 60) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(rows) % 3 + 1
    samples = rng.normal(0, 100, (rows, 700)) + 300 * labels[:, None]
    np.savetxt(folder / "data.csv", samples.round(), fmt="%d", delimiter=",")
    np.savetxt(folder / "label.csv", labels, fmt="%d")


def test_an_experiment_that_is_started_again_only_reads_what_is_done(tmp_path: Path) -> None:
    leaks(tmp_path)
    data = gas_leaks.read_windows(tmp_path)
    effort = Effort(channels=16, epochs=1, batch=8, precision="float32", device="cpu", recipes=("forest", "default"))
    cases = gas_leaks.cases(1)[:1]
    first = run(data, cases, effort, tmp_path / "out", pooled=True, say=lambda line: None)
    assert "| default | 1 |" in first
    assert "| forest | 1 |" in first
    written = (tmp_path / "out" / "default-seed-0-fold-0" / RESULT).stat().st_mtime_ns
    assert run(data, cases, effort, tmp_path / "out", pooled=True, say=lambda line: None) == first
    assert (tmp_path / "out" / "default-seed-0-fold-0" / RESULT).stat().st_mtime_ns == written
    assert (tmp_path / "out" / "table.md").read_text() == first


def test_a_folder_that_is_not_gpla_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.csv and label\.csv"):
        gas_leaks.read_windows(tmp_path)


def test_each_label_is_left_out_of_a_training_that_is_gone_on_with(tmp_path: Path) -> None:
    leaks(tmp_path, rows=90)
    data = gas_leaks.read_windows(tmp_path)
    parts = gas_leaks.cases(1)[0].parts(data)
    told: list[str] = []
    first = measure(data, parts, tmp_path / "out", 16, 1, "float32", told.append)
    assert [line.split(":")[0] for line in told] == [f"without leak {name}" for name in (1, 2, 3)]
    assert "| unknown score | leak 1 | leak 2 | leak 3 | mean | smallest |" in first
    told.clear()
    assert measure(data, parts, tmp_path / "out", 16, 1, "float32", told.append) == first
    assert not told  # nothing was trained again
