"""Sizes that come from outside are looked at before anything is made of them."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from model.bundle import CARD_FILE, WEIGHTS_FILE, BundleError, demo_bundle_path, read_card
from model.bundle_store import add_bundle
from model.data.manifest import ManifestError, read_manifest

HUGE = 1 << 34
LITTLE_BYTES = 64 << 20


def hollow(path: Path, size: int = HUGE) -> Path:
    """A file of this length that takes no room on the disk."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


@pytest.fixture
def in_little_memory() -> Callable[[], None]:
    tracemalloc.start()

    def check() -> None:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < LITTLE_BYTES

    return check


def test_a_bundle_with_a_huge_card_is_refused(tmp_path: Path, in_little_memory: Callable[[], None]) -> None:
    hollow(tmp_path / CARD_FILE)
    with pytest.raises(BundleError, match=r"model\.json"):
        read_card(tmp_path)
    with pytest.raises(BundleError, match=r"model\.json: over"):
        add_bundle(tmp_path / "store", tmp_path)
    in_little_memory()


def test_a_card_of_endless_brackets_is_refused(tmp_path: Path) -> None:
    (tmp_path / CARD_FILE).write_bytes(b'{"format": 1, "metrics": ' + b"[" * 1_000_000)
    with pytest.raises(BundleError, match="not a model card"):
        read_card(tmp_path)


def test_huge_weights_are_not_copied_into_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.bundle_store.MAX_WEIGHTS_BYTES", 1 << 20)
    (tmp_path / CARD_FILE).write_bytes((demo_bundle_path() / CARD_FILE).read_bytes())
    hollow(tmp_path / WEIGHTS_FILE, 1 << 21)
    with pytest.raises(BundleError, match=r"model\.safetensors: over 1,048,576 bytes"):
        add_bundle(tmp_path / "store", tmp_path)


def test_a_huge_table_of_labels_is_refused(tmp_path: Path, in_little_memory: Callable[[], None]) -> None:
    with pytest.raises(ManifestError, match=r"labels\.csv: over"):
        read_manifest(hollow(tmp_path / "labels.csv"))
    in_little_memory()


def test_a_small_parquet_file_with_a_great_many_rows_is_refused(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "labels.parquet"
    count = 1_000_000
    one = pyarrow.DictionaryArray.from_arrays(pyarrow.array(bytes(count), pyarrow.int8()), pyarrow.array(["a.wav"]))
    table = pyarrow.table({"path": one, "label": one})
    with parquet.ParquetWriter(path, table.schema) as writer:
        for _ in range(6):
            writer.write_table(table)
    assert path.stat().st_size < 100_000
    with pytest.raises(ManifestError, match=r"6,000,000 rows"):
        read_manifest(path)


def test_a_huge_settings_file_is_refused(tmp_path: Path) -> None:
    hollow(tmp_path / "aewatch.toml")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AEWATCH_")}
    command = [sys.executable, "-m", "deploy.cli", "config", "show"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 1
    assert "aewatch.toml: over 1,048,576 bytes" in done.stderr
