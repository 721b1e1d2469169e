from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from deploy.local_stack.ports import free_port
from stream.alert_filter import AlertFilter
from stream.alert_store import AlertStore
from stream.alerts import Alert, Priority, Transition, decode_alert
from stream.operator_actions import EpisodeNotOpen, NotShelved, OperatorError, UnknownCondition
from stream.subscribe import Alerts, BadCursor, HistoryTrimmed, UnknownSensor
from tests.alarm_windows import RULES, SENSOR, S, run, told, window
from tests.integration.redis_parts import cable_to, work

pytestmark = pytest.mark.integration

REPLAYED = "replay/night-1/bearing/ch0"


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
async def alerts(redis_url: str, prefix: str) -> AsyncIterator[Alerts]:
    async with Alerts(redis_url, prefix) as alerts:
        yield alerts


async def raise_(store: AlertStore, sensor: str = SENSOR, condition: str = "knock", begin: int = 0) -> Alert:
    """Two windows that raise a fault, and the alert they raise."""
    windows = [window(begin + number, sensor=sensor, **{condition: 0.9}) for number in range(2)]
    await work(store, windows, RULES)
    return run(windows)[0]


async def record(store: AlertStore, first: int, count: int, sensor: str = SENSOR) -> list[Alert]:
    """So many pencil-lead breaks, 15 windows apart."""
    windows = [
        window(number, sensor=sensor, pencil_lead_break=0.95 if number % 15 == 0 else 0.0)
        for number in range(first * 15, (first + count) * 15)
    ]
    await work(store, windows, RULES)
    return run(windows)


async def take(following: AsyncIterator[tuple[str, Alert]], count: int) -> list[tuple[str, Alert]]:
    return [await asyncio.wait_for(anext(following), 30) for _ in range(count)]


def only_alerts(taken: Sequence[tuple[str, Alert]]) -> list[Alert]:
    return [alert for _, alert in taken]


