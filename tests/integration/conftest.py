import asyncio
import secrets
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deploy.local_stack import LocalStack, StackError
from deploy.local_stack.kafka_jars import terminal_progress
from deploy.settings import KafkaSettings
from deploy.topics import ensure_topics


def start_on_free_ports(folder: Path) -> LocalStack:
    """A running stack that dies with this process; somebody else may take a port between the look and the start."""
    for attempt in range(3):
        stack = LocalStack(folder, None, None, progress=terminal_progress("Kafka"))
        try:
            return stack.__enter__()
        except StackError:
            if attempt == 2:
                raise
    raise AssertionError


@pytest.fixture(scope="session")
def local_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """A real Kafka and a real Redis-compatible server, shared by the whole session: break nothing in them."""
    stack = start_on_free_ports(tmp_path_factory.mktemp("local-stack"))
    try:
        yield stack
    finally:
        stack.stop()
        discard_data(stack)


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[LocalStack]:
    """A stack that this test may kill: `own_stack.kafka.service.kill()`, and `own_stack.kafka.start(owned=True)`."""
    stack = start_on_free_ports(tmp_path / "stack")
    try:
        yield stack
    finally:
        stack.stop()
        discard_data(stack)


def discard_data(stack: LocalStack) -> None:
    """Keep the logs only: pytest leaves the folders of three sessions behind."""
    for name in ("kafka", "valkey"):
        shutil.rmtree(stack.data_dir / name, ignore_errors=True)


@pytest.fixture
def kafka(local_stack: LocalStack) -> str:
    """Bootstrap address of the shared Kafka."""
    return local_stack.kafka_bootstrap


@pytest.fixture
def redis_url(local_stack: LocalStack) -> str:
    """URL of the shared Redis-compatible server; use a prefix of your own."""
    return local_stack.redis_url


@pytest.fixture
def unique() -> str:
    """A short name nobody else has: for topics, groups and Redis prefixes."""
    return f"t{secrets.token_hex(4)}"


@pytest.fixture
def make_topics(unique: str) -> Callable[..., KafkaSettings]:
    """`make_topics(bootstrap, partitions=4)`: five fresh topics, as the settings that name them."""

    def make(bootstrap: str, partitions: int = 4) -> KafkaSettings:
        settings = KafkaSettings(
            bootstrap_servers=bootstrap,
            frames_topic=f"{unique}.frames",
            windows_topic=f"{unique}.windows",
            predictions_topic=f"{unique}.predictions",
            shadow_predictions_topic=f"{unique}.shadow",
            deadletter_topic=f"{unique}.deadletter",
            partitions=partitions,
        )
        # In a thread, so that asynchronous tests can ask for it too.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, ensure_topics(settings)).result()
        return settings

    return make


@pytest.fixture
def topics(kafka: str, make_topics: Callable[..., KafkaSettings]) -> KafkaSettings:
    """Five fresh topics of four partitions on the shared Kafka, as the settings that name them."""
    return make_topics(kafka)
