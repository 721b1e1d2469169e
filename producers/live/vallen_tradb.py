"""A Vallen recording that is being written, followed hit by hit; a restart goes on where it was."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from producers.live.source import Milestone, SourceError, SourceSettings
from producers.sources.reading import RecordingError
from producers.sources.vallen_live import VallenFollower
from stream.records import Frame

log = logging.getLogger(__name__)

NOTED_S = 1.0
NOT_WANTED = "\x00"  # no sensor is called so


class VallenTradbSettings(SourceSettings):
    """Which recording. It may not be there yet."""

    path: Path
    poll_s: Annotated[float, Field(gt=0)] = 0.1
    note: Path | None = None  #: file that says how far it was published; None: a hidden one beside the recording

    def noted_in(self) -> Path:
        """The file that says how far it was published."""
        return self.note or self.path.with_name(f".{self.path.name}.aewatch.json")

    def claim(self) -> str:
        """That file."""
        return f"{self.noted_in()}, the note of how far it was published,"


class VallenTradb:
    """Hits by channel, as the acquisition software numbers them. They keep the recording's own times.

    The file does not say when it began: its beginning is taken to be when it was first looked at here. That is noted
    with the place, so that a restart makes the same identities; what was published after the last note then comes
    twice, and counts once.
    """

    Settings: ClassVar[type[SourceSettings]] = VallenTradbSettings

    def __init__(self, settings: VallenTradbSettings) -> None:
        self._settings = settings
        self._note = settings.noted_in()

    async def frames(self, sensors: Mapping[int, str]) -> AsyncIterator[Frame | Milestone]:
        """Hit by hit, without end."""
        settings = self._settings
        epoch_ns, cursor = self._read_note()
        follower = VallenFollower(
            settings.path, lambda channel: sensors.get(channel, NOT_WANTED), epoch_ns, settings.poll_s, cursor
        )
        noted_s = time.monotonic()
        try:
            async for frame in follower.frames():
                if frame.sensor != NOT_WANTED:
                    yield frame
                if time.monotonic() - noted_s >= NOTED_S:
                    yield Milestone(partial(self._write_note, follower.epoch_ns, follower.cursor))
                    noted_s = time.monotonic()
        except RecordingError as error:
            raise SourceError(str(error)) from error

    def _read_note(self) -> tuple[int, int]:
        try:
            noted = json.loads(self._note.read_text(encoding="utf-8"))
            return int(noted["epoch_ns"]), int(noted["cursor"])
        except FileNotFoundError:
            epoch_ns = time.time_ns()
            self._write_note(epoch_ns, 0)  # before the first hit goes out: its identity rests on it
            return epoch_ns, 0
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SourceError(f"{self._note}: cannot be read: {error}; delete it to publish all hits anew") from error

    def _write_note(self, epoch_ns: int, cursor: int) -> None:
        scratch = self._note.with_name(f"{self._note.name}.part")
        try:
            with scratch.open("w", encoding="utf-8") as file:
                json.dump({"epoch_ns": epoch_ns, "cursor": cursor}, file)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(self._note)
        except OSError as error:
            raise SourceError(
                f"{self._note}: cannot be written: {error.strerror}; name another place with `note`"
            ) from error