class TestFollowing:
    async def test_from_the_beginning_gives_everything_in_order(self, alerts: Alerts, store: AlertStore) -> None:
        expected = await record(store, 0, 5)
        assert only_alerts(await take(alerts.follow("0"), 5)) == expected

    async def test_from_a_cursor_gives_what_came_after_it(self, alerts: Alerts, store: AlertStore) -> None:
        expected = await record(store, 0, 5)
        taken = await take(alerts.follow("0"), 2)
        assert only_alerts(await take(alerts.follow(taken[-1][0]), 3)) == expected[2:]

    async def test_from_now_on_gives_only_what_is_new(self, alerts: Alerts, store: AlertStore) -> None:
        await record(store, 0, 3)
        following = alerts.follow(await alerts.cursor())
        expected = await record(store, 3, 2)
        assert only_alerts(await take(following, 2)) == expected

    async def test_waits_for_the_first_alert_of_all(self, alerts: Alerts, store: AlertStore) -> None:
        first = asyncio.create_task(anext(alerts.follow()))
        await asyncio.sleep(0.2)
        assert not first.done()
        raised = await raise_(store)
        assert (await asyncio.wait_for(first, 30))[1] == raised

    async def test_waits_longer_than_an_answer_may_take(
        self, redis_url: str, prefix: str, store: AlertStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with Alerts(redis_url, prefix, timeout_s=0.4) as alerts:
            first = asyncio.create_task(anext(alerts.follow()))
            await asyncio.sleep(1.5)
            raised = await raise_(store)
            assert (await asyncio.wait_for(first, 30))[1] == raised
        assert [record.message for record in caplog.records if record.name == "aewatch.subscribe"] == []

    async def test_over_lost_connections_loses_and_repeats_nothing(
        self, redis_url: str, prefix: str, store: AlertStore
    ) -> None:
        expected: list[Alert] = []
        async with cable_to(redis_url) as cable, Alerts(cable.url(), prefix) as alerts:
            following = alerts.follow("0")
            heard: list[Alert] = []
            for round_number in range(6):
                expected += await record(store, 3 * round_number, 3)
                if round_number % 2:
                    cable.swallow_answer_to(b"XREAD")
                else:
                    await cable.cut()
                heard += only_alerts(await take(following, 3))
            assert cable.swallowed > 0
        assert heard == expected

    async def test_of_a_server_that_is_not_there_says_so(self, prefix: str) -> None:
        async with Alerts(f"redis://127.0.0.1:{free_port()}/0", prefix) as alerts:
            with pytest.raises(RedisConnectionError):
                await anext(alerts.follow("0"))

    async def test_many_pages_of_history_come_through(self, alerts: Alerts, store: AlertStore) -> None:
        expected = await record(store, 0, 1_203)
        assert only_alerts(await take(alerts.follow("0"), 1_203)) == expected

    async def test_passes_over_what_a_stranger_wrote(
        self, alerts: Alerts, store: AlertStore, redis: Any, prefix: str
    ) -> None:
        first = await record(store, 0, 2)
        await redis.xadd(f"{prefix}:alerts", {"hello": "world"})
        await redis.xadd(f"{prefix}:alerts", {"n": "4", "alert": "{not json"})
        second = await record(store, 2, 2)
        assert only_alerts(await take(alerts.follow("0"), 4)) == first + second

    async def test_still_sees_a_hole_after_what_a_stranger_wrote(
        self, alerts: Alerts, store: AlertStore, redis: Any, prefix: str
    ) -> None:
        await record(store, 0, 2)
        await redis.xadd(f"{prefix}:alerts", {"hello": "world"})
        await record(store, 2, 2)
        entries = await redis.xrange(f"{prefix}:alerts")
        await redis.xdel(f"{prefix}:alerts", entries[3][0])
        following = alerts.follow("0")
        await take(following, 2)
        with pytest.raises(HistoryTrimmed):
            await anext(following)

    @pytest.mark.parametrize("cursor", ["yesterday", "", "1-", "-1", "1-2-3", "+", "1 OR 1"])
    async def test_what_is_no_cursor_is_refused(self, alerts: Alerts, cursor: str) -> None:
        with pytest.raises(BadCursor, match="is no cursor"):
            await anext(alerts.follow(cursor))

    async def test_a_cursor_of_another_server_is_refused(self, alerts: Alerts, store: AlertStore) -> None:
        await raise_(store)
        with pytest.raises(BadCursor, match="of another server or prefix"):
            await anext(alerts.follow("99999999999999-0"))


class TestTrimmedHistory:
    async def test_is_reported_to_a_reader_whose_place_is_gone(
        self, alerts: Alerts, store: AlertStore, redis: Any, prefix: str
    ) -> None:
        await record(store, 0, 6)
        [(cursor, _)] = await take(alerts.follow("0"), 1)
        await redis.xtrim(f"{prefix}:alerts", maxlen=2, approximate=False)
        with pytest.raises(HistoryTrimmed, match=f"alerts after {cursor} were trimmed away"):
            await anext(alerts.follow(cursor))
        with pytest.raises(HistoryTrimmed):
            await anext(alerts.history(cursor))

    async def test_is_reported_to_a_reader_who_is_too_slow(
        self, alerts: Alerts, store: AlertStore, redis: Any, prefix: str
    ) -> None:
        await record(store, 0, 2)
        following = alerts.follow("0")
        await take(following, 2)
        await record(store, 2, 4)
        await redis.xtrim(f"{prefix}:alerts", maxlen=2, approximate=False)
        with pytest.raises(HistoryTrimmed, match="are gone from the stream"):
            await anext(following)

    async def test_is_told_to_whoever_asks_and_reading_goes_on(
        self, alerts: Alerts, store: AlertStore, redis: Any, prefix: str
    ) -> None:
        expected = await record(store, 0, 6)
        [(cursor, _)] = await take(alerts.follow("0"), 1)
        await redis.xtrim(f"{prefix}:alerts", maxlen=2, approximate=False)
        reported: list[HistoryTrimmed] = []
        following = alerts.follow(cursor, on_trimmed=reported.append)
        assert only_alerts(await take(following, 2)) == expected[-2:]
        assert len(reported) == 1

    async def test_of_a_stream_that_was_deleted_is_reported(
        self, alerts: Alerts, store: AlertStore, redis: Any, prefix: str
    ) -> None:
        await record(store, 0, 2)
        following = alerts.follow("0")
        taken = await take(following, 2)
        await redis.delete(f"{prefix}:alerts")
        with pytest.raises(HistoryTrimmed, match="is of an earlier one"):
            await anext(alerts.follow(taken[-1][0]))
        await record(store, 2, 1)
        with pytest.raises(HistoryTrimmed, match="are gone from the stream"):
            await anext(following)

    async def test_is_not_reported_where_nothing_is_missing(
        self, alerts: Alerts, store: AlertStore, redis: Any, prefix: str
    ) -> None:
        expected = await record(store, 0, 6)
        taken = await take(alerts.follow("0"), 5)
        await redis.xtrim(f"{prefix}:alerts", maxlen=2, approximate=False)
        assert only_alerts(await take(alerts.follow(taken[-1][0]), 1)) == expected[-1:]
        assert only_alerts(await take(alerts.follow("0"), 2)) == expected[-2:]


class TestFilters:
    async def heard(self, alerts: Alerts, **wanted: Any) -> set[tuple[str, str]]:
        return {(alert.sensor, alert.condition) async for _, alert in alerts.history(wanted=AlertFilter(**wanted))}

    async def test_leave_out_what_is_not_wanted(self, alerts: Alerts, store: AlertStore) -> None:
        await raise_(store, "plant1/a")
        await raise_(store, "plant2/b", "drop")
        await record(store, 0, 1, "plant2/c")
        await raise_(store, REPLAYED)
        a, b, c = ("plant1/a", "knock"), ("plant2/b", "drop"), ("plant2/c", "pencil_lead_break")
        replayed = (REPLAYED, "knock")
        assert await self.heard(alerts) == {a, b, c}
        assert await self.heard(alerts, sensors=["plant2/*"]) == {b, c}
        assert await self.heard(alerts, sensors=["plant1/a", "plant2/c"]) == {a, c}
        assert await self.heard(alerts, conditions=["d*", "pencil*"]) == {b, c}
        assert await self.heard(alerts, min_priority=Priority.LOW) == {a, b}
        assert await self.heard(alerts, include_replays=True) == {a, b, c, replayed}
        assert await self.heard(alerts, sensors=["replay/night-1/*"]) == {replayed}
        assert await self.heard(alerts, sensors=["replay/night-2/*"]) == set()

    def test_a_sensor_named_like_a_pattern_is_found_by_its_name(self) -> None:
        assert AlertFilter(sensors=["box[1]"]).matches_sensor("box[1]")

    async def test_history_between_two_cursors(self, alerts: Alerts, store: AlertStore) -> None:
        expected = await record(store, 0, 6)
        cursors = [cursor async for cursor, _ in alerts.history()]
        assert [alert async for _, alert in alerts.history(cursors[1], cursors[3])] == expected[2:4]
        in_an_hour = str(int(time.time() * 1000) + 3_600_000)
        assert [alert async for _, alert in alerts.history(in_an_hour)] == []


class TestOtherReaders:
    async def test_a_consumer_group_of_plain_commands_sees_every_alert_once(
        self, store: AlertStore, redis: Any, prefix: str
    ) -> None:
        await redis.xgroup_create(f"{prefix}:alerts", "pager", id="0", mkstream=True)
        expected = await record(store, 0, 4)
        read: list[Alert] = []
        for consumer in ("one", "two"):
            [[_, entries]] = await redis.execute_command(
                "XREADGROUP", "GROUP", "pager", consumer, "COUNT", 2, "STREAMS", f"{prefix}:alerts", ">"
            )
            for entry_id, entry in entries:
                read.append(decode_alert(entry[b"alert"]))
                await redis.xack(f"{prefix}:alerts", "pager", entry_id)
        assert read == expected
        assert (await redis.xpending(f"{prefix}:alerts", "pager"))["pending"] == 0

    async def test_a_raw_listener_gets_the_json_pushed(self, redis_url: str, store: AlertStore, prefix: str) -> None:
        port = int(redis_url.rsplit(":", 1)[1].split("/")[0])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"SUBSCRIBE {prefix}:alerts\r\n".encode())
        for _ in range(6):
            await reader.readline()
        raised = await raise_(store)
        lines = [(await asyncio.wait_for(reader.readline(), 30)).rstrip(b"\r\n") for _ in range(7)]
        writer.close()
        assert lines[:2] == [b"*3", b"$7"]
        assert lines[2] == b"message"
        assert lines[4] == f"{prefix}:alerts".encode()
        assert decode_alert(lines[6]) == raised


