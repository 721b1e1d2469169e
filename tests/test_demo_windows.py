from __future__ import annotations

import numpy as np
import pytest

from deploy.demo_windows import LABELS, WINDOW_SAMPLES, WindowsSpec, labelled_windows
from deploy.train_demo import TEST, TRAIN, VALIDATION, refuse_demo_positions
from producers.event_waveforms import EventKind
from producers.propagation import DEMO_POSITIONS, draw_positions

SPEC = WindowsSpec(events=2, placements=4, backgrounds=3)


def test_the_same_seed_gives_the_same_windows_and_another_seed_others() -> None:
    positions = draw_positions(8, 1)
    first, second = labelled_windows(positions, SPEC, 1), labelled_windows(positions, SPEC, 1)
    np.testing.assert_array_equal(first.windows, second.windows)
    np.testing.assert_array_equal(first.labels, second.labels)
    assert not np.array_equal(first.windows[:3], labelled_windows(positions, SPEC, 2).windows[:3])


def test_every_label_comes_at_every_position() -> None:
    positions = draw_positions(8, 2)
    data = labelled_windows(positions, SPEC, 1)
    assert data.samples == WINDOW_SAMPLES
    assert data.windows.dtype == np.int16
    for position in positions:
        assert set(data.labels[data.positions == position.name].tolist()) == set(range(len(LABELS)))
    assert LABELS[1:] == tuple(EventKind)


def test_windows_of_an_event_hold_something_that_background_windows_do_not() -> None:
    position = draw_positions(8, 1)
    data = labelled_windows(position, WindowsSpec(events=3, backgrounds=10), 1)
    loudest = np.abs(data.windows.astype(np.int32)).max(axis=1)
    assert np.median(loudest[data.labels == LABELS.index("knock")]) > 3 * loudest[data.labels == 0].max()


def test_training_validation_and_test_share_no_position_with_one_another_or_the_demo() -> None:
    refuse_demo_positions(TRAIN, VALIDATION, TEST)
    with pytest.raises(ValueError, match="demo's own positions must be new"):
        refuse_demo_positions(TRAIN, VALIDATION, (*TEST, DEMO_POSITIONS[3]))
    with pytest.raises(ValueError, match="in two parts"):
        refuse_demo_positions(TRAIN, VALIDATION, (*TEST, TRAIN[5]))
