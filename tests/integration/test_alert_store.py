from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, ResponseError

from deploy.local_stack.ports import free_port
from deploy.local_stack.valkey import Valkey, find_server
from stream.alarms import SensorState, acknowledge, encode_state
from stream.alert_store import FUNCTION, LIBRARY, AlertStore, Keys, SensorChange, StoredSensor, StoreUnavailable
from stream.alerts import Alert, decode_alert
from stream.predictions import Prediction
from stream.redis_connection import connect
from tests.alarm_windows import EPOCH_NS, RULES, SENSOR, S, hit, run, told, window
from tests.certificates import Authority
from tests.integration.redis_parts import cable_to, own_server, work
from tests.test_alarms import RESTLESS, SEQUENCES

pytestmark = pytest.mark.integration

HOSTILE = [
    "alerts",
    "s",
    ":alerts",
    "sensors",
    "x:sensor:y",
    "{a}{b}",
    "*",
    "a\\nb",
    "%s %d",
    "naïve/été 温度/ch0",
    "😀",
    "'; return redis.call('FLUSHALL') --",
]


@pytest.fixture
def prefix(unique: str) -> str:
    return unique


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Any]:
    client = Redis.from_url(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
async def store(redis_url: str, prefix: str) -> AsyncIterator[AlertStore]:
    async with AlertStore(redis_url, prefix) as store:
        yield store


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Valkey]:
    with own_server(tmp_path / "valkey") as server:
        yield server


async def stream_of(redis: Any, prefix: str) -> list[Alert]:
    return [decode_alert(entry[b"alert"]) for _, entry in await redis.xrange(f"{prefix}:alerts")]


async def everything(redis: Any, prefix: str) -> dict[bytes, Any]:
    """All that is stored under a prefix."""
    found: dict[bytes, Any] = {}
    for key in sorted(await redis.keys(f"{prefix}:*")):
        kind = await redis.type(key)
        if kind == b"hash":
            found[key] = await redis.hgetall(key)
        elif kind == b"stream":
            found[key] = await redis.xrange(key)
        else:
            found[key] = await redis.zrange(key, 0, -1, withscores=True)
    return found


def knock_episode(begin: int = 0, sensor: str = SENSOR) -> list[Prediction]:
    return [window(begin + n, sensor=sensor, knock=0.9 if n < 2 else 0.0) for n in range(20)]


def change_of(stored: StoredSensor, *predictions: Prediction) -> SensorChange:
    state = stored.copy_state()
    return SensorChange(stored, state, run(predictions, RULES, state), latest=predictions[-1])


async def raised(store: AlertStore, sensor: str = SENSOR) -> StoredSensor:
    """A sensor with an open knock."""
    stored = (await store.load([sensor]))[sensor]
    change = change_of(stored, window(0, sensor=sensor, knock=0.9), window(1, sensor=sensor, knock=0.9))
    [result] = await store.apply([change])
    return result.stored


