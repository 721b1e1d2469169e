"""One producer process under load, for `aewatch bench ingest`, at full pace until all is acknowledged, or in real time.

`python -m deploy.ingest_load LOAD` takes what to do as a JSON object. A process of its own, as a producer is. The
samples are drawn before the clock starts, so that the drawing is not measured.
"""

from __future__ import annotations

import asyncio
import cProfile
import json
import pstats
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from aiokafka import AIOKafkaProducer

from deploy.pipeline import stop_on_signals
from deploy.produce import run_producer
from deploy.settings import KafkaSettings
from producers.forwarder import Forwarder
from producers.ingest import Ingest
from producers.live.source import Block, SourceSettings
from producers.publisher import PRODUCER_OPTIONS, Publisher
from producers.sensors_file import ProducerTable, SensorsFile, SensorTable, SourcePlan, SpoolTable
from producers.spool import SpoolSettings
from stream.records import FRAME_HEADER

DEVICE_CHANNELS = 8
RING_BLOCKS = 16
FULL_PACE_HZ = 1_000_000  # so that a frame of n samples is n µs long
SPOOL_BYTES = 10**10
PROFILE_FUNCTIONS = 25

Way = Literal["spool", "one-a-message", "aiokafka"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FullPace:
    """`messages` of `message_bytes` each, as fast as they are taken."""

    way: Way  #: the whole way by the spool; the whole way without, each frame a message of its own; or aiokafka alone
    bootstrap: str
    topic: str
    sensors: tuple[str, ...]
    message_bytes: int  #: of a frame with its header, the size of one record of ProducerPerformance
    messages: int
    profile: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RealTime:
    """`sensors` in real time, in devices of eight channels, until SIGTERM."""

    bootstrap: str
    topic: str
    sensors: int
    rate_hz: int
    frame_ms: float


class _Clock:
    """Time on the wall and of the processor."""

    def __init__(self) -> None:
        self._begun = time.perf_counter(), time.process_time()

    def took(self) -> dict[str, float]:
        """Seconds since it was made."""
        wall_s, cpu_s = self._begun
        return {"seconds": time.perf_counter() - wall_s, "cpu_s": time.process_time() - cpu_s}


class _DrawnSettings(SourceSettings):
    rate_hz: int
    channels: int
    block_samples: int
    blocks: int | None  #: None: without end
    wait_s: float | None  #: before the first block, the others in real time behind it; None is full pace


class Drawn:
    """A device whose blocks were drawn beforehand: noise, interleaved as converters give it."""

    Settings: ClassVar[type[SourceSettings]] = _DrawnSettings
    clock: _Clock  #: since the first block was asked for

    def __init__(self, settings: _DrawnSettings) -> None:
        self.rate_hz, self.channels = Fraction(settings.rate_hz), settings.channels
        self._settings = settings
        shape = (RING_BLOCKS, settings.block_samples, settings.channels)
        self._ring = np.random.default_rng(0).integers(-3_000, 3_000, shape, np.int16)

    async def blocks(self) -> AsyncIterator[Block]:
        """As many as were asked for."""
        settings, loop = self._settings, asyncio.get_running_loop()
        block_s = settings.block_samples / settings.rate_hz
        begun_s = loop.time() + (settings.wait_s or 0.0)
        Drawn.clock = _Clock()
        number = 0
        while settings.blocks is None or number < settings.blocks:
            number += 1
            due_s = 0.0 if settings.wait_s is None else begun_s + number * block_s - loop.time()
            await asyncio.sleep(max(0.0, due_s))
            yield Block(self._ring[number % RING_BLOCKS])


def full_pace_file(load: FullPace) -> SensorsFile:
    """One device that gives each sensor exactly `messages / sensors` frames of `message_bytes`.

    Raises
    ------
    ValueError
        If the frames cannot have that size, or not be shared evenly.
    """
    payload = load.message_bytes - FRAME_HEADER.itemsize
    if payload <= 0 or payload % 2:
        raise ValueError(f"message_bytes={load.message_bytes}; give an even number above {FRAME_HEADER.itemsize}")
    if load.messages % len(load.sensors):
        raise ValueError(f"messages={load.messages}; give a multiple of the {len(load.sensors)} sensors")
    samples = payload // 2
    settings = _DrawnSettings(
        rate_hz=FULL_PACE_HZ,
        channels=len(load.sensors),
        block_samples=samples,
        blocks=load.messages // len(load.sensors),
        wait_s=None,
    )
    return _file([("device", settings, load.sensors)], frame_ms=1000 * samples / FULL_PACE_HZ)


def real_time_file(load: RealTime, spool: Path) -> SensorsFile:
    """Devices of eight channels each; their blocks come at different moments, as those of real ones do."""
    block_samples = round(load.rate_hz * load.frame_ms / 1000)
    sensors = [f"bench/{number}" for number in range(load.sensors)]
    devices = []
    for first in range(0, load.sensors, DEVICE_CHANNELS):
        names = tuple(sensors[first : first + DEVICE_CHANNELS])
        settings = _DrawnSettings(
            rate_hz=load.rate_hz,
            channels=len(names),
            block_samples=block_samples,
            blocks=None,
            wait_s=load.frame_ms / 1000 * first / load.sensors,
        )
        devices.append((f"device-{first}", settings, names))
    return _file(devices, frame_ms=load.frame_ms, listen="127.0.0.1:0", spool=SpoolTable(folder=spool))


def _file(
    devices: list[tuple[str, _DrawnSettings, tuple[str, ...]]],
    *,
    frame_ms: float,
    listen: str = "",
    spool: SpoolTable | None = None,
) -> SensorsFile:
    plans = [
        SourcePlan(
            device,
            "drawn",
            Drawn,
            settings,
            tuple(SensorTable(id=name, source=device, channel=channel) for channel, name in enumerate(names)),
        )
        for device, settings, names in devices
    ]
    producer = ProducerTable(frame_ms=frame_ms, listen=listen)
    return SensorsFile(Path("bench"), producer, spool or SpoolTable(), tuple(plans))


async def run_full_pace(load: FullPace) -> dict[str, float]:
    """Seconds from the first block to the last acknowledgement, and those of the processor that this process used.

    Raises
    ------
    RuntimeError
        If not every frame was acknowledged, or some took the way over the disk.
    """
    options = {"bootstrap_servers": load.bootstrap}
    if load.way == "aiokafka":
        return await _aiokafka_alone(options, load)
    file = full_pace_file(load)
    if load.way == "one-a-message":
        async with Publisher(options, load.topic, join_bytes=0) as publisher:
            await Ingest(file, publisher).run()
            await publisher.flush()
            took = Drawn.clock.took()
        acknowledged = publisher.counts.acknowledged_frames
    else:
        with tempfile.TemporaryDirectory(prefix="aewatch-bench-") as folder:
            spool = SpoolSettings(max_bytes=SPOOL_BYTES, full="block")
            async with Forwarder(options, load.topic, folder=folder, spool=spool) as forwarder:
                await Ingest(file, forwarder).run()
                await forwarder.flush()
                took = Drawn.clock.took()
                status = forwarder.status
                if status.historical_frames or status.spooled_frames:
                    raise RuntimeError(f"frames went over the disk; the broker was away: {status.last_error}")
        acknowledged = status.acknowledged_frames
    frames = load.messages + len(load.sensors)  # the last of each ends the epoch and has no samples
    if acknowledged != frames:
        raise RuntimeError(f"{acknowledged} frames were acknowledged, of {frames}")
    return took


async def _aiokafka_alone(options: dict[str, Any], load: FullPace) -> dict[str, float]:
    """One task for each sensor, as one that waits for a full batch must not hold up the other partitions."""
    values = np.random.default_rng(0).integers(0, 256, (RING_BLOCKS, load.message_bytes), np.uint8)
    ring = [row.tobytes() for row in values]
    producer = AIOKafkaProducer(**PRODUCER_OPTIONS, **options)
    await producer.start()
    try:

        async def send(key: bytes) -> None:
            for number in range(load.messages // len(load.sensors)):
                await producer.send(load.topic, ring[number % RING_BLOCKS], key)

        clock = _Clock()
        await asyncio.gather(*(send(sensor.encode()) for sensor in load.sensors))
        await producer.flush()
        return clock.took()
    finally:
        await producer.stop()


async def run_real_time(load: RealTime) -> None:
    """What `aewatch produce` does; the address of its pages is printed first."""
    kafka = KafkaSettings.model_validate({"bootstrap_servers": load.bootstrap, "frames_topic": load.topic})
    with tempfile.TemporaryDirectory(prefix="aewatch-bench-") as folder:
        file = real_time_file(load, Path(folder))
        await run_producer(file, kafka, stop_on_signals(), lambda address: print(address, flush=True))


def profile_report(profile: cProfile.Profile) -> dict[str, Any]:
    """Where the time went by a profile, which itself slows Python's calls: shares are of the profiled run.

    Compiled code is counted to whoever called it.
    """
    rows: list[tuple[float, int, str, str]] = []
    for (file, line, name), (_, calls, own_s, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        rows.append((own_s, calls, _part(file, name), f"{'/'.join(Path(file).parts[-2:])}:{line} {name}"))
    total_s = sum(own_s for own_s, *_ in rows)
    parts: dict[str, float] = {}
    for own_s, _, part, _ in rows:
        parts[part] = parts.get(part, 0.0) + own_s
    rows.sort(reverse=True)
    return {
        "profiled_s": round(total_s, 3),
        "parts": {
            part: round(own_s / total_s, 3) for part, own_s in sorted(parts.items(), key=lambda one: -one[1]) if own_s
        },
        "functions": [
            {"function": function, "calls": calls, "own_s": round(own_s, 3), "share": round(own_s / total_s, 3)}
            for own_s, calls, _, function in rows[:PROFILE_FUNCTIONS]
        ],
    }


def _part(file: str, name: str) -> str:
    """What a function belongs to."""
    if file == "~":
        return "waiting for the broker" if "poll" in name and "epoll" in name else "built in"
    parts = Path(file).parts
    for package in ("aiokafka", "asyncio", "numpy"):
        if package in parts:
            return package
    return "/".join(parts[-2:]) if {"producers", "stream", "deploy"} & set(parts) else "other Python"


def main() -> None:
    """Entry point of the child process."""
    load = json.loads(sys.argv[1])
    if "way" not in load:
        asyncio.run(run_real_time(RealTime(**load)))
        return
    full_pace = FullPace(**{**load, "sensors": tuple(load["sensors"])})
    if not full_pace.profile:
        print(json.dumps(asyncio.run(run_full_pace(full_pace))))
        return
    profile = cProfile.Profile()
    result: dict[str, float] = profile.runcall(asyncio.run, run_full_pace(full_pace))
    print(json.dumps({**result, "profile": profile_report(profile)}))


if __name__ == "__main__":
    main()
