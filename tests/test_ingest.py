from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import soundfile

from producers.ingest import Ingest, Pauses
from producers.live import registry
from producers.live.folder import LEDGER
from producers.live.source import Block, Milestone, SourceError, SourceSettings
from producers.sensors_file import read_sensors_file
from stream.records import Flags, Frame

QUICK = Pauses(0.01, 0.02)


class Collected:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.frames: dict[str, list[Frame]] = defaultdict(list)
        self.flushed = 0

    async def publish(self, frame: Frame) -> None:
        self.frames[frame.sensor].append(frame)

    async def flush(self) -> None:
        self.flushed += 1


class Counting:
    """Two channels that count; fails after every fourth block."""

    class Settings(SourceSettings):
        starts: int = 3
        fails: bool = True

    rate_hz = Fraction(1_000)
    channels = 2
    started: ClassVar[Iterator[int]] = itertools.count()

    def __init__(self, settings: Any) -> None:
        self._settings = settings
        self._start = next(type(self).started)

    async def blocks(self) -> AsyncIterator[Block]:
        for number in range(4):
            values = np.arange(25 * number, 25 * (number + 1), dtype=np.int16)
            yield Block(np.stack([values, -values], axis=1), lost=10 if number == 2 else 0)
        if self._start < self._settings.starts - 1:
            raise SourceError("the cable is out") if self._settings.fails else RuntimeError("a bug")


class Steady:
    """A plain iterator that waits for its device."""

    class Settings(SourceSettings):
        pass

    rate_hz = Fraction(1_000)
    channels = 1
    closed: ClassVar[threading.Event]

    def __init__(self, settings: Any) -> None:
        pass

    def blocks(self) -> Iterator[Block]:
        try:
            while True:
                threading.Event().wait(0.002)
                yield Block(np.ones(50, np.float32))
        finally:
            type(self).closed.set()


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    Counting.started = itertools.count()
    Steady.closed = threading.Event()
    for name in ("Counting", "Steady", "Ledgered", "Wrong"):
        monkeypatch.setitem(registry.BUILT_IN, name.lower(), f"{__name__}:{name}")


class Ledgered:
    """Frames of its own, and a milestone."""

    class Settings(SourceSettings):
        pass

    log: ClassVar[list[str]] = []

    def __init__(self, settings: Any) -> None:
        pass

    def frames(self, sensors: Mapping[int, str]) -> Iterator[Frame | Milestone]:
        frame = Frame(sensors[0], 5, 0, 0, 5, Fraction(1_000), np.ones(9, np.int16), 1.0, Flags.HIT)
        yield frame
        yield Milestone(lambda: self.log.append("reached"))


class Wrong:
    """Gives what no sensor gives."""

    class Settings(SourceSettings):
        pass

    rate_hz = Fraction(1_000)
    channels = 1

    def __init__(self, settings: Any) -> None:
        pass

    async def blocks(self) -> AsyncIterator[Block]:
        yield Block(np.ones(5))


def file(folder: Path, *tables: str) -> Path:
    path = folder / "sensors.toml"
    path.write_text("\n".join(tables))
    return path


COUNTING = '[source.c]\nkind = "counting"\n[[sensor]]\nid = "a"\nsource = "c"\nchannel = 1\nvolts_per_count = 0.25'


@pytest.mark.usefixtures("kinds")
async def test_a_source_that_fails_begins_a_new_epoch_and_the_old_one_is_ended(tmp_path: Path) -> None:
    sink = Collected()
    ingest = Ingest(read_sensors_file(file(tmp_path, COUNTING)), sink, pauses=QUICK)
    await ingest.run()
    epochs = [list(frames) for _, frames in itertools.groupby(sink.frames["a"], key=lambda frame: frame.epoch_ns)]
    assert len(epochs) == 3
    for frames in epochs:
        assert [(frame.first_sample, len(frame.samples)) for frame in frames] == [(0, 50), (60, 50), (110, 0)]
        assert [frame.flags for frame in frames] == [Flags(0), Flags.OVERFLOW, Flags.END]
        assert np.array_equal(frames[0].samples, -np.arange(50))
        assert frames[0].volts_per_count == 0.25
    report = ingest.meters["a"].report(epochs[-1][0].time_ns + 10**9)
    assert (report.state, report.error, report.epochs, report.gaps, report.lost_samples) == (
        "ended",
        "the cable is out",
        3,
        3,
        30,
    )


@pytest.mark.usefixtures("kinds")
async def test_a_sensor_that_fails_does_not_touch_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = COUNTING.replace("source.c]", "source.c]\nstarts = 1000\nfails = false")
    steady = '[source.s]\nkind = "steady"\n[[sensor]]\nid = "b"\nsource = "s"'
    wrong = '[source.w]\nkind = "wrong"\n[[sensor]]\nid = "w"\nsource = "w"'
    sink = Collected()
    ingest = Ingest(read_sensors_file(file(tmp_path, bad, steady, wrong)), sink, pauses=QUICK)
    running = asyncio.create_task(ingest.run())
    async with asyncio.timeout(10):
        while len(sink.frames["b"]) < 100:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert len({frame.epoch_ns for frame in sink.frames["b"]}) == 1
    assert sink.frames["b"][-1].flags == Flags.END
    assert len({frame.epoch_ns for frame in sink.frames["a"]}) > 3
    assert "w" not in sink.frames
    assert "source w: samples are float64; a source gives int16 or float32; tried again in" in caplog.text
    assert ingest.meters["a"].report(0).error == "RuntimeError('a bug')"
    assert await asyncio.to_thread(Steady.closed.wait, 5)


