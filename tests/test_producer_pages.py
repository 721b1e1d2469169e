from __future__ import annotations

import asyncio
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from click.testing import CliRunner

from deploy.cli.alerts import sensors as sensors_command
from deploy.produce import producer_state, run_producer
from deploy.producer_metrics import metrics_text
from deploy.producer_pages import ProducerState, producer_pages
from deploy.settings import KafkaSettings
from producers.forwarder import Forwarder
from producers.ingest import Ingest
from producers.live.sensor_meter import SensorReport
from producers.publisher import Publisher
from producers.sensors_file import read_sensors_file
from producers.spool import SpoolSettings
from stream.records import Frame

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
    corrections=0,
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
        (replace(RUNNING, spooled_frames=0), ", 1 gap, 0 in the spool"),
        (replace(RUNNING, spooled_frames=1_200, flat=True), ", 1 gap, 1,200 in the spool, flat line"),
        (replace(RUNNING, lag_s=None, spooled_frames=7), "p/a  running, 7 in the spool, no frame yet"),
        (replace(RUNNING, lag_s=None, spooled_frames=0), "p/a  running, no frame yet"),
        (replace(RUNNING, corrections=1), ", 1 gap, its time was corrected after a backlog"),
        (replace(RUNNING, clipped_share=1.0), ", 100.0 % clipped"),
        (replace(RUNNING, clipped_share=0.000_02), ", 0.1 % clipped"),
    ],
)
async def test_a_sensor_is_told_in_words(report: SensorReport, told: str) -> None:
    assert told in await listed(report)


async def test_how_much_of_each_sensor_waits_in_the_spool_is_on_all_pages(tmp_path: Path) -> None:
    path = tmp_path / "sensors.toml"
    sensors = "".join(f"[[sensor]]\nid = 'p/{name}'\nsource = '{name}'\n" for name in "ab")
    path.write_text(f"[source]\na.kind = 'simulator'\nb.kind = 'simulator'\n{sensors}")
    spool = SpoolSettings(max_bytes=1_000_000, full="block")
    async with Forwarder({"bootstrap_servers": "127.0.0.1:1"}, folder=tmp_path / "spool", spool=spool) as forwarder:
        ingest = Ingest(read_sensors_file(path), forwarder)
        for number in range(3):
            await ingest.take(Frame("p/a", 1, number, 9 * number, 1, Fraction(1_000), np.ones(9, np.int16), 1.0))
        async with producer_pages("127.0.0.1:0", lambda: producer_state(ingest, forwarder)) as address:
            metrics = await asyncio.to_thread(lambda: urlopen(f"http://{address}/metrics", timeout=5).read().decode())
            listed = await asyncio.to_thread(CliRunner().invoke, sensors_command, ["--producer", address])
    assert 'aewatch_sensor_spooled_frames{sensor="p/a",source="a"} 3.0' in metrics
    assert 'aewatch_sensor_spooled_frames{sensor="p/b",source="b"} 0.0' in metrics
    assert "0 gaps, 3 in the spool" in listed.output
    assert "p/b  starting, no frame yet" in listed.output


async def test_without_a_spool_nothing_is_said_of_one(tmp_path: Path) -> None:
    path = tmp_path / "sensors.toml"
    path.write_text("[source.s]\nkind = 'simulator'\n[[sensor]]\nid = 'a'\nsource = 's'")
    sink = Publisher({"bootstrap_servers": "127.0.0.1:1"})
    state = producer_state(Ingest(read_sensors_file(path), sink), sink)
    assert state.sensors[0].spooled_frames is None
    assert "sensor_spooled_frames{" not in metrics_text(state.sensors, state.totals).decode()


async def test_a_spool_that_cannot_be_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    path = tmp_path / "sensors.toml"
    path.write_text(
        f"[spool]\nfolder = '{tmp_path}/file/spool'\n[source.s]\nkind = 'simulator'\n[[sensor]]\nid = 'a'\nsource = 's'"
    )
    with pytest.raises(ValueError, match=r"spool\.folder .*/file/spool: cannot be used: Not a directory; name one"):
        await run_producer(read_sensors_file(path), KafkaSettings(), asyncio.Event())
