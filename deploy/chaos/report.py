"""What the runs showed, for people and as JSON-ready objects."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from deploy.chaos.battle import Outcome


def passed(outcome: Outcome) -> bool:
    """Whether all that is promised held."""
    return not (outcome.failure or outcome.verdict.problems)


def told(outcome: Outcome) -> str:
    """One run, in a few lines."""
    verdict = outcome.verdict
    lines = [
        f"seed {outcome.seed}: {'everything holds' if passed(outcome) else 'FAILED'} after {outcome.seconds:.0f} s",
        f"  {verdict.windows} windows of the oracle, {verdict.predictions} predictions in Kafka "
        f"({verdict.predictions - verdict.windows:+d} by redelivery), "
        f"{verdict.predictions_to_the_bit} equal to the bit",
        f"  {verdict.alerts} alerts of the oracle, {verdict.collected} collected by a subscriber that was killed too",
        f"  {verdict.poison} poisonous messages, {verdict.dead_letters} dead letters",
        f"  started again: {_counts(outcome.restarts)}; "
        f"worked through {outcome.drained_s:.1f} s after the last frame and fault",
        f"  peak memory, MiB: {_counts(outcome.peak_rss_mib)}",
    ]
    lines += [f"  ended by itself: {line}" for line in outcome.unasked]
    if outcome.failure:
        lines.append(f"  FAILED: {outcome.failure}")
    lines += [f"  FAILED: {problem}" for problem in verdict.problems]
    return "\n".join(lines)


def table(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A row for each kind of fault: how often, and how long until all went on that it held up."""
    rows: dict[str, dict[str, Any]] = {}
    for outcome in outcomes:
        for one in outcome.done:
            if not one.target:
                continue
            row = rows.setdefault(one.fault.kind, {"fault": one.fault.kind, "times": 0, "seconds": []})
            row["times"] += 1
            if one.recovered_s is not None:
                row["seconds"].append(one.recovered_s)
    found = []
    for kind in sorted(rows):
        seconds = rows[kind].pop("seconds")
        timed = {"median_s": round(median(seconds), 1), "max_s": round(max(seconds), 1)} if seconds else {}
        found.append(rows[kind] | timed)
    return found


def table_text(rows: Sequence[dict[str, Any]]) -> str:
    """The same, aligned."""
    lines = [f"{'fault':<18} {'times':>5}  recovered after: {'median':>8} {'longest':>8}"]
    for row in rows:
        times = f"{row['median_s']:7.1f}s {row['max_s']:7.1f}s" if "median_s" in row else f"{'–':>8} {'–':>8}"
        lines.append(f"{row['fault']:<18} {row['times']:>5}  {'':<16} {times}")
    return "\n".join(lines)


def as_json(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """All of it."""
    return {
        "passed": all(passed(one) for one in outcomes),
        "runs": len(outcomes),
        "faults": sum(bool(done.target) for one in outcomes for done in one.done),
        "kills": sum(done.fault.act == "kill" and bool(done.target) for one in outcomes for done in one.done),
        "windows": sum(one.verdict.windows for one in outcomes),
        "alerts": sum(one.verdict.alerts for one in outcomes),
        "poison": sum(one.verdict.poison for one in outcomes),
        "restarts": sum(sum(one.restarts.values()) for one in outcomes),
        "failed_seeds": [one.seed for one in outcomes if not passed(one)],
        "recovery": table(outcomes),
    }


def _counts(numbers: Any) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(numbers.items())) or "nothing"
