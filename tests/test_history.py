from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from model.training.history import HISTORY_FILE, Epoch, History, Validation, read_history


def _epoch(number: int) -> Epoch:
    return Epoch(
        epoch=number,
        epochs=9,
        step=number * 20,
        loss=1.0 / number,
        train_accuracy=0.5,
        validation=Validation(accuracy=0.7, macro_f1=0.6, weakest_recall=0.5, loss=0.4),
        learning_rate=1e-3,
        windows_per_s=100.0,
        elapsed_s=1.0,
        best=True,
    )


def _written(run: Path, *numbers: int) -> None:
    history = History(run)
    for number in numbers:
        history.add(_epoch(number))
    history.close()


def test_each_epoch_is_a_line_of_json(tmp_path: Path) -> None:
    _written(tmp_path, 1, 2)
    lines = [json.loads(line) for line in (tmp_path / HISTORY_FILE).read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[1]["loss"] == 0.5
    assert lines[1]["validation"] == {"accuracy": 0.7, "macro_f1": 0.6, "weakest_recall": 0.5, "loss": 0.4}
    assert read_history(tmp_path) == [_epoch(1), _epoch(2)]


def test_a_resumed_training_takes_back_the_epochs_it_does_again(tmp_path: Path) -> None:
    _written(tmp_path, 1, 2, 3)
    with (tmp_path / HISTORY_FILE).open("a") as file:
        file.write('{"epoch": 4, "epo')  # killed while writing
    history = History(tmp_path, after_epoch=2)
    history.add(_epoch(3))
    history.close()
    assert [epoch.epoch for epoch in read_history(tmp_path)] == [1, 2, 3]


def test_tensorboard_reads_the_curves(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    _written(tmp_path, 1, 2, 4)
    accumulator = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    accumulator.Reload()
    assert [(event.step, event.value) for event in accumulator.Scalars("loss")] == [(1, 1.0), (2, 0.5), (4, 0.25)]
    assert {"validation/macro_f1", "learning_rate", "train_accuracy"} <= set(accumulator.Tags()["scalars"])


def test_without_tensorboard_there_is_a_note_and_the_lines_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    history = History(tmp_path)
    history.add(_epoch(1))
    history.close()
    assert "not installed" in history.note
    assert "\n" not in history.note
    assert len(read_history(tmp_path)) == 1