class TestWhatIsOpen:
    async def test_the_most_urgent_first_then_the_oldest(self, alerts: Alerts, store: AlertStore) -> None:
        await work(store, [window(n, sensor="x", unknown=True) for n in range(5)], RULES)
        second = await raise_(store, "b", begin=40)
        first = await raise_(store, "c", begin=20)
        await raise_(store, REPLAYED)
        assert [alert.sensor for alert in await alerts.active()] == [first.sensor, second.sensor, "x"]
        assert len(await alerts.active(AlertFilter(include_replays=True))) == 4

    async def test_nothing_at_first(self, alerts: Alerts) -> None:
        assert await alerts.active() == []
        assert await alerts.sensors() == []
        assert [item async for item in alerts.history()] == []

    async def test_sensors_tell_how_they_are(self, alerts: Alerts, store: AlertStore) -> None:
        await raise_(store, "b")
        await work(store, [window(7, sensor="a")], RULES)
        await raise_(store, REPLAYED)
        calm, knocking = await alerts.sensors()
        assert (calm.sensor, calm.label, calm.open, calm.windows) == ("a", "background", (), 1)
        assert (knocking.label, knocking.probability, knocking.open) == ("knock", 0.9, ("knock",))
        assert knocking.last_end_ns == window(1).end_time_ns
        assert knocking.peak_db_ae == 62.5
        await alerts.shelve("b", "drop", by="ann", for_s=3600)
        assert [sensor.shelved for sensor in await alerts.sensors(AlertFilter(sensors=["b"]))] == [("drop",)]


