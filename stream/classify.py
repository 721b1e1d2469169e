"""The oracle: the pipeline's own modules over frames in memory, without Kafka and Redis.

What it finds is the truth that live, replayed and disturbed runs are compared with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from model.engine import Engine
from stream.alarms import AlarmRules, SensorState, advance
from stream.alerts import Alert
from stream.detect import predict
from stream.predictions import Prediction
from stream.records import Frame, Window, decode_frames, encode_frame
from stream.windows import SensorWindows, WindowSpec


@dataclass(slots=True)
class Classified:
    """One batch: `windows[i]` belongs to `predictions[i]`; `rejected` tells of frames that could not be used."""

    windows: list[Window] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)


def classify(
    frames: Iterable[Frame],
    engine: Engine,
    spec: WindowSpec,
    rules: AlarmRules,
    threshold_db_ae: float = 40.0,
    batch_windows: int = 32,
) -> Iterator[Classified]:
    """Windows, predictions and alerts of these frames, batch by batch; memory does not grow with their number.

    Frames of several sensors may come in any mixture as long as each sensor's own are in order. Alerts of one
    sensor come in the order in which the pipeline raises them.
    """
    cutters: dict[str, SensorWindows] = {}
    states: dict[str, SensorState] = {}
    batch = Classified()
    for frame in frames:
        # Through the wire format, so that what the pipeline would turn away is turned away here too.
        decoded = decode_frames(frame.sensor, encode_frame(frame))
        batch.rejected += [f"{frame.sensor}: {reject.reason}: {reject.detail}" for reject in decoded.rejects]
        for sound in decoded.frames:
            cutter = cutters.get(sound.sensor)
            if cutter is None:
                cutter = cutters[sound.sensor] = SensorWindows(sound.sensor, spec)
            pushed = cutter.push(sound)
            batch.windows += pushed.windows
            if pushed.rejected is not None:
                batch.rejected.append(f"{frame.sensor}: {pushed.rejected}")
        if len(batch.windows) >= batch_windows:
            yield _decide(batch, engine, rules, threshold_db_ae, states)
            batch = Classified()
    yield _decide(batch, engine, rules, threshold_db_ae, states)


def _decide(
    batch: Classified, engine: Engine, rules: AlarmRules, threshold_db_ae: float, states: dict[str, SensorState]
) -> Classified:
    batch.predictions = predict(engine, batch.windows, threshold_db_ae)
    for prediction in batch.predictions:
        state = states.get(prediction.sensor)
        if state is None:
            state = states[prediction.sensor] = SensorState()
        batch.alerts += advance(state, prediction, rules)
    return batch
