"""Models swapped, refused and shadowed while windows stream through real workers, a real Kafka and a real Valkey."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiokafka import AIOKafkaProducer

from deploy.settings import KafkaSettings
from deploy.topic_reader import reading
from model.architecture import EcapaDims
from model.bundle import BundleCard
from model.engine import Engine
from model.untrained import write_untrained_bundle
from stream.detect import predict
from stream.model_board import ModelBoard, Outcome, WorkerReport
from stream.model_commands import Overtaken, answers_to
from stream.predictions import Prediction, decode_prediction
from stream.records import Window, encode_window
from stream.shadow import WAITING_BATCHES, Shadow
from tests.integration.pipeline_run import PipelineRun

pytestmark = pytest.mark.integration

SAMPLES, HOP, RATE_HZ = 4096, 2048, 500_000
TINY = EcapaDims(channels=16, mfa_channels=24, attention=8, se_bottleneck=8, embedding=8)
SLOW = EcapaDims(channels=256, mfa_channels=768, attention=64)  # takes a while to load and to check
#: Every fault class is raised with a sensor's first window and never cleared: three alerts a sensor, whatever is heard.
EAGER = {
    "AEWATCH_ALARMS__FAULTS__RAISE_THRESHOLD": "0",
    "AEWATCH_ALARMS__FAULTS__CLEAR_THRESHOLD": "0",
    "AEWATCH_ALARMS__FAULTS__K": "1",
    "AEWATCH_ALARMS__FAULTS__N": "1",
}
FAULTS = {"friction", "knock", "drop"}


class Bundles:
    """Untrained bundles for the same windows, made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.one = self._write("one", seed=1)
        self.two = self._write("two", seed=2)
        self.slow = self._write("slow", network=SLOW)
        self.wide = self._write("wide", window_samples=2 * SAMPLES)

    def _write(self, name: str, **changes: Any) -> BundleCard:
        sizes = {"network": TINY, "window_samples": SAMPLES, "hop_samples": HOP} | changes
        return write_untrained_bundle(self.folder / name, **sizes)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    return Bundles(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def pipeline(
    tmp_path: Path, topics: KafkaSettings, redis_url: str, unique: str, bundles: Bundles
) -> Iterator[PipelineRun]:
    run = PipelineRun(tmp_path, topics, redis_url, unique)
    run.variables |= EAGER | {
        "AEWATCH_MODEL__BUNDLE": str(bundles.folder / "one"),
        "AEWATCH_MODEL__STORE": str(tmp_path / "store"),
    }
    with run.children:
        yield run


def model(run: PipelineRun, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`aewatch model …` as an operator gives it."""
    command = [sys.executable, "-m", "deploy.cli", "model", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=operators_variables(run))


def operators_variables(run: PipelineRun) -> dict[str, str]:
    others = {name: value for name, value in os.environ.items() if not name.startswith("AEWATCH_")}
    return others | run.variables | {"AEWATCH_CONFIG": ""}


def workers(run: PipelineRun) -> list[WorkerReport]:
    async def ask() -> list[WorkerReport]:
        async with ModelBoard(run.redis_url, run.prefix) as board:
            return await board.workers()

    return asyncio.run(ask())


def wait_for(condition: Any, what: str, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.05)


class Load:
    """Windows of ever more sensors, published until it is told to stop."""

    def __init__(self, kafka: KafkaSettings, most_sensors: int = 400) -> None:
        self._kafka = kafka
        self._most_sensors = most_sensors
        self._stop = threading.Event()
        self.windows: list[Window] = []

    @contextmanager
    def flowing(self) -> Iterator[None]:
        thread = threading.Thread(target=lambda: asyncio.run(self._publish()))
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    async def _publish(self) -> None:
        rng = np.random.default_rng(5)
        async with AIOKafkaProducer(linger_ms=5, **self._kafka.client_options()) as producer:
            lap = 0
            while not self._stop.is_set():
                # Every tenth lap four more sensors begin.
                for sensor in range(min(self._most_sensors, 4 + 4 * (lap // 10))):
                    if (sensor + lap) % 8 and lap >= 10:
                        continue
                    one = window(f"plant1/pump{sensor}/ch0", lap, rng.normal(0, 1000, SAMPLES).astype(np.int16))
                    await producer.send(self._kafka.windows_topic, encode_window(one), key=one.sensor.encode())
                    self.windows.append(one)
                lap += 1
                await asyncio.sleep(0.02)


def window(sensor: str, number: int, samples: Any) -> Window:
    return Window(
        sensor=sensor,
        epoch_ns=1_700_000_000 * 10**9,
        start_sample=number * HOP,
        source_count=SAMPLES,
        source_rate_hz=Fraction(RATE_HZ),
        time_ns=1_700_000_000 * 10**9 + number * HOP * 2_000,
        rate_hz=Fraction(RATE_HZ),
        samples=samples,
    )


def identity(one: Window | Prediction) -> tuple[str, int, int]:
    return (one.sensor, one.epoch_ns, one.start_sample)


def predictions_by_partition(kafka: KafkaSettings, topic: str, count: int) -> dict[int, list[Prediction]]:
    """All predictions of a topic in the order of their offsets, once there are `count` of them and no more come."""

    async def read() -> dict[int, list[Prediction]]:
        found: dict[int, list[Prediction]] = {}
        quiet_at = time.monotonic() + 60
        async with reading(kafka, topic) as consumer:
            while time.monotonic() < quiet_at:
                for partition, records in (await consumer.getmany(timeout_ms=200)).items():
                    decoded = [decode_prediction(record.value) for record in records]
                    found.setdefault(partition.partition, []).extend(decoded)
                if sum(map(len, found.values())) >= count:
                    quiet_at = min(quiet_at, time.monotonic() + 1.5)
        return found

    return asyncio.run(read())


def test_two_workers_swap_under_load_without_losing_or_doubling_a_window(
    pipeline: PipelineRun, bundles: Bundles
) -> None:
    for _ in range(2):
        pipeline.start("worker")
    added = model(pipeline, "add", str(bundles.folder / "two"))
    assert added.returncode == 0, added.stderr
    load = Load(pipeline.topics)
    with load.flowing():
        wait_for(lambda: all(report.windows > 200 for report in workers(pipeline)), "both at work")
        used = model(pipeline, "use", bundles.two.version)
        before = len(load.windows)
        wait_for(lambda: len(load.windows) > before + 500, "windows after the swap")
    assert used.returncode == 0, used.stdout + used.stderr
    assert used.stdout.count(f"swapped  {bundles.one.version} → {bundles.two.version}") == 2

    found = predictions_by_partition(pipeline.topics, pipeline.topics.predictions_topic, len(load.windows))
    counted = Counter(identity(one) for partition in found.values() for one in partition)
    assert set(counted.values()) == {1}, "one prediction a window"
    assert counted.keys() == {identity(one) for one in load.windows}
    for partition in found.values():
        versions = [one.model_version for one in partition]
        changes = [pair for pair in pairwise(versions) if pair[0] != pair[1]]
        assert changes == [(bundles.one.version, bundles.two.version)]
        for sensor in {one.sensor for one in partition}:
            starts = [one.start_sample for one in partition if one.sensor == sensor]
            assert starts == sorted(starts)

    judged_by = {identity(one): one.model_version for partition in found.values() for one in partition}
    alerts = pipeline.alerts()
    sensors = {one.sensor for one in load.windows}
    assert Counter((one.sensor, one.condition) for one in alerts if one.condition in FAULTS) == Counter(
        (sensor, fault) for sensor in sensors for fault in FAULTS
    )
    assert len({one.id for one in alerts}) == len(alerts)
    assert all(one.model_version == judged_by[one.sensor, one.epoch_ns, one.start_sample] for one in alerts)
    assert {one.model_version for one in alerts} == {bundles.one.version, bundles.two.version}

    again = model(pipeline, "use", bundles.two.version)
    assert again.returncode == 0
    assert again.stdout.count("already") == 2


def test_a_bundle_that_does_not_fit_is_refused_with_the_reason_and_the_old_one_stays(
    pipeline: PipelineRun, bundles: Bundles, tmp_path: Path
) -> None:
    pipeline.start("worker")
    assert model(pipeline, "use", str(bundles.folder / "two")).returncode == 0
    refused = model(pipeline, "use", str(bundles.folder / "wide"))
    assert refused.returncode == 1
    assert f"its window is {2 * SAMPLES} samples, the stream's {SAMPLES} samples" in refused.stdout
    assert "withdrawn" in refused.stderr
    broken = tmp_path / "broken"
    write_untrained_bundle(broken, network=TINY, window_samples=SAMPLES, hop_samples=HOP, seed=9)
    (broken / "model.safetensors").write_bytes(b"\0" * 1000)
    told = model(pipeline, "use", str(broken))
    assert told.returncode == 1
    assert "safetensors" in told.stdout
    nowhere = model(pipeline, "use", "no-such-version")
    assert nowhere.returncode == 1
    assert "aewatch model list" in nowhere.stderr

    # What was wanted before is wanted again, of those that begin now too.
    pipeline.start("worker")
    wait_for(lambda: len(workers(pipeline)) == 2, "the second worker has shown itself")
    assert {report.version for report in workers(pipeline)} == {bundles.two.version}
    load = Load(pipeline.topics)
    with load.flowing():
        time.sleep(0.5)
    found = predictions_by_partition(pipeline.topics, pipeline.topics.predictions_topic, len(load.windows))
    assert {one.model_version for part in found.values() for one in part} == {bundles.two.version}
    shown = model(pipeline, "status")
    assert shown.returncode == 0
    assert f"wanted  {bundles.two.version}" in shown.stdout


def test_without_a_worker_the_order_waits_for_one(pipeline: PipelineRun, bundles: Bundles) -> None:
    ordered = model(pipeline, "use", str(bundles.folder / "two"))
    assert ordered.returncode == 1
    assert "no worker runs" in ordered.stderr
    assert f"wanted  {bundles.two.version}" in model(pipeline, "status").stdout
    child = pipeline.start("worker")
    assert child.said("beginning with the model that was ordered, not with the settings' one")
    wait_for(lambda: [report.version for report in workers(pipeline)] == [bundles.two.version], "it runs the wanted")


def test_a_worker_that_starts_where_the_wanted_model_does_not_fit_begins_with_its_settings_and_says_so(
    pipeline: PipelineRun, bundles: Bundles
) -> None:
    assert model(pipeline, "use", str(bundles.folder / "wide")).returncode == 1
    child = pipeline.start("worker")
    assert child.said("THE MODEL THAT IS WANTED DOES NOT RUN HERE; beginning with the settings' one")
    wait_for(lambda: len(workers(pipeline)) == 1, "it has shown itself")
    [report] = workers(pipeline)
    assert report.version == bundles.one.version
    assert report.answer is not None
    assert report.answer.outcome == Outcome.REFUSED


def test_a_worker_killed_while_it_loads_comes_back_with_the_wanted_model(
    pipeline: PipelineRun, bundles: Bundles
) -> None:
    worker = pipeline.start("worker")
    load = Load(pipeline.topics, most_sensors=8)
    command = [sys.executable, "-m", "deploy.cli", "model", "use", str(bundles.folder / "slow")]
    with load.flowing():
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=operators_variables(pipeline)) as use:

            def loads() -> bool:
                return any(one.answer and one.answer.outcome == Outcome.LOADING for one in workers(pipeline))

            wait_for(loads, "it loads")
            worker.process.kill()
            pipeline.start("worker")
            output, _ = use.communicate(timeout=60)
        time.sleep(1.0)
    assert use.returncode == 0, output
    assert f"runs {bundles.slow.version}" in output
    assert "gone before it answered" in output
    found = pipeline.predictions(len(load.windows))
    assert {identity(one) for one in found} == {identity(one) for one in load.windows}
    assert {one.model_version for one in found} == {bundles.one.version, bundles.slow.version}
    alerts = pipeline.alerts()
    assert len({one.id for one in alerts}) == len(alerts)


def test_a_shadow_is_published_and_compared_and_raises_nothing(pipeline: PipelineRun, bundles: Bundles) -> None:
    pipeline.start("worker")
    shadowed = model(pipeline, "shadow", str(bundles.folder / "two"))
    assert shadowed.returncode == 0, shadowed.stdout + shadowed.stderr
    load = Load(pipeline.topics)
    with load.flowing():
        wait_for(lambda: len(load.windows) > 300, "load")
    found = predictions_by_partition(pipeline.topics, pipeline.topics.predictions_topic, len(load.windows))
    assert {one.model_version for part in found.values() for one in part} == {bundles.one.version}

    def done() -> bool:
        [report] = workers(pipeline)
        count = report.comparison.windows if report.comparison else 0
        return count + report.shadow_skipped == len(load.windows)

    wait_for(done, "every window is compared or counted as skipped")
    [report] = workers(pipeline)
    assert report.comparison is not None
    compared = report.comparison
    assert compared.windows > 0
    shadow = predictions_by_partition(pipeline.topics, pipeline.topics.shadow_predictions_topic, compared.windows)
    said = {identity(one): one for partition in shadow.values() for one in partition}
    assert len(said) == compared.windows
    engine = Engine(bundles.folder / "two", threads=1)
    windows = [one for one in load.windows if identity(one) in said]
    assert predict(engine, windows, 40.0) == [said[identity(one)] for one in windows], "the bits of the model alone"
    live = {identity(one): one for partition in found.values() for one in partition}
    alike = sum(live[key].label == one.label for key, one in said.items())
    assert compared.agreed == alike

    alerts = pipeline.alerts()
    assert {one.model_version for one in alerts} == {bundles.one.version}
    assert len(alerts) == 3 * len({one.sensor for one in load.windows})
    shown = model(pipeline, "status").stdout
    assert f"shadow  {bundles.two.version}" in shown
    assert f"of {compared.windows:,} windows alike" in shown

    assert model(pipeline, "shadow", "off").returncode == 0
    assert "shadow  none" in model(pipeline, "status").stdout
    misfit = model(pipeline, "shadow", str(bundles.folder / "wide"))
    assert misfit.returncode == 1
    assert "its window is" in misfit.stdout


class Engines:
    """Stand-ins for a shadow's engine that break, or are slow."""

    def __init__(self, engine: Engine) -> None:
        self.card = engine.card
        self.engine = engine
        self.hold = threading.Event()
        self.breaks = False

    def infer(self, windows: Any) -> Any:
        self.hold.wait(20)
        if self.breaks:
            raise RuntimeError("the engine broke")
        return self.engine.infer(windows)


async def test_a_shadow_skips_what_it_has_no_time_for_and_ends_alone_when_it_breaks(
    topics: KafkaSettings, bundles: Bundles
) -> None:
    live = Engine(bundles.folder / "one", threads=1)
    windows = [window("s", number, np.full(SAMPLES, number, np.int16)) for number in range(3)]
    judged = predict(live, windows, 40.0)
    engine: Any = Engines(Engine(bundles.folder / "two", threads=1))
    reasons: list[str] = []
    shadow = Shadow(client_options=topics.client_options(), topic=topics.shadow_predictions_topic)
    shadow.offer(windows, judged)
    assert shadow.skipped == 0, "where there is no shadow nothing is skipped"
    await shadow.switch_on(lambda: engine, reasons.append)
    for _ in range(WAITING_BATCHES + 5):
        shadow.offer(windows, judged)
        await asyncio.sleep(0.1)
    assert shadow.skipped >= 3 * 4
    engine.hold.set()
    for _ in range(1200):
        if shadow.comparison and shadow.comparison.windows + shadow.skipped == 3 * (WAITING_BATCHES + 5):
            break
        await asyncio.sleep(0.05)
    else:
        pytest.fail(f"compared {shadow.comparison}, skipped {shadow.skipped}")
    engine.breaks = True
    shadow.offer(windows, judged)
    for _ in range(200):
        if reasons:
            break
        await asyncio.sleep(0.05)
    assert reasons == ["RuntimeError: the engine broke"]
    assert shadow.version == ""
    shadow.offer(windows, judged)
    await shadow.close()


async def test_of_two_orders_the_later_one_stands_and_the_earlier_is_told(redis_url: str, unique: str) -> None:
    async with ModelBoard(redis_url, unique) as board:
        first = await board.order("live", version="a" * 16, name="a", path="/a", by="ann")
        second = await board.order("live", version="b" * 16, name="b", path="/b", by="bob")
        assert second.generation > first.generation
        with pytest.raises(Overtaken):
            [answer async for answer in answers_to(board, first, "live", 5.0)]
        assert not await board.withdraw("live", first, None)
        assert await board.withdraw("live", second, first)
        orders = await board.orders()
        assert orders.live is not None
        assert (orders.live.version, orders.live.by) == ("a" * 16, "ann")
        assert orders.live.generation > second.generation
        assert orders.shadow is None
        assert await board.withdraw("live", orders.live, None)
        assert (await board.orders()).live is None


async def test_what_a_worker_reports_is_what_is_read(redis_url: str, unique: str) -> None:
    report = WorkerReport("h-1-ab", "g", 5, "a" * 16, "one", "/one", 17)
    async with ModelBoard(redis_url, unique) as board:
        order = await board.order("live", version="b" * 16, name="b", path="/b", by="ann")
        assert (await board.exchange(report)).live == order
        assert await board.workers() == [report]
        await board.leave(report.worker)
        assert await board.workers() == []
        assert [one async for one in answers_to(board, replace(order), "live", 1.0)] == []
