"""Ctrl-C and SIGTERM during a training: noted, and acted upon between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class TrainingInterruptedError(RuntimeError):
    """Training was told to stop, and saved where it stood."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class Interruption:
    """While it is entered, SIGINT and SIGTERM only leave their number in `signal_number`; 0 as long as there was none.

    A second Ctrl-C ends the program at once, unless several processes train together: their launcher passes on what the
    terminal has sent to each already. Outside of the main thread, which alone may handle signals, nothing is noted.
    """

    def __init__(self, *, alone: bool) -> None:
        self.signal_number = 0
        self._alone = alone
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number and number == signal.SIGINT and self._alone:
            raise KeyboardInterrupt
        self.signal_number = number
