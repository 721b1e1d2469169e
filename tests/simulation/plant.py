"""Plants to simulate: what their sensors send, and what the pipeline must make of it, by `stream.classify`."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np

import stream.classify
from stream.alarms import AlarmRules, SensorState, advance, encode_state
from stream.alert_store import EFFECTS
from stream.alerts import Alert, encode_alert
from stream.predictions import HitFeatures, Prediction, encode_prediction
from stream.records import Flags, Frame, Window, encode_frame, encode_window
from stream.windows import WindowSpec

SPEC = WindowSpec(length=8, hop=4)
RATE_HZ = Fraction(1000)
EPOCH_NS = 1_700_000_000_000_000_000
LABELS = {"background": "background", "knock": "fault", "friction": "fault", "break": "calibration"}
#: In the time of these windows (8 ms), so that twenty of them have a life: raises, clears, chatter, gaps, silence.
RULES = AlarmRules.for_labels(
    LABELS,
    {
        "faults": {"clear_after_s": 0.006, "max_raises": 2, "chatter_period_s": 0.05},
        "gap_s": 0.003,
        "silent_s": 0.02,
        "conditions": {
            "knock": {"k": 1, "n": 1},
            "break": {"clear_after_s": 0.004},
            "unknown": {"k": 1, "n": 2, "clear_after_s": 0.004},
            "sensor.flat": {"raise_after_s": 0.0, "clear_after_s": 0.004},
            "sensor.clipping": {"k": 1, "n": 2, "clear_after_s": 0.004},
        },
    },
)

#: What a stretch of four samples sounds like; `_sound` is its samples' thousands.
SOUNDS = ("background", "knock", "friction", "break", "unknown", "flat", "clipped")
PLANTS = 200

_predictions: dict[tuple[str, int, int, int, float, bytes], Prediction] = {}


def predict(engine: Any, windows: Sequence[Window], threshold_db_ae: float) -> list[Prediction]:
    """In the place of `stream.detect.predict`: a pure function of the window, every sample of which matters."""
    predictions = []
    for window in windows:
        key = (
            window.sensor,
            window.epoch_ns,
            window.start_sample,
            int(window.flags),
            window.volts_per_count,
            window.samples.tobytes(),
        )
        prediction = _predictions.get(key)
        if prediction is None:
            if len(_predictions) > 200_000:
                _predictions.clear()
            prediction = _predictions[key] = _judge(window)
        predictions.append(prediction)
    return predictions


def _judge(window: Window) -> Prediction:
    sounds = window.samples.astype(np.int64) // 1000
    share = {name: float(np.count_nonzero(sounds == number)) / len(sounds) for number, name in enumerate(SOUNDS)}
    unknown = share["unknown"] > 0.5
    return Prediction(
        sensor=window.sensor,
        epoch_ns=window.epoch_ns,
        start_sample=window.start_sample,
        source_count=window.source_count,
        time_ns=window.time_ns,
        end_time_ns=window.end_time_ns,
        source_rate_hz=float(window.source_rate_hz),
        flags=int(window.flags),
        probabilities={name: share[name] for name in LABELS},
        unknown_score=(1.0 if unknown else 0.0) + zlib.crc32(window.samples.tobytes()) / 2**34,
        unknown=unknown,
        model_version="simulated",
        features=HitFeatures(
            60.0, 40.0, 1.0, 2.0, 3, 4.0, window.volts_per_count, share["clipped"], share["flat"] > 0.5
        ),
    )


@dataclass(frozen=True, slots=True)
class Packet:
    """One message of a producer: a few frames of one sensor, or bytes that are none."""

    value: bytes
    from_spool: bytes  #: the same frames as the producer's spool sends them, flagged HISTORICAL
    frames: tuple[Frame, ...]
    garbage: bool


@dataclass(frozen=True, slots=True)
class TrueWindow:
    """A window that must come of a sensor's frames."""

    value: bytes  #: as it is written
    epoch_ns: int
    start_sample: int
    hit: bool
    prediction: bytes  #: as it is written
    position: bytes  #: as the store writes it
    needs: int  #: the first of its sensor's packets that it is made of


@dataclass(slots=True)
class Sensor:
    """What one sensor sends, and the truth about it."""

    name: str
    key: bytes
    packets: list[Packet]
    windows: list[TrueWindow] = field(default_factory=list)
    alerts: list[bytes] = field(default_factory=list)
    state: bytes = b""  #: written form, after the last window
    open: dict[bytes, bytes] = field(default_factory=dict)  #: open episodes after that, each with its latest alert
    place: dict[bytes, int] = field(default_factory=dict)  #: of each window, by its value
    predicted_place: dict[bytes, int] = field(default_factory=dict)  #: the same by its prediction


@dataclass(frozen=True, slots=True)
class Plant:
    """Some sensors."""

    sensors: tuple[Sensor, ...]


@lru_cache(maxsize=PLANTS)
def plant(number: int) -> Plant:
    """Plant `number`: one to three sensors of very different habits."""
    random_ = random.Random(f"plant {number}")
    sensors = tuple(_sensor(random_, f"plant/{index}") for index in range(random_.choice((1, 1, 2, 2, 3))))
    for sensor in sensors:
        _find_truth(sensor)
    return Plant(sensors)


