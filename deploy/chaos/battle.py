"""One run: a pipeline of separate processes, a plan of faults done to it, and the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from deploy.chaos.arena import Arena
from deploy.chaos.collector import collected
from deploy.chaos.faults import Act, Fault, Role
from deploy.chaos.fleet import Fleet, Member
from deploy.chaos.judge import Verdict, judge
from deploy.chaos.poison import Poison, sprinkle
from deploy.chaos.progress import ProgressWatch, Stage, Standing, recovered_after_s
from deploy.chaos.tcp_proxy import Way
from deploy.chaos.workload import RUN, Truth
from deploy.processes import ProcessError
from deploy.settings import KafkaSettings
from deploy.topic_reader import reading
from deploy.topics import ensure_topics
from stream.alarms import SensorState
from stream.alert_filter import EVERYTHING
from stream.alert_store import AlertStore
from stream.alerts import Alert
from stream.dead_letters import DeadLetter, decode_dead_letter
from stream.predictions import Prediction, decode_prediction
from stream.subscribe import Alerts

PARTITIONS = 4
AGENTS, WORKERS = 2, 2  #: that run when nothing is broken
MOST = 3  #: of each, however many are added
STEP_S = 0.05
READY_S = 180.0
DRAIN_S = 300.0
FASTEST_RATE = 1.0  #: at which a producer that was killed makes up for it
#: The same in every process: bits are promised for one number of threads.
ENGINE = {"AEWATCH_MODEL__THREADS": "1"}


@dataclass(frozen=True, slots=True)
class Workload:
    """What is replayed, how long it is and shall take, and what must come out."""

    recordings: Sequence[Path]
    recording_s: float
    takes_s: float
    truth: Truth
    bundles: Sequence[str]  #: folders of models that decide alike; the first is live at the start


@dataclass(slots=True)
class Done:
    """A fault, as it went."""

    fault: Fault
    target: str  #: what it met; "" where there was nothing to break
    begun_s: float  #: monotonic
    over_s: float
    recovered_s: float | None = None  #: from its end until the last partition moved on that it held up


@dataclass(slots=True)
class Outcome:
    """Of one run."""

    seed: int
    verdict: Verdict
    done: list[Done]
    restarts: Mapping[str, int]
    unasked: Sequence[str]  #: processes that ended by themselves, with their last words
    seconds: float
    drained_s: float  #: from the last frame and fault until all was worked through
    peak_rss_mib: Mapping[str, int]
    failure: str = ""  #: where it could not even be judged


@dataclass(slots=True)
class _Battle:
    """State of a run; times are monotonic."""

    arena: Arena
    kafka: KafkaSettings
    prefix: str
    folder: Path
    load: Workload
    seed: int
    fleet: Fleet = field(init=False)
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(8))
    pending: list[Future[Any]] = field(default_factory=list)
    later: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    tick: Iterator[int] = field(default_factory=count)
    done: list[Done] = field(default_factory=list)
    poison: list[Poison] = field(default_factory=list)
    busy: set[Role] = field(default_factory=set)  #: servers and ways that are being broken now
    swaps: int = 0
    begun_s: float = 0.0

    def __post_init__(self) -> None:
        self.fleet = Fleet(self.folder / "logs", {role: self.variables(role) for role in Role})

    def variables(self, role: Role) -> dict[str, str]:
        """Settings of a process of this role."""
        kafka = self.kafka.model_copy(update={"bootstrap_servers": self.arena.bootstrap_of(role)})
        return {
            **variables_of(kafka),
            "AEWATCH_REDIS__URL": self.arena.redis_url_of(role),
            "AEWATCH_REDIS__PREFIX": self.prefix,
            "AEWATCH_WINDOW_AGENT__GROUP": f"{self.prefix}-windows",
            "AEWATCH_WORKER__GROUP": f"{self.prefix}-workers",
            "AEWATCH_MODEL__BUNDLE": str(self.load.bundles[0]),
            "AEWATCH_MODEL__STORE": str(self.folder / "store"),
            **ENGINE,
        }

    @property
    def groups(self) -> dict[str, str]:
        """Topic → who reads it."""
        return {
            self.kafka.frames_topic: f"{self.prefix}-windows",
            self.kafka.windows_topic: f"{self.prefix}-workers",
        }


def fight(
    arena: Arena,
    folder: Path,
    load: Workload,
    plan: Sequence[Fault],
    seed: int,
    tell: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Replay the recordings through a pipeline of its own while `plan` is done to it, and judge what came out.

    Raises
    ------
    ProcessError
        If the pipeline does not come up before anything is broken.
    """
    prefix = f"chaos-{seed}-{os.getpid()}-{int(time.time())}"
    names = ("frames", "windows", "predictions", "shadow_predictions", "deadletter")
    kafka = arena.kafka.model_copy(
        update={"partitions": PARTITIONS, **{f"{name}_topic": f"{prefix}.{name}" for name in names}}
    )
    asyncio.run(ensure_topics(kafka))
    battle = _Battle(arena, kafka, prefix, folder, load, seed)
    try:
        return _fight(battle, plan, tell)
    finally:
        battle.fleet.end()
        for proxy in arena.proxies.values():
            proxy.go(Way.FREE)
        battle.pool.shutdown()
        with contextlib.suppress(Exception):
            asyncio.run(_delete(kafka, names))


