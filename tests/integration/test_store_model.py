"""The simulation's model of `alert_store.lua` beside the real function on a real server: they answer alike."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream.alert_store import FUNCTION, AlertStore
from tests.simulation.store import StoreModel

pytestmark = pytest.mark.integration

SENSORS = st.sampled_from(["a", "b", "plant/ü"])
POSITIONS = st.sampled_from(["", *(f"{epoch:019d}{start:019d}" for epoch in (0, 1) for start in (0, 4, 10**18))])
ALERTS = st.lists(
    st.tuples(
        st.sampled_from(['{"id":"x-1"}', "{}", "é"]),
        st.sampled_from(["open", "close", "none"]),
        st.sampled_from(["x", "y"]),
        st.just("knock"),
        st.just("raised"),
        st.just("high"),
    ),
    max_size=3,
)
FIELDS = st.lists(st.tuples(st.sampled_from(["open", "label", "windows"]), st.sampled_from(["", "1", "é"])), max_size=3)


@st.composite
def commands(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "sensor": draw(SENSORS),
        "version": draw(st.sampled_from(["stored", "stored", "stored", "0", "1", "7", "-1", "x", ""])),
        "mode": draw(st.sampled_from(["advance", "advance", "operate", "else"])),
        "windows": draw(POSITIONS | st.just("12")),
        "hits": draw(POSITIONS),
        "state": draw(st.sampled_from(["", "{}", "ü"])),
        "end": draw(st.sampled_from(["", "12.5", "1700000000.000000001", "1e5", "3."])),
        "keep": draw(st.sampled_from(["0", "0", "1000000", "", "-1"])),
        "fields": draw(FIELDS),
        "alerts": draw(ALERTS),
        "wrong_key": draw(st.sampled_from([None] * 8 + [0, 1, 2, 3])),
        "cut": draw(st.sampled_from([0] * 8 + [1, 5])),
    }


def words(command: dict[str, Any], prefix: str, stored_version: bytes, model: StoreModel) -> list[Any]:
    keys = [f"{prefix}:sensor:{command['sensor']}", f"{prefix}:alerts", f"{prefix}:active", f"{prefix}:sensors"]
    if command["wrong_key"] is not None:
        of_another_kind = keys[(command["wrong_key"] + 1) % 4]
        if of_another_kind.encode() in model.hashes | model.streams | model.sorted_sets:
            keys[command["wrong_key"]] = of_another_kind
    version = stored_version if command["version"] == "stored" else command["version"]
    fields = [part for pair in command["fields"] for part in pair]
    alerts = [part for alert in command["alerts"] for part in alert]
    arguments = [
        version,
        command["mode"],
        command["windows"],
        command["hits"],
        command["state"],
        command["sensor"],
        command["end"],
        f"{prefix}:alerts",
        command["keep"],
        len(command["fields"]),
        *fields,
        len(command["alerts"]),
        *alerts,
    ]
    return ["FCALL", FUNCTION, 4, *keys, *arguments[: len(arguments) - command["cut"]]]


def stored(server: redis.Redis, prefix: str) -> dict[bytes, Any]:
    found: dict[bytes, Any] = {}
    for key in server.keys(f"{prefix}:*"):
        kind = server.type(key)
        if kind == b"hash":
            found[key] = server.hgetall(key)
        elif kind == b"stream":
            found[key] = [entry for _, entry in server.xrange(key)]
        else:
            found[key] = dict(server.zrange(key, 0, -1, withscores=True))
    return found


@pytest.fixture
async def server(redis_url: str) -> redis.Redis:
    async with AlertStore(redis_url, "loads-the-function") as store:
        await store._load_function()
    return redis.Redis.from_url(redis_url)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(commands(), min_size=1, max_size=12))
def test_any_commands_are_answered_alike_and_leave_the_same_behind(
    server: redis.Redis, given_commands: list[dict[str, Any]]
) -> None:
    prefix, model = f"model-{secrets.token_hex(8)}", StoreModel()
    for command in given_commands:
        key = f"{prefix}:sensor:{command['sensor']}".encode()
        [version, _] = model.execute(["HMGET", key, "version", "state"])
        sent = words(command, prefix, version or b"0", model)
        try:
            answer = server.execute_command(*sent)
        except redis.ResponseError as error:
            answer = error
        modelled = model.execute(sent)
        if isinstance(answer, redis.ResponseError):
            assert isinstance(modelled, redis.ResponseError), (answer, modelled)
            assert str(modelled).removeprefix("ERR ") == str(answer).removeprefix("ERR ")
            continue
        assert not isinstance(modelled, redis.ResponseError), (answer, modelled)
        if answer[0] == b"applied":
            # The server's stream ids are times.
            assert len(answer[2]) == len(modelled[2])
            answer, modelled = answer[:2], modelled[:2]
        assert modelled == answer
        assert server.execute_command("HMGET", key, "version", "state") == model.execute(
            ["HMGET", key, "version", "state"]
        )
    assert model.hashes | model.streams | model.sorted_sets == stored(server, prefix)
    for key in server.keys(f"{prefix}:*"):
        server.delete(key)
