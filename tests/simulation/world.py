"""The whole pipeline in one place, what can happen to it, and what must be true of it whatever does."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from stream.alarms import EpisodeNotOpen, SensorState, acknowledge, advance, encode_state
from stream.alert_store import AlertStore, SensorChange
from stream.alerts import decode_alert, encode_alert
from stream.frame_partition import PartitionLimits
from stream.ordered_acks import HoldLimits
from stream.predictions import decode_prediction
from stream.records import decode_window
from tests.simulation.loop import FakeLoop
from tests.simulation.members import (
    CLOCK,
    FRAMES,
    LETTERS,
    PREDICTIONS,
    PREFIX,
    WINDOWS,
    Member,
    SimAgent,
    SimWorker,
    new_store,
)
from tests.simulation.plant import PLANTS, RULES, Sensor, note_open, plant, without_flags
from tests.simulation.store import Connection, StoreModel
from tests.simulation.transport import Group, Message, Topic

Choose = Callable[[int], int]  #: a number from 0 to below the given one; 0 is the plainest choice
MAX_MEMBERS = 3
RUBBISH = b"no window at all"


class Broken(AssertionError):
    """Something that must always hold does not."""


@dataclass(slots=True)
class Seen:
    """How much of one sensor's truth has come to pass."""

    sensor: Sensor
    frames_partition: int
    sent: list[int] = field(default_factory=list)  #: offset of each packet, as it was written first
    written: list[bool] = field(default_factory=list)  #: for each true window, whether it is in the log
    first_missing: int = 0
    order: list[int] = field(default_factory=list)  #: windows as they came into the log first
    predicted: set[int] = field(default_factory=set)
    may_be_lost: set[int] = field(default_factory=set)  #: begin in messages whose hold was given up
    alerts: list[bytes] = field(default_factory=list)
    windows_position: bytes = b""
    hits_position: bytes = b""
    history: list[tuple[bytes, bytes, bytes, list[bytes]]] = field(default_factory=list)  #: changes in the store