def _fight(battle: _Battle, plan: Sequence[Fault], tell: Callable[[str], None]) -> Outcome:
    fleet = battle.fleet
    for _ in range(AGENTS):
        fleet.add(Role.AGENT, lambda: ["window"])
    for _ in range(WORKERS):
        fleet.add(Role.WORKER, lambda: ["worker"])
    file = battle.folder / "collected.tsv"
    fleet.add(Role.SUBSCRIBER, lambda: [str(file)], module="deploy.chaos.collector")
    _await_ready(battle)
    battle.begun_s = time.monotonic()
    for recording in battle.load.recordings:
        fleet.add(Role.PRODUCER, partial(_replay, battle, recording), once=True)
    failure = ""
    with ProgressWatch(battle.kafka, battle.groups) as watch:
        waiting = list(plan)
        while waiting or battle.later or _busy(battle):
            _step(battle)
            while waiting and battle.begun_s + waiting[0].at_s <= time.monotonic():
                _break(battle, waiting.pop(0), tell)
        tell("all faults are over; waiting until everything is worked through")
        over_s = time.monotonic()
        # Producers that are still at it are no part of the time to recover.
        while not all(one.done for one in fleet.members if one.once) and time.monotonic() - over_s < DRAIN_S:
            _step(battle)
        published_s = time.monotonic()
        while not _drained(watch.noted, published_s) and not failure:
            _step(battle)
            if time.monotonic() - published_s > DRAIN_S:
                failure = f"not worked through after {DRAIN_S:g} s: {_where(watch.noted)}"
        drained_s = time.monotonic() - max(over_s, published_s)
        _await_collector(battle, file)
    _settle(battle)
    predictions, stream, states, letters = asyncio.run(_read(battle))
    verdict = judge(
        battle.load.truth, predictions, stream, states, [alert for _, alert in collected(file)], letters, battle.poison
    )
    for one in battle.done:
        if stages := _held_up(battle, one.fault):
            one.recovered_s = recovered_after_s(watch.noted, one.over_s, stages)
    fleet.end()
    return Outcome(
        seed=battle.seed,
        verdict=verdict,
        done=battle.done,
        restarts={str(role): number for role, number in fleet.restarts.items()},
        unasked=fleet.unasked,
        seconds=time.monotonic() - battle.begun_s,
        drained_s=drained_s,
        peak_rss_mib={
            str(role): max((one.peak_rss >> 20 for one in fleet.members if one.role is role), default=0)
            for role in (Role.AGENT, Role.WORKER, Role.PRODUCER, Role.SUBSCRIBER)
        },
        failure=failure,
    )


def _step(battle: _Battle) -> None:
    """What is due, and a look at the processes."""
    while battle.later and battle.later[0][0] <= time.monotonic():
        heapq.heappop(battle.later)[2]()
    battle.fleet.look()
    for future in [one for one in battle.pending if one.done()]:
        battle.pending.remove(future)
        future.result()
    time.sleep(STEP_S)


def _busy(battle: _Battle) -> bool:
    return bool(battle.pending)


def _break(battle: _Battle, fault: Fault, tell: Callable[[str], None]) -> None:
    """Begin a fault, and see to its end."""
    now_s = time.monotonic()
    target = _ACTS[fault.act](battle, fault)
    entry = Done(fault, target or "", now_s, now_s + fault.lasts_s)
    battle.done.append(entry)
    tell(f"{now_s - battle.begun_s:6.1f} s  {fault.kind:<16} {target or 'nothing to break now'}")


def _later(battle: _Battle, seconds: float, action: Callable[[], None]) -> None:
    heapq.heappush(battle.later, (time.monotonic() + seconds, next(battle.tick), action))


def _in_background(battle: _Battle, work: Callable[[], None]) -> None:
    """A server's restart takes seconds; its end is the fault's."""
    index = len(battle.done)  # of the entry that is about to be made

    def run() -> None:
        work()
        battle.done[index].over_s = time.monotonic()

    battle.pending.append(battle.pool.submit(run))


