"""A replay with a report beside sensors that are not of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from deploy.settings import KafkaSettings
from stream.records import Frame, encode_frame
from tests.integration.pipeline_run import PipelineRun, classify, write_recording

pytestmark = pytest.mark.integration


@pytest.fixture
def pipeline(tmp_path: Path, topics: KafkaSettings, redis_url: str, unique: str) -> Iterator[PipelineRun]:
    run = PipelineRun(tmp_path, topics, redis_url, unique)
    with run.children:
        yield run


def cut_off_in_mid_window(sensor: str) -> tuple[bytes, bytes]:
    """All that a producer sent before it was killed."""
    samples = np.zeros(1_000, np.int16)
    return sensor.encode(), encode_frame(
        Frame(sensor, time.time_ns(), 0, 0, time.time_ns(), Fraction(500_000), samples)
    )


def test_a_sensor_cut_off_in_mid_window_does_not_hold_up_the_report_of_others(
    pipeline: PipelineRun, tmp_path: Path
) -> None:
    recording = write_recording(tmp_path / "plant.wav", duration_s=6.0, channels=2)
    recording.with_suffix(".labels.csv").write_text("start,end,label,channel\n")
    _, expected = classify(recording, run="held")
    assert expected

    pipeline.publish(pipeline.topics.frames_topic, [cut_off_in_mid_window("plant/killed")])
    pipeline.start("window")
    pipeline.start("worker")
    arguments = ["replay", str(recording), "--rate", "max", "--run", "held", "--report", str(tmp_path / "out")]
    replay = pipeline.children.start("replay", [*arguments, "--wait", "50"])
    assert replay.wait(90) == 0, replay.tail()

    (judged,) = json.loads((tmp_path / "out" / "report.json").read_text())["judgements"]
    assert judged["notes"] == []
    assert sorted(alert.id for alert in pipeline.alerts()) == sorted(alert.id for alert in expected)


def test_a_report_without_a_worker_names_a_sensor_that_did_not_come_through(
    pipeline: PipelineRun, tmp_path: Path
) -> None:
    recording = write_recording(tmp_path / "plant.wav", duration_s=3.0, channels=2)
    recording.with_suffix(".labels.csv").write_text("start,end,label,channel\n")
    pipeline.start("window")
    arguments = ["replay", str(recording), "--rate", "max", "--run", "alone", "--report", str(tmp_path / "out")]
    replay = pipeline.children.start("replay", [*arguments, "--wait", "3"])
    assert replay.wait(60) == 1, replay.tail()
    (judged,) = json.loads((tmp_path / "out" / "report.json").read_text())["judgements"]
    assert "2 of 2 sensors had not come through the pipeline to their end, replay/alone/plant/ch0" in judged["notes"][0]
