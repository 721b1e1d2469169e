"""`aewatch dead-letters`: what could not be used, where it came from, and why."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import TYPE_CHECKING, Any

import click

from deploy.cli.session import plain_errors, settings

if TYPE_CHECKING:
    from deploy.settings import KafkaSettings
    from stream.dead_letters import DeadLetter


@click.command("dead-letters")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1), help="The newest so many.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with the raw bytes in base64.")
def dead_letters(limit: int, as_json: bool) -> None:
    """Print the dead letters that are in Kafka now."""
    in_force = settings()
    from aiokafka.errors import KafkaError

    from deploy.kafka_rights import Uses
    from deploy.topics import TopicError, await_topics

    with plain_errors(KafkaError, TopicError):
        asyncio.run(await_topics(in_force.kafka, Uses(reads=(in_force.kafka.deadletter_topic,)), patience_s=5.0))
        letters = asyncio.run(_read(in_force.kafka, limit))
    for letter in letters:
        if as_json:
            click.echo(json.dumps(letter))
        else:
            place = f"{letter['topic']}[{letter['partition']}]@{letter['offset']}"
            what = f"{letter['reason']}: {letter['detail']}"
            click.echo(f"{place}  {letter['sensor']}  {what}  ({letter['bytes']} bytes)")
    if not letters and not as_json:
        click.echo(f"none in {in_force.kafka.deadletter_topic}")


async def _read(kafka: KafkaSettings, limit: int) -> list[dict[str, Any]]:
    from deploy.topic_reader import reading
    from stream.dead_letters import decode_dead_letter
    from stream.records import BadRecord

    letters: list[dict[str, Any]] = []
    async with reading(kafka, kafka.deadletter_topic, fetch_bytes=40 * 2**20) as consumer:
        partitions = sorted(consumer.assignment())
        begins, ends = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
        for partition in partitions:
            consumer.seek(partition, max(begins[partition], ends[partition] - limit))
            while await consumer.position(partition) < ends[partition]:
                for record in (await consumer.getmany(partition, timeout_ms=5000)).get(partition, ()):
                    try:
                        letters.append(_told(record.timestamp, decode_dead_letter(record)))
                    except BadRecord as error:
                        letters.append(_foreign(record, str(error)))
    letters.sort(key=lambda letter: letter["time_ms"])
    return letters[-limit:]


def _told(time_ms: int, letter: DeadLetter) -> dict[str, Any]:
    return {
        "time_ms": time_ms,
        "sensor": (letter.key or b"").decode("utf-8", "backslashreplace"),
        "component": letter.component,
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "byte_offset": letter.byte_offset,
        "reason": letter.reason,
        "detail": letter.detail,
        "bytes": letter.truncated_from or len(letter.raw),
        "raw": base64.b64encode(letter.raw).decode(),
    }


def _foreign(record: Any, problem: str) -> dict[str, Any]:
    """A record in the dead-letter topic that is none."""
    return {
        "time_ms": record.timestamp,
        "sensor": (record.key or b"").decode("utf-8", "backslashreplace"),
        "component": "?",
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "byte_offset": 0,
        "reason": "not a dead letter",
        "detail": problem,
        "bytes": len(record.value or b""),
        "raw": base64.b64encode(record.value or b"").decode(),
    }