def _kill(battle: _Battle, fault: Fault) -> str | None:
    if fault.role is Role.KAFKA:
        return _restart(battle, fault, kill=True)
    if fault.role is Role.REDIS:
        return _restart(battle, fault, kill=True)
    member = battle.fleet.chosen(fault.role, fault.choice)
    if member is None:
        return None
    battle.fleet.kill(member)
    return member.name


def _restart(battle: _Battle, fault: Fault, kill: bool = False) -> str | None:
    if fault.role in battle.busy:
        return None
    battle.busy.add(fault.role)
    again = battle.arena.restart_kafka if fault.role is Role.KAFKA else battle.arena.restart_redis

    def work() -> None:
        try:
            again(kill=kill)
        finally:
            battle.busy.discard(fault.role)

    _in_background(battle, work)
    return str(fault.role)


def _freeze(battle: _Battle, fault: Fault) -> str | None:
    member = battle.fleet.chosen(fault.role, fault.choice)
    if member is None:
        return None
    battle.fleet.freeze(member)
    _later(battle, fault.lasts_s, lambda: battle.fleet.thaw(member))
    return member.name


def _clock(battle: _Battle, fault: Fault) -> str | None:
    member = battle.fleet.chosen(fault.role, fault.choice)
    if member is None:
        return None
    member.clock_off_s = fault.clock_off_s
    battle.fleet.kill(member)
    return f"{member.name} by {fault.clock_off_s:+.0f} s"


def _add(battle: _Battle, fault: Fault) -> str | None:
    if len(battle.fleet.of(fault.role)) >= MOST:
        return None
    command = ["window"] if fault.role is Role.AGENT else ["worker"]
    return battle.fleet.add(fault.role, lambda: command).name


def _remove(battle: _Battle, fault: Fault) -> str | None:
    there = battle.fleet.of(fault.role)
    if len(there) < (AGENTS if fault.role is Role.AGENT else WORKERS):
        return None
    member = there[int(fault.choice * len(there))]
    battle.fleet.remove(member)
    if len(there) == 2:  # the load stays shared
        _add(battle, fault)
    return member.name


def _network(battle: _Battle, fault: Fault) -> str | None:
    proxy = battle.arena.proxies[fault.role]
    if fault.act is Act.RESET:
        proxy.reset()
    elif (way := _way(fault.role)) in battle.busy:
        return None
    else:
        battle.busy.add(way)
        proxy.go(Way.SLOW if fault.act is Act.SLOW else Way.CUT)

        def over() -> None:
            proxy.go(Way.FREE)
            battle.busy.discard(way)

        _later(battle, fault.lasts_s, over)
    return f"way of {fault.role} to {'Redis' if fault.role is Role.REDIS else 'Kafka'}"


def _swap(battle: _Battle, fault: Fault) -> str:
    battle.swaps += 1
    bundle = battle.load.bundles[battle.swaps % len(battle.load.bundles)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AEWATCH_")}
    # An operator's own way to Redis is not what is broken.
    direct = {"AEWATCH_REDIS__URL": battle.arena.redis.connection_url(), "AEWATCH_CONFIG": ""}
    environment |= battle.variables(Role.WORKER) | direct
    command = [sys.executable, "-m", "deploy.cli", "model", "use", bundle]

    def work() -> None:
        # What it says of workers that are dead or frozen just now is not held against anybody.
        with (battle.folder / "logs" / "swaps.log").open("ab") as log, contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, timeout=180)

    _in_background(battle, work)
    return f"to {Path(bundle).name}"


def _poison(battle: _Battle, fault: Fault) -> str:
    sensors = sorted({one.sensor for one in battle.load.truth.predictions})
    seed = int(fault.choice * 2**32)

    def work() -> None:
        battle.poison.extend(asyncio.run(sprinkle(battle.kafka, sensors, seed)))

    _in_background(battle, work)
    return "among frames and windows"


_ACTS: Mapping[Act, Callable[[_Battle, Fault], str | None]] = {
    Act.KILL: _kill,
    Act.FREEZE: _freeze,
    Act.ADD: _add,
    Act.REMOVE: _remove,
    Act.CLOCK: _clock,
    Act.RESTART: _restart,
    Act.SLOW: _network,
    Act.CUT: _network,
    Act.RESET: _network,
    Act.SWAP: _swap,
    Act.POISON: _poison,
}


def _way(role: Role) -> Role:
    """Under which a way to a server is noted as being broken; the server itself is another matter."""
    return Role.SUBSCRIBER if role is Role.REDIS else role