class TestAChange:
    async def test_is_found_in_state_stream_open_episodes_and_register(
        self, store: AlertStore, redis: Any, prefix: str
    ) -> None:
        [new] = (await store.load([SENSOR])).values()
        assert new.version == 0
        change = change_of(new, window(0, knock=0.9), window(1, knock=0.9))
        [result] = await store.apply([change])
        assert result.applied
        [entry] = await redis.xrange(f"{prefix}:alerts")
        assert result.cursors == (entry[0].decode(),)
        [alert] = change.alerts
        assert decode_alert(entry[1][b"alert"]) == alert
        assert {name: value for name, value in entry[1].items() if name != b"alert"} == {
            b"n": b"1",
            b"sensor": SENSOR.encode(),
            b"condition": b"knock",
            b"transition": b"raised",
            b"priority": b"high",
        }
        assert await redis.hgetall(f"{prefix}:active") == {alert.episode.encode(): entry[1][b"alert"]}
        assert await redis.zrange(f"{prefix}:sensors", 0, -1, withscores=True) == [
            (SENSOR.encode(), pytest.approx(window(1).end_time_ns / S))
        ]
        stored = (await store.load([SENSOR]))[SENSOR]
        assert stored == result.stored
        assert stored.version == 1
        assert stored.copy_state() == change.state

    async def test_fills_the_fields_that_people_read(self, store: AlertStore, redis: Any, prefix: str) -> None:
        await raised(store)
        fields = await redis.hgetall(f"{prefix}:sensor:{SENSOR}")
        assert fields[b"label"] == b"knock"
        assert float(fields[b"probability"]) == 0.9
        assert float(fields[b"peak_db_ae"]) == 62.5
        assert json.loads(fields[b"open"]) == ["knock"]
        assert int(fields[b"last_end_ns"]) == window(1).end_time_ns
        assert fields[b"windows"] == b"2"

    async def test_that_closes_an_episode_takes_it_out_of_the_open_ones(
        self, store: AlertStore, redis: Any, prefix: str
    ) -> None:
        await work(store, knock_episode(), RULES)
        assert told(await stream_of(redis, prefix)) == [("knock", "raised"), ("knock", "cleared")]
        assert await redis.hgetall(f"{prefix}:active") == {}

    async def test_that_records_opens_nothing(self, store: AlertStore, redis: Any, prefix: str) -> None:
        await work(store, [window(0, pencil_lead_break=0.9)], RULES)
        assert told(await stream_of(redis, prefix)) == [("pencil_lead_break", "recorded")]
        assert await redis.hgetall(f"{prefix}:active") == {}

    async def test_reaches_those_who_only_listen_as_the_same_json(
        self, store: AlertStore, redis: Any, prefix: str
    ) -> None:
        listener = redis.pubsub()
        await listener.subscribe(f"{prefix}:alerts")
        await listener.get_message(timeout=5)
        await work(store, knock_episode(), RULES)
        heard = [(await listener.get_message(timeout=5))["data"] for _ in range(2)]
        await listener.aclose()
        assert heard == [entry[b"alert"] for _, entry in await redis.xrange(f"{prefix}:alerts")]

    async def test_entries_are_numbered_without_a_hole(self, store: AlertStore, redis: Any, prefix: str) -> None:
        for sensor in ("a", "b", "c"):
            await work(store, knock_episode(sensor=sensor), RULES)
        assert [int(entry[b"n"]) for _, entry in await redis.xrange(f"{prefix}:alerts")] == [1, 2, 3, 4, 5, 6]


class TestARefusal:
    async def test_of_an_outdated_version_changes_nothing_and_returns_what_is_there(
        self, store: AlertStore, redis: Any, prefix: str
    ) -> None:
        now = await raised(store)
        before = await everything(redis, prefix)
        stale = StoredSensor(SENSOR, 0, b"")
        [result] = await store.apply([change_of(stale, window(5, knock=0.9), window(6, knock=0.9))])
        assert not result.applied
        assert result.stored == now
        assert await everything(redis, prefix) == before

    async def test_of_windows_that_are_no_news_changes_nothing_though_the_version_is_right(
        self, store: AlertStore, redis: Any, prefix: str
    ) -> None:
        now = await raised(store)
        before = await everything(redis, prefix)
        forged = change_of(StoredSensor(SENSOR, now.version, b""), window(0, knock=0.9), window(1, knock=0.9))
        [result] = await store.apply([forged])
        assert (result.applied, result.stored) == (False, now)
        assert await everything(redis, prefix) == before

    async def test_takes_nobody_else_with_it(self, store: AlertStore, redis: Any, prefix: str) -> None:
        await raised(store, "a")
        stale = change_of(StoredSensor("a", 0, b""), window(9, sensor="a", knock=0.9))
        fresh = change_of(StoredSensor("b", 0, b""), window(9, sensor="b", pencil_lead_break=0.9))
        results = await store.apply([stale, fresh])
        assert [result.applied for result in results] == [False, True]

    async def test_of_large_positions_compares_every_digit(self, store: AlertStore) -> None:
        far = 2**62 - 1
        for epoch_ns in (far - 1, far):
            stored = (await store.load([SENSOR]))[SENSOR]
            state = stored.copy_state()
            run([window(0, epoch_ns=epoch_ns)], RULES, state)
            [result] = await store.apply([SensorChange(stored, state, latest=window(0))])
            assert result.applied
        back = SensorState(sensor=SENSOR)
        run([window(0, epoch_ns=far - 1)], RULES, back)
        [result] = await store.apply([SensorChange(result.stored, back, latest=window(0))])
        assert not result.applied

    async def test_two_changes_of_one_sensor_in_one_call_are_a_mistake(self, store: AlertStore) -> None:
        change = change_of(StoredSensor(SENSOR, 0, b""), window(0))
        with pytest.raises(ValueError, match="two changes of one sensor"):
            await store.apply([change, change])

    @pytest.mark.parametrize("kind", ["sensor", "stream", "active", "sensors"])
    async def test_of_a_key_of_another_kind_leaves_no_half_done_change(
        self, store: AlertStore, redis: Any, prefix: str, kind: str
    ) -> None:
        keys = Keys(prefix)
        taken = {
            "sensor": keys.sensor(SENSOR),
            "stream": keys.alerts,
            "active": keys.active,
            "sensors": keys.sensors,
        }[kind]
        await redis.set(taken, "somebody else's")
        with pytest.raises(ResponseError, match=f"key {taken} holds a string"):
            await store.apply([change_of(StoredSensor(SENSOR, 0, b""), window(0, pencil_lead_break=0.9))])
        assert await redis.keys(f"{prefix}:*") == [taken.encode()]


