"""Whether Redis answers, asked every second by somebody who has nothing else to do."""

from __future__ import annotations

import asyncio
import time
from typing import Any, NoReturn

from redis.exceptions import AuthenticationError, RedisError, ResponseError

from stream.redis_connection import connect

ASK_EVERY_S = 1.0
ANSWER_WITHIN_S = 3.0


class RedisWatch:
    """Knows whether Redis answers; `run` it beside the worker.

    Parameters
    ----------
    url
        See `stream.redis_connection.connect`.
    """

    def __init__(self, url: str) -> None:
        self._redis: Any = connect(url, ANSWER_WITHIN_S)
        self.away_since_s: float | None = None  #: monotonic; None while it answers
        self.error = ""  #: why it does not

    async def run(self) -> NoReturn:
        """Ask until cancelled."""
        while True:
            await self.ask()
            await asyncio.sleep(ASK_EVERY_S)

    async def ask(self) -> None:
        """Ask once."""
        try:
            await self._redis.ping()
        except (RedisError, OSError) as error:
            # A server that refuses a command (rights, memory) answers; whether it does its work is seen elsewhere.
            if not isinstance(error, ResponseError) or isinstance(error, AuthenticationError):
                self.error = str(error) or type(error).__name__
                if self.away_since_s is None:
                    self.away_since_s = time.monotonic()
                return
        self.away_since_s, self.error = None, ""

    async def close(self) -> None:
        """Close the connection."""
        await self._redis.aclose()
