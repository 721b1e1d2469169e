"""Redis behind TLS, a password and access lists: the real code with the rights of docs/security.md, and no others."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis as sync_redis
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from deploy.settings import RedisSettings
from stream.alert_filter import AlertFilter
from stream.alert_store import AlertStore, StoreUnavailable, is_transient
from stream.model_board import ModelBoard, WorkerReport
from stream.model_rollout import await_orders
from stream.redis_connection import connect, way_out
from stream.subscribe import Alerts
from stream.tls_files import TlsFilesError
from tests.alarm_windows import RULES, window
from tests.certificates import Authority
from tests.integration.guarded_kafka import SECURITY
from tests.integration.redis_parts import work
from tests.integration.tls_redis import TlsServer, installed_server, tls_server

pytestmark = pytest.mark.integration

PASSWORDS = {"worker": "secret1", "reader": "secret2", "operator": "secret3", "models": "secret4"}
LISTS = re.findall(r"^redis-cli (ACL SETUSER .*)$", SECURITY.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture(scope="module", params=["installed", "terminator"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    if request.param == "installed" and installed_server() is None:
        pytest.skip("no valkey-server or redis-server with TLS on the path; the terminator stands for it")
    with tls_server(tmp_path_factory.mktemp("tls"), request.param) as server:
        with sync_redis.Redis.from_url(server.plain_url) as client:
            for line in LISTS:
                client.execute_command(*shlex.split(line))
        yield server


@pytest.fixture
def shown(server: TlsServer) -> Iterator[TlsServer]:
    """The server, whose certificate this test may change."""
    yield server
    server.show(server.authority.sign("first"))


def settings(server: TlsServer, role: str = "worker", **fields: Any) -> RedisSettings:
    login = {"username": f"aewatch-{role}", "password": SecretStr(PASSWORDS[role])}
    return RedisSettings(**({"url": SecretStr(server.url()), "ca_file": server.authority.ca} | login | fields))


def url(server: TlsServer, role: str) -> str:
    return settings(server, role).connection_url()


async def refused(where: str) -> Exception:
    """What is raised; it must be an error that is not waited out."""
    async with connect(where) as client:
        with pytest.raises((RedisError, OSError)) as error:
            await client.hgetall("aewatch:model")
    assert not is_transient(error.value), str(error.value)
    return error.value


async def test_each_role_can_do_its_work_over_tls_with_the_documented_rights(server: TlsServer) -> None:
    async with AlertStore(url(server, "worker")) as store:
        await work(store, [window(n, sensor="fresh", knock=0.9) for n in range(20, 23)], RULES)
    report = WorkerReport("h-1-ab", "g", 5, "a" * 16, "one", "/one", 17)
    async with ModelBoard(url(server, "worker")) as at_work, ModelBoard(url(server, "models")) as models:
        order = await models.order("live", version="b" * 16, name="b", path="/b", by="ann")
        assert (await at_work.exchange(report)).live == order
        assert await models.withdraw("live", order, None)
        assert await models.workers() == [report]
        await at_work.forget_dead()
        await at_work.leave(report.worker)
    async with Alerts(url(server, "reader")) as alerts:
        found = [alert async for _, alert in alerts.history(wanted=AlertFilter(sensors=["fresh"]))]
        assert (await anext(alerts.follow("0")))[1] == found[0]
        assert "fresh" in [sensor.sensor for sensor in await alerts.sensors()]
        assert found[0].episode in [alert.episode for alert in await alerts.active()]
    async with Alerts(url(server, "operator")) as alerts:
        assert (await alerts.acknowledge(found[0].episode, by="ann")).by == "ann"
        await alerts.shelve("fresh", "knock", by="ann", for_s=60)
        await alerts.unshelve("fresh", "knock", by="ann")
    async with connect(url(server, "worker")) as client:
        assert await client.ping()


@pytest.mark.parametrize(
    ("role", "command"),
    [
        ("worker", "FLUSHALL"),
        ("worker", "KEYS *"),
        ("worker", "CONFIG GET requirepass"),
        ("worker", "EVAL 'return 1' 0"),
        ("worker", "HSET aewatch:model version x"),
        ("worker", "HSET other:sensor:a state x"),
        ("worker", "DEL aewatch:alerts"),
        ("reader", "DEL aewatch:alerts"),
        ("reader", "HSET aewatch:model version x"),
        ("reader", "FCALL aewatch_apply_v1 1 aewatch:alerts"),
        ("reader", "PUBLISH aewatch:alerts x"),
        ("operator", "FUNCTION LOAD x"),
        ("operator", "HSET aewatch:model version x"),
        ("models", "HSET aewatch:active a b"),
        ("models", "XRANGE aewatch:alerts - +"),
    ],
)
async def test_what_is_not_granted_is_refused(server: TlsServer, role: str, command: str) -> None:
    async with connect(url(server, role)) as client:
        with pytest.raises(NoPermissionError) as error:
            await client.execute_command(*shlex.split(command))
    assert "docs/security.md" in way_out(error.value)


async def test_a_worker_without_a_right_is_told_so_and_does_not_try_again(server: TlsServer) -> None:
    async with AlertStore(url(server, "worker")) as store:
        await work(store, [window(0, sensor="mine")], RULES)
    begun_s = time.monotonic()
    async with AlertStore(url(server, "reader"), retry_s=30.0) as store:
        with pytest.raises(NoPermissionError):
            await work(store, [window(1, sensor="mine")], RULES)
    async with Redis.from_url(server.plain_url) as admin:
        # It may call the function, which then may not do what it does.
        await admin.execute_command("ACL", "SETUSER", "half", "on", ">pw", "~*", "+fcall", "+hmget", "+type", "&*")
    async with AlertStore(settings(server, username="half", password=SecretStr("pw")).connection_url()) as store:
        with pytest.raises(ResponseError) as error:
            await work(store, [window(1, sensor="mine")], RULES)
    assert "docs/security.md" in way_out(error.value)
    assert time.monotonic() - begun_s < 5


async def test_a_wrong_password_is_told_at_once_also_by_who_waits_for_an_absent_server(server: TlsServer) -> None:
    wrong = settings(server, password=SecretStr("wrong-one")).connection_url()
    error = await refused(wrong)
    assert isinstance(error, AuthenticationError)
    assert "password" in way_out(error)
    assert "wrong-one" not in str(error)
    async with AlertStore(wrong) as store, ModelBoard(wrong) as board, asyncio.timeout(5):
        with pytest.raises(AuthenticationError):
            await store.load(["a"])
        with pytest.raises(AuthenticationError):
            await await_orders(board)


async def test_a_certificate_that_does_not_hold_is_told_at_once_and_with_the_way_out(
    shown: TlsServer, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "stranger").ca
    assert "redis.ca_file" in way_out(await refused(settings(shown, ca_file=stranger).connection_url()))
    assert "redis.ca_file" in way_out(await refused(settings(shown, ca_file=None).connection_url()))
    async with ModelBoard(settings(shown, ca_file=stranger).connection_url()) as board, asyncio.timeout(5):
        with pytest.raises(RedisError, match="CERTIFICATE_VERIFY_FAILED"):
            await await_orders(board)
    shown.show(shown.authority.sign("expired", ended=timedelta(hours=1)))
    assert "run out" in way_out(await refused(url(shown, "worker")))
    shown.show(shown.authority.sign("elsewhere", ("redis.elsewhere",)))
    assert "another name" in way_out(await refused(url(shown, "worker")))


async def test_with_mutual_tls_a_client_needs_its_certificate(shown: TlsServer) -> None:
    own = shown.authority.sign("aewatch client")
    shown.show(shown.authority.sign("first"), wants_client=True)
    both = {"certificate_file": own.certificate, "key_file": own.key}
    async with connect(settings(shown, **both).connection_url()) as client:
        assert await client.hgetall("aewatch:model") == {}
    async with connect(url(shown, "worker")) as client:
        with pytest.raises(RedisError) as error:
            await client.hgetall("aewatch:model")
    # The terminator closes without a word, which a server that restarts does too.
    assert "certificate" in way_out(error.value)
    assert "closed" in str(error.value) or not is_transient(error.value)


async def test_tls_where_there_is_none_is_an_error(server: TlsServer) -> None:
    plain = server.plain_url.replace("redis://", "rediss://")
    async with connect(settings(server, url=SecretStr(plain)).connection_url(), timeout_s=1.0) as client:
        with pytest.raises(RedisError):
            await client.ping()


def test_a_file_that_cannot_be_used_is_named(server: TlsServer, tmp_path: Path) -> None:
    own = server.authority.sign("own")
    (tmp_path / "empty.pem").write_text("")
    cases = [
        ({"ca_file": tmp_path / "nowhere.pem"}, r"nowhere\.pem: No such file"),
        ({"ca_file": tmp_path / "empty.pem"}, r"empty\.pem: no certificate"),
        ({"certificate_file": own.certificate, "key_file": server.authority.sign("b").key}, r"own\.pem.*mismatch"),
    ]
    for fields, told in cases:
        with pytest.raises(ValueError, match=told) as error:
            connect(settings(server, **fields).connection_url())
        assert "secret1" not in str(error.value)
        assert isinstance(error.value.__cause__, TlsFilesError)


def test_an_absent_server_behind_tls_is_still_waited_for(server: TlsServer) -> None:
    gone = settings(server, url=SecretStr("rediss://127.0.0.1:1/0")).connection_url()

    async def load() -> None:
        async with AlertStore(gone, retry_s=0.5) as store:
            await store.load(["a"])

    with pytest.raises(StoreUnavailable):
        asyncio.run(load())


@pytest.mark.parametrize(
    ("arguments", "role", "status", "told"),
    [
        (("alerts", "active"), "reader", 0, ""),
        (("alerts", "shelve", "mine", "knock", "--for", "1h"), "reader", 1, "docs/security.md"),
        (("model", "status"), "models", 0, ""),
    ],
)
def test_commands_take_login_and_authority_from_variables(
    server: TlsServer, tmp_path: Path, arguments: tuple[str, ...], role: str, status: int, told: str
) -> None:
    variables = {
        "AEWATCH_CONFIG": "",
        "AEWATCH_REDIS__URL": server.url(),
        "AEWATCH_REDIS__USERNAME": f"aewatch-{role}",
        "AEWATCH_REDIS__PASSWORD": PASSWORDS[role],
        "AEWATCH_REDIS__CA_FILE": str(server.authority.ca),
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AEWATCH_")} | variables
    command = [sys.executable, "-m", "deploy.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == status, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert PASSWORDS[role] not in done.stdout + done.stderr


def test_odd_characters_in_login_and_file_names_arrive_as_they_are(server: TlsServer, tmp_path: Path) -> None:
    password, odd = "p@ss:w/rd?#%41&=é", tmp_path / "ca %41&=?#é.pem"
    odd.write_bytes(server.authority.ca.read_bytes())
    with sync_redis.Redis.from_url(server.plain_url) as admin:
        admin.execute_command("ACL", "SETUSER", "o:dd@", "on", f">{password}", "~*", "+hgetall")

    async def ask() -> Any:
        fields = {"username": "o:dd@", "password": SecretStr(password), "ca_file": odd}
        async with connect(settings(server, **fields).connection_url()) as client:
            return await client.hgetall("aewatch:model")

    assert asyncio.run(ask()) == {}
    assert json.dumps(password)[1:-1] not in repr(settings(server, username="o", password=SecretStr(password)))
