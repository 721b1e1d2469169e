"""What was found in a data set, in words and a table for a terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from model.data_check.check import SEVERITIES, Finding, Report


def text(report: Report) -> str:
    """Everything in the report, lines without an end."""
    return "\n".join((*_tables(report), "", *_told(report.findings)))


def _tables(report: Report) -> list[str]:
    total = [label.total for label in report.labels]
    lines = [
        f"{report.data}: {len(report.labels)} labels, {sum(t.clips for t in total):,} clips, "
        f"{duration(math.fsum(t.seconds for t in total))}, about {sum(t.windows for t in total):,} windows of "
        f"{report.windows}",
        "rates: "
        + ", ".join(f"{count} at {rate} Hz" for rate, count in report.rates_hz.items())
        + "; samples: "
        + ", ".join(f"{count} {kind}" for kind, count in report.sample_types.items()),
        "",
    ]
    parts = [part for part in report.parts if part]
    header = ["label", "clips", "windows", "duration", "clip length", "level, dBFS", "recordings"]
    optional = [name for name in ("sensors", "positions") if any(getattr(label, name) for label in report.labels)]
    rows = [[*header, *optional, *(f"{part}: windows" for part in parts)]]
    for label, amount in zip(report.labels, total, strict=True):
        shortest, median, longest = label.duration_s
        quietest, usual, loudest = label.level_db
        rows.append(
            [
                label.label,
                f"{amount.clips}",
                f"{amount.windows}",
                duration(amount.seconds),
                duration(median) if shortest == longest else f"{duration(shortest)} … {duration(longest)}",
                f"{usual:.0f}" if round(quietest) == round(loudest) else f"{quietest:.0f} … {loudest:.0f}",
                f"{label.recordings}",
                *(f"{getattr(label, name)}" for name in optional),
                *(f"{label.parts[part].windows}" for part in parts),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        right = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join((row[0].ljust(widths[0]), *right)))
    return lines


def _told(findings: Sequence[Finding]) -> list[str]:
    lines = []
    for finding in findings:
        lines.append(f"{finding.severity.upper()}: {finding.what}")
        lines += [f"    {place}" for place in finding.where]
        lines.append(f"  → {finding.way_out}")
    counts = Counter(finding.severity for finding in findings)
    summary = ", ".join(f"{counts[s]} {s}{'s' * (counts[s] != 1)}" for s in SEVERITIES)
    return [*lines, "" if lines else "nothing to remark", summary]


def duration(seconds: float) -> str:
    """In the unit that fits."""
    if math.isnan(seconds):
        return "–"
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    if seconds >= 120:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
