"""From windows to predictions: the one place where the engine meets the AE features, live and offline alike."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from model.engine import Engine
from stream.hit_features import measure
from stream.predictions import Prediction
from stream.records import Window


def predict(engine: Engine, windows: Sequence[Window], threshold_db_ae: float) -> list[Prediction]:
    """What the network says of each window, in the order given.

    Parameters
    ----------
    engine
        Batch-invariant: a window's numbers do not depend on its company.
    windows
        At the model's rate, as `stream.windows` makes them; lengths may differ (hits).
    threshold_db_ae
        Threshold of the hit features, dB above 1 µV.
    """
    if not windows:
        return []
    inference = engine.infer([window.samples for window in windows])
    names = [label.name for label in engine.card.labels]
    threshold = engine.card.unknown.threshold
    return [
        Prediction(
            sensor=window.sensor,
            epoch_ns=window.epoch_ns,
            start_sample=window.start_sample,
            source_count=window.source_count,
            time_ns=window.time_ns,
            end_time_ns=window.end_time_ns,
            source_rate_hz=float(window.source_rate_hz),
            flags=int(window.flags),
            probabilities=dict(zip(names, probabilities, strict=True)),
            unknown_score=score,
            unknown=score > threshold,
            model_version=engine.card.version,
            features=measure(window, threshold_db_ae),
        )
        for window, probabilities, score in zip(
            windows, inference.probabilities.tolist(), inference.unknown_scores.tolist(), strict=True
        )
    ]


def judge_again(engine: Engine, windows: Sequence[Window], judged: Sequence[Prediction]) -> list[Prediction]:
    """What another network says of windows that were judged before; `judged[i]` is of `windows[i]`.

    All that does not depend on the network (identity, features) is taken over.
    """
    if not windows:
        return []
    inference = engine.infer([window.samples for window in windows])
    names = [label.name for label in engine.card.labels]
    threshold = engine.card.unknown.threshold
    return [
        msgspec.structs.replace(
            before,
            probabilities=dict(zip(names, probabilities, strict=True)),
            unknown_score=score,
            unknown=score > threshold,
            model_version=engine.card.version,
        )
        for before, probabilities, score in zip(
            judged, inference.probabilities.tolist(), inference.unknown_scores.tolist(), strict=True
        )
    ]
