import asyncio
import time
from fractions import Fraction

import numpy as np
import pytest

from producers.forwarder import Forwarder, historical
from producers.spool import Spool, SpoolInUse, SpoolSettings
from stream.records import BadRecord, Flags, Frame, decode_frames, encode_frame

NOBODY = {"bootstrap_servers": "127.0.0.1:1"}
SETTINGS = SpoolSettings(max_bytes=10_000_000, full="block")


NO_FLAGS = Flags(0)


def frame(sequence, sensor="s", size=1_000, flags=NO_FLAGS):
    return Frame(
        sensor=sensor,
        epoch_ns=1,
        sequence=sequence,
        first_sample=sequence * size,
        time_ns=1 + sequence,
        rate_hz=Fraction(500_000),
        samples=np.full(size, sequence % 30_000, np.int16),
        flags=flags,
    )


def in_spool(folder):
    with Spool(folder, SETTINGS) as spool:
        return [
            (one.key.decode(), decode_frames("s", one.frame).frames[0].sequence)
            for one in spool.read(SETTINGS.max_bytes)
        ]


def test_the_flag_of_a_spooled_frame_is_set_beside_the_others():
    sent = frame(7, flags=Flags.HIT | Flags.SATURATED)
    (found,) = decode_frames("s", historical(encode_frame(sent))).frames
    assert found.flags == Flags.HIT | Flags.SATURATED | Flags.HISTORICAL
    assert found.sequence == 7
    np.testing.assert_array_equal(found.samples, sent.samples)


async def test_without_a_broker_frames_are_safe_on_disk_when_flush_returns_and_after_leaving(tmp_path):
    tasks = asyncio.all_tasks()
    began_s = time.monotonic()
    async with Forwarder(NOBODY, folder=tmp_path, spool=SETTINGS) as forwarder:
        for n in range(20):
            await forwarder.publish(frame(n, f"s{n % 2}"))
        await forwarder.flush()
        status = forwarder.status
    assert time.monotonic() - began_s < 5
    assert not status.connected
    assert "127.0.0.1" in status.last_error
    assert (status.frames, status.spooled_frames, status.acknowledged_frames) == (20, 20, 0)
    assert status.bytes == status.spooled_bytes == 20 * 2_064
    assert in_spool(tmp_path) == [(f"s{n % 2}", n) for n in range(20)]
    assert asyncio.all_tasks() <= tasks


async def test_a_restart_goes_on_behind_what_is_in_the_spool(tmp_path):
    for begin in (0, 5):
        async with Forwarder(NOBODY, folder=tmp_path, spool=SETTINGS) as forwarder:
            assert forwarder.status.spooled_frames == begin
            for n in range(begin, begin + 5):
                await forwarder.publish(frame(n))
    assert in_spool(tmp_path) == [("s", n) for n in range(10)]


async def test_a_frame_that_cannot_be_written_is_refused_and_the_others_kept(tmp_path):
    async with Forwarder(NOBODY, folder=tmp_path, spool=SETTINGS) as forwarder:
        await forwarder.publish(frame(0))
        with pytest.raises(BadRecord, match="sensor-id"):
            await forwarder.publish(frame(1, "a\nb"))
        with pytest.raises(BadRecord, match="too-large"):
            await forwarder.publish(frame(1, size=9_000_000))
        await forwarder.publish(frame(1))
        assert forwarder.status.frames == 2
    assert in_spool(tmp_path) == [("s", 0), ("s", 1)]


async def test_a_full_spool_drops_and_counts_where_the_policy_says_so(tmp_path):
    settings = SpoolSettings(max_bytes=20_000, full="drop_newest")
    async with Forwarder(NOBODY, folder=tmp_path, spool=settings) as forwarder:
        for n in range(30):
            await forwarder.publish(frame(n))
        status = forwarder.status
    assert status.frames == 30
    assert status.spooled_frames + status.dropped_frames == 30
    assert status.dropped_bytes == status.dropped_frames * 2_064 > 0
    assert in_spool(tmp_path) == [("s", n) for n in range(status.spooled_frames)]


async def test_a_full_spool_makes_the_source_wait_where_the_policy_says_so(tmp_path):
    settings = SpoolSettings(max_bytes=20_000, full="block")
    async with Forwarder(NOBODY, folder=tmp_path, spool=settings) as forwarder:

        async def publish_all():
            for n in range(30):
                await forwarder.publish(frame(n))

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(publish_all(), 1)
        taken = forwarder.status.frames
    assert 5 < taken < 30
    assert in_spool(tmp_path) == [("s", n) for n in range(taken)]


async def test_two_forwarders_do_not_share_a_folder(tmp_path):
    async with Forwarder(NOBODY, folder=tmp_path, spool=SETTINGS) as forwarder:
        with pytest.raises(SpoolInUse, match=str(tmp_path)):
            await Forwarder(NOBODY, folder=tmp_path, spool=SETTINGS).__aenter__()
        await forwarder.publish(frame(0))
    assert in_spool(tmp_path) == [("s", 0)]


@pytest.mark.parametrize("wrong", [{"give_up_s": 0}, {"drain_share": 1.0}, {"drain_share": 0.0}])
def test_settings_that_make_no_sense_are_refused_by_name(tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Forwarder(NOBODY, folder=tmp_path, spool=SETTINGS, **wrong)
