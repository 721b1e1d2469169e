from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.last_windows import LastWindow, PublishedSamples
from stream.records import Flags, Frame, samples_to_ns
from stream.windows import SensorWindows, WindowSpec

CONTINUOUS = Flags(0)
SPECS = [
    WindowSpec(100, 50),
    WindowSpec(30, 70),
    WindowSpec(160, 80, Fraction(16_000)),
    WindowSpec(100, 100, Fraction(1_000)),
]


def frame(
    first: int,
    count: int,
    *,
    epoch_ns: int = 5,
    flags: Flags = CONTINUOUS,
    rate_hz: Fraction = Fraction(16_000),
    dtype: Any = np.int16,
    sensor: str = "a",
) -> Frame:
    time_ns = epoch_ns + samples_to_ns(first, rate_hz)
    return Frame(sensor, epoch_ns, 0, first, time_ns, rate_hz, np.zeros(count, dtype), 1.0, flags)


def told(frames: list[Frame], spec: WindowSpec) -> set[LastWindow]:
    published = PublishedSamples()
    for one in frames:
        published.note(one)
    return set(published.last_windows(spec))


def made(frames: list[Frame], spec: WindowSpec) -> set[LastWindow]:
    """What the pipeline's own module makes last of them."""
    last = {}
    sensors: dict[str, SensorWindows] = {}
    for one in frames:
        for window in sensors.setdefault(one.sensor, SensorWindows(one.sensor, spec)).push(one).windows:
            hit = Flags.HIT in window.flags
            last[one.sensor, hit] = LastWindow(one.sensor, (window.epoch_ns, window.start_sample), hit)
    return set(last.values())


@st.composite
def recordings(draw: st.DrawFn) -> list[Frame]:
    """A sensor's continuous frames: gaps, overlaps, losses, other formats and rates, restarts, the END."""
    frames, at, epoch_ns = [], 0, 5
    rate_hz = Fraction(16_000)
    dtype: Any = np.int16
    steps = st.sampled_from(["on", "on", "on", "gap", "overlap", "loss", "format", "rate", "restart"])
    for step in draw(st.lists(steps, min_size=1, max_size=12)):
        count = draw(st.integers(1, 400))
        flags = CONTINUOUS
        if step == "gap":
            at += draw(st.integers(1, 300))
        elif step == "overlap":
            at = max(at - draw(st.integers(0, min(count - 1, 50))), 0)
        elif step == "loss":
            flags = Flags.OVERFLOW
        elif step == "format":
            dtype = np.float32 if dtype == np.int16 else np.int16
        elif step == "rate":
            rate_hz = Fraction(48_000) if rate_hz == 16_000 else Fraction(16_000)
        elif step == "restart":
            at, epoch_ns = 0, epoch_ns + 10**12
        frames.append(frame(at, count, epoch_ns=epoch_ns, flags=flags, rate_hz=rate_hz, dtype=dtype))
        at += count
    return [*frames, frame(at, 0, epoch_ns=epoch_ns, flags=Flags.END, rate_hz=rate_hz)]


@settings(deadline=None)  # the first time, filters are designed
@given(recordings(), st.sampled_from(SPECS))
def test_the_last_window_is_known_without_making_all(frames: list[Frame], spec: WindowSpec) -> None:
    assert told(frames, spec) == made(frames, spec)


@pytest.mark.parametrize("spec", SPECS)
def test_hits_have_windows_of_their_own(spec: WindowSpec) -> None:
    frames = [frame(at, 300, flags=Flags.HIT) for at in (100, 90_000, 40_000)]
    assert told(frames, spec) == {LastWindow("a", (5, 90_000), hit=True)}


def test_each_sensor_has_its_last_and_one_too_short_for_a_window_has_none() -> None:
    frames = [frame(0, 1_000), frame(0, 99, sensor="short"), frame(0, 120, sensor="b"), frame(120, 120, sensor="b")]
    assert told(frames, WindowSpec(100, 50)) == {LastWindow("a", (5, 900), False), LastWindow("b", (5, 100), False)}


def test_a_long_recording_is_not_made_up_again() -> None:
    frames = [frame(at, 10**6, rate_hz=Fraction(10**6)) for at in range(0, 3_600 * 10**6, 10**6)]
    (last,) = told(frames, WindowSpec(16_000, 8_000, Fraction(16_000)))
    assert last.position == (5, 3_598_500_000)
