"""A model of `alert_store.lua` and of the few other commands `AlertStore` sends; arguments in, answers out.

`tests/integration/test_store_model.py` holds it against the real function on a real server.
"""

from __future__ import annotations

import re
from asyncio import Future
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import ResponseError

from stream.alert_store import FUNCTION
from tests.simulation.loop import FakeLoop

FIXED = 10
MAX_FIELDS = 1000
WHOLE = re.compile(rb"\d+")
POSITION = re.compile(rb"(\d{38})?")
END = re.compile(rb"(\d+\.?\d*)?")


@dataclass(slots=True)
class StoreModel:
    """What the server holds: hashes of sensors and of open episodes, the alert stream, the sensors by time."""

    hashes: dict[bytes, dict[bytes, bytes]] = field(default_factory=dict)
    streams: dict[bytes, list[dict[bytes, bytes]]] = field(default_factory=dict)
    sorted_sets: dict[bytes, dict[bytes, float]] = field(default_factory=dict)
    published: list[tuple[bytes, bytes]] = field(default_factory=list)
    #: Told of every change: sensor, mode, positions of windows and hits, alerts.
    on_change: Callable[[bytes, bytes, bytes, bytes, list[bytes]], None] | None = None

    def execute(self, command: Sequence[Any]) -> Any:
        """The answer to one command; an error is returned, as a pipeline does."""
        words = [_bytes(word) for word in command]
        if words[0] == b"HMGET":
            found = self.hashes.get(words[1], {})
            return [found.get(name) for name in words[2:]]
        if words[0] == b"FCALL" and words[1] == FUNCTION.encode():
            count = int(words[2])
            return self._apply(words[3 : 3 + count], words[3 + count :])
        return ResponseError(f"unknown command {words[0]!r}")

    def _apply(self, keys: list[bytes], args: list[bytes]) -> Any:
        problem = _problem(keys, args) or self._wrong_kind(keys)
        if problem:
            return ResponseError(f"ERR aewatch_apply_v1: {problem}")
        expected, mode, windows, hits, state, sensor, end, channel = args[:8]
        stored = self.hashes.get(keys[0], {})
        version = stored.get(b"version", b"0")
        if version != expected:
            return [b"conflict", version, stored.get(b"state", b"")]
        if mode == b"advance" and not self.advances(
            windows, hits, stored.get(b"windows_position", b""), stored.get(b"hits_position", b"")
        ):
            return [b"stale", version, stored.get(b"state", b"")]
        field_count = int(args[FIXED - 1])
        fields = args[FIXED : FIXED + 2 * field_count]
        next_version = b"%d" % (int(version) + 1)
        self.hashes[keys[0]] = {
            **stored,
            b"state": state,
            b"windows_position": windows,
            b"hits_position": hits,
            **dict(zip(fields[::2], fields[1::2], strict=True)),
            b"version": next_version,
        }
        if end:
            self.sorted_sets.setdefault(keys[3], {})[sensor] = float(end)
        alerts = args[FIXED + 2 * field_count + 1 :]
        ids = [self._publish(keys, sensor, channel, *alerts[at : at + 6]) for at in range(0, len(alerts), 6)]
        if self.on_change is not None:
            self.on_change(sensor, mode, windows, hits, alerts[::6])
        return [b"applied", next_version, ids]

    def _publish(
        self,
        keys: list[bytes],
        sensor: bytes,
        channel: bytes,
        alert: bytes,
        effect: bytes,
        episode: bytes,
        condition: bytes,
        transition: bytes,
        priority: bytes,
    ) -> bytes:
        stream = self.streams.setdefault(keys[1], [])
        stream.append(
            {
                b"n": b"%d" % (len(stream) + 1),
                b"sensor": sensor,
                b"condition": condition,
                b"transition": transition,
                b"priority": priority,
                b"alert": alert,
            }
        )
        if effect == b"open":
            self.hashes.setdefault(keys[2], {})[episode] = alert
        elif effect == b"close" and keys[2] in self.hashes:
            self.hashes[keys[2]].pop(episode, None)
            if not self.hashes[keys[2]]:
                del self.hashes[keys[2]]
        self.published.append((channel, alert))
        return b"%d-0" % len(stream)

    @staticmethod
    def advances(windows: bytes, hits: bytes, stored_windows: bytes, stored_hits: bytes) -> bool:
        """Whether these positions are news."""
        return windows >= stored_windows and hits >= stored_hits and (windows > stored_windows or hits > stored_hits)

    def _wrong_kind(self, keys: list[bytes]) -> str | None:
        kinds = {"hash": self.hashes, "stream": self.streams, "zset": self.sorted_sets}
        for key, wanted in zip(keys, ("hash", "stream", "hash", "zset"), strict=True):
            for kind, held in kinds.items():
                if key in held and kind != wanted:
                    return f"key {key.decode()} holds a {kind}, wanted is a {wanted}"
        return None


def _problem(keys: list[bytes], args: list[bytes]) -> str | None:
    if len(keys) != 4:
        return f"4 keys are wanted, {len(keys)} were given"
    fields = _whole(args, FIXED - 1)
    if fields is not None and fields > MAX_FIELDS:
        return f"{fields} hash fields, at most {MAX_FIELDS} are allowed"
    alerts = None if fields is None else _whole(args, FIXED + 2 * fields)
    if fields is None or alerts is None or len(args) != FIXED + 2 * fields + 1 + 6 * alerts:
        return f"{len(args)} arguments do not match the counts of fields and alerts among them"
    if _whole(args, 0) is None or _whole(args, 8) is None:
        return "version and number of alerts to keep must be whole numbers"
    if args[1] not in (b"advance", b"operate"):
        return "mode must be advance or operate"
    if not (POSITION.fullmatch(args[2]) and POSITION.fullmatch(args[3])):
        return "a position has 38 digits or is empty"
    if not END.fullmatch(args[6]):
        return "the end of the last window must be a decimal number or empty"
    return None


def _whole(args: list[bytes], at: int) -> int | None:
    return int(args[at]) if at < len(args) and WHOLE.fullmatch(args[at]) else None


def _bytes(word: Any) -> bytes:
    if isinstance(word, bytes):
        return word
    return (word if isinstance(word, str) else repr(word)).encode()


class Connection:
    """What `AlertStore` believes to be redis-py: its calls wait in `calls` until the simulation decides on them."""

    def __init__(self, loop: FakeLoop, model: StoreModel, source: str) -> None:
        self._loop = loop
        self._model = model
        self._source = source
        self.calls: deque[tuple[list[tuple[Any, ...]], Future[Any]]] = deque()
        self.connection_pool = self

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Of the pool: there is none."""

    def pipeline(self, transaction: bool) -> _Pipeline:
        return _Pipeline(self)

    async def execute_command(self, *command: Any) -> Any:
        assert command[:2] == ("FUNCTION", "LIST")
        return [[b"library_code", self._source.encode()]]

    async def call(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        future = self._loop.create_future()
        self.calls.append((commands, future))
        result: list[Any] = await future
        return result

    def decide(self, *, reached: bool = True, error: Callable[[], Exception] | None = None) -> None:
        """What becomes of the oldest call: done or not, answered or broken off."""
        commands, future = self.calls.popleft()
        answers = [self._model.execute(command) for command in commands] if reached else []
        if error is not None:
            future.set_exception(error())
        else:
            future.set_result(answers)


class _Pipeline:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._commands: list[tuple[Any, ...]] = []

    def execute_command(self, *command: Any) -> None:
        self._commands.append(command)

    async def execute(self, raise_on_error: bool) -> list[Any]:
        return await self._connection.call(self._commands)
