"""A partition with a backlog does not make the sensors in the others wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from deploy.settings import KafkaSettings
from deploy.topic_reader import reading
from model.architecture import EcapaDims
from model.untrained import write_untrained_bundle
from stream.predictions import decode_prediction
from stream.records import Window, encode_window
from tests.integration.pipeline_run import PipelineRun

pytestmark = pytest.mark.integration

SAMPLES = 4096
TINY = EcapaDims(channels=16, mfa_channels=24, attention=8, se_bottleneck=8, embedding=8)
BACKLOG = 600
BATCH = 32


@pytest.fixture
def pipeline(tmp_path: Path, topics: KafkaSettings, redis_url: str, unique: str) -> Iterator[PipelineRun]:
    write_untrained_bundle(tmp_path / "bundle", network=TINY, window_samples=SAMPLES, hop_samples=SAMPLES)
    run = PipelineRun(tmp_path, topics, redis_url, unique)
    run.variables |= {
        "AEWATCH_MODEL__BUNDLE": str(tmp_path / "bundle"),
        "AEWATCH_WORKER__BATCH_WINDOWS": str(BATCH),
    }
    with run.children:
        yield run


def windows_of(sensor: str, count: int) -> list[tuple[bytes | None, bytes]]:
    samples = np.random.default_rng(1).integers(-500, 500, SAMPLES, np.int16)
    rate_hz = Fraction(500_000)
    return [
        (
            sensor.encode(),
            encode_window(Window(sensor, 0, number * SAMPLES, SAMPLES, rate_hz, 0, rate_hz, samples)),
        )
        for number in range(count)
    ]


async def order_of_predictions(topics: KafkaSettings) -> list[str]:
    """Sensors, in the order in which their windows were judged."""
    found = []
    async with reading(topics, topics.predictions_topic) as consumer:
        for partition, end in (await consumer.end_offsets(sorted(consumer.assignment()))).items():
            while await consumer.position(partition) < end:
                record = await consumer.getone(partition)
                found.append((record.timestamp, decode_prediction(record.value or b"").sensor))
    return [sensor for _, sensor in sorted(found)]


def test_each_partition_has_its_share_of_every_batch(pipeline: PipelineRun) -> None:
    topic = pipeline.topics.windows_topic
    pipeline.publish(topic, windows_of("crowd", BACKLOG), partition=0)
    pipeline.publish(topic, windows_of("quiet", 16), partition=1)
    pipeline.start("worker")
    pipeline.predictions(BACKLOG + 16)
    order = asyncio.run(order_of_predictions(pipeline.topics))
    last_of_quiet = max(number for number, sensor in enumerate(order) if sensor == "quiet")
    assert last_of_quiet < 8 * BATCH, f"after {last_of_quiet} of {len(order)} windows"