class TestTheFunction:
    KEYS = 4
    FINE = ("0", "operate", "", "", "{}", "s", "", "channel", "0", "0", "0")

    async def call(self, redis: Any, prefix: str, *arguments: Any, keys: int = 4) -> Any:
        names = [f"{prefix}:sensor:s", f"{prefix}:alerts", f"{prefix}:active", f"{prefix}:sensors"]
        return await redis.execute_command("FCALL", FUNCTION, keys, *names[:keys], *arguments)

    async def test_takes_what_it_should(self, store: AlertStore, redis: Any, prefix: str) -> None:
        await store.load([])
        await store.load(["s"])
        assert await self.call(redis, prefix, *self.FINE) == [b"applied", b"1", []]

    @pytest.mark.parametrize(
        ("at", "value"),
        [
            (0, "-1"),
            (0, "one"),
            (1, "destroy"),
            (2, "12"),
            (3, "x" * 38),
            (6, "nan"),
            (8, "-5"),
            (9, "1"),
            (9, "100000"),
            (9, "1e3"),
            (10, "1"),
            (10, "many"),
        ],
    )
    async def test_refuses_arguments_that_do_not_fit(
        self, store: AlertStore, redis: Any, prefix: str, at: int, value: str
    ) -> None:
        await store.load(["s"])
        arguments = [*self.FINE[:at], value, *self.FINE[at + 1 :]]
        with pytest.raises(ResponseError, match="aewatch_apply_v1: "):
            await self.call(redis, prefix, *arguments)
        assert await redis.keys(f"{prefix}:*") == []

    @pytest.mark.parametrize("count", [0, 1, 9, 10, 12])
    async def test_refuses_another_number_of_arguments(
        self, store: AlertStore, redis: Any, prefix: str, count: int
    ) -> None:
        await store.load(["s"])
        with pytest.raises(ResponseError, match="do not match the counts"):
            await self.call(redis, prefix, *[*self.FINE, "0"][:count])

    async def test_refuses_another_number_of_keys(self, store: AlertStore, redis: Any, prefix: str) -> None:
        await store.load(["s"])
        with pytest.raises(ResponseError, match="4 keys are wanted, 3 were given"):
            await self.call(redis, prefix, *self.FINE, keys=3)


class TestLoadingTheFunction:
    async def test_many_who_start_at_once_all_find_it(self, server: Valkey) -> None:
        stores = [AlertStore(server.url, f"p{number}") for number in range(12)]
        await asyncio.gather(*(work(store, knock_episode(), RULES) for store in stores))
        async with Redis.from_url(server.url) as redis:
            for number in range(12):
                assert len(await stream_of(redis, f"p{number}")) == 2
        for store in stores:
            await store.close()

    async def test_a_server_that_lost_it_gets_it_again(self, server: Valkey) -> None:
        async with AlertStore(server.url) as store, Redis.from_url(server.url) as redis:
            await raised(store, "a")
            await redis.function_flush()
            await raised(store, "b")
            assert len(await stream_of(redis, "aewatch")) == 2

    async def test_another_text_under_its_name_is_replaced(self, server: Valkey) -> None:
        async with AlertStore(server.url) as store, Redis.from_url(server.url) as redis:
            other = f"#!lua name={LIBRARY}\nredis.register_function('{FUNCTION}', function() return 'no' end)"
            await redis.function_load(other)
            assert (await raised(store)).version == 1

    async def test_the_same_text_is_left_alone(self, server: Valkey) -> None:
        async with AlertStore(server.url, "a") as first, AlertStore(server.url, "b") as second:
            await raised(first)
            await raised(second)
        async with Redis.from_url(server.url) as redis:
            assert (await redis.info("commandstats"))["cmdstat_function|load"]["calls"] == 1

    async def test_a_user_who_may_not_load_it_uses_the_one_that_is_there(self, server: Valkey) -> None:
        async with AlertStore(server.url) as administrator, Redis.from_url(server.url) as redis:
            await raised(administrator, "a")
            await redis.execute_command(
                "ACL",
                "SETUSER",
                "worker",
                "on",
                ">secret",
                "~aewatch:*",
                "&aewatch:*",
                "+fcall",
                "+@hash",
                "+@stream",
                "+@sortedset",
                "+publish",
                "+type",
                "+exists",
            )
        url = server.url.replace("redis://", "redis://worker:secret@")
        async with AlertStore(url) as store:
            assert (await raised(store, "b")).version == 1


