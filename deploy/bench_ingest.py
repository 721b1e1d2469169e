"""How fast one producer process gets frames into Kafka, beside Kafka's own `ProducerPerformance`, and how many sensors
it serves in real time.

All take their turns on the broker of a local stack, each turn with a topic of its own, round after round, so that what
else the machine does meets all of them. What is compared is MB/s (10⁶ bytes) of acknowledged messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import psutil
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.partitioner import DefaultPartitioner

from deploy.bench_pipeline import cpu_model
from deploy.ingest_load import FullPace, RealTime, Way
from deploy.local_stack import LocalStack, kafka_jars
from deploy.local_stack.java import find_java
from deploy.local_stack.keeper import die_with_parent
from deploy.processes import ProcessError
from deploy.settings import KafkaSettings
from deploy.topic_reader import count_messages
from deploy.topics import ensure_topics
from producers.publisher import PRODUCER_OPTIONS

#: What the broker itself does without; it comes from where the other jars do.
TOOLS_JAR = kafka_jars.Jar(
    "org.apache.kafka",
    "kafka-tools",
    "4.3.1",
    698_668,
    "62f3c5dd7aa3442d4c5bc6a95f86e2502178ea09de8e27f74d9563bf955e253c",
)
#: What Kafka's own script for it sets.
TOOLS_JVM = ("-Xmx512M", "-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-Duser.language=en")
PRODUCER_PERFORMANCE = "ProducerPerformance"
WAYS: tuple[Way, ...] = ("spool", "one-a-message", "aiokafka")

PARTITIONS = 4
SENSORS = 8
TURN_S = 300.0
WARM_UP_BYTES = 8_192  #: of a message

RATE_HZ = 16_000
FRAME_MS = 50.0
MOST_LAG_S = 0.5
SETTLE_S = 2.0
READY_S = 60.0
FIRST_SENSORS = 64
MOST_SENSORS = 8_192
SENSOR_STEP = 0.1  #: the search ends when the next number is closer than this share

_SUMMARY = re.compile(r"^(\d+)( steady state)? records sent, ([\d.]+) records/sec .* 99\.9th\.$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How much is measured."""

    sizes: Sequence[int] = (8_192, 65_536)  #: of a message, bytes; the first is the one that `ratio` is of
    rounds: int = 3
    turn_bytes: int = 800_000_000  #: in one turn
    real_time_s: float = 6.0  #: that a number of sensors has to be served
    most_sensors: int = MOST_SENSORS
    profile: bool = False


QUICK = Extent(rounds=1, turn_bytes=40_000_000, real_time_s=2.0, most_sensors=FIRST_SENSORS)


