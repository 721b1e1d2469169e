from __future__ import annotations

from fractions import Fraction

import numpy as np

from producers.live.sensor_meter import SensorMeter
from stream.records import NS_PER_S, Flags, Frame

RATE = Fraction(1_000)
CONTINUOUS = Flags(0)


def frame(first: int, samples: object, epoch_ns: int = 0, flags: Flags = CONTINUOUS) -> Frame:
    return Frame("a", epoch_ns, 0, first, epoch_ns + first * 1_000_000, RATE, np.asarray(samples, np.int16), 1.0, flags)


def noise(count: int = 100) -> object:
    return np.random.default_rng(0).integers(-100, 100, count)


def test_rate_and_lag_are_of_the_last_ten_seconds() -> None:
    meter = SensorMeter("a", "s", 5.0)
    for number in range(300):
        meter.frame(frame(100 * number, noise()), (number + 1) * NS_PER_S // 10 + 50_000_000)
    report = meter.report(30 * NS_PER_S + 250_000_000)
    assert abs(report.measured_rate_hz - 1_000) < 20
    assert report.lag_s == 0.25
    assert report.last_frame_s == 0.2
    assert (report.frames, report.samples, report.gaps, report.epochs) == (300, 30_000, 0, 1)
    assert meter.report(60 * NS_PER_S).measured_rate_hz == 0


def test_the_rate_is_right_from_the_first_second_on() -> None:
    meter = SensorMeter("a", "s", 5.0)
    for number in range(10):
        meter.frame(frame(100 * number, noise()), 5 * NS_PER_S + number * NS_PER_S // 10)
    assert abs(meter.report(5_900_000_000).measured_rate_hz - 1_000) < 1


def test_gaps_are_counted_within_an_epoch_and_not_between_hits() -> None:
    meter = SensorMeter("a", "s", 5.0)
    for first, epoch_ns in ((0, 0), (100, 0), (250, 0), (0, 10**9), (100, 10**9)):
        meter.frame(frame(first, noise(), epoch_ns), 0)
    meter.frame(frame(900, noise(), 10**9, Flags.HIT), 0)
    report = meter.report(0)
    assert (report.gaps, report.lost_samples, report.epochs) == (1, 50, 2)


def test_clipping_is_the_share_of_samples_at_the_ends() -> None:
    meter = SensorMeter("a", "s", 5.0)
    samples = np.zeros(100)
    samples[:5], samples[50] = 32_767, -32_768
    meter.frame(frame(0, samples), 0)
    meter.frame(frame(100, noise()), 0)
    assert meter.report(0).clipped_share == 6 / 200


def test_clipping_need_not_be_looked_for_again_where_the_frame_tells_of_it() -> None:
    meter = SensorMeter("a", "s", 5.0)
    samples = np.zeros(100)
    samples[[3, 4]] = [32_767, -32_768]
    meter.frame(frame(0, samples, flags=Flags.SATURATED), 0, looked_at=True)
    meter.frame(frame(100, noise(), flags=Flags.SATURATED), 0)
    assert meter.report(0).clipped_share == 2 / 200


def test_a_line_that_ends_as_it_began_is_not_flat_for_that() -> None:
    meter = SensorMeter("a", "s", 0.1)
    for number in range(5):
        meter.frame(frame(100 * number, [7, *[8] * 98, 7]), 0)
    assert not meter.report(0).flat
    meter.frame(frame(500, np.full(100, 7)), 0)
    assert meter.report(0).flat


def test_a_line_is_flat_when_nothing_changes_for_long() -> None:
    meter = SensorMeter("a", "s", 1.0)
    meter.frame(frame(0, noise()), 0)
    for number in range(1, 11):
        meter.frame(frame(100 * number, np.full(100, 7)), 0)
        assert not meter.report(0).flat
    meter.frame(frame(1_100, np.full(100, 7)), 0)
    assert meter.report(0).flat
    meter.frame(frame(1_200, noise()), 0)
    assert not meter.report(0).flat
