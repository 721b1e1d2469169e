"""Hits of a Vallen transient recording (`.tradb`) while it is being written."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from producers.sources.vallen import (
    FAULTS,
    HITS,
    BadHit,
    Hit,
    decode_hit,
    end_frame,
    is_locked,
    open_read_only,
    ticks_per_s,
)
from stream.records import Frame

log = logging.getLogger(__name__)

READ_HITS = 256
READ_BYTES = 4 * 1024 * 1024
LOCK_WAIT_S = 1.0

# What tells a row from the one with its number in another file.
IDENTITY = "SELECT Time, TRAI, Chan, Samples FROM tr_data WHERE rowid = ?"


@dataclass(slots=True)
class _Read:
    """What one look into the file found."""

    replaced: bool = False
    hits: list[Hit] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    cursor: int = 0  #: row that was looked at last
    identity: tuple[Any, ...] | None = None  #: of that row


class VallenFollower:
    """Follows a growing `.tradb`: each hit once, in the order of writing.

    The file is only read, and may not be there yet, be locked, or be replaced by another. Another one is a new
    epoch, which begins when it is noticed: the old one ends with a frame flagged END a sensor, and the new file is read
    from its beginning. It is told by the row at the cursor, which is then gone or another.

    Parameters
    ----------
    sensor
        Sensor id of a channel.
    epoch_ns
        When the recording began, ns UTC; times in the file count from there.
    poll_s
        How long to wait where there was nothing new.
    cursor
        Row (SetID) to go on behind; 0 is the beginning.

    Raises
    ------
    ValueError
        If `poll_s` is not positive or the cursor is negative.
    """

    def __init__(
        self, path: Path, sensor: Callable[[int], str], epoch_ns: int, poll_s: float = 0.1, cursor: int = 0
    ) -> None:
        if not 0 < poll_s < float("inf") or cursor < 0:
            raise ValueError(f"poll_s {poll_s}, cursor {cursor}; a positive time and a row from 0 on are needed")
        self.cursor = cursor  #: row of the last frame; a follower made with it goes on behind
        self.epoch_ns = epoch_ns
        self.skipped = 0  #: hits that could not be decoded; they were logged and passed over
        self._path = path
        self._sensor = sensor
        self._poll_s = poll_s
        self._identity: tuple[Any, ...] | None = None
        self._last: dict[int, Frame] = {}  # by channel, of this epoch
        self._complaint = ""

    async def frames(self) -> AsyncIterator[Frame]:
        """Hits as they come, without an end. `cursor` is the row of the frame just yielded."""
        while True:
            read = await asyncio.to_thread(self._look)
            if read is None:
                await asyncio.sleep(self._poll_s)
                continue
            if read.replaced:
                log.warning("%s: was replaced by another recording, which is read from its beginning", self._path)
                for last in self._last.values():
                    yield end_frame(last)
                self._last = {}
                self.epoch_ns = max(self.epoch_ns + 1, time.time_ns())
                self.cursor, self._identity = 0, None
                continue
            for reason in read.damaged:
                self.skipped += 1
                log.warning("%s: hit left out: %s", self._path, reason)
            for hit in read.hits:
                last_frame = self._last.get(hit.channel)
                frame = hit.frame(
                    last_frame.sensor if last_frame else self._sensor(hit.channel),
                    self.epoch_ns,
                    last_frame.sequence + 1 if last_frame else 0,
                )
                self._last[hit.channel] = frame
                self.cursor, self._identity = hit.row, None
                yield frame
            self.cursor, self._identity = read.cursor, read.identity
            if not read.hits and not read.damaged:
                await asyncio.sleep(self._poll_s)

    def _look(self) -> _Read | None:
        """What is behind the cursor; None if the file cannot be read now."""
        try:
            if not self._path.exists():
                self._complain(logging.INFO, "is not there yet")
                return None
            with closing(open_read_only(self._path, LOCK_WAIT_S, live=True)) as connection:
                # One transaction: the row at the cursor and those behind it are of the same file and moment.
                connection.execute("BEGIN")
                read = self._read(connection)
        except (*FAULTS, OSError, BadHit) as error:
            if not is_locked(error):
                self._complain(logging.WARNING, f"cannot be read now: {error}")
            return None
        self._complaint = ""
        return read

    def _read(self, connection: sqlite3.Connection) -> _Read:
        ticks = ticks_per_s(connection)
        read = _Read(cursor=self.cursor)
        if self.cursor:
            read.identity = connection.execute(IDENTITY, (self.cursor,)).fetchone()
            if read.identity is None or (self._identity is not None and read.identity != self._identity):
                read.replaced = True
                return read
        size = 0
        rows = connection.execute(f"{HITS} WHERE d.rowid > ? ORDER BY d.rowid LIMIT {READ_HITS}", (self.cursor,))
        while size < READ_BYTES:
            try:
                row = rows.fetchone()
            except FAULTS:
                if read.cursor == self.cursor:
                    raise
                break  # what lies before the fault is given first
            if row is None:
                break
            read.cursor = row[0]
            try:
                hit = decode_hit(row, ticks)
            except BadHit as error:
                read.damaged.append(f"row {row[0]} (TRAI {row[2]}): {error}")
                continue
            read.hits.append(hit)
            size += hit.samples.nbytes
        if read.cursor != self.cursor:
            read.identity = connection.execute(IDENTITY, (read.cursor,)).fetchone()
        return read

    def _complain(self, level: int, reason: str) -> None:
        # Once, not at every look: a file may be awaited for days.
        if reason != self._complaint:
            log.log(level, "%s: %s; waiting", self._path, reason)
            self._complaint = reason