class TestALostAnswer:
    async def test_is_no_matter_the_alert_is_there_once(self, redis_url: str, redis: Any, prefix: str) -> None:
        async with cable_to(redis_url) as cable, AlertStore(cable.url(), prefix) as store:
            [stored] = (await store.load([SENSOR])).values()
            cable.swallow_answer_to(b"FCALL")
            change = change_of(stored, window(0, knock=0.9), window(1, knock=0.9))
            [result] = await store.apply([change])
            assert cable.swallowed == 1
            assert result.applied
            assert result.stored == (await store.load([SENSOR]))[SENSOR]
            assert await stream_of(redis, prefix) == list(change.alerts)

    async def test_of_a_whole_batch_doubles_none_of_it(self, redis_url: str, redis: Any, prefix: str) -> None:
        sensors = [f"s{number}" for number in range(30)]
        async with cable_to(redis_url) as cable, AlertStore(cable.url(), prefix) as store:
            stored = await store.load(sensors)
            cable.swallow_answer_to(b"FCALL")
            changes = [change_of(stored[sensor], window(0, sensor=sensor, pencil_lead_break=0.9)) for sensor in sensors]
            assert all(result.applied for result in await store.apply(changes))
            assert cable.swallowed == 1
            assert sorted(alert.sensor for alert in await stream_of(redis, prefix)) == sorted(sensors)

    async def test_when_somebody_went_on_from_there_is_a_conflict_and_doubles_nothing(
        self, redis_url: str, redis: Any, prefix: str, store: AlertStore
    ) -> None:
        windows = knock_episode()
        async with cable_to(redis_url) as cable, AlertStore(cable.url(), prefix) as disturbed:
            cable.meanwhile = lambda: work(store, windows[:10], RULES)
            cable.swallow_answer_to(b"FCALL")
            assert await work(disturbed, windows[:2], RULES) == 1
            assert cable.swallowed == 1
            await work(disturbed, windows, RULES)
        assert await stream_of(redis, prefix) == run(windows)

    async def test_is_not_taken_for_success_where_the_server_never_got_the_change(
        self, redis_url: str, redis: Any, prefix: str, store: AlertStore
    ) -> None:
        async with cable_to(redis_url) as cable, AlertStore(cable.url(), prefix) as disturbed:
            [stored] = (await disturbed.load([SENSOR])).values()
            cable.lose(b"FCALL")
            cable.meanwhile = lambda: work(store, [window(0)], RULES)
            [result] = await disturbed.apply([change_of(stored, window(0, knock=0.9), window(1, knock=0.9))])
            assert not result.applied
            assert result.stored == (await store.load([SENSOR]))[SENSOR]
        assert await stream_of(redis, prefix) == []

    async def test_a_server_that_was_restarted_goes_on(self, server: Valkey) -> None:
        windows = [*knock_episode(), *knock_episode(20)]
        async with AlertStore(server.url, retry_s=30) as store:
            await work(store, windows[:15], RULES)
            server.service.stop()
            going_on = asyncio.create_task(work(store, windows[15:], RULES))
            await asyncio.sleep(0.2)
            server.start(owned=True)
            await asyncio.to_thread(server.wait_ready, 20)
            await going_on
        async with Redis.from_url(server.url) as redis:
            assert await stream_of(redis, "aewatch") == run(windows)

    async def test_a_server_that_stays_away_is_an_error_that_names_it_without_its_password(self) -> None:
        place = f"127.0.0.1:{free_port()}"
        async with AlertStore(f"redis://worker:hunter2@{place}/0", retry_s=0.2) as store:
            with pytest.raises(StoreUnavailable, match=place) as caught:
                await store.load(["s"])
        assert "hunter2" not in str(caught.value)

    async def test_a_wrong_password_is_not_waited_out(self, server: Valkey) -> None:
        url = server.url.replace("redis://", "redis://default:wrong@")
        async with Redis.from_url(server.url) as redis:
            await redis.execute_command("ACL", "SETUSER", "default", "resetpass", ">right")
        async with AlertStore(url, retry_s=1000) as store:
            with pytest.raises(AuthenticationError):
                await store.load(["s"])


