from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import pytest
from click.testing import CliRunner

from deploy.cli.alerts import sensors as sensors_command
from deploy.produce import run_producer
from deploy.producer_pages import ProducerState, producer_pages
from deploy.settings import KafkaSettings
from producers.live.sensor_meter import SensorReport
from producers.sensors_file import read_sensors_file

RUNNING = SensorReport(
    sensor="p/a",
    source="logger",
    metadata={},
    state="running",
    error="",
    rate_hz=16_000.0,
    measured_rate_hz=15_999.0,
    frames=200,
    samples=160_000,
    lag_s=0.25,
    last_frame_s=0.03,
    gaps=1,
    lost_samples=5,
    epochs=1,
    clipped_share=0.0,
    flat=False,
    drift_ppm=None,
    offset_s=0.0,
)


async def listed(report: SensorReport) -> str:
    """What `aewatch sensors --producer` says of it."""
    state = ProducerState([report], {}, "connected since 2026-11-23T08:00:00Z")
    async with producer_pages("127.0.0.1:0", lambda: state) as address:
        result = await asyncio.to_thread(CliRunner().invoke, sensors_command, ["--producer", address])
    assert result.exit_code == 0, result.output
    return result.output.splitlines()[0]


async def test_the_address_that_is_told_shows_what_there_is() -> None:
    async with producer_pages("127.0.0.1:0", lambda: ProducerState([], {}, "")) as address:
        page = await asyncio.to_thread(lambda: urlopen(f"http://{address}/", timeout=5).read().decode())
    for name in ("/metrics", "/sensors", "/healthz"):
        assert f'href="{name}"' in page


@pytest.mark.parametrize(
    ("report", "told"),
    [
        (RUNNING, "p/a  running, 15,999 of 16,000 Hz, last frame 0.03 s ago, 0.25 s behind, 1 gap"),
        (replace(RUNNING, gaps=0, lag_s=-0.31), "last frame 0.03 s ago, 0.31 s ahead of this clock, 0 gaps"),
        (replace(RUNNING, last_frame_s=7_200.0, lag_s=7_201.0), "last frame 2.0 h ago, 2.0 h behind"),
        (replace(RUNNING, clipped_share=1.0), ", 100.0 % clipped"),
        (replace(RUNNING, clipped_share=0.000_02), ", 0.1 % clipped"),
    ],
)
async def test_a_sensor_is_told_in_words(report: SensorReport, told: str) -> None:
    assert told in await listed(report)


async def test_a_spool_that_cannot_be_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    path = tmp_path / "sensors.toml"
    path.write_text(
        f"[spool]\nfolder = '{tmp_path}/file/spool'\n[source.s]\nkind = 'simulator'\n[[sensor]]\nid = 'a'\nsource = 's'"
    )
    with pytest.raises(ValueError, match=r"spool\.folder .*/file/spool: cannot be used: Not a directory; name one"):
        await run_producer(read_sensors_file(path), KafkaSettings(), asyncio.Event())
