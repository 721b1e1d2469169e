from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from model.training import checkpoint
from model.training.checkpoint import CheckpointError, read_checkpoint, write_checkpoint

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b.step": torch.tensor(7.0), "c": torch.tensor([1 << 40])}
FACTS = {"step": 3, "loss": 0.1, "best": None}


def test_what_was_written_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.safetensors"
    write_checkpoint(path, TENSORS, FACTS)
    tensors, facts = read_checkpoint(path)
    assert facts == FACTS
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert json.loads(path.with_suffix(".json").read_text()) == FACTS


def test_who_may_use_the_folder_may_use_the_checkpoint(tmp_path: Path) -> None:
    tmp_path.chmod(0o775)
    write_checkpoint(tmp_path / "last.safetensors", {"a": torch.ones(2)}, {})
    assert (tmp_path / "last.safetensors").stat().st_mode & 0o777 == 0o664


def test_a_transposed_tensor_keeps_its_shape(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "x.safetensors", {"a": TENSORS["a"].T}, {})
    assert torch.equal(read_checkpoint(tmp_path / "x.safetensors")[0]["a"], TENSORS["a"].T)


@pytest.mark.parametrize("failing", ["save_file", "fsync"])
def test_a_crash_while_writing_leaves_the_old_one_whole(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.safetensors"
    write_checkpoint(path, TENSORS, FACTS)

    def crash(*arguments: object, **options: object) -> None:
        if failing == "save_file":
            (tmp_path / ".last.safetensors").write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(os if failing == "fsync" else checkpoint.safetensors.torch, failing, crash)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(path, {"a": torch.zeros(1)}, {"step": 4})
    tensors, facts = read_checkpoint(path)
    assert facts == FACTS
    assert torch.equal(tensors["a"], TENSORS["a"])


@pytest.mark.parametrize("content", [b"", b"not safetensors", None])
def test_what_is_no_checkpoint_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last\.safetensors: not a checkpoint"):
        read_checkpoint(path)


def test_safetensors_of_others_are_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    checkpoint.safetensors.torch.save_file(TENSORS, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of a training"):
        read_checkpoint(path)
