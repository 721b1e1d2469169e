"""The pipeline with one thing broken at a time: what the simulation must find, or it is worth nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from faust.types import TP

from stream.ordered_acks import OrderedAcks
from stream.window_agent import WindowAgent
from stream.window_output import WindowOutput
from stream.worker import Worker
from tests.simulation.members import SimAgent, SimWorker
from tests.simulation.store import StoreModel
from tests.simulation.transport import Group, Producer
from tests.simulation.world import World

MUTATIONS: dict[str, type[World]] = {}


def mutation(what: str) -> Callable[[type[World]], type[World]]:
    def add(world: type[World]) -> type[World]:
        MUTATIONS[what] = world
        return world

    return add


def agents(agent_class: type[WindowAgent]) -> type[SimAgent]:
    return type("Mutant", (SimAgent,), {"agent_class": agent_class})


def workers(worker_class: type[Worker]) -> type[SimWorker]:
    return type("Mutant", (SimWorker,), {"worker_class": worker_class})


@mutation("frames are committed as soon as they are read")
class _CommitsWhatIsRead(World):
    class agent_class(SimAgent):
        class agent_class(WindowAgent):
            def committable(self, tp: TP) -> int | None:
                return self._partitions[tp].acks.next_offset


@mutation("one frame too many is committed")
class _CommitsOneTooMany(World):
    class agent_class(SimAgent):
        class agent_class(WindowAgent):
            def committable(self, tp: TP) -> int | None:
                offset, after = super().committable(tp), self._partitions[tp].acks.next_offset
                return offset if offset is None or offset == after else offset + 1


class _Counting(OrderedAcks):
    def safe(self, output: int) -> None:
        super().safe(self._safe)


@mutation("acknowledgements are counted, whichever outputs they are of")
class _CountsAcknowledgements(World):
    class agent_class(SimAgent):
        class agent_class(WindowAgent):
            async def _take(self, event: Any) -> None:
                await super()._take(event)
                for partition in self._partitions.values():
                    partition.acks.__class__ = _Counting


class _SafeWhenSent(WindowOutput):
    async def write_window(self, value: Any, key: Any, on_safe: Any, refused: Any) -> None:
        on_safe()
        await super().write_window(value, key, lambda: None, refused)


@mutation("a window is taken for safe when it is sent")
class _TrustsTheSending(World):
    class agent_class(SimAgent):
        def _new_output(self) -> WindowOutput:
            output = super()._new_output()
            output.__class__ = _SafeWhenSent
            return output


@mutation("an agent takes messages of an assignment that is over")
class _TakesOldMessages(World):
    class agent_class(SimAgent):
        class agent_class(WindowAgent):
            async def _take(self, event: Any) -> None:
                app = self._app
                generation = app.consumer_generation_id
                await super()._take(event._replace(message=event.message._replace(generation_id=generation)))


@mutation("an agent takes messages between a revocation and the next assignment")
class _TakesBetween(World):
    class agent_class(SimAgent):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.agent._app.flow_control.is_active = lambda: True  # type: ignore[method-assign]


@mutation("the worker commits before the predictions are in the log")
class _CommitsBeforePredictions(World):
    class worker_class(SimWorker):
        class worker_class(Worker):
            async def _settle(self, batch: Any, consumer: Any, producer: Any, letters: Any) -> None:
                await super()._settle(batch, consumer, _Hasty(producer), letters)


class _Hasty:
    """A producer that says at once that the broker has the record."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    async def send(self, *arguments: Any, **named: Any) -> asyncio.Future[None]:
        await self._producer.send(*arguments, **named)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


@mutation("the worker commits before state and alerts are in the store")
class _CommitsBeforeApplying(World):
    class worker_class(SimWorker):
        class worker_class(Worker):
            async def _settle(self, batch: Any, consumer: Any, producer: Any, letters: Any) -> None:
                await self._commit(consumer, batch.offsets)
                await super()._settle(batch, consumer, producer, letters)


@mutation("the worker takes the alerts of a window in another order")
class _TurnsAlerts(World):
    class worker_class(SimWorker):
        class worker_class(Worker):
            def _change(self, *arguments: Any) -> Any:
                change = super()._change(*arguments)
                if change is not None:
                    change.alerts.reverse()
                return change


@mutation("the worker goes on from its own state where the store has refused it")
class _StubbornWorker(World):
    class worker_class(SimWorker):
        class worker_class(Worker):
            async def _apply(self, predictions: Any, rules: Any) -> int:
                remembered = dict(self._states)
                applied = await super()._apply(predictions, rules)
                for sensor, stored in remembered.items():
                    current = self._states[sensor]
                    self._states[sensor] = type(stored)(sensor, current.version, stored.state_json)
                return applied


@mutation("the store applies whatever it is given")
class _StoreWithoutChecks(World):
    class store_class(StoreModel):
        def _apply(self, keys: list[bytes], args: list[bytes]) -> Any:
            return super()._apply(keys, [self.hashes.get(keys[0], {}).get(b"version", b"0"), *args[1:]])

        @staticmethod
        def advances(*positions: bytes) -> bool:
            return True


@mutation("the store compares no versions")
class _StoreWithoutVersions(World):
    class store_class(StoreModel):
        def _apply(self, keys: list[bytes], args: list[bytes]) -> Any:
            return super()._apply(keys, [self.hashes.get(keys[0], {}).get(b"version", b"0"), *args[1:]])


#: Broken like this the pipeline keeps its promise all the same: none of these is what it stands on.
HARMLESS: dict[str, type[World]] = {}


class _NoFence(World):
    class group_class(Group):
        def accepts(self, member: object, generation: int) -> bool:
            return True


class _AgentForgetsNothing(World):
    class agent_class(SimAgent):
        def _drop(self, partitions: Any) -> None:
            pass


class _WorkerForgetsNothing(World):
    class worker_class(SimWorker):
        class worker_class(Worker):
            def forget(self, partitions: Any) -> None:
                pass


class _StoreWithoutPositions(World):
    class store_class(StoreModel):
        @staticmethod
        def advances(*positions: bytes) -> bool:
            return True


HARMLESS |= {
    "commits of members that are out are accepted": _NoFence,
    "an agent keeps what it knew of a partition that it lost": _AgentForgetsNothing,
    "a worker keeps what it knew of sensors that it lost": _WorkerForgetsNothing,
    "the store compares no positions, only versions": _StoreWithoutPositions,
}
