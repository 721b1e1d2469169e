from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest

from stream.records import Flags
from tests.integration.test_publisher import decoded, everything_in

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parent.parent.parent


class Logger:
    """A data logger: each connection gets the same 3,000 samples a second of two channels, counting."""

    def __init__(self) -> None:
        self.connections = 0

    async def serve(self, reader: Any, writer: Any) -> None:
        self.connections += 1
        samples = np.arange(32_000, dtype="<i2")
        rows = np.stack([samples, -samples], axis=1)
        try:
            for at in range(0, len(rows), 150):
                writer.write(rows[at : at + 150].tobytes())
                await writer.drain()
                await asyncio.sleep(0.05)
        except ConnectionError:
            pass


def start(path: Path, topics: Any, errors: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "AEWATCH_KAFKA__BOOTSTRAP_SERVERS": topics.bootstrap_servers,
        "AEWATCH_KAFKA__FRAMES_TOPIC": topics.frames_topic,
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "deploy.cli", "produce", str(path)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=errors.open("wb"))


async def pages(errors: Path) -> str:
    async with asyncio.timeout(30):
        while "pages at http://" not in (text := await asyncio.to_thread(errors.read_text)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return text.partition("pages at ")[2].split("/\n")[0]


def page(address: str, name: str) -> str:
    with urlopen(f"{address}/{name}", timeout=5) as answer:
        text: str = answer.read().decode()
    return text


async def test_sensors_of_a_file_reach_kafka_whole_and_their_state_is_told(topics: Any, tmp_path: Path) -> None:
    logger = Logger()
    server = await asyncio.start_server(logger.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    path = tmp_path / "sensors.toml"
    path.write_text(
        f"""
producer = {{ listen = "127.0.0.1:0", frame_ms = 20.0 }}
spool = {{ folder = "{tmp_path / "spool"}" }}
[source.logger]
kind = "pcm-tcp"
port = {port}
rate_hz = 3000
channels = 2
[source.away]
kind = "pcm-tcp"
port = 1
rate_hz = 3000
[[sensor]]
id = "p/a"
source = "logger"
[[sensor]]
id = "p/b"
source = "logger"
channel = 1
volts_per_count = 0.5
[[sensor]]
id = "p/away"
source = "away"
"""
    )
    errors = tmp_path / "stderr"
    process = start(path, topics, errors)
    try:
        address = await pages(errors)
        async with asyncio.timeout(30):
            while "p/away" not in (health := await asyncio.to_thread(page, address, "healthz")):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert json.loads(health)["retrying"] == ["p/away"]
        await asyncio.sleep(2.0)
        state = json.loads(await asyncio.to_thread(page, address, "sensors"))
        metrics = await asyncio.to_thread(page, address, "metrics")
        listed = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "deploy.cli", "sensors", "--producer", address, "--sensor", "p/a*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0
    finally:
        process.kill()
        server.close()
    one, other, away = state["sensors"]
    assert (one["state"], other["state"], away["state"]) == ("running", "running", "retrying")
    assert one["lag_s"] < 1
    assert one["gaps"] == 0
    assert "no connection" in away["error"]
    assert state["broker"].startswith("connected since")
    assert 'aewatch_sensor_up{sensor="p/away",source="away"} 0.0' in metrics
    assert 'aewatch_sensor_frames_total{sensor="p/a",source="logger"}' in metrics
    assert "aewatch_producer_spooled_frames 0.0" in metrics
    assert "p/away  retrying, no frame yet: 127.0.0.1:1: no connection" in listed.stdout
    assert "of 3,000 Hz" in listed.stdout

    found = decoded(await everything_in(topics.bootstrap_servers, topics.frames_topic))
    assert sorted(found) == ["p/a", "p/b"]
    assert logger.connections == 1
    for sensor, sign in (("p/a", 1), ("p/b", -1)):
        *frames, end = found[sensor]
        samples = np.concatenate([frame.samples for frame in frames])
        assert np.array_equal(samples, sign * np.arange(len(samples)))
        assert [frame.first_sample for frame in frames] == list(range(0, len(samples), 60))
        assert end.flags == Flags.END
        assert abs(frames[0].epoch_ns - time.time_ns()) < 120e9
    assert found["p/b"][0].volts_per_count == 0.5
    assert found["p/a"][0].epoch_ns == found["p/b"][0].epoch_ns


async def test_a_producer_that_is_killed_without_a_broker_sends_what_it_had_later(topics: Any, tmp_path: Path) -> None:
    server = await asyncio.start_server(Logger().serve, "127.0.0.1", 0)
    path = tmp_path / "sensors.toml"
    path.write_text(
        f"""
producer = {{ listen = "127.0.0.1:0", frame_ms = 20.0 }}
spool = {{ folder = "{tmp_path / "spool"}", sync_s = 0.1, give_up_s = 0.5 }}
[source.logger]
kind = "pcm-tcp"
port = {server.sockets[0].getsockname()[1]}
rate_hz = 3000
channels = 2
[[sensor]]
id = "p/a"
source = "logger"
"""
    )
    nobody = topics.model_copy(update={"bootstrap_servers": "127.0.0.1:1"})
    for who, sign in ((nobody, signal.SIGKILL), (topics, signal.SIGTERM)):
        errors = tmp_path / f"stderr-{sign.name}"
        process = start(path, who, errors)
        try:
            await pages(errors)
            await asyncio.sleep(2.5)
            process.send_signal(sign)
            await asyncio.to_thread(process.wait, 40)
        finally:
            process.kill()
    server.close()
    frames = decoded(await everything_in(topics.bootstrap_servers, topics.frames_topic))["p/a"]
    before, after = sorted({frame.epoch_ns for frame in frames})
    spooled = [frame for frame in frames if frame.epoch_ns == before]
    assert all(frame.flags & Flags.HISTORICAL for frame in spooled)
    samples = np.concatenate([frame.samples for frame in spooled])
    assert len(samples) >= 3_000  # 2.5 s less the start and what was not synced
    assert np.array_equal(samples, np.arange(len(samples)))
    assert any(not frame.flags & Flags.HISTORICAL for frame in frames if frame.epoch_ns == after)
