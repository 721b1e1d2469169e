"""A Redis that comes back with an older state, as one does that lost the last second of its disk."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from deploy.local_stack.valkey import Valkey
from stream.alert_filter import EVERYTHING
from stream.alert_store import AlertStore, StoredSensor
from stream.alerts import Alert
from stream.subscribe import Alerts
from tests.alarm_windows import RULES, SENSOR, run, window
from tests.integration.redis_parts import own_server, work

pytestmark = pytest.mark.integration

#: Knocks that come and go, so that each third of the windows has alerts of its own.
WINDOWS = [window(number, knock=0.98 if number % 40 < 8 else 0.0) for number in range(240)]
KEPT, LOST = WINDOWS[:80], WINDOWS[80:160]
LATER = WINDOWS[160:]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Valkey]:
    with own_server(tmp_path / "valkey") as server:
        yield server


@pytest.fixture
async def store(server: Valkey) -> AsyncIterator[AlertStore]:
    async with AlertStore(server.url) as store:
        yield store


async def lose_the_end(server: Valkey, store: AlertStore, remembered: dict[str, StoredSensor]) -> None:
    """Apply the first windows, keep the disk as it is then, apply more, and come back with the disk that was kept."""
    await work(store, KEPT, RULES, remembered)
    server.service.stop()
    data = server.service.folder / "data"
    shutil.copytree(data, data.with_name("kept"))
    server.start(owned=True)
    server.wait_ready(20)
    await work(store, LOST, RULES, remembered)
    server.service.kill()
    shutil.rmtree(data)
    data.with_name("kept").rename(data)
    server.start(owned=True)
    server.wait_ready(20)


async def stream_of(server: Valkey) -> list[Alert]:
    async with Alerts(server.url) as alerts:
        return [alert async for _, alert in alerts.history(wanted=EVERYTHING)]


async def test_windows_that_are_read_again_make_the_lost_alerts_again_under_the_same_ids(
    server: Valkey, store: AlertStore
) -> None:
    remembered: dict[str, StoredSensor] = {}
    await lose_the_end(server, store, remembered)
    await work(store, [*LOST, *LATER], RULES, remembered)
    assert await stream_of(server) == run(WINDOWS)


async def test_where_they_were_committed_the_lost_alerts_stay_lost_and_a_gap_is_told(
    server: Valkey, store: AlertStore
) -> None:
    remembered: dict[str, StoredSensor] = {}
    await lose_the_end(server, store, remembered)
    assert remembered[SENSOR].version > 1, "the worker believes in a state that the server has lost"
    await work(store, LATER, RULES, remembered)
    found = await stream_of(server)
    assert len({alert.id for alert in found}) == len(found), "none twice"
    kept = run(KEPT)
    assert found[: len(kept)] == kept
    assert {alert.condition for alert in found} == {"knock", "sensor.gap"}
    assert sum(alert.condition == "knock" for alert in found) < sum(a.condition == "knock" for a in run(WINDOWS))