async def test_a_batch_is_one_round_trip_however_many_sensors(redis_url: str, redis: Any, prefix: str) -> None:
    sensors = [f"s{number}" for number in range(64)]
    async with cable_to(redis_url) as cable, AlertStore(cable.url(), prefix) as store:
        stored = await store.load(sensors)
        # Not one answer comes back before all 64 calls were sent: whoever waits in between waits for ever.
        cable.hold_answers_until(b"FCALL", 64)
        changes = [change_of(stored[sensor], window(0, sensor=sensor)) for sensor in sensors]
        assert all(result.applied for result in await store.apply(changes))


async def test_sensor_ids_of_any_kind_do_not_get_in_each_others_way(store: AlertStore, redis: Any, prefix: str) -> None:
    predictions = [window(number, sensor=sensor, knock=0.9) for sensor in HOSTILE for number in range(2)]
    await work(store, predictions, RULES)
    assert [alert.sensor for alert in await stream_of(redis, prefix)] == HOSTILE
    assert {name.decode() for name in await redis.zrange(f"{prefix}:sensors", 0, -1)} == set(HOSTILE)
    stored = await store.load(HOSTILE)
    assert [stored[sensor].copy_state().sensor for sensor in HOSTILE] == HOSTILE
    assert len(await redis.keys(f"{prefix}:*")) == len(HOSTILE) + 3


async def test_the_stream_keeps_about_as_many_alerts_as_it_was_told(redis_url: str, redis: Any, prefix: str) -> None:
    async with AlertStore(redis_url, prefix, keep_alerts=100) as store:
        stored = (await store.load([SENSOR]))[SENSOR]
        for number in range(50):
            state = stored.copy_state()
            alerts = [
                alert
                for burst in range(10)
                for alert in run([hit(1 + 10 * number + burst, pencil_lead_break=0.9)], RULES, state)
            ]
            [result] = await store.apply([SensorChange(stored, state, alerts, latest=window(0))])
            stored = result.stored
    length = await redis.xlen(f"{prefix}:alerts")
    assert 100 <= length < 300
    newest = await redis.xrevrange(f"{prefix}:alerts", count=1)
    assert newest[0][1][b"n"] == b"500"


async def test_an_operators_change_goes_through_without_a_new_window(
    store: AlertStore, redis: Any, prefix: str
) -> None:
    stored = await raised(store)
    state = stored.copy_state()
    [open_alert] = [decode_alert(alert) for alert in await redis.hvals(f"{prefix}:active")]
    alerts = acknowledge(state, open_alert.episode, at_ns=EPOCH_NS, by="ann")
    [result] = await store.apply([SensorChange(stored, state, alerts)])
    assert result.applied
    fields = await redis.hgetall(f"{prefix}:sensor:{SENSOR}")
    assert fields[b"label"] == b"knock"
    [still_open] = [decode_alert(alert) for alert in await redis.hvals(f"{prefix}:active")]
    assert still_open.transition == "acknowledged"


@pytest.mark.parametrize("prefix", ["", "a b", "a\n"])
def test_a_prefix_that_would_make_a_mess_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="prefix"):
        AlertStore("redis://127.0.0.1/0", prefix)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(predictions=SEQUENCES, data=st.data())
def test_however_windows_are_batched_redelivered_and_fought_over_the_stream_is_that_of_a_single_run(
    redis_url: str, unique: str, predictions: list[Prediction], data: st.DataObject
) -> None:
    """Two workers, each with its own outdated memory of the store, get overlapping batches at the same time."""

    async def disturbed() -> list[Alert]:
        async with Redis.from_url(redis_url) as redis:
            for key in await redis.keys(f"{unique}:*"):
                await redis.delete(key)
            async with AlertStore(redis_url, unique) as one, AlertStore(redis_url, unique) as other:
                memories: list[dict[str, StoredSensor]] = [{}, {}]
                reached = 0
                while reached < len(predictions):
                    begin = data.draw(st.integers(0, reached))
                    end = data.draw(st.integers(reached + 1, len(predictions)))
                    other_begin = data.draw(st.integers(0, reached))
                    other_end = data.draw(st.integers(other_begin, len(predictions)))
                    await asyncio.gather(
                        work(one, predictions[begin:end], RESTLESS, memories[0]),
                        work(other, predictions[other_begin:other_end], RESTLESS, memories[1]),
                    )
                    reached = max(reached, end, other_end)
            return await stream_of(redis, unique)

    assert asyncio.run(disturbed()) == run(predictions, RESTLESS)


