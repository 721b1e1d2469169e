from __future__ import annotations

import asyncio
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given
from hypothesis import strategies as st

from deploy.bench_ingest import (
    PRODUCER_PERFORMANCE,
    compared,
    even_sensors,
    kafka_options,
    keeps_up,
    largest_served,
    parse_summary,
    spread,
)
from deploy.ingest_load import Drawn, FullPace, RealTime, full_pace_file, real_time_file
from deploy.processes import ProcessError
from producers.ingest import Ingest
from producers.publisher import PRODUCER_OPTIONS
from stream.records import Frame, decode_frames, encode_frame

OUTPUT = """\
52321 records sent, 10462.1 records/sec (81.74 MB/sec), 170.3 ms avg latency, 512.0 ms max latency.
In steady state.
61002 records sent, 12200.4 records/sec (95.32 MB/sec), 150.2 ms avg latency, 301.0 ms max latency.
122070 records sent, 15258.750000 records/sec (119.21 MB/sec), 191.02 ms avg latency, 601.00 ms max latency, \
180 ms 50th, 333 ms 95th, 501 ms 99th, 590 ms 99.9th.
91552 steady state records sent, 17578.125000 records/sec (137.33 MB/sec), 171.02 ms avg latency, \
401.00 ms max latency, 170 ms 50th, 303 ms 95th, 401 ms 99th, 490 ms 99.9th.
"""


def full_pace(**changes: object) -> FullPace:
    plain = {"way": "spool", "bootstrap": "", "topic": "t", "message_bytes": 8_192, "messages": 32}
    return FullPace(**{**plain, "sensors": even_sensors(8, 4), **changes})  # type: ignore[arg-type]


class Collected:
    def __init__(self) -> None:
        self.frames: list[Frame] = []

    async def publish(self, frame: Frame) -> None:
        self.frames.append(frame)

    async def flush(self) -> None:
        pass


def test_the_rate_is_read_from_the_summary_and_not_from_the_lines_before_it() -> None:
    whole, steady = parse_summary(OUTPUT, 8_192)
    assert whole == pytest.approx(15_258.75 * 8_192 / 1e6)  # 125.0 of 10^6 bytes, where it says 119.21 of 2^20
    assert steady == pytest.approx(17_578.125 * 8_192 / 1e6)


def test_a_run_without_a_steady_state_has_a_rate_all_the_same() -> None:
    assert parse_summary("\n".join(OUTPUT.splitlines()[:-1]), 8_192) == (pytest.approx(125.0, rel=1e-4), None)


@pytest.mark.parametrize("lines", [0, 3])
def test_output_without_a_summary_is_told(lines: int) -> None:
    with pytest.raises(ProcessError, match="no summary"):
        parse_summary("\n".join(OUTPUT.splitlines()[:lines]), 8_192)


def test_ratios_are_of_medians_so_that_one_bad_round_changes_nothing() -> None:
    rates = {
        PRODUCER_PERFORMANCE: [100.0, 120.0, 20.0],
        "spool": [95.0, 1.0, 90.0],
        "one-a-message": [80.0, 85.0, 200.0],
        "aiokafka": [110.0, 110.0, 110.0],
    }
    result = compared(rates, [125.0, 120.0, 130.0], 1_000, 8_192, dict.fromkeys(rates, 1_000) | {"spool": 250})
    assert (result["ratio"], result["ratio_one_a_message"], result["ratio_aiokafka"]) == (0.9, 0.85, 1.1)
    assert result["ratio_to_steady"] == 0.72
    ours = next(one for one in result["producers"] if one["producer"] == "spool")
    assert ours["mb_per_s"] == {"median": 90.0, "min": 1.0, "max": 95.0}
    assert ours["frames_per_s"] == round(90e6 / 8_192)
    assert (ours["frames"], ours["messages"]) == (1_000, 250)


def test_the_spread_of_an_even_number_of_rounds_has_the_mean_of_the_middle_two() -> None:
    assert spread([1.0, 4.0, 2.0, 9.0]) == {"median": 3.0, "min": 1.0, "max": 9.0}


