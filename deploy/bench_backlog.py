"""What a pipeline does with more than it can take, in two rounds.

*Slow worker*: an hour of data arrives while the one worker is stopped for most of each second, ten times too slow for
it; then the worker is let go. *Outage*: three hours of data have piled up without a worker, one partition has none of
it and goes on live; then a worker starts.

Data are the demo's signals taken sample for sample at 16 kHz, so that a window lasts 4 s and hours of them fit on a
laptop's disk. They are dated so that the last sample is taken when it is published: alerts come late, and say so.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
import psutil
from aiokafka.partitioner import DefaultPartitioner

from deploy.bench_engine import bench_engine
from deploy.bench_pipeline import cpu_model
from deploy.chaos.progress import ProgressWatch
from deploy.local_stack import LocalStack
from deploy.processes import Child, Children, ProcessError
from deploy.settings import KafkaSettings
from deploy.simulation import Plan
from deploy.topic_reader import reading
from deploy.topics import ensure_topics
from model.bundle import demo_bundle_path, load_weights, read_card, write_bundle
from producers.propagation import DEMO_POSITIONS
from producers.publisher import Publisher
from producers.simulator import RATE_HZ, VOLTS_PER_COUNT, SensorSimulator, plan_events
from stream.predictions import decode_prediction
from stream.records import Flags, Frame, Samples
from stream.subscribe import Alerts

SAMPLE_RATE_HZ = 16_000
FRAME_SAMPLES = 32_000
PARTITIONS = 4
RING_S = 30.0  #: of simulated signal, over and over
FEED_S = 60.0  #: in which the hour arrives
SLICE_S = 0.5  #: of the worker's life while it is slowed
READY_S = 180.0
STALL_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How much of it. Hours are the sensors', not the bench's."""

    sensors: int = 4
    slow_hours: float = 1.0
    too_slow: float = 10.0  #: times
    outage_hours: float = 3.0


QUICK = Extent(sensors=2, slow_hours=0.15, outage_hours=0.15)


def bench_backlog(extent: Extent) -> dict[str, Any]:
    """Measure both; one JSON-ready object.

    Raises
    ------
    ProcessError
        If a process ends by itself, or nothing goes on any more.
    deploy.local_stack.StackError
        If the servers cannot be started.
    """
    with (
        tempfile.TemporaryDirectory(prefix="aewatch-bench-") as name,
        # What piles up is more than the gigabyte of each partition that a laptop's stack keeps.
        LocalStack(Path(name) / "stack", None, None, kafka_properties={"log.retention.bytes": "-1"}) as stack,
    ):
        folder = Path(name)
        bundle = _nominal_bundle(folder / "bundle")
        engine = bench_engine(bundle, 32, threads=1)
        return {
            "bench": "backlog",
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "cpu": cpu_model(),
            "engine_windows_per_s": engine["windows_per_s"],
            "slow_worker": _slow_worker(stack, folder, bundle, extent, engine["windows_per_s"]),
            "outage": _outage(stack, folder, bundle, extent, engine["windows_per_s"]),
        }


def told(result: Mapping[str, Any]) -> str:
    """The result for people."""
    slow, outage = result["slow_worker"], result["outage"]
    memory = "\n".join(
        f"  {name:<10} {one['first_mib']:>6} MiB at first, {one['largest_mib']:>6} at most"
        for name, one in slow["memory"].items()
    )
    return "\n".join(
        [
            f"{result['cpu']}; the engine alone: {result['engine_windows_per_s']} windows/s",
            f"slow worker: {slow['hours']:g} h of {slow['sensors']} sensors within {slow['fed_s']:.0f} s, "
            f"{slow['windows']} windows; the worker {slow['times_too_slow']:.1f} times too slow",
            memory,
            f"  largest lag {slow['largest_lag']} messages, as the worker's own log told: {slow['told_lag']}; "
            f"{slow['missing']} windows missing at the end",
            f"  caught up {slow['caught_up_s']:.0f} s after it was let go; {slow['late_alerts']} of {slow['alerts']} "
            f"alerts say that they are late, by up to {slow['largest_delay_s']:.0f} s",
            f"outage: {outage['hours']:g} h of {outage['sensors']} sensors, {outage['windows']} windows, "
            f"worked through at {outage['windows_per_s']} windows/s, {outage['ratio']:.2f} of the engine's alone",
            f"  a sensor whose partition had none of it: {outage['live_delay_s']['median']:.2f} s from its last sample "
            f"to the prediction meanwhile, {outage['live_delay_s']['max']:.2f} s at most "
            f"({outage['live_windows']} windows); {outage['missing']} windows missing at the end",
        ]
    )


