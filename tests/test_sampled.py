from contextlib import contextmanager, nullcontext
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.sources import RecordingError
from producers.sources.frame_cuts import FrameCuts
from producers.sources.sample_rate import agreed_rate, stated_rate
from producers.sources.sampled import Channel, SampledRecording, Track
from stream.records import Flags, decode_frames, encode_frame
from tests.played_recordings import by_channel, frames_until, joined

PATH = Path("pump.dat")


def recording(*columns, rates=None, cuts=None, told=True, opened=None):
    """A track for each array of shape (samples, channels); `opened` is told of opening and closing."""
    tracks, number = [], 0
    for place, data in enumerate(columns):
        named = tuple(Channel(f"s/ch{number + k}", f"c{number + k}", 1.0) for k in range(data.shape[1]))
        number += len(named)
        rate_hz = Fraction(rates[place] if rates else 1_000)
        tracks.append(Track(named, rate_hz, len(data) if told else None, data.dtype == np.int16))

    @contextmanager
    def open_tracks():
        opened is None or opened.append("opened")
        try:
            yield [lambda begin, count, data=data: data[begin : begin + count] for data in columns]
        finally:
            opened is None or opened.append("closed")

    return SampledRecording(PATH, cuts or FrameCuts(), tracks, open_tracks)


def ramp(samples, channels=1, dtype=np.int16):
    return (np.arange(samples)[:, None] + 1_000 * np.arange(channels)).astype(dtype)


@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=4),
    rates=st.lists(st.integers(1, 5_000), min_size=4, max_size=4),
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=3),
    told=st.booleans(),
)
def test_tracks_of_any_length_and_rate_come_whole_and_in_order_of_time(lengths, rates, sizes, told):
    columns = [ramp(length, 1 + place % 2) for place, length in enumerate(lengths)]
    source = recording(*columns, rates=rates, cuts=FrameCuts(frame_sizes=sizes), told=told)
    frames = list(source)
    times = [frame.time_ns for frame in frames]
    assert times == sorted(times)
    expected = [column for data in columns for column in data.T]
    for number, own in by_channel(frames).items():
        np.testing.assert_array_equal(joined(own), expected[number])
        assert own[-1].flags == Flags.END
    if told:
        assert len(frames) == source.total_frames
        assert sum(len(frame.samples) for frame in frames) == source.total_samples
        assert source.duration_s == pytest.approx(max(n / r for n, r in zip(lengths, rates, strict=False)))
    else:
        assert (source.total_frames, source.total_samples, source.duration_s) == (None, None, None)


def test_every_frame_goes_on_the_wire_and_comes_back():
    for frame in recording(ramp(500, 2, np.float32), rates=[Fraction(10**6, 3)]):
        assert decode_frames(frame.sensor, encode_frame(frame)).rejects == []


def test_what_is_wrong_with_one_track_is_told_when_the_others_have_come_so_far():
    broken = ramp(1_000, 1, np.float64)
    broken[700] = np.inf
    frames, why = frames_until(recording(broken, ramp(2_000)))
    assert why == (
        "pump.dat: sample 700 of c0 is inf, which is no finite float32 number; leave that stretch out, what came "
        "before has been played"
    )
    found = by_channel(frames)
    assert len(joined(found[0])) == 700
    assert len(joined(found[1])) >= 700


def test_a_track_that_ends_before_it_should_is_told():
    data = ramp(600)
    track = Track((Channel("s", "c0", 1.0),), Fraction(1_000), 1_000, int16=True)
    read = [lambda begin, count: data[begin : begin + count]]
    frames, why = frames_until(SampledRecording(PATH, FrameCuts(), [track], lambda: nullcontext(read)))
    assert "c0 ends after 600 of 1000 samples" in why
    assert len(joined(frames)) == 600


def test_any_error_of_a_reader_is_said_of_the_file():
    def broken(begin, count):
        raise KeyError("odd\nkey")

    track = Track((Channel("s", "c0", 1.0),), Fraction(1_000), 10, int16=True)
    _, why = frames_until(SampledRecording(PATH, FrameCuts(), [track], lambda: nullcontext([broken])))
    assert "pump.dat: c0 cannot be read on from sample 0: 'odd\\nkey'" in why


def test_the_file_is_open_only_while_it_is_played():
    opened = []
    source = recording(ramp(5_000), opened=opened)
    assert opened == []
    frames = iter(source)
    next(frames)
    assert opened == ["opened"]
    frames.close()
    assert opened == ["opened", "closed"]


def test_two_channels_of_one_sensor_are_refused():
    tracks = [Track((Channel("s", "a", 1.0),), Fraction(1), 1, True)] * 2
    with pytest.raises(RecordingError, match=r"put \{channel\} in the pattern"):
        SampledRecording(PATH, FrameCuts(), tracks, lambda: nullcontext([]))


@pytest.mark.parametrize(
    ("name", "value", "rate_hz"),
    [
        ("fs", 44_100, 44_100),
        ("Fs", np.float64(44_100), 44_100),
        ("SampleRate", b"51200", 51_200),
        ("dt", 1 / 44_100, 44_100),
        ("dt", np.float32(1e-6), 1_000_000),
        ("dt", 3e-6, Fraction(10**6, 3)),
        ("sample_rate_hz", np.array([[48_828.125]]), Fraction(390_625, 8)),
        ("rate_hz", 1e8, 10**8),
    ],
)
def test_a_stated_rate_is_the_roundest_that_it_can_mean(name, value, rate_hz):
    said = stated_rate(PATH, name, name, value)
    assert agreed_rate(PATH, [said], None) == rate_hz


@given(st.floats(1.0, 1e8))
def test_any_rate_fits_the_wire_and_stays_what_it_is(value):
    rate_hz = agreed_rate(PATH, [stated_rate(PATH, "fs", "fs", value)], None)
    assert max(rate_hz.numerator, rate_hz.denominator) < 2**32
    assert float(rate_hz) == pytest.approx(value, rel=1e-8)