class World:
    """One plant, its pipeline and everything that happens to them; `act` lets one thing happen, `settle` ends it.

    All that is chosen comes from `choose`, so that the same choices are the same world.
    """

    agent_class: type[SimAgent] = SimAgent
    worker_class: type[SimWorker] = SimWorker
    group_class: type[Group] = Group
    store_class: type[StoreModel] = StoreModel

    def __init__(self, choose: Choose) -> None:
        self.loop = CLOCK.loop = FakeLoop()
        self.counts: Counter[str] = Counter()
        sensors = plant(choose(PLANTS)).sensors
        self.salt = choose(7)
        self.frames = Topic(FRAMES, 1 + choose(3))
        self.windows = Topic(WINDOWS, 1 + choose(3), self._on_window)
        self.predictions = Topic(PREDICTIONS, 1, self._on_prediction)
        self.letters = Topic(LETTERS, 1, self._on_letter)
        self.topics = {topic.name: topic for topic in (self.frames, self.windows, self.predictions, self.letters)}
        #: 0: producers never repeat themselves; 1: byte for byte; 2: with the flag of the spool
        self.repeats = (0, 1, 1, 2)[choose(4)]
        #: Where a hold was given up, a copy from the spool may become the window that would have been lost, with the
        #: spool's flag; what is true then is not known before.
        self.hold_messages = (0, 0, 0, 3, 6)[choose(5)] if self.repeats < 2 else 0
        self.operators = choose(4) == 1
        self.rubbish = choose(4) == 1
        self.batch_windows = 1 + choose(6)
        self.fetches_ahead = (0, 2, 100)[choose(3)]
        self.seen = {
            sensor.key: Seen(
                sensor, self.place(sensor.key, len(self.frames.logs)), written=[False] * len(sensor.windows)
            )
            for sensor in sensors
        }
        self._seen = list(self.seen.values())
        self.rubbish_frames: set[tuple[int, int]] = set()
        self.rubbish_windows: set[tuple[int, int]] = set()
        self.lettered: set[tuple[str, int, int]] = set()
        self.checked_frames = [0] * len(self.frames.logs)
        self.checked_windows = [0] * len(self.windows.logs)
        self.store = self.store_class(on_change=self._on_change)
        self.agent_group = self.group_class(self.frames, self._on_frames_commit)
        self.worker_group = self.group_class(self.windows, self._on_windows_commit)
        self.agents: list[SimAgent] = []
        self.workers: list[SimWorker] = []
        #: What dead processes have left on its way: it may still arrive, or never.
        self.left_behind: list[Callable[[], None]] = []
        self.desk = Connection(self.loop, self.store, "")
        self.operator_store: AlertStore = new_store(self.desk)
        for _ in range(1 + choose(2)):
            self._new_agent()
        for _ in range(1 + choose(2)):
            self._new_worker()
        self._rebalance(self.agents, self.agent_group, lambda _: 0)
        self._rebalance(self.workers, self.worker_group, lambda _: 0)

    def place(self, key: bytes | None, partitions: int) -> int:
        return (zlib.crc32(key or b"") // 8 + self.salt) % partitions

    # What can happen. Each returns whether it could.

    def act(self, what: str, choose: Choose) -> bool:
        """Let one of `ACTIONS` happen."""
        done: bool = getattr(self, what)(choose)
        self.loop.run_ready()
        if done:
            self.counts[what] += 1
        return done

    def produce(self, choose: Choose) -> bool:
        """A sensor sends its next packets."""
        unfinished = [seen for seen in self._seen if len(seen.sent) < len(seen.sensor.packets)]
        if not unfinished:
            return False
        seen = unfinished[choose(len(unfinished))]
        for _ in range(1 + choose(5)):
            if len(seen.sent) < len(seen.sensor.packets):
                packet = seen.sensor.packets[len(seen.sent)]
                message = self.frames.append(seen.frames_partition, seen.sensor.key, packet.value)
                seen.sent.append(message.offset)
                if packet.garbage:
                    self.rubbish_frames.add((message.partition, message.offset))
        return True

    def repeat(self, choose: Choose) -> bool:
        """A producer does not know whether a packet arrived, and sends it again, with those after it or without."""
        if not self.repeats:
            return False
        seen = self._seen[choose(len(self._seen))]
        if not seen.sent:
            return False
        first = len(seen.sent) - 1 - choose(min(len(seen.sent), 6))
        for number in range(first, min(first + 1 + choose(3), len(seen.sent))):
            packet = seen.sensor.packets[number]
            value = packet.from_spool if self.repeats == 2 else packet.value
            message = self.frames.append(seen.frames_partition, seen.sensor.key, value)
            if packet.garbage:
                self.rubbish_frames.add((message.partition, message.offset))
        return True

    def agent_goes_on(self, choose: Choose) -> bool:
        """An agent fetches and reads; of what it writes a part gets through and is acknowledged; it may commit."""
        agent = self._one_of(self.agents, choose)
        if agent is None:
            return False
        waiting = list(agent.membership.waiting())
        if waiting:
            agent.fetch(waiting[choose(len(waiting))], 1 + choose(6))
        # What is not read stays in its buffer, whatever becomes of the assignment.
        self.counts["messages read"] += agent.read(1 + choose(6))
        if choose(2):
            agent.windows.deliver(1 + choose(8))
            self.loop.run_ready()
            agent.windows.acknowledge(choose(6))
            self.loop.run_ready()
            if choose(2):
                self._agent_commits(agent)
        return True

    def agent_reads(self, choose: Choose) -> bool:
        """An agent fetches more, or reads a few of what it has fetched."""
        agent = self._one_of(self.agents, choose)
        if agent is None:
            return False
        waiting = list(agent.membership.waiting())
        if waiting and choose(2):
            return agent.fetch(waiting[choose(len(waiting))], 1 + choose(8)) > 0
        read = agent.read(1 + choose(3))
        self.counts["messages read"] += read
        return read > 0

    def agent_writes(self, choose: Choose) -> bool:
        """Some of what an agent has sent comes to the log, or the broker's answer to it comes back."""
        agent = self._one_of(self.agents, choose)
        if agent is None:
            return False
        producer = agent.producers[choose(6) == 5]
        if choose(2):
            return producer.acknowledge(1 + choose(4)) > 0
        return producer.deliver(1 + choose(4), choose(3)) > 0

    def agent_stalls(self, choose: Choose) -> bool:
        """An agent's producer has no room left, or has room again."""
        agent = self._one_of(self.agents, choose)
        if agent is None:
            return False
        if agent.windows.stalled is None:
            agent.windows.stall()
        else:
            agent.windows.go_on()
        return True

    def agent_commits(self, choose: Choose) -> bool:
        """An agent commits what its ledger says."""
        agent = self._one_of(self.agents, choose)
        return agent is not None and self._agent_commits(agent)

    def _agent_commits(self, agent: SimAgent) -> bool:
        taken = agent.commit()
        if taken is not None:
            self.counts["commits" if taken else "commits refused"] += 1
        return taken is not None

    def worker_goes_on(self, choose: Choose) -> bool:
        """A worker fetches a batch and all goes well with it, as far as it comes."""
        worker = self._one_of(self.workers, choose)
        if worker is None:
            return False
        waiting = list(worker.membership.waiting())
        fetched = 0
        for _ in range(1 + choose(2)):
            if waiting:
                fetched += worker.fetch(waiting[choose(len(waiting))], 1 + choose(8))
        if worker.consumer.asked is not None:
            worker.fetch(None, 0)
        self.counts["windows fetched"] += fetched
        # One kind of answer may be long in coming, so that the worker stands before it when the next thing happens.
        late = choose(5)
        for _ in range(choose(6)):
            worker.finish_step(publishes=late != 2, stores=late != 3, commits=late != 4)
        return True

    def worker_fetches(self, choose: Choose) -> bool:
        """A worker's fetch is answered, with messages or with none, which ends its batch."""
        worker = self._one_of(self.workers, choose)
        if worker is None or worker.consumer.asked is None:
            return False
        waiting = list(worker.membership.waiting())
        if waiting and choose(4) < 3:
            self.counts["windows fetched"] += worker.fetch(waiting[choose(len(waiting))], 1 + choose(8))
        else:
            worker.fetch(None, 0)
        return True

    def worker_publishes(self, choose: Choose) -> bool:
        """Some predictions come to the log, or the broker's answer to them comes back."""
        worker = self._one_of(self.workers, choose)
        if worker is None:
            return False
        producer = worker.producers[choose(6) == 5]
        if choose(2):
            return producer.acknowledge(1 + choose(8)) > 0
        return producer.deliver(1 + choose(8), choose(3)) > 0

    def worker_calls_store(self, choose: Choose) -> bool:
        """A worker's call to Redis is answered, or lost on the way there or on the way back."""
        worker = self._one_of(self.workers, choose)
        if worker is None:
            return False
        lost = choose(6)
        if lost < 4:
            return worker.store_call()
        self.counts["store calls lost"] += 1
        return worker.store_call(reached=lost == 4, answered=False, away_s=(1.0, 30.0)[choose(2)])

    def worker_commits(self, choose: Choose) -> bool:
        """A worker's commit is answered, or lost on the way there or on the way back."""
        worker = self._one_of(self.workers, choose)
        if worker is None or not worker.consumer.commits:
            return False
        lost = choose(6)
        taken = worker.consumer.decide_commit(reached=lost != 4, answered=lost < 4)
        self.counts["commits" if taken else "commits refused" if taken is False else "commits lost"] += 1
        return True

    def agent_dies(self, choose: Choose) -> bool:
        """An agent is killed: nothing of it is left but what it has sent. Another may be started at once."""
        if not self.agents:
            return False
        self._kill_agent(choose)
        if choose(3):
            self._new_agent()
            self._rebalance(self.agents, self.agent_group, choose)
        return True

    def worker_dies(self, choose: Choose) -> bool:
        """The same of a worker."""
        if not self.workers:
            return False
        self._kill_worker(choose)
        if choose(3):
            self._new_worker()
            self._rebalance(self.workers, self.worker_group, choose)
        return True

    def _kill_agent(self, choose: Choose) -> None:
        agent = self.agents.pop(choose(len(self.agents)))
        self._bury(agent, choose)

    def _kill_worker(self, choose: Choose) -> None:
        worker = self.workers.pop(choose(len(self.workers)))
        calls = [commands for commands, _ in worker.redis.calls]
        if calls:
            # A call that was on its way is done now, later or never.
            self.left_behind.append(lambda: _execute_all(self.store, calls))
        self._bury(worker, choose)

    def _bury(self, member: SimAgent | SimWorker, choose: Choose) -> None:
        for producer in member.producers:
            if producer.on_the_way:
                arrives = [
                    (sent.topic, sent.partition, sent.key, sent.value, sent.headers)
                    for sent in list(producer.on_the_way)[: choose(6)]
                ]
                self.left_behind.append(lambda arrives=arrives: _append_all(arrives))  # type: ignore[misc]
        member.membership.group.members.discard(member.membership)

    def late_arrival(self, choose: Choose) -> bool:
        """What a dead process had sent arrives."""
        if not self.left_behind:
            return False
        self.left_behind.pop(choose(len(self.left_behind)))()
        return True

    def pause(self, choose: Choose) -> bool:
        """A process hangs, and does not notice what becomes of its group; it may act again at any time."""
        members: list[Member] = [*self.agents, *self.workers]
        if not members:
            return False
        members[choose(len(members))].paused = True
        return True

    def wake(self, choose: Choose) -> bool:
        """A process that hung notices that its group has gone on, and joins at the next rebalance."""
        paused = [member for member in (*self.agents, *self.workers) if member.paused]
        if not paused:
            return False
        member = paused[choose(len(paused))]
        member.paused = False
        if not member.membership.group.accepts(member.membership, member.membership.generation):
            member.revoked(in_time=choose(2) == 1, keeps_buffer=choose(3) > 0)
        return True

    def agents_rebalance(self, choose: Choose) -> bool:
        """Agents that are awake share the partitions anew; those that died or hang are out."""
        if not self.agents or (choose(3) == 2 and len(self.agents) < MAX_MEMBERS):
            self._new_agent()
        return self._rebalance(self.agents, self.agent_group, choose)

    def workers_rebalance(self, choose: Choose) -> bool:
        """The same of workers."""
        if not self.workers or (choose(3) == 2 and len(self.workers) < MAX_MEMBERS):
            self._new_worker()
        return self._rebalance(self.workers, self.worker_group, choose)

    def _rebalance(self, members: Any, group: Group, choose: Choose) -> bool:
        awake = [member for member in members if not member.paused]
        for member in awake:
            if member.membership.positions:
                member.revoked(in_time=choose(3) == 0, keeps_buffer=choose(3) > 0)
                if isinstance(member, SimAgent):
                    # Until it is assigned partitions anew its own task runs on with what is left in its buffer.
                    member.read(choose(4))
        dealt = group.rebalance([member.membership for member in awake])
        for member, partitions in zip(awake, dealt, strict=True):
            member.membership.join(partitions)
        if any(member.paused for member in members):
            self.counts["zombies"] += 1
        return bool(awake)

    def foreign_window(self, choose: Choose) -> bool:
        """Something that is no window is written among them."""
        if not self.rubbish:
            return False
        seen = self._seen[choose(len(self._seen))]
        message = self.windows.append(self.place(seen.sensor.key, len(self.windows.logs)), seen.sensor.key, RUBBISH)
        self.rubbish_windows.add((message.partition, message.offset))
        return True

    def operate(self, choose: Choose) -> bool:
        """Somebody acknowledges an open episode; or what they have asked of Redis is answered."""
        if not self.operators:
            return False
        if self.desk.calls:
            self.desk.decide()
            return True
        open_episodes = self.store.hashes.get(f"{PREFIX}:active".encode(), {})
        if not open_episodes:
            return False
        chosen = list(open_episodes)[choose(len(open_episodes))]
        alert = decode_alert(open_episodes[chosen])
        self.loop.begin(self._acknowledge(alert.sensor, alert.episode, alert.time_ns + 1))
        return True

    async def _acknowledge(self, sensor: str, episode: str, at_ns: int) -> None:
        applied = False
        while not applied:
            stored = (await self.operator_store.load([sensor]))[sensor]
            state = stored.copy_state()
            try:
                alerts = acknowledge(state, episode, at_ns=at_ns, by="operator")
            except EpisodeNotOpen:
                return
            if not alerts:
                return
            applied = (await self.operator_store.apply([SensorChange(stored, state, alerts)]))[0].applied

    def _one_of(self, members: list[Any], choose: Choose) -> Any:
        return members[choose(len(members))] if members else None

    def _new_agent(self) -> None:
        hold = HoldLimits(messages=self.hold_messages) if self.hold_messages else HoldLimits()
        self.agents.append(
            self.agent_class(self.loop, self.agent_group, self.topics, self.place, PartitionLimits(hold=hold))
        )
        self.loop.run_ready()

    def _new_worker(self) -> None:
        self.workers.append(
            self.worker_class(
                self.loop,
                self.worker_group,
                self.topics,
                self.place,
                self.store,
                batch_windows=self.batch_windows,
                fetches_ahead=self.fetches_ahead,
            )
        )
        self.loop.run_ready()

    # How it ends.

    def settle(self, choose: Choose) -> None:
        """Everything is sent, whoever is left or comes new works without trouble; then look at what there is.

        Raises
        ------
        Broken
            If it is not what it must be.
        """
        while self.act("produce", lambda _: 0):
            pass
        while self.left_behind:
            self.left_behind.pop(0)()
        if choose(2):
            while self.agents:
                self._kill_agent(lambda _: 0)
            while self.workers:
                self._kill_worker(lambda _: 0)
            self.left_behind.clear()
        for member in (*self.agents, *self.workers):
            if member.paused:
                member.revoked(in_time=False, keeps_buffer=False)
                member.paused = False
        if not self.agents:
            self._new_agent()
        if not self.workers:
            self._new_worker()
        self._rebalance(self.agents, self.agent_group, lambda _: 0)
        self._rebalance(self.workers, self.worker_group, lambda _: 0)
        while self.desk.calls:
            self.desk.decide()
            self.loop.run_ready()
        for agent in self.agents:
            self._finish_agent(agent)
        for worker in self.workers:
            self._finish_worker(worker)
        self._check_end()

    def _finish_agent(self, agent: SimAgent) -> None:
        for producer in agent.producers:
            producer.go_on()
        progress = True
        while progress:
            progress = False
            for partition in list(agent.membership.waiting()):
                progress = agent.fetch(partition, 1000) > 0 or progress
            while agent.read(1000):
                progress = True
            for producer in agent.producers:
                progress = producer.finish() > 0 or progress
            self.loop.run_ready()
        self._agent_commits(agent)

    def _finish_worker(self, worker: SimWorker) -> None:
        for producer in worker.producers:
            producer.go_on()
        worker.finish()
        while waiting := list(worker.membership.waiting()):
            for partition in waiting:
                worker.fetch(partition, 1000)
            worker.finish()
        if worker.consumer.asked is not None:
            worker.fetch(None, 0)
        worker.finish()

    # What must be true, looked at as it happens.

    def _on_window(self, message: Message) -> None:
        if message.value == RUBBISH:
            return
        seen = self.seen[message.key or b""]
        place = self._place_of_window(seen, message.value)
        if seen.written[place]:
            self.counts["windows written again"] += 1
            return
        skipped = [
            number
            for number in range(seen.first_missing, place)
            if not seen.written[number] and number not in seen.may_be_lost
        ]
        if skipped:
            raise Broken(f"{seen.sensor.name}: window {place} is written and {skipped} before it are not")
        seen.written[place] = True
        seen.order.append(place)
        while seen.first_missing < len(seen.written) and seen.written[seen.first_missing]:
            seen.first_missing += 1

    def _place_of_window(self, seen: Seen, value: bytes) -> int:
        place = seen.sensor.place.get(value)
        if place is None and self.repeats == 2:
            # A copy made of frames that came through the spool says so, and is else the same.
            plain = value[:6] + value[8:]
            for number, window in enumerate(seen.sensor.windows):
                if seen.written[number] and window.value[:6] + window.value[8:] == plain:
                    return number
        if place is None:
            window = decode_window(seen.sensor.name, value)
            raise Broken(f"{seen.sensor.name}: a window at {window.position} that is none, flags {window.flags!r}")
        return place

    def _on_prediction(self, message: Message) -> None:
        seen = self.seen[message.key or b""]
        place = seen.sensor.predicted_place.get(message.value)
        if place is None and self.repeats == 2:
            plain = without_flags(message.value)
            for number, window in enumerate(seen.sensor.windows):
                if without_flags(window.prediction) == plain:
                    place = number
        if place is None or not seen.written[place]:
            raise Broken(f"{seen.sensor.name}: a prediction of no window: {message.value!r}")
        if place in seen.predicted:
            self.counts["predictions published again"] += 1
        seen.predicted.add(place)

    def _on_letter(self, message: Message) -> None:
        headers = dict(message.headers)
        self.lettered.add((headers["topic"].decode(), int(headers["partition"]), int(headers["offset"])))

    def _on_change(self, sensor: bytes, mode: bytes, windows: bytes, hits: bytes, alerts: list[bytes]) -> None:
        seen = self.seen[sensor]
        if windows < seen.windows_position or hits < seen.hits_position:
            raise Broken(f"{seen.sensor.name}: the stored position goes back")
        if mode == b"advance" and (windows, hits) == (seen.windows_position, seen.hits_position):
            raise Broken(f"{seen.sensor.name}: windows are applied that were applied before")
        seen.windows_position, seen.hits_position = windows, hits
        seen.alerts += alerts
        if self.operators or self.hold_messages:
            seen.history.append((mode, windows, hits, alerts))
        elif seen.alerts != seen.sensor.alerts[: len(seen.alerts)]:
            raise Broken(f"{seen.sensor.name}: alert {len(seen.alerts) - 1} or one before it is not the true one")

    def _on_frames_commit(self, partition: int, offset: int) -> None:
        given_up = {sensor for agent in self.agents for sensor in agent.agent._given_up}
        for seen in self._seen:
            if seen.frames_partition != partition:
                continue
            for number in range(seen.first_missing, len(seen.written)):
                needs = seen.sensor.windows[number].needs
                if needs >= len(seen.sent) or seen.sent[needs] >= offset:
                    break
                if seen.written[number]:
                    continue
                if seen.sensor.name not in given_up and number not in seen.may_be_lost:
                    raise Broken(
                        f"{seen.sensor.name}: frames are committed up to {offset}, but window {number} needs message "
                        f"{seen.sent[needs]} and is not written"
                    )
                seen.may_be_lost.add(number)
        for number in range(self.checked_frames[partition], offset):
            if (partition, number) in self.rubbish_frames and (FRAMES, partition, number) not in self.lettered:
                raise Broken(f"frames are committed up to {offset}, but message {number} has no dead letter")
        self.checked_frames[partition] = max(offset, self.checked_frames[partition])

    def _on_windows_commit(self, partition: int, offset: int) -> None:
        for message in self.windows.logs[partition][self.checked_windows[partition] : offset]:
            if (partition, message.offset) in self.rubbish_windows:
                if (WINDOWS, partition, message.offset) not in self.lettered:
                    raise Broken(f"windows are committed up to {offset}, but {message.offset} has no dead letter")
                continue
            seen = self.seen[message.key or b""]
            place = self._place_of_window(seen, message.value)
            window = seen.sensor.windows[place]
            if place not in seen.predicted:
                raise Broken(f"windows are committed up to {offset}, but {message.offset} has no prediction")
            if window.position > (seen.hits_position if window.hit else seen.windows_position):
                raise Broken(f"windows are committed up to {offset}, but {message.offset} was not applied")
        self.checked_windows[partition] = max(offset, self.checked_windows[partition])

    # And at the end.

    def _check_end(self) -> None:
        # Less may be committed: a batch that outlived two assignments takes its group back. It is read again, no more.
        if [at or 0 for at in self.worker_group.committed] != self.windows.ends:
            self.counts["ended behind"] += 1
        open_episodes: dict[bytes, bytes] = {}
        for seen in self._seen:
            name = seen.sensor.name
            missing = {number for number, written in enumerate(seen.written) if not written}
            if missing - seen.may_be_lost:
                raise Broken(f"{name}: windows {sorted(missing - seen.may_be_lost)} are lost")
            if seen.predicted != set(seen.order):
                raise Broken(f"{name}: windows {sorted(set(seen.order) - seen.predicted)} have no prediction")
            self.counts["windows lost with a given-up hold"] += len(missing)
            self.counts["windows"] += len(seen.order)
            alerts, state = seen.sensor.alerts, seen.sensor.state
            if self.operators or self.hold_messages:
                alerts, state, still_open = _decided(seen)
            else:
                still_open = seen.sensor.open
            open_episodes |= still_open
            if seen.alerts != alerts:
                raise Broken(f"{name}: {len(seen.alerts)} alerts, {len(alerts)} are true, or they differ")
            self.counts["alerts"] += len(alerts)
            stored = self.store.hashes.get(f"{PREFIX}:sensor:{name}".encode(), {})
            if stored.get(b"state", b"") != state:
                raise Broken(f"{name}: the state is {stored.get(b'state', b'')!r}, true is {state!r}")
        if self.store.hashes.get(f"{PREFIX}:active".encode(), {}) != open_episodes:
            raise Broken("other episodes are open than should be")
        stream = self.store.streams.get(f"{PREFIX}:alerts".encode(), [])
        if [int(entry[b"n"]) for entry in stream] != list(range(1, len(stream) + 1)):
            raise Broken("the alerts are not numbered without a hole")
        if len({decode_alert(entry[b"alert"]).id for entry in stream}) != len(stream):
            raise Broken("an alert was published twice")
        for partition, number in self.rubbish_frames:
            if (FRAMES, partition, number) not in self.lettered:
                raise Broken(f"message {number} of partition {partition} has no dead letter")


def _decided(seen: Seen) -> tuple[list[bytes], bytes, dict[bytes, bytes]]:
    """Alerts and state that follow from the windows as they came into the log, and from what operators did between."""
    state = SensorState()
    waiting = [seen.sensor.windows[number] for number in seen.order]
    alerts: list[bytes] = []
    still_open: dict[bytes, bytes] = {}
    for mode, windows, hits, published in seen.history:
        if mode == b"operate":
            asked = decode_alert(published[0])
            decided = acknowledge(state, asked.episode, at_ns=asked.time_ns, by=asked.by, note=asked.note)
        else:
            decided = []
            # Those that come behind a later one are no news and change nothing.
            while waiting and waiting[0].position <= (hits if waiting[0].hit else windows):
                decided += advance(state, decode_prediction(waiting.pop(0).prediction), RULES)
        alerts += map(encode_alert, decided)
        note_open(still_open, decided)
    return alerts, encode_state(state) if state.sensor else b"", still_open


def _append_all(records: list[tuple[Topic, int, bytes | None, bytes, Any]]) -> None:
    for topic, partition, key, value, headers in records:
        topic.append(partition, key, value, headers)


def _execute_all(store: StoreModel, calls: list[list[tuple[Any, ...]]]) -> None:
    for commands in calls:
        for command in commands:
            store.execute(command)


#: What can happen, and how often it does in a random schedule.
ACTIONS = {
    "produce": 12,
    "agent_goes_on": 12,
    "worker_goes_on": 9,
    "agent_reads": 3,
    "agent_writes": 8,
    "agent_commits": 4,
    "agent_stalls": 1,
    "worker_fetches": 5,
    "worker_publishes": 4,
    "worker_calls_store": 8,
    "worker_commits": 4,
    "repeat": 2,
    "agent_dies": 1,
    "worker_dies": 1,
    "late_arrival": 3,
    "pause": 1,
    "wake": 2,
    "agents_rebalance": 2,
    "workers_rebalance": 2,
    "foreign_window": 1,
    "operate": 4,
}
