from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from model.evaluation.bootstrap import Interval
from model.evaluation.evaluate import Evaluation
from model.evaluation.report import MOST_GROUPS, groups_of, interval_note, report, verdict, weakest_recordings
from tests.evaluations import LABELS, evaluation, history

pytest.importorskip("matplotlib")

from model.evaluation import report_plots
from model.evaluation.report_html import report_html
from model.evaluation.report_plots import (
    COLOURS,
    PlotError,
    confusion,
    curves,
    group_bars,
    label_bars,
    reliability,
    save,
    svg,
)


@pytest.fixture(scope="module")
def found() -> Evaluation:
    return evaluation()


def _alone(found: Evaluation) -> Evaluation:
    return replace(found, baseline=None, difference=None, leakage=[])


def test_the_text_holds_every_figure_that_was_asked_for(found: Evaluation) -> None:
    text = report(found)
    results, baseline = found.results, found.baseline
    assert baseline is not None
    for figure in (
        results.accuracy,
        results.macro_f1,
        results.weighted_f1,
        baseline.accuracy,
        *(label.recall for label in results.labels),
        *(label.precision for label in results.labels),
        *(group.accuracy for group in results.by_position),
        results.expected_calibration_error,
    ):
        assert f"{100 * figure:.2f} %" in text
    for part in (*LABELS, "P5", "random forests", "leakage     2 sensors", "energy", "268.4 windows/s", "cpu, float32"):
        assert part in text
    assert f"{results.intervals.accuracy.low * 100:.1f} to {results.intervals.accuracy.high * 100:.1f}" in text
    assert "better than the baseline" in text
    assert "over 20 recordings" in text


def test_the_text_does_without_a_baseline_and_without_positions(found: Evaluation) -> None:
    text = report(replace(_alone(found), results=replace(found.results, by_position=[], by_recording=[])))
    assert "baseline" not in text
    assert "position" not in text
    assert "leakage" not in text


def test_better_and_worse_are_said_only_where_the_range_says_so() -> None:
    assert verdict(Interval(0.1, 0.01, 0.2)) == "better than the baseline"
    assert verdict(Interval(-0.1, -0.2, -0.01)) == "worse than the baseline"
    assert verdict(Interval(0.1, -0.01, 0.2)) == "not told apart from the baseline"


def test_the_note_says_when_ranges_are_not_to_be_trusted(found: Evaluation) -> None:
    def with_intervals(**changes: object) -> str:
        intervals = replace(found.results.intervals, **changes)  # type: ignore[arg-type]
        return interval_note(replace(found, results=replace(found.results, intervals=intervals)))

    assert "too narrow" not in with_intervals()
    assert "With so few recordings" in with_intervals(units=4)
    assert "Nobody knows the recordings" in with_intervals(unit="windows", units=200)
    assert with_intervals(units=1).startswith("Ranges: none, for all is of one recording;")
    assert "also happens where 15.0 % are wrong" in with_intervals(accuracy=Interval(1, 1, 1))


def test_of_very_many_groups_the_weakest_are_listed(found: Evaluation) -> None:
    group = found.results.by_position[0]
    many = [replace(group, name=f"P{n}", accuracy=n / 100) for n in range(100)]
    results = replace(found.results, by_position=many, by_recording=many)
    assert [shown.name for shown in groups_of(results, "position")] == [f"P{n}" for n in range(MOST_GROUPS)]
    assert [shown.name for shown in weakest_recordings(results)] == [f"P{n}" for n in range(10)]
    assert "and 60 more, each at least as good" in report(replace(_alone(found), results=results))


class _Page(HTMLParser):
    """Tags that are open, addresses that would be fetched, and text."""

    VOID = ("meta", "br", "link", "img", "rect", "use", "path")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _read(html: str) -> _Page:
    page = _Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


