"""Where a training stands, as a file that appears whole or not at all. Never pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

_FACTS = "facts"  # the entry of the file's header that holds them


class CheckpointError(ValueError):
    """A checkpoint that cannot be read; the message names the file and the way out."""


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Replace the file at once. What is read afterwards, even after a crash, is all of the old or all of the new.

    `facts` (what JSON can hold) go into the file's own header, so that they cannot part from the tensors; for people
    they are also written beside it, as .json.
    """
    text = json.dumps(facts)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}")
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(whole, scratch, metadata={_FACTS: text})
    # It gives its files to their owner alone; who may use the folder may use what is in it.
    scratch.chmod(path.parent.stat().st_mode & 0o666)
    _settle(scratch, path)
    beside = path.with_suffix(".json")
    scratch = beside.with_name(f".{beside.name}")
    scratch.write_text(json.dumps(facts, indent=2) + "\n")
    _settle(scratch, beside)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors on the CPU, and facts.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, or not one of ours.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})[_FACTS])
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118
    except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a checkpoint of a training ({error}); train anew into another folder"
        ) from error


def _settle(scratch: Path, path: Path) -> None:
    """Rename, once the content is on the disk for certain."""
    handle = os.open(scratch, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    scratch.replace(path)