@pytest.mark.usefixtures("kinds")
async def test_a_milestone_is_reached_when_what_came_before_is_delivered(tmp_path: Path) -> None:
    text = '[source.l]\nkind = "ledgered"\n[[sensor]]\nid = "a"\nsource = "l"'
    sink = Collected()
    Ledgered.log.clear()
    await Ingest(read_sensors_file(file(tmp_path, text)), sink).run()
    assert (Ledgered.log, sink.flushed, len(sink.frames["a"])) == (["reached"], 1, 1)


@pytest.mark.usefixtures("kinds")
async def test_a_sink_that_fails_ends_it_all(tmp_path: Path) -> None:
    class Broken(Collected):
        async def publish(self, frame: Frame) -> None:
            raise RuntimeError("no way out")

    with pytest.raises(ExceptionGroup) as caught:
        await Ingest(read_sensors_file(file(tmp_path, COUNTING)), Broken(), pauses=QUICK).run()
    assert caught.value.subgroup(lambda error: str(error) == "no way out")


async def watch(path: Path, sink: Collected, until: int) -> None:
    """Run what `path` says until so many files are noted, and a little longer."""
    running = asyncio.create_task(Ingest(read_sensors_file(path), sink, pauses=QUICK).run())
    async with asyncio.timeout(10):
        while sink.flushed < until:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_recording_that_appears_in_a_folder_is_published_once(tmp_path: Path) -> None:
    folder = tmp_path / "drop"
    folder.mkdir()
    table = f'[source.f]\nkind = "folder"\npath = "{folder}"\nsettled_s = 0.05\npoll_s = 0.02\n'
    path = file(tmp_path, table, '[[sensor]]\nid = "a"\nsource = "f"\nchannel = 1')

    samples = np.arange(2_000, dtype=np.int16).reshape(-1, 2)
    soundfile.write(folder / "one.wav", samples, 1_000, subtype="PCM_16")
    (folder / "broken.wav").write_bytes(b"RIFF")
    (folder / "notes.txt").write_text("none of this")
    first = Collected()
    await watch(path, first, 2)
    frames = first.frames["a"]
    assert np.array_equal(np.concatenate([frame.samples for frame in frames]), samples[:, 1])
    changed_ns = (folder / "one.wav").stat().st_mtime_ns
    assert {frame.epoch_ns for frame in frames} == {changed_ns - 1_000_000_000}
    assert len((folder / LEDGER).read_text().splitlines()) == 2

    soundfile.write(folder / "two.wav", samples, 1_000, subtype="PCM_16")
    second = Collected()
    await watch(path, second, 1)
    assert len({frame.epoch_ns for frame in second.frames["a"]}) == 1
    assert sum(len(frame.samples) for frame in second.frames["a"]) == 1_000


async def test_files_copied_into_a_folder_together_are_epochs_one_after_another(tmp_path: Path) -> None:
    folder = tmp_path / "drop"
    folder.mkdir()
    table = f'[source.f]\nkind = "folder"\npath = "{folder}"\nsettled_s = 0.05\npoll_s = 0.02\n'
    path = file(tmp_path, table, '[[sensor]]\nid = "a"\nsource = "f"')
    copied_ns = time.time_ns() - 60 * 10**9
    for number, seconds in enumerate((1, 5, 2)):
        soundfile.write(folder / f"{number}.wav", np.full(1_000 * seconds, number, np.int16), 1_000, subtype="PCM_16")
        os.utime(folder / f"{number}.wav", ns=(copied_ns, copied_ns + number))
    first = Collected()
    await watch(path, first, 3)
    begins = [frame.epoch_ns for frame in first.frames["a"]]
    assert begins == sorted(begins)
    assert len(set(begins)) == 3

    soundfile.write(folder / "long.wav", np.zeros(90_000, np.int16), 1_000, subtype="PCM_16")
    after = Collected()  # also where another process published those before
    await watch(path, after, 1)
    assert {frame.epoch_ns for frame in after.frames["a"]} == {begins[-1] + 1}


async def test_a_damaged_file_in_a_folder_is_ended_where_it_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "drop"
    folder.mkdir()
    table = f'[source.f]\nkind = "folder"\npath = "{folder}"\nsettled_s = 0.05\npoll_s = 0.02\n'
    path = file(tmp_path, table, '[[sensor]]\nid = "a"\nsource = "f"')
    soundfile.write(folder / "cut.flac", np.random.default_rng(1).normal(0, 0.1, 100_000), 1_000, subtype="PCM_16")
    whole = (folder / "cut.flac").read_bytes()
    (folder / "cut.flac").write_bytes(whole[: len(whole) // 2])
    sink = Collected()
    await watch(path, sink, 1)
    *played, last = sink.frames["a"]
    assert sum(len(frame.samples) for frame in played) > 10_000
    assert last.flags == Flags.END
    assert last.first_sample == played[-1].end_sample
    assert caplog.text.count("cut.flac") == 1
    assert "the folder's other files go on" in caplog.text
