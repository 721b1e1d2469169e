"""`aewatch` subcommands as child processes: started with settings of their own, watched, ended with SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.local_stack.keeper import die_with_parent


class ProcessError(RuntimeError):
    """A child process ended or stayed silent when it should not have; the message shows the end of its log."""


@dataclass(slots=True)
class Child:
    """One running subcommand; its log, JSON lines, is in `log`."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def said(self, message: str) -> bool:
        """Whether it has logged this message."""
        for line in self.log.read_text(errors="replace").splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and event.get("message") == message:
                return True
        return False

    def check(self) -> None:
        """Raise `ProcessError` if it has ended with an error."""
        if self.process.poll() not in (None, 0):
            raise ProcessError(f"{self.name} ended with status {self.process.returncode}:\n{self.tail()}")

    def terminate(self) -> None:
        """SIGTERM, if it is still there."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def wait(self, within_s: float) -> int:
        """Exit status; killed, and `ProcessError`, if it takes longer."""
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise ProcessError(f"{self.name} did not end within {within_s:g} s:\n{self.tail()}") from None


@dataclass(slots=True)
class Children:
    """Child processes that share settings and a log folder, and end with this one, however it ends."""

    logs: Path
    variables: Mapping[str, str]  #: AEWATCH_… settings for all of them
    started: list[Child] = field(default_factory=list)

    def start(self, name: str, arguments: Sequence[str]) -> Child:
        """Start `aewatch ARGUMENTS…`; what it prints goes to `<logs>/<name>.log`."""
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{name}.log"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("AEWATCH_")}
        # Theirs alone: a settings file that lies about must not reach them.
        environment |= {"AEWATCH_CONFIG": "", "AEWATCH_LOG__FORMAT": "json", **self.variables}
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "deploy.cli", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
        child = Child(name, process, log)
        self.started.append(child)
        return child

    def await_message(self, children: Sequence[Child], message: str, within_s: float) -> None:
        """Wait until each of them has logged `message`.

        Raises
        ------
        ProcessError
            If one ends before, or it takes too long.
        """
        deadline = time.monotonic() + within_s
        waiting = list(children)
        while waiting:
            waiting = [child for child in waiting if not child.said(message)]
            for child in waiting:
                if child.process.poll() is not None:
                    raise ProcessError(f"{child.name} ended with {child.process.returncode}:\n{child.tail()}")
                if time.monotonic() > deadline:
                    raise ProcessError(f"{child.name} was not {message} within {within_s:g} s:\n{child.tail()}")
            time.sleep(0.05)

    def end(self, within_s: float = 20.0) -> dict[str, int]:
        """SIGTERM to all that still run; exit status by name."""
        for child in self.started:
            child.terminate()
        return {child.name: child.wait(within_s) for child in self.started}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self.started:
            if child.process.poll() is None:
                child.process.kill()
                child.process.wait()
