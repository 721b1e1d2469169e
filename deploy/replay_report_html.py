"""The report of a replay as one HTML page that needs nothing but itself; style and colours are the evaluations'."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from deploy.replay_report import INVENTED, MISSED, Confusion, Judgement, Outcome, ReplayReport, counted
from model.evaluation.report_html import STYLE as PAGE_STYLE
from model.evaluation.report_html import table
from model.evaluation.report_plots import COLOURS, NUMBERED_CELLS, WIDTH_IN, new_figure, short, styled, svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_SENSORS = 12  #: on the time line: those with most trouble
SHOWN_MARKS = 3000  #: events and alerts on the time line, the first ones
SHOWN_ROWS = 40  #: of a table
OUTCOMES: tuple[tuple[Outcome, str, str, float], ...] = (
    ("found", "found", "accent", 1.0),
    ("held", "alarm already open", "accent", 0.45),
    ("wrong", "taken for something else", "second", 0.8),
    ("missed", "missed", "warn", 1.0),
)
LINE_COLOURS = ("accent", "warn")  #: of the first model and the second


def replay_report_html(report: ReplayReport) -> str:
    """The page.

    Raises
    ------
    model.evaluation.report_plots.PlotError
        If matplotlib is not installed.
    """
    pictures = []
    for number, of in enumerate(report.judgements):
        whose = f" of {_name(of)}" if len(report.judgements) > 1 else ""
        pictures.append(_section(f"Confusion{whose}", svg(confusion(of.confusion), f"confusion{number}")))
        if any(figures.events for figures in of.classes):
            pictures.append(_section(f"Events{whose}", svg(outcome_bars(of), f"events{number}")))
    if any(of.delays for of in report.judgements):
        pictures.append(_section("Delay", svg(delay_curves(report.judgements), "delay")))
    lines = [
        _section(f"Time line of {_name(of)}", svg(timeline(of), f"line{number}"))
        for number, of in enumerate(report.judgements)
        if of.events or of.alerts
    ]
    figures = [_figures(of) for of in report.judgements]
    lists = [part for of in report.judgements for part in (_not_found(of, report), _invented(of, report)) if part]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{escape(report.run)}: replay</title>
<style>{PAGE_STYLE}</style>
</head>
<body>
<main>
{_head(report)}
{_keys(report)}
{_comparison(report)}<div class="columns">
{"".join(pictures)}</div>
{"".join(figures)}<div class="columns">
{"".join(lines)}{"".join(lists)}</div>
<footer class="muted"><p>Made by aewatch. Figures are of these recordings only.</p></footer>
</main>
</body>
</html>
"""


@styled
def confusion(of: Confusion) -> Figure:
    """What each event (row) was taken for, as shares of the row; the last row is alerts without an event."""
    rows, columns = len(of.rows), len(of.columns)
    figure, axes = new_figure(WIDTH_IN, max(2.0, 1.2 + 0.5 * rows) if rows <= NUMBERED_CELLS else WIDTH_IN)
    from matplotlib.patches import Rectangle

    for row, counts in enumerate(of.counts):
        total = sum(counts)
        for column, count in enumerate(counts):
            right = of.rows[row] == of.columns[column]
            share = count / total if total else 0.0
            place = (column - 0.48, row - 0.48)
            colour = COLOURS["accent" if right else "warn"]
            axes.add_patch(Rectangle(place, 0.96, 0.96, facecolor=colour, alpha=0.04 + 0.9 * share, lw=0))
            if count and max(rows, columns) <= NUMBERED_CELLS:
                ink = COLOURS["paper" if share > 0.55 else "ink"]
                axes.text(column, row, f"{count:,}", ha="center", va="center", color=ink)
    axes.axhline(rows - 1.5, color=COLOURS["muted"], linewidth=0.8)
    axes.axvline(columns - 1.5, color=COLOURS["muted"], linewidth=0.8)
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    tilted = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if columns > 3 else {}
    axes.set_xticks(range(columns), list(map(short, of.columns)), **tilted)
    axes.set_yticks(range(rows), list(map(short, of.rows)))
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel("alert")
    axes.set_ylabel("event")
    return figure


