from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from model.architecture import EcapaDims
from model.bundle import BundleError, load_weights, read_card, write_bundle
from model.data.dataset import WindowSet
from model.data.splits import parts
from model.evaluation.evaluate import EvaluationError
from model.evaluation.evaluated_part import Training, evaluated_part, find_bundle, training_of
from model.training.run_folder import open_run, run_record
from model.untrained import write_untrained_bundle
from tests.labelled_windows import labelled_windows
from tests.training_windows import tiny_recipe


def _windows(splits: list[str] | None = None) -> WindowSet:
    windows = labelled_windows(60, recordings=30, positions=5)
    return windows if splits is None else replace(windows, splits=np.resize(np.array(splits), 60))


def _training(windows: WindowSet, by: str = "recording", fold: str | None = None, data: str = "d") -> Training:
    """As `training_of` gives for a run on these windows."""
    recipe = tiny_recipe()
    share = recipe.training.validation_share
    split = parts(windows, fold=fold, by=by, validation_share=share)  # type: ignore[arg-type]
    train, validation = np.flatnonzero(split.train), np.flatnonzero(split.validation)
    record = run_record(
        windows, train, validation, recipe, path=data, by=by, kind=split.kind, note=split.note, fold=fold
    )
    return Training(
        source="run.json",
        data=data,
        data_hash=record.data_hash,
        recordings=dict(record.recordings),
        groups=dict(record.split.groups),
        kind=split.kind,
        note=split.note,
        record=record,
        validation_share=share,
    )


def test_the_test_part_is_taken_and_the_baseline_learns_from_the_training_part() -> None:
    windows = _windows(["train", "train", "train", "test"])
    found = evaluated_part(windows)
    assert (found.name, found.notes, found.leakage) == ("test", [], [])
    np.testing.assert_array_equal(found.rows, np.flatnonzero(windows.splits == "test"))
    np.testing.assert_array_equal(found.train, np.flatnonzero(windows.splits == "train"))


def test_without_a_test_part_it_is_what_the_bundle_was_not_trained_on() -> None:
    windows = _windows()
    split = parts(windows, by="recording")
    found = evaluated_part(windows, _training(windows))
    assert found.name == "validation"
    np.testing.assert_array_equal(found.rows, np.flatnonzero(split.validation))
    np.testing.assert_array_equal(found.train, np.flatnonzero(split.train))
    assert "validation part of the bundle's training, as run.json says" in found.notes[0]
    assert any("set the temperature" in leak for leak in found.leakage)
    assert not any("were trained on" in leak or "recordings on both" in leak for leak in found.leakage)


def test_the_fold_that_the_training_left_out_is_what_it_is_tested_on() -> None:
    windows = _windows()
    windows = replace(windows, splits=windows.positions)
    found = evaluated_part(windows, _training(windows, fold="P3"))
    assert found.name == "fold P3"
    np.testing.assert_array_equal(found.rows, np.flatnonzero(windows.splits == "P3"))
    # What the training held back for validation, the baseline does not learn from either.
    assert len(found.train) < np.count_nonzero(windows.splits != "P3")
    assert not any("trained on: their scores" in leak or "chose" in leak for leak in found.leakage)


def test_a_fold_that_was_trained_on_says_so() -> None:
    windows = _windows()
    windows = replace(windows, splits=windows.positions)
    found = evaluated_part(windows, _training(windows, fold="P3"), fold="P1")
    heard = parts(windows, fold="P3", by="recording").train[windows.splits == "P1"].sum()
    assert found.leakage[0].startswith(f"{heard} of these 12 windows were trained on")
    np.testing.assert_array_equal(found.train, np.flatnonzero(windows.splits != "P1"))


def test_recordings_that_came_later_are_new_to_the_bundle() -> None:
    before, after = labelled_windows(60, recordings=30), labelled_windows(90, recordings=45, seed=1)
    found = evaluated_part(after, _training(before, data="d"), data="d")
    assert found.name == "new recordings"
    heard = set(before.recordings.tolist())
    assert not heard & set(after.recordings[found.rows].tolist())
    assert evaluated_part(after, _training(before, data="d"), data="elsewhere").name == "all"


