"""Recordings through a bundle without Kafka and Redis, as far as a replay would play them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from model.engine import Engine
from producers.replay_track import InTurn, Passage, Track
from producers.sources import Source
from stream.alarms import AlarmRules
from stream.alerts import Alert
from stream.classify import classify
from stream.records import Frame
from stream.windows import WindowSpec


@dataclass(slots=True)
class Trial:
    """What a bundle made of the recordings."""

    alerts: list[Alert] = field(default_factory=list)
    windows: int = 0
    rejected: list[str] = field(default_factory=list)  #: frames that the pipeline would turn away, and why
    failures: list[Exception] = field(default_factory=list)  #: of recordings, while the others went on


def try_bundle(
    sources: Sequence[Source | InTurn],
    engine: Engine,
    spec: WindowSpec,
    rules: AlarmRules,
    threshold_db_ae: float,
    *,
    passage: Passage | None = None,
    on_frame: Callable[[Frame], None] = lambda _: None,
) -> Trial:
    """Run `engine` and the alarm rules over `sources`, one after another: sensors do not know of one another."""
    trial = Trial()
    for frames in _frames(sources, passage or Passage(), trial.failures, on_frame):
        for batch in classify(frames, engine, spec, rules, threshold_db_ae):
            trial.alerts += batch.alerts
            trial.windows += len(batch.predictions)
            trial.rejected += batch.rejected
    return trial


def _frames(
    sources: Sequence[Source | InTurn],
    passage: Passage,
    failures: list[Exception],
    on_frame: Callable[[Frame], None],
) -> Iterator[Iterator[Frame]]:
    def noted(source: Source | InTurn) -> Iterator[Frame]:
        with closing(iter(Track(source, passage, failures, threading.Event()))) as cues:
            for cue in cues:
                on_frame(cue.frame)
                yield cue.frame

    return (noted(source) for source in sources)
