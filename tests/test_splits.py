import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.data.dataset import WindowSet
from model.data.splits import ENOUGH_GROUPS, SplitError, folds, leaks, parts, split


def window_set(labels, recordings=None, sensors=None, positions=None, splits=None, windows=None):
    labels = np.asarray(labels, dtype=np.int64)
    n = len(labels)

    def texts(values):
        return np.array([""] * n if values is None else [str(value) for value in values])

    if windows is None:
        windows = np.random.default_rng(0).integers(-1000, 1000, (n, 16)).astype(np.int16)
    return WindowSet(
        windows=windows,
        lengths=np.full(n, 16),
        labels=labels,
        label_names=tuple(f"label{number}" for number in range(int(labels.max(initial=0)) + 1)),
        rate_hz=1000.0,
        recordings=texts(range(n) if recordings is None else recordings),
        sensors=texts(sensors),
        positions=texts(positions),
        splits=texts(splits),
    )


def shares(windows, mask):
    labels = len(windows.label_names)
    return np.bincount(windows.labels[mask], minlength=labels) / np.bincount(windows.labels, minlength=labels)


@settings(max_examples=60, deadline=None)
@example(groups=[[0, 2], [3], [0, 1]], share=0.5, seed=0)  # nothing can be held out without losing a label
@given(
    groups=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=3, max_size=30),
    share=st.floats(0.05, 0.6),
    seed=st.integers(0, 5),
)
def test_groups_stay_whole_and_every_label_that_can_is_on_both_sides(groups, share, seed):
    windows = window_set(
        [label for group in groups for label in group], [n for n, group in enumerate(groups) for _ in group]
    )
    present = {label for group in groups for label in group}
    in_groups = {label: sum(label in group for group in groups) for label in present}
    if all(count == 1 for count in in_groups.values()):
        with pytest.raises(SplitError, match="no label has two recordings"):
            split(windows, share=share, seed=seed)
        return
    made = split(windows, share=share, seed=seed)
    np.testing.assert_array_equal(made.train, ~made.held_out)
    assert not set(windows.recordings[made.train]) & set(windows.recordings[made.held_out])
    assert set(windows.labels[made.train]) == present
    again = split(windows, share=share, seed=seed)
    np.testing.assert_array_equal(made.held_out, again.held_out)


