"""Hits from Vallen transient recordings (`.tradb`), one frame each; each channel is a sensor.

A `.tradb` is an SQLite file: hits in `tr_data`, volts per count in `tr_params`, ticks per second in `tr_globalinfo`.
"""

from __future__ import annotations

import io
import logging
import math
import sqlite3
from array import array
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from producers.sources.reading import Reading, RecordingError
from stream.records import MAX_INDEX, MAX_RATE_HZ, MIN_RATE_HZ, NS_PER_S, Flags, Frame, samples_to_ns

log = logging.getLogger(__name__)

# Hit status bits of the format (vallenae.io.HitFlags) and what they are on the wire.
STATUS_FLAGS = {
    1 << 4: Flags.SATURATED,
    1 << 6: Flags.TEST_PULSE,  # pulse received
    1 << 11: Flags.TEST_PULSE,  # pulse sent
}

RAW, FLAC = 0, 2  # how samples are stored

MAX_HIT_SAMPLES = 2**23 - 64  #: what one message of frames may hold (16 MiB) as int16
LOGGED_HITS = 20  #: a file full of damaged hits must not fill the log as well
LOCK_WAIT_S = 5.0

# What SQLite raises; its messages quote the file, and where that is damaged they need not be text.
FAULTS = (sqlite3.Error, UnicodeDecodeError)

# A blob larger than any hit stays in the file: `length` looks at the row's head alone.
HITS = f"""
    SELECT d.rowid, d.Time, d.TRAI, d.Status, d.Chan, d.Pretrigger, d.SampleRate, d.Samples, d.DataFormat, p.TR_mV,
        CASE WHEN length(d.Data) <= {2 * MAX_HIT_SAMPLES} THEN d.Data END
    FROM tr_data d LEFT JOIN tr_params p ON p.ID = d.ParamID
"""


