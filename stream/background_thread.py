"""A thread for work that is never urgent, in a process that has urgent work as well."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

#: Of a core that two threads want, one with this many steps less priority gets about a tenth.
STEPS_BACK = 10


def background_thread(name: str) -> ThreadPoolExecutor:
    """One thread. On Linux it, and every thread that begins in it, gives way to the rest of the process."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix=name, initializer=_step_back)


def _step_back() -> None:
    # Elsewhere a priority belongs to the whole process, and the urgent threads would step back with this one.
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), STEPS_BACK)
