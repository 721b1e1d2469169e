"""`python -m tests.fuzz TARGET --executions 1000000`: coverage-guided fuzzing with atheris, each target a process."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOUND = ROOT / "runs" / "fuzz"  # ignored by git

CRASH, LEAK = 1, 3
GROWTH_MB = 64  #: from a tenth of the executions to the end; more is a leak


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse(words)
    from tests.fuzz.targets import TARGETS

    if arguments.target != "all" and arguments.target not in TARGETS:
        print(f"no target {arguments.target!r}; there are all, {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    if arguments.replay is not None:
        TARGETS[arguments.target].run(arguments.replay.read_bytes())
        print(f"{arguments.target} holds for {arguments.replay}")
        return 0
    if importlib.util.find_spec("atheris") is None:
        print(
            "atheris is not installed (Linux on x86-64, Python before 3.14): pip install atheris; "
            "pytest tests/fuzz tries the same targets without it",
            file=sys.stderr,
        )
        return 2
    status, reports = 0, []
    for name in TARGETS if arguments.target == "all" else [arguments.target]:
        share = TARGETS[name].share if arguments.target == "all" else 1.0
        report = fuzz(name, max(1, int(arguments.executions * share)), arguments.seed, TARGETS[name].max_bytes)
        reports.append(report)
        print(line(report), flush=True)
        status = status or (CRASH if report["crash"] else LEAK if report["grown_mb"] > GROWTH_MB else 0)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(reports, indent=1))
    return status


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", help="name of a target, or all")
    parser.add_argument("--executions", type=int, default=100_000, help="of all: slow targets get their share of it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--replay", type=Path, help="run this input once, without atheris")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args(words)


def fuzz(name: str, executions: int, seed: int, max_bytes: int) -> dict[str, Any]:
    FOUND.mkdir(parents=True, exist_ok=True)
    memory = Path("/dev/shm")  # a million files are written and read
    with tempfile.TemporaryDirectory(prefix="aewatch-fuzz-", dir=memory if memory.is_dir() else None) as folder:
        report_file = Path(folder) / "report.json"
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        with (Path(folder) / "log").open("w+", errors="replace") as log:
            done = subprocess.run(
                [
                    sys.executable, "-m", "tests.fuzz.child", name, str(report_file), str(executions),
                    f"-runs={executions}", f"-seed={seed}", f"-max_len={max_bytes}", "-timeout=60",
                    "-rss_limit_mb=4096", f"-artifact_prefix={FOUND}/{name}-", str(corpus),
                ],
                cwd=ROOT, env={**os.environ, "FUZZ_FOLDER": folder}, stdout=log, stderr=subprocess.STDOUT, check=False,
            )  # fmt: skip
            log.seek(0)
            output = log.read()
        report: dict[str, Any] = json.loads(report_file.read_text()) if report_file.exists() else {}
    report = {"target": name, "executions": 0, "seconds": 0.0, "rss_first_mb": 0, "rss_last_mb": 0, **report}
    covered = re.findall(r"cov: (\d+) ft: (\d+)", output)
    report["edges"], report["features"] = map(int, covered[-1]) if covered else (0, 0)
    report["grown_mb"] = report["rss_last_mb"] - report["rss_first_mb"]
    report["crash"] = done.returncode != 0
    if report["crash"]:
        print(output[-6000:], file=sys.stderr)
        written = re.search(r"Test unit written to (\S+)", output)
        if written:
            print(f"again: python -m tests.fuzz {name} --replay {written.group(1)}", file=sys.stderr)
    return report


def line(report: dict[str, Any]) -> str:
    rate = report["executions"] / report["seconds"] if report["seconds"] else 0
    return (
        f"{report['target']:15} {report['executions']:>9,} executions in {report['seconds']:.0f} s ({rate:,.0f}/s), "
        f"{report['edges']} edges, {report['features']} features, "
        f"{report['rss_first_mb']:.0f} MB at 10 %, {report['rss_last_mb']:.0f} MB at the end, "
        f"slowest {report.get('slowest_s', 0) * 1000:.0f} ms"
        + (" CRASH" if report["crash"] else " LEAK?" if report["grown_mb"] > GROWTH_MB else "")
    )


if __name__ == "__main__":
    sys.exit(main())