def _slow_worker(stack: LocalStack, folder: Path, bundle: Path, extent: Extent, engine_per_s: float) -> dict[str, Any]:
    with _pipeline(stack, folder, bundle, "slow") as pipeline:
        agent = pipeline.start("window agent", "window")
        worker = pipeline.start("worker", "worker")
        samples = round(extent.slow_hours * 3600 * SAMPLE_RATE_HZ)
        sensors = [f"plant1/slow{number}" for number in range(extent.sensors)]
        processes = {"agent": agent.process.pid, "worker": worker.process.pid}
        processes |= {one.name: one.pid for one in stack.status() if one.pid}
        wanted = extent.sensors * _windows(samples, bundle)
        share = wanted / FEED_S / extent.too_slow / engine_per_s
        with _Memory(processes) as memory, ProgressWatch(pipeline.kafka, pipeline.groups) as watch:
            begun_s = time.monotonic()
            with _Slowed(worker, share):
                asyncio.run(pipeline.feed(sensors, samples, within_s=FEED_S))
                fed_s = time.monotonic() - begun_s
                made = len(pipeline.predicted())
            let_go_s = time.monotonic()
            found = pipeline.await_predictions(wanted)
            caught_up_s = time.monotonic() - let_go_s
        alerts = pipeline.alerts()
        delays = [alert.delay_s for alert in alerts if alert.delay_s]
        lags = [sum(standing.waiting.values()) for standing in watch.noted]
        return {
            "hours": extent.slow_hours,
            "sensors": extent.sensors,
            "fed_s": fed_s,
            "windows": wanted,
            "missing": wanted - len(found),
            "times_too_slow": wanted / max(1, made),
            "memory": memory.report(),
            "largest_lag": max(lags, default=0),
            "told_lag": max(pipeline.told_lags("worker"), default=0),
            "caught_up_s": caught_up_s,
            "alerts": len(alerts),
            "late_alerts": len(delays),
            "largest_delay_s": max(delays, default=0.0),
        }


def _outage(stack: LocalStack, folder: Path, bundle: Path, extent: Extent, engine_per_s: float) -> dict[str, Any]:
    with _pipeline(stack, folder, bundle, "outage") as pipeline:
        pipeline.start("window agent", "window")
        samples = round(extent.outage_hours * 3600 * SAMPLE_RATE_HZ)
        sensors, live = _apart(extent.sensors)
        asyncio.run(pipeline.feed(sensors, samples))
        wanted = extent.sensors * _windows(samples, bundle)
        pipeline.await_windows(wanted)
        stop = threading.Event()
        talking = threading.Thread(target=lambda: asyncio.run(pipeline.talk(live, stop)))
        pipeline.start("worker", "worker")
        talking.start()
        try:
            first_s = time.monotonic()
            before = len(pipeline.predicted())
            found = pipeline.await_predictions(wanted, of=set(sensors))
            seconds = time.monotonic() - first_s
        finally:
            stop.set()
            talking.join()
        delays = [delay_s for sensor, delay_s in pipeline.delays if sensor == live]
        per_s = (len(found) - before) / seconds
        return {
            "hours": extent.outage_hours,
            "sensors": extent.sensors,
            "windows": wanted,
            "missing": wanted - len(found),
            "windows_per_s": round(per_s, 1),
            "ratio": per_s / engine_per_s,
            "live_windows": len(delays),
            "live_delay_s": {"median": median(delays), "max": max(delays)} if delays else {"median": 0.0, "max": 0.0},
        }


