from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from producers import ingest as ingest_module
from producers.ingest import Ingest
from producers.live import registry
from producers.live.sensor_meter import SensorReport
from producers.live.source import Block, SourceSettings
from producers.sensors_file import read_sensors_file
from stream.records import NS_PER_S, Flags, Frame

RATE_HZ = 1_000
BEGUN_NS = 1_700_000_000 * NS_PER_S
BLOCK = 20  # samples, so ms


class Scripted:
    """Its first sample is taken at `BEGUN_NS`; gives blocks of 20 ms at the moments of a script, s after that."""

    class Settings(SourceSettings):
        pass

    rate_hz = Fraction(RATE_HZ)
    channels = 1
    script: ClassVar[Iterable[float]]
    now_ns: ClassVar[int]

    def __init__(self, settings: Any) -> None:
        pass

    async def blocks(self) -> AsyncIterator[Block]:
        for number, moment_s in enumerate(self.script):
            type(self).now_ns = max(self.now_ns, BEGUN_NS + round(moment_s * NS_PER_S))
            yield Block((np.arange(BLOCK) + BLOCK * number).astype(np.float32))


class Frames:
    """Keeps what is published."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []

    async def publish(self, frame: Frame) -> None:
        self.frames.append(frame)

    async def flush(self) -> None:
        pass


def in_time(seconds: float, begin: int = 0) -> list[float]:
    """Moments of blocks, each when its last sample was taken."""
    return [(number + 1) * BLOCK / RATE_HZ for number in range(begin, round(seconds * RATE_HZ / BLOCK))]


def held_up(seconds: float, until_s: float) -> list[float]:
    """The blocks of the first seconds come at once."""
    return [until_s] * len(in_time(seconds))


async def played(
    monkeypatch: pytest.MonkeyPatch, folder: Path, script: Iterable[float]
) -> tuple[list[list[Frame]], SensorReport]:
    """The frames of each epoch, and the sensor's report at the end."""
    monkeypatch.setitem(registry.BUILT_IN, "scripted", f"{__name__}:Scripted")
    Scripted.script, Scripted.now_ns = script, BEGUN_NS
    path = folder / "sensors.toml"
    path.write_text('[source.s]\nkind = "scripted"\n[[sensor]]\nid = "a"\nsource = "s"')
    sink = Frames()
    ingest = Ingest(read_sensors_file(path), sink, now_ns=lambda: Scripted.now_ns)
    await ingest.run()
    epochs = [list(frames) for _, frames in groupby(sink.frames, lambda frame: frame.epoch_ns)]
    # Nothing is lost or comes twice, whatever the epochs are.
    samples = np.concatenate([frame.samples for frame in sink.frames])
    assert np.array_equal(samples, np.arange(len(samples)))
    assert len(samples) == BLOCK * len(list(script))
    assert all(frames[-1].flags == Flags.END for frames in epochs)
    return epochs, ingest.meters["a"].report(Scripted.now_ns)


def wrong_by_s(frame: Frame) -> float:
    """How far the frame's time is ahead of when its first sample, which counts them, was taken."""
    taken_ns = BEGUN_NS + round(float(frame.samples[0]) * NS_PER_S / RATE_HZ)
    return (frame.time_ns - taken_ns) / NS_PER_S


async def test_a_device_in_time_begins_one_block_before_its_first_block_came(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (frames,), report = await played(monkeypatch, tmp_path, in_time(20))
    assert frames[0].epoch_ns == BEGUN_NS
    assert [frame.first_sample for frame in frames[:3]] == [0, 50, 100]
    assert (report.epochs, report.corrections, report.offset_s) == (1, 0, 0.0)
    assert abs(report.measured_rate_hz - RATE_HZ) < 10


@pytest.mark.parametrize("backlog_s", [0.3, 3.0, 12.0])
async def test_samples_that_waited_at_the_start_have_the_time_when_they_were_taken(
    backlog_s: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = held_up(backlog_s, until_s=backlog_s) + in_time(backlog_s + 20, begin=round(backlog_s * RATE_HZ / BLOCK))
    (frames,), report = await played(monkeypatch, tmp_path, script)
    assert frames[0].epoch_ns == BEGUN_NS
    assert (report.epochs, report.corrections) == (1, 0)
    assert abs(report.offset_s) < 0.03
    assert report.lag_s == 0.0


@pytest.mark.parametrize("drained_by_s", [130.0, 400.0])
async def test_a_backlog_too_long_to_keep_is_followed_by_a_new_epoch_in_time(
    drained_by_s: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    waited_s = 120.0  # of samples, of which this takes a while to hand over, and more comes meanwhile
    blocks = len(in_time(drained_by_s))
    script = list(np.linspace(waited_s, drained_by_s, blocks)) + in_time(drained_by_s + 20, begin=blocks)
    (first, then), report = await played(monkeypatch, tmp_path, script)
    assert wrong_by_s(first[0]) > 90
    assert max(abs(wrong_by_s(frame)) for frame in then[:-1]) < 0.05
    assert then[0].epoch_ns > first[0].epoch_ns
    assert then[0].first_sample == 0
    assert (report.epochs, report.corrections) == (1, 1)
    assert abs(report.offset_s) < 0.03
    assert caplog.text.count("ahead of the clock; a new epoch has the right time") == 1


async def test_a_backlog_of_many_bytes_is_not_kept_in_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ingest_module, "KEPT_BYTES", 4_000)  # 1 s
    script = held_up(30.0, until_s=30.0) + in_time(50.0, begin=1_500)
    (_, then), report = await played(monkeypatch, tmp_path, script)
    assert abs(wrong_by_s(then[0])) < 0.03
    assert report.corrections == 1


async def test_a_backlog_in_parts_is_seen_as_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # The first block waited for 2 s; the others come when this process has begun to look, a second later.
    script = [2.0] + [3.0] * 149 + in_time(20.0, begin=150)
    epochs, _ = await played(monkeypatch, tmp_path, script)
    assert abs(wrong_by_s(epochs[-1][0])) < 0.03


@pytest.mark.parametrize("seed", range(10))
async def test_a_device_whose_blocks_come_now_sooner_now_later_keeps_its_epoch(
    seed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rng = np.random.default_rng(seed)
    late_s = rng.exponential(0.1, len(in_time(30))) + 1.5 * (rng.random(len(in_time(30))) < 0.01)
    script = np.maximum.accumulate(np.array(in_time(30)) + late_s).tolist()
    (frames,), report = await played(monkeypatch, tmp_path, script)
    assert 0 <= wrong_by_s(frames[0]) < 0.5
    assert (report.epochs, report.corrections) == (1, 0)


@pytest.mark.parametrize("rate", [0.5, 0.9, 1.02, 1.1, 3.0, 100.0])
async def test_a_device_of_another_rate_than_it_says_keeps_its_epoch(
    rate: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, report = await played(monkeypatch, tmp_path, [moment_s / rate for moment_s in in_time(min(60 * rate, 90))])
    assert (report.epochs, report.corrections) == (1, 0)


async def test_a_device_that_stops_at_once_loses_nothing_and_is_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (frames,), _ = await played(monkeypatch, tmp_path, in_time(0.1))
    assert frames[0].epoch_ns == BEGUN_NS
    assert [frame.first_sample for frame in frames] == [0, 50, 100]