class TestAcknowledging:
    async def test_is_an_alert_of_its_own_and_the_episode_stays_open(self, alerts: Alerts, store: AlertStore) -> None:
        raised = await raise_(store)
        said = await alerts.acknowledge(raised.episode, by="ann", note="on my way")
        assert (said.id, said.transition, said.by, said.note) == (
            f"{raised.episode}-2",
            Transition.ACKNOWLEDGED,
            "ann",
            "on my way",
        )
        assert abs(said.time_ns - time.time_ns()) < 600 * S
        assert await alerts.active() == [said]
        assert only_alerts([item async for item in alerts.history()]) == [raised, said]

    async def test_twice_gives_the_first_one_again(self, alerts: Alerts, store: AlertStore) -> None:
        raised = await raise_(store)
        first = await alerts.acknowledge(raised.episode, by="ann")
        assert await alerts.acknowledge(raised.episode, by="bob") == first
        assert len([item async for item in alerts.history()]) == 2

    async def test_by_two_at_once_gives_one_alert(self, alerts: Alerts, store: AlertStore) -> None:
        raised = await raise_(store)
        said = await asyncio.gather(*(alerts.acknowledge(raised.episode, by=name) for name in ("ann", "bob", "cy")))
        assert len({alert.id for alert in said}) == 1
        assert len({alert.by for alert in said}) == 1
        assert len([item async for item in alerts.history()]) == 2

    async def test_what_is_not_open_says_so_and_lists_those_near(self, alerts: Alerts, store: AlertStore) -> None:
        raised = await raise_(store)
        mistyped = raised.episode[:-1] + ("0" if raised.episode[-1] != "0" else "1")
        with pytest.raises(EpisodeNotOpen, match=rf"{mistyped} is not open; open now: {raised.episode} \(knock on"):
            await alerts.acknowledge(mistyped, by="ann")

    async def test_a_shelf_is_no_episode(self, alerts: Alerts, store: AlertStore) -> None:
        await raise_(store)
        shelf = await alerts.shelve(SENSOR, "drop", by="ann", for_s=60)
        with pytest.raises(EpisodeNotOpen, match=f"is the shelf of drop on {SENSOR}"):
            await alerts.acknowledge(shelf.episode, by="ann")

    async def test_while_the_worker_is_at_it_both_get_through(self, alerts: Alerts, store: AlertStore) -> None:
        raised = await raise_(store)
        done = asyncio.Event()

        async def worker() -> int:
            """One window after another, with no pause at all: harder than any real stream."""
            number = 2
            while not done.is_set():
                await work(store, [window(number, knock=0.9)], RULES)
                number += 1
            return number

        working = asyncio.create_task(worker())
        await alerts.acknowledge(raised.episode, by="ann")
        await alerts.shelve(SENSOR, "drop", by="ann", for_s=60)
        done.set()
        windows = await working
        history = only_alerts([item async for item in alerts.history()])
        assert told(history) == [("knock", "raised"), ("knock", "acknowledged"), ("drop", "shelved")]
        assert (await alerts.sensors())[0].windows == windows

    @pytest.mark.parametrize("go_on", [False, True], ids=["alone", "and the worker went on"])
    async def test_with_a_lost_answer_is_done_once(
        self, redis_url: str, prefix: str, store: AlertStore, alerts: Alerts, go_on: bool
    ) -> None:
        raised = await raise_(store)
        async with cable_to(redis_url) as cable, Alerts(cable.url(), prefix) as remote:
            await remote.sensors()
            cable.swallow_answer_to(b"FCALL")
            if go_on:
                cable.meanwhile = lambda: work(store, [window(2, knock=0.9)], RULES)
            said = await remote.acknowledge(raised.episode, by="ann")
            assert cable.swallowed == 1
        assert (said.transition, said.by) == (Transition.ACKNOWLEDGED, "ann")
        history = only_alerts([item async for item in alerts.history()])
        assert told(history) == [("knock", "raised"), ("knock", "acknowledged")]


