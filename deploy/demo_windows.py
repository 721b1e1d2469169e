"""Labelled windows of simulated sensors, at every placement of an event that a stream can bring. Pure and seeded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.bundle import PAPER_LABELS
from model.data.dataset import WindowSet
from producers.event_waveforms import EventKind
from producers.propagation import Position
from producers.simulator import RATE_HZ, Interval, PlannedEvent, SensorSimulator, interval_of

LABELS = tuple(label.name for label in PAPER_LABELS)
WINDOW_SAMPLES = 65_536
HOP_SAMPLES = 32_768

QUIET_SAMPLES = WINDOW_SAMPLES + 4_096  # before and after an event: a window at either edge of it lies within
FRAME_SAMPLES = 160
# Energy of the event over that of the noise in a frame. Noise by itself fluctuates to 3; of a whole event the loudest
# frame reaches 9 at the least, and all frames together 300.
SILENT_GAIN, SILENT_TOTAL = 1.5, 4.0
AUDIBLE_GAIN, AUDIBLE_TOTAL = 6.0, 60.0
SHORTEST_CUT_S, LONGEST_CUT_S = 0.0003, 0.04

Samples = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowsSpec:
    """How many windows of each position."""

    events: int = 3  #: of each kind
    placements: int = 4  #: of each event
    backgrounds: int = 32


def labelled_windows(positions: Sequence[Position], spec: WindowsSpec, seed: int, split: str = "") -> WindowSet:
    """Windows of all positions, as one part of a data set; a position counts as one recording.

    A window in which an event stands out has the event's label, however little of it there is: what the first
    millisecond of an event does not tell must come out as a doubt of the network, not as a habit of the data. A window
    with no more of it than noise brings by chance is background; windows between the two are left out.
    """
    windows: list[Samples] = []
    labels: list[int] = []
    names: list[str] = []
    for position in positions:
        for window, label in _of_position(position, spec, np.random.default_rng([seed, position.seed])):
            windows.append(window)
            labels.append(label)
            names.append(position.name)
    return WindowSet(
        windows=np.stack(windows),
        lengths=np.full(len(windows), WINDOW_SAMPLES),
        labels=np.array(labels, dtype=np.int64),
        label_names=LABELS,
        rate_hz=float(RATE_HZ),
        recordings=np.array(names),
        sensors=np.array(names),
        positions=np.array(names),
        splits=np.full(len(windows), split),
    )


def _of_position(position: Position, spec: WindowsSpec, rng: np.random.Generator) -> Iterator[tuple[Samples, int]]:
    for kind in EventKind:
        for _ in range(spec.events):
            yield from _of_event(position, kind, spec, rng)
    quiet = SensorSimulator(position.name, position, seed=int(rng.integers(2**31)))
    for _ in range(spec.backgrounds):
        start = int(rng.integers(1000 * WINDOW_SAMPLES))
        yield quiet.samples(start, start + WINDOW_SAMPLES), 0


def _of_event(
    position: Position, kind: EventKind, spec: WindowsSpec, rng: np.random.Generator
) -> Iterator[tuple[Samples, int]]:
    noise_seed = int(rng.integers(2**31))
    event = PlannedEvent(position.name, kind, 2 * QUIET_SAMPLES, int(rng.integers(2**31)))
    interval = interval_of(event, position)
    begin, end = interval.first_sample - QUIET_SAMPLES, interval.last_sample + QUIET_SAMPLES
    heard = SensorSimulator(position.name, position, RATE_HZ, noise_seed, [event]).samples(begin, end)
    noise = SensorSimulator(position.name, position, RATE_HZ, noise_seed).samples(begin, end)
    loudness = _gain_of_frames(heard, noise)
    for number in range(spec.placements):
        # An onset may be fainter than what stands out, and so lie a little before the part that was rendered.
        start = min(max(_placement(number, interval, rng) - begin, 0), len(heard) - WINDOW_SAMPLES)
        stop = start + WINDOW_SAMPLES
        gains = loudness[-(-start // FRAME_SAMPLES) : stop // FRAME_SAMPLES]
        loudest, total = float(gains.max()), float(gains.sum())
        if loudest >= AUDIBLE_GAIN and total >= AUDIBLE_TOTAL:
            yield heard[start:stop], LABELS.index(kind)
        elif loudest <= SILENT_GAIN or total <= SILENT_TOTAL:
            yield heard[start:stop], 0


def _placement(number: int, interval: Interval, rng: np.random.Generator) -> int:
    """Where a window begins. Every other one anywhere around the event, else so that one of its ends cuts the event.

    The cuts are drawn alike for all kinds of event, so that a cut by itself says nothing of the kind.
    """
    if number % 2 == 0:
        return int(rng.integers(interval.first_sample - WINDOW_SAMPLES, interval.last_sample + 1))
    after_onset_s = np.exp(rng.uniform(np.log(SHORTEST_CUT_S), np.log(LONGEST_CUT_S)))
    onset = interval.onsets[int(rng.integers(len(interval.onsets)))]
    cut = min(onset + int(after_onset_s * RATE_HZ), interval.last_sample)
    return cut - WINDOW_SAMPLES if number % 4 == 1 else cut


def _gain_of_frames(heard: Samples, noise: Samples) -> npt.NDArray[np.float64]:
    """Energy of the event in each frame over the noise's mean energy in a frame."""
    whole = len(noise) - len(noise) % FRAME_SAMPLES
    event = (heard[:whole].astype(np.float32) - noise[:whole]).reshape(-1, FRAME_SAMPLES)
    energy = np.einsum("fs,fs->f", event, event, dtype=np.float64)
    gain: npt.NDArray[np.float64] = energy / (FRAME_SAMPLES * np.mean(noise.astype(np.float32) ** 2, dtype=np.float64))
    return gain
