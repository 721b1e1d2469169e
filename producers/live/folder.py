"""A folder where an acquisition puts recordings: each is published once, when it has been written to its end."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from producers.live.recording_file import opened, played
from producers.live.source import Milestone, SourceError, SourceSettings
from producers.replay_track import ending
from producers.sources.formats import RECORDING_SUFFIXES
from stream.records import NS_PER_S, Flags, Frame

log = logging.getLogger(__name__)

LEDGER = ".aewatch-published.jsonl"


class FolderSettings(SourceSettings):
    """Which files, and when they count as whole."""

    path: Path
    pattern: str = "*"  #: of file names; ** goes into folders below
    settled_s: Annotated[float, Field(ge=0)] = 2.0  #: a file that has not changed for so long is whole
    poll_s: Annotated[float, Field(gt=0)] = 1.0
    existing: bool = True  #: also those that were there before, unless they were published already
    full_scale_v: Annotated[float, Field(gt=0)] = 1.0
    rate_hz: Annotated[float, Field(ge=1)] | None = None  #: of files that do not say
    ledger: Path | None = None  #: list of what was published; None: a hidden file in the folder

    def noted_in(self) -> Path:
        """The list of what was published."""
        return self.ledger or self.path / LEDGER

    def claim(self) -> str:
        """That list: with it shared, each would leave out what the other published."""
        return f"{self.noted_in()}, the list of what was published,"


class Folder:
    """Every file is an epoch of its own. It began when the file was last changed, less its length.

    That makes the same identities again where a file is published twice, because the process died in between: nothing
    is counted twice. Files that were copied here together seem to overlap: then an epoch begins just after that of
    the file before, as frames of an epoch older than the last one would be turned away. A file that cannot be read, or
    not to its end, is reported; the others go on.
    """

    Settings: ClassVar[type[SourceSettings]] = FolderSettings

    def __init__(self, settings: FolderSettings) -> None:
        self._settings = settings
        self._ledger = settings.noted_in()
        self._done: set[tuple[str, int, int]] = set()
        self._epoch_ns = 0  # of the last file

    def frames(self, sensors: Mapping[int, str]) -> Iterator[Frame | Milestone]:
        """Of one whole file after another, oldest first, as fast as they are taken."""
        settings = self._settings
        if not settings.path.is_dir():
            raise SourceError(f"{settings.path}: there is no such folder")
        self._read_ledger()
        if not settings.existing:
            self._done.update(_identity(path, settings.path) for path in self._files())
        while True:
            for path in self._whole():
                identity = _identity(path, settings.path)
                yield from self._recording(path, sensors)
                self._done.add(identity)
                yield Milestone(partial(self._note, identity, self._epoch_ns))
            time.sleep(settings.poll_s)

    def _recording(self, path: Path, sensors: Mapping[int, str]) -> Iterator[Frame]:
        begun: dict[str, Frame] = {}
        try:
            source = opened(path, self._settings.full_scale_v, self._settings.rate_hz)
            length_ns = round((source.duration_s or 0.0) * NS_PER_S)
            self._epoch_ns = max(path.stat().st_mtime_ns - length_ns, self._epoch_ns + 1)
            for frame in played(source, sensors, self._epoch_ns):
                begun[frame.sensor] = frame
                yield frame
        except (SourceError, OSError) as error:
            log.error("%s: %s; the folder's other files go on", path, str(error).removeprefix(f"{path}: "))
            # Without an END, all that is behind the last frame would wait for the rest of this file.
            yield from (ending(last) for last in begun.values() if Flags.END not in last.flags)

    def _files(self) -> list[Path]:
        return [
            path
            for path in self._settings.path.glob(self._settings.pattern)
            if path.suffix.lower() in RECORDING_SUFFIXES and path.is_file()
        ]

    def _whole(self) -> list[Path]:
        """Those to publish now, oldest first."""
        found = []
        for path in self._files():
            try:
                changed_s = path.stat().st_mtime
                if _identity(path, self._settings.path) not in self._done and (
                    time.time() - changed_s >= self._settings.settled_s
                ):
                    found.append((changed_s, path))
            except OSError:  # gone again
                continue
        return [path for _, path in sorted(found)]

    def _read_ledger(self) -> None:
        if not self._ledger.exists():
            return
        for line in self._ledger.read_text(encoding="utf-8").splitlines():
            try:
                name, size, changed_ns, *epoch_ns = json.loads(line)
                self._epoch_ns = max(self._epoch_ns, *map(int, epoch_ns), 0)
            except (ValueError, TypeError):  # the last line of a process that was killed
                continue
            self._done.add((name, size, changed_ns))

    def _note(self, identity: tuple[str, int, int], epoch_ns: int) -> None:
        try:
            with self._ledger.open("a", encoding="utf-8") as file:
                file.write(json.dumps((*identity, epoch_ns)) + "\n")
        except OSError as error:
            raise SourceError(
                f"{self._ledger}: cannot be written: {error.strerror}; name another place with `ledger`"
            ) from error


def _identity(path: Path, folder: Path) -> tuple[str, int, int]:
    """A file that was written anew counts as a new one."""
    stat = path.stat()
    return str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns
