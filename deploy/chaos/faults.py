"""What is broken, when, and for how long: a plan drawn from a seed. Pure."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """Whose processes or connections a fault is about."""

    AGENT = "agent"
    WORKER = "worker"
    PRODUCER = "producer"
    SUBSCRIBER = "subscriber"
    KAFKA = "kafka"
    REDIS = "redis"


class Act(StrEnum):
    """What is done to it."""

    KILL = "kill"  #: SIGKILL; a supervisor starts it again
    FREEZE = "freeze"  #: SIGSTOP for longer than its group waits, then SIGCONT: it comes back as a zombie
    ADD = "add"  #: one more of them
    REMOVE = "remove"  #: SIGTERM, and it is not started again
    CLOCK = "clock"  #: killed, and started again with its clock off by minutes or days
    RESTART = "restart"  #: a server, in order
    SLOW = "slow"  #: its connections: late and narrow
    CUT = "cut"  #: nothing comes through, and nobody is told
    RESET = "reset"  #: every connection is reset
    SWAP = "swap"  #: another model
    POISON = "poison"  #: messages that are none, among the others


#: Kafka's and Redis' connections are those of the role on the left.
KINDS: tuple[tuple[Act, Role], ...] = (
    *((Act.KILL, role) for role in Role),
    *((act, role) for act in (Act.FREEZE, Act.CLOCK) for role in (Role.AGENT, Role.WORKER, Role.PRODUCER)),
    *((act, role) for act in (Act.ADD, Act.REMOVE) for role in (Role.AGENT, Role.WORKER)),
    (Act.RESTART, Role.KAFKA),
    (Act.RESTART, Role.REDIS),
    *(
        (act, role)
        for act in (Act.SLOW, Act.CUT, Act.RESET)
        for role in (Role.AGENT, Role.WORKER, Role.PRODUCER, Role.REDIS)
    ),
    (Act.SWAP, Role.WORKER),
    (Act.POISON, Role.KAFKA),
)

#: What can be done to somebody else's cluster without touching its servers or the way to them.
PROCESS_KINDS = tuple(
    (act, role)
    for act, role in KINDS
    if act not in (Act.RESTART, Act.SLOW, Act.CUT, Act.RESET) and (act is Act.POISON or role is not Role.KAFKA)
    if (act, role) != (Act.KILL, Role.REDIS)
)

#: s. A frozen member must outlast its group's session timeout (agents 6 s, workers 10 s) to come back as a zombie.
LASTS_S: dict[tuple[Act, Role], float] = {
    (Act.FREEZE, Role.AGENT): 9.0,
    (Act.FREEZE, Role.WORKER): 13.0,
    (Act.FREEZE, Role.PRODUCER): 8.0,
    (Act.SLOW, Role.AGENT): 8.0,
    (Act.SLOW, Role.WORKER): 8.0,
    (Act.SLOW, Role.PRODUCER): 8.0,
    (Act.SLOW, Role.REDIS): 8.0,
    (Act.CUT, Role.AGENT): 8.0,
    (Act.CUT, Role.WORKER): 12.0,
    (Act.CUT, Role.PRODUCER): 8.0,
    (Act.CUT, Role.REDIS): 30.0,
}
CLOCKS_OFF_S = (-86_400.0 * 3, -3_600.0, -30.0, 45.0, 7_200.0, 86_400.0 * 2)
TOGETHER = 0.25  #: share of faults that come at the moment of the one before


@dataclass(frozen=True, slots=True)
class Fault:
    """One of the plan. `choice` in [0, 1) says which of several processes it meets."""

    at_s: float
    act: Act
    role: Role
    lasts_s: float = 0.0
    choice: float = 0.0
    clock_off_s: float = 0.0

    @property
    def kind(self) -> str:
        """As the tables say it."""
        return f"{self.act} {self.role}"


def draw_plan(
    seed: int,
    duration_s: float,
    count: int,
    kinds: Sequence[tuple[Act, Role]] = KINDS,
    first_s: float = 2.0,
) -> tuple[Fault, ...]:
    """`count` faults within `duration_s`, in order of time; the same for the same arguments, on any machine.

    Every kind comes once before any comes again, in a shuffled order. Some come at the moment of the one before;
    others while it lasts, as they are not far apart.

    Raises
    ------
    ValueError
        If there is no kind to choose from, or no time.
    """
    if not kinds or duration_s <= first_s:
        raise ValueError(f"{len(kinds)} kinds of faults within {duration_s:g} s; give at least one, and time for it")
    draw = random.Random(seed)
    chosen: list[tuple[Act, Role]] = []
    while len(chosen) < count:
        chosen += draw.sample(list(kinds), len(kinds))
    moments: list[float] = []
    for at_s in sorted(draw.uniform(first_s, duration_s) for _ in range(count)):
        moments.append(moments[-1] if moments and draw.random() < TOGETHER else at_s)
    return tuple(
        Fault(
            at_s=round(at_s, 2),
            act=act,
            role=role,
            lasts_s=LASTS_S.get((act, role), 0.0),
            choice=draw.random(),
            clock_off_s=draw.choice(CLOCKS_OFF_S) if act is Act.CLOCK else 0.0,
        )
        for at_s, (act, role) in zip(moments, chosen[:count], strict=True)
    )


def kinds_named(names: Collection[str]) -> tuple[tuple[Act, Role], ...]:
    """The kinds with these names ("kill worker").

    Raises
    ------
    ValueError
        Naming one that there is not, and those that there are.
    """
    known = {f"{act} {role}": (act, role) for act, role in KINDS}
    for name in names:
        if name not in known:
            raise ValueError(f"no fault {name!r}; there are {', '.join(known)}")
    return tuple(known[name] for name in names)
