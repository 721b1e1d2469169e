from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.simulation.members import PREFIX
from tests.simulation.mutations import HARMLESS, MUTATIONS
from tests.simulation.plant import PLANTS, plant
from tests.simulation.schedules import run_again, run_random, shrink, simulation, told
from tests.simulation.world import ACTIONS, World


class Pipeline(RuleBasedStateMachine):
    """The same world, driven by hypothesis, which makes a failure small by itself."""

    world_class = World
    world: World

    def __init__(self) -> None:
        super().__init__()
        self._replaced = simulation()
        self._replaced.__enter__()
        self._settled = False

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.world = self.world_class(chooser(data))

    @rule(what=st.sampled_from(sorted(ACTIONS)), data=st.data())
    def something_happens(self, what: str, data: st.DataObject) -> None:
        self.world.act(what, chooser(data))

    def teardown(self) -> None:
        try:
            if hasattr(self, "world"):
                self.world.settle(lambda below: below - 1)
        finally:
            self._replaced.__exit__(None, None, None)


def chooser(data: st.DataObject) -> Any:
    return lambda below: data.draw(st.integers(0, below - 1))


TestPipeline = Pipeline.TestCase
TestPipeline.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_whatever_happens_every_alert_comes_once_and_nothing_is_lost() -> None:
    counts: Counter[str] = Counter()
    with simulation():
        for number in range(800):
            outcome = run_random(f"suite {number}")
            if outcome.failure is not None:
                pytest.fail(f"schedule {number}, made small:\n{told(shrink(outcome.happenings))}")
            counts += outcome.counts
    for what in (
        *ACTIONS,
        "zombies",
        "commits refused",
        "alerts",
        "windows written again",
        "predictions published again",
    ):
        assert counts[what] > 3, f"{what} hardly ever happened, so nothing is known of it: {counts}"


def test_a_schedule_can_be_repeated() -> None:
    with simulation():
        outcome = run_random("again")
        assert run_again(outcome.happenings).counts == outcome.counts


@pytest.mark.parametrize("what", MUTATIONS)
def test_the_simulation_finds_it_when(what: str) -> None:
    with simulation():
        for number in range(3000):
            if run_random(f"m {number}", MUTATIONS[what]).failure is not None:
                return
    pytest.fail("nothing was found in 3000 schedules")


def test_a_failure_is_made_small() -> None:
    world = MUTATIONS["frames are committed as soon as they are read"]
    with simulation():
        failed = next(
            outcome for number in range(100) if (outcome := run_random(f"small {number}", world)).failure is not None
        )
        small = shrink(failed.happenings, world)
    assert small.failure is not None
    assert len(small.happenings) <= 8, told(small)


def test_a_worker_goes_on_though_partitions_go_while_redis_is_slow() -> None:
    number, sensors = next(
        (number, sensors)
        for number in range(PLANTS)
        if len(sensors := plant(number).sensors) > 1 and all(len(sensor.windows) > 1 for sensor in sensors)
    )
    with simulation():
        world = World(lambda below: {PLANTS: number, 6: 3}.get(below, 0))  # batches of four
        [worker] = world.workers
        log = world.windows
        log._on_append = world.predictions._on_append = None
        for sensor, windows in ((sensors[0], 1), (sensors[1], 1), (sensors[0], 2)):
            log.append(0, sensor.key, sensor.windows[windows - 1].value)
        world.store.on_change = world.worker_group._on_commit = lambda *_: None  # type: ignore[assignment, return-value]
        worker.fetch(0, 1)
        worker.fetch(None, 0)
        worker.finish()
        assert world.worker_group.committed == [1]
        worker.fetch(0, 2)
        worker.fetch(None, 0)
        assert worker.redis.calls, "the second sensor's state is asked for"
        worker.revoked(in_time=False, keeps_buffer=False)
        worker.finish()
        held = world.store.hashes[f"{PREFIX}:sensor:{sensors[0].name}".encode()]
        assert held[b"windows_position"] + held[b"hits_position"] == sensors[0].windows[1].position


@pytest.mark.parametrize("what", HARMLESS)
def test_the_promise_does_not_stand_on_it_that_(what: str) -> None:
    with simulation():
        for number in range(100):
            outcome = run_random(f"harmless {number}", HARMLESS[what])
            assert outcome.failure is None, told(outcome)
