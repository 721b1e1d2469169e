"""The plain fields of a sensor's hash in Redis: how it is, for people and programs that do not read the alarm state."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from stream.alarm_state import SensorState
from stream.json_decoding import decode_json
from stream.predictions import Prediction

Number = TypeVar("Number", int, float)

_names = msgspec.json.Decoder(list[str])


@dataclass(frozen=True, slots=True)
class SensorSummary:
    """How a sensor is, as of its last window."""

    sensor: str
    last_end_ns: int  #: end of the last window, event time, ns UTC
    windows: int  #: continuous windows applied so far
    hits: int  #: hit windows applied so far
    label: str  #: most probable class of the last window
    probability: float  #: of that class
    unknown: bool
    unknown_score: float
    peak_db_ae: float
    rms_db_ae: float
    model_version: str
    open: tuple[str, ...]  #: conditions with an open episode
    shelved: tuple[str, ...]  #: conditions that are shelved


def summary_fields(state: SensorState, latest: Prediction | None) -> dict[str, Any]:
    """What to write after a change; without a window (an operator's command) its fields stay as they are."""
    fields: dict[str, Any] = {
        "sensor": state.sensor,
        "open": json.dumps(state.open_conditions),
        "shelved": json.dumps(sorted(state.shelves)),
    }
    track = state.latest
    if track is not None:
        fields |= {
            "last_epoch_ns": track.epoch_ns,
            "last_start_sample": track.start_sample,
            "last_end_ns": track.end_ns,
            "windows": state.windows.count if state.windows else 0,
            "hits": state.hits.count if state.hits else 0,
        }
    if latest is not None:
        label = latest.label if latest.probabilities else ""
        fields |= {
            "label": label,
            "probability": latest.probabilities.get(label, 0.0),
            "unknown": int(latest.unknown),
            "unknown_score": latest.unknown_score,
            "peak_db_ae": latest.features.peak_db_ae,
            "rms_db_ae": latest.features.rms_db_ae,
            "model_version": latest.model_version,
        }
    return fields


def read_summary(sensor: str, fields: Mapping[bytes, bytes]) -> SensorSummary:
    """The summary in a sensor's hash; a field that is not there, or not what it should be, counts as zero or empty."""

    def text(name: str) -> str:
        return fields.get(name.encode(), b"").decode("utf-8", "replace")

    def number(name: str, kind: type[Number]) -> Number:
        try:
            return kind(text(name))
        except ValueError:
            return kind(0)

    def names(name: str) -> tuple[str, ...]:
        try:
            found = decode_json(_names, text(name))
        except msgspec.DecodeError:
            return ()
        return tuple(found)

    return SensorSummary(
        sensor=sensor,
        last_end_ns=number("last_end_ns", int),
        windows=number("windows", int),
        hits=number("hits", int),
        label=text("label"),
        probability=number("probability", float),
        unknown=text("unknown") == "1",
        unknown_score=number("unknown_score", float),
        peak_db_ae=number("peak_db_ae", float),
        rms_db_ae=number("rms_db_ae", float),
        model_version=text("model_version"),
        open=names("open"),
        shelved=names("shelved"),
    )
