import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from pydantic import SecretStr

from deploy.local_stack import LocalStack
from deploy.local_stack.ports import HOST, free_port
from deploy.settings import KafkaSettings
from deploy.topics import TopicError, ensure_topics

pytestmark = pytest.mark.integration

LIMIT = "max.message.bytes"


@pytest.fixture
def names(kafka: str, unique: str) -> KafkaSettings:
    """Five topics that do not exist yet."""
    return KafkaSettings(
        bootstrap_servers=kafka,
        frames_topic=f"{unique}.frames",
        windows_topic=f"{unique}.windows",
        predictions_topic=f"{unique}.predictions",
        shadow_predictions_topic=f"{unique}.shadow",
        deadletter_topic=f"{unique}.deadletter",
        partitions=3,
    )


async def limits_and_partitions(bootstrap: str, topics: list[str]) -> dict[str, tuple[int, int]]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        asked = [ConfigResource(ConfigResourceType.TOPIC, topic, {LIMIT: ""}) for topic in topics]
        [response] = await admin.describe_configs(asked)
        limits = {name: int(entries[0][1]) for _, _, _, name, entries in response.resources}
        described = await admin.describe_topics(topics)
        return {entry["topic"]: (limits[entry["topic"]], len(entry["partitions"])) for entry in described}
    finally:
        await admin.close()


async def test_missing_topics_are_made_once_with_room_for_large_messages(names: KafkaSettings) -> None:
    all_five = [
        names.frames_topic,
        names.windows_topic,
        names.predictions_topic,
        names.shadow_predictions_topic,
        names.deadletter_topic,
    ]
    assert sorted(await ensure_topics(names)) == sorted(all_five)
    assert await ensure_topics(names) == []
    found = await limits_and_partitions(names.bootstrap_servers, all_five)
    assert {partitions for _, partitions in found.values()} == {3}
    large = [found[name][0] for name in (names.frames_topic, names.windows_topic, names.deadletter_topic)]
    assert min(large) >= 34 * 2**20


async def test_a_new_topic_is_known_to_everybody_at_once(names: KafkaSettings) -> None:
    await ensure_topics(names)
    async with AIOKafkaProducer(bootstrap_servers=names.bootstrap_servers) as producer:
        assert await producer.partitions_for(names.windows_topic) == {0, 1, 2}


async def test_an_existing_topic_is_left_as_it_is_and_one_that_is_too_narrow_is_named(
    names: KafkaSettings, caplog: pytest.LogCaptureFixture
) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=names.bootstrap_servers)
    await admin.start()
    await admin.create_topics([NewTopic(names.windows_topic, 1, 1, topic_configs={LIMIT: "1000"})])
    await admin.close()
    with caplog.at_level(logging.WARNING, "aewatch.topics"):
        assert names.windows_topic not in await ensure_topics(names)
    assert await limits_and_partitions(names.bootstrap_servers, [names.windows_topic]) == {
        names.windows_topic: (1000, 1)
    }
    [message] = caplog.messages
    assert names.windows_topic in message
    assert "1000 bytes" in message
    assert LIMIT in message


async def test_more_copies_than_brokers_are_refused_in_the_brokers_own_words(names: KafkaSettings) -> None:
    with pytest.raises(TopicError, match=r"frames.*[Rr]eplication factor"):
        await ensure_topics(names.model_copy(update={"replication_factor": 3}))


async def test_a_kafka_out_of_reach_is_named_with_a_way_out(names: KafkaSettings) -> None:
    nowhere = f"{HOST}:{free_port()}"
    with pytest.raises(TopicError, match=rf"{nowhere}.*aewatch up.*AEWATCH_KAFKA__BOOTSTRAP_SERVERS"):
        await ensure_topics(names.model_copy(update={"bootstrap_servers": nowhere}))


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[LocalStack, KafkaSettings]]:
    """A broker with a second door where people log in, and may do only what they are granted."""
    kafka_port, door = free_port(2), free_port()
    plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    stack = LocalStack(
        tmp_path,
        kafka_port,
        None,
        kafka_properties={
            "listeners": f"PLAINTEXT://{HOST}:{kafka_port},CONTROLLER://{HOST}:{kafka_port + 1},DOOR://{HOST}:{door}",
            "advertised.listeners": f"PLAINTEXT://{HOST}:{kafka_port},DOOR://{HOST}:{door}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,DOOR:SASL_PLAINTEXT",
            "listener.name.door.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.door.plain.sasl.jaas.config": f'{plain} user_guest="secret";',
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
        },
    )
    guest = KafkaSettings(
        bootstrap_servers=f"{HOST}:{door}",
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="PLAIN",
        username="guest",
        password="secret",
    )
    with stack:
        yield stack, guest


async def test_without_the_right_to_make_topics_the_error_says_who_lacks_it_and_what_to_ask_for(
    guarded: tuple[LocalStack, KafkaSettings],
) -> None:
    _, guest = guarded
    with pytest.raises(TopicError, match=r"user 'guest' may neither .*ae\.frames.*max\.message\.bytes.*CREATE"):
        await ensure_topics(guest)
    wrong = guest.model_copy(update={"password": SecretStr("wrong")})
    with pytest.raises(TopicError, match=r"user 'guest' is not let in"):
        await ensure_topics(wrong)


async def test_the_brokers_clock_stamps_messages_whatever_the_producers_clock_says(names: KafkaSettings) -> None:
    await ensure_topics(names)
    days_ahead_ms = round((time.time() + 3 * 86_400) * 1000)
    async with AIOKafkaProducer(**names.client_options()) as producer:
        sent = await producer.send_and_wait(names.frames_topic, b"x", timestamp_ms=days_ahead_ms)
    assert abs(sent.timestamp / 1000 - time.time()) < 60
