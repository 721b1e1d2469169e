"""Every command of docs/redis.md, on a real server with alerts in it."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from deploy.local_stack.valkey import Valkey
from stream.alarm_state import SensorState
from stream.alert_store import AlertStore, Keys
from stream.model_board import ModelBoard, WorkerReport
from stream.sensor_summary import summary_fields
from stream.subscribe import Alerts
from tests.alarm_windows import RULES, run, window
from tests.integration.redis_parts import own_server, work

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "redis.md").read_text(encoding="utf-8")
ROLLOUT = (ROOT / "docs" / "rollout.md").read_text(encoding="utf-8")
COMMANDS = [
    line.removeprefix("redis-cli ")
    for block in re.findall(r"```sh\n(.*?)```", TEXT + ROLLOUT, re.DOTALL)
    for line in block.splitlines()
    if not line.startswith("aewatch ")
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with own_server(tmp_path_factory.mktemp("redis-documentation")) as server:
        asyncio.run(fill(server.url))
        yield server


async def fill(url: str) -> None:
    async with AlertStore(url) as store:
        await work(store, [window(n, knock=0.9) for n in range(4)], RULES)
        await work(store, [window(n, sensor="plant9/old/ch0", drop=0.9) for n in range(4)], RULES)


@pytest.fixture
async def redis(server: Valkey) -> AsyncIterator[Any]:
    async with Redis.from_url(server.url) as client:
        yield client


def test_there_are_commands_to_try() -> None:
    assert len(COMMANDS) > 20
    assert not [command for command in COMMANDS if command.startswith(("redis-cli", "#"))]


async def test_every_command_is_accepted(redis: Any) -> None:
    for command in COMMANDS:
        if "<" in command:
            command, _, path = command.partition(" < ")
            arguments = [*shlex.split(command.removeprefix("-x ")), (ROOT / path).read_text(encoding="utf-8")]
        else:
            arguments = shlex.split(command)
        if arguments[0] == "SUBSCRIBE":
            listener = redis.pubsub()
            await listener.subscribe(*arguments[1:])
            assert (await listener.get_message(timeout=5))["type"] == "subscribe"
            await listener.aclose()
            continue
        await redis.execute_command(*arguments)


def test_every_field_of_a_sensor_is_told() -> None:
    state = SensorState()
    run([window(0)], state=state)
    [table] = re.findall(r"\| field \| what \|\n(.*?)\n\n", TEXT, re.DOTALL)
    named = set(re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.splitlines())))
    written = set(summary_fields(state, window(0))) | {"version", "state", "windows_position", "hits_position"}
    assert named == written


async def test_every_field_of_the_models_board_is_told(server: Valkey, redis: Any) -> None:
    report = WorkerReport("h-1-ab", "g", 5, "a" * 16, "one", "/one", 17)
    async with ModelBoard(server.url, "fields") as board:
        await board.order("live", version="b" * 16, name="b", path="/b", by="ann")
        await board.order("shadow", version="c" * 16, name="c", path="/c", by="ann")
        await board.exchange(report)
        written = {*await redis.hkeys(board.keys.model), *await redis.hkeys(board.keys.model_worker(report.worker))}
    told = set(re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in ROLLOUT.splitlines() if "|" in line)))
    assert {name.decode() for name in written} <= told


def test_every_key_is_told() -> None:
    keys = Keys("aewatch")
    models = (keys.model, keys.model_workers, keys.model_worker("<id>"))
    for name in (keys.alerts, keys.active, keys.sensors, keys.sensor("<id>"), *models):
        assert f"| `{name}` |" in TEXT


async def test_its_python_example_runs(server: Valkey) -> None:
    await fill(server.url)
    [example] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    imports, _, body = example.partition("\n\n")
    indented = "\n".join(f"    {line}" for line in body.splitlines())
    names: dict[str, Any] = {}
    exec(f"{imports}\nasync def example():\n{indented}".replace("redis://127.0.0.1:16379/0", server.url), names)
    await names["example"]()
    async with Alerts(server.url) as alerts:
        assert "ann" in [alert.by for alert in await alerts.active()]
