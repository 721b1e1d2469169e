"""A Redis client from a URL: explicit timeouts, no retries of its own, Sentinel too.

redis-py repeats a command after a lost reply unless told otherwise, which would publish an alert twice; whoever writes
here repeats for itself, knowing what it does.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from redis.asyncio import Redis
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError

from stream.hidden_secrets import without_password
from stream.tls_files import TlsFilesError, client_context

#: What OpenSSL says when the two ends do not want each other; anything else may be a line that broke.
TLS_REFUSALS = ("CERTIFICATE", "UNKNOWN_CA", "WRONG_VERSION_NUMBER", "HANDSHAKE_FAILURE", "PROTOCOL_VERSION")

#: How servers say that a user lacks a right, by itself and inside a function; Redis 7.0 has words of its own.
DENIALS = ("NOPERM", "ACL failure", "The user executing the script can't")

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
        If the URL is none of these, or a file for TLS that it names cannot be used.
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
        given = dict(parse_url(url))
        if given.get("connection_class") is SSLConnection:
            _check_tls_files(given)
        return Redis.from_url(url, **options)
    except ValueError as error:
        raise ValueError(f"{without_password(url)}: {error}") from error


def is_refusal(error: BaseException) -> bool:
    """Whether the server, or its certificate, was looked at and found wanting; waiting does not help it."""
    if isinstance(error, AuthenticationError | AuthorizationError | TlsFilesError):
        return True
    return any(
        isinstance(one, ssl.SSLError) and any(word in (one.reason or "") for word in TLS_REFUSALS)
        for one in _causes(error)
    )


def way_out(error: BaseException) -> str:
    """What to do about an error of Redis, in a few words."""
    text = str(error)
    if isinstance(error, NoPermissionError) or any(word in text for word in DENIALS):
        return "this user has not the right; docs/security.md lists the rights of each role"
    if isinstance(error, AuthenticationError | AuthorizationError):
        return "are user and password right (redis.username and redis.password, or in redis.url)?"
    if "HOSTNAME" in text.upper() or "IP address mismatch" in text:
        return "the server's certificate is for another name; use a name in redis.url that is in it"
    if "certificate has expired" in text:
        return "the server's certificate has run out; renew it there"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return "name the authority that signed the server's certificate with redis.ca_file"
    if "CERTIFICATE" in text or "UNKNOWN_CA" in text:
        return "the server wants a certificate of this client: redis.certificate_file and redis.key_file"
    if "WRONG_VERSION_NUMBER" in text:
        return "the server does not speak TLS there; its TLS port is another one, or use redis://"
    if "Connection closed by server" in text:
        return "is it a Redis that speaks TLS (rediss://), or not (redis://), and does it want a client's certificate?"
    return "is it running (`aewatch up`), is AEWATCH_REDIS__URL right?"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen = 0
    while error is not None and seen < 10:
        yield error
        error, seen = error.__cause__ or error.__context__, seen + 1


def _check_tls_files(given: Mapping[str, Any]) -> None:
    client_context(
        given.get("ssl_ca_certs"), given.get("ssl_certfile"), given.get("ssl_keyfile"), given.get("ssl_password")
    )


def answer_timeout_s(client: Redis) -> float:
    """How long this client waits for an answer, s; a blocking read must be shorter."""
    timeout_s = client.connection_pool.connection_kwargs.get("socket_timeout")
    return 5.0 if timeout_s is None else float(timeout_s)


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
    if secure:
        _check_tls_files(tls)
    options |= given
    asking = {key: options[key] for key in ("socket_timeout", "socket_connect_timeout", "socket_keepalive", "retry")}
    if secure:
        options["ssl"] = True
        asking |= {"ssl": True, **tls}
    sentinel: Any = Sentinel(sentinels, sentinel_kwargs=asking | own, **options)  # type: ignore[no-untyped-call]
    client: Redis = sentinel.master_for(service)
    return client