class BadHit(Exception):  # noqa: N818 - it reads better in `except BadHit`
    """A row, or a whole file, of which no hit can be made; the text says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Hit:
    """One row of `tr_data`, understood. Samples and times count from the beginning of the recording."""

    row: int
    channel: int
    first_sample: int
    begin_ns: int
    rate_hz: Fraction
    samples: npt.NDArray[np.int16]
    volts_per_count: float
    flags: Flags

    def frame(self, sensor: str, epoch_ns: int, sequence: int) -> Frame:
        """The hit as a frame of a recording that began at `epoch_ns`."""
        return Frame(
            sensor=sensor,
            epoch_ns=epoch_ns,
            sequence=sequence,
            first_sample=self.first_sample,
            time_ns=epoch_ns + self.begin_ns,
            rate_hz=self.rate_hz,
            samples=self.samples,
            volts_per_count=self.volts_per_count,
            flags=self.flags,
        )


def end_frame(last: Frame) -> Frame:
    """What ends the epoch of a sensor whose last frame was `last`."""
    return Frame(
        sensor=last.sensor,
        epoch_ns=last.epoch_ns,
        sequence=last.sequence + 1,
        first_sample=last.end_sample,
        time_ns=last.time_ns + samples_to_ns(len(last.samples), last.rate_hz),
        rate_hz=last.rate_hz,
        samples=np.empty(0, dtype=np.int16),
        volts_per_count=last.volts_per_count,
        flags=Flags.END,
    )


class VallenRecording:
    """All hits of a `.tradb` in order of time, opened read-only, one in memory at a time.

    A hit that cannot be decoded is left out, logged, and counted in `skipped`. Of a file with damaged pages, what can
    be reached is played, and then the damage is raised. One that is cut short is refused: SQLite would fill up with
    zeros what is missing of a hit.

    Raises
    ------
    RecordingError
        If the file is no readable transient recording with hits in it; while iterating, where it is locked for
        long, and at the end, where rows of it cannot be reached.
    """

    def __init__(self, path: Path, reading: Reading) -> None:
        self._path = path
        self.skipped = 0
        self._rows, ticks, channels = array("q"), array("q"), set()
        self._unusable = 0
        self._damage: sqlite3.Error | None = None
        first, last, samples = math.inf, 0.0, 0
        with closing(self._open()) as connection:
            try:
                self._ticks_per_s = ticks_per_s(connection)
                for row, time, channel, rate_hz, count in _rows(connection):
                    if not _is_position(time) or not _is_position(channel):
                        self._unusable += 1
                        continue
                    self._rows.append(row)
                    ticks.append(time)
                    channels.add(channel)
                    first = min(first, time / self._ticks_per_s)
                    if _is_position(count) and count <= MAX_HIT_SAMPLES and _is_position(rate_hz) and rate_hz > 0:
                        samples += count
                        last = max(last, time / self._ticks_per_s + count / rate_hz)
            except (*FAULTS, BadHit) as error:
                if not self._rows or is_locked(error) or not isinstance(error, sqlite3.Error):
                    raise self._unreadable(error) from error
                self._damage = error
        if not self._rows:
            lacking = f" but {self._unusable} without a time or a channel" if self._unusable else ""
            raise RecordingError(f"{path}: holds no hits{lacking}; was the transient recorder switched on?")
        # In the order of rows where times are equal, as they were written.
        self._order = np.argsort(np.frombuffer(ticks, dtype=np.int64), kind="stable")
        self._sensor_of = {channel: reading.sensor(path, channel) for channel in sorted(channels)}
        self.sensors = tuple(self._sensor_of.values())
        self.total_frames = len(self._rows) + (0 if self._damage else len(self.sensors))
        self.total_samples = samples
        self.duration_s = max(0.0, last - first)

    def __iter__(self) -> Iterator[Frame]:
        """Hit by hit, then one END frame a sensor."""
        self.skipped = self._unusable
        last: dict[str, Frame] = {}
        with closing(self._open()) as connection:
            for index in self._order:
                hit = self._hit(connection, self._rows[index])
                if hit is None:
                    continue
                sensor = self._sensor_of[hit.channel]
                frame = hit.frame(sensor, 0, last[sensor].sequence + 1 if sensor in last else 0)
                last[sensor] = frame
                yield frame
        if self.skipped:
            log.warning("%s: %d hits left out in all", self._path, self.skipped)
        if self._damage is not None:
            raise RecordingError(
                f"{self._path}: is damaged behind row {self._rows[-1]}: {self._damage}; the hits that can be reached "
                "have been played. Is the file complete? Copy it again"
            )
        for frame in last.values():
            yield end_frame(frame)

    def _hit(self, connection: sqlite3.Connection, row: int) -> Hit | None:
        """None if it is left out."""
        trai: Any = None
        try:
            found = connection.execute(f"{HITS} WHERE d.rowid = ?", (row,)).fetchone()
            if found is None:
                raise BadHit("the row is gone; was the file changed while it was played?")
            trai = found[2]
            hit = decode_hit(found, self._ticks_per_s)
            if hit.channel not in self._sensor_of:
                raise BadHit(f"channel {hit.channel} was not there when the file was opened")
        except (*FAULTS, BadHit) as error:
            # One damaged row must not take the others with it; but a lock is no fault of the row's.
            if is_locked(error):
                raise self._unreadable(error) from error
            self.skipped += 1
            if self.skipped <= LOGGED_HITS:
                log.warning("%s: hit in row %d (TRAI %s) left out: %s", self._path, row, trai, error)
            return None
        return hit

    def _open(self) -> sqlite3.Connection:
        try:
            _check_whole(self._path)
            return open_read_only(self._path, LOCK_WAIT_S, live=False)
        except (*FAULTS, OSError, BadHit) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> RecordingError:
        way_out = "is the file complete, and not open in the acquisition software?"
        if self._path.with_name(f"{self._path.name}-journal").exists():
            way_out = "an unfinished write lies beside it (-journal); open it once in the software that wrote it"
        return RecordingError(f"{self._path}: cannot be read as a Vallen recording: {error}; {way_out}")


def open_read_only(path: Path, lock_wait_s: float, live: bool) -> sqlite3.Connection:
    """A connection that can change nothing.

    Parameters
    ----------
    live
        Whether the file is being written. If not, nothing is left beside it.

    Raises
    ------
    sqlite3.Error, UnicodeDecodeError, OSError
    """
    # Without its write-ahead log a file that uses one is open nowhere. To read it the usual way would make a log.
    closed = not path.with_name(f"{path.name}-wal").exists()
    if closed and not live and _uses_write_ahead_log(path):
        return _connect(path, "immutable=1", lock_wait_s)
    try:
        return _connect(path, "mode=ro", lock_wait_s)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CANTOPEN or not closed:
            raise
        # The log cannot be made: the folder is read-only.
        return _connect(path, "immutable=1", lock_wait_s)


def _check_whole(path: Path) -> None:
    """SQLite itself refuses a file that lacks pages, but not one that ends within its last one."""
    with path.open("rb") as file:
        head = file.read(18)
        size = file.seek(0, io.SEEK_END)
    page = int.from_bytes(head[16:], "big")
    page = 65_536 if page == 1 else page
    if head.startswith(b"SQLite format 3\0") and page and size % page:
        raise BadHit(f"is cut short: {size} bytes are not whole pages of {page} bytes")


def _uses_write_ahead_log(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(20)[18:] == b"\2\2"


def _connect(path: Path, how: str, lock_wait_s: float) -> sqlite3.Connection:
    # A replay opens, reads and closes in different threads, one after another.
    connection: sqlite3.Connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{how}", uri=True, timeout=lock_wait_s, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("SELECT 1 FROM sqlite_master LIMIT 1")
    except FAULTS:
        connection.close()
        raise
    return connection


def is_locked(error: Exception) -> bool:
    """Whether someone else is writing just now, and nothing is wrong with the file."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def ticks_per_s(connection: sqlite3.Connection) -> int:
    """What the recording's times count in.

    Raises
    ------
    BadHit, sqlite3.Error, UnicodeDecodeError
    """
    kind = connection.execute("SELECT type FROM sqlite_master WHERE name = 'tr_data'").fetchone()
    if kind != ("table",):
        # A view could be any query, also one without an end.
        raise BadHit("has no table tr_data")
    row = connection.execute("SELECT Value FROM tr_globalinfo WHERE Key = 'TimeBase'").fetchone()
    try:
        ticks = int(row[0])
    except (TypeError, ValueError):
        ticks = 0
    if not 0 < ticks <= NS_PER_S:
        raise BadHit(f"TimeBase in tr_globalinfo is {row[0] if row else None}, expected are ticks a second")
    return ticks


