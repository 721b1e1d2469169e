"""The five topics: made where they are missing, left alone where they exist."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from deploy.kafka_refusal import refusal
from stream.tls_files import TlsFilesError

if TYPE_CHECKING:
    from aiokafka.admin import AIOKafkaAdminClient

    from deploy.kafka_rights import Uses
    from deploy.settings import KafkaSettings

LARGEST_MESSAGE_BYTES = 34 * 2**20  #: 32 MiB of samples and what is around them

#: The broker stamps messages by its own clock. By the clients' clocks, one that is off by days would have its messages
#: refused (more than an hour ahead) or deleted at once as too old.
BROKERS_CLOCK = {"message.timestamp.type": "LogAppendTime"}

_SIZE = "max.message.bytes"
_LEADER_PATIENCE_S = 15.0
_NO_ERROR, _TOPIC_DENIED, _CLUSTER_DENIED, _EXISTS = 0, 29, 31, 36  # Kafka's error codes

_log = logging.getLogger("aewatch.topics")


class TopicError(RuntimeError):
    """A topic could not be made or looked at; the message says why, and the way out."""


class KafkaUnreachable(TopicError):  # noqa: N818 - says what is the matter
    """No broker answers; it may yet come."""


async def await_topics(kafka: KafkaSettings, uses: Uses | None = None, patience_s: float = 60.0) -> None:
    """`ensure_topics`, waiting for a Kafka that is still starting; one that does not let us in is not waited for.

    Raises
    ------
    TopicError
        As `ensure_topics` does; `KafkaUnreachable` only after `patience_s`.
    """
    give_up_s = time.monotonic() + patience_s
    told = False
    while True:
        try:
            await ensure_topics(kafka, uses)
        except KafkaUnreachable as error:
            if time.monotonic() > give_up_s:
                raise
            if not told:
                _log.warning("no Kafka yet, waiting up to %g s: %s", patience_s, error)
                told = True
            await asyncio.sleep(0.3)
        else:
            return


async def ensure_topics(kafka: KafkaSettings, uses: Uses | None = None) -> list[str]:
    """Make the topics that are missing, and wait until every partition has a leader.

    A topic that exists is never changed: that is its owner's business. If it refuses messages as large as those that
    are sent to it, the log says so.

    Parameters
    ----------
    uses
        What the caller is going to do; None: not said, all topics must be there. Other topics are made as well where
        that is allowed; a user with few rights may not even see them.

    Returns
    -------
    list of str
        The topics that were made.

    Raises
    ------
    TopicError
        If the cluster cannot be reached, or this user lacks the right to make a topic, or one that `uses` takes.
    """
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.errors import KafkaError

    where = kafka.bootstrap_servers
    try:
        admin = AIOKafkaAdminClient(**kafka.client_options())
    except TlsFilesError as error:
        raise TopicError(str(error)) from error
    try:
        try:
            await admin.start()
        except (KafkaError, OSError) as error:
            raise await _why_not(kafka, error) from error
        try:
            # Asked for all: where brokers create topics by themselves, asking for a missing one makes it.
            existing = set(await admin.list_topics())
            missing = [name for name in _wanted(kafka) if name not in existing]
            made = await _make(admin, kafka, missing, set(_wanted(kafka)) if uses is None else uses.topics)
            await _wait_for_leaders(admin, made)
            others = {name: size for name, size in _wanted(kafka).items() if name not in made}
            await _warn_of_small_limits(admin, others)
            if uses is not None:
                await _check_rights(admin, kafka, uses)
        except KafkaError as error:
            # Such as a coordinator of groups that is not there yet.
            kind = KafkaUnreachable if error.retriable else TopicError
            raise kind(f"{where}: {error}") from error
        return made
    finally:
        await admin.close()


async def _why_not(kafka: KafkaSettings, error: Exception) -> TopicError:
    refused = await refusal(kafka)
    if refused is None:
        return KafkaUnreachable(
            f"{kafka.bootstrap_servers}: no Kafka to be reached there ({error}); start one with `aewatch up`, "
            "or set AEWATCH_KAFKA__BOOTSTRAP_SERVERS"
        )
    return TopicError(str(refused)) if refused.final else KafkaUnreachable(str(refused))


def _wanted(kafka: KafkaSettings) -> dict[str, int | None]:
    """Topic → the largest message it has to take, bytes; None: the broker's default is enough."""
    return {
        kafka.frames_topic: LARGEST_MESSAGE_BYTES,
        kafka.windows_topic: LARGEST_MESSAGE_BYTES,
        kafka.predictions_topic: None,
        kafka.shadow_predictions_topic: None,
        kafka.deadletter_topic: LARGEST_MESSAGE_BYTES,
    }


