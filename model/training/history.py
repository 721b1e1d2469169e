"""How a training went, epoch by epoch: as lines of JSON, and for TensorBoard."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec

HISTORY_FILE = "history.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class Validation(msgspec.Struct, frozen=True):
    """How the averaged weights do on the validation part; shares from 0 to 1."""

    accuracy: float
    macro_f1: float
    weakest_recall: float  #: of the labels that the part has windows of
    loss: float  #: cross-entropy of what is recognised, without margin, smoothing and adjustment


class Epoch(msgspec.Struct, frozen=True, kw_only=True):
    """Where training stands at the end of an epoch."""

    epoch: int  #: from 1
    epochs: int
    step: int
    loss: float  #: mean over the training windows since the last line, as it was minimised
    train_accuracy: float  #: over the same, augmented as they were
    validation: Validation
    learning_rate: float
    windows_per_s: float  #: while training, without validation
    elapsed_s: float  #: since the beginning, without the times in which it did not run
    best: bool  #: the best so far


class History:
    """Writes both. A resumed training goes on after the epoch it resumes from; what was written of later ones goes."""

    def __init__(self, run: Path, after_epoch: int = 0) -> None:
        self._path = run / HISTORY_FILE
        self.note = ""  #: what the user should know, if anything
        kept = [line for line in read_history(run) if line.epoch <= after_epoch]
        scratch = self._path.with_name(f".{self._path.name}")
        scratch.write_text("".join(_line(epoch) for epoch in kept))
        scratch.replace(self._path)
        self._board = self._tensorboard(run / TENSORBOARD_FOLDER, after_epoch)

    def add(self, epoch: Epoch) -> None:
        """Append an epoch; it is there for readers when this returns."""
        with self._path.open("a") as file:
            file.write(_line(epoch))
            file.flush()
            os.fsync(file.fileno())
        if self._board is None:
            return
        for name, value in _flat(msgspec.to_builtins(epoch)).items():
            if name not in ("epoch", "epochs", "best"):
                self._board.add_scalar(name, value, epoch.epoch)
        self._board.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._board is not None:
            self._board.close()

    def _tensorboard(self, folder: Path, after_epoch: int) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.note = "no curves for TensorBoard, it is not installed: pip install 'aewatch[train]'"
            return None
        return SummaryWriter(str(folder), purge_step=after_epoch + 1)


def read_history(run: Path) -> list[Epoch]:
    """What was written so far, oldest first; a line that a kill cut off is left out."""
    try:
        lines = (run / HISTORY_FILE).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(msgspec.json.decode(line, type=Epoch))
        except msgspec.DecodeError:
            break
    return found


def _line(epoch: Epoch) -> str:
    return json.dumps(msgspec.to_builtins(epoch)) + "\n"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
