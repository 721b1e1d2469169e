"""One server process of the local stack as its owner sees it: start, look, stop, kill."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from deploy.local_stack import keeper

_STOP_MARGIN_S = 5.0
_LOG_TAIL_LINES = 15


class StackError(RuntimeError):
    """The local stack could not do what it was asked to; the message says what, and the way out."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server that runs now."""

    keeper_pid: int
    pid: int
    started_s: float  #: seconds since 1970
    token: str
    info: dict[str, str | int]


class Service:
    """A server that owns a folder; only one at a time can.

    Parameters
    ----------
    name
        What people call it.
    folder
        Its own, for its lock and state.
    log
        File that its output is appended to.
    grace_s
        How long it may take to stop by itself, seconds.
    """

    def __init__(self, name: str, folder: Path, log: Path, grace_s: float) -> None:
        self.name = name
        self.folder = folder
        self.log = log
        self.grace_s = grace_s
        self._keeper: subprocess.Popen[bytes] | None = None
        self._pipe: int | None = None

    def start(
        self,
        command: list[str],
        *,
        owned: bool,
        info: dict[str, str | int],
        keep: tuple[Path, Path] | None = None,
    ) -> Running:
        """Start it and return as soon as the process exists.

        Parameters
        ----------
        command
            Full command line; the path of the folder has to be in it.
        owned
            True: it dies with this process. False: it stays until somebody stops it.
        info
            Small facts for others to read, such as the port.
        keep
            A file that the server writes while it stops, and the name it gets when complete.

        Raises
        ------
        StackError
            If it is running already, or cannot be started.
        """
        if self.in_use():
            raise self._taken()
        self._release()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        reading, writing = os.pipe() if owned else (None, None)
        plan = keeper.Plan(
            command=command,
            folder=str(self.folder),
            log=str(self.log),
            grace_s=self.grace_s,
            token=secrets.token_hex(8),
            info=info,
            owner_pid=os.getpid() if owned else None,
            owner_pipe=reading,
            keep=(str(keep[0]), str(keep[1])) if keep else None,
        )
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", *keeper.arguments(plan)],
            stdin=subprocess.DEVNULL,
            pass_fds=() if reading is None else (reading,),
            start_new_session=True,
            cwd="/",
        )
        self._pipe = writing
        if reading is not None:
            os.close(reading)
        else:
            self._keeper.wait()  # it has left a child of its own behind
        give_up = time.monotonic() + 10
        while (running := self.running()) is None or running.token != plan.token:
            if (owned and self._keeper.poll() is not None) or time.monotonic() > give_up:
                self._release()
                if self.in_use():
                    raise self._taken()
                raise StackError(f"{self.name} did not start:\n{self.log_tail()}")
            time.sleep(0.01)
        return running

    def in_use(self) -> bool:
        """Whether a process, this one's or another's, runs on the folder."""
        try:
            descriptor = os.open(self.folder / "lock", os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def settled(self) -> Running | None:
        """`running()`, after giving a keeper whose server has just died the time to clear up."""
        give_up = time.monotonic() + _STOP_MARGIN_S
        while (running := self.running()) is None and self.in_use() and time.monotonic() < give_up:
            time.sleep(0.02)
        return running

    def running(self) -> Running | None:
        """What runs on the folder now; None for a state file that a crash left behind."""
        try:
            state = json.loads((self.folder / "state.json").read_text())
        except (FileNotFoundError, ValueError):
            return None
        found = Running(state["keeper"], state["process"], state["started"], state["token"], state["info"])
        return found if self._is_ours(found.pid) and self.in_use() else None

    def stop(self) -> bool:
        """Stop it whoever started it; False if there was nothing to stop."""
        running = self.running()
        was_in_use = self.in_use()
        if running is not None and self._is_ours(running.keeper_pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.keeper_pid, signal.SIGTERM)
        elif running is not None:
            # Its keeper was killed and the kernel did not see to it (not Linux).
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.pid, signal.SIGTERM)
        self._close_pipe()
        if not self._wait_until_unused(self.grace_s + _STOP_MARGIN_S):
            self.kill()
        self._release()
        return was_in_use

    def kill(self) -> None:
        """SIGKILL, as a crash or the out-of-memory killer would."""
        running = self.running()
        if running is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.pid, signal.SIGKILL)
        if not self._wait_until_unused(_STOP_MARGIN_S):
            raise StackError(f"{self.name}: process {running.pid if running else '?'} does not end")
        self._release()

    def log_tail(self) -> str:
        """The last lines of the log, and where the rest is."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        except FileNotFoundError:
            lines = []
        return "\n".join([*lines, f"({self.log})"])

    def _taken(self) -> StackError:
        return StackError(f"{self.folder}: another {self.name} is running on this folder")

    def _is_ours(self, pid: int) -> bool:
        """Whether that process works on our folder: its id may have gone to somebody else."""
        import psutil

        try:
            return any(str(self.folder) in argument for argument in psutil.Process(pid).cmdline())
        except psutil.Error:
            return False

    def _wait_until_unused(self, patience_s: float) -> bool:
        give_up = time.monotonic() + patience_s
        while self.in_use():
            if self._keeper is not None:
                self._keeper.poll()
            if time.monotonic() > give_up:
                return False
            time.sleep(0.02)
        return True

    def _close_pipe(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None

    def _release(self) -> None:
        self._close_pipe()
        if self._keeper is not None:
            self._keeper.wait()
            self._keeper = None