@dataclass(slots=True)
class _Pipeline:
    """Processes on topics of their own, and what is fed to them and read from them."""

    children: Children
    kafka: KafkaSettings
    redis_url: str
    prefix: str
    ring: list[Samples]
    seen: set[tuple[str, int]] = field(default_factory=set)
    delays: list[tuple[str, float]] = field(default_factory=list)  #: s from the last sample to the prediction
    reader: Any = None

    @property
    def groups(self) -> dict[str, str]:
        return {self.kafka.windows_topic: f"{self.prefix}-workers"}

    def start(self, name: str, command: str) -> Child:
        child = self.children.start(name, [command])
        self.children.await_message([child], "ready", READY_S)
        return child

    async def feed(self, sensors: Sequence[str], samples: int, within_s: float | None = None) -> None:
        """Samples of each sensor, as fast as they are taken or evenly; the last one is of now."""
        epoch_ns = time.time_ns() - round((samples / SAMPLE_RATE_HZ - (within_s or 0.0)) * 1e9)
        begun_s = time.monotonic()
        async with Publisher(self.kafka.client_options(), self.kafka.frames_topic, drain_s=300.0) as publisher:
            for number, first in enumerate(range(0, samples, FRAME_SAMPLES)):
                if within_s is not None:
                    await asyncio.sleep(max(0.0, begun_s + within_s * first / samples - time.monotonic()))
                for channel, sensor in enumerate(sensors):
                    await publisher.publish(self._frame(sensor, channel, number, samples, epoch_ns))
            for sensor in sensors:
                await publisher.publish(self._end(sensor, samples, epoch_ns))

    async def talk(self, sensor: str, stop: threading.Event) -> None:
        """One sensor in real time, so much faster that it makes some windows a second."""
        epoch_ns = time.time_ns()
        rate = Fraction(SAMPLE_RATE_HZ * 16)
        async with Publisher(self.kafka.client_options(), self.kafka.frames_topic) as publisher:
            for number in range(10**9):
                if stop.is_set():
                    return
                frame = self._frame(sensor, 0, number, 2**62, epoch_ns, rate)
                due_s = (number + 1) * FRAME_SAMPLES / float(rate)
                await asyncio.sleep(max(0.0, due_s - (time.time_ns() - epoch_ns) / 1e9))
                await publisher.publish(frame)

    def _frame(
        self, sensor: str, channel: int, number: int, samples: int, epoch_ns: int, rate: Fraction | None = None
    ) -> Frame:
        ring = self.ring[channel % len(self.ring)]
        first = number * FRAME_SAMPLES
        count = min(FRAME_SAMPLES, samples - first)
        place = first % (len(ring) - FRAME_SAMPLES)
        rate = rate or Fraction(SAMPLE_RATE_HZ)
        return Frame(
            sensor=sensor,
            epoch_ns=epoch_ns,
            sequence=number,
            first_sample=first,
            time_ns=epoch_ns + int(first * 10**9 / rate),
            rate_hz=rate,
            samples=ring[place : place + count],
            volts_per_count=VOLTS_PER_COUNT,
        )

    def _end(self, sensor: str, samples: int, epoch_ns: int) -> Frame:
        rate = Fraction(SAMPLE_RATE_HZ)
        time_ns = epoch_ns + int(samples * 10**9 / rate)
        return Frame(sensor, epoch_ns, 10**6, samples, time_ns, rate, np.empty(0, np.int16), flags=Flags.END)

    def predicted(self) -> set[tuple[str, int]]:
        """Windows that have a prediction by now."""
        asyncio.run(self._read(0.5))
        return self.seen

    def await_predictions(self, wanted: int, of: set[str] | None = None) -> set[tuple[str, int]]:
        """Wait until so many windows, of these sensors, have one."""

        def there() -> set[tuple[str, int]]:
            return {one for one in self.seen if of is None or one[0] in of}

        before, since_s = -1, time.monotonic()
        while len(found := there()) < wanted:
            if len(found) > before:
                before, since_s = len(found), time.monotonic()
            if time.monotonic() - since_s > STALL_S:
                raise ProcessError(f"{len(found)} of {wanted} windows have a prediction, and nothing goes on")
            asyncio.run(self._read(2.0))
        return there()

    def await_windows(self, wanted: int) -> None:
        """Wait until so many are in Kafka."""

        async def count() -> int:
            async with reading(self.kafka, self.kafka.windows_topic) as consumer:
                return sum((await consumer.end_offsets(sorted(consumer.assignment()))).values())

        deadline = time.monotonic() + STALL_S + wanted / 50
        while asyncio.run(count()) < wanted:
            if time.monotonic() > deadline:
                raise ProcessError("the window agent does not get through")
            time.sleep(1.0)

    async def _read(self, within_s: float) -> None:
        """What came since the last look."""
        positions: dict[Any, int] = self.reader or {}
        async with reading(self.kafka, self.kafka.predictions_topic) as consumer:
            for partition, offset in positions.items():
                consumer.seek(partition, offset)
            deadline = time.monotonic() + within_s
            while time.monotonic() < deadline:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    for record in records:
                        prediction = decode_prediction(record.value or b"")
                        self.seen.add((prediction.sensor, prediction.start_sample))
                        self.delays.append((prediction.sensor, record.timestamp / 1e3 - prediction.end_time_ns / 1e9))
            self.reader = {one: await consumer.position(one) for one in consumer.assignment()}

    def alerts(self) -> list[Any]:
        """All that were raised."""

        async def read() -> list[Any]:
            async with Alerts(self.redis_url, self.prefix) as alerts:
                return [alert async for _, alert in alerts.history()]

        return asyncio.run(read())

    def told_lags(self, name: str) -> Iterator[int]:
        """What a process said of its lag in its log."""
        for child in self.children.started:
            if child.name == name:
                for line in child.log.read_text(errors="replace").splitlines():
                    with contextlib.suppress(ValueError, msgspec.DecodeError):
                        said = msgspec.json.decode(line)
                        if said.get("message") == "progress" and "lag" in said:
                            yield int(said["lag"])