async def _make(
    admin: AIOKafkaAdminClient, kafka: KafkaSettings, names: list[str], needed: Collection[str]
) -> list[str]:
    from aiokafka.admin import NewTopic

    if not names:
        return []
    sizes = _wanted(kafka)
    response: Any = await admin.create_topics(
        [
            NewTopic(
                name,
                num_partitions=kafka.partitions,
                replication_factor=kafka.replication_factor,
                topic_configs=BROKERS_CLOCK | ({} if sizes[name] is None else {_SIZE: str(sizes[name])}),
            )
            for name in names
        ]
    )
    made, denied = [], []
    for name, code, message in response.topic_errors:
        if code == _NO_ERROR:
            made.append(name)
        elif code in (_TOPIC_DENIED, _CLUSTER_DENIED):
            denied.append(name)
        elif code != _EXISTS:  # somebody else was quicker
            raise TopicError(f"{kafka.bootstrap_servers}: topic {name} could not be made: {message} (error {code})")
    if lacking := [name for name in denied if name in needed]:
        raise TopicError(_denied(kafka, lacking))
    return made


async def _check_rights(admin: AIOKafkaAdminClient, kafka: KafkaSettings, uses: Uses) -> None:
    from deploy.kafka_rights import missing_rights

    if lacking := await missing_rights(admin, uses):
        raise TopicError(
            f"{kafka.bootstrap_servers}: {_who(kafka)} lacks {', '.join(lacking)}; docs/security.md has the commands "
            "that grant it"
        )


def _who(kafka: KafkaSettings) -> str:
    if kafka.username:
        return f"user {kafka.username!r}"
    return f"the client of {kafka.certificate_file}" if kafka.certificate_file else "this client"


def _denied(kafka: KafkaSettings, names: Sequence[str]) -> str:
    who = _who(kafka)
    sizes = _wanted(kafka)
    wanted = ", ".join(name + (f" ({_SIZE}={sizes[name]})" if sizes[name] else "") for name in names)
    return (
        f"{kafka.bootstrap_servers}: {who} may neither see nor make the topics {wanted}. Have them made with "
        f"{kafka.partitions} partitions each and the rights on them granted that docs/security.md lists, or CREATE"
    )


async def _wait_for_leaders(admin: AIOKafkaAdminClient, names: list[str]) -> None:
    if not names:
        return
    async with asyncio.timeout(_LEADER_PATIENCE_S):
        while True:
            topics = await admin.describe_topics(names)
            if all(t["partitions"] and all(p["leader"] >= 0 for p in t["partitions"]) for t in topics):
                return
            await asyncio.sleep(0.05)


async def _warn_of_small_limits(admin: AIOKafkaAdminClient, sizes: dict[str, int | None]) -> None:
    from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

    asked = [ConfigResource(ConfigResourceType.TOPIC, name, {_SIZE: ""}) for name, size in sizes.items() if size]
    if not asked:
        return
    for response in await admin.describe_configs(asked):
        for code, _message, _kind, name, entries in response.resources:
            if code != _NO_ERROR:
                continue  # not allowed to look: nothing to warn of
            limit = next((int(entry[1]) for entry in entries if entry[0] == _SIZE), None)
            wanted = sizes[name]
            if limit is not None and wanted is not None and limit < wanted:
                _log.warning(
                    "topic %s takes messages up to %d bytes, of up to %d that may be sent; raise its %s",
                    name,
                    limit,
                    wanted,
                    _SIZE,
                )
