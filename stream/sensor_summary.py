"""The plain fields of a sensor's hash in Redis: how it is, for people and programs that do not read the alarm state."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stream.alarm_state import SensorState
from stream.predictions import Prediction


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
    """The summary in a sensor's hash; a field that is not there counts as zero or empty."""

    def text(name: str, otherwise: str = "0") -> str:
        return fields.get(name.encode(), otherwise.encode()).decode()

    return SensorSummary(
        sensor=sensor,
        last_end_ns=int(text("last_end_ns")),
        windows=int(text("windows")),
        hits=int(text("hits")),
        label=text("label", ""),
        probability=float(text("probability")),
        unknown=text("unknown") == "1",
        unknown_score=float(text("unknown_score")),
        peak_db_ae=float(text("peak_db_ae")),
        rms_db_ae=float(text("rms_db_ae")),
        model_version=text("model_version", ""),
        open=tuple(json.loads(text("open", "[]"))),
        shelved=tuple(json.loads(text("shelved", "[]"))),
    )
