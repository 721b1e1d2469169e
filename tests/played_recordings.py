"""What comes of playing a recording, and what must come of one that was cut off or damaged."""

from fractions import Fraction

import numpy as np
import pytest

from producers.sources import RecordingError, open_recording
from stream.records import Flags

CUTS = [{"frame_s": 0.003}, {"frame_s": 30.0}, {"frame_sizes": [1, 700, 17]}, {"frame_sizes": [300_000]}]


def channels(path, *, rate_hz=None, **how):
    """The frames of each channel, by its number."""
    given = None if rate_hz is None else Fraction(rate_hz)
    return by_channel(open_recording(path, "r", rate_hz=given, **how))


def by_channel(frames):
    found = {}
    for frame in frames:
        found.setdefault(int(frame.sensor.rpartition("/ch")[2]), []).append(frame)
    return found


def joined(frames):
    return np.concatenate([frame.samples for frame in frames])


def assert_whole(path, expected, **how):
    """However the frames are cut, those of each channel joined are `expected`, in order and with an end."""
    for cut in CUTS:
        found = channels(path, **how, **cut)
        assert sorted(found) == list(range(len(expected)))
        for number, samples in enumerate(expected):
            frames = found[number]
            assert joined(frames).dtype == samples.dtype
            np.testing.assert_array_equal(joined(frames), samples)
            assert [frame.sequence for frame in frames] == list(range(len(frames)))
            assert [Flags.END in frame.flags for frame in frames] == [False] * (len(frames) - 1) + [True]


def refusal(path, **how):
    """Why a recording cannot be played; it names the file."""
    with pytest.raises(RecordingError) as error:
        channels(path, **how)
    return named(path, error.value)


def named(path, error):
    """The error's text, which must name the file."""
    assert str(path) in str(error)
    return str(error)


def frames_until(source):
    """The frames up to where it cannot be read on, and why."""
    frames = []
    try:
        for frame in source:
            frames.append(frame)  # noqa: PERF402 - what came before an error must be kept
    except RecordingError as error:
        return frames, str(error)
    return frames, None


def assert_cut_anywhere_is_told(path, expected, **how):
    """Cut off at every hundredth, it gives the samples before the cut or says why not; never anything else."""
    whole = path.read_bytes()
    short = path.with_name(f"short{path.suffix}")
    for hundredth in range(100):
        short.write_bytes(whole[: len(whole) * hundredth // 100])
        assert_prefix_or_told(short, expected, **how)


def assert_prefix_or_told(path, expected, **how):
    try:
        source = open_recording(path, "r", **how)
    except RecordingError as error:
        named(path, error)
        return
    frames, why = frames_until(source)
    assert why is None or str(path) in why
    for number, own in by_channel(frames).items():
        samples = joined(own)
        np.testing.assert_array_equal(samples, expected[number][: len(samples)])


def assert_damage_is_told(path, seed=0, trials=150):
    """Whatever bytes are changed, it is played or refused; nothing else is raised."""
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(seed)
    bad = path.with_name(f"bad{path.suffix}")
    for _ in range(trials):
        damaged = whole.copy()
        places = rng.integers(0, min(len(whole), rng.choice([200, 2_000, len(whole)])), rng.integers(1, 4))
        damaged[places] = rng.integers(0, 256, len(places))
        bad.write_bytes(damaged.tobytes())
        try:
            source = open_recording(bad, "r", rate_hz=Fraction(1000))
            if source.total_samples is None or source.total_samples < 1_000_000:
                for _ in source:
                    pass
        except RecordingError as error:
            named(bad, error)