def test_kafkas_own_producer_has_our_options() -> None:
    options = kafka_options()
    assert options["acks"] == "all"
    assert options["enable.idempotence"] == "true"
    assert int(options["batch.size"]) == PRODUCER_OPTIONS["max_batch_size"]
    assert int(options["linger.ms"]) == PRODUCER_OPTIONS["linger_ms"]


def test_the_sensors_share_all_partitions_alike() -> None:
    places = Counter(DefaultPartitioner()(sensor.encode(), [0, 1, 2, 3], []) for sensor in even_sensors(8, 4))
    assert places == dict.fromkeys(range(4), 2)
    with pytest.raises(ValueError, match="9 sensors on 4 partitions"):
        even_sensors(9, 4)


@given(limit=st.integers(0, 20_000), first=st.integers(1, 300), most=st.integers(1, 9_000))
def test_the_search_for_the_most_sensors_ends_close_below_the_limit(limit: int, first: int, most: int) -> None:
    asked: list[int] = []

    def served(number: int) -> bool:
        asked.append(number)
        return number <= limit

    found = largest_served(served, first, most)
    reachable = min(limit, most)
    assert found <= reachable <= found * 1.1 + 1
    assert found == 0 or found in asked
    assert all(1 <= number <= most for number in asked)
    assert len(asked) == len(set(asked)) < 40


@pytest.mark.parametrize(
    ("lags_s", "kept_up"),
    [
        ([0.05, 0.06, 0.05, 0.06], True),
        ([0.05, 0.6, 0.05, 0.05], False),
        ([0.05, 0.15, 0.25, 0.35], False),
        ([0.3, 0.2, 0.1, 0.05], True),
        ([0.4], True),
    ],
)
def test_a_lag_that_is_long_or_grows_is_no_real_time(lags_s: list[float], kept_up: bool) -> None:
    assert keeps_up(lags_s) is kept_up


async def test_at_full_pace_every_frame_has_the_size_of_a_record_and_none_is_missing() -> None:
    load = full_pace()
    sink = Collected()
    await Ingest(full_pace_file(load), sink).run()
    frames = [frame for frame in sink.frames if len(frame.samples)]
    assert Counter(frame.sensor for frame in frames) == dict.fromkeys(load.sensors, 4)
    assert {len(encode_frame(frame)) for frame in frames} == {8_192}
    message = b"".join(encode_frame(frame) for frame in frames if frame.sensor == load.sensors[0])
    decoded = decode_frames(load.sensors[0], message).frames
    assert all(before.end_sample == after.first_sample for before, after in pairwise(decoded))
    assert all(np.ptp(frame.samples) > 0 for frame in decoded)


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"message_bytes": 64}, "message_bytes=64"), ({"message_bytes": 8_191}, "even"), ({"messages": 33}, "multiple")],
)
def test_a_load_that_cannot_be_is_told(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        full_pace_file(full_pace(**changes))


def test_sensors_in_real_time_are_on_devices_of_eight_channels_that_begin_one_after_the_other(tmp_path: Path) -> None:
    load = RealTime(bootstrap="", topic="t", sensors=20, rate_hz=16_000, frame_ms=50.0)
    file = real_time_file(load, tmp_path)
    assert [len(plan.sensors) for plan in file.sources] == [8, 8, 4]
    assert len({sensor.id for plan in file.sources for sensor in plan.sensors}) == 20
    waits_s = [plan.settings.wait_s for plan in file.sources]  # type: ignore[attr-defined]
    assert waits_s == sorted(set(waits_s))
    assert max(waits_s) < 0.05
    assert file.spool.folder == tmp_path


async def test_a_device_in_real_time_gives_its_first_block_when_it_is_due(tmp_path: Path) -> None:
    load = RealTime(bootstrap="", topic="t", sensors=1, rate_hz=1_000, frame_ms=20.0)
    source = real_time_file(load, tmp_path).sources[0].start()
    assert isinstance(source, Drawn)
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    block = await anext(aiter(source.blocks()))
    assert loop.time() - begun_s >= 0.019
    assert block.samples.shape == (20, 1)
    assert block.samples.dtype == np.int16
