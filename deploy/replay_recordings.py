"""Which recordings the paths of a replay mean, and the sources that play them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from fractions import Fraction
from pathlib import Path

from deploy.event_labels import SIDECAR_ENDING
from model.data.manifest import TABLE_SUFFIXES, read_manifest
from producers.replay_track import InTurn
from producers.sources import Reading, RecordingError, Source, open_recording
from producers.sources.formats import RECORDING_SUFFIXES
from producers.sources.reading import SENSOR_PATTERN
from stream.records import Frame

MANIFEST_COLUMNS = {"path", "label"}
HEADER_BYTES = 65_536
TOLD_NAMES = 3

# What opens a recording so that its sensors tell channel and name; a sign that nobody uses lies between.
APART = "\N{SYMBOL FOR UNIT SEPARATOR}"
CHANNEL_AND_NAME = f"{{channel}}{APART}{{name}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How recordings are to be read, as the user says."""

    run: str
    sensor_pattern: str = SENSOR_PATTERN
    frame_s: float = 0.05
    full_scale_v: float = 1.0
    rate_hz: Fraction | None = None  #: of files that do not say
    channels: tuple[str, ...] = ()  #: numbers, names or globs; all where empty


@dataclass(slots=True)
class Opened:
    """What there is to play, and what is not played."""

    sources: list[Source | InTurn] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  #: what was left out, and rightly so
    failures: list[str] = field(default_factory=list)  #: recordings that cannot be played, while others can
    owners: dict[str, Path] = field(default_factory=dict)

    @property
    def sensors(self) -> list[str]:
        """Of all sources."""
        return list(self.owners)

    def own(self, source: Source, path: Path) -> Source:
        """Enter a source's sensors.

        Raises
        ------
        RecordingError
            If another recording has a sensor of that name, or the source has it twice.
        """
        for sensor, times in Counter(source.sensors).items():
            if times > 1:
                raise RecordingError(
                    f"{path}: {times} of its channels would be sensor {sensor}; put {{channel}} or {{name}} into "
                    "--sensors, or choose one with --channels"
                )
            if sensor in self.owners:
                raise RecordingError(
                    f"{path} and {self.owners[sensor]} would both be sensor {sensor}; put {{file}} into --sensors, "
                    "replay them as runs of their own, or rename one file"
                )
        self.owners.update(dict.fromkeys(source.sensors, path))
        return source


def open_paths(paths: Sequence[Path], asked: Asked) -> Opened:
    """What `paths` mean, all side by side: a file itself, a folder or a manifest its recordings one after another.

    One that cannot be played is entered among the failures, and the others go on.

    Raises
    ------
    RecordingError
        If nothing can be played.
    model.data.manifest.ManifestError
        If a manifest cannot be used.
    """
    opened = Opened()
    for path in paths:
        failed = len(opened.failures)
        try:
            opened.sources.append(_source(path, asked, opened))
        except RecordingError as error:
            opened.failures[failed:] = [str(error)]
    if not opened.sources:
        raise RecordingError("\n".join(opened.failures))
    return opened


def _source(path: Path, asked: Asked, opened: Opened) -> Source | InTurn:
    if path.is_dir():
        return _in_turn(path, _in_folder, path, asked, opened)
    if is_manifest(path):
        return _in_turn(path, _in_manifest, path.parent, asked, opened)
    return opened.own(_open(path, asked), path)


def _in_turn(
    path: Path, find: Callable[[Path, Opened], list[Path]], root: Path, asked: Asked, opened: Opened
) -> InTurn:
    parts = []
    failed = len(opened.failures)
    for file in find(path, opened):
        try:
            parts.append(opened.own(_open(file, _named_from(root, file, asked)), file))
        except RecordingError as error:
            opened.failures.append(str(error))
    if not parts:
        told = "".join(f"\n{failure}" for failure in opened.failures[failed:][:TOLD_NAMES])
        raise RecordingError(f"{path}: holds no recording that can be played{told or f' ({_suffixes()})'}")
    return InTurn(tuple(parts))