class TestShelving:
    async def test_counts_from_now_for_a_live_sensor(self, alerts: Alerts, store: AlertStore) -> None:
        await raise_(store)
        shelf = await alerts.shelve(SENSOR, "knock", by="ann", for_s=600, note="works")
        assert abs(shelf.until_ns - time.time_ns() - 600 * S) < 300 * S
        assert (shelf.transition, shelf.by, shelf.note) == (Transition.SHELVED, "ann", "works")
        assert shelf in await alerts.active()

    async def test_counts_from_the_last_window_for_a_replay(self, alerts: Alerts, store: AlertStore) -> None:
        await raise_(store, REPLAYED)
        shelf = await alerts.shelve(REPLAYED, "knock", by="ann", for_s=600)
        assert shelf.until_ns == window(1).end_time_ns + 600 * S

    async def test_hides_what_comes_and_unshelving_shows_it(self, alerts: Alerts, store: AlertStore) -> None:
        await work(store, [window(0)], RULES)
        until_ns = window(500).time_ns
        await alerts.shelve(SENSOR, "knock", by="ann", until_ns=until_ns)
        await raise_(store, begin=1)
        assert told(await alerts.active()) == [("knock", "shelved")]
        said = await alerts.unshelve(SENSOR, "knock", by="bob")
        assert told(said) == [("knock", "unshelved"), ("knock", "raised")]
        assert told(await alerts.active()) == [("knock", "raised")]

    @pytest.mark.parametrize("go_on", [False, True], ids=["alone", "and the worker went on"])
    async def test_with_a_lost_answer_is_done_once(
        self, redis_url: str, prefix: str, store: AlertStore, alerts: Alerts, go_on: bool
    ) -> None:
        await work(store, [window(0)], RULES)
        async with cable_to(redis_url) as cable, Alerts(cable.url(), prefix) as remote:
            await remote.sensors()
            cable.swallow_answer_to(b"FCALL")
            if go_on:
                cable.meanwhile = lambda: work(store, [window(1)], RULES)
            shelf = await remote.shelve(SENSOR, "knock", by="ann", for_s=600)
            assert cable.swallowed == 1
        assert only_alerts([item async for item in alerts.history()]) == [shelf]

    async def test_names_what_there_is_where_nothing_fits(self, alerts: Alerts, store: AlertStore) -> None:
        await raise_(store)
        with pytest.raises(UnknownSensor, match=f"no window of 'plant1/pump3/ch9' has been seen; sensors: {SENSOR}"):
            await alerts.shelve("plant1/pump3/ch9", "knock", by="ann", for_s=60)
        with pytest.raises(UnknownCondition, match="no condition 'nock'"):
            await alerts.shelve(SENSOR, "nock", by="ann", for_s=60)
        with pytest.raises(NotShelved, match="shelved there: nothing"):
            await alerts.unshelve(SENSOR, "knock", by="ann")
        with pytest.raises(OperatorError, match="give either for_s or until_ns"):
            await alerts.shelve(SENSOR, "knock", by="ann")
        with pytest.raises(OperatorError, match="give a later time"):
            await alerts.shelve(SENSOR, "knock", by="ann", until_ns=1)


def test_importing_it_brings_neither_torch_nor_faust_nor_numpy() -> None:
    heavy = ["torch", "faust", "mode", "numpy", "scipy", "aiokafka", "pydantic"]
    program = f"import sys, stream.subscribe; print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
