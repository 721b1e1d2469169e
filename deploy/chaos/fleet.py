"""The processes of a pipeline under attack, and a supervisor that starts again whatever ends, as systemd would."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from deploy.chaos.faults import Role
from deploy.local_stack.keeper import die_with_parent

RESTART_S = 0.5  #: before a process that ended is started again
STOP_S = 25.0


@dataclass(slots=True)
class Member:
    """One process that shall run, through all its lives."""

    role: Role
    name: str
    arguments: Callable[[], Sequence[str]]  #: of the life that begins now
    module: str = "deploy.cli"
    once: bool = False  #: its work ends some day; else it runs for ever
    clock_off_s: float = 0.0
    process: subprocess.Popen[bytes] | None = None
    frozen: bool = False
    leaving: bool = False  #: asked to stop, and not wanted any more
    done: bool = False
    ended_s: float = 0.0  #: when it was last seen to have ended
    lives: int = 0
    peak_rss: int = 0

    @property
    def running(self) -> bool:
        """Whether there is a process, frozen or not."""
        return self.process is not None and self.process.poll() is None


@dataclass(slots=True)
class Fleet:
    """All members. `look` has to be called often, from the thread that made it, which must outlive them."""

    logs: Path
    variables: Mapping[Role, Mapping[str, str]]  #: AEWATCH_… settings by role
    members: list[Member] = field(default_factory=list)
    unasked: list[str] = field(default_factory=list)  #: processes that ended by themselves, and how
    restarts: Counter[Role] = field(default_factory=Counter)

    def add(
        self,
        role: Role,
        arguments: Callable[[], Sequence[str]],
        *,
        module: str = "deploy.cli",
        once: bool = False,
        clock_off_s: float = 0.0,
    ) -> Member:
        """One more, started now."""
        number = sum(member.role is role for member in self.members)
        member = Member(role, f"{role}-{number}", arguments, module, once, clock_off_s)
        self.members.append(member)
        self._start(member)
        return member

    def of(self, role: Role) -> list[Member]:
        """Those that run and can be broken: not frozen, not leaving."""
        return [one for one in self.members if one.role is role and one.running and not (one.frozen or one.leaving)]

    def chosen(self, role: Role, choice: float) -> Member | None:
        """The one that `choice` in [0, 1) falls on; None where none can be broken."""
        there = self.of(role)
        return there[int(choice * len(there))] if there else None

    def kill(self, member: Member) -> None:
        """SIGKILL; `look` starts it again."""
        if member.process is not None:
            member.process.kill()
            member.process.wait()

    def freeze(self, member: Member) -> None:
        """SIGSTOP."""
        self._signal(member, signal.SIGSTOP)
        member.frozen = True

    def thaw(self, member: Member) -> None:
        """SIGCONT."""
        self._signal(member, signal.SIGCONT)
        member.frozen = False

    def remove(self, member: Member) -> None:
        """SIGTERM, and it is not started again."""
        member.leaving = True
        self._signal(member, signal.SIGTERM)

    def look(self) -> None:
        """Start again what ended, and note what it costs."""
        for member in self.members:
            process = member.process
            if process is None:
                continue
            status = process.poll()
            if status is None:
                self._measure(member)
                continue
            if member.leaving or (member.once and status == 0):
                member.done = True
            if member.done:
                continue
            if member.ended_s == 0.0:
                member.ended_s = time.monotonic()
                member.frozen = False
                if status != -signal.SIGKILL:
                    self.unasked.append(f"{member.name} ended with status {status}: {self.last_words(member)}")
            elif time.monotonic() - member.ended_s >= RESTART_S:
                self.restarts[member.role] += 1
                self._start(member)

    def end(self) -> None:
        """SIGTERM to all, then SIGKILL."""
        for member in self.members:
            if member.frozen:
                self.thaw(member)
            member.leaving = True
            self._signal(member, signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        for member in self.members:
            if member.process is None:
                continue
            try:
                member.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                member.process.kill()
                member.process.wait()

    def last_words(self, member: Member) -> str:
        """The last line of its log that is not asyncio's about what was left open."""
        lines = (self.logs / f"{member.name}.log").read_text(errors="replace").splitlines()
        return next((line[:400] for line in reversed(lines) if '"logger": "asyncio"' not in line), "")

    def _start(self, member: Member) -> None:
        self.logs.mkdir(parents=True, exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("AEWATCH_")}
        environment |= {"AEWATCH_CONFIG": "", "AEWATCH_LOG__FORMAT": "json", **self.variables[member.role]}
        module = [member.module]
        if member.clock_off_s:
            assert member.module == "deploy.cli"
            module = ["deploy.chaos.skewed_clock", str(member.clock_off_s)]
        with (self.logs / f"{member.name}.log").open("ab") as output:
            member.process = subprocess.Popen(
                [sys.executable, "-m", *module, *member.arguments()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
        member.ended_s = 0.0
        member.lives += 1

    def _signal(self, member: Member, number: signal.Signals) -> None:
        if member.running and member.process is not None:
            member.process.send_signal(number)

    def _measure(self, member: Member) -> None:
        assert member.process is not None
        with contextlib.suppress(psutil.Error):
            member.peak_rss = max(member.peak_rss, psutil.Process(member.process.pid).memory_info().rss)
