"""What is on the wire in `ae.deadletter`: the rejected bytes as they came, and in the headers why and where from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from aiokafka.errors import MessageSizeTooLargeError

from stream.records import BadRecord

if TYPE_CHECKING:
    from aiokafka import AIOKafkaProducer, ConsumerRecord
    from aiokafka.structs import RecordMetadata

Headers = list[tuple[str, bytes]]

MAX_DETAIL_BYTES = 8192  # a traceback fits; a header is no place for more
TRUNCATED_BYTES = 64 * 1024  # what is kept of a message that is larger than the broker takes


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Input that could not be used. `topic`, `partition` and `offset` say where it was read."""

    component: str  #: which program turned it away
    reason: str  #: a short fixed code
    detail: str  #: the whole story, for a person
    topic: str
    partition: int
    offset: int
    key: bytes | None  #: the message's own key, as it came
    raw: bytes  #: the rejected bytes: the message or, if the rest of it was good, a part
    byte_offset: int = 0  #: where in the message `raw` begins
    truncated_from: int | None = None  #: length of the rejected bytes, where `raw` is only their beginning

    @classmethod
    def of_record(cls, record: ConsumerRecord[bytes, bytes], reason: str, detail: str, *, component: str) -> DeadLetter:
        """The dead letter of a whole consumed record."""
        return cls(
            component=component,
            reason=reason,
            detail=detail,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            key=record.key,
            raw=record.value or b"",
        )

    def truncated(self, length: int = TRUNCATED_BYTES) -> DeadLetter:
        """The same with at most `length` of the raw bytes; `truncated_from` keeps how many there were."""
        if len(self.raw) <= length:
            return self
        return replace(self, raw=self.raw[:length], truncated_from=self.truncated_from or len(self.raw))


def encode_dead_letter(letter: DeadLetter) -> tuple[bytes | None, bytes, Headers]:
    """Key, value and headers of the Kafka record. Header values are UTF-8 text; `detail` is cut at 8 KiB."""
    headers: Headers = [
        ("topic", letter.topic.encode()),
        ("partition", b"%d" % letter.partition),
        ("offset", b"%d" % letter.offset),
        ("byte_offset", b"%d" % letter.byte_offset),
        ("reason", letter.reason.encode()),
        ("detail", _cut(letter.detail.encode("utf-8", "replace"), MAX_DETAIL_BYTES)),
        ("component", letter.component.encode()),
    ]
    if letter.truncated_from is not None:
        headers.append(("truncated_from", b"%d" % letter.truncated_from))
    return letter.key, letter.raw, headers


def decode_dead_letter(record: ConsumerRecord[bytes, bytes]) -> DeadLetter:
    """The dead letter in a record of the dead-letter topic.

    Raises
    ------
    BadRecord
        If a header is missing or is not what it should be, as in a record that some other program wrote.
    """
    headers = {name: value or b"" for name, value in record.headers}  # Kafka knows headers without a value
    try:
        truncated_from = headers.get("truncated_from")
        return DeadLetter(
            component=headers["component"].decode(),
            reason=headers["reason"].decode(),
            detail=headers["detail"].decode(),
            topic=headers["topic"].decode(),
            partition=int(headers["partition"]),
            offset=int(headers["offset"]),
            key=record.key,
            raw=record.value or b"",
            byte_offset=int(headers["byte_offset"]),
            truncated_from=None if truncated_from is None else int(truncated_from),
        )
    except KeyError as error:
        raise BadRecord("dead-letter", f"no header {error.args[0]!r}; no program of aewatch wrote this") from error
    except ValueError as error:
        raise BadRecord("dead-letter", f"a header is not what it should be: {error}") from error


async def deliver(producer: AIOKafkaProducer[bytes, bytes], topic: str, letter: DeadLetter) -> RecordMetadata:
    """Write the letter and wait for the broker's acknowledgement; cut the raw bytes if they are too many for it.

    Parameters
    ----------
    producer
        Not an idempotent one: a batch that the broker refuses leaves a hole in its sequence numbers, and everything
        it sends to that partition afterwards is refused as out of order.
    topic
        Where dead letters go.
    letter
        What to write.

    Raises
    ------
    aiokafka.errors.KafkaError
        If the broker refuses it for another reason than its size.
    """
    try:
        return await _send(producer, topic, letter)
    except MessageSizeTooLargeError:
        return await _send(producer, topic, letter.truncated())


async def _send(producer: AIOKafkaProducer[bytes, bytes], topic: str, letter: DeadLetter) -> RecordMetadata:
    key, value, headers = encode_dead_letter(letter)
    return await producer.send_and_wait(topic, value, key=key, headers=headers)


def _cut(text: bytes, length: int) -> bytes:
    """At most `length` bytes of UTF-8 text, without half a character at the end."""
    return text if len(text) <= length else text[:length].decode("utf-8", "ignore").encode()
