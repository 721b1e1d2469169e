"""How fast the whole local path is, beside the engine alone, and how much memory each process takes.

The path: a recording of eight channels replayed at full speed → Kafka → window agent → Kafka → worker → Kafka and
Redis, each a process of its own, on the brokers of the local stack. Timed from the first frame's to the last
prediction's timestamp in Kafka.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from deploy.demo_report import expected_windows
from deploy.local_stack import LocalStack
from deploy.pipeline import window_spec
from deploy.processes import Child, Children, ProcessError
from deploy.settings import KafkaSettings
from deploy.simulation import Plan, write_wav
from deploy.topic_reader import reading
from deploy.topics import ensure_topics
from model.bundle import read_card
from producers.propagation import DEMO_POSITIONS
from producers.simulator import RATE_HZ
from stream.predictions import decode_prediction

CHANNELS = 8
READY_S = 180.0
STALL_S = 120.0


@dataclass(frozen=True, slots=True)
class Case:
    """One bundle to measure."""

    name: str
    bundle: Path


def bench_pipeline(cases: Sequence[Case], target_s: float, batch_windows: int) -> dict[str, Any]:
    """Measure each case for about `target_s` seconds; one JSON-ready object.

    Raises
    ------
    ProcessError
        If a process of the pipeline ends or stands still.
    """
    results = []
    with tempfile.TemporaryDirectory(prefix="aewatch-bench-") as name:
        folder = Path(name)
        with LocalStack(folder / "stack", None, None) as stack:
            for case in cases:
                print(f"{case.name}: the engine alone …", file=sys.stderr)
                engine = _engine_alone(case, batch_windows)
                print(f"{case.name}: {engine['windows_per_s']} windows/s; the whole path …", file=sys.stderr)
                results.append(_measure(case, engine, stack, folder, target_s, batch_windows))
    return {
        "bench": "pipeline",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "cases": results,
    }


def _engine_alone(case: Case, batch_windows: int) -> dict[str, Any]:
    """In a process of its own, as in the worker."""
    command = [sys.executable, "-m", "deploy.cli", "bench", "engine", "--json"]
    command += ["--bundle", str(case.bundle), "--batch", str(batch_windows)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ProcessError(f"the engine benchmark ended with status {done.returncode}:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _measure(
    case: Case, engine: dict[str, Any], stack: LocalStack, folder: Path, target_s: float, batch_windows: int
) -> dict[str, Any]:
    spec = window_spec(read_card(case.bundle))
    windows_each = max(4, math.ceil(engine["windows_per_s"] * target_s / CHANNELS))
    recording = folder / f"{case.name}.wav"
    samples = spec.length + (windows_each - 1) * spec.hop
    write_wav(recording, Plan(1, samples / RATE_HZ, RATE_HZ, DEMO_POSITIONS[:CHANNELS], ()))
    windows = CHANNELS * expected_windows(samples, spec)
    topics = {name: f"{case.name}.{name}" for name in ("frames", "windows", "predictions", "deadletter")}
    variables = {
        "AEWATCH_KAFKA__BOOTSTRAP_SERVERS": stack.kafka_bootstrap,
        "AEWATCH_REDIS__URL": stack.redis_url,
        "AEWATCH_REDIS__PREFIX": case.name,
        "AEWATCH_MODEL__BUNDLE": str(case.bundle),
        "AEWATCH_WINDOW_AGENT__GROUP": f"{case.name}-windows",
        "AEWATCH_WORKER__GROUP": f"{case.name}-workers",
        "AEWATCH_WORKER__BATCH_WINDOWS": str(batch_windows),
        **{f"AEWATCH_KAFKA__{name.upper()}_TOPIC": topic for name, topic in topics.items()},
    }
    kafka = KafkaSettings.model_validate(
        {"bootstrap_servers": stack.kafka_bootstrap} | {f"{name}_topic": topic for name, topic in topics.items()}
    )
    asyncio.run(ensure_topics(kafka))
    with Children(folder / "logs" / case.name, variables) as children:
        pipeline = [children.start("window agent", ["window"]), children.start("worker", ["worker"])]
        children.await_message(pipeline, "ready", READY_S)
        producer = children.start("producer", ["replay", str(recording), "--rate", "max", "--run", "bench"])
        services = {one.name: one.pid for one in stack.status() if one.pid}
        seconds, memory = asyncio.run(_follow(kafka, windows, [*pipeline, producer], services))
        children.end()
    recording.unlink()
    return {
        "case": case.name,
        "bundle_version": engine["version"],
        "windows": windows,
        "seconds": round(seconds, 2),
        "pipeline_windows_per_s": round(windows / seconds, 2),
        "pipeline_msamples_per_s": round(CHANNELS * samples / seconds / 1e6, 2),
        "engine_windows_per_s": engine["windows_per_s"],
        "ratio": round(windows / seconds / engine["windows_per_s"], 3),
        "peak_rss_mib": memory,
        "engine": engine["engine"],
    }


async def _follow(
    kafka: KafkaSettings, windows: int, children: Sequence[Child], services: dict[str, int]
) -> tuple[float, dict[str, int]]:
    """Seconds from the first frame to the last prediction, and the peak resident memory of each process, MiB."""
    processes = {child.name: psutil.Process(child.process.pid) for child in children}
    processes |= {name: psutil.Process(pid) for name, pid in services.items()}
    memory = dict.fromkeys(processes, 0)
    seen: set[tuple[str, int]] = set()
    last_ms = 0
    progressed = time.monotonic()
    async with reading(kafka, kafka.predictions_topic) as consumer:
        while len(seen) < windows:
            for records in (await consumer.getmany(timeout_ms=250)).values():
                for record in records:
                    prediction = decode_prediction(record.value or b"")
                    seen.add((prediction.sensor, prediction.start_sample))
                    last_ms = max(last_ms, record.timestamp)
                    progressed = time.monotonic()
            for name, process in processes.items():
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    memory[name] = max(memory[name], process.memory_info().rss >> 20)
            for child in children:
                child.check()
            if time.monotonic() - progressed > STALL_S:
                raise ProcessError(f"no prediction for {STALL_S:g} s, {len(seen)} of {windows} are there")
    async with reading(kafka, kafka.frames_topic) as consumer:
        begins = await consumer.beginning_offsets(sorted(consumer.assignment()))
        ends = await consumer.end_offsets(sorted(consumer.assignment()))
        first_ms = min([(await consumer.getone(one)).timestamp for one in begins if begins[one] < ends[one]])
    return (last_ms - first_ms) / 1000, memory


def cpu_model() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
