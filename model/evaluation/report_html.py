"""An evaluation as one HTML page that needs nothing but itself, for a phone as for a wide screen, light or dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from model.evaluation.bootstrap import Interval
from model.evaluation.evaluate import Evaluation, Results
from model.evaluation.report import (
    groups_of,
    interval_note,
    percent,
    points,
    verdict,
    weakest_recordings,
    what_it_is_of,
)
from model.evaluation.report_plots import confusion, curves, group_bars, label_bars, reliability, svg
from model.training.history import Epoch

STYLE = """
:root { color-scheme: light dark; --ink: #1c2733; --paper: #fdfdfc; --card: #f4f5f5; --muted: #5f6b77; --line: #d8dde2;
  --accent: #1d6a8a; --second: #8a94a0; --warn: #b9503a; --warn-ground: #faeeea; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e8ec; --paper: #14191e; --card: #1c2329; --muted: #98a3ad;
  --line: #343d45; --accent: #58afd0; --second: #7d8792; --warn: #e58b72; --warn-ground: #33211c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, sans-serif; -webkit-text-size-adjust: 100%; }
main { max-width: 64rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.5rem; line-height: 1.25; font-weight: 600; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; font-weight: 600; margin: 0 0 .25rem; }
p { margin: .25rem 0; } .muted { color: var(--muted); font-size: .875rem; }
code { font: .85em ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .75rem 0 0; font-size: .9rem; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
.leak { margin: 1.25rem 0 0; padding: .6rem .9rem; border-left: 3px solid var(--warn); background: var(--warn-ground); }
.leak ul { margin: .25rem 0 0; padding-left: 1.1rem; }
.keys { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: .75rem; margin: 1.5rem 0 .5rem;
}
.key { background: var(--card); border-radius: .5rem; padding: .8rem 1rem .9rem; }
.key .value { font-size: 2rem; line-height: 1.2; font-weight: 600; font-variant-numeric: tabular-nums; }
.key .range { margin: .45rem 0 .6rem; display: block; width: 100%; }
.key p { font-size: .875rem; font-variant-numeric: tabular-nums; }
.columns { margin-top: 2rem; columns: 2 25rem; column-gap: 2.5rem; }
section { break-inside: avoid; margin-bottom: 2rem; }
section > svg { width: 100%; max-width: 30rem; height: auto; display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; margin-top: .4rem;
  width: 100%; }
th, td { text-align: right; padding: .28rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 500; color: var(--muted); } tbody th { color: var(--ink); }
th:first-child, td:first-child { text-align: left; padding-left: 0; } th:last-child, td:last-child { padding-right: 0; }
td.text { text-align: left; white-space: normal; }
footer { margin-top: 2.5rem; padding-top: .75rem; border-top: 1px solid var(--line); }
"""


def report_html(found: Evaluation, history: Sequence[Epoch] = ()) -> str:
    """The page. `history` is that of the training, where it is at hand.

    Raises
    ------
    model.evaluation.report_plots.PlotError
        If matplotlib is not installed.
    """
    title = f"{found.model} {found.version}"
    pictures = [
        _picture("Confusion", _confusion_note(found), svg(confusion(found.results, found.labels), "confusion")),
        _picture("Labels", "", svg(label_bars(found.results, found.baseline), "labels")),
        *(
            _picture(heading, "", svg(group_bars(found, what), what))
            for what, heading in (("position", "Positions"), ("sensor", "Sensors"))
            if groups_of(found.results, what)
        ),
        _picture("Calibration", _calibration_note(found), svg(reliability(found.results, found.baseline), "sure")),
        *([_picture("Training", "", svg(curves(history), "curves"))] if history else []),
    ]
    tables = [
        *([_recordings(found)] if found.results.by_recording else []),
        _figures(found),
    ]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{escape(title)}: evaluation</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{_head(found, title)}
{_keys(found)}
<div class="columns">
{"".join(pictures)}</div>
{_labels(found)}<div class="columns">
{"".join(tables)}</div>
<footer class="muted">{f"<p><code>{escape(found.command)}</code></p>" if found.command else ""}
<p>Made by aewatch. Figures are of these data only.</p></footer>
</main>
</body>
</html>
"""


def _head(found: Evaluation, title: str) -> str:
    facts = [
        ("bundle", found.bundle),
        ("trained on", found.trained_on),
        ("evaluated on", what_it_is_of(found)),
        ("windows", f"{found.window_samples:,} samples at {found.rate_hz:,.0f} Hz"),
        *(("note", note) for note in found.notes),
    ]
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts if value)
    leak = ""
    if found.leakage:
        items = "".join(f"<li>{escape(line)}</li>" for line in found.leakage)
        leak = f'<div class="leak"><strong>What the bundle knew of these data</strong><ul>{items}</ul></div>'
    return f"<h1>{escape(title)}</h1><dl>{rows}</dl>{leak}"


def _keys(found: Evaluation) -> str:
    names = (("accuracy", "Accuracy"), ("macro_f1", "Macro-F1"), ("weakest_recall", "Weakest recall"))
    cards = []
    for field, heading in names:
        of: Interval = getattr(found.results.intervals, field)
        label = f": {escape(found.results.weakest_label)}" if field == "weakest_recall" else ""
        lines = [
            f'<div class="key"><p class="muted">{heading}{label}</p>',
            f'<p class="value">{percent(of.value)}</p>',
            _range(of, getattr(found.baseline.intervals, field) if found.baseline else None),
            f"<p>{100 * of.low:.1f} to {100 * of.high:.1f} %</p>",
        ]
        if found.baseline is not None and found.difference is not None:
            other: Interval = getattr(found.baseline.intervals, field)
            difference: Interval = getattr(found.difference, field)
            lines.append(f'<p class="muted">baseline {percent(other.value)}, difference {points(difference)}: ')
            lines.append(f"{verdict(difference)}</p>")
        cards.append("".join([*lines, "</div>"]))
    baseline = f" Baseline: {escape(found.baseline.name)}." if found.baseline else ""
    return f'<div class="keys">{"".join(cards)}</div><p class="muted">{escape(interval_note(found))}{baseline}</p>'


def _range(of: Interval, other: Interval | None) -> str:
    """Bars from 0 to 100 %, the bundle's and below it the baseline's, with their ranges."""
    marks = []
    for y, colour, found in ((3, "accent", of), (15, "second", other)):
        if found is not None:
            low, width = 100 * found.low, max(0.3, 100 * (found.high - found.low))
            marks.append(
                f'<rect y="{y}" width="100" height="7" fill="var(--line)"/>'
                f'<rect y="{y}" width="{100 * found.value:.2f}" height="7" fill="var(--{colour})"/>'
                f'<rect x="{low:.2f}" y="{y + 2.5}" width="{width:.2f}" height="2" fill="var(--ink)"/>'
            )
    height = 25 if other is not None else 13
    return (
        f'<svg class="range" style="height:{height}px" viewBox="0 0 100 {height}" preserveAspectRatio="none" '
        f'aria-hidden="true">{"".join(marks)}</svg>'
    )


def _picture(heading: str, note: str, drawing: str) -> str:
    text = f'<p class="muted">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(heading)}</h2>{text}{drawing}</section>\n"


def _confusion_note(found: Evaluation) -> str:
    """The commonest mistake in words."""
    matrix = found.results.confusion
    errors = [
        (windows, row, column)
        for row, counts in enumerate(matrix)
        for column, windows in enumerate(counts)
        if row != column and windows
    ]
    if not errors:
        return "No window is taken for another label."
    windows, row, column = max(errors)
    share = percent(windows / sum(matrix[row]))
    return f"Most often {found.labels[row]} is taken for {found.labels[column]}: {windows:,} windows, {share} of it."


def _calibration_note(found: Evaluation) -> str:
    bins = [of for of in found.results.reliability if of.windows]
    surplus = sum(of.windows * (of.confidence - of.accuracy) for of in bins) / found.windows
    if abs(surplus) < 0.005:
        return "On average as sure as it is right."
    return f"On average {'more' if surplus > 0 else 'less'} sure than right, by {100 * abs(surplus):.1f} points."


def _labels(found: Evaluation) -> str:
    other = found.baseline
    head = ["label", "windows", "precision", "recall", "F1", *(["baseline F1"] if other else []), "unknown"]
    rows = []
    for index, label in enumerate(found.results.labels):
        beside = [percent(other.labels[index].f1)] if other else []
        unknown = found.unknown.by_label.get(label.label)
        values = [f"{label.windows:,}", percent(label.precision), percent(label.recall), percent(label.f1), *beside]
        rows.append([label.label, *values, "–" if unknown is None else percent(unknown)])
    return _section("Figures of each label", table(head, rows))


def _recordings(found: Evaluation) -> str:
    shown = weakest_recordings(found.results)
    if not shown:
        return _section("Recordings", '<p class="muted">Every window of every recording is recognised.</p>')
    rows = [[group.name, f"{group.windows:,}", percent(group.accuracy)] for group in shown]
    return _section("Weakest recordings", table(["recording", "windows", "accuracy"], rows))


def _figures(found: Evaluation) -> str:
    speed, unknown = found.speed, found.unknown
    columns: list[Results] = [found.results, *([found.baseline] if found.baseline else [])]
    rows = [
        ["accuracy", *(percent(of.accuracy) for of in columns)],
        ["macro-F1", *(percent(of.macro_f1) for of in columns)],
        ["F1 weighted by windows", *(percent(of.weighted_f1) for of in columns)],
        ["expected calibration error", *(percent(of.expected_calibration_error) for of in columns)],
        ["negative log likelihood", *(f"{of.negative_log_likelihood:.3f}" for of in columns)],
        ["Brier score", *(f"{of.brier_score:.3f}" for of in columns)],
    ]
    others = (
        "" if unknown.accuracy_of_others is None else f"; of the others {percent(unknown.accuracy_of_others)} right"
    )
    notes = [
        f"Called unknown: {percent(unknown.share)} ({unknown.kind} over {unknown.threshold:.3g}){others}.",
        f"Speed: {speed.windows_per_s:,.1f} windows/s ({speed.lowest:,.1f} to {speed.highest:,.1f} in {speed.repeats} "
        f"repeats), as many as {speed.sensors:,.1f} sensors give, on {speed.device}, {speed.precision}.",
    ]
    text = "".join(f'<p class="muted">{escape(note)}</p>' for note in notes)
    return _section("All figures", table(["", "bundle", *(["baseline"] if found.baseline else [])], rows) + text)


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{content}</section>\n"


def table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are text, and escaped."""
    titles = "".join(f"<th scope=col>{escape(cell)}</th>" for cell in head)
    lines = "".join(
        f"<tr><th scope=row>{escape(row[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>'
