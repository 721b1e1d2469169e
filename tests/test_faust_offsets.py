"""What Faust 0.15 does to offsets, and that our consumer does not. No broker: only what is decided is looked at."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import pytest
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage

from stream.faust_transport import LedgerApp, LedgerConsumer, LedgerTransport
from stream.ordered_acks import HoldLimits, OrderedAcks

TP0 = TP("ae.frames", 0)


class Ledger:
    """One partition's acknowledgements, and what the consumer asked of it, in order."""

    def __init__(self) -> None:
        self.acks = OrderedAcks(HoldLimits())
        self.calls: list[str] = []

    def read(self, *offsets: int) -> None:
        """Messages of which one output each is on its way."""
        for offset in offsets:
            self.acks.take(offset, 1, now_s=0, outputs=1)

    def partitions(self) -> list[TP]:
        return [TP0]

    def committable(self, tp: TP) -> int | None:
        return self.acks.committable() if tp == TP0 else None

    async def settle(self) -> None:
        self.calls.append("settle")

    def drop(self, partitions: Collection[TP]) -> None:
        self.calls.append(f"drop {sorted(tp.partition for tp in partitions)}")


class Consumer(LedgerConsumer):
    """A consumer that is assigned one partition and whose commits go nowhere."""

    commits: list[Mapping[TP, int]]
    broker_takes_it = True

    def assignment(self) -> set[TP]:
        return {TP0}

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        self.transport.ledger.calls.append(f"commit {offsets[TP0]}")
        return self.broker_takes_it


class Transport(LedgerTransport):
    Consumer = Consumer


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


async def _nothing(*_: object) -> None:
    pass


@pytest.fixture
async def consumer(ledger: Ledger, tmp_path: Path) -> Consumer:
    app = LedgerApp("offsets", ledger=ledger, client_options={}, member=None, session_timeout_s=6, folder=str(tmp_path))
    app.transport = Transport([], app, ledger=ledger, consumer_options={})
    app.finalize()
    consumer = app.transport.create_consumer(_nothing, on_partitions_revoked=_nothing, on_partitions_assigned=_nothing)
    app._consumer = consumer
    return consumer


@pytest.mark.parametrize(
    ("committed", "read", "acknowledged", "faust_commits", "we_commit"),
    [
        pytest.param(None, [4, 5, 6, 7], [5, 6, 7], 8, None, id="nothing committed yet, the first message is open"),
        pytest.param(0, [4, 5, 6, 7], [5, 6, 7], 8, None, id="committed 0, the first message is open"),
        pytest.param(37, [37, 38, 39], [38, 39], 40, None, id="exactly one message is open"),
        pytest.param(37, [37, 38, 39, 40], [37, 38, 40], 39, 39, id="a message in the middle is open"),
        pytest.param(37, [37, 38], [37, 38], 39, 39, id="none is open"),
    ],
)
def test_no_open_message_is_committed(consumer, ledger, committed, read, acknowledged, faust_commits, we_commit):
    ledger.read(*read)
    for offset in acknowledged:
        ledger.acks.safe(read.index(offset))
    consumer._committed_offset[TP0] = committed
    consumer._acked[TP0] = sorted(acknowledged)
    assert consumer._new_offset(TP0) == we_commit
    # Where this fails Faust has been mended, and the override may go.
    assert driver.Consumer._new_offset(consumer, TP0) == faust_commits


def test_faust_acknowledging_a_message_by_itself_commits_nothing(consumer, ledger):
    ledger.read(5)
    message = ConsumerMessage("ae.frames", 0, 5, 0.0, 0, None, b"k", b"v", None, tp=TP0)
    consumer.app.topics._acking_topics.add("ae.frames")
    message.incref()
    message.ack(consumer)
    assert consumer._acked[TP0] == [5]
    assert consumer._new_offset(TP0) is None


async def test_what_is_safe_is_committed_once(consumer, ledger):
    ledger.read(5, 6)
    ledger.acks.safe(0)
    await consumer.commit()
    await consumer.commit()
    assert ledger.calls == ["commit 6"]


async def test_a_commit_that_failed_is_tried_again(consumer, ledger):
    ledger.read(5)
    ledger.acks.safe(0)
    consumer.broker_takes_it = False
    await consumer.commit()
    assert consumer._committed_offset[TP0] is None
    consumer.broker_takes_it = True
    await consumer.commit()
    assert ledger.calls == ["commit 6", "commit 6"]
    assert consumer._committed_offset[TP0] == 6


async def test_before_a_partition_goes_what_is_safe_is_committed_and_then_it_is_forgotten(consumer, ledger):
    ledger.read(5)
    ledger.acks.safe(0)
    await consumer.on_partitions_revoked({TP0})
    assert ledger.calls == ["settle", "commit 6", "drop [0]"]


async def test_nothing_is_read_while_a_partition_goes(consumer, ledger):
    consumer.resume_flow()
    consumer.app.flow_control.resume()
    await consumer.on_partitions_revoked({TP0})
    assert not consumer.flow_active
    assert not consumer.app.flow_control.is_active()


async def test_a_full_buffer_does_not_stop_a_partition_from_being_read(consumer):
    consumer._set_active_tps({TP0})
    consumer.on_buffer_full(TP0)
    assert consumer._get_active_partitions() == {TP0}


async def test_offsets_that_never_come_cost_no_memory(consumer):
    await consumer._add_gap(TP0, 5, 500)
    assert not consumer._gap