def test_the_page_needs_nothing_but_itself(found: Evaluation) -> None:
    html = report_html(found, history())
    page = _read(html)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert all(address.startswith("#") for address in page.addresses)
    assert not re.findall(r"(?:url\(|@import)\s*['\"]?(?!#)", html)
    assert "Content-Security-Policy" in html
    assert "width=device-width" in html
    assert "prefers-color-scheme: dark" in html
    assert "Training" in page.text
    for figure in (found.results.accuracy, found.results.macro_f1, found.results.weakest_recall):
        assert f"{100 * figure:.2f} %" in page.text


def test_the_page_of_a_bundle_alone_has_no_baseline_and_no_curves(found: Evaluation) -> None:
    text = _read(report_html(_alone(found))).text
    assert "baseline" not in text.replace("--no-baseline", "").lower()
    assert "Training" not in text
    assert "knew of these data" not in text


def test_names_are_text_and_neither_markup_nor_formulas() -> None:
    names = ("<b>bold</b>", "a & b", "$\\frac{1}{2}$", '"quoted"')
    html = report_html(evaluation(names), history())
    page = _read(html)
    assert "b" not in page.tags
    for name in names:
        assert name in page.text


def test_inner_names_of_the_pictures_do_not_meet(found: Evaluation) -> None:
    html = report_html(found, history())
    names = re.findall(r'\bid="([^"]+)"', html)
    assert len(names) == len(set(names))
    for used in re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", html):
        assert (used[0] or used[1]) in names


def test_a_picture_in_a_page_takes_the_pages_colours(found: Evaluation) -> None:
    element = svg(label_bars(found.results, found.baseline), "labels")
    ET.fromstring(element)
    assert not re.findall(r"#[0-9a-f]{6}", element)
    used = set(re.findall(r"var\(--(\w+)\)", element))
    assert {"ink", "accent", "line"} <= used <= set(COLOURS)


def test_every_colour_of_the_pictures_is_in_the_pages_style_for_light_and_dark(found: Evaluation) -> None:
    style = report_html(found).split("</style>")[0]
    for name in COLOURS:
        assert len(re.findall(rf"--{name}: #", style)) == 2


@pytest.mark.parametrize("count", [2, 4, 12, 60])
def test_pictures_can_be_drawn_of_few_and_many_labels(count: int, tmp_path: Path) -> None:
    names = [f"class {n} of some length" for n in range(count)]
    found = evaluation(names)
    for name, figure in {
        "confusion": confusion(found.results, names),
        "labels": label_bars(found.results, found.baseline),
        "reliability": reliability(found.results, None),
        "positions": group_bars(found, "position"),
    }.items():
        save(figure, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert svg(figure, name).startswith("<svg")


def test_the_confusion_picture_shows_shares_of_the_true_label(found: Evaluation) -> None:
    figure = confusion(found.results, LABELS)
    texts = {text.get_text() for text in figure.axes[0].texts}
    matrix = np.array(found.results.confusion)
    assert f"{100 * matrix[2, 2] / matrix[2].sum():.1f} %\n{matrix[2, 2]}" in texts


def test_the_curves_show_losses_accuracies_and_the_best_epoch(tmp_path: Path) -> None:
    figure = curves(history())
    lines = [[len(line.get_xdata()) for line in axes.lines] for axes in figure.axes]  # type: ignore[arg-type]
    assert lines == [[12, 12, 2], [12, 12, 12, 2]]
    assert "the best is 9" in figure.axes[1].get_xlabel()
    save(curves(history(1)), tmp_path / "one.svg")


def test_a_picture_of_an_unknown_kind_is_refused(found: Evaluation, tmp_path: Path) -> None:
    with pytest.raises(PlotError, match=r"x\.docx"):
        save(confusion(found.results, LABELS), tmp_path / "x.docx")


def test_the_pictures_leave_other_pictures_style_alone(found: Evaluation) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    reliability(found.results, found.baseline)
    assert dict(matplotlib.rcParams) == before
    assert report_plots.WIDTH_IN < 6
