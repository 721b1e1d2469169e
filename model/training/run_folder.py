"""The folder of a training: what lies where, what was trained on what, and whether a training may go on in it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from model.data.dataset import WindowSet
from model.training.recipe import Recipe, load_recipe, recipe_text

RECIPE_FILE = "recipe.toml"
FACTS_FILE = "run.json"
LAST = Path("checkpoints") / "last.safetensors"
BEST = Path("checkpoints") / "best.safetensors"
BUNDLE_FOLDER = "bundle"


class RunError(ValueError):
    """A folder that cannot be trained into; the message names it, what is wrong and the way out."""


class SplitRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How the windows were parted."""

    by: str = "auto"  #: as asked for
    kind: str  #: "manifest", "recording", "sensor", "position" or "random windows"
    note: str = ""  #: what a reader of the results should know about it
    train: dict[str, int]  #: label → windows
    validation: dict[str, int]
    groups: dict[str, list[str]]  #: part → its positions, else its sensors; none where nobody knows either


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What `run.json` holds."""

    labels: list[str]
    rate_hz: float
    rate_is_nominal: bool
    window_samples: int
    hop_samples: int
    data: str  #: path of the data set
    data_hash: str  #: `WindowSet.fingerprint` of all of it
    counts: dict[str, int]
    split: SplitRecord
    fold: str | None  #: left out to be tested on
    recordings: dict[str, list[str]]  #: part → names, so that evaluation can tell what was heard
    roles: dict[str, str]  #: label → what it means to an alarm, where the user said so
    device: str
    command: str
    started: str  #: ISO 8601, UTC


def run_record(
    data: WindowSet,
    train: npt.NDArray[np.int64],
    validation: npt.NDArray[np.int64],
    recipe: Recipe,
    *,
    path: str = "",
    by: str = "auto",
    kind: str = "",
    note: str = "",
    fold: str | None = None,
    roles: Mapping[str, str] | None = None,
    device: str = "",
    command: str = "",
) -> RunRecord:
    """The facts of a training that begins now; `train` and `validation` are indices of windows."""
    parts = {"train": train, "validation": validation}
    windows = recipe.windows
    where = data.positions if (data.positions != "").any() else data.sensors
    return RunRecord(
        labels=list(data.label_names),
        rate_hz=float(data.rate_hz),
        rate_is_nominal=windows.nominal,
        window_samples=data.samples,
        hop_samples=min(data.samples, max(1, round(data.samples * float(windows.hop_s) / float(windows.length_s)))),
        data=path,
        data_hash=data.fingerprint(),
        counts=data.counts,
        split=SplitRecord(
            by=by,
            kind=kind,
            note=note,
            **{name: _counts(data, part) for name, part in parts.items()},
            groups={name: found for name, part in parts.items() if any(found := _names(where[part]))},
        ),
        fold=fold,
        recordings={name: _names(data.recordings[part]) for name, part in parts.items()},
        roles=dict(roles or {}),
        device=device,
        command=command,
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def open_run(run: Path, recipe: Recipe, record: RunRecord, *, resume: bool) -> None:
    """Make the folder and write recipe and facts; or, to resume, see that they are the same as before.

    Raises
    ------
    RunError
        If the folder holds something and `resume` is not set, or what it holds is of other data or another recipe.
    """
    if run.exists() and not run.is_dir():
        raise RunError(f"{run}: a file; --out names a folder")
    if resume and (run / FACTS_FILE).exists():
        _check_same(run, recipe, record)
        return
    refuse_existing(run, resume=resume)
    (run / LAST).parent.mkdir(parents=True, exist_ok=True)
    _write(run / RECIPE_FILE, recipe_text(recipe).encode())
    # Last, for its being there says that the folder is complete.
    _write(run / FACTS_FILE, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


def refuse_existing(run: Path, *, resume: bool) -> None:
    """Nothing, where a training may write into the folder.

    Raises
    ------
    RunError
        If something is there that would be overwritten.
    """
    if (run / FACTS_FILE).exists() and not resume:
        raise RunError(f"{run}: holds a training already; --resume goes on with it, or name another folder")
    if run.is_dir() and not resume and any(run.iterdir()):
        raise RunError(f"{run}: not empty, and no training; name another folder")


def read_record(run: Path) -> RunRecord:
    """What `run.json` says.

    Raises
    ------
    RunError
        If there is none, or it is not one.
    """
    path = run / FACTS_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=RunRecord)
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}; `aewatch train --out {run}` begins a training there") from error
    except msgspec.DecodeError as error:
        raise RunError(f"{path}: {error}") from error


def _check_same(run: Path, recipe: Recipe, record: RunRecord) -> None:
    before = read_record(run)
    if before.data_hash != record.data_hash:
        raise RunError(
            f"{run}: its windows hash to {before.data_hash[:16]}…, those of {record.data or 'this data set'} to "
            f"{record.data_hash[:16]}…; name the data set it was begun with, or another folder"
        )
    if (before.split.train, before.split.validation, before.recordings) != (
        record.split.train,
        record.split.validation,
        record.recordings,
    ):
        raise RunError(f"{run}: its windows were parted in another way; give the same options as at its beginning")
    was, now = (_flat(one) for one in (load_recipe(run / RECIPE_FILE), recipe))
    if changed := [f"{name} was {was.get(name)}, is {value}" for name, value in now.items() if was.get(name) != value]:
        raise RunError(f"{run}: another recipe: {'; '.join(changed)}; name another folder for it")


def _flat(recipe: Recipe) -> dict[str, Any]:
    built = msgspec.to_builtins(recipe)
    flat = {name: value for name, value in built.items() if not isinstance(value, dict)}
    for section, values in built.items():
        if isinstance(values, dict):
            flat |= {f"{section}.{field}": value for field, value in values.items()}
    return flat


def _counts(data: WindowSet, part: npt.NDArray[np.int64]) -> dict[str, int]:
    counts = np.bincount(data.labels[part], minlength=len(data.label_names)).tolist()
    return dict(zip(data.label_names, counts, strict=True))


def _names(column: npt.NDArray[np.str_]) -> list[str]:
    names: list[str] = np.unique(column).tolist()
    return names


def _write(path: Path, content: bytes) -> None:
    scratch = path.with_name(f".{path.name}")
    scratch.write_bytes(content)
    scratch.replace(path)
