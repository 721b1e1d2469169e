"""Agents and workers that hang, are stopped, or lose Kafka or Redis: who notices, what is said, and what is left."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from deploy.local_stack import LocalStack
from deploy.local_stack.keeper import die_with_parent
from deploy.processes import Child
from deploy.settings import KafkaSettings
from stream.alerts import Alert
from stream.lag_watch import EXIT_STUCK
from stream.watchdog import EXIT_HUNG
from tests.integration.conftest import discard_data, start_on_free_ports
from tests.integration.pipeline_run import PipelineRun, classify, write_recording

pytestmark = pytest.mark.integration

#: The command, in a process in which something was made to hang before.
LAUNCH = """
import sys, time
{fault}
from deploy.cli import main
main(sys.argv[1:])
"""
MODEL_HANGS = """
from model.engine import Engine
infer, calls = Engine.infer, []
def hang_in_the_model(self, windows):
    calls.append(len(windows))
    if len(calls) == 2:
        time.sleep(600)
    return infer(self, windows)
Engine.infer = hang_in_the_model
"""
WORKER_BLOCKS_ITS_LOOP = """
from stream.worker import Worker
async def block(self, *arguments):
    time.sleep(600)
Worker._settle = block
"""
AGENT_BLOCKS_ITS_LOOP = """
from stream.window_agent import WindowAgent
async def block(self, *arguments):
    time.sleep(600)
WindowAgent._take = block
"""
NOTHING_IS_FETCHED = """
import asyncio
from aiokafka.consumer.fetcher import Fetcher
from stream import lag_watch
async def fetch_nothing(self, *arguments, timeout=0.05, **others):
    await asyncio.sleep(timeout)
    return {}