def bench_ingest(extent: Extent) -> dict[str, Any]:
    """Measure; one JSON-ready object.

    Raises
    ------
    ProcessError
        If a producer ends with an error or stands still.
    StackError
        If Kafka, or its `ProducerPerformance`, is not to be had.
    """
    java = find_java()
    class_path = [*kafka_jars.provide_jars(), _tools_jar()]
    with (
        tempfile.TemporaryDirectory(prefix="aewatch-bench-") as folder,
        LocalStack(Path(folder) / "stack", None, None) as stack,
    ):
        broker = _Broker(stack.kafka_bootstrap)
        kafka = [str(java.command), *TOOLS_JVM, "-cp", os.pathsep.join(map(str, class_path))]
        # The broker compiles its code in its first seconds; whoever comes first would pay for all.
        with broker.topic("warm-up") as topic:
            _producer_performance(broker, kafka, topic, WARM_UP_BYTES, extent.turn_bytes // 2 // WARM_UP_BYTES)
        sizes = [_compare(broker, kafka, size, extent) for size in extent.sizes]
        sensors = _most_sensors(broker, extent)
        profile = _profile(broker, extent) if extent.profile else None
    return {
        "bench": "ingest",
        "ratio": sizes[0]["ratio"],
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "kafka": kafka_jars.kafka_version(),
        "java": java.version,
        "aiokafka": version("aiokafka"),
        "numpy": version("numpy"),
        "producer_options": kafka_options(),
        "sizes": sizes,
        "real_time": sensors,
        **({"profile": profile} if profile else {}),
    }


def told(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [f"{result['cpu']}, {result['cores']} cores"]
    for size in result["sizes"]:
        lines.append(f"messages of {size['message_bytes']} bytes, ours over Kafka's: {size['ratio']}")
        for one in size["producers"]:
            rate = one["mb_per_s"]
            lines.append(
                f"  {one['producer']}: {rate['median']} MB/s ({rate['min']} to {rate['max']}), "
                f"{one['frames_per_s']} frames/s; {one['frames']} frames in {one['messages']} messages"
            )
    real_time = result["real_time"]
    lines.append(
        f"{real_time['sensors']} sensors of {real_time['rate_hz']} Hz in real time by one process, "
        f"{real_time['cpu_share']} of a core" + (" (no more were tried)" if real_time["at_limit"] else "")
    )
    if "profile" in result:
        lines.append("where the time of our producer goes, with the profiler's own cost in it:")
        lines += [f"  {share:6.1%}  {part}" for part, share in result["profile"]["parts"].items() if share >= 0.005]
        lines += [f"  {one['share']:6.1%}  {one['function']}" for one in result["profile"]["functions"]]
    return "\n".join(lines)


def kafka_options() -> dict[str, str]:
    """The publisher's options, as Kafka's own client calls them."""
    return {
        "acks": str(PRODUCER_OPTIONS["acks"]),
        "enable.idempotence": str(PRODUCER_OPTIONS["enable_idempotence"]).lower(),
        "batch.size": str(PRODUCER_OPTIONS["max_batch_size"]),
        "linger.ms": str(PRODUCER_OPTIONS["linger_ms"]),
        "max.request.size": str(PRODUCER_OPTIONS["max_request_size"]),
    }


def parse_summary(output: str, message_bytes: int) -> tuple[float, float | None]:
    """MB/s of a run of ProducerPerformance, and of its steady state where it was asked for one.

    Its own "MB" are 2^20 bytes and rounded, so that records a second are what is read.

    Raises
    ------
    ProcessError
        If there is no summary in what it printed.
    """
    found = {bool(steady): float(rate) * message_bytes / 1e6 for _, steady, rate in _SUMMARY.findall(output)}
    if False not in found:
        raise ProcessError(f"{PRODUCER_PERFORMANCE} printed no summary:\n{output[-2_000:]}")
    return found[False], found.get(True)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range, rounded."""
    return {"median": round(median(values), 1), "min": round(min(values), 1), "max": round(max(values), 1)}


def even_sensors(count: int, partitions: int) -> tuple[str, ...]:
    """Sensor ids whose keys fall on all partitions alike.

    Raises
    ------
    ValueError
        If `count` is not a multiple of `partitions`.
    """
    if count % partitions:
        raise ValueError(f"{count} sensors on {partitions} partitions; give a multiple")
    places = list(range(partitions))
    room = dict.fromkeys(places, count // partitions)
    chosen: list[str] = []
    number = 0
    while len(chosen) < count:
        sensor = f"bench/{number}"
        number += 1
        place = DefaultPartitioner()(sensor.encode(), places, places)
        if room[place]:
            room[place] -= 1
            chosen.append(sensor)
    return tuple(chosen)


def largest_served(served: Callable[[int], bool], first: int, most: int, step: float = SENSOR_STEP) -> int:
    """The largest number that is served, to a share of `step`: doubling from `first`, then halving what is open.

    At most `most`; 0 if not even one is served.
    """
    good, bad, number = 0, most + 1, min(first, most)
    while bad - good > max(1, step * good):
        if served(number):
            good = number
        else:
            bad = number
        number = min(2 * number, most) if bad > most else (good + bad) // 2
    return good


def keeps_up(lags_s: Sequence[float]) -> bool:
    """Whether a process that is so far behind, from the beginning to the end of a trial, goes on like that for ever."""
    half = len(lags_s) // 2
    return max(lags_s) < MOST_LAG_S and max(lags_s[half:]) <= max(lags_s[:half] or lags_s) + MOST_LAG_S / 5


@dataclass(frozen=True, slots=True)
class _Broker:
    bootstrap: str

    @contextlib.contextmanager
    def topic(self, name: str) -> Iterator[str]:
        """A fresh one, deleted afterwards: what was measured must not fill the disk."""
        kafka = KafkaSettings(bootstrap_servers=self.bootstrap, frames_topic=name, partitions=PARTITIONS)
        asyncio.run(ensure_topics(kafka))
        try:
            yield name
        finally:
            asyncio.run(self._delete(name))

    def messages(self, topic: str) -> int:
        """How many are in it."""
        return asyncio.run(count_messages(KafkaSettings(bootstrap_servers=self.bootstrap), topic))

    async def _delete(self, name: str) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()
        try:
            await admin.delete_topics([name])
        finally:
            await admin.close()


def _tools_jar() -> Path:
    folder = kafka_jars.jar_dir()
    path = folder / TOOLS_JAR.name
    if not path.is_file():
        kafka_jars.download_jar(TOOLS_JAR, folder, lambda size: None)
    return path


def _compare(broker: _Broker, kafka: Sequence[str], message_bytes: int, extent: Extent) -> dict[str, Any]:
    """All ways beside ProducerPerformance with messages of one size."""
    messages = max(1, extent.turn_bytes // message_bytes // SENSORS) * SENSORS
    rates: dict[str, list[float]] = {name: [] for name in (PRODUCER_PERFORMANCE, *WAYS)}
    steady_rates: list[float] = []
    cpu_s: dict[str, list[float]] = {name: [] for name in WAYS}
    in_topic: dict[str, int] = {}
    for number in range(extent.rounds):
        with broker.topic(f"kafka-{message_bytes}-{number}") as topic:
            rate, steady = _producer_performance(broker, kafka, topic, message_bytes, messages)
            in_topic[PRODUCER_PERFORMANCE] = broker.messages(topic)
        rates[PRODUCER_PERFORMANCE].append(rate)
        steady_rates.append(steady)
        for way in WAYS:
            with broker.topic(f"{way}-{message_bytes}-{number}") as topic:
                load = _full_pace(broker, topic, way, message_bytes, messages)
                took = _child(load)
                in_topic[way] = broker.messages(topic)
            rates[way].append(messages * message_bytes / took["seconds"] / 1e6)
            cpu_s[way].append(took["cpu_s"])
        told = ", ".join(f"{name} {rates[name][-1]:.0f}" for name in rates)
        print(f"{message_bytes} bytes, round {number + 1} of {extent.rounds}, MB/s: {told}", file=sys.stderr)
    return {
        "message_bytes": message_bytes,
        **compared(rates, steady_rates, messages, message_bytes, in_topic),
        # What other processes on the machine change least.
        "cpu_us_per_frame": {way: round(1e6 * median(seconds) / messages, 1) for way, seconds in cpu_s.items()},
    }


def compared(
    rates: dict[str, list[float]],
    steady_rates: Sequence[float],
    frames: int,
    frame_bytes: int,
    messages: dict[str, int],
) -> dict[str, Any]:
    """What the rounds say: medians, and their ratios to ProducerPerformance's.

    Parameters
    ----------
    rates
        MB/s of each round by producer, `PRODUCER_PERFORMANCE` among them.
    steady_rates
        Of it, without its beginning, when the JVM is still compiling.
    frames, frame_bytes
        Of one turn.
    messages
        In which they were, by producer.
    """
    kafka = median(rates[PRODUCER_PERFORMANCE])
    steady = median(steady_rates)
    return {
        "ratio": round(median(rates["spool"]) / kafka, 3),
        "ratio_one_a_message": round(median(rates["one-a-message"]) / kafka, 3),
        "ratio_to_steady": round(median(rates["spool"]) / steady, 3),
        "ratio_aiokafka": round(median(rates["aiokafka"]) / kafka, 3),
        "steady_mb_per_s": spread(steady_rates),
        "producers": [
            {
                "producer": name,
                "mb_per_s": spread(values),
                "frames_per_s": round(median(values) * 1e6 / frame_bytes),
                "frames": frames,
                "messages": messages[name],
            }
            for name, values in rates.items()
        ],
    }


def _full_pace(
    broker: _Broker, topic: str, way: Way, message_bytes: int, messages: int, profile: bool = False
) -> FullPace:
    return FullPace(
        way=way,
        bootstrap=broker.bootstrap,
        topic=topic,
        sensors=even_sensors(SENSORS, PARTITIONS),
        message_bytes=message_bytes,
        messages=messages,
        profile=profile,
    )


def _producer_performance(
    broker: _Broker, kafka: Sequence[str], topic: str, message_bytes: int, messages: int
) -> tuple[float, float]:
    """MB/s of the whole run, and of its steady state: all but the first quarter."""
    options = {"bootstrap.servers": broker.bootstrap, **kafka_options()}
    command = [*kafka, "org.apache.kafka.tools.ProducerPerformance", "--topic", topic, "--throughput", "-1"]
    command += ["--num-records", str(messages), "--record-size", str(message_bytes)]
    command += ["--warmup-records", str(messages // 4)]
    command += ["--command-property", *(f"{name}={value}" for name, value in options.items())]
    whole, steady = parse_summary(_output(PRODUCER_PERFORMANCE, command), message_bytes)
    if steady is None:
        raise ProcessError(f"{PRODUCER_PERFORMANCE} told nothing of its steady state")
    return whole, steady


def _load_command(load: FullPace | RealTime) -> list[str]:
    return [sys.executable, "-m", "deploy.ingest_load", json.dumps(dataclasses.asdict(load))]


def _child(load: FullPace) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(_output(f"producer ({load.way})", _load_command(load)))
    return result


def _output(name: str, command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=TURN_S,
            preexec_fn=die_with_parent(),
        )
    except subprocess.TimeoutExpired:
        raise ProcessError(f"{name} did not end within {TURN_S:g} s") from None
    if done.returncode:
        raise ProcessError(f"{name} ended with status {done.returncode}:\n{done.stdout[-2_000:]}{done.stderr[-4_000:]}")
    return done.stdout


def _profile(broker: _Broker, extent: Extent) -> dict[str, Any]:
    size = extent.sizes[0]
    messages = max(1, extent.turn_bytes // 2 // size // SENSORS) * SENSORS
    with broker.topic("profile") as topic:
        result: dict[str, Any] = _child(_full_pace(broker, topic, "spool", size, messages, profile=True))["profile"]
    return {"message_bytes": size, "frames": messages, **result}


def _most_sensors(broker: _Broker, extent: Extent) -> dict[str, Any]:
    trials: list[dict[str, Any]] = []

    def served(sensors: int) -> bool:
        with broker.topic(f"sensors-{len(trials)}") as topic:
            load = RealTime(
                bootstrap=broker.bootstrap, topic=topic, sensors=sensors, rate_hz=RATE_HZ, frame_ms=FRAME_MS
            )
            trial = {"sensors": sensors, **_real_time(load, extent.real_time_s)}
        trials.append(trial)
        told = "served" if trial["served"] else "not served"
        print(f"{sensors} sensors of {RATE_HZ} Hz: {told}, {trial['cpu_share']} of a core", file=sys.stderr)
        return bool(trial["served"])

    most = largest_served(served, FIRST_SENSORS, extent.most_sensors)
    return {
        "rate_hz": RATE_HZ,
        "frame_ms": FRAME_MS,
        "sensors": most,
        "cpu_share": next((trial["cpu_share"] for trial in reversed(trials) if trial["sensors"] == most), None),
        "at_limit": most == extent.most_sensors,
        "trials": trials,
    }


def _real_time(load: RealTime, for_s: float) -> dict[str, Any]:
    """One process with so many sensors: how far it is behind, looked at once a second as a dashboard does."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            _load_command(load),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            preexec_fn=die_with_parent(),
        )
        # One that stands still must not hold this one up.
        limit = threading.Timer(READY_S + 3 * for_s, process.kill)
        limit.start()
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            if not address:
                errors.seek(0)
                raise ProcessError(f"the producer of {load.sensors} sensors did not start:\n{errors.read().decode()}")
            time.sleep(SETTLE_S)
            return _watched(psutil.Process(process.pid), address, load, for_s)
        except psutil.Error as error:
            errors.seek(0)
            raise ProcessError(f"the producer of {load.sensors} sensors ended: {errors.read().decode()}") from error
        finally:
            limit.cancel()
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(SETTLE_S)
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _watched(process: psutil.Process, address: str, load: RealTime, for_s: float) -> dict[str, Any]:
    lags_s: list[float] = []
    owed_s: list[float] = []
    frames_per_s = load.sensors * 1000 / load.frame_ms
    whole = True
    begun_s, begun_cpu_s = time.perf_counter(), _cpu_s(process)
    while (passed_s := time.perf_counter() - begun_s) < for_s:
        time.sleep(max(0.0, min(1.0, for_s - passed_s)))
        try:
            with urlopen(f"http://{address}/sensors", timeout=5) as answer:
                state = json.load(answer)
        except (URLError, OSError, ValueError):
            whole = False
            break
        totals = state["totals"]
        lags_s.append(max(for_s if one["lag_s"] is None else one["lag_s"] for one in state["sensors"]))
        owed_s.append((totals["frames"] - totals["acknowledged_frames"]) / frames_per_s)
        whole = whole and not totals["spooled_frames"] and not totals["historical_frames"]
    wall_s = time.perf_counter() - begun_s
    return {
        "served": whole and bool(lags_s) and keeps_up(lags_s) and keeps_up(owed_s),
        "cpu_share": round((_cpu_s(process) - begun_cpu_s) / wall_s, 2),
        "lag_s": round(max(lags_s, default=0.0), 3),
        "unacknowledged_s": round(max(owed_s, default=0.0), 3),
    }


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
