"""A producer: the sensors of a file, into Kafka by way of the disk, with pages that say how they are."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime

from deploy.kafka_refusal import refusal
from deploy.producer_pages import ProducerState, producer_pages
from deploy.settings import KafkaSettings
from producers.forwarder import Forwarder, ForwarderStatus
from producers.ingest import Ingest
from producers.publisher import Publisher
from producers.sensors_file import SensorsFile
from producers.spool import SpoolSettings

log = logging.getLogger(__name__)

GIGABYTE = 10**9


async def run_producer(
    file: SensorsFile, kafka: KafkaSettings, stop: asyncio.Event, on_pages: Callable[[str], None] = lambda address: None
) -> None:
    """Until `stop` is set or every source has ended; then what was taken is delivered, or safe in the spool.

    Raises
    ------
    ValueError
        If the pages' address cannot be listened on, or the spool's folder cannot be used.
    SpoolInUse
        If another process has that folder.
    DeliveryError
        Without a spool, if the broker does not take what was read.
    """
    async with AsyncExitStack() as stack:
        sink = _sink(file, kafka)
        if (refused := await refusal(kafka)) is not None:
            # Frames are kept, but waiting alone will not deliver them.
            log.error("Kafka does not let this producer in", extra={"reason": str(refused)})
        try:
            await stack.enter_async_context(sink)
        except OSError as error:
            raise ValueError(
                f"spool.folder {file.spool.folder}: cannot be used: {error.strerror or error}; "
                "name one that this user may write to"
            ) from error
        ingest = Ingest(file, sink)
        if file.producer.listen:
            address = await stack.enter_async_context(
                producer_pages(file.producer.listen, lambda: producer_state(ingest, sink))
            )
            on_pages(address)
        running = asyncio.create_task(ingest.run())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


def _sink(file: SensorsFile, kafka: KafkaSettings) -> Forwarder | Publisher:
    table = file.spool
    if table.folder is None:
        return Publisher(kafka.client_options(), kafka.frames_topic)
    spool = SpoolSettings(max_bytes=round(table.max_gb * GIGABYTE), full=table.full, sync_s=table.sync_s)
    return Forwarder(
        kafka.client_options(), kafka.frames_topic, folder=table.folder, spool=spool, give_up_s=table.give_up_s
    )


def producer_state(ingest: Ingest, sink: Forwarder | Publisher) -> ProducerState:
    """How the producer and its sensors are now."""
    now_ns = time.time_ns()
    if isinstance(sink, Forwarder):
        status = sink.status
        spooled = [meter.report(now_ns, sink.spooled_frames(sensor)) for sensor, meter in ingest.meters.items()]
        return ProducerState(spooled, _totals(status), _broker(status))
    sensors = [meter.report(now_ns) for meter in ingest.meters.values()]
    counts = sink.counts
    waiting = counts.frames - counts.acknowledged_frames
    totals = {
        "frames": (float(counts.frames), "frames taken on", True),
        "acknowledged_frames": (float(counts.acknowledged_frames), "frames that the broker has acknowledged", True),
    }
    return ProducerState(sensors, totals, f"{waiting} frames wait for it; no spool")


def _totals(status: ForwarderStatus) -> dict[str, tuple[float, str, bool]]:
    return {
        "connected": (float(status.connected), "1 while a broker acknowledges frames", False),
        "frames": (float(status.frames), "frames taken on", True),
        "acknowledged_frames": (float(status.acknowledged_frames), "frames that the broker has acknowledged", True),
        "historical_frames": (float(status.historical_frames), "of those, out of the spool", True),
        "spooled_frames": (float(status.spooled_frames), "frames in the spool now", False),
        "spooled_bytes": (float(status.spooled_bytes), "bytes in the spool now", False),
        "dropped_frames": (float(status.dropped_frames), "frames lost for want of room on the disk", True),
        "refused_frames": (float(status.refused_frames), "frames that the broker does not take; set aside", True),
        "damaged_places": (float(status.damaged_places), "places in the spool's files that were damaged", True),
    }


def _broker(status: ForwarderStatus) -> str:
    since = datetime.fromtimestamp(status.since_ns / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if status.connected:
        return f"connected since {since}"
    return f"away since {since}" + (f": {status.last_error}" if status.last_error else "")
