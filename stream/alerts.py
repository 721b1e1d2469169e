"""What subscribers read: one JSON object for each transition of an alarm episode."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from stream.json_decoding import decode_json
from stream.predictions import HitFeatures

#: 2000-01-01. Event times before are those of a recording that says no time, or of a device without a clock.
CLOCKS_ARE_SET_NS = 946_684_800 * 10**9


class Transition(StrEnum):
    """What happened to the episode."""

    RAISED = "raised"  #: the condition holds: act
    ACKNOWLEDGED = "acknowledged"  #: an operator has seen it
    CLEARED = "cleared"  #: the condition has gone (and, if latching, was acknowledged): the episode is over
    SHELVED = "shelved"  #: an operator silenced the class on this sensor for a time
    UNSHELVED = "unshelved"
    RECORDED = "recorded"  #: seen, and no fault (pencil-lead break): nothing to act on, no episode stays open


class Priority(StrEnum):
    """How soon somebody must act, most urgent first."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"
    INFO = "info"


class Alert(msgspec.Struct, frozen=True, omit_defaults=True):
    """One transition of one episode. `id` is unique and the same in every run over the same samples."""

    id: str  #: episode and transition number: "<episode>-<number>"
    episode: str  #: 16 hex digits: hash of (sensor, condition, epoch, first window)
    number: int  #: 1 for the first transition of the episode, then 2, 3, …
    transition: Transition
    sensor: str
    condition: str  #: a class of the model, or "unknown", or "sensor.<clipping|flat|gap|silent>"
    priority: Priority
    fault: bool  #: False for what is recorded but needs nobody to act
    #: Event time of the transition, ns UTC: end of the window that decided it; of an operator's action: when it was
    time_ns: int
    epoch_ns: int  #: epoch of `first_sample`
    first_sample: int  #: start of the window with which the episode began
    start_sample: int  #: start of the window that decided this transition
    source_count: int  #: samples of the sensor that this window covers
    start_epoch_ns: int | None = None  #: epoch of `start_sample` where the sensor began anew since `epoch_ns`
    probability: float = 0.0  #: of the condition in that window
    unknown_score: float = 0.0
    model_version: str = ""  #: of the model that judged that window, the sensor's last one where an operator acted
    features: HitFeatures | None = None  #: of that window
    run: str = ""  #: name of the replay it belongs to; absent for live data
    late: bool = False  #: the samples came through the spool
    #: How long after `time_ns` it was published, s, where that is long; the one field that depends on when things were
    #: done, so it is 0 in replays and wherever alerts are only computed
    delay_s: float = 0.0
    lost_s: float = 0.0  #: event time without a window, s (`sensor.gap`, `sensor.silent`)
    until_ns: int = 0  #: event time at which a shelf ends, ns UTC (`shelved`)
    by: str = ""  #: who acknowledged or shelved
    note: str = ""


def run_of(sensor: str) -> str:
    """Name of the replay that a sensor id `replay/<run>/…` belongs to; empty for a live sensor."""
    parts = sensor.split("/", 2)
    return parts[1] if len(parts) == 3 and parts[0] == "replay" else ""


def with_delay(alert: Alert, published_ns: int, late_after_s: float) -> Alert:
    """The alert as it is published at this wall-clock time: a live one that comes late says by how much.

    Parameters
    ----------
    published_ns
        Now, ns UTC.
    late_after_s
        A shorter delay is not told, s.
    """
    if alert.run or alert.time_ns < CLOCKS_ARE_SET_NS:
        return alert
    delay_s = (published_ns - alert.time_ns) / 1e9
    return msgspec.structs.replace(alert, delay_s=round(delay_s, 1)) if delay_s > late_after_s else alert


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Alert)


def encode_alert(alert: Alert) -> bytes:
    """JSON, UTF-8; fields at their defaults are left out."""
    return _encoder.encode(alert)


def decode_alert(message: bytes | str) -> Alert:
    """The alert in `message`.

    Raises
    ------
    msgspec.DecodeError
        If it is not JSON or a field is missing or of another type.
    """
    return decode_json(_decoder, message)
