"""Schedules: which things happen to a world, in which order. Drawn from a seed, run, repeated and made small."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.simulation.members import real_world_replaced
from tests.simulation.world import ACTIONS, World

#: One thing that happens: its name in `ACTIONS` (or "begin", "settle"), and what was chosen about it.
Happening = tuple[str, tuple[int, ...]]

NAMES = list(ACTIONS)
CUMULATIVE = [sum(list(ACTIONS.values())[: number + 1]) for number in range(len(ACTIONS))]
SHORTEST, LONGEST = 15, 50


@dataclass(slots=True)
class Outcome:
    """What became of a schedule."""

    happenings: list[Happening]
    counts: Counter[str]
    failure: Exception | None = None


@dataclass(slots=True)
class _Choices:
    """Gives the numbers written down, then the plainest, and writes down what it gave."""

    written: Sequence[int] = ()
    given: list[int] = field(default_factory=list)

    def __call__(self, below: int) -> int:
        number = self.written[len(self.given)] % below if len(self.given) < len(self.written) else 0
        self.given.append(number)
        return number


class _Drawn:
    """Draws the numbers and writes them down."""

    def __init__(self, random_: random.Random) -> None:
        self._random = random_.random
        self.given: list[int] = []

    def __call__(self, below: int) -> int:
        number = int(self._random() * below)
        self.given.append(number)
        return number


@contextmanager
def simulation() -> Iterator[None]:
    """All schedules run in here: without the real clock, the real network, and without logging."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with real_world_replaced():
            yield
    finally:
        logging.disable(before)


def run_random(seed: str, world_class: type[World] = World) -> Outcome:
    """One schedule drawn from a seed."""
    random_ = random.Random(seed)
    happenings: list[Happening] = []
    world: World | None = None
    names = ["begin", *random_.choices(NAMES, cum_weights=CUMULATIVE, k=random_.randint(SHORTEST, LONGEST)), "settle"]
    for name in names:
        choose = _Drawn(random_)
        try:
            world = _happen(world, name, choose, world_class)
        except Exception as failure:
            return Outcome([*happenings, (name, tuple(choose.given))], _counts(world), failure)
        happenings.append((name, tuple(choose.given)))
    return Outcome(happenings, _counts(world))


def run_again(happenings: Sequence[Happening], world_class: type[World] = World) -> Outcome:
    """A schedule as it was written down; what cannot happen any more does not."""
    world: World | None = None
    done: list[Happening] = []
    for name, written in happenings:
        choose = _Choices(written)
        try:
            world = _happen(world, name, choose, world_class)
        except Exception as failure:
            return Outcome([*done, (name, tuple(choose.given))], _counts(world), failure)
        done.append((name, tuple(choose.given)))
    return Outcome(done, _counts(world))


def _happen(world: World | None, name: str, choose: Callable[[int], int], world_class: type[World]) -> World:
    if world is None:
        return world_class(choose)
    if name == "settle":
        world.settle(choose)
    else:
        world.act(name, choose)
    return world


def _counts(world: World | None) -> Counter[str]:
    return Counter() if world is None else world.counts


def shrink(happenings: Sequence[Happening], world_class: type[World] = World, most_runs: int = 1500) -> Outcome:
    """The smallest schedule found that fails too: without what is not needed, and with the plainest choices."""
    best = run_again(happenings, world_class)
    assert best.failure is not None, "the schedule does not fail when it is repeated"
    runs = 0

    def still_fails(tried: list[Happening]) -> bool:
        nonlocal best, runs
        runs += 1
        outcome = run_again(tried, world_class)
        if runs > most_runs or type(outcome.failure) is not type(best.failure):
            return False
        best = outcome
        return True

    size = len(best.happenings) // 2
    while size and runs < most_runs:
        end = len(best.happenings)
        while end > 1:
            begin = max(1, end - size)
            still_fails(_whole([*best.happenings[:begin], *best.happenings[end:]]))
            end = begin
        size //= 2
    for at in range(len(best.happenings)):
        place = 0
        while at < len(best.happenings) and place < len(best.happenings[at][1]) and runs < most_runs:
            name, given = best.happenings[at]
            for less in dict.fromkeys((0, given[place] // 2, given[place] - 1)):
                if 0 <= less < given[place]:
                    plainer = (name, (*given[:place], less, *given[place + 1 :]))
                    if still_fails(_whole([*best.happenings[:at], plainer, *best.happenings[at + 1 :]])):
                        break
            place += 1
    return best


def _whole(happenings: list[Happening]) -> list[Happening]:
    """With an end, where the end was cut off or never reached."""
    return happenings if happenings[-1][0] == "settle" else [*happenings, ("settle", ())]


def told(outcome: Outcome) -> str:
    """A failed schedule for people, one happening a line."""
    lines = [f"{name}{given}" if given else name for name, given in outcome.happenings]
    return "\n".join([*lines, f"{type(outcome.failure).__name__}: {outcome.failure}"])
