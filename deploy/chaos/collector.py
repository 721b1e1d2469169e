"""A subscriber with a cursor: `python -m deploy.chaos.collector FILE` writes every alert to FILE, and can be killed.

Each line is the cursor of an alert and its JSON. What a kill leaves half written is cut off at the next start, which
goes on behind the last whole line.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import BinaryIO

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from deploy.settings import Settings
from stream.alert_filter import EVERYTHING
from stream.alerts import Alert, decode_alert, encode_alert
from stream.subscribe import Alerts

RETRY_S = 0.5


def collected(path: Path) -> list[tuple[str, Alert]]:
    """What is in the file; a last line without its end does not count."""
    if not path.exists():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    rows = [line.split(b"\t", 1) for line in whole.splitlines()]
    return [(cursor.decode(), decode_alert(alert)) for cursor, alert in rows]


def open_whole(path: Path) -> BinaryIO:
    """The file, to be appended to, without a last line that has no end."""
    file = path.open("ab")
    file.truncate(path.read_bytes().rfind(b"\n") + 1)
    return file


async def collect(file: BinaryIO, since: str, url: str, prefix: str) -> None:
    """Follow for ever, from `since` on."""
    while True:
        try:
            async with Alerts(url, prefix) as alerts:
                async for cursor, alert in alerts.follow(since=since, wanted=EVERYTHING):
                    file.write(cursor.encode() + b"\t" + encode_alert(alert) + b"\n")
                    file.flush()
                    since = cursor
        except (RedisConnectionError, RedisTimeoutError, OSError):
            await asyncio.sleep(RETRY_S)  # not there at the start; later it is waited for


def main() -> None:
    """Entry point of the process."""
    path = Path(sys.argv[1])
    settings = Settings()
    rows = collected(path)
    with open_whole(path) as file:
        since = rows[-1][0] if rows else "0"
        asyncio.run(collect(file, since, settings.redis.connection_url(), settings.redis.prefix))


if __name__ == "__main__":
    main()
