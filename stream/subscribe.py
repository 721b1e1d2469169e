"""Alerts for programs: follow them without losing one, look back, see what is open, acknowledge and shelve.

    async with Alerts("redis://127.0.0.1:16379/0") as alerts:
        async for cursor, alert in alerts.follow(since="0"):
            print(alert.sensor, alert.condition, alert.transition)

Keep the cursor, and the next `follow(since=cursor)` goes on after it.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import random
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import msgspec
from redis.exceptions import ResponseError

from stream.alarm_state import REMEMBERED_OPERATIONS, SensorState
from stream.alert_filter import EVERYTHING, EVERYTHING_LIVE, URGENCY, AlertFilter
from stream.alert_store import TRANSIENT, AlertStore, Keys, SensorChange, is_transient
from stream.alerts import Alert, Transition, decode_alert, run_of
from stream.operator_actions import EpisodeNotOpen, OperatorError, acknowledge, shelve, unshelve
from stream.redis_connection import answer_timeout_s, connect
from stream.sensor_summary import SensorSummary, read_summary

log = logging.getLogger("aewatch.subscribe")

PAGE = 500
NS_PER_S = 1_000_000_000
#: A sensor's state changes with every batch of windows; a command that loses this race for so long has another problem.
KEEP_TRYING_S = 30.0
#: A command that lost waits a random time up to this, at first, and twice as long each time: two programs that read
#: and write in the same rhythm would otherwise meet again and again, and the same one would lose each time.
FIRST_PAUSE_S = 0.001
LONGEST_PAUSE_S = 0.1
MAX_DIGITS = 20
CURSOR = re.compile(rf"[0-9]{{1,{MAX_DIGITS}}}(-[0-9]{{1,{MAX_DIGITS}}})?")


class BadCursor(ValueError):  # noqa: N818 - says what is the matter
    """Not a place in the stream of alerts."""


class HistoryTrimmed(Exception):  # noqa: N818
    """Alerts between the cursor and the oldest one kept are gone from the stream."""


class UnknownSensor(OperatorError):  # noqa: N818
    """No window of this sensor has ever been applied."""


class Alerts:
    """What subscribers and operators may do. Use it with `async with`, or close it.

    Parameters
    ----------
    url
        See `stream.redis_connection.connect`.
    prefix
        The prefix that the worker writes with.
    timeout_s
        For connecting and for each answer, s.
    """

    def __init__(self, url: str, prefix: str = "aewatch", *, timeout_s: float = 5.0) -> None:
        self.keys = Keys(prefix)
        self._redis: Any = connect(url, timeout_s)
        self._store = AlertStore(url, prefix, keep_alerts=0, timeout_s=timeout_s)
        # A blocking read that the server answers only after the client gave up would look like a lost connection.
        self._block_ms = max(1, int(min(2.0, answer_timeout_s(self._redis) / 2) * 1000))

    async def __aenter__(self) -> Alerts:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._store.close()
        await self._redis.aclose()

    async def cursor(self) -> str:
        """Cursor of the newest alert: `follow(since=...)` it to see all that come from now on."""
        information = await self._information()
        return "0-0" if information is None else _text(information["last-generated-id"])

    async def follow(
        self,
        since: str = "$",
        wanted: AlertFilter = EVERYTHING_LIVE,
        *,
        on_trimmed: Callable[[HistoryTrimmed], None] | None = None,
    ) -> AsyncIterator[tuple[str, Alert]]:
        """Alerts as they come, each with its cursor, for ever; none lost or repeated over lost connections.

        Parameters
        ----------
        since
            A cursor: begin after it. "0": with the oldest alert kept. "$": with the next one to come.
        wanted
            Others are passed over.
        on_trimmed
            Called where alerts were trimmed away before they could be read; reading then goes on with the oldest one
            there is.

        Raises
        ------
        HistoryTrimmed
            In the same case without `on_trimmed`.
        BadCursor
            If `since` is none, or of another server.
        redis.exceptions.ConnectionError, redis.exceptions.TimeoutError
            If the server cannot be reached at first. Once it was, it is waited for.
        """
        reading = _Reading(on_trimmed)
        await self._begin(reading, since)
        pause_s = 0.1
        while True:
            try:
                answer = await self._redis.xread({self.keys.alerts: reading.cursor}, PAGE, self._block_ms)
                pause_s = 0.1
            except TRANSIENT as error:
                if not is_transient(error):
                    raise
                log.warning(
                    "Redis does not answer, reading goes on when it does",
                    extra={"error": str(error) or type(error).__name__},
                )
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, 2.0)
                continue
            for _, entries in answer:
                for entry_id, entry in entries:
                    alert = reading.take(entry_id, entry)
                    if alert is not None and wanted.matches(alert):
                        yield reading.cursor, alert

    async def history(
        self,
        since: str = "0",
        until: str = "+",
        wanted: AlertFilter = EVERYTHING_LIVE,
        *,
        on_trimmed: Callable[[HistoryTrimmed], None] | None = None,
    ) -> AsyncIterator[tuple[str, Alert]]:
        """Alerts that are in the stream now, each with its cursor, oldest first.

        Parameters
        ----------
        since
            A cursor: begin after it. Milliseconds since 1970: with alerts that arrived then. "0": with the oldest.
        until
            A cursor or milliseconds, included; "+": to the newest.
        wanted, on_trimmed
            As for `follow`.

        Raises
        ------
        HistoryTrimmed, BadCursor
            As `follow` does.
        """
        if until != "+":
            _check_cursor(until)
        reading = _Reading(on_trimmed)
        await self._begin(reading, since)
        while True:
            start = "-" if reading.cursor == "0" else f"({reading.cursor}"
            entries = await self._redis.xrange(self.keys.alerts, start, until, count=PAGE)
            if not entries:
                return
            for entry_id, entry in entries:
                alert = reading.take(entry_id, entry)
                if alert is not None and wanted.matches(alert):
                    yield reading.cursor, alert

    async def active(self, wanted: AlertFilter = EVERYTHING_LIVE) -> list[Alert]:
        """The latest alert of every open episode and of every shelf, most urgent first, then oldest first."""
        found = await self._redis.hvals(self.keys.active)
        alerts = [alert for alert in map(_readable, found) if alert is not None and wanted.matches(alert)]
        return sorted(alerts, key=lambda alert: (URGENCY[alert.priority], alert.time_ns, alert.id))

    async def sensors(self, wanted: AlertFilter = EVERYTHING_LIVE) -> list[SensorSummary]:
        """Every sensor that was ever seen and matches, by id."""
        names = [name for name in await self._sensor_ids() if wanted.matches_sensor(name)]
        pipeline = self._redis.pipeline(transaction=False)
        for name in names:
            pipeline.hgetall(self.keys.sensor(name))
        hashes = await pipeline.execute()
        return [read_summary(name, fields) for name, fields in zip(names, hashes, strict=True)]

    async def acknowledge(self, episode: str, *, by: str, note: str = "") -> Alert:
        """Say that somebody has seen an open episode; returns the alert that says so, the first one if repeated.

        Raises
        ------
        EpisodeNotOpen
            If it is not open; names those with a similar id, or what is open.
        """
        standing = await self._redis.hget(self.keys.active, episode)
        if standing is None:
            raise EpisodeNotOpen(await self._not_open(episode))
        alert = decode_alert(standing)
        if alert.transition == Transition.SHELVED:
            raise EpisodeNotOpen(
                f"{episode} is the shelf of {alert.condition} on {alert.sensor}, not an episode; unshelve it"
            )
        if alert.transition == Transition.ACKNOWLEDGED:
            return alert
        made = await self._operate(
            alert.sensor, lambda state: acknowledge(state, episode, at_ns=time.time_ns(), by=by, note=note)
        )
        if made:
            return made[0]
        return decode_alert(await self._redis.hget(self.keys.active, episode) or standing)

    async def shelve(
        self,
        sensor: str,
        condition: str,
        *,
        by: str,
        for_s: float | None = None,
        until_ns: int | None = None,
        note: str = "",
    ) -> Alert:
        """Raise nothing for one condition of one sensor for a while; an episode that is open stays open.

        Parameters
        ----------
        for_s
            From now on, s; on a sensor of a replay from its last window on, in event time.
        until_ns
            Instead: until this event time, ns UTC.

        Raises
        ------
        UnknownSensor, stream.operator_actions.UnknownCondition
            Naming those that are there.
        stream.operator_actions.OperatorError
            If the time is over already, or not exactly one of `for_s` and `until_ns` is given.
        """
        if (for_s is None) == (until_ns is None):
            raise OperatorError("give either for_s or until_ns")

        def act(state: SensorState) -> list[Alert]:
            at_ns = time.time_ns()
            end_ns = until_ns
            if end_ns is None:
                latest = state.latest
                begin_ns = latest.end_ns if latest is not None and run_of(sensor) else at_ns
                end_ns = begin_ns + round((for_s or 0.0) * NS_PER_S)
            return shelve(state, condition, until_ns=end_ns, at_ns=at_ns, by=by, note=note)

        return (await self._operate(sensor, act))[0]

    async def unshelve(self, sensor: str, condition: str, *, by: str, note: str = "") -> list[Alert]:
        """End a shelf; the second alert, if any, raises the episode that it had hidden.

        Raises
        ------
        UnknownSensor, stream.operator_actions.NotShelved
            Naming what is there.
        """
        return await self._operate(
            sensor, lambda state: unshelve(state, condition, at_ns=time.time_ns(), by=by, note=note)
        )

    async def _operate(self, sensor: str, act: Callable[[SensorState], list[Alert]]) -> list[Alert]:
        """Load, act, apply; again if the worker was faster. A command whose answer was lost is not done twice."""
        mark = secrets.token_hex(8)
        made: list[Alert] = []
        give_up_at = time.monotonic() + KEEP_TRYING_S
        pause_s = FIRST_PAUSE_S
        while True:
            stored = (await self._store.load([sensor]))[sensor]
            if stored.version == 0:
                raise UnknownSensor(await self._no_sensor(sensor))
            state = stored.copy_state()
            if mark in state.operations:
                return made
            made = act(state)
            if not made:
                return []
            state.operations = [*state.operations, mark][-REMEMBERED_OPERATIONS:]
            if (await self._store.apply([SensorChange(stored, state, made)]))[0].applied:
                return made
            if time.monotonic() > give_up_at:
                raise OperatorError(
                    f"{sensor}: for {KEEP_TRYING_S:.0f} s its state changed each time while this command was at it; "
                    "nothing was done, try again"
                )
            await asyncio.sleep(random.uniform(0, pause_s))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _begin(self, reading: _Reading, since: str) -> None:
        if since == "$":
            since = await self.cursor()
        _check_cursor(since)
        information = await self._information()
        if _order(since) == (0, 0):
            return
        reading.cursor = since
        is_time = "-" not in since
        if information is None:
            if not is_time:
                reading.trimmed(f"there is no stream {self.keys.alerts}, the cursor {since} is of an earlier one")
                reading.cursor = "0"
            return
        newest = _text(information["last-generated-id"])
        if _order(since) > _order(newest) and not is_time:
            raise BadCursor(f"cursor {since} is after the newest alert {newest}: it is of another server or prefix")
        entries = await self._redis.xrange(self.keys.alerts, since, since, count=1)
        if entries and not is_time:
            reading.number = _number(entries[0][1])
            return
        first = information["first-entry"]
        oldest = _text(first[0]) if first else newest
        something_trimmed = information["entries-added"] > information["length"]
        if something_trimmed and _order(since) < _order(oldest):
            reading.trimmed(f"alerts after {since} were trimmed away; the oldest one kept is {oldest}")

    async def _information(self) -> dict[str, Any] | None:
        """What the server says of the stream; None where there is none yet."""
        try:
            return dict(await self._redis.xinfo_stream(self.keys.alerts))
        except ResponseError as error:
            if "no such key" in str(error):
                return None
            raise

    async def _sensor_ids(self) -> list[str]:
        return sorted(name.decode() for name in await self._redis.zrange(self.keys.sensors, 0, -1))

    async def _not_open(self, episode: str) -> str:
        open_now = {alert.episode: alert for alert in await self.active(EVERYTHING)}
        near = difflib.get_close_matches(episode, open_now, n=3, cutoff=0.6) or list(open_now)[:5]
        told = ", ".join(f"{name} ({open_now[name].condition} on {open_now[name].sensor})" for name in near)
        return f"episode {episode} is not open; open now: {told or 'none'}"

    async def _no_sensor(self, sensor: str) -> str:
        names = await self._sensor_ids()
        near = difflib.get_close_matches(sensor, names, n=3, cutoff=0.5) or names[:5]
        return f"no window of {sensor!r} has been seen; sensors: {', '.join(near) or 'none'}"


class _Reading:
    """A reader's place in the stream; entries are numbered, so that a hole shows."""

    def __init__(self, on_trimmed: Callable[[HistoryTrimmed], None] | None, cursor: str = "0") -> None:
        self.cursor = cursor
        self.number: int | None = None
        self._on_trimmed = on_trimmed

    def take(self, entry_id: bytes, entry: Mapping[bytes, bytes]) -> Alert | None:
        """Move on to this entry; its alert, or None where a stranger has written it."""
        number = _number(entry)
        if number is None:
            number = None if self.number is None else self.number + 1
        elif self.number is not None and number != self.number + 1:
            self.trimmed(f"alerts between {self.cursor} and {entry_id.decode()} are gone from the stream")
        self.number, self.cursor = number, entry_id.decode()
        if b"alert" not in entry:
            log.warning("an entry without an alert is passed over", extra={"cursor": self.cursor})
            return None
        return _readable(entry[b"alert"])

    def trimmed(self, what: str) -> None:
        """Say that something is missing: to whoever asked to be told, or by raising."""
        self.number = None
        error = HistoryTrimmed(f"{what}; follow with since='0' to go on with the oldest one")
        if self._on_trimmed is None:
            raise error
        self._on_trimmed(error)


def _number(entry: Mapping[bytes, bytes]) -> int | None:
    number = entry.get(b"n", b"")
    return int(number) if number.isdigit() and len(number) <= MAX_DIGITS else None


def _readable(stored: bytes) -> Alert | None:
    try:
        return decode_alert(stored)
    except msgspec.DecodeError as error:
        log.warning("an alert that cannot be read is passed over", extra={"error": str(error)})
        return None


def _check_cursor(cursor: str) -> None:
    if not CURSOR.fullmatch(cursor):
        raise BadCursor(f"{cursor!r} is no cursor; wanted is one that an alert came with, like 1732320000000-0, or 0")


def _text(entry_id: bytes | str) -> str:
    return entry_id.decode() if isinstance(entry_id, bytes) else entry_id


def _order(cursor: str) -> tuple[int, int]:
    milliseconds, _, sequence = cursor.partition("-")
    return int(milliseconds), int(sequence or 0)