@styled
def outcome_bars(of: Judgement) -> Figure:
    """What became of the events of each class."""
    shown = [figures for figures in of.classes if figures.events]
    figure, axes = new_figure(WIDTH_IN, 0.9 + 0.32 * len(shown))
    for row, figures in enumerate(shown):
        left = 0
        for outcome, _, colour, alpha in OUTCOMES:
            count: int = getattr(figures, outcome)
            axes.barh(row, count, left=left, height=0.62, color=COLOURS[colour], alpha=alpha, linewidth=0)
            left += count
    axes.set_yticks(range(len(shown)), [short(figures.label) for figures in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_xlabel("events")
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes)
    return figure


@styled
def delay_curves(judgements: Sequence[Judgement]) -> Figure:
    """Share of all events that an alert has told of so long after they began."""
    figure, axes = new_figure(WIDTH_IN, 2.4)
    longest_s = max(of.delays.largest_s for of in judgements if of.delays)
    for of, colour in zip(judgements, LINE_COLOURS, strict=False):
        delays = sorted(event.delay_s for event in of.events if event.delay_s is not None)
        heights = [count / len(of.events) for count in range(len(delays) + 1)]
        axes.step(
            [0.0, *delays, longest_s * 1.02],
            [*heights, heights[-1]],
            where="post",
            color=COLOURS[colour],
            linewidth=1.4,
            label=short(_name(of)),
        )
    axes.set_ylim(0, 1.04)
    axes.set_xlim(0, longest_s * 1.02)
    axes.set_xlabel("time from the event's start to the end of the deciding window, s")
    axes.set_ylabel("share of events found")
    axes.grid(axis="y")
    if len(judgements) > 1:
        axes.legend(loc="lower right")
    return figure


@styled
def timeline(of: Judgement) -> Figure:
    """Events as bars and alerts as strokes, for each sensor; of very many, those with most trouble."""
    trouble: dict[str, int] = {}
    for event in of.events:
        trouble[event.sensor] = trouble.get(event.sensor, 0) + (event.outcome in ("wrong", "missed"))
    for judged in of.alerts:
        sensor = judged.alert.sensor
        trouble[sensor] = trouble.get(sensor, 0) + (judged.verdict == INVENTED)
    shown = sorted(sorted(trouble, key=lambda sensor: -trouble[sensor])[:SHOWN_SENSORS])
    row_of = {sensor: row for row, sensor in enumerate(shown)}
    times = [event.end_s or event.start_s for event in of.events] + [judged.alert.raised_s for judged in of.alerts]
    last_s = max(times)
    figure, axes = new_figure(WIDTH_IN, 1.1 + 0.34 * len(shown))
    looks = {outcome: (colour, alpha) for outcome, _, colour, alpha in OUTCOMES}
    for event in of.events[:SHOWN_MARKS]:
        if (row := row_of.get(event.sensor)) is not None:
            colour, alpha = looks[event.outcome]
            until_s = last_s if event.end_s is None else event.end_s
            width_s = max(until_s - event.start_s, last_s * 0.004)
            axes.barh(row, width_s, left=event.start_s, height=0.6, color=COLOURS[colour], alpha=alpha, linewidth=0)
    for judged in of.alerts[:SHOWN_MARKS]:
        if (row := row_of.get(judged.alert.sensor)) is not None:
            invented = judged.verdict == INVENTED
            axes.plot(
                judged.alert.raised_s,
                row - 0.4,
                marker="x" if invented else "v",
                color=COLOURS["warn" if invented else "ink"],
                markersize=4,
                linewidth=0,
            )
    axes.set_yticks(range(len(shown)), [_tail(sensor) for sensor in shown])
    axes.set_ylim(len(shown) - 0.4, -0.8)
    axes.set_xlim(0, 1.02 * last_s or 1.0)
    axes.set_xlabel("s of the recording; ▾ alert, × invented alert")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    _legend(axes)
    return figure


def _legend(axes: Any) -> None:
    from matplotlib.patches import Patch

    marks = [
        Patch(facecolor=COLOURS[colour], alpha=alpha, linewidth=0, label=text) for _, text, colour, alpha in OUTCOMES
    ]
    axes.legend(handles=marks, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2, handlelength=1.2)


def _head(report: ReplayReport) -> str:
    facts = [
        *(("model", _name(of)) for of in report.judgements),
        ("sensors", f"{report.sensors}, labelled for {report.labelled_s:,.1f} s together"),
        *(("note", note) for note in report.notes),
        *(("note", f"{_name(of)}: {note}") for of in report.judgements for note in of.notes),
    ]
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    return f"<h1>Replay {escape(report.run)}</h1><dl>{rows}</dl>"


def _keys(report: ReplayReport) -> str:
    cards = []
    for of in report.judgements:
        hourly = "" if of.invented_per_hour is None else f", {of.invented_per_hour:.3g} an hour"
        delay = f"delay median {of.delays.median_s:.3f} s, 90 % {of.delays.p90_s:.3f} s" if of.delays else "no delay"
        cards.append(
            f'<div class="key"><p class="muted">{escape(_name(of))}</p>'
            f'<p class="value">{of.count("found") + of.count("held")} of {len(of.events)}</p>'
            f"<p>events recognised, {of.count('held')} of them while the alarm was open already</p>"
            f"<p>{of.count('wrong')} taken for something else, {of.count('missed')} missed</p>"
            f"<p>{counted(len(of.invented), 'alert')} invented{hourly}</p><p>{delay}</p></div>"
        )
    return f'<div class="keys">{"".join(cards)}</div>'


def _comparison(report: ReplayReport) -> str:
    between = report.comparison
    if between is None:
        return ""
    first, second = map(_name, report.judgements)
    rows = [
        ["recognised by both", f"{between.both:,}"],
        [f"only by {first}", f"{between.only_first:,}"],
        [f"only by {second}", f"{between.only_second:,}"],
        ["by neither", f"{between.neither:,}"],
        ["invented by both", f"{between.invented_both:,}"],
        [f"invented only by {first}", f"{between.invented_only_first:,}"],
        [f"invented only by {second}", f"{between.invented_only_second:,}"],
    ]
    if between.delay_difference_s is not None:
        rows.append([f"{second} tells of an event so much later (median)", f"{between.delay_difference_s:+.3f} s"])
    text = table(["", "events"], rows)
    if between.differences:
        told = [
            [of.label, _tail(of.sensor), f"{of.start_s:.3f}", of.first, of.second]
            for of in between.differences[:SHOWN_ROWS]
        ]
        text += table(["event", "sensor", "start, s", first, second], told) + _more(len(between.differences))
    return _section("The two models", text)


def _figures(of: Judgement) -> str:
    head = ["class", "role", "events", "found", "held", "wrong", "missed", "recall", "alerts", "invented", "precision"]
    rows = [
        [
            figures.label,
            figures.role or "–",
            *(f"{count:,}" for count in (figures.events, figures.found, figures.held, figures.wrong, figures.missed)),
            _percent(figures.recall),
            f"{figures.alerts:,}",
            f"{figures.invented:,}",
            _percent(figures.precision),
            "–" if figures.delays is None else f"{figures.delays.median_s:.3f}",
        ]
        for figures in of.classes
    ]
    return _section(f"Figures of {_name(of)}", table([*head, "delay, s"], rows))


def _not_found(of: Judgement, report: ReplayReport) -> str:
    lost = [event for event in of.events if event.outcome in (MISSED, "wrong")]
    if not lost:
        return ""
    rows = [
        [event.label, _tail(event.sensor), f"{event.start_s:.3f}", event.condition or MISSED]
        for event in lost[:SHOWN_ROWS]
    ]
    heading = f"Not found{_whose(of, report)}"
    return _section(heading, table(["event", "sensor", "start, s", "taken for"], rows) + _more(len(lost)))


def _invented(of: Judgement, report: ReplayReport) -> str:
    rows = [
        [alert.condition, _tail(alert.sensor), f"{alert.onset_s:.3f}", f"{alert.probability:.2f}"]
        for alert in of.invented[:SHOWN_ROWS]
    ]
    if not rows:
        return ""
    heading = f"Invented{_whose(of, report)}"
    return _section(heading, table(["alert", "sensor", "from, s", "probability"], rows) + _more(len(of.invented)))


def _more(count: int) -> str:
    return f'<p class="muted">and {count - SHOWN_ROWS:,} more in report.json</p>' if count > SHOWN_ROWS else ""


def _whose(of: Judgement, report: ReplayReport) -> str:
    return f" by {_name(of)}" if len(report.judgements) > 1 else ""


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{content}</section>\n"


def _name(of: Judgement) -> str:
    return f"{of.model.name} {of.model.version}"


def _tail(sensor: str) -> str:
    """The sensor without `replay/<run>/`, its end where it is long."""
    name = sensor.split("/", 2)[-1] if sensor.startswith("replay/") else sensor
    return name if len(name) <= 24 else f"…{name[-23:]}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
