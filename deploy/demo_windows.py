"""Labelled windows of simulated sensors, at every placement of an event that a stream can bring. Pure and seeded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.train import LabelledWindows
from producers.event_waveforms import EventKind
from producers.propagation import Position
from producers.simulator import RATE_HZ, PlannedEvent, SensorSimulator, interval_of

LABELS = ("background", *(kind.value for kind in EventKind))
WINDOW_SAMPLES = 65_536
HOP_SAMPLES = 32_768

QUIET_SAMPLES = 3 * WINDOW_SAMPLES // 2  # before and after an event: its windows at either edge lie within
# Of the energy of the best placed window, a window with this much is the event's …
EVENT_SHARE = 0.2
# … and one in which no frame of the spectrogram gains more than this over the noise is background. Between, neither.
AUDIBLE_SHARE = 0.5
FRAME_SAMPLES = 160

Samples = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowsSpec:
    """How many windows of each position."""

    events: int = 6  #: of each kind
    placements: int = 4  #: of each event
    backgrounds: int = 24
    margin: int = 512  #: samples that each window is longer, for the time shift


def labelled_windows(positions: Sequence[Position], spec: WindowsSpec, seed: int) -> LabelledWindows:
    """Windows of all positions; the group of a window is its position's name."""
    parts = [_of_position(position, spec, seed) for position in positions]
    windows = np.concatenate([windows for windows, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    groups = np.repeat([position.name for position in positions], [len(labels) for _, labels in parts])
    return LabelledWindows(windows, labels, groups)


def _of_position(position: Position, spec: WindowsSpec, seed: int) -> tuple[Samples, npt.NDArray[np.int64]]:
    rng = np.random.default_rng([seed, position.seed])
    length = WINDOW_SAMPLES + spec.margin
    windows: list[Samples] = []
    labels: list[int] = []
    for kind in EventKind:
        for _ in range(spec.events):
            for window, label in _of_event(position, kind, spec, rng):
                windows.append(window)
                labels.append(label)
    quiet = SensorSimulator(position.name, position, seed=int(rng.integers(2**31)))
    for _ in range(spec.backgrounds):
        start = int(rng.integers(1000 * WINDOW_SAMPLES))
        windows.append(quiet.samples(start, start + length))
        labels.append(0)
    return np.stack(windows), np.array(labels)


def _of_event(
    position: Position, kind: EventKind, spec: WindowsSpec, rng: np.random.Generator
) -> list[tuple[Samples, int]]:
    noise_seed = int(rng.integers(2**31))
    event = PlannedEvent(position.name, kind, 2 * QUIET_SAMPLES, int(rng.integers(2**31)))
    interval = interval_of(event, position)
    begin, end = interval.first_sample - QUIET_SAMPLES, interval.last_sample + QUIET_SAMPLES
    with_event = SensorSimulator(position.name, position, RATE_HZ, noise_seed, [event]).samples(begin, end)
    without = SensorSimulator(position.name, position, RATE_HZ, noise_seed).samples(begin, end)
    first, last = interval.first_sample - begin, interval.last_sample - begin
    labelled: list[tuple[Samples, int]] = []
    judge = _Judge(with_event, without)
    for number in range(spec.placements):
        # In turn: anywhere, the window's end within the event, anywhere, the window's start within the event.
        earliest = first if number % 4 == 3 else first - WINDOW_SAMPLES
        latest = last - WINDOW_SAMPLES if number % 4 == 1 else last
        start = int(rng.integers(earliest, latest + 1)) - spec.margin // 2
        start = min(max(start, 0), len(with_event) - WINDOW_SAMPLES - spec.margin)
        if judge.belongs(start + spec.margin // 2):
            labelled.append((with_event[start : start + WINDOW_SAMPLES + spec.margin], LABELS.index(kind)))
        elif judge.silent(start, start + WINDOW_SAMPLES + spec.margin):
            labelled.append((with_event[start : start + WINDOW_SAMPLES + spec.margin], 0))
    return labelled


class _Judge:
    """Tells to which label a window of one recording belongs, from the recording with and without its event."""

    def __init__(self, with_event: Samples, without: Samples) -> None:
        event = with_event.astype(np.float64) - without
        self._energy = np.concatenate(([0.0], np.cumsum(event**2)))
        whole = self._energy[WINDOW_SAMPLES:] - self._energy[:-WINDOW_SAMPLES]
        self._best = float(whole.max())
        self._noise = float(np.mean(without.astype(np.float64) ** 2))

    def belongs(self, start: int) -> bool:
        """Whether the window from `start` on holds enough of the event to be called by its name."""
        return self._held(start, start + WINDOW_SAMPLES) >= EVENT_SHARE * self._best

    def silent(self, start: int, stop: int) -> bool:
        """Whether nothing of the event can be heard from `start` to `stop`."""
        frames = self._energy[start:stop:FRAME_SAMPLES]
        return bool(np.diff(frames).max() <= AUDIBLE_SHARE * FRAME_SAMPLES * self._noise)

    def _held(self, start: int, stop: int) -> float:
        return float(self._energy[stop] - self._energy[start])
