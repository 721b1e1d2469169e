"""What stands beside a window agent or a worker: its pages, and what systemd is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from deploy.role_pages import role_pages
from deploy.systemd_notify import READY, STOPPING, ServiceManager
from stream.health import Health

LOOK_EVERY_S = 0.2


@asynccontextmanager
async def role_service(
    listen: str,
    manager: ServiceManager,
    health: Callable[[], Health],
    metrics: Callable[[], bytes],
    stop: asyncio.Event,
) -> AsyncIterator[None]:
    """While inside, answer at `listen`, and tell systemd once it is ready and when it stops.

    Raises
    ------
    deploy.role_pages.ListenError
        If the address cannot be listened on.
    """

    async def tell() -> None:
        while True:
            # A manager that is busy may have no room for a message, and this one it must not miss.
            if stop.is_set() or (health().ready and manager.say(READY)):
                break
            await asyncio.sleep(LOOK_EVERY_S)
        await stop.wait()
        manager.say(STOPPING)

    async with role_pages(listen, health, metrics):
        telling = asyncio.create_task(tell(), name="systemd")
        try:
            yield
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