@pytest.fixture
def sentinel_url(server: Valkey, tmp_path: Path) -> Iterator[str]:
    """A sentinel that watches the test's own server under the name "plant"."""
    port = free_port()
    written = tmp_path / "sentinel.conf"
    written.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\nsentinel monitor plant 127.0.0.1 {server.port} 1\n"
    )
    process = subprocess.Popen(
        [str(find_server()), str(written), "--sentinel"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    yield f"redis+sentinel://127.0.0.1:{port}/plant/0"
    process.terminate()
    process.wait(10)


class TestWhereTheServerIs:
    async def test_a_sentinel_names_it(self, sentinel_url: str, server: Valkey) -> None:
        async with AlertStore(sentinel_url, retry_s=30) as store:
            assert (await raised(store)).version == 1
        async with Redis.from_url(server.url) as redis:
            assert told(await stream_of(redis, "aewatch")) == [("knock", "raised")]

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("redis+sentinel://h1:1,h2:2", "no service name"),
            ("redis+sentinel://:1/plant", "a sentinel has no host"),
            ("http://h1", "one of the following schemes"),
            ("redis+sentinel://u:hunter2@h1/", r"u:\*\*\*@h1"),
        ],
    )
    def test_a_url_that_cannot_be_is_refused(self, url: str, message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            connect(url)
        assert "hunter2" not in str(caught.value)

    def test_tls_and_logins_reach_the_master_and_the_sentinels(self, tmp_path: Path) -> None:
        ca_file = str(Authority(tmp_path).ca)
        pool = connect(
            f"rediss+sentinel://me:pass@h1,h2:99/plant/3?sentinel_password=other&ssl_ca_certs={ca_file}"
        ).connection_pool
        wanted = pool.connection_kwargs
        assert (wanted["username"], wanted["password"], wanted["db"]) == ("me", "pass", 3)
        assert wanted["ssl_ca_certs"] == ca_file
        places = [sentinel.connection_pool.connection_kwargs for sentinel in pool.sentinel_manager.sentinels]
        assert [(place["host"], place["port"], place["password"]) for place in places] == [
            ("h1", 26379, "other"),
            ("h2", 99, "other"),
        ]
        assert all(place["ssl_ca_certs"] == ca_file for place in places)


def test_no_client_repeats_a_command_by_itself() -> None:
    for url in ("redis://h", "rediss://h", "unix:///tmp/s", "redis+sentinel://h/plant"):
        wanted = connect(url, timeout_s=3).connection_pool.connection_kwargs
        assert wanted["retry"].get_retries() == 0
        assert wanted["socket_timeout"] == 3


def test_equal_states_are_equal_bytes() -> None:
    one, other = SensorState(), SensorState()
    run(knock_episode(), RULES, one)
    for prediction in knock_episode():
        run([prediction], RULES, other)
    assert encode_state(one) == encode_state(other)


class TestALateAlert:
    async def test_says_so_in_the_stream_among_the_open_ones_and_to_who_only_listens(
        self, redis_url: str, redis: Any, prefix: str
    ) -> None:
        listener = redis.pubsub(ignore_subscribe_messages=True)
        await listener.subscribe(f"{prefix}:alerts")
        await listener.get_message(timeout=5)
        async with AlertStore(redis_url, prefix, late_after_s=10.0) as store:
            await raised(store)
        [in_stream] = await stream_of(redis, prefix)
        [is_open] = [decode_alert(text) for text in await redis.hvals(f"{prefix}:active")]
        message = await listener.get_message(timeout=5)
        await listener.aclose()
        assert in_stream == is_open == decode_alert(message["data"])
        assert in_stream.delay_s > 86400, "the windows of this test are years old"

    async def test_is_published_once_though_its_answer_was_lost(self, redis_url: str, redis: Any, prefix: str) -> None:
        async with (
            cable_to(redis_url) as cable,
            AlertStore(cable.url(), prefix, retry_s=5.0, late_after_s=10.0) as store,
        ):
            [new] = (await store.load([SENSOR])).values()
            cable.swallow_answer_to(b"FCALL")
            [result] = await store.apply([change_of(new, window(0, knock=0.9), window(1, knock=0.9))])
        assert cable.swallowed == 1
        assert result.applied
        assert len(await stream_of(redis, prefix)) == 1