def _named_from(root: Path, file: Path, asked: Asked) -> Asked:
    """Files of one name lie in several folders, as in a data set: {file} is the whole path there, without ending."""
    try:
        inside = file.relative_to(root).with_suffix("").as_posix()
    except ValueError:
        return asked
    inside = inside.replace("{", "{{").replace("}", "}}")
    return replace(asked, sensor_pattern=asked.sensor_pattern.replace("{file}", inside))


def _open(path: Path, asked: Asked) -> Source:
    pattern = CHANNEL_AND_NAME if asked.channels else asked.sensor_pattern
    source = open_recording(
        path,
        asked.run,
        frame_s=asked.frame_s,
        full_scale_v=asked.full_scale_v,
        rate_hz=asked.rate_hz,
        sensor_pattern=pattern,
    )
    if not asked.channels:
        return source
    reading = Reading(run=asked.run, sensor_pattern=asked.sensor_pattern)
    chosen: dict[str, str] = {}
    for sensor in source.sensors:
        channel, _, name = sensor.partition(APART)
        called = {channel, f"ch{channel}", name}
        if any(fnmatchcase(one, wanted) for one in called for wanted in asked.channels):
            chosen[sensor] = reading.sensor(path, channel, "" if name == channel else name)
    if not chosen:
        there = ", ".join(sensor.partition(APART)[0] for sensor in source.sensors[:20])
        raise RecordingError(f"{path}: no channel {','.join(asked.channels)}; it has {there}: change --channels")
    return _Chosen(source, chosen)


class _Chosen:
    """Some sensors of a source, under other names."""

    def __init__(self, source: Source, names: dict[str, str]) -> None:
        self._source = source
        self._names = names
        self.sensors = tuple(names.values())
        self.duration_s = source.duration_s
        whole = len(names) == len(source.sensors)
        self.total_frames = source.total_frames if whole else None
        self.total_samples = source.total_samples if whole else None

    def __iter__(self) -> Iterator[Frame]:
        """The frames of these sensors."""
        for frame in self._source:
            if (name := self._names.get(frame.sensor)) is not None:
                yield replace(frame, sensor=name)


def _in_folder(folder: Path, opened: Opened) -> list[Path]:
    """Recordings below `folder` by their names, in order of name; hidden files and linked folders are left out."""
    files = []
    left_out: Counter[str] = Counter()
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            file = Path(parent, name)
            if name.startswith(".") or not file.is_file():
                continue
            if name.endswith(SIDECAR_ENDING):  # labels of a recording
                continue
            if file.suffix.lower() in RECORDING_SUFFIXES and not is_manifest(file):
                files.append(file)
            else:
                left_out[file.suffix.lower() or "without an ending"] += 1
    if left_out:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(left_out.items()))
        opened.notes.append(f"{folder}: files that are no recordings by their names, skipped: {kinds}")
    return sorted(files)


def _in_manifest(path: Path, opened: Opened) -> list[Path]:
    """Each file of the manifest once, in the order of its rows."""
    clips = read_manifest(path, labels=1).clips
    if any((clip.start_s, clip.end_s, clip.channel) != (None, None, None) for clip in clips):
        opened.notes.append(
            f"{path}: names parts of recordings; whole recordings are played (--start, --duration, --channels)"
        )
    inside = os.path.join(os.path.abspath(path.parent), "")
    files = []
    for file in dict.fromkeys(clip.path for clip in clips):
        # A manifest may come from elsewhere, and must not make files public that its folder does not hold.
        if os.path.abspath(file).startswith(inside):
            files.append(file)
        else:
            opened.failures.append(
                f"{path}: names {file}, which lies outside {path.parent}; name that recording itself, or put the "
                "manifest into a folder above it"
            )
    return files


def is_manifest(path: Path) -> bool:
    """Whether it is a table whose header names paths and labels; samples may come in tables, too."""
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES or not path.is_file():
        return False
    if suffix not in RECORDING_SUFFIXES and suffix != ".csv":
        return True
    try:
        with path.open("rb") as file:
            header = file.readline(HEADER_BYTES).decode("utf-8-sig", "replace").lower()
    except OSError:
        return False  # whoever opens it says why
    return any({name.strip().strip('"') for name in header.split(mark)} >= MANIFEST_COLUMNS for mark in ",;\t")


def _suffixes() -> str:
    return f"read are {', '.join(sorted(RECORDING_SUFFIXES))}"