def _sensor(random_: random.Random, name: str) -> Sensor:
    hits = random_.random() < 0.2
    frames = list(_hits(random_, name) if hits else _continuous(random_, name))
    packets = []
    while frames:
        count = min(len(frames), random_.choice((1, 1, 1, 2, 3)))
        packets.append(_packet(tuple(frames[:count])))
        del frames[:count]
        if random_.random() < 0.04:
            rubbish = random_.randbytes(random_.randrange(1, 90))
            packets.append(Packet(rubbish, rubbish, (), garbage=True))
    return Sensor(name, name.encode(), packets)


def _packet(frames: tuple[Frame, ...]) -> Packet:
    late = [replace(frame, flags=frame.flags | Flags.HISTORICAL) for frame in frames]
    return Packet(b"".join(map(encode_frame, frames)), b"".join(map(encode_frame, late)), frames, garbage=False)


def _continuous(random_: random.Random, name: str) -> Iterator[Frame]:
    """A stream with gaps, lost samples, restarts and changes of scale; four samples of one sound, then the next."""
    epoch_ns, at, volts, sequence = EPOCH_NS + random_.randrange(4), random_.choice((0, 0, 0, 3)), 1.0, 0
    sound = 0
    trouble = random_.random() < 0.7
    for number in range(frames := random_.randrange(2, 6)):
        count = random_.choice((1, 2, 4, 4, 5, 8, 8, 11))
        samples = np.empty(count, np.int16)
        for index in range(count):
            if (at + index) % 4 == 0 and random_.random() < 0.45:
                sound = random_.choice((0, 0, 1, 1, 2, 2, 3, 4, 5, 6))
            samples[index] = sound * 1000 + (at + index) * 7 % 97
        flags = Flags(0)
        if trouble and random_.random() < 0.08:
            flags |= random_.choice((Flags.OVERFLOW, Flags.SATURATED, Flags.TEST_PULSE))
        ends = number + 1 == frames or (trouble and random_.random() < 0.06)
        if ends and random_.random() < 0.5:
            flags |= Flags.END
        yield _frame(name, epoch_ns, sequence, at, samples, volts, flags)
        sequence += 1
        at += count
        if ends or (trouble and random_.random() < 0.06):
            epoch_ns, at, sequence = epoch_ns + random_.choice((1, 200_000_000)), random_.choice((0, 0, 5)), 0
        elif trouble and random_.random() < 0.12:
            at += random_.choice((1, 4, 9, 30))
        elif trouble and random_.random() < 0.05:
            volts += 1.0


def _hits(random_: random.Random, name: str) -> Iterator[Frame]:
    at, epoch_ns = 0, EPOCH_NS
    for sequence in range(random_.randrange(2, 5)):
        at += random_.choice((4, 8, 20, 60))
        sound = random_.choice((0, 1, 2, 3, 4, 6))
        samples = (sound * 1000 + np.arange(at, at + random_.choice((3, 6, 8)))).astype(np.int16)
        yield _frame(name, epoch_ns, sequence, at, samples, 1.0, Flags.HIT)
        if random_.random() < 0.1:
            epoch_ns, at = epoch_ns + 10_000_000, 0


def _frame(
    name: str, epoch_ns: int, sequence: int, at: int, samples: np.ndarray[Any, Any], volts: float, flags: Flags
) -> Frame:
    time_ns = epoch_ns + at * 1_000_000
    return Frame(name, epoch_ns, sequence, at, time_ns, RATE_HZ, samples, volts, flags)


@contextmanager
def _network_replaced() -> Iterator[None]:
    before = stream.classify.predict
    stream.classify.predict = predict
    try:
        yield
    finally:
        stream.classify.predict = before


def _find_truth(sensor: Sensor) -> None:
    frames = [frame for packet in sensor.packets for frame in packet.frames]
    state = SensorState()
    with _network_replaced():
        [*batches] = stream.classify.classify(frames, None, SPEC, RULES)  # type: ignore[arg-type]
    for batch in batches:
        assert not batch.rejected, batch.rejected
        sensor.alerts += map(encode_alert, batch.alerts)
        note_open(sensor.open, batch.alerts)
        for window, prediction in zip(batch.windows, batch.predictions, strict=True):
            advance(state, prediction, RULES)
            truth = TrueWindow(
                value=encode_window(window),
                epoch_ns=window.epoch_ns,
                start_sample=window.start_sample,
                hit=Flags.HIT in window.flags,
                prediction=encode_prediction(prediction),
                position=b"%019d%019d" % window.position,
                needs=_first_packet(sensor, window),
            )
            sensor.place[truth.value] = len(sensor.windows)
            sensor.predicted_place[truth.prediction] = len(sensor.windows)
            sensor.windows.append(truth)
    sensor.state = encode_state(state) if sensor.windows else b""


def note_open(open_episodes: dict[bytes, bytes], alerts: Iterable[Alert]) -> None:
    """Which episodes are open after these alerts."""
    for alert in alerts:
        if EFFECTS[alert.transition] == "open":
            open_episodes[alert.episode.encode()] = encode_alert(alert)
        elif EFFECTS[alert.transition] == "close":
            open_episodes.pop(alert.episode.encode(), None)


def _first_packet(sensor: Sensor, window: Window) -> int:
    return next(
        number
        for number, packet in enumerate(sensor.packets)
        for frame in packet.frames
        if frame.epoch_ns == window.epoch_ns
        and (
            frame.first_sample == window.start_sample
            if Flags.HIT in window.flags
            else frame.first_sample <= window.start_sample < frame.end_sample
        )
    )


def without_flags(written: bytes) -> Prediction:
    """A written prediction, whatever its frames said of themselves."""
    return msgspec.structs.replace(msgspec.json.decode(written, type=Prediction), flags=0)
