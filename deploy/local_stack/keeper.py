"""Keeps one server process: starts it, stops it cleanly, and sees to it that it does not outlive its owner.

Run as `python keeper.py PLAN FOLDER` with the standard library only, where PLAN is the JSON of `Plan`; the folder is
named once more so that anybody can tell from the command line whose keeper it is. There are two kinds:

- *owned*: the server stops as soon as the owner closes its end of a pipe or is gone, however it went.
- *detached*: the server runs until the keeper gets SIGTERM.

On Linux the kernel also kills the server if the keeper itself is killed. The keeper and its server hold one lock on
the service's folder, so the folder is in use exactly as long as either of them lives: nothing to be mistaken about
after a crash or a power cut, whatever became of process ids.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

EXIT_IN_USE = 75
LOCK_PATIENCE_S = 1.0  # somebody who only looks whether the lock is held holds it for a moment
OWNER_CHECK_S = 1.0
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run, and for how long."""

    command: list[str]
    folder: str  #: holds `lock` and `state.json`
    log: str
    grace_s: float  #: after SIGTERM, before SIGKILL
    token: str  #: goes into `state.json`, so that the owner knows this server from another one
    info: dict[str, str | int]  #: goes into `state.json` too
    owner_pid: int | None = None  #: None: detached
    owner_pipe: int | None = None  #: read end; end of file means that the owner is gone
    keep: tuple[str, str] | None = None  #: a file the server writes as it ends, and its name once it is complete


def take_lock(path: Path) -> int | None:
    """A file descriptor that holds the lock, or None if somebody else does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    give_up = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up:
                os.close(descriptor)
                return None
            time.sleep(0.02)
        else:
            return descriptor


def die_with_parent() -> Callable[[], None] | None:
    """What a new child has to call so that the kernel kills it with its parent; None where the kernel cannot."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def arrange() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return arrange


def write_state(path: Path, state: dict[str, object]) -> None:
    """Replace the state file in one step."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(state))
    os.replace(partial, path)


def watch(server: subprocess.Popen[bytes], plan: Plan, woken: int, told_to_stop: Callable[[], bool]) -> bool:
    """Wait until the server ends (False) or ought to (True)."""
    with selectors.DefaultSelector() as selector:
        selector.register(woken, selectors.EVENT_READ)
        if plan.owner_pipe is not None:
            selector.register(plan.owner_pipe, selectors.EVENT_READ)
        while server.poll() is None:
            # A process forked by the owner may hold the pipe open after the owner's death, hence the look at its id.
            if told_to_stop() or (plan.owner_pid is not None and os.getppid() != plan.owner_pid):
                return True
            for key, _ in selector.select(OWNER_CHECK_S if plan.owner_pid is not None else None):
                if key.fd == plan.owner_pipe:
                    return True
                with contextlib.suppress(BlockingIOError):
                    os.read(woken, 512)
    return False


def stop(server: subprocess.Popen[bytes], grace_s: float) -> bool:
    """SIGTERM, and SIGKILL to the whole process group for what is left after the grace period; was that enough?"""
    server.terminate()
    in_time = True
    try:
        server.wait(grace_s)
    except subprocess.TimeoutExpired:
        in_time = False
        print(f"aewatch: did not stop within {grace_s:g} s of SIGTERM, killed", flush=True)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    return in_time


def keep_finished_file(keep: tuple[str, str] | None, *, stopped: bool, in_time: bool) -> None:
    """Give a file that the server wrote while stopping its final name, or remove what is left of it.

    A server that was stopped but did not get it done in time leaves an empty file under the final name: not again.
    """
    if keep is None:
        return
    written, final = map(Path, keep)
    if stopped and in_time and written.exists():
        os.replace(written, final)
        return
    written.unlink(missing_ok=True)
    if stopped and not in_time:
        final.touch()


def run(plan: Plan) -> int:
    """Run the server to its end."""
    if plan.owner_pid is None and os.fork() > 0:
        os._exit(0)
    folder = Path(plan.folder)
    log = os.open(plan.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    lock = take_lock(folder / "lock")
    if lock is None:
        return EXIT_IN_USE

    stop_asked = False

    def note_stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stop_asked
        stop_asked = True

    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGTERM, note_stop)
    # Handlers, unlike ignored signals, are not inherited by the server.
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(ignored, lambda _signal, _frame: None)

    try:
        server = subprocess.Popen(
            plan.command,
            stdin=subprocess.DEVNULL,
            pass_fds=(lock,),
            process_group=0,
            preexec_fn=die_with_parent(),
        )
    except OSError as error:
        print(f"aewatch: cannot run {plan.command[0]}: {error}", flush=True)
        return 1
    write_state(
        folder / "state.json",
        {
            "keeper": os.getpid(),
            "process": server.pid,
            "started": time.time(),
            "token": plan.token,
            "info": plan.info,
        },
    )
    stopped = watch(server, plan, woken, lambda: stop_asked)
    in_time = stopped and stop(server, plan.grace_s)
    if not stopped:
        print(f"aewatch: ended by itself with status {server.returncode}", flush=True)
    keep_finished_file(plan.keep, stopped=stopped, in_time=in_time)
    (folder / "state.json").unlink(missing_ok=True)
    return 0 if stopped else 1


def arguments(plan: Plan) -> list[str]:
    """What follows `python` on the keeper's command line."""
    return [__file__, json.dumps(asdict(plan)), plan.folder]


if __name__ == "__main__":
    sys.exit(run(Plan(**json.loads(sys.argv[1]))))
