"""Windows of simulated sensors, trained on at four positions and tested at four others. Pure and seeded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from model.data.dataset import WindowSet
from producers.event_waveforms import EventKind
from producers.propagation import Position, draw_positions
from producers.simulator import RATE_HZ, PlannedEvent, SensorSimulator, interval_of

LABELS = tuple(kind.value for kind in EventKind)
WINDOW_SAMPLES = 16_384  # 33 ms: a bounce or two of a drop, a stretch of friction
#: The test positions are beside louder machines: their background is stronger by so much.
LOUDER_DB = 21.0
TRAINING = draw_positions(4, 8)[:4]
TEST = tuple(replace(position, noise_db_ae=position.noise_db_ae + LOUDER_DB) for position in draw_positions(4, 8)[4:])
#: Pencil-lead break, friction, knock, drop.
SHARES = (0.034, 0.395, 0.372, 0.200)
WINDOWS_OF_AN_EVENT = 2
#: What must stick out of the noise for a window to hold the event: its energy over the noise's, as a share.
AUDIBLE = 0.05

Counts = npt.NDArray[np.int16]


def position_windows(
    positions: Sequence[Position],
    count: int,
    seed: int,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> WindowSet:
    """About `count` windows, the same number at each position, each class in its share of `SHARES`.

    A window begins anywhere such that some of the event is in it and can be heard. Every event is a recording of its
    own, at another second of its position's background.
    """
    windows: list[Counts] = []
    labels: list[int] = []
    recordings: list[str] = []
    places: list[str] = []
    plan = [
        (position, label, number)
        for position in positions
        for label, share in enumerate(SHARES)
        for number in range(max(1, round(count * share / len(positions) / WINDOWS_OF_AN_EVENT)))
    ]
    for done, (position, label, number) in enumerate(plan):
        kind = tuple(EventKind)[label]
        rng = np.random.default_rng([seed, position.seed, label, number])
        for window in _of_event(position, kind, rng):
            windows.append(window)
            labels.append(label)
            recordings.append(f"{position.name}/{kind.value}/{number}")
            places.append(position.name)
        on_progress(done + 1, len(plan))
    count = len(windows)
    return WindowSet(
        windows=np.stack(windows),
        lengths=np.full(count, WINDOW_SAMPLES),
        labels=np.array(labels),
        label_names=LABELS,
        rate_hz=float(RATE_HZ),
        recordings=np.array(recordings),
        sensors=np.array(places),
        positions=np.array(places),
        splits=np.full(count, ""),
    )


def _of_event(position: Position, kind: EventKind, rng: np.random.Generator) -> list[Counts]:
    noise_seed = int(rng.integers(2**31))
    at = int(rng.integers(4, 400)) * WINDOW_SAMPLES * 4
    event = PlannedEvent(position.name, kind, at, int(rng.integers(2**31)))
    interval = interval_of(event, position)
    heard = SensorSimulator(position.name, position, RATE_HZ, noise_seed, [event])
    noise = SensorSimulator(position.name, position, RATE_HZ, noise_seed)
    found: list[Counts] = []
    for _ in range(8 * WINDOWS_OF_AN_EVENT):
        start = int(rng.integers(interval.first_sample - WINDOW_SAMPLES + 1, interval.last_sample + 1))
        with_event = heard.samples(start, start + WINDOW_SAMPLES)
        without = noise.samples(start, start + WINDOW_SAMPLES).astype(np.float64)
        added = float(np.sum((with_event - without) ** 2))
        if added >= AUDIBLE * float(np.sum(without**2)):
            found.append(with_event)
        if len(found) == WINDOWS_OF_AN_EVENT:
            break
    return found
