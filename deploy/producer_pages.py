"""What a producer says of itself over HTTP: /metrics for Prometheus, /sensors and /healthz as JSON, / names them."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from deploy.producer_metrics import metrics_text
from producers.live.sensor_meter import SensorReport

#: Where people land.
FRONT = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>aewatch producer</title>
<h1>aewatch producer</h1>
<ul>
<li><a href="/metrics">/metrics</a>: for Prometheus
<li><a href="/sensors">/sensors</a>: each sensor, as JSON; in words: <code>aewatch sensors --producer HOST:PORT</code>
<li><a href="/healthz">/healthz</a>: the broker, and sensors that are being tried again
</ul>
</html>
"""


@dataclass(frozen=True, slots=True)
class ProducerState:
    """A producer, now."""

    sensors: list[SensorReport]
    totals: dict[str, tuple[float, str, bool]]  #: see `deploy.producer_metrics.metrics_text`
    broker: str  #: "connected", or since when and why not


@asynccontextmanager
async def producer_pages(listen: str, state: Callable[[], ProducerState]) -> AsyncIterator[str]:
    """Serve at `listen` (host:port; port 0 is any free one) while inside; gives the address.

    Raises
    ------
    ValueError
        If the address cannot be listened on.
    """
    host, _, port = listen.rpartition(":")
    app = web.Application()

    async def metrics(request: web.Request) -> web.Response:
        now = state()
        text = metrics_text(now.sensors, now.totals)
        return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def sensors(request: web.Request) -> web.Response:
        now = state()
        return web.json_response(
            {
                "broker": now.broker,
                "totals": {name: value for name, (value, _, _) in now.totals.items()},
                "sensors": [dataclasses.asdict(sensor) for sensor in now.sensors],
            }
        )

    async def healthz(request: web.Request) -> web.Response:
        now = state()
        away = [sensor.sensor for sensor in now.sensors if sensor.state == "retrying"]
        return web.json_response({"broker": now.broker, "retrying": away})

    async def front(request: web.Request) -> web.Response:
        return web.Response(text=FRONT, content_type="text/html")

    app.add_routes(
        [
            web.get("/", front),
            web.get("/metrics", metrics),
            web.get("/sensors", sensors),
            web.get("/healthz", healthz),
        ]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host or "127.0.0.1", int(port))
        await site.start()
    except (OSError, ValueError, OverflowError) as error:
        await runner.cleanup()
        raise ValueError(f'listen = {listen!r}: {error}; name host:port, or "" for no pages') from error
    try:
        yield "{}:{}".format(*runner.addresses[0][:2])
    finally:
        await runner.cleanup()
