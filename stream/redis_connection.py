"""A Redis client from a URL: explicit timeouts, no retries of its own, Sentinel too.

redis-py repeats a command after a lost reply unless told otherwise, which would publish an alert twice; whoever writes
here repeats for itself, knowing what it does.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from redis.asyncio import Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

SENTINEL_SCHEMES = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
SENTINEL_PORT = 26379


def connect(url: str, timeout_s: float = 5.0) -> Redis:
    """A client with a pool of connections; nothing is opened before the first command.

    Parameters
    ----------
    url
        `redis://`, `rediss://` (TLS), `unix://`, or `redis+sentinel://user:password@host:port,host:port/service/db`
        (`rediss+sentinel://` with TLS; `?sentinel_username=` and `?sentinel_password=` for the sentinels' own).
    timeout_s
        For connecting and for each answer, s; the URL's `socket_timeout` and `socket_connect_timeout` go first.

    Raises
    ------
    ValueError
        If the URL is none of these.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "socket_keepalive": True,
        "protocol": 2,
        "decode_responses": False,
        "retry": Retry(NoBackoff(), 0),
    }
    if urlsplit(url).scheme in SENTINEL_SCHEMES:
        return _behind_sentinel(url, options)
    try:
        return Redis.from_url(url, **options)
    except ValueError as error:
        raise ValueError(f"{without_password(url)}: {error}") from error


def answer_timeout_s(client: Redis) -> float:
    """How long this client waits for an answer, s; a blocking read must be shorter."""
    timeout_s = client.connection_pool.connection_kwargs.get("socket_timeout")
    return 5.0 if timeout_s is None else float(timeout_s)


def without_password(url: str) -> str:
    """The URL as it may be shown and logged."""
    hidden = re.sub(r"//([^/@]*?):[^@]*@", r"//\1:***@", url)
    return re.sub(r"(password=)[^&]*", r"\1***", hidden)


def _behind_sentinel(url: str, options: dict[str, Any]) -> Redis:
    parts = urlsplit(url)
    login, _, places = parts.netloc.rpartition("@")
    sentinels = []
    for place in places.split(","):
        host, _, port = place.rpartition(":") if re.search(r":\d+$", place) else (place, "", str(SENTINEL_PORT))
        if not host:
            raise ValueError(f"{without_password(url)}: a sentinel has no host; wanted is host:port,host:port/service")
        sentinels.append((host.strip("[]"), int(port)))
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError(f"{without_password(url)}: no service name; wanted is redis+sentinel://host:port/service/db")
    plain = urlunsplit(
        (
            SENTINEL_SCHEMES[parts.scheme],
            f"{login}@localhost" if login else "localhost",
            f"/{database or 0}",
            parts.query,
            "",
        )
    )
    try:
        given: dict[str, Any] = dict(parse_url(plain))
    except ValueError as error:
        raise ValueError(f"{without_password(url)}: {error}") from error
    secure = given.pop("connection_class", None) is not None
    given.pop("host", None)
    own = {key: given.pop(f"sentinel_{key}") for key in ("username", "password") if f"sentinel_{key}" in given}
    tls = {key: value for key, value in given.items() if key.startswith("ssl")}
    options |= given
    asking = {key: options[key] for key in ("socket_timeout", "socket_connect_timeout", "socket_keepalive", "retry")}
    if secure:
        options["ssl"] = True
        asking |= {"ssl": True, **tls}
    sentinel: Any = Sentinel(sentinels, sentinel_kwargs=asking | own, **options)  # type: ignore[no-untyped-call]
    client: Redis = sentinel.master_for(service)
    return client
