"""Alarm state and alerts in Redis: written together or not at all, by `alert_store.lua` on the server.

A change names the version of the state it was made from; the server refuses it if somebody else was faster, so that
a second delivery, a stale worker or a repeated command changes nothing. `docs/redis.md` is the contract for readers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from redis.exceptions import BusyLoadingError, NoPermissionError, ReadOnlyError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from stream.alarm_state import SensorState, decode_state, encode_state
from stream.alerts import Alert, Transition, encode_alert, with_delay
from stream.hidden_secrets import without_password
from stream.predictions import Prediction
from stream.redis_connection import connect, is_refusal
from stream.sensor_summary import summary_fields

log = logging.getLogger("aewatch.alert_store")

LIBRARY = "aewatch_v1"
FUNCTION = "aewatch_apply_v1"

#: The server is away or not itself yet; the same command may do in a moment.
TRANSIENT = (RedisConnectionError, RedisTimeoutError, BusyLoadingError, ReadOnlyError, OSError)

EFFECTS = {
    Transition.RAISED: "open",
    Transition.ACKNOWLEDGED: "open",
    Transition.SHELVED: "open",
    Transition.CLEARED: "close",
    Transition.UNSHELVED: "close",
    Transition.RECORDED: "none",
}


class StoreUnavailable(RedisConnectionError):  # noqa: N818 - says what is the matter
    """Redis did not answer for longer than the store was told to wait; nothing is known of the last change."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of everything in Redis, all beginning with one prefix.

    A sensor id comes last in its key, so that no id, whatever it holds, makes the key of another thing. The sensors'
    register does not share the "sensor:" that their keys begin with.
    """

    prefix: str = "aewatch"

    def __post_init__(self) -> None:
        if not self.prefix or not self.prefix.isprintable() or " " in self.prefix:
            raise ValueError(f"Redis prefix {self.prefix!r} must be printable, without spaces, and not empty")

    @property
    def alerts(self) -> str:
        """The stream, and the channel of the same name."""
        return f"{self.prefix}:alerts"

    @property
    def active(self) -> str:
        """Hash: episode id to the latest alert of each episode that is open."""
        return f"{self.prefix}:active"

    @property
    def sensors(self) -> str:
        """Sorted set: sensor id by the end of its last window, s since 1970."""
        return f"{self.prefix}:sensors"

    @property
    def model(self) -> str:
        """Hash: which model, and which shadow, is wanted of all workers."""
        return f"{self.prefix}:model"

    @property
    def model_workers(self) -> str:
        """Set: ids of the workers that run, and of some that died."""
        return f"{self.prefix}:model:workers"

    def model_worker(self, worker: str) -> str:
        """Hash: what one worker runs and has answered; gone soon after the worker."""
        return f"{self.prefix}:model:worker:{worker}"

    def sensor(self, sensor: str) -> str:
        """Hash: alarm state and last window of one sensor."""
        return f"{self.prefix}:sensor:{sensor}"


@dataclass(frozen=True, slots=True)
class StoredSensor:
    """A sensor's alarm state as the store holds it; `version` counts its changes, 0 where there is none yet."""

    sensor: str
    version: int
    state_json: bytes

    def copy_state(self) -> SensorState:
        """The state, to be changed freely.

        Raises
        ------
        BadState
            If another release wrote it in a form that this one does not know.
        """
        return decode_state(self.state_json, self.sensor) if self.state_json else SensorState(sensor=self.sensor)


