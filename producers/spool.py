"""Frames on disk while they cannot be sent: an append-only queue of segment files that survives a crash at any byte.

`docs/spool.md` gives the files byte by byte and says what is safe when. Nothing here knows of Kafka.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import struct
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Literal, Self

log = logging.getLogger(__name__)

RECORD_MAGIC = b"AESP"
VERSION = 1
#: magic, CRC-32 of all that follows, bytes of the key, version, bytes of the frame, record number
RECORD_HEADER = struct.Struct("<4sIHHIQ")
MAX_FRAME_BYTES = 64 * 1024 * 1024  # a larger length in a header is damage, no reason to read so much

_CHECKED_FROM = 8
_SUFFIX = ".spool"
_SEARCH_BYTES = 1024 * 1024


class SpoolInUse(Exception):  # noqa: N818 - says what is the matter
    """Another process owns this folder."""


class SpoolFull(Exception):  # noqa: N818
    """There is no room now, and the policy is to wait for it."""


@dataclass(frozen=True, slots=True)
class SpoolSettings:
    """How much a spool may hold, and how much of it a power cut may cost."""

    max_bytes: int  #: of all segments together
    full: Literal["block", "drop_newest"]  #: without room, make the caller wait, or drop the new frame and count it
    segment_bytes: int = 64 * 1024 * 1024  #: segments are deleted whole; an eighth of `max_bytes` at most is used
    sync_s: float = 1.0  #: so long an appended frame may not be safe from a power cut; 0 syncs each one

    def __post_init__(self) -> None:
        if self.full not in ("block", "drop_newest"):
            raise ValueError(f"full={self.full!r}; give 'block' or 'drop_newest'")
        for name in ("max_bytes", "segment_bytes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}; give a positive number of bytes")
        if not 0 <= self.sync_s < float("inf"):
            raise ValueError(f"sync_s={self.sync_s}; give seconds, or 0 to sync each frame")


@dataclass(slots=True)
class SpoolCounts:
    """What has happened since the spool was opened. Bytes of frames, but for the damage: bytes of the files."""

    appended_frames: int = 0
    appended_bytes: int = 0
    dropped_frames: int = 0
    dropped_bytes: int = 0
    damaged_places: int = 0
    damaged_bytes: int = 0
    cut_bytes: int = 0  #: of a half-written end that a crash had left


@dataclass(frozen=True, slots=True)
class SpoolRecord:
    """One frame as it was appended, and where it stands."""

    number: int  #: grows from record to record
    key: bytes
    frame: bytes
    segment: int  #: the file, by the number of its first record
    end: int  #: byte in that file behind the record


@dataclass(slots=True)
class _Segment:
    first: int
    path: Path
    size: int


def encode_record(segment: int, number: int, key: bytes, frame: bytes) -> bytes:
    """One record as bytes. Its CRC begins with the segment's number: what belongs to another file is not sound here."""
    checked = RECORD_HEADER.pack(RECORD_MAGIC, 0, len(key), VERSION, len(frame), number)[_CHECKED_FROM:]
    crc = zlib.crc32(frame, zlib.crc32(key, zlib.crc32(checked, _seed(segment))))
    return b"".join((RECORD_MAGIC, crc.to_bytes(4, "little"), checked, key, frame))


def _seed(segment: int) -> int:
    return zlib.crc32(segment.to_bytes(8, "little"))


