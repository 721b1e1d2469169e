from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.architecture import EcapaDims
from model.engine import Engine
from model.untrained import write_untrained_bundle
from producers.propagation import DEMO_POSITIONS
from producers.simulator import SensorSimulator
from producers.sources.frame_cuts import FrameCuts
from producers.sources.simulator import SimulatedSensors
from stream.alarms import AlarmRules
from stream.classify import Classified, classify
from stream.classify_plot import Picture
from stream.records import Frame
from stream.windows import WindowSpec

LENGTH, HOP = 4096, 2048


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    bundle = tmp_path_factory.mktemp("bundle")
    dims = EcapaDims(channels=16, mfa_channels=48, attention=16, embedding=16, scale=4, se_bottleneck=8)
    write_untrained_bundle(bundle, network=dims, window_samples=LENGTH, hop_samples=HOP)
    return Engine(bundle, device="cpu", threads=1)


def frames(sensors: int = 1, cuts: FrameCuts | None = None) -> Iterator[Frame]:
    simulators = [SensorSimulator(position.name, position) for position in DEMO_POSITIONS[:sensors]]
    return iter(SimulatedSensors(simulators, duration_s=0.2, cuts=cuts or FrameCuts()))


def run(engine: Engine, of: Iterator[Frame]) -> list[Classified]:
    rules = AlarmRules.for_labels(engine.card.roles)
    return list(classify(of, engine, WindowSpec(LENGTH, HOP, engine.card.window_rate_hz), rules))


def test_the_same_samples_get_the_same_predictions_however_they_are_framed(engine: Engine) -> None:
    once = [p for batch in run(engine, frames()) for p in batch.predictions]
    again = [p for batch in run(engine, frames(cuts=FrameCuts(frame_sizes=[700, 9001]))) for p in batch.predictions]
    assert len(once) == (100_000 - LENGTH) // HOP + 1
    assert once == again


def test_a_frame_that_the_pipeline_would_turn_away_is_told_of_and_the_others_are_used(engine: Engine) -> None:
    damaged = [
        replace(frame, samples=np.full(len(frame.samples), np.nan, np.float32)) if index == 1 else frame
        for index, frame in enumerate(frames())
    ]
    batches = run(engine, iter(damaged))
    assert [reason for batch in batches for reason in batch.rejected] == [
        "plant1/pump1/ch0: not-finite: sample 0 is nan"
    ]
    starts = [p.start_sample for batch in batches for p in batch.predictions]
    assert starts
    assert not any(25_000 - LENGTH < start < 50_000 for start in starts), "no window reaches into the gap"


def test_a_picture_is_written_for_each_sensor(engine: Engine, tmp_path: Path) -> None:
    picture = Picture(engine.card)
    for batch in run(engine, frames(sensors=2)):
        picture.add(batch)
    written = picture.write(tmp_path / "plant.png")
    assert [path.name for path in written] == ["plant-0.png", "plant-1.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_a_picture_of_nothing_or_of_an_unknown_kind_is_refused(engine: Engine, tmp_path: Path) -> None:
    picture = Picture(engine.card)
    with pytest.raises(ValueError, match="no windows"):
        picture.write(tmp_path / "plant.png")
    picture.add(run(engine, frames())[0])
    with pytest.raises(ValueError, match="nonsense"):
        picture.write(tmp_path / "plant.nonsense")
