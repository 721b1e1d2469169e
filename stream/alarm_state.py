"""All that is remembered of one sensor's alarms, and its written form: what Redis keeps and the worker goes on from."""

from __future__ import annotations

import msgspec

from stream.episodes import Condition
from stream.json_decoding import decode_json

STATE_VERSION = 1
REMEMBERED_OPERATIONS = 8


class BadState(ValueError):  # noqa: N818 - the domain's word, as BadRecord
    """A stored alarm state that this program cannot read."""


class Track(msgspec.Struct, frozen=True):
    """How far one sensor's continuous windows, or its hits, have been applied."""

    epoch_ns: int
    start_sample: int
    source_count: int
    end_ns: int  #: end of the window that reached furthest in this epoch, ns UTC
    count: int  #: windows applied so far, over all epochs
    model_version: str = ""  #: of the model that judged the last one

    @property
    def position(self) -> tuple[int, int]:
        """Of the last window; grows from window to window."""
        return (self.epoch_ns, self.start_sample)


class Shelf(msgspec.Struct):
    """An operator's "not now" for one condition. It has an episode of its own, so that it can be listed and ended."""

    episode: str
    number: int
    until_ns: int  #: event time, ns UTC
    epoch_ns: int  #: where the sensor was when it was shelved
    first_sample: int
    by: str = ""


class SensorState(msgspec.Struct, omit_defaults=True):
    """One sensor: how far it was applied, its conditions that are not plainly normal, its shelves.

    Continuous windows and hits have a position each: a sensor that sends both does so in no common order.
    """

    sensor: str = ""
    windows: Track | None = None
    hits: Track | None = None
    conditions: dict[str, Condition] = {}
    shelves: dict[str, Shelf] = {}
    known: list[str] = []  #: conditions that the rules last applied watch
    operations: list[str] = []  #: marks of the latest operator commands, so that none is applied twice

    @property
    def latest(self) -> Track | None:
        """The track whose last window ends later; None before the first window."""
        tracks = [track for track in (self.windows, self.hits) if track is not None]
        return max(tracks, key=lambda track: track.end_ns, default=None)

    @property
    def position(self) -> tuple[int, int] | None:
        """Position of the last window applied, of whichever kind reached further."""
        return max((track.position for track in (self.windows, self.hits) if track is not None), default=None)

    def has_applied(self, position: tuple[int, int], *, hit: bool) -> bool:
        """Whether a window of this kind at this position was applied before (or skipped for ever)."""
        track = self.hits if hit else self.windows
        return track is not None and position <= track.position

    @property
    def open_conditions(self) -> list[str]:
        """Names of the conditions with an episode that subscribers know to be open."""
        return [
            name
            for name, condition in self.conditions.items()
            if condition.episode is not None and condition.episode.announced and not condition.episode.burst
        ]


class _Version(msgspec.Struct):
    v: int


class _Stored(msgspec.Struct):
    v: int
    state: SensorState


_encoder = msgspec.json.Encoder()
_version_decoder = msgspec.json.Decoder(_Version)
_decoder = msgspec.json.Decoder(_Stored)


def encode_state(state: SensorState) -> bytes:
    """JSON, UTF-8; equal states give equal bytes."""
    return _encoder.encode(_Stored(STATE_VERSION, state))


def decode_state(stored: bytes, sensor: str) -> SensorState:
    """The state of `sensor` from its written form.

    Raises
    ------
    BadState
        If it is of another version, or is no alarm state at all.
    """
    remedy = "delete the sensor's key to begin anew without its open episodes"
    try:
        version = decode_json(_version_decoder, stored).v
        if version != STATE_VERSION:
            raise BadState(
                f"{sensor}: alarm state of version {version}, this program knows {STATE_VERSION}; "
                f"run the release that wrote it, or {remedy}"
            )
        return decode_json(_decoder, stored).state
    except msgspec.DecodeError as error:
        raise BadState(f"{sensor}: not an alarm state: {error}; {remedy}") from error