class Spool:
    """A queue of (sensor key, encoded frame) in `folder`, which this process owns until `close`.

    For one thread; only `sync` may run in another one meanwhile.

    Raises
    ------
    SpoolInUse
        If the folder is open already, here or in another process.
    OSError
        If the folder cannot be made, read or written.
    """

    def __init__(self, folder: Path | str, settings: SpoolSettings) -> None:
        self.folder = Path(folder)
        self.settings = settings
        self.counts = SpoolCounts()
        self._segment_bytes = min(settings.segment_bytes, max(settings.max_bytes // 8, 1))
        self._segments: deque[_Segment] = deque()
        self._disk_bytes = 0
        self._pending: Counter[bytes] = Counter()
        self._unread: Counter[bytes] = Counter()
        self._pending_bytes = 0
        self._in_flight: deque[SpoolRecord] = deque()
        self._reported: set[tuple[int, int]] = set()
        self._no_room: Literal["", "cap", "disk"] = ""
        self._writing: int | None = None
        self._reading: tuple[int, int] | None = None  # a segment and its descriptor
        # What a sync in another thread touches too. `_files_lock` is never held while the disk works.
        self._sync_lock = threading.Lock()
        self._files_lock = threading.Lock()
        self._cursor_lock = threading.Lock()
        self._unsynced: list[int] = []  # descriptors of full segments
        self._dirty = False
        self._folder_dirty = True
        self._synced_s = time.monotonic()

        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock: int | None = self._take_lock()
        try:
            self._acknowledged = self._saved = self._load_cursor()
            self._next = self._acknowledged
            self._load_segments()
        except BaseException:
            self._release()
            raise
        self._acknowledged_at = self._read_at = (0, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pending_frames(self) -> int:
        """Frames that are not acknowledged."""
        return self._pending.total()

    @property
    def pending_bytes(self) -> int:
        """Bytes of the frames that are not acknowledged."""
        return self._pending_bytes

    @property
    def disk_bytes(self) -> int:
        """Bytes of all segments; what `max_bytes` bounds."""
        return self._disk_bytes

    @property
    def full(self) -> bool:
        """Whether the last frame that came found no room."""
        return bool(self._no_room)

    def is_pending(self, key: bytes) -> bool:
        """Whether a frame of this sensor is not acknowledged."""
        return self._pending[key] > 0

    def pending_of(self, key: bytes) -> int:
        """Frames of this sensor that are not acknowledged."""
        return self._pending[key]

    def is_unread(self, key: bytes) -> bool:
        """Whether a frame of this sensor has not been read since the last `rewind`."""
        return self._unread[key] > 0

    def append(self, key: bytes, frame: bytes, *, beyond_cap: bool = False) -> bool:
        """Write one frame behind all others; False if it was dropped.

        Parameters
        ----------
        beyond_cap
            Store it although `max_bytes` is reached, because nobody else holds it. A full disk stays full.

        Raises
        ------
        SpoolFull
            If there is no room and the policy is "block". Nothing of the frame is left in the file.
        OSError
            If the disk fails otherwise; nothing is left of the frame either.
        """
        size = RECORD_HEADER.size + len(key) + len(frame)
        room = self.settings.max_bytes - self._disk_bytes
        # Once full, it stays so until a good part is free: gaps then are few and long rather than everywhere.
        wanted = size + (self._segment_bytes // 2 if self._no_room == "cap" else 0)
        # An empty spool takes any frame; one larger than the cap would wait for ever.
        if wanted > room and self._disk_bytes and not beyond_cap:
            return self._refuse(frame, "cap", f"{self._disk_bytes} bytes, max_bytes is {self.settings.max_bytes}")
        try:
            self._write(key, frame, size)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return self._refuse(frame, "disk", f"{error.strerror}, at {self._disk_bytes} bytes")
        if self._no_room and not beyond_cap:
            log.warning("%s: takes frames again", self.folder)
            self._no_room = ""
        self._next += 1
        self._pending[key] += 1
        self._unread[key] += 1
        self._pending_bytes += len(frame)
        self.counts.appended_frames += 1
        self.counts.appended_bytes += len(frame)
        if time.monotonic() - self._synced_s >= self.settings.sync_s and not self._sync_lock.locked():
            self.sync()
        return True

    def read(self, max_bytes: int) -> list[SpoolRecord]:
        """The next frames in order, at least one if there is one; after `rewind` those not acknowledged again."""
        batch: list[SpoolRecord] = []
        size = 0
        for segment in [one for one in self._segments if one.first >= self._read_at[0]]:
            offset = self._read_at[1] if segment.first == self._read_at[0] else 0
            last = self._in_flight[-1].number if self._in_flight else self._acknowledged - 1
            for record in self._sound_records(segment, offset, after=last if offset else None):
                self._read_at = (segment.first, record.end)
                if record.number < self._acknowledged:
                    continue
                batch.append(record)
                self._in_flight.append(record)
                self._unread[record.key] -= 1
                size += len(record.frame)
                if size >= max_bytes:
                    return batch
        # Records that were damaged since they were counted will never come.
        self._unread.clear()
        if not self._in_flight and self._segments:
            self._forget_all()
        return batch

    def rewind(self) -> None:
        """What was read and is not acknowledged will be read again."""
        self._read_at = self._acknowledged_at
        self._in_flight.clear()
        self._unread = Counter(self._pending)

    def acknowledge(self, through: SpoolRecord) -> None:
        """All frames read up to this one have arrived and are not read again, also not after a restart.

        Safe from a crash with the next `sync`; before it, they may be read once more.
        """
        while self._in_flight and self._in_flight[0].number <= through.number:
            record = self._in_flight.popleft()
            self._pending[record.key] -= 1
            if self._pending[record.key] <= 0:
                del self._pending[record.key]
            self._pending_bytes -= len(record.frame)
            self._acknowledged = record.number + 1
            self._acknowledged_at = (record.segment, record.end)
        if self._acknowledged == self._next:
            self._forget_all()
        elif len(self._segments) > 1 and self._segments[1].first <= self._acknowledged:
            # The cursor goes first: a segment that is gone must not be missed.
            self._save_cursor()
            while len(self._segments) > 1 and self._segments[1].first <= self._acknowledged:
                self._delete(self._segments.popleft())

    def set_aside(self, record: SpoolRecord, why: str) -> None:
        """Acknowledge the record that was read last, and keep it in the folder `refused`, a spool of its own."""
        folder = self.folder / "refused"
        folder.mkdir(exist_ok=True)
        path = folder / f"{record.number:020d}{_SUFFIX}"
        with path.open("wb") as file:
            file.write(encode_record(record.number, record.number, record.key, record.frame))
            file.flush()
            os.fsync(file.fileno())
        log.error("%s: a frame of %d bytes of %s is set aside: %s", path, len(record.frame), record.key.decode(), why)
        self.acknowledge(record)

    def sync(self) -> None:
        """Make safe from a power cut what was appended and acknowledged before the call.

        Raises
        ------
        OSError
            If the disk does not take it; the next `sync` tries again.
        """
        with self._sync_lock:
            with self._files_lock:
                self._synced_s = time.monotonic()
                files, self._unsynced = self._unsynced, []
                if self._dirty and self._writing is not None:
                    files.append(os.dup(self._writing))  # a copy: the segment may be filled and closed meanwhile
                new_files, self._dirty, self._folder_dirty = self._folder_dirty, False, False
            try:
                for descriptor in files:
                    os.fsync(descriptor)
                if new_files:
                    self._sync_folder()
            except OSError:
                with self._files_lock:
                    self._unsynced = files + self._unsynced
                    self._folder_dirty = True
                raise
            for descriptor in files:
                os.close(descriptor)
        if self._saved != self._acknowledged:
            self._save_cursor()

    def close(self) -> None:
        """Sync, and give the folder free. A second call does nothing."""
        if self._lock is None:
            return
        try:
            self.sync()
        finally:
            self._release()

    def _release(self) -> None:
        for descriptor in (*self._unsynced, self._writing, self._reading and self._reading[1], self._lock):
            if descriptor is not None:
                os.close(descriptor)
        self._unsynced, self._writing, self._reading, self._lock = [], None, None, None

    # Writing

    def _refuse(self, frame: bytes, why: Literal["cap", "disk"], detail: str) -> bool:
        if self._no_room != why:
            self._no_room = why
            does = "new frames wait" if self.settings.full == "block" else "new frames are dropped"
            log.error("%s: full (%s); %s until there is room", self.folder, detail, does)
        if self.settings.full == "block":
            raise SpoolFull(f"{self.folder}: full ({detail})")
        self.counts.dropped_frames += 1
        self.counts.dropped_bytes += len(frame)
        return False

    def _write(self, key: bytes, frame: bytes, size: int) -> None:
        segment = self._segments[-1] if self._segments else None
        if segment is None or self._writing is None or segment.size + size > self._segment_bytes:
            segment = self._begin_segment()
        assert self._writing is not None
        record = memoryview(encode_record(segment.first, self._next, key, frame))
        written = 0
        try:
            while written < size:
                written += os.write(self._writing, record[written:])
        except OSError:
            self._cut(segment)
            raise
        segment.size += size
        self._disk_bytes += size
        self._dirty = True

    def _cut(self, segment: _Segment) -> None:
        """Take a half-written record away, so that what comes behind it is found."""
        assert self._writing is not None
        try:
            os.ftruncate(self._writing, segment.size)
        except OSError as error:
            log.error("%s: a half-written record stays at byte %d: %s", segment.path, segment.size, error)
            left = os.fstat(self._writing).st_size
            self._disk_bytes += left - segment.size
            segment.size = left

    def _begin_segment(self) -> _Segment:
        if self._segments and self._segments[-1].first == self._next:
            return self._segments[-1]  # nothing is in it yet
        path = self.folder / f"{self._next:020d}{_SUFFIX}"
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        with self._files_lock:
            if self._writing is not None:
                self._unsynced.append(self._writing)
            self._writing = descriptor
            self._folder_dirty = True
        segment = _Segment(self._next, path, 0)
        self._segments.append(segment)
        return segment

    # Reading

    def _sound_records(
        self, segment: _Segment, offset: int, *, after: int | None = None, tail: bool = False
    ) -> Iterator[SpoolRecord]:
        """The records of a segment from `offset` on, behind number `after`; damage is skipped, counted and told once.

        With `tail`, damage that nothing sound follows is what a crash left, and no damage.
        """
        try:
            descriptor = self._descriptor(segment)
        except OSError as error:
            log.error("%s: %s", segment.path, error.strerror)
            self._report(segment, offset, segment.size)
            return
        number = segment.first - 1 if after is None else after
        while offset < segment.size:
            record = self._record_at(descriptor, segment, offset, number)
            if record is None:
                record = self._search(descriptor, segment, offset + 1, number)
                if record is None and tail:
                    return
                begin_next = segment.size if record is None else record.end - _size(record)
                self._report(segment, offset, begin_next)
                if record is None:
                    return
            yield record
            offset, number = record.end, record.number

    def _record_at(self, descriptor: int, segment: _Segment, offset: int, after: int) -> SpoolRecord | None:
        """The record that begins at `offset`, or None if what is there is not whole and sound."""
        try:
            header = os.pread(descriptor, RECORD_HEADER.size, offset)
            if len(header) < RECORD_HEADER.size:
                return None
            magic, crc, key_size, version, frame_size, number = RECORD_HEADER.unpack(header)
            end = offset + RECORD_HEADER.size + key_size + frame_size
            if magic != RECORD_MAGIC or version != VERSION or frame_size > MAX_FRAME_BYTES or end > segment.size:
                return None
            body = os.pread(descriptor, key_size + frame_size, offset + RECORD_HEADER.size)
        except OSError:  # a bad sector
            return None
        if len(body) < key_size + frame_size or number <= after:
            return None
        if zlib.crc32(body, zlib.crc32(header[_CHECKED_FROM:], _seed(segment.first))) != crc:
            return None
        return SpoolRecord(number, body[:key_size], body[key_size:], segment.first, end)

    def _search(self, descriptor: int, segment: _Segment, offset: int, after: int) -> SpoolRecord | None:
        """The first sound record from `offset` on."""
        while offset < segment.size:
            try:
                chunk = os.pread(descriptor, _SEARCH_BYTES, offset)
            except OSError:
                offset += _SEARCH_BYTES
                continue
            at = chunk.find(RECORD_MAGIC)
            while at >= 0:
                record = self._record_at(descriptor, segment, offset + at, after)
                if record is not None:
                    return record
                at = chunk.find(RECORD_MAGIC, at + 1)
            # A magic may stand across the edge.
            offset += max(len(chunk) - len(RECORD_MAGIC) + 1, 1)
        return None

    def _report(self, segment: _Segment, begin: int, end: int) -> None:
        if (segment.first, begin) in self._reported:
            return
        self._reported.add((segment.first, begin))
        self.counts.damaged_places += 1
        self.counts.damaged_bytes += end - begin
        log.error("%s: bytes %d to %d are damaged; the frames in them are lost", segment.path, begin, end)

    def _descriptor(self, segment: _Segment) -> int:
        if self._reading is not None and self._reading[0] == segment.first:
            return self._reading[1]
        self._close_reading()
        descriptor = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
        self._reading = (segment.first, descriptor)
        return descriptor

    def _close_reading(self) -> None:
        if self._reading is not None:
            os.close(self._reading[1])
            self._reading = None

    # The folder

    def _take_lock(self) -> int:
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise SpoolInUse(
                f"{self.folder}: process {owner} has this spool open; stop it, or give each producer its own folder"
            ) from None
        # The number is for people only and must not stop a start on a full disk.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return descriptor

    def _load_cursor(self) -> int:
        path = self.folder / "cursor"
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return 0
        try:
            cursor = json.loads(text)
            acknowledged = cursor["acknowledged"]
            if type(acknowledged) is int and cursor["crc32"] == _cursor_crc32(acknowledged):
                return acknowledged
        except (ValueError, KeyError, TypeError):
            pass
        log.error("%s: damaged; all frames that are in the spool will be sent, some of them again", path)
        return 0

    def _save_cursor(self) -> None:
        with self._cursor_lock:
            acknowledged = self._acknowledged
            text = json.dumps({"acknowledged": acknowledged, "crc32": _cursor_crc32(acknowledged)})
            new = self.folder / "cursor.new"
            with new.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.folder / "cursor")
            self._sync_folder()
            self._saved = acknowledged

    def _sync_folder(self) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _load_segments(self) -> None:
        """Count what is there, and cut off what a crash left at the end."""
        paths = sorted(path for path in self.folder.glob(f"*{_SUFFIX}") if path.stem.isdecimal())
        for path, following in zip_longest(paths, paths[1:]):
            if following is not None and int(following.stem) <= self._acknowledged:
                path.unlink()  # a crash came between the cursor and this
                continue
            segment = _Segment(int(path.stem), path, path.stat().st_size)
            # Its numbers are taken even where none of its records is sound any more.
            self._next = max(self._next, segment.first)
            end = 0
            for record in self._sound_records(segment, 0, tail=following is None):
                end = record.end
                self._next = max(self._next, record.number + 1)
                if record.number >= self._acknowledged:
                    self._pending[record.key] += 1
                    self._pending_bytes += len(record.frame)
            if following is None and end < segment.size:
                log.warning("%s: a crash left %d bytes behind byte %d; cut off", path, segment.size - end, end)
                self.counts.cut_bytes += segment.size - end
                os.truncate(path, end)
                segment.size = end
            self._segments.append(segment)
            self._disk_bytes += segment.size
        self._unread = Counter(self._pending)
        if not self._pending:
            self._forget_all()
        elif self._segments[-1].size < self._segment_bytes:
            self._writing = os.open(self._segments[-1].path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def _forget_all(self) -> None:
        """Nothing is left to send: free the disk. Numbers go on, so that no acknowledged one is ever used again."""
        self._acknowledged = self._next
        if self._saved != self._acknowledged:
            self._save_cursor()
        with self._files_lock:
            if self._writing is not None:
                os.close(self._writing)
                self._writing = None
            self._dirty = False
        while self._segments:
            self._delete(self._segments.popleft())
        self._pending.clear()
        self._unread.clear()
        self._pending_bytes = 0
        self._read_at = self._acknowledged_at = (self._next, 0)

    def _delete(self, segment: _Segment) -> None:
        if self._reading is not None and self._reading[0] == segment.first:
            self._close_reading()
        segment.path.unlink(missing_ok=True)
        self._disk_bytes -= segment.size


def _size(record: SpoolRecord) -> int:
    return RECORD_HEADER.size + len(record.key) + len(record.frame)


def _cursor_crc32(acknowledged: int) -> int:
    return zlib.crc32(str(acknowledged).encode("ascii"))