def _held_up(battle: _Battle, fault: Fault) -> list[Stage]:
    """Whose work a fault holds up."""
    agents = Stage(battle.kafka.frames_topic, output=battle.kafka.windows_topic)
    workers = Stage(battle.kafka.windows_topic)
    if fault.role is Role.AGENT:
        return [agents]
    if fault.role in (Role.WORKER, Role.REDIS):
        return [workers]
    return [agents, workers] if fault.role is Role.KAFKA and fault.act is not Act.POISON else []


def _replay(battle: _Battle, recording: Path) -> list[str]:
    """The command of a producer that begins now: one that was killed makes up for the time that is lost."""
    left_s = battle.begun_s + battle.load.takes_s - time.monotonic()
    slowest = battle.load.recording_s / battle.load.takes_s
    rate = min(max(battle.load.recording_s / max(left_s, 0.1), slowest), FASTEST_RATE)
    return ["replay", str(recording), "--rate", f"{rate:.4f}", "--run", RUN]


def _await_ready(battle: _Battle) -> None:
    deadline = time.monotonic() + READY_S
    wanted = [one for one in battle.fleet.members if one.role in (Role.AGENT, Role.WORKER)]
    while not all(_said_ready(battle, one) for one in wanted):
        battle.fleet.look()
        if battle.fleet.unasked or time.monotonic() > deadline:
            raise ProcessError(f"the pipeline did not come up: {battle.fleet.unasked or 'too slow'}")
        time.sleep(0.2)


def _said_ready(battle: _Battle, member: Member) -> bool:
    log = battle.folder / "logs" / f"{member.name}.log"
    for line in log.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            if json.loads(line).get("message") == "ready":
                return True
    return False


def _drained(noted: Sequence[Standing], since_s: float) -> bool:
    """Whether the last look, begun after `since_s`, saw nothing waiting."""
    return bool(noted) and noted[-1].at_s > since_s + 2 * STEP_S and not noted[-1].waiting


def _where(noted: Sequence[Standing]) -> str:
    waiting = noted[-1].waiting if noted else {}
    return ", ".join(f"{number} in {tp.topic}/{tp.partition}" for tp, number in sorted(waiting.items())) or "no answer"


def _await_collector(battle: _Battle, file: Path, patience_s: float = 60.0) -> None:
    """Wait until the subscriber has what the stream holds."""
    deadline = time.monotonic() + patience_s
    wanted = len(battle.load.truth.alerts)
    while len(collected(file)) < wanted and time.monotonic() < deadline:
        _step(battle)


def _settle(battle: _Battle) -> None:
    """A moment longer, so that what should not come has the time to come."""
    deadline = time.monotonic() + 3.0
    while time.monotonic() < deadline:
        _step(battle)


async def _read(
    battle: _Battle,
) -> tuple[list[Prediction], list[Alert], dict[str, SensorState], list[DeadLetter]]:
    kafka = battle.kafka
    predictions: list[Prediction] = []
    letters: list[DeadLetter] = []
    async with reading(kafka, kafka.predictions_topic, kafka.deadletter_topic) as consumer:
        ends = await consumer.end_offsets(sorted(consumer.assignment()))
        for partition, end in ends.items():
            while await consumer.position(partition) < end:
                record = await consumer.getone(partition)
                if record.topic == kafka.predictions_topic:
                    predictions.append(decode_prediction(record.value or b""))
                else:
                    letters.append(decode_dead_letter(record))
    async with Alerts(battle.arena.redis.connection_url(), battle.prefix) as alerts:
        stream = [alert async for _, alert in alerts.history(wanted=EVERYTHING)]
    async with AlertStore(battle.arena.redis.connection_url(), battle.prefix) as store:
        stored = await store.load(battle.load.truth.states)
    return predictions, stream, {sensor: one.copy_state() for sensor, one in stored.items()}, letters


async def _delete(kafka: KafkaSettings, names: Sequence[str]) -> None:
    from aiokafka.admin import AIOKafkaAdminClient

    admin = AIOKafkaAdminClient(**kafka.client_options())
    await admin.start()
    try:
        await admin.delete_topics([str(getattr(kafka, f"{name}_topic")) for name in names])
    finally:
        await admin.close()


def variables_of(kafka: KafkaSettings) -> dict[str, str]:
    """The variables that set exactly this."""
    found = {}
    for name in KafkaSettings.model_fields:
        value = getattr(kafka, name)
        if value is None or value == "":
            continue
        text = value.get_secret_value() if hasattr(value, "get_secret_value") else str(value)
        if text:
            found[f"AEWATCH_KAFKA__{name.upper()}"] = text
    return found