def test_each_label_is_held_out_in_its_share():
    windows = window_set(np.repeat([0, 1, 2], [40, 400, 100]), np.arange(540) // 2)
    made = split(windows, share=0.2)
    np.testing.assert_allclose(shares(windows, made.held_out), 0.2, atol=0.03)
    assert made.kind == "recording"
    assert made.note == ""


def test_another_seed_is_another_split():
    windows = window_set(np.arange(200) % 2)
    assert (split(windows, seed=1).held_out != split(windows, seed=2).held_out).any()


def test_a_label_of_one_recording_trains_and_the_note_says_so():
    windows = window_set([0] * 10 + [1] * 10, ["one"] * 10 + [f"r{n}" for n in range(10)])
    made = split(windows, share=0.3)
    assert made.train[:10].all()
    assert made.held_out[10:].sum() == 3
    assert "one recording only of label0" in made.note


def test_a_label_needs_two_recordings_even_if_that_takes_a_larger_share():
    # Two recordings of each label: half of it is the least that can be held out.
    windows = window_set(np.repeat([0, 0, 1, 1], 10), np.repeat(range(4), 10))
    np.testing.assert_allclose(shares(windows, split(windows, share=0.1).held_out), 0.5)


def test_auto_splits_by_position_where_enough_of_them_hold_every_label():
    labels = np.arange(160) % 2
    positions = np.arange(160) // 20
    made = split(window_set(labels, positions=positions), share=0.25)
    assert made.kind == "position"
    assert not set(positions[made.train]) & set(positions[made.held_out])


@pytest.mark.parametrize(
    "positions",
    [
        pytest.param(np.arange(160) // 60, id="fewer than enough"),
        pytest.param([""] + ["p1", "p2", "p3", "p4", "p5"] * 31 + ["p1"] * 4, id="not all known"),
        pytest.param(np.where(np.arange(160) % 2, 9, np.arange(160) // 40), id="a label at one position only"),
    ],
)
def test_auto_splits_by_recording_where_positions_do_not_serve(positions):
    assert ENOUGH_GROUPS > 3
    assert split(window_set(np.arange(160) % 2, positions=positions)).kind == "recording"


def test_auto_splits_by_sensor_only_where_a_sensor_is_more_than_a_channel_of_one_recording():
    labels = np.arange(160) % 2
    recordings = np.arange(160) // 10
    shared = window_set(labels, recordings, sensors=[f"s{n}" for n in recordings // 2])
    assert split(shared).kind == "sensor"
    channels = window_set(labels, recordings, sensors=[f"{n}/ch{i % 4 // 2}" for i, n in enumerate(recordings)])
    assert split(channels).kind == "recording"


def test_recordings_on_both_sides_of_a_split_by_position_are_told():
    windows = window_set(np.arange(160) % 2, np.arange(160) // 8 % 4, positions=np.arange(160) // 32)
    assert "4 recordings are heard on both sides" in split(windows, by="position").note


def test_windows_are_split_at_random_only_by_name_and_the_note_says_so():
    windows = window_set(np.arange(100) % 2, ["only"] * 100)
    with pytest.raises(SplitError, match="random-windows"):
        split(windows)
    made = split(windows, by="random-windows", share=0.2)
    assert made.kind == "random windows"
    assert "better than what a new recording will get" in made.note
    np.testing.assert_allclose(shares(windows, made.held_out), 0.2)


def test_an_unknown_position_is_no_group():
    with pytest.raises(SplitError, match="4 of 4 windows do not say their position"):
        split(window_set([0, 0, 1, 1]), by="position")


def test_folds_hold_every_window_once_and_every_label_evenly():
    windows = window_set(np.repeat(np.arange(12), 57))
    made = folds(windows, 5, seed=3)
    np.testing.assert_array_equal(np.sum([fold.held_out for fold in made], axis=0), 1)
    for fold in made:
        assert set(np.bincount(windows.labels[fold.held_out])) <= {11, 12}


def test_folds_of_groups_of_unequal_size_are_about_equal():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 30, 60)
    windows = window_set(np.repeat(np.arange(60) % 3, sizes), np.repeat(np.arange(60), sizes))
    counts = np.array([np.bincount(windows.labels[fold.held_out], minlength=3) for fold in folds(windows, 4)])
    np.testing.assert_allclose(counts / counts.sum(axis=0), 0.25, atol=0.03)


def test_more_folds_than_groups_are_refused():
    with pytest.raises(SplitError, match="4 recordings cannot make 5 folds"):
        folds(window_set([0, 0, 1, 1]), 5)


def test_a_label_that_not_every_fold_can_test_is_told():
    made = folds(window_set([0] * 10 + [1] * 3), 5)
    assert all("not every fold tests label1" in fold.note for fold in made)


def test_parts_that_the_data_set_names_are_taken_at_its_word():
    windows = window_set([0, 1] * 6, splits=["train"] * 6 + ["validation"] * 4 + ["test"] * 2)
    made = parts(windows)
    assert made.kind == "manifest"
    np.testing.assert_array_equal(made.train, windows.splits == "train")
    np.testing.assert_array_equal(made.validation, windows.splits == "validation")
    np.testing.assert_array_equal(made.test, windows.splits == "test")


def test_a_validation_part_that_is_not_named_comes_out_of_training():
    windows = window_set([0, 1] * 50, np.arange(100) // 2, splits=["train"] * 80 + ["test"] * 20)
    made = parts(windows, validation_share=0.25)
    assert made.kind == "manifest"
    assert "held out of the training part by recording" in made.note
    np.testing.assert_array_equal(made.test, windows.splits == "test")
    np.testing.assert_array_equal(made.train | made.validation, windows.splits == "train")
    assert made.validation.sum() == 20
    assert not (made.train & made.validation).any()


def test_a_fold_is_the_test_part():
    windows = window_set([0, 1] * 50, np.arange(100) // 2, splits=np.arange(100) // 20)
    made = parts(windows, fold="3")
    np.testing.assert_array_equal(made.test, windows.splits == "3")
    assert not (made.test & (made.train | made.validation)).any()
    assert made.validation.any()


def test_without_a_fold_all_folds_train():
    windows = window_set([0, 1] * 50, splits=np.arange(100) // 20)
    made = parts(windows)
    assert not made.test.any()
    assert "all folds (0, 1, 2, 3, 4) are trained on" in made.note
    assert made.kind == "recording"


def test_no_validation_share_is_no_validation():
    made = parts(window_set([0, 1, 0, 1]), validation_share=0)
    assert made.train.all()
    assert not made.validation.any()


@pytest.mark.parametrize(
    ("splits", "fold", "words"),
    [
        (["1", "1", "2", "2"], "3", "fold '3': there is no such fold; the data set has folds 1, 2"),
        (None, "1", "the data set has no folds"),
        (["train", "train", "test", "test"], "1", "the data set has parts test, train"),
        (["test"] * 4, None, "no train part"),
        (["1"] * 4, "1", "is all of the data set"),
    ],
)
def test_parts_that_cannot_be_made_say_why(splits, fold, words):
    with pytest.raises(SplitError, match=words.replace("(", "\\(")):
        parts(window_set([0, 1, 0, 1], splits=splits), fold=fold)


def test_leaks_are_named():
    windows = np.random.default_rng(1).integers(-9, 9, (6, 16)).astype(np.int16)
    windows[5] = windows[0]
    windows[4] = windows[1] = 0
    whole = window_set(
        [0, 1, 0, 1, 0, 1],
        recordings=["a", "a", "b", "b", "c", "d"],
        sensors=["s", "", "", "s", "", ""],
        positions=["p1", "p1", "p1", "p2", "p2", "p2"],
        windows=windows,
    )
    found = "\n".join(leaks(whole.select(np.arange(3)), whole.select(np.arange(3, 6))))
    assert "1 recording on both sides: b" in found
    assert "1 sensor on both sides: s" in found
    assert "position" not in found
    assert "1 windows are sample for sample in both: held out in d" in found


def test_a_split_by_recording_does_not_leak():
    windows = window_set([0, 1] * 30, np.arange(60) // 2)
    made = split(windows)
    assert leaks(windows.select(made.train), windows.select(made.held_out)) == []
