"""Passwords stay out of what is printed and logged: in URLs, and wherever else a known one would appear."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from urllib.parse import quote, quote_plus, unquote

STARS = "***"
#: A shorter one is part of ordinary words; to put stars there would tell it.
SHORTEST = 4

_LOGIN = re.compile(r"(?<=://)(?P<user>[^:@]*):(?P<password>.*)@", re.DOTALL)
_QUERY = re.compile(r"(?P<name>password=)(?P<password>[^&\s]*)")


def without_password(url: str) -> str:
    """The URL as it may be shown and logged; whatever might belong to a password is left out, also of a broken URL."""
    return _QUERY.sub(rf"\g<name>{STARS}", _LOGIN.sub(rf"\g<user>:{STARS}@", url))


def passwords_of(url: str) -> list[str]:
    """The passwords in a URL: of the login, and of `…password=`."""
    found = [match["password"] for match in (*_LOGIN.finditer(url), *_QUERY.finditer(_LOGIN.sub("", url)))]
    return [unquote(password) for password in found if password]


def hiding(secrets: Iterable[str]) -> Callable[[str], str]:
    """A function that puts stars in the place of these secrets, however they are written there."""
    ways = {way for secret in secrets for way in _ways_to_write(secret) if len(secret) >= SHORTEST}
    if not ways:
        return lambda text: text
    longest_first = re.compile("|".join(map(re.escape, sorted(ways, key=len, reverse=True))))
    return lambda text: longest_first.sub(STARS, text)


def _ways_to_write(secret: str) -> set[str]:
    """Bare, in a URL, as JSON, as Python shows it, and the last two within JSON."""
    as_bytes = secret.encode("utf-8", "surrogateescape")
    ways = {secret, quote(as_bytes, safe=""), quote_plus(as_bytes), repr(secret)[1:-1], repr(as_bytes)[2:-1]}
    for _ in range(2):
        ways |= {json.dumps(way, ensure_ascii=ascii)[1:-1] for way in set(ways) for ascii in (True, False)}
    return ways