Fetcher.fetched_records = fetch_nothing
lag_watch.PATIENCE_S, lag_watch.LOOK_EVERY_S = 6.0, 1.0
"""
IMPATIENT = """
from stream import lag_watch
lag_watch.PATIENCE_S, lag_watch.HELD_PATIENCE_S, lag_watch.LOOK_EVERY_S = 6.0, 6.0, 1.0
"""


@pytest.fixture
def pipeline(tmp_path: Path, topics: KafkaSettings, redis_url: str, unique: str) -> Iterator[PipelineRun]:
    run = PipelineRun(tmp_path, topics, redis_url, unique)
    with run.children:
        yield run


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recording(tmp_path_factory.mktemp("recording") / "plant.wav", duration_s=8.0, channels=2)


@pytest.fixture(scope="module")
def expected(recording: Path) -> list[Alert]:
    """What the oracle says of the recording."""
    _, alerts = classify(recording, run="truth")
    assert alerts
    return alerts


def decided(alerts: list[Alert]) -> list[tuple[Any, ...]]:
    """What is the same in two runs of different names; ids are not."""
    return sorted(
        (one.sensor.split("/")[-1], one.condition, one.number, one.first_sample, one.time_ns) for one in alerts
    )


def start_with(fault: str, run: PipelineRun, kind: str, **variables: str) -> Child:
    log = run.children.logs / f"{kind}-with-a-fault-{len(run.children.started)}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AEWATCH_")}
    environment |= {"AEWATCH_CONFIG": "", "AEWATCH_LOG__FORMAT": "json", **run.variables, **variables}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH.format(fault=fault), kind],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=die_with_parent(),
        )
    child = Child(log.stem, process, log)
    run.children.started.append(child)
    run.children.await_message([child], "ready", 120)
    return child


def logged(child: Child, message: str) -> list[dict[str, Any]]:
    events = []
    for line in child.log.read_text(errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if message in event["message"]:
            events.append(event)
    return events


def wait_for(condition: Callable[[], object], what: str, within_s: float = 90.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.2)


def await_alerts(run: PipelineRun, expected: list[Alert]) -> None:
    wait_for(lambda: len(run.alerts()) >= len(expected), "all alerts are there")
    time.sleep(1.0)
    by_id = [sorted(alerts, key=lambda alert: alert.id) for alerts in (run.alerts(), expected)]
    assert by_id[0] == by_id[1], "every field of every alert, each once"


def test_a_model_that_hangs_is_told_with_its_stack_and_another_worker_takes_over(
    pipeline: PipelineRun, recording: Path, expected: list[Alert]
) -> None:
    pipeline.start("window")
    hanging = start_with(MODEL_HANGS, pipeline, "worker", AEWATCH_WORKER__INFERENCE_LIMIT_S="5")
    pipeline.replay(recording, run="truth")
    assert hanging.wait(60) == EXIT_HUNG, hanging.tail()
    [told] = logged(hanging, "inference hangs")
    assert (told["level"], told["device"], told["limit_s"]) == ("CRITICAL", "cpu", 5.0)
    assert told["batch_windows"] > 0
    assert 5.0 <= told["for_s"] < 7.0, "found within two seconds of the limit"
    assert "hang_in_the_model" in told["stack"]

    pipeline.start("worker")
    await_alerts(pipeline, expected)


@pytest.mark.parametrize(
    ("kind", "fault", "setting"),
    [
        ("window", AGENT_BLOCKS_ITS_LOOP, "AEWATCH_WINDOW_AGENT__STALL_LIMIT_S"),
        ("worker", WORKER_BLOCKS_ITS_LOOP, "AEWATCH_WORKER__STALL_LIMIT_S"),
    ],
)
def test_an_event_loop_that_stands_still_is_told_with_its_stack_and_ends_the_process(
    kind: str, fault: str, setting: str, pipeline: PipelineRun, recording: Path
) -> None:
    blocked = start_with(fault, pipeline, kind, **{setting: "5"})
    if kind == "worker":
        pipeline.start("window")
    pipeline.replay(recording, run="two")
    assert blocked.wait(60) == EXIT_HUNG, blocked.tail()
    [told] = logged(blocked, "event loop hangs")
    assert told["level"] == "CRITICAL"
    assert "in block" in told["stack"]


@pytest.mark.parametrize(("kind", "topic"), [("window", "frames"), ("worker", "windows")])
def test_a_consumer_that_stops_fetching_is_told_with_what_waits_and_ends_the_process(
    kind: str, topic: str, pipeline: PipelineRun, recording: Path
) -> None:
    stuck = start_with(NOTHING_IS_FETCHED, pipeline, kind)
    if kind == "worker":
        pipeline.start("window")
    pipeline.replay(recording, run="stuck")
    assert stuck.wait(60) == EXIT_STUCK, stuck.tail()
    [told] = logged(stuck, "nothing is fetched from")
    assert told["level"] == "CRITICAL"
    assert f"{topic} for 6 s, but messages wait: " in told["message"]


def test_processes_without_partitions_stand_by(
    tmp_path: Path, kafka: str, make_topics: Callable[..., KafkaSettings], redis_url: str, unique: str
) -> None:
    run = PipelineRun(tmp_path, make_topics(kafka, partitions=1), redis_url, unique)
    with run.children:
        each = [start_with(IMPATIENT, run, kind) for kind in ("window", "window", "worker", "worker")]
        time.sleep(10.0)
        assert all(one.process.poll() is None for one in each), "\n".join(one.tail() for one in each)


def test_a_process_that_is_stopped_for_longer_than_every_limit_goes_on_afterwards(
    pipeline: PipelineRun, recording: Path, expected: list[Alert]
) -> None:
    limits = ("WORKER__STALL_LIMIT_S", "WINDOW_AGENT__STALL_LIMIT_S", "WORKER__INFERENCE_LIMIT_S")
    pipeline.variables |= {f"AEWATCH_{name}": "8" for name in limits}
    agent, worker = pipeline.start("window"), pipeline.start("worker")
    replay = pipeline.children.start("replay", ["replay", str(recording), "--rate", "2", "--run", "truth"])
    wait_for(lambda: pipeline.messages(pipeline.topics.predictions_topic) > 0, "windows come in")
    for stopped in (agent, worker):
        stopped.process.send_signal(signal.SIGSTOP)
    time.sleep(12.0)
    for stopped in (agent, worker):
        stopped.process.send_signal(signal.SIGCONT)
    assert replay.wait(90) == 0, replay.tail()
    await_alerts(pipeline, expected)
    for stopped in (agent, worker):
        assert stopped.process.poll() is None, stopped.tail()
        assert not logged(stopped, "hangs")


class Watched:
    """An agent and a worker with their pages, on servers that may be stopped."""

    def __init__(self, stack: LocalStack, run: PipelineRun) -> None:
        self.stack = stack
        self.run = run
        self.systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.systemd.bind(run.variables["NOTIFY_SOCKET"])
        self.told_systemd: list[bytes] = []
        threading.Thread(target=self._listen, daemon=True).start()
        self.agent, self.worker = run.start("window"), run.start("worker")
        self.roles = (self.agent, self.worker)

    def _listen(self) -> None:
        while message := self.systemd.recv(100):
            self.told_systemd.append(message)

    def ask(self, role: Child, page: str) -> tuple[int, str]:
        [told] = logged(role, "pages")
        try:
            with urllib.request.urlopen(f"http://{told['address']}/{page}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def all_ready(self) -> bool:
        return all(self.ask(role, "readyz")[0] == 200 for role in self.roles)

    def metric(self, role: Child, name: str) -> float:
        """The sum over all labels."""
        lines = self.ask(role, "metrics")[1].splitlines()
        values = [float(line.rpartition(" ")[2]) for line in lines if line.split("{")[0].split(" ")[0] == name]
        assert values, f"{name} is not among\n" + "\n".join(lines)
        return sum(values)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    import asyncio

    from deploy.topics import ensure_topics

    folder = tmp_path_factory.mktemp("watched")
    with ExitStack() as cleanup:
        stack = start_on_free_ports(folder / "stack")
        cleanup.callback(discard_data, stack)
        cleanup.callback(stack.stop)
        topics = KafkaSettings(bootstrap_servers=stack.kafka_bootstrap)
        asyncio.run(ensure_topics(topics))
        run = PipelineRun(folder, topics, stack.redis_url, "watched")
        run.variables |= {
            "AEWATCH_WORKER__LISTEN": "127.0.0.1:0",
            "AEWATCH_WINDOW_AGENT__LISTEN": "127.0.0.1:0",
            "NOTIFY_SOCKET": str(folder / "notify"),
        }
        cleanup.enter_context(run.children)
        found = Watched(stack, run)
        cleanup.callback(found.systemd.shutdown, socket.SHUT_RD)
        wait_for(found.all_ready, "both are ready")
        yield found


def test_systemd_is_told_that_they_are_ready_and_then_again_and_again_that_they_live(watched: Watched) -> None:
    def last_words() -> list[bytes]:
        return watched.told_systemd[-6:]

    wait_for(lambda: watched.told_systemd.count(b"READY=1") == 2, "both said so")
    wait_for(lambda: last_words() == 6 * [b"WATCHDOG=1"], "they go on saying that they live", within_s=20)


def test_what_was_done_and_what_waits_can_be_scraped(watched: Watched, recording: Path, expected: list[Alert]) -> None:
    watched.run.replay(recording, run="truth")
    await_alerts(watched.run, expected)
    agent, worker = watched.roles
    windows = watched.run.messages(watched.run.topics.windows_topic)
    wait_for(lambda: watched.metric(worker, "aewatch_worker_windows_total") == windows, "all windows are counted")
    assert watched.metric(agent, "aewatch_window_windows_total") == windows
    assert watched.metric(worker, "aewatch_worker_alerts_total") == len(expected)
    assert watched.metric(worker, "aewatch_worker_inference_seconds_total") > 0
    assert watched.metric(worker, "aewatch_worker_redis_up") == 1
    for role, name in ((agent, "window"), (worker, "worker")):
        wait_for(lambda role=role, name=name: watched.metric(role, f"aewatch_{name}_partitions") == 4, "it has looked")
        lag = f"aewatch_{name}_lag_messages"
        wait_for(lambda role=role, lag=lag: watched.metric(role, lag) == 0, "nothing waits")
        assert watched.metric(role, f"aewatch_{name}_kafka_up") == 1
        assert watched.metric(role, f"aewatch_{name}_alive") == 1
        assert watched.metric(role, "process_resident_memory_bytes") > 2**20
    model = [
        line for line in watched.ask(worker, "metrics")[1].splitlines() if line.startswith("aewatch_worker_model_")
    ]
    assert 'device="cpu"' in model[0]


def test_without_redis_a_worker_is_not_ready_but_alive_and_its_lag_grows_until_redis_is_back(
    watched: Watched, recording: Path, expected: list[Alert]
) -> None:
    before = len(watched.run.alerts())
    watched.stack.valkey.service.stop()
    wait_for(lambda: watched.ask(watched.worker, "readyz")[0] == 503, "the worker is not ready", within_s=20)
    status, told = watched.ask(watched.worker, "healthz")
    assert status == 200
    assert json.loads(told)["status"] == "degraded"
    assert "Redis" in json.loads(told)["reasons"][0]
    watched.run.replay(recording, run="five")
    wait_for(lambda: watched.metric(watched.worker, "aewatch_worker_lag_messages") > 0, "windows wait")
    assert watched.ask(watched.agent, "readyz")[0] == 200, "it does not need Redis"
    watched.stack.valkey.start(owned=True)
    watched.stack.valkey.wait_ready(30)
    wait_for(watched.all_ready, "ready again")
    wait_for(lambda: len(watched.run.alerts()) >= before + len(expected), "the alerts are there")
    assert decided(watched.run.alerts()[before:]) == decided(expected)


def test_after_a_broker_was_killed_both_go_on_by_themselves(
    watched: Watched, recording: Path, expected: list[Alert]
) -> None:
    before = len(watched.run.alerts())
    replay = watched.run.children.start("replay-six", ["replay", str(recording), "--rate", "2", "--run", "six"])
    wait_for(lambda: len(watched.run.alerts()) > before, "the first alert is there")
    watched.stack.kafka.service.kill()
    wait_for(
        lambda: all(watched.ask(role, "readyz")[0] == 503 for role in watched.roles), "neither is ready", within_s=60
    )
    for role in watched.roles:
        status, told = watched.ask(role, "healthz")
        assert status == 200, told
        assert "Kafka has not answered" in told
    watched.stack.kafka.start(owned=True)
    watched.stack.kafka.wait_ready(90)
    assert replay.wait(90) == 0, replay.tail()
    wait_for(watched.all_ready, "ready again")
    wait_for(lambda: len(watched.run.alerts()) >= before + len(expected), "the alerts are there")
    time.sleep(1.0)
    assert decided(watched.run.alerts()[before:]) == decided(expected)
    assert all(role.process.poll() is None for role in watched.roles), "the same processes as before"
