"""Keys from the terminal, one by one and without Enter, while something runs; the terminal is as before afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from enum import Enum


class Key(Enum):
    """What a key means."""

    PAUSE = "pause"
    STEP = "step"
    FASTER = "faster"
    SLOWER = "slower"
    QUIT = "quit"


HELP = "keys: space pause/go on, s or → next frame while paused, + or ↑ faster, - or ↓ slower, q quit"

KEYS = {b" ": Key.PAUSE, b"s": Key.STEP, b"+": Key.FASTER, b"=": Key.FASTER, b"-": Key.SLOWER, b"q": Key.QUIT}
# Arrows come as ESC [ or, in a terminal's application mode, as ESC O, and a letter.
ARROWS = {b"A": Key.FASTER, b"B": Key.SLOWER, b"C": Key.STEP}
SEQUENCE_STARTS = (b"\x1b[", b"\x1bO")
LONGEST_SEQUENCE = 16


def parse_keys(typed: bytes) -> tuple[list[Key], bytes]:
    """The keys in `typed`, without those that mean nothing; and what may be the beginning of a longer sequence."""
    found: list[Key] = []
    at = 0
    while at < len(typed):
        if typed[at : at + 1] != b"\x1b":
            if key := KEYS.get(typed[at : at + 1].lower()):
                found.append(key)
            at += 1
            continue
        start = typed[at : at + 2]
        if len(start) < 2:
            return found, typed[at:]
        if start not in SEQUENCE_STARTS:
            at += 1
            continue
        # Parameters, then one byte from @ to ~ that ends the sequence; one that does not end is none.
        end = next((i for i in range(at + 2, len(typed)) if 0x40 <= typed[i] <= 0x7E), None)
        if end is None:
            left = typed[at:]
            return found, left if len(left) < LONGEST_SEQUENCE else b""
        if end == at + 2 and (key := ARROWS.get(typed[end : end + 1])):
            found.append(key)
        at = end + 1
    return found, b""


@contextlib.contextmanager
def terminal_keys(on_key: Callable[[Key], None]) -> Iterator[None]:
    """Call `on_key` in the running event loop for each key, while the block runs; without keys nothing is touched."""
    terminal = _terminal()
    if terminal is None:
        yield
        return
    import termios
    import tty

    loop = asyncio.get_running_loop()
    before = termios.tcgetattr(terminal)
    pending = b""

    def read() -> None:
        nonlocal pending
        if not _in_foreground(terminal):
            loop.remove_reader(terminal)  # `continued` takes it up again
            return
        try:
            typed = os.read(terminal, 1024)
        except OSError:
            typed = b""
        if not typed:
            loop.remove_reader(terminal)  # the terminal is gone
            return
        keys, pending = parse_keys(pending + typed)
        for key in keys:
            on_key(key)

    def continued() -> None:
        """After Ctrl-Z and `fg` the terminal is the shell's no more."""
        if _in_foreground(terminal):
            tty.setcbreak(terminal, termios.TCSANOW)
            loop.add_reader(terminal, read)

    # Not raw: Ctrl-C and Ctrl-Z must stay what they are.
    tty.setcbreak(terminal, termios.TCSANOW)
    try:
        loop.add_reader(terminal, read)
        loop.add_signal_handler(signal.SIGCONT, continued)
        yield
    finally:
        loop.remove_signal_handler(signal.SIGCONT)
        loop.remove_reader(terminal)
        with contextlib.suppress(termios.error):
            if _in_foreground(terminal):
                termios.tcsetattr(terminal, termios.TCSANOW, before)


def there_are_keys() -> bool:
    """Whether somebody can type: standard input is a terminal, and this process in its foreground."""
    return _terminal() is not None


def _terminal() -> int | None:
    try:
        number = sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):
        return None  # closed, or none at all
    # A background process that reads from its terminal is stopped by the kernel.
    return number if os.isatty(number) and _in_foreground(number) else None


def _in_foreground(terminal: int) -> bool:
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False  # not the terminal of this process
