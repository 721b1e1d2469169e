"""What a window agent or a worker says of itself over HTTP: /healthz, /readyz, /metrics."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from stream.health import Health

log = logging.getLogger("aewatch.pages")


class ListenError(ValueError):
    """The address for the pages cannot be listened on."""


@asynccontextmanager
async def role_pages(listen: str, health: Callable[[], Health], metrics: Callable[[], bytes]) -> AsyncIterator[str]:
    """Serve at `listen` (host:port; port 0 is any free one) while inside; gives the address. Empty: no pages.

    Parameters
    ----------
    health
        Of the process now. `/healthz` is 503 where it must be started again, `/readyz` also where it only waits.
    metrics
        In Prometheus' text format.

    Raises
    ------
    ListenError
        If the address cannot be listened on.
    """
    if not listen:
        yield ""
        return

    async def healthz(request: web.Request) -> web.Response:
        now = health()
        return _answer(now, now.alive)

    async def readyz(request: web.Request) -> web.Response:
        now = health()
        return _answer(now, now.ready)

    async def metrics_page(request: web.Request) -> web.Response:
        return web.Response(body=metrics(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics_page)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            host, _, port = listen.rpartition(":")
            await web.TCPSite(runner, host.strip("[]") or "127.0.0.1", int(port)).start()
        except (OSError, ValueError, OverflowError) as error:
            raise ListenError(f'listen = {listen!r}: {error}; name host:port, or "" for no pages') from error
        address = "{}:{}".format(*runner.addresses[0][:2])
        log.info("pages", extra={"address": address})
        yield address
    finally:
        await runner.cleanup()


def _answer(now: Health, well: bool) -> web.Response:
    reasons = [*now.dead, *now.not_ready]
    return web.json_response({"status": now.status, "reasons": reasons}, status=200 if well else 503)