@contextlib.contextmanager
def _pipeline(stack: LocalStack, folder: Path, bundle: Path, name: str) -> Iterator[_Pipeline]:
    names = ("frames", "windows", "predictions", "shadow_predictions", "deadletter")
    kafka = KafkaSettings.model_validate(
        {"bootstrap_servers": stack.kafka_bootstrap, "partitions": PARTITIONS}
        | {f"{one}_topic": f"{name}.{one}" for one in names}
    )
    asyncio.run(ensure_topics(kafka))
    variables = {
        "AEWATCH_KAFKA__BOOTSTRAP_SERVERS": stack.kafka_bootstrap,
        "AEWATCH_REDIS__URL": stack.redis_url,
        "AEWATCH_REDIS__PREFIX": name,
        "AEWATCH_MODEL__BUNDLE": str(bundle),
        "AEWATCH_MODEL__THREADS": "1",
        "AEWATCH_WINDOW_AGENT__GROUP": f"{name}-windows",
        "AEWATCH_WORKER__GROUP": f"{name}-workers",
        **{f"AEWATCH_KAFKA__{one.upper()}_TOPIC": f"{name}.{one}" for one in names},
    }
    with Children(folder / "logs" / name, variables) as children:
        yield _Pipeline(children, kafka, stack.redis_url, name, _ring())
        children.end()


class _Slowed:
    """Lets a process run for a share of each half second only."""

    def __init__(self, child: Child, share: float) -> None:
        self._child = child
        self._share = min(1.0, share)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        process = self._child.process
        while not self._stop.is_set():
            process.send_signal(signal.SIGSTOP)
            time.sleep(SLICE_S * (1 - self._share))
            process.send_signal(signal.SIGCONT)
            time.sleep(SLICE_S * self._share)


class _Memory:
    """Resident memory of processes, looked at twice a second."""

    def __init__(self, processes: Mapping[str, int]) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in processes.items()}
        self._seen: dict[str, list[int]] = {name: [] for name in processes}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> _Memory:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.5):
            for name, process in self._processes.items():
                with contextlib.suppress(psutil.Error):
                    self._seen[name].append(process.memory_info().rss)

    def report(self) -> dict[str, dict[str, int]]:
        """MiB at first, at most and at last."""
        return {
            name: {"first_mib": seen[0] >> 20, "largest_mib": max(seen) >> 20, "last_mib": seen[-1] >> 20}
            for name, seen in self._seen.items()
            if seen
        }


def _nominal_bundle(folder: Path) -> Path:
    """The demo's network, which takes samples of any rate as they are."""
    card = msgspec.structs.replace(read_card(demo_bundle_path()), name="nominal", rate_is_nominal=True)
    write_bundle(folder, card, load_weights(demo_bundle_path()))
    return folder


def _ring() -> list[Samples]:
    """Some seconds of simulated signals with events, int16."""
    names = [position.name for position in DEMO_POSITIONS[:2]]
    plan = Plan(3, RING_S, RATE_HZ, DEMO_POSITIONS[:2], plan_events(3, names, RING_S))
    return [
        SensorSimulator(
            position.name, position, RATE_HZ, plan.seed, [one for one in plan.events if one.sensor == position.name]
        ).samples(0, round(RING_S * RATE_HZ))
        for position in plan.positions
    ]


def _apart(count: int) -> tuple[list[str], str]:
    """Sensors with a backlog in all partitions but one, and one that is alone in that."""
    places = list(range(PARTITIONS))
    names = ((f"plant1/s{n}", DefaultPartitioner()(f"plant1/s{n}".encode(), places, places)) for n in range(10_000))
    crowd: list[str] = []
    live = ""
    for name, place in names:
        if place == PARTITIONS - 1:
            live = live or name
        elif len(crowd) < count:
            crowd.append(name)
        if live and len(crowd) == count:
            break
    return crowd, live


def _windows(samples: int, bundle: Path) -> int:
    card = read_card(bundle)
    return (samples - card.window_samples) // card.hop_samples + 1
