"""What a window agent and a worker say of themselves over HTTP."""

from __future__ import annotations

import pytest
from aiohttp import ClientSession

from deploy.role_pages import ListenError, role_pages
from stream.health import Health


async def answers(health: Health) -> dict[str, tuple[int, object]]:
    async with role_pages("127.0.0.1:0", lambda: health, lambda: b"x 1\n") as address, ClientSession() as session:
        found = {}
        for page in ("healthz", "readyz"):
            async with session.get(f"http://{address}/{page}") as answer:
                found[page] = (answer.status, await answer.json())
        return found


async def test_all_is_well() -> None:
    well = {"status": "ok", "reasons": []}
    assert await answers(Health()) == {"healthz": (200, well), "readyz": (200, well)}


async def test_who_waits_for_something_else_is_alive_but_not_ready() -> None:
    told = {"status": "degraded", "reasons": ["Redis is away"]}
    assert await answers(Health(not_ready=("Redis is away",))) == {"healthz": (200, told), "readyz": (503, told)}


async def test_who_must_be_started_again_is_neither_alive_nor_ready() -> None:
    told = {"status": "dead", "reasons": ["inference hangs"]}
    assert await answers(Health(dead=("inference hangs",))) == {"healthz": (503, told), "readyz": (503, told)}


async def test_metrics_are_in_the_format_that_prometheus_reads() -> None:
    async with (
        role_pages("127.0.0.1:0", Health, lambda: b"x 1\n") as address,
        ClientSession() as session,
        session.get(f"http://{address}/metrics") as answer,
    ):
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert await answer.read() == b"x 1\n"


async def test_nothing_listens_unless_it_is_asked_for() -> None:
    async with role_pages("", Health, lambda: b"") as address:
        assert address == ""


async def test_without_a_host_it_is_this_machine_alone_that_may_ask() -> None:
    async with role_pages(":0", Health, lambda: b"") as address:
        assert address.startswith("127.0.0.1:")


@pytest.mark.parametrize("listen", ["127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999", "nowhere.invalid:0"])
async def test_an_address_that_does_not_do_is_told_with_the_way_out(listen: str) -> None:
    with pytest.raises(ListenError, match='name host:port, or "" for no pages'):
        async with role_pages(listen, Health, lambda: b""):
            pass
