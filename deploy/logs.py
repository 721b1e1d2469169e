"""One line an event, on stderr: readable text, or JSON for a log collector."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterable
from typing import TextIO

from stream.hidden_secrets import hiding

MAX_REMEMBERED = 1000

#: Loggers of this project; all others are libraries'.
OWN = ("aewatch", "producers", "stream", "model", "deploy")

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _PLAIN}


def _utc(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


class TextFormatter(logging.Formatter):
    """`2026-11-23T08:15:02.120Z INFO worker batch done windows=32`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback below it where there is one."""
        name = record.name.removeprefix("aewatch.")
        line = f"{_utc(record)} {record.levelname:<7} {name}: {record.getMessage()}"
        line += "".join(f" {key}={value}" for key, value in _extra(record).items())
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line with time, level, logger, message and whatever the event carries."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; a traceback is a field."""
        event: dict[str, object] = {
            "time": _utc(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        event |= _extra(record)
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, default=str, ensure_ascii=False)


class Damper(logging.Filter):
    """Lets a library say the same thing a few times and then counts: a client without a broker says it all the time.

    Our own records always pass.
    """

    def __init__(self, times: int = 3, within_s: float = 10.0) -> None:
        super().__init__()
        self._times = times
        self._within_s = within_s
        self._said: dict[tuple[str, object], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to let it pass; the first one after a silence says how many were left out."""
        if record.name.partition(".")[0] in OWN:
            return True
        what = (record.name, record.msg)
        begun, count = self._said.get(what, (record.created, 0))
        if record.created - begun > self._within_s:
            left_out = count - self._times
            if left_out > 0:
                record.left_out_before = left_out
            begun, count = record.created, 0
        self._said[what] = (begun, count + 1)
        if len(self._said) > MAX_REMEMBERED:
            self._said.clear()
        return count < self._times


class _Discreet(logging.StreamHandler[TextIO]):
    """Writes stars where a secret stood, also in tracebacks and in what libraries say."""

    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__(sys.stderr)
        self._hidden = hiding(secrets)

    def format(self, record: logging.LogRecord) -> str:
        """As its formatter does."""
        return self._hidden(super().format(record))


def configure(level: str, style: str, secrets: Iterable[str] = ()) -> None:
    """Send everything to stderr in one style. Libraries speak from WARNING on unless the level is DEBUG.

    Parameters
    ----------
    secrets
        What is never written, whoever says it.
    """
    handler = _Discreet(secrets)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    handler.addFilter(Damper())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if level == "DEBUG" else logging.WARNING)
    for name in OWN:
        logging.getLogger(name).setLevel(level)
    # At DEBUG it shows every request as it goes out, a login with its password among them.
    logging.getLogger("aiokafka.conn").setLevel(max(logging.INFO, root.level))
