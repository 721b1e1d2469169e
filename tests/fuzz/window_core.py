"""Target: sequences of frames, each sound and together hostile, as one sensor's windows are cut from them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from stream.records import MAX_INDEX, Flags, Frame, Window
from stream.windows import REMEMBERED_HITS, REMEMBERED_RUNS, SensorWindows, WindowSpec
from tests.fuzz.bytes_reader import Reader
from tests.fuzz.target import Target

SPECS = (
    WindowSpec(16, 16),
    WindowSpec(16, 4),
    WindowSpec(8, 24),
    WindowSpec(3, 2),
    WindowSpec(16, 8, Fraction(400)),
    WindowSpec(16, 8, Fraction(2000)),
)
RATES = (Fraction(1000), Fraction(400), Fraction(800), Fraction(100_000_000), Fraction(1), Fraction(12_600, 7))
SCALES = (1e-6, 1e-6, 5e-324, 1.7e308)
EPOCHS = (0, 1, 1_700_000_000_000_000_000, MAX_INDEX)
ONWARDS = ("onwards", "onwards", "onwards", "gap", "back", "far", "anywhere")


def signal(epoch_ns: int, start: int, count: int, dtype: type) -> npt.NDArray:
    """Each place has a value of its own, so that a window shows where its samples are from."""
    first = (start * 7919 + epoch_ns * 31) % 65_521
    return ((first + np.arange(count, dtype=np.int64) * 7919) % 65_521 - 32_760).astype(dtype)


def frames_in(reader: Reader) -> list[Frame]:
    frames: list[Frame] = []
    at, epoch_ns, rate_hz, dtype, scale = 0, 0, RATES[0], np.int16, 1e-6
    while reader and len(frames) < 24:
        what = reader.number(1)
        if what & 0x80:
            epoch_ns = reader.choice(EPOCHS) if what & 0x40 else min(epoch_ns + 1, MAX_INDEX)
            at = 0
        if what & 0x20:
            rate_hz = reader.choice(RATES)
        if what & 0x10:
            dtype = reader.choice((np.int16, np.float32))
            scale = reader.choice(SCALES)
        flags = Flags(reader.number(1) & 0x3F) if what & 0x08 else Flags(0)
        where = ONWARDS[what % len(ONWARDS)]
        if where == "gap":
            at += reader.number(1)
        elif where == "back":
            at -= reader.number(1)
        elif where == "far":
            at += reader.number(5)
        elif where == "anywhere":
            at = reader.number(8)
        at = max(0, min(at, MAX_INDEX))
        count = reader.number(1)
        if not count and Flags.END not in flags:
            count = 1
        samples = signal(epoch_ns, at, count, dtype)
        frames.append(Frame("s", epoch_ns, len(frames), at, epoch_ns, rate_hz, samples, scale, flags))
        at += count
    return frames


def check_windows(data: bytes) -> None:
    reader = Reader(data)
    spec = reader.choice(SPECS)
    cut_at = reader.number(1)
    frames = frames_in(reader)
    windows = SensorWindows("s", spec)
    made: list[Window] = []
    last, needed = (-1, -1), (0, 0)
    taken: dict[int, list[list[int]]] = {}
    for frame in frames:
        pushed = windows.push(frame)
        assert windows.needed_from >= needed, "what is needed went back"
        needed = windows.needed_from
        if pushed.rejected is not None:
            assert not pushed.windows
            assert not pushed.held
            continue
        hit = Flags.HIT in frame.flags
        if not hit and len(frame.samples):
            # Also duplicates, which were taken before.
            note(taken.setdefault(frame.epoch_ns, []), frame.first_sample, frame.end_sample)
        for window in pushed.windows:
            check_window_of(window, frame, spec, taken, hit=hit)
            if not hit:
                assert window.position > last
                last = window.position
                assert not (Flags.OVERFLOW in frame.flags and window.start_sample < frame.first_sample), "spans a loss"
                made.append(window)
    counts = windows.counts
    assert counts.frames == len(frames)
    assert len(windows._runs) <= REMEMBERED_RUNS
    assert len(windows._hits) <= REMEMBERED_HITS
    if not (counts.late or counts.overlaps or counts.duplicates or counts.refused):
        check_cut_otherwise(frames, cut_at, made, spec)


def note(runs: list[list[int]], start: int, end: int) -> None:
    """These samples were taken; runs that go on in order are one."""
    if runs and runs[-1][0] <= start <= runs[-1][1]:
        runs[-1][1] = max(runs[-1][1], end)
    else:
        runs.append([start, end])


def check_window_of(
    window: Window, frame: Frame, spec: WindowSpec, taken: dict[int, list[list[int]]], *, hit: bool
) -> None:
    assert 0 <= window.time_ns <= MAX_INDEX
    assert window.source_count > 0
    assert window.source_rate_hz == frame.rate_hz
    if hit:
        assert (window.start_sample, window.source_count) == (frame.first_sample, len(frame.samples))
        return
    assert len(window.samples) == spec.length
    end = window.start_sample + window.source_count
    assert end <= frame.end_sample
    runs = taken[frame.epoch_ns]
    assert any(first <= window.start_sample and end <= last for first, last in runs), "spans a gap"
    if window.rate_hz == frame.rate_hz:
        assert window.start_sample % spec.hop == 0, "not on the grid"
        expected = signal(frame.epoch_ns, window.start_sample, spec.length, frame.samples.dtype.type)
        assert window.samples.tobytes() == expected.tobytes()
    else:
        index = -(-window.start_sample * spec.rate_hz // frame.rate_hz)
        index = -(-index // spec.hop)
        assert any(
            (place * spec.hop * frame.rate_hz) // spec.rate_hz == window.start_sample for place in (index - 1, index)
        ), "not on the grid"
        assert np.isfinite(window.samples).all()


def check_cut_otherwise(frames: list[Frame], cut_at: int, made: list[Window], spec: WindowSpec) -> None:
    again = SensorWindows("s", spec)
    others: list[Window] = []
    for frame in frames:
        for piece in pieces(frame, cut_at):
            pushed = again.push(piece)
            assert pushed.rejected is None
            if Flags.HIT not in piece.flags:
                others += pushed.windows
    assert [(window.position, window.samples.tobytes(), window.time_ns) for window in made] == [
        (window.position, window.samples.tobytes(), window.time_ns) for window in others
    ]


def pieces(frame: Frame, cut_at: int) -> list[Frame]:
    """The frame, or in two pieces; what is said of its beginning or end stays there."""
    count = len(frame.samples)
    if count < 2 or Flags.HIT in frame.flags:
        return [frame]
    first = 1 + cut_at % (count - 1)
    parts = []
    for begin, end, without in ((0, first, Flags.END), (first, count, Flags.OVERFLOW)):
        parts.append(
            Frame(
                frame.sensor,
                frame.epoch_ns,
                frame.sequence,
                frame.first_sample + begin,
                frame.time_ns,
                frame.rate_hz,
                frame.samples[begin:end],
                frame.volts_per_count,
                frame.flags & ~without,
            )
        )
    return parts


def window_core_seeds() -> list[bytes]:
    seeds = []
    for spec in range(len(SPECS)):
        plain = bytes([0, 60, 0, 60, 7, 60])
        seeds += [
            bytes([spec, 7]) + plain * 3,
            bytes([spec, 0]) + plain + bytes([3, 20, 40]) + plain + bytes([0x80, 30]) + plain,
            bytes([spec, 9]) + plain + bytes([0x28, 1, 2, 40]) + bytes([0x38, 1, 1, 0, 32, 9]) + plain,
            bytes([spec, 9]) + plain + bytes([6, *[0xFF] * 6, 0x3F, 0, 40]) + bytes([0xC0, 3, 200]) + plain,
        ]
    return seeds


TARGETS = [
    Target(
        "window-core",
        "any sequence of frames: never raises; windows on the grid, of the samples that belong there, over no gap, the "
        "same however frames were cut; what is remembered is bounded",
        check_windows,
        window_core_seeds,
        max_bytes=300,
        share=0.3,
    ),
]