def test_recordings_of_the_same_names_in_another_data_set_are_told() -> None:
    found = evaluated_part(labelled_windows(60, seed=1), _training(_windows(), data="d"), data="elsewhere")
    assert found.name == "all"
    assert "recordings have the names of such that were trained on" in found.leakage[0]
    assert "positions have the names of such that were trained on: P1, P2" in found.leakage[1]


def test_a_random_split_of_windows_is_told() -> None:
    windows = labelled_windows(60, recordings=3)
    found = evaluated_part(windows, _training(windows, by="random-windows"))
    assert found.name == "validation"
    assert any("split at random" in leak for leak in found.leakage)
    assert any("recordings on both sides" in leak for leak in found.leakage)


def test_nothing_known_and_nothing_named_takes_all_and_says_so() -> None:
    found = evaluated_part(_windows())
    assert (found.name, len(found.rows), len(found.train)) == ("all", 60, 0)
    assert "nothing tells which of it is new to the bundle" in found.notes[0]


def test_all_holds_what_was_trained_on_and_leaves_nothing_for_the_baseline() -> None:
    windows = _windows()
    found = evaluated_part(windows, _training(windows), split="all")
    assert len(found.rows) == 60
    assert len(found.train) == 0
    assert "windows were trained on" in found.leakage[0]


def test_a_part_by_name_is_the_data_sets_or_else_the_trainings() -> None:
    windows = _windows(["train", "train", "validation", "test"])
    assert evaluated_part(windows, split="validation").name == "validation"
    plain = _windows()
    np.testing.assert_array_equal(
        evaluated_part(plain, _training(plain), split="train").rows, np.flatnonzero(parts(plain, by="recording").train)
    )


def test_parts_and_folds_that_are_not_there_are_refused_with_those_that_are() -> None:
    with pytest.raises(EvaluationError, match="no fold '7'; it has P1, P2, P3, P4, P5"):
        evaluated_part(replace(_windows(), splits=_windows().positions), fold="7")
    with pytest.raises(EvaluationError, match="no test part; it has train, validation; --split all"):
        evaluated_part(_windows(["train", "validation"]), split="test")
    with pytest.raises(EvaluationError, match="no test part; it names no parts and no folds"):
        evaluated_part(_windows(), split="test")


def test_a_run_stands_for_its_bundle(tmp_path: Path) -> None:
    windows, recipe = _windows(), tiny_recipe()
    run = tmp_path / "run"
    record = run_record(windows, np.arange(40), np.arange(40, 60), recipe, kind="recording")
    open_run(run, recipe, record, resume=False)
    with pytest.raises(BundleError, match="a training without a bundle; `aewatch train --resume"):
        find_bundle(run)
    write_untrained_bundle(tmp_path / "other", network=EcapaDims(channels=16, mfa_channels=16))
    card = read_card(tmp_path / "other")
    told = msgspec.structs.replace(card.training, data_hash=record.data_hash)
    card = write_bundle(run / "bundle", msgspec.structs.replace(card, training=told), load_weights(tmp_path / "other"))
    assert find_bundle(run) == find_bundle(run / "bundle") == run / "bundle"
    known = training_of(run / "bundle", card)
    assert known is not None
    assert known.record == record
    assert known.recordings == record.recordings


def test_a_bundle_that_left_its_run_tells_by_its_card(tmp_path: Path) -> None:
    windows = _windows()
    card = write_untrained_bundle(tmp_path / "b", network=EcapaDims(channels=16, mfa_channels=16))
    assert training_of(tmp_path / "b", card) is None, "nothing is known of random weights"
    heard = _training(windows)
    told = msgspec.structs.replace(
        card.training,
        data_hash=heard.data_hash,
        recordings={part: tuple(names) for part, names in heard.recordings.items()},
    )
    known = training_of(tmp_path / "b", msgspec.structs.replace(card, training=told))
    assert known is not None
    assert known.source == "the bundle's card"
    found = evaluated_part(windows, known)
    assert found.name == "validation"
    np.testing.assert_array_equal(found.rows, evaluated_part(windows, heard).rows)
