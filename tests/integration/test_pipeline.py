"""The whole path through separate processes, held against the oracle."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from deploy.settings import KafkaSettings
from stream.records import Window, encode_window
from tests.integration.pipeline_run import PipelineRun, classify, write_recording

pytestmark = pytest.mark.integration


@pytest.fixture
def pipeline(tmp_path: Path, topics: KafkaSettings, redis_url: str, unique: str) -> Iterator[PipelineRun]:
    run = PipelineRun(tmp_path, topics, redis_url, unique)
    with run.children:
        yield run


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recording(tmp_path_factory.mktemp("recording") / "plant.wav", duration_s=14.0, channels=3)


def await_commits(run: PipelineRun) -> None:
    """The alerts of a window are there before it is committed; a moment later all of them are."""
    time.sleep(1.0)


def test_a_replay_raises_exactly_the_alerts_of_the_oracle(pipeline: PipelineRun, recording: Path) -> None:
    expected_predictions, expected = classify(recording, run="one")
    assert len({alert.condition for alert in expected}) >= 3, "the recording should hold several kinds of events"

    pipeline.start("window")
    pipeline.start("worker")
    pipeline.replay(recording, run="one")
    predictions = pipeline.predictions(len(expected_predictions))
    await_commits(pipeline)
    found = pipeline.alerts()

    assert sorted(alert.id for alert in found) == sorted(alert.id for alert in expected)
    by_id = {alert.id: alert for alert in expected}
    assert all(alert == by_id[alert.id] for alert in found), "not only the ids: every field is the same"
    for sensor in {alert.sensor for alert in expected}:
        in_order = [alert.id for alert in expected if alert.sensor == sensor]
        assert [alert.id for alert in found if alert.sensor == sensor] == in_order
    by_window = {(row["sensor"], row["epoch_ns"], row["start_sample"]): row for row in expected_predictions}
    assert len(predictions) == len(by_window)
    for prediction in predictions:
        assert prediction.probabilities == by_window[(prediction.sensor, *prediction.position)]["probabilities"]
    assert pipeline.messages(pipeline.topics.deadletter_topic) == 0


def test_sigterm_in_the_middle_loses_nothing_and_takes_seconds(pipeline: PipelineRun, recording: Path) -> None:
    expected_predictions, expected = classify(recording, run="two")
    agent, worker = pipeline.start("window"), pipeline.start("worker")
    replay = pipeline.children.start("replay", ["replay", str(recording), "--rate", "4", "--run", "two"])

    for stopped in (agent, worker):
        time.sleep(1.0)
        begun = time.monotonic()
        stopped.process.send_signal(signal.SIGTERM)
        assert stopped.wait(15) == 0, stopped.tail()
        assert time.monotonic() - begun < 15
        pipeline.start(stopped.name.split("-")[0])

    assert replay.wait(60) == 0, replay.tail()
    windows = {(p.sensor, *p.position) for p in pipeline.predictions(len(expected_predictions))}
    await_commits(pipeline)
    assert windows == {(row["sensor"], row["epoch_ns"], row["start_sample"]) for row in expected_predictions}
    assert sorted(alert.id for alert in pipeline.alerts()) == sorted(alert.id for alert in expected)


def test_a_replay_that_is_terminated_has_every_frame_it_took_acknowledged(
    pipeline: PipelineRun, recording: Path
) -> None:
    replay = pipeline.children.start("replay", ["replay", str(recording), "--rate", "1", "--run", "three"])
    deadline = time.monotonic() + 30
    while pipeline.messages(pipeline.topics.frames_topic) < 20 and time.monotonic() < deadline:
        time.sleep(0.2)
    replay.process.send_signal(signal.SIGTERM)
    assert replay.wait(10) == 0, replay.tail()
    last_line = replay.tail(1)
    assert last_line.endswith("acknowledged"), last_line
    assert int(last_line.split()[0]) >= 20


def test_two_agents_and_two_workers_share_the_load(pipeline: PipelineRun, recording: Path) -> None:
    expected_predictions, expected = classify(recording, run="four")
    for kind in ("window", "window", "worker", "worker"):
        pipeline.start(kind)
    pipeline.replay(recording, run="four")
    windows = {(p.sensor, *p.position) for p in pipeline.predictions(len(expected_predictions))}
    await_commits(pipeline)
    assert windows == {(row["sensor"], row["epoch_ns"], row["start_sample"]) for row in expected_predictions}
    assert sorted(alert.id for alert in pipeline.alerts()) == sorted(alert.id for alert in expected)


def test_windows_that_are_none_are_dead_lettered_and_those_around_them_are_predicted(pipeline: PipelineRun) -> None:
    good = Window(
        sensor="plant1/pump1/ch0",
        epoch_ns=0,
        start_sample=0,
        source_count=65_536,
        source_rate_hz=Fraction(500_000),
        time_ns=0,
        rate_hz=Fraction(500_000),
        samples=np.random.default_rng(1).normal(0, 100, 65_536).astype(np.int16),
    )
    later = replace(good, start_sample=65_536)
    of_another_rate = replace(good, start_sample=32_768, rate_hz=Fraction(16_000))
    key = good.sensor.encode()
    messages = [
        (key, encode_window(good)),
        (key, b"garbage"),
        (key, encode_window(good)[:-1]),
        (key, encode_window(of_another_rate)),
        (b"\xff\xfe", encode_window(good)),
        (None, encode_window(good)),
        (key, encode_window(later)),
    ]
    pipeline.publish(pipeline.topics.windows_topic, messages)
    pipeline.start("worker")
    assert {p.position for p in pipeline.predictions(2)} == {good.position, later.position}
    await_commits(pipeline)
    reasons = Counter(letter.reason for letter in pipeline.dead_letters())
    assert reasons == {"truncated": 2, "rate": 1, "sensor-id": 2}


def test_each_hit_of_a_real_bearing_test_gets_its_window_and_its_prediction(
    pipeline: PipelineRun, real_data: Path
) -> None:
    bearing = real_data / "vallen" / "bearing" / "bearing.tradb"
    expected_predictions, expected = classify(bearing, run="bearing")
    assert len(expected_predictions) == 490
    pipeline.start("window")
    pipeline.start("worker")
    pipeline.replay(bearing, run="bearing")
    predictions = pipeline.predictions(490)
    await_commits(pipeline)
    assert len(predictions) == len({p.position for p in predictions}) == 490
    assert pipeline.messages(pipeline.topics.windows_topic) == 490
    assert sorted(alert.id for alert in pipeline.alerts()) == sorted(alert.id for alert in expected)
