"""`aewatch` with its clock off: `python -m deploy.chaos.skewed_clock SECONDS SUBCOMMAND …`.

What Python programs ask for the time of day is off by so much; the clocks that only measure durations are not, as on
a machine whose time was set wrong. Time stamps that compiled code takes by itself stay right.
"""

from __future__ import annotations

import sys
import time


def set_off(seconds: float) -> None:
    """Put the time of day of this process off."""
    time_s, time_ns, localtime, gmtime = time.time, time.time_ns, time.localtime, time.gmtime
    off_ns = round(seconds * 1e9)
    time.time = lambda: time_s() + seconds
    time.time_ns = lambda: time_ns() + off_ns
    time.localtime = lambda when=None: localtime(time.time() if when is None else when)
    time.gmtime = lambda when=None: gmtime(time.time() if when is None else when)


if __name__ == "__main__":
    set_off(float(sys.argv[1]))
    from deploy.cli import main

    main(sys.argv[2:])
