"""What is known to happen in recordings: the rows of a manifest, or a table beside each recording.

The table beside `pump.wav` is `pump.labels.csv`: a header with `label` and any of `start` and `end` (seconds from the
beginning of the recording; empty is its beginning or end; both the same is a moment) and `channel` (empty is every
channel, each by itself). It tells everything that happens there: a table with a header only says that nothing does.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.replay_report import Event
from model.data.manifest import MAX_CHANNEL, read_manifest, read_seconds

SIDECAR_ENDING = ".labels.csv"
COLUMNS = ("start", "end", "label", "channel")
TOLD_ROWS = 20  #: of all that are wrong, so many are told at once
LONGEST_LABEL = 200


class LabelsError(ValueError):
    """Labels that cannot be used; the message names file, line and value, and the way out."""


@dataclass(frozen=True, slots=True)
class Label:
    """Something that happens in a recording, seconds from its beginning."""

    label: str
    start_s: float = 0.0
    end_s: float | None = None  #: None is the recording's end
    channel: int | None = None  #: None is every channel, each by itself


def sidecar_of(recording: Path) -> Path:
    """Where the labels of a recording lie, if there are any: `pump.labels.csv` beside `pump.wav`."""
    return recording.with_name(recording.stem + SIDECAR_ENDING)


def read_sidecar(path: Path) -> tuple[Label, ...]:
    """The labels in a table beside a recording, in the order of its rows.

    Raises
    ------
    LabelsError
        If it cannot be read or rows are wrong; tells the first few of them, each with its line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            delimiter = max(",;\t", key=lambda mark: sum(name in COLUMNS for name in _names(first.split(mark))))
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = _names(next(reader, []))
            _check_header(path, header)
            return _labels(path, header, reader)
    except UnicodeDecodeError as error:
        raise LabelsError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except csv.Error as error:
        raise LabelsError(f"{path}: {error}; is a quotation mark left open?") from error
    except OSError as error:
        raise LabelsError(f"{path}: cannot be read: {error.strerror or error}") from error


def labels_of(recordings: Iterable[Path], manifests: Sequence[Path]) -> dict[Path, tuple[Label, ...]]:
    """The labels of each recording that has any: the manifests' rows, else the table beside it.

    Raises
    ------
    LabelsError, model.data.manifest.ManifestError
        If a table cannot be used.
    """
    found: dict[str, list[Label]] = {}
    for manifest in manifests:
        for clip in read_manifest(manifest, labels=1).clips:
            label = Label(clip.label, clip.start_s or 0.0, clip.end_s, clip.channel)
            found.setdefault(_key(clip.path), []).append(label)
    labels: dict[Path, tuple[Label, ...]] = {}
    for recording in recordings:
        rows = found.get(_key(recording))
        if rows is not None:
            labels[recording] = tuple(rows)
        elif (sidecar := sidecar_of(recording)).is_file():
            labels[recording] = read_sidecar(sidecar)
    return labels


def events_of(owners: Mapping[str, Path], labels: Mapping[Path, Sequence[Label]]) -> list[Event]:
    """What is to happen at each sensor of a labelled recording.

    Parameters
    ----------
    owners
        Sensor → its recording. Where labels name channels, sensors must end with `/ch<channel>`.

    Raises
    ------
    LabelsError
        If a label names a channel that its recording does not have.
    """
    sensors: dict[Path, list[str]] = {}
    for sensor, recording in owners.items():
        sensors.setdefault(recording, []).append(sensor)
    events = []
    for recording, rows in labels.items():
        there = sensors.get(recording, [])
        channels = {sensor.rpartition("/ch")[2]: sensor for sensor in there}
        for row in rows:
            chosen = there
            if row.channel is not None:
                if str(row.channel) not in channels:
                    raise LabelsError(
                        f"{recording}: a label {row.label!r} is of channel {row.channel}, but the sensors played are "
                        f"{', '.join(there[:20])}; mend the label, or leave --channels and --sensors out"
                    )
                chosen = [channels[str(row.channel)]]
            events += [Event(sensor, row.label, row.start_s, row.end_s) for sensor in chosen]
    return events


def _names(fields: Iterable[str]) -> list[str]:
    return [name.strip().strip('"').lower() for name in fields]


def _check_header(path: Path, header: Sequence[str]) -> None:
    if "label" not in header:
        raise LabelsError(
            f"{path}: no column label; there are {', '.join(filter(None, header)) or 'none'}. The first line is to be "
            "start,end,label or start,end,label,channel"
        )
    if twice := [name for name in COLUMNS if header.count(name) > 1]:
        raise LabelsError(f"{path}: column {twice[0]} stands there twice; leave one")


def _labels(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> tuple[Label, ...]:
    labels: dict[Label, int] = {}
    wrong: list[str] = []
    # Without newlines in texts, which have no place here, rows are lines.
    for line, fields in enumerate(rows, start=2):
        if not any(map(str.strip, fields)):
            continue
        try:
            if len(fields) != len(header):
                raise ValueError(f"{len(fields)} fields, the header has {len(header)}; quote texts with commas")
            label = _label({name: value.strip() for name, value in zip(header, fields, strict=True)})
            if label in labels:
                raise ValueError(f"says what line {labels[label]} said; leave one")
            labels[label] = line
        except ValueError as error:
            wrong.append(f"{path}, line {line}: {error}")
    if wrong:
        more = f"\n… and {len(wrong) - TOLD_ROWS} more" if len(wrong) > TOLD_ROWS else ""
        raise LabelsError("\n".join(wrong[:TOLD_ROWS]) + more)
    return tuple(labels)


def _label(values: Mapping[str, str]) -> Label:
    label = values["label"]
    if not label or len(label) > LONGEST_LABEL or not label.isprintable():
        raise ValueError(f"label {label[:40]!r} is no name of a class; write a word like knock")
    start_s = read_seconds(values.get("start", ""), "start")
    end_s = read_seconds(values.get("end", ""), "end")
    if end_s is not None and end_s < (start_s or 0.0):
        raise ValueError(f"end {values['end']} is before start {values.get('start') or 0}; swap them")
    return Label(label, start_s or 0.0, end_s, _channel(values.get("channel", "")))


def _channel(text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= MAX_CHANNEL):
        raise ValueError(
            f"channel {text!r} is no whole number from 0 to {MAX_CHANNEL}; leave it empty for every channel"
        )
    return int(text)


def _key(path: Path) -> str:
    return os.path.realpath(path)