def decode_hit(row: tuple[Any, ...], ticks: int) -> Hit:
    """A row of `HITS`.

    Parameters
    ----------
    ticks
        A second, see `ticks_per_s`.

    Raises
    ------
    BadHit
        If a column holds what it cannot hold, or the samples are not those that are announced.
    """
    number, time, _, status, channel, pretrigger, rate_hz, announced, data_format, millivolts, data = row
    if not _is_position(time) or not _is_position(channel):
        raise BadHit(f"time {time!r}, channel {channel!r}: not both are numbers from 0 on")
    if not isinstance(rate_hz, int) or not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise BadHit(f"sample rate {rate_hz!r}, allowed are {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz")
    if not isinstance(millivolts, float | int) or not 0 < millivolts * 1e-3 < math.inf:
        raise BadHit(f"{millivolts!r} mV per count")
    if not isinstance(announced, int) or not 0 < announced <= MAX_HIT_SAMPLES:
        raise BadHit(f"{announced!r} samples announced, allowed are 1 to {MAX_HIT_SAMPLES}")
    before = pretrigger or 0
    if not isinstance(before, int) or not isinstance(status or 0, int):
        raise BadHit(f"pretrigger {pretrigger!r}, status {status!r}: not both are whole numbers")
    rate = Fraction(rate_hz)
    # The stored time is the trigger's; the samples begin `Pretrigger` before it.
    first_sample = max(0, round(time * rate / ticks) - before)
    begin_ns = max(0, time * NS_PER_S // ticks - samples_to_ns(before, rate))
    if max(first_sample, begin_ns) > MAX_INDEX // 2:
        raise BadHit(f"time {time!r} and pretrigger {pretrigger!r} are beyond all counting")
    flags = Flags.HIT
    for bit, flag in STATUS_FLAGS.items():
        if (status or 0) & bit:
            flags |= flag
    return Hit(
        row=number,
        channel=channel,
        first_sample=first_sample,
        begin_ns=begin_ns,
        rate_hz=rate,
        samples=_samples(data, data_format, announced),
        volts_per_count=millivolts * 1e-3,
        flags=flags,
    )


def _samples(data: Any, data_format: Any, announced: int) -> npt.NDArray[np.int16]:
    if not isinstance(data, bytes):
        raise BadHit("no samples, or more than a hit can have" if data is None else "samples that are no blob")
    if data_format == RAW:
        if len(data) != 2 * announced:
            raise BadHit(f"{len(data)} bytes of samples, {announced} samples announced")
        return np.frombuffer(data, dtype="<i2").astype(np.int16, copy=False)
    if data_format != FLAC:
        raise BadHit(f"data format {data_format!r}; known are 0 (raw) and 2 (FLAC)")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            # What it says of itself is looked at first: a few bytes can claim gigabytes.
            if (file.format, file.channels, file.frames) != ("FLAC", 1, announced):
                raise BadHit(
                    f"{file.format} of {file.channels} channels and {file.frames} samples, {announced} announced"
                )
            samples: npt.NDArray[np.int16] = file.read(announced, dtype="int16")
    except (soundfile.SoundFileError, OSError, RuntimeError, ValueError) as error:
        raise BadHit(f"its FLAC cannot be decoded: {error}") from error
    if len(samples) != announced:
        raise BadHit(f"{len(samples)} samples, {announced} announced")
    return samples


def _rows(connection: sqlite3.Connection) -> Iterator[tuple[Any, ...]]:
    """Row, time, channel, rate and number of samples of each hit, as they lie in the file."""
    before = -math.inf
    for row in connection.execute("SELECT rowid, Time, Chan, SampleRate, Samples FROM tr_data"):
        if not isinstance(row[0], int) or row[0] <= before:
            # Damaged pages can lead in circles.
            raise sqlite3.DatabaseError(f"row {row[0]} comes after row {before}")
        before = row[0]
        yield row


def _is_position(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value <= MAX_INDEX


def open_source(path: Path, reading: Reading) -> VallenRecording:
    """See `producers.sources.formats`."""
    return VallenRecording(path, reading)