@dataclass(frozen=True, slots=True)
class SensorChange:
    """What shall become of one sensor: the new state, made from `stored`, and the alerts that go with it."""

    stored: StoredSensor
    state: SensorState
    alerts: Sequence[Alert] = ()
    latest: Prediction | None = None  #: last window applied; None for an operator's command

    @property
    def sensor(self) -> str:
        """Id of the sensor."""
        return self.stored.sensor


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a change. Where it was not applied, `stored` is what is there instead."""

    applied: bool
    stored: StoredSensor
    cursors: tuple[str, ...] = field(default=())  #: stream ids of the alerts; empty where the answer was lost


class AlertStore:
    """Where the worker keeps alarm state and publishes alerts. Close it when done, or use `async with`.

    Parameters
    ----------
    url
        See `stream.redis_connection.connect`.
    prefix
        What every key and the channel begin with.
    keep_alerts
        How many alerts the stream keeps, at least; 0 keeps all.
    timeout_s
        For connecting and for each answer, s.
    retry_s
        How long an unreachable server is tried again before an error is raised, s.
    late_after_s
        A live alert that is published later than this after its event time says so (`Alert.delay_s`), s; None: never.
    """

    def __init__(
        self,
        url: str,
        prefix: str = "aewatch",
        *,
        keep_alerts: int = 1_000_000,
        timeout_s: float = 5.0,
        retry_s: float = 10.0,
        late_after_s: float | None = None,
    ) -> None:
        if keep_alerts < 0:
            raise ValueError(f"keep_alerts is {keep_alerts}; wanted is a number of alerts, or 0 to keep all")
        self.keys = Keys(prefix)
        self._url = url
        self._redis: Any = connect(url, timeout_s)  # redis-py types its answers as unions of everything
        self._keep_alerts = keep_alerts
        self._retry_s = retry_s
        self._late_after_s = late_after_s
        self._source = files("stream").joinpath("alert_store.lua").read_text(encoding="utf-8")
        self._function_checked = False
        self.trouble = ""  #: why the server does not do what it is asked now; empty while it does

    async def __aenter__(self) -> AlertStore:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def load(self, sensors: Iterable[str]) -> dict[str, StoredSensor]:
        """What the store holds of these sensors, in one round trip; version 0 for a sensor it has not seen.

        Raises
        ------
        StoreUnavailable
            If Redis cannot be reached for `retry_s`.
        """
        wanted = list(dict.fromkeys(sensors))
        commands = [("HMGET", self.keys.sensor(sensor), "version", "state") for sensor in wanted]
        replies = await self._patiently(commands)
        stored = {}
        for sensor, reply in zip(wanted, replies, strict=True):
            if isinstance(reply, Exception):
                raise reply
            version, state_json = reply
            stored[sensor] = StoredSensor(sensor, int(version or 0), state_json or b"")
        return stored

    async def apply(self, changes: Sequence[SensorChange]) -> list[Applied]:
        """Write these changes, each wholly or not at all, all of them in one round trip.

        A lost answer is no matter: the changes are sent again, and those that had been applied are recognised.

        Parameters
        ----------
        changes
            At most one for each sensor.

        Returns
        -------
        list of Applied
            In the order of the changes.

        Raises
        ------
        StoreUnavailable
            If Redis cannot be reached for `retry_s`. Load again before going on: it may have applied the changes.
        redis.exceptions.ResponseError
            If the server refuses a change (rights, memory, a key of another kind); others may be applied.
        """
        if len({change.sensor for change in changes}) != len(changes):
            raise ValueError("two changes of one sensor in one call; the second would be refused")
        encoded = [encode_state(change.state) for change in changes]
        commands = [self._command(change, state_json) for change, state_json in zip(changes, encoded, strict=True)]
        sent_again: set[int] = set()
        replies = await self._patiently(commands, sent_again)
        results = []
        for number, (change, state_json, reply) in enumerate(zip(changes, encoded, replies, strict=True)):
            if isinstance(reply, Exception):
                raise reply
            results.append(_result(change, state_json, reply, sent_again=number in sent_again))
        return results

    def _command(self, change: SensorChange, state_json: bytes) -> tuple[Any, ...]:
        state = change.state
        last = state.latest
        summary = [part for pair in summary_fields(state, change.latest).items() for part in pair]
        alerts: list[Any] = []
        for decided in change.alerts:
            alert = decided
            if self._late_after_s is not None:
                alert = with_delay(decided, time.time_ns(), self._late_after_s)
            effect = EFFECTS[alert.transition]
            alerts += [encode_alert(alert), effect, alert.episode, alert.condition, alert.transition, alert.priority]
        return (
            "FCALL",
            FUNCTION,
            4,
            self.keys.sensor(change.sensor),
            self.keys.alerts,
            self.keys.active,
            self.keys.sensors,
            change.stored.version,
            "operate" if change.latest is None else "advance",
            _digits(state.windows.position if state.windows else None),
            _digits(state.hits.position if state.hits else None),
            state_json,
            change.sensor,
            "" if last is None else f"{last.end_ns // 10**9}.{last.end_ns % 10**9:09d}",
            self.keys.alerts,
            self._keep_alerts,
            len(summary) // 2,
            *summary,
            len(change.alerts),
            *alerts,
        )

    async def _patiently(self, commands: Sequence[tuple[Any, ...]], sent_again: set[int] | None = None) -> list[Any]:
        """Answers to all commands, errors among them; waits out an absent server and one without the function."""
        replies: list[Any] = [None] * len(commands)
        waiting = list(range(len(commands)))
        deadline = asyncio.get_running_loop().time() + self._retry_s
        pause_s = 0.05
        while True:
            failure: Exception | None = None
            try:
                answers = await self._send([commands[number] for number in waiting])
            except TRANSIENT as error:
                if not is_transient(error):
                    raise
                failure = error
            else:
                again = []
                for number, answer in zip(waiting, answers, strict=True):
                    replies[number] = answer
                    if is_transient(answer) or _lacks_function(answer):
                        failure = answer
                        again.append(number)
                waiting = again
            if failure is None:
                self.trouble = ""
                return replies
            what = self.trouble = str(failure) or type(failure).__name__
            if asyncio.get_running_loop().time() >= deadline:
                place = without_password(self._url)
                raise StoreUnavailable(f"{place}: gave up after {self._retry_s:g} s: {what}") from failure
            log.warning("Redis does not do it, trying again", extra={"error": what})
            if sent_again is not None:
                sent_again.update(waiting)
            # Whatever it was (restart, failover), what is known of this server may be of another one.
            self._function_checked = False
            await self._redis.connection_pool.disconnect(inuse_connections=False)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)

    async def _send(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        if not self._function_checked:
            await self._load_function()
        pipeline = self._redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return list(await pipeline.execute(raise_on_error=False))

    async def _load_function(self) -> None:
        """Give the server the function unless it has this very text; others may be doing the same."""
        try:
            libraries = await self._redis.execute_command("FUNCTION", "LIST", "LIBRARYNAME", LIBRARY, "WITHCODE")
            if _library_code(libraries) != self._source:
                await self._redis.execute_command("FUNCTION", "LOAD", "REPLACE", self._source)
        except NoPermissionError:
            # Then an administrator has to load it; the call itself will say if nobody did.
            log.debug("not allowed to look after functions on the server")
        self._function_checked = True


def is_transient(answer: object) -> bool:
    """Whether waiting may help; with a wrong password or certificate, connection errors too, it does not."""
    return isinstance(answer, TRANSIENT) and not is_refusal(answer)


def _lacks_function(answer: object) -> bool:
    return isinstance(answer, ResponseError) and "Function not found" in str(answer)


def _result(change: SensorChange, state_json: bytes, reply: Sequence[Any], *, sent_again: bool) -> Applied:
    outcome, version = bytes(reply[0]), int(reply[1])
    if outcome == b"applied":
        cursors = tuple(cursor.decode() for cursor in reply[2])
        return Applied(True, StoredSensor(change.sensor, version, state_json), cursors)
    stored = StoredSensor(change.sensor, version, bytes(reply[2]))
    # The first sending got through and only its answer was lost.
    ours = sent_again and version == change.stored.version + 1 and stored.state_json == state_json
    return Applied(ours, stored)


def _digits(position: tuple[int, int] | None) -> str:
    return "" if position is None else f"{position[0]:019d}{position[1]:019d}"


def _library_code(libraries: Sequence[Sequence[Any]]) -> str | None:
    for library in libraries:
        described = dict(zip(library[::2], library[1::2], strict=True))
        if b"library_code" in described:
            return bytes(described[b"library_code"]).decode()
    return None
