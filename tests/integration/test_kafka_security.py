"""Kafka behind TLS, logins and access lists: the pipeline with the rights of docs/security.md; who is kept out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import MessageSizeTooLargeError

from deploy.kafka_rights import Uses
from deploy.processes import Child, Children
from deploy.settings import KafkaSettings
from deploy.topics import TopicError, await_topics
from tests.integration.guarded_kafka import Grant, GuardedKafka, documented_grants, guarded_kafka
from tests.integration.pipeline_run import ENGINE, PipelineRun, classify, write_recording
from tests.integration.redis_parts import own_server

pytestmark = pytest.mark.integration

USERS = ("aewatch-producer", "aewatch-windows", "aewatch-worker", "aewatch-reader", "groupless", "mute")
#: Some rights, but not enough.
LAME = [
    Grant("User:groupless", "Read", topics=("ae.frames", "ae.windows")),
    Grant("User:groupless", "Write", topics=("ae.windows", "ae.predictions", "ae.predictions.shadow", "ae.deadletter")),
    Grant("User:mute", "Read", topics=("ae.frames", "ae.windows"), groups=("aewatch-windows", "aewatch-workers")),
    Grant("User:mute", "Describe", topics=("ae.predictions", "ae.predictions.shadow", "ae.deadletter")),
]


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedKafka]:
    with guarded_kafka(tmp_path_factory.mktemp("guarded-kafka"), USERS, documented_grants() + LAME) as kafka:
        yield kafka


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with own_server(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


def as_variables(settings: KafkaSettings) -> dict[str, str]:
    found = {}
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        text = value.get_secret_value() if name == "password" else str(value)
        found[f"AEWATCH_KAFKA__{name.upper()}"] = text
    return found


def children(folder: Path, settings: KafkaSettings, redis_url: str) -> Children:
    return Children(folder, {**as_variables(settings), "AEWATCH_REDIS__URL": redis_url, **ENGINE})


def ended(child: Child, within_s: float = 60.0) -> str:
    """What it wrote; it must have ended by itself, with an error."""
    assert child.wait(within_s) == 1, child.tail()
    text = child.log.read_text()
    assert "Traceback" not in text, text
    return text


def test_the_pipeline_raises_the_alerts_of_the_oracle_with_the_documented_rights_and_no_more(
    kafka: GuardedKafka, redis_url: str, tmp_path: Path
) -> None:
    recording = write_recording(tmp_path / "plant.wav", duration_s=8.0, channels=2)
    expected_predictions, expected = classify(recording, run="one")
    assert len(expected) >= 3

    reader = kafka.as_user("aewatch-reader")
    runs = {}
    for role in ("windows", "worker", "producer"):
        runs[role] = run = PipelineRun(tmp_path / role, reader, redis_url, "aewatch")
        run.variables.update(as_variables(kafka.as_user(f"aewatch-{role}")))
        run.variables.update(AEWATCH_WINDOW_AGENT__GROUP="aewatch-windows", AEWATCH_WORKER__GROUP="aewatch-workers")
    with runs["windows"].children, runs["worker"].children, runs["producer"].children:
        agent = runs["windows"].start("window")
        runs["worker"].start("worker")
        runs["producer"].replay(recording, run="one")
        assert len(runs["worker"].predictions(len(expected_predictions))) == len(expected_predictions)
        deadline = time.monotonic() + 20
        while len(found := runs["worker"].alerts()) < len(expected) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert sorted(found, key=lambda alert: alert.id) == sorted(expected, key=lambda alert: alert.id)
        assert runs["worker"].dead_letters() == []
        agent.check()


@pytest.mark.parametrize("way", ["TLS with SCRAM", "TLS with PLAIN", "mutual TLS"])
async def test_each_way_to_log_in_works_and_gives_the_rights_of_that_name(kafka: GuardedKafka, way: str) -> None:
    def settings(user: str) -> KafkaSettings:
        if way == "mutual TLS":
            own = kafka.certificate(user)
            return kafka.at("MUTUAL", certificate_file=own.certificate, key_file=own.key)
        return kafka.as_user(user, "PLAIN" if way.endswith("PLAIN") else "SCRAM-SHA-512")

    await await_topics(settings("aewatch-producer"), Uses(writes=("ae.frames",)))
    with pytest.raises(TopicError, match=r"may neither see nor make the topics ae\.windows"):
        await await_topics(settings("aewatch-producer"), Uses(writes=("ae.frames", "ae.windows")))


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "wrong password": ("LOGIN", {"password": "wrong"}, r"'aewatch-producer' is not let in with SCRAM.*kafka\.password"),
    "unknown user": ("LOGIN", {"username": "nobody"}, r"'nobody' is not let in"),
    "wrong password with PLAIN": ("LOGIN", {"password": "wrong", "sasl_mechanism": "PLAIN"}, r"not let in with PLAIN"),
    "mechanism that is off": ("LOGIN", {"sasl_mechanism": "SCRAM-SHA-256"}, r"does not know SCRAM-SHA-256"),
    "no CA": ("TLS", {"ca_file": None}, r"does not hold \(unable to get local issuer.*name.*kafka\.ca_file"),
    "expired certificate": ("EXPIRED", {}, r"does not hold \(certificate has expired.*renew"),
    "certificate of another host": ("STRANGER", {}, r"127\.0\.0\.1.*name the broker in kafka\.bootstrap_servers as"),
    "no certificate of the client": ("MUTUAL", {}, r"closed the connection.*kafka\.certificate_file"),
    "no TLS": ("TLS", {"security_protocol": "PLAINTEXT", "ca_file": None}, r"closed.*may want TLS.*PLAINTEXT"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_who_is_not_let_in_is_told_why_and_what_to_do(kafka: GuardedKafka, case: str) -> None:
    listener, changes, told = REFUSED[case]
    if listener == "LOGIN":
        settings = (
            kafka.as_user("aewatch-producer", **changes)
            if "username" not in changes
            else kafka.at("LOGIN", password="something", **changes)
        )
    else:
        settings = kafka.at(listener, **changes)
    begun_s = time.monotonic()
    with pytest.raises(TopicError, match=told) as error:
        await await_topics(settings, patience_s=0.0)
    assert time.monotonic() - begun_s < 10
    assert f"127.0.0.1:{kafka.ports[listener]}" in str(error.value)


async def test_a_wrong_authority_is_named(kafka: GuardedKafka) -> None:
    other = kafka.stranger.ca
    with pytest.raises(TopicError, match=f"{other} is not the authority that signed it"):
        await await_topics(kafka.at("TLS", ca_file=other))
    with pytest.raises(TopicError, match=r"nowhere\.pem: No such file"):
        await await_topics(kafka.at("TLS", ca_file=other.with_name("nowhere.pem")))


@pytest.mark.parametrize("command", [("replay", "recording.wav", "--rate", "max"), ("dead-letters",)])
def test_a_process_with_a_wrong_password_ends_at_once_and_says_so(
    kafka: GuardedKafka, redis_url: str, tmp_path: Path, command: tuple[str, ...]
) -> None:
    recording = write_recording(tmp_path / "recording.wav", duration_s=3.0, channels=1)
    wrong = kafka.as_user("aewatch-windows", password="certainly-wrong")
    with children(tmp_path, wrong, redis_url) as started:
        arguments = [str(recording) if one == recording.name else one for one in command]
        text = ended(started.start(command[0], arguments), within_s=30)
    assert "user 'aewatch-windows' is not let in" in text
    assert "certainly-wrong" not in text


FRAMES = ("ae.frames",)
WORKS = Uses(("ae.windows",), ("ae.predictions", "ae.predictions.shadow", "ae.deadletter"), "aewatch-workers")


@pytest.mark.parametrize(
    ("user", "uses", "told"),
    [
        ("groupless", WORKS, r"'groupless' lacks READ on group aewatch-workers; docs/security\.md"),
        (
            "mute",
            WORKS,
            r"lacks WRITE on topic ae\.predictions, WRITE on topic ae\.predictions\.shadow, WRITE on topic",
        ),
        ("mute", Uses(writes=FRAMES), r"lacks WRITE on topic ae\.frames;"),
        ("aewatch-worker", Uses(FRAMES), r"neither see nor make the topics ae\.frames.*docs/security\.md"),
        ("aewatch-reader", Uses(writes=FRAMES), r"lacks WRITE on topic ae\.frames"),
        ("aewatch-windows", WORKS, r"ae\.predictions"),
    ],
)
async def test_who_lacks_a_right_is_told_which_one(kafka: GuardedKafka, user: str, uses: Uses, told: str) -> None:
    with pytest.raises(TopicError, match=told):
        await await_topics(kafka.as_user(user), uses)


def test_a_window_agent_without_its_group_ends_instead_of_waiting_for_partitions(
    kafka: GuardedKafka, redis_url: str, tmp_path: Path
) -> None:
    with children(tmp_path, kafka.as_user("groupless"), redis_url) as started:
        text = ended(started.start("window", ["window"]))
    assert "lacks READ on group aewatch-windows" in text


def said_at_debug(kafka: GuardedKafka, redis_url: str, folder: Path, settings: KafkaSettings) -> tuple[int, str]:
    started = children(folder, settings, redis_url)
    with started:
        started.variables = {**started.variables, "AEWATCH_LOG__LEVEL": "DEBUG"}
        child = started.start("dead-letters", ["dead-letters"])
        return child.wait(60), child.log.read_text()


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
def test_at_debug_a_process_writes_no_password(
    kafka: GuardedKafka, redis_url: str, tmp_path: Path, mechanism: str, right: bool
) -> None:
    settings = kafka.as_user("aewatch-reader", mechanism, **({} if right else {"password": "Wrong-Zq7-Secret"}))
    status, text = said_at_debug(kafka, redis_url, tmp_path, settings)
    assert status == (0 if right else 1), text
    assert "DEBUG" in text
    for secret in (*kafka.passwords.values(), "Wrong-Zq7-Secret"):
        assert secret not in text


async def test_a_topic_that_stores_uncompressed_takes_no_batch_that_unfolds_beyond_its_limit(
    kafka: GuardedKafka,
) -> None:
    bomb = bytes(40 << 20)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.server.address)
    await admin.start()
    limits = {"max.message.bytes": str(34 << 20)}
    await admin.create_topics(
        [
            NewTopic("open", 1, 1, topic_configs=limits),
            NewTopic("shut", 1, 1, topic_configs={**limits, "compression.type": "uncompressed"}),
        ]
    )
    await admin.close()
    options = {"bootstrap_servers": kafka.server.address, "max_request_size": 64 << 20, "compression_type": "gzip"}
    async with AIOKafkaProducer(**options) as producer:
        await producer.send_and_wait("open", bomb)
        with pytest.raises(MessageSizeTooLargeError):
            await producer.send_and_wait("shut", bomb)
