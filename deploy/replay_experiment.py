"""A replay as an experiment: what is expected of it, and the report of what came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.event_labels import LabelsError, events_of, labels_of, sidecar_of
from deploy.replay_report import (
    Event,
    Model,
    Played,
    ReplayReport,
    compare,
    detections_of,
    encode_report,
    events_played,
    judge,
)
from model.bundle import BundleCard
from stream.alerts import Alert

JSON_NAME, PAGE_NAME = "report.json", "report.html"


@dataclass(frozen=True, slots=True)
class Expected:
    """What the labels say."""

    events: tuple[Event, ...]
    sensors: frozenset[str]  #: of recordings with labels
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Heard:
    """The alerts that a model raised on the run."""

    model: Model
    alerts: Sequence[Alert]
    notes: Sequence[str] = ()


def expected_of(owners: Mapping[str, Path], manifests: Sequence[Path]) -> Expected:
    """What the manifests, or tables beside the recordings, say of each sensor.

    Parameters
    ----------
    owners
        Sensor → its recording.

    Raises
    ------
    LabelsError, model.data.manifest.ManifestError
        If no recording has labels, or they cannot be used.
    """
    recordings = list(dict.fromkeys(owners.values()))
    labels = labels_of(recordings, manifests)
    without = [recording for recording in recordings if recording not in labels]
    if not labels:
        raise LabelsError(
            f"--report: no recording has labels; write {sidecar_of(without[0])} with columns start,end,label "
            "(seconds), or replay a manifest"
        )
    notes = []
    if without:
        more = f" and {len(without) - 1} more" if len(without) > 1 else ""
        notes.append(f"{without[0]}{more}: without labels, so what is found there is left out")
    sensors = frozenset(sensor for sensor, recording in owners.items() if recording in labels)
    return Expected(tuple(events_of(owners, labels)), sensors, tuple(notes))


def model_of(card: BundleCard) -> Model:
    """A bundle as the report names it."""
    return Model(card.name, card.version, card.roles)


def report_of(
    run: str,
    expected: Expected,
    played: Mapping[str, Played],
    heard: Sequence[Heard],
    *,
    in_part: bool = False,
    notes: Sequence[str] = (),
) -> ReplayReport:
    """Hold the alerts of one model, or of two, against what was expected.

    Parameters
    ----------
    played
        Sensor → what was played of it.
    in_part
        Recordings were not played from end to end: events outside do not count.
    """
    labelled = {sensor: of for sensor, of in played.items() if sensor in expected.sensors}
    events = events_played(expected.events, labelled, in_part=in_part)
    labelled_s = sum(of.end_s - of.begin_s for of in labelled.values())
    judgements = []
    for of in heard:
        detections, health = detections_of(of.alerts, labelled)
        said = [*of.notes, *_other_models(of, [detection.model_version for detection in detections])]
        judgements.append(judge(of.model, events, detections, labelled_s=labelled_s, health_alerts=health, notes=said))
    outside = len(expected.events) - len(events)
    return ReplayReport(
        run=run,
        sensors=len(labelled),
        labelled_s=labelled_s,
        judgements=judgements,
        comparison=compare(*judgements) if len(judgements) == 2 else None,
        notes=[
            *expected.notes,
            *([f"{outside} labelled events lie outside what was played, and do not count"] if outside else []),
            *notes,
        ],
    )


def write_report(report: ReplayReport, folder: Path) -> list[Path]:
    """Write `report.json` and `report.html` into `folder`; returns their paths.

    Raises
    ------
    OSError
        If they cannot be written.
    model.evaluation.report_plots.PlotError
        If the page cannot be drawn; the JSON is written.
    """
    from deploy.replay_report_html import replay_report_html

    folder.mkdir(parents=True, exist_ok=True)
    (folder / JSON_NAME).write_bytes(encode_report(report))
    (folder / PAGE_NAME).write_text(replay_report_html(report), encoding="utf-8")
    return [folder / JSON_NAME, folder / PAGE_NAME]


def _other_models(of: Heard, versions: Sequence[str]) -> list[str]:
    if others := sorted(set(versions) - {of.model.version}):
        return [
            f"alerts are of model {', '.join(others)}; what a class means was taken from {of.model.name} "
            f"{of.model.version}, as AEWATCH_MODEL__BUNDLE says"
        ]
    return []
