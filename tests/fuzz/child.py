"""One target under atheris, which ends its process; what it did is in a file by then.

Arguments: target, file for the report, executions, then libFuzzer's.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import atheris

SLOWEST_S = 2.0  #: of this process' own time; an input that takes longer hangs

OURS = ["stream", "deploy", "producers"]

with atheris.instrument_imports(include=OURS):
    from tests.fuzz.targets import TARGETS


def rss_mb() -> float:
    """Resident now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


class Counted:
    """The target, counted and timed."""

    def __init__(self, name: str, report: Path, executions: int) -> None:
        self._run = TARGETS[name].run
        self._report = report
        self._executions = executions
        self._count = 0
        self._slowest_s = 0.0
        self._rss_first_mb = 0.0
        self._began_s = time.monotonic()

    def __call__(self, data: bytes) -> None:
        began_s = time.thread_time()
        self._run(data)
        took_s = time.thread_time() - began_s
        self._count += 1
        # The first ones load what is loaded once.
        if took_s > self._slowest_s and self._count > 100:
            self._slowest_s = took_s
            assert took_s < SLOWEST_S, f"an input took {took_s:.1f} s"
        if self._count == max(1, self._executions // 10):
            self._rss_first_mb = rss_mb()
        if self._count % max(1, self._executions // 100) == 0:
            self._write()

    def _write(self) -> None:
        report = {
            "executions": self._count,
            "seconds": round(time.monotonic() - self._began_s, 1),
            "rss_first_mb": round(self._rss_first_mb, 1),
            "rss_last_mb": round(rss_mb(), 1),
            "rss_peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            "slowest_s": round(self._slowest_s, 4),
        }
        self._report.write_text(json.dumps(report))


def main() -> None:
    name, report, executions, *options = sys.argv[1:]
    with atheris.instrument_imports(include=OURS):
        TARGETS[name].run(TARGETS[name].seeds()[0])  # what is imported late is instrumented, too
    for number, seed in enumerate(TARGETS[name].seeds()):
        Path(options[-1], f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *options], Counted(name, Path(report), int(executions)))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
