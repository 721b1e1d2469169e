"""Which recordings a data set holds, and what each is labelled: a folder of class folders, or a CSV or Parquet table.

A table has a header row with the columns `path` and `label`, and any of `start` and `end` (seconds from the beginning
of the recording), `channel` (counted from 0), `sensor`, `position`, `recording` and either `split` (train, validation,
test) or `fold` (a name). Paths are relative to the table's folder. Rows may share a file; where no column `recording`
says otherwise, a file is one recording.

In a folder each subfolder is a class and every readable file in it, however deep, a recording of its own; .csv and .tsv
only where there are no others, as beside others they are notes. If the first level is `train`, `validation` (or `val`)
and `test`, the classes are one level below. So two files that were cut from one original recording count as two
recordings and may come to lie on both sides of a split: only a table with a column `recording` can say that they belong
together. Nothing is guessed from file names.
"""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: File name endings that are taken out of a class folder; what `producers.sources.open_recording` knows by name.
RECORDING_SUFFIXES = frozenset(
    {".wav", ".flac", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".w64", ".rf64", ".caf", ".au", ".tradb", ".dta"}
    | {".npy", ".npz", ".mat", ".h5", ".hdf5", ".tdms", ".csv", ".tsv"}
)
#: Clips of a data set that has no other recordings; beside others they are notes on them (ESC-50's `meta/esc50.csv`).
NOTE_SUFFIXES = frozenset({".csv", ".tsv"})
TABLE_SUFFIXES = frozenset({".csv", ".parquet"})
REQUIRED = ("path", "label")
COLUMNS = (*REQUIRED, "start", "end", "channel", "sensor", "position", "recording", "split", "fold")
SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {name: name for name in SPLITS} | {"val": "validation", "valid": "validation", "training": "train"}
TOLD_NAMES = 5
TOLD_ROWS = 20  #: of all that are wrong, so many are told at once
MAX_CHANNEL = 65_535
MAX_TABLE_BYTES = 1 << 28  #: of a table as text
MAX_ROWS = 5_000_000  #: a Parquet file of a few bytes can hold any number

EACH_FILE_A_RECORDING = (
    "each file counts as a recording of its own; if several were cut from one original, a split may put them on both "
    "sides: say which belong together in a CSV table with columns path, label, recording"
)


class ManifestError(ValueError):
    """A data set that cannot be used; the message names file, row and value, and the way out."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A labelled piece of a recording."""

    path: Path
    label: str
    start_s: float | None = None  #: from the beginning of the file; None is its beginning
    end_s: float | None = None  #: None is its end
    channel: int | None = None  #: None is every channel, each by itself
    sensor: str = ""  #: "" where the data set does not say
    position: str = ""  #: likewise
    recording: str = ""  #: never empty in a manifest that was read
    split: str = ""  #: "train", "validation", "test", the name of a fold, or "" where the data set does not say

    def __str__(self) -> str:
        """The file, and the seconds and the channel if not all of it is meant."""
        span = ""
        if self.start_s is not None or self.end_s is not None:
            span = f" {self.start_s or 0:g} s to {'its end' if self.end_s is None else f'{self.end_s:g} s'}"
        return f"{self.path}{span}{'' if self.channel is None else f' channel {self.channel}'}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """All clips of a data set, in the order of its table or of its files' names."""

    path: Path
    clips: tuple[Clip, ...]
    notes: tuple[str, ...] = ()  #: what was left out, and what a user should know

    @property
    def label_names(self) -> tuple[str, ...]:
        """Every label once, sorted."""
        return tuple(sorted({clip.label for clip in self.clips}))


def read_manifest(path: str | os.PathLike[str], *, labels: int = 2) -> Manifest:
    """The data set at `path`: a folder of class folders, a .csv or a .parquet file; see the module's text.

    Looks at names, not into recordings.

    Parameters
    ----------
    labels
        So many it must have at least. One cannot be learned; what was learned can be tested on one.

    Raises
    ------
    ManifestError
        Naming what is wrong and the way out, up to `TOLD_ROWS` rows at once; also where there are too few labels.
    """
    path = Path(path)
    try:
        if path.is_dir():
            manifest = _read_folder(path)
        elif not path.exists():
            raise ManifestError(f"{path}: there is no such file or folder")
        elif path.suffix.lower() in TABLE_SUFFIXES:
            manifest = _read_table(path)
        else:
            raise ManifestError(f"{path}: is no data set; name a folder of class folders, a .csv or a .parquet file")
    except OSError as error:
        raise ManifestError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from error
    if len(manifest.label_names) < labels:
        tables = _tables(path) if path.is_dir() else []
        raise ManifestError(
            f"{path}: the only label is {manifest.label_names[0]!r}; to tell things apart a data set needs two or more"
            + (f"; did you mean {path / tables[0]}?" if tables else "")
        )
    return manifest


# --- Folders -----------------------------------------------------------------------------------------------------


def _read_folder(root: Path) -> Manifest:
    top = _subfolders(root)
    parts = [name for name in top if name.lower() in SPLIT_NAMES and _subfolders(root / name)]
    if not parts:
        clips, notes = _read_classes(root, root, "")
    else:
        if others := [name for name in top if name not in parts]:
            raise ManifestError(
                f"{root}: {', '.join(others)} beside {', '.join(parts)}; is that a class or a part of the data set? "
                "Let all folders there be parts (train, validation, test), or all of them classes"
            )
        clips, notes = [], []
        for name in parts:
            found, said = _read_classes(root, root / name, SPLIT_NAMES[name.lower()])
            clips += found
            notes += said
    if not clips:
        tables = _tables(root)
        loose = sum(Path(name).suffix.lower() in RECORDING_SUFFIXES for name in os.listdir(root))
        hint = (
            f"; did you mean {root / tables[0]}?" if tables else f"; {loose} lie beside one another." if loose else "."
        )
        raise ManifestError(
            f"{root}: no folder in it holds a recording ({', '.join(sorted(RECORDING_SUFFIXES))}){hint} "
            "A data set is a folder with a folder of recordings for each class"
        )
    return Manifest(root, tuple(clips), (*notes, EACH_FILE_A_RECORDING))


def _tables(folder: Path) -> list[str]:
    """Names of the tables in it, sorted."""
    return sorted(name for name in os.listdir(folder) if Path(name).suffix.lower() in TABLE_SUFFIXES)


def _read_classes(root: Path, folder: Path, split: str) -> tuple[list[Clip], list[str]]:
    """Clips of the class folders in `folder`, and what was left out."""
    clips: list[Clip] = []
    notes: list[str] = []
    left_out: Counter[str] = Counter()
    shapes: list[frozenset[str]] = []
    empty: list[str] = []
    files: dict[str, list[Path]] = {}
    for label in _subfolders(folder):
        if not _is_plain(label):
            raise ManifestError(
                f"{folder / label!r}: the name of a class has control characters or is no text; rename the folder"
            )
        files[label] = list(_files(folder / label, ()))
    recordings = RECORDING_SUFFIXES - NOTE_SUFFIXES
    if not any(file.suffix.lower() in recordings for inside in files.values() for file in inside):
        recordings = RECORDING_SUFFIXES
    for label, inside in files.items():
        before = len(clips)
        for file in inside:
            suffix = file.suffix.lower()
            if suffix not in recordings:
                left_out[suffix or "without an ending"] += 1
                continue
            clips.append(Clip(file, label, recording=file.relative_to(root).as_posix(), split=split))
        if len(clips) == before:
            empty.append(label)
        elif all(clip.path.parent != folder / label for clip in clips[before:]):
            shapes.append(frozenset(_subfolders(folder / label)))
    if empty:
        more = f" and {len(empty) - TOLD_NAMES} more" if len(empty) > TOLD_NAMES else ""
        notes.append(f"{folder}: no recording in {', '.join(empty[:TOLD_NAMES])}{more}, so that is no class")
    if len(shapes) > 1 and len(set(shapes)) == 1 and len(shapes[0]) > 1:
        notes.append(
            f"{folder}: every class folder holds the same folders ({', '.join(sorted(shapes[0])[:5])}); if those are "
            "the classes, write a CSV table with columns path, label and fold"
        )
    beside = sum(1 for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith("."))
    if beside:
        notes.append(f"{folder}: {beside} file{'s' * (beside > 1)} in no class folder, left out")
    if left_out:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(left_out.items()))
        notes.append(f"{folder}: files that are no recordings by their names, left out: {kinds}")
    return clips, notes


def _subfolders(folder: Path) -> list[str]:
    """Names of the folders in it, sorted, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _files(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    """All files below `folder`, sorted, without hidden ones. `above` are the true paths of the folders it lies in."""
    true_path = os.path.realpath(folder)
    if true_path in above:
        return  # a link to a folder that it lies in
    with os.scandir(folder) as entries:
        inside = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in inside:
        if entry.is_dir():
            yield from _files(folder / entry.name, (*above, true_path))
        elif entry.is_file():
            yield folder / entry.name


# --- Tables ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    place: str  #: "line 7" of a CSV file, "row 6" of a Parquet file
    values: dict[str, str]  #: of known columns; "" where there is none


@dataclass(slots=True)
class _Trouble:
    """What is wrong with a table's rows, of which the first few are told."""

    path: Path
    count: int = 0
    told: list[str] | None = None

    def add(self, row: _Row, what: str) -> None:
        self.count += 1
        self.told = self.told or []
        if len(self.told) < TOLD_ROWS:
            self.told.append(f"{self.path}, {row.place}: {what}")

    def raise_if_any(self) -> None:
        if self.told:
            more = f"\n… and {self.count - len(self.told)} more" if self.count > len(self.told) else ""
            raise ManifestError("\n".join(self.told) + more)


def _read_table(path: Path) -> Manifest:
    header, rows = _parquet_rows(path) if path.suffix.lower() == ".parquet" else _csv_rows(path)
    trouble = _Trouble(path)
    part = "fold" if "fold" in header else "split"
    exists: dict[str, str] = {}
    clips = []
    for row in rows:
        clip = _clip(path, row, part, exists, trouble)
        if clip is not None:
            clips.append((row, clip))
    first: dict[Clip, str] = {}
    for row, clip in clips:
        if clip in first:
            trouble.add(row, f"says what {first[clip]} said; leave one")
        first.setdefault(clip, row.place)
    if any(clip.split for _, clip in clips):
        for row, clip in clips:
            if not clip.split:
                trouble.add(row, f"no {part}, but other rows have one; fill it in, or leave the row out")
    trouble.raise_if_any()
    if not clips:
        raise ManifestError(f"{path}: holds no rows")
    notes = []
    if unused := [name for name in header if name not in COLUMNS]:
        notes.append(f"{path}: columns that mean nothing here, left out: {', '.join(unused)}")
    if "recording" not in header:
        notes.append(EACH_FILE_A_RECORDING)
    return Manifest(path, tuple(clip for _, clip in clips), tuple(notes))


def _check_header(path: Path, header: Sequence[str]) -> None:
    if twice := [name for name, count in Counter(header).items() if count > 1 and name in COLUMNS]:
        raise ManifestError(f"{path}: column {twice[0]} stands there twice; leave one")
    if missing := [name for name in REQUIRED if name not in header]:
        raise ManifestError(
            f"{path}: no column {' and no column '.join(missing)}; there are {', '.join(header) or 'none'}. "
            "Name the file's column path and the class's label"
        )
    if "split" in header and "fold" in header:
        raise ManifestError(f"{path}: has a column split and a column fold; leave the one that is meant")


def _csv_rows(path: Path) -> tuple[list[str], list[_Row]]:
    """Header and rows. Separated by commas, semicolons or tabs, whichever makes the header a header."""
    try:
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise ManifestError(f"{path}: over {MAX_TABLE_BYTES:,} bytes; no table of labels is so large, split it")
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            delimiter = max(",;\t", key=lambda mark: _known_columns(first, mark))
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = [name.strip().lower() for name in next(reader, [])]
            _check_header(path, header)
            rows = []
            trouble = _Trouble(path)
            for fields in reader:
                if not any(map(str.strip, fields)):
                    continue
                row = _Row(f"line {reader.line_num}", {n: v.strip() for n, v in zip(header, fields, strict=False)})
                if len(fields) != len(header):
                    trouble.add(row, f"{len(fields)} fields, the header has {len(header)}; quote texts with commas")
                rows.append(row)
            trouble.raise_if_any()
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except csv.Error as error:
        raise ManifestError(f"{path}, line {reader.line_num}: {error}; is a quotation mark left open?") from error
    return header, rows


def _known_columns(header: str, delimiter: str) -> int:
    return sum(name.strip().strip('"').lower() in COLUMNS for name in header.split(delimiter))


def _parquet_rows(path: Path) -> tuple[list[str], list[_Row]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ManifestError(f"{path}: reading Parquet needs pyarrow; pip install 'aewatch[train]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            if file.metadata.num_rows > MAX_ROWS:
                raise ManifestError(f"{path}: {file.metadata.num_rows:,} rows; at most {MAX_ROWS:,} are read, split it")
            names: list[str] = file.schema_arrow.names
            header = [name.strip().lower() for name in names]
            _check_header(path, header)
            wanted = [name for name, known in zip(names, header, strict=True) if known in COLUMNS]
            table = file.read(columns=wanted)
    except (pyarrow.ArrowException, OSError) as error:
        raise ManifestError(f"{path}: cannot be read as Parquet: {error}") from error
    columns = {name.strip().lower(): list(map(_cell, table.column(name).to_pylist())) for name in wanted}
    rows = [
        _Row(f"row {number}", dict(zip(columns, values, strict=True)))
        for number, values in enumerate(zip(*columns.values(), strict=True), start=1)
    ]
    return header, rows


def _cell(value: Any) -> str:
    """As it would be written in a CSV file. Whole numbers that became floats beside a missing one are whole again."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _clip(path: Path, row: _Row, part: str, exists: dict[str, str], trouble: _Trouble) -> Clip | None:
    """The row's clip; None where something is wrong with it, which `trouble` is told. `exists` remembers files."""
    wrong: list[str] = []
    values = row.values
    for name, value in values.items():
        if not _is_plain(value):
            wrong.append(f"{name} {value!r} has control characters; leave them out")
    name = values["path"]
    if not name:
        wrong.append("no path; name the recording")
    elif not wrong:
        if name not in exists:
            file = path.parent / os.path.expanduser(name)
            exists[name] = (
                ""
                if file.is_file()
                else f"path {name!r}: {'is a folder' if file.is_dir() else 'no such file'}; "
                f"paths are relative to {path.parent}"
            )
        if exists[name]:
            wrong.append(exists[name])
    if not values["label"]:
        wrong.append("no label; every clip needs one")
    start_s = _seconds(values, "start", wrong)
    end_s = _seconds(values, "end", wrong)
    if end_s is not None and end_s <= (start_s or 0.0) and not wrong:
        wrong.append(f"end {values['end']} is not after start {values.get('start') or 0}")
    channel = _channel(values.get("channel", ""), wrong)
    split = _split(values.get(part, ""), part, wrong)
    if wrong:
        for what in wrong:
            trouble.add(row, what)
        return None
    return Clip(
        path=path.parent / os.path.expanduser(name),
        label=values["label"],
        start_s=start_s,
        end_s=end_s,
        channel=channel,
        sensor=values.get("sensor", ""),
        position=values.get("position", ""),
        recording=values.get("recording", "") or Path(os.path.normpath(name)).as_posix(),
        split=split,
    )


def _seconds(values: dict[str, str], name: str, wrong: list[str]) -> float | None:
    try:
        return read_seconds(values.get(name, ""), name)
    except ValueError as error:
        wrong.append(str(error))
        return None


def read_seconds(text: str, name: str) -> float | None:
    """Seconds as a table of a data set or of labels has them in its column `name`; None where it says nothing.

    Raises
    ------
    ValueError
        If they are no number from 0 up.
    """
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{name} {text!r} is no number of seconds from 0 up; write it as 12.5, or leave it empty")
    return seconds


def _channel(text: str, wrong: list[str]) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= MAX_CHANNEL):
        wrong.append(f"channel {text!r} is no whole number from 0 to {MAX_CHANNEL}; leave it empty for every channel")
        return None
    return int(text)


def _split(text: str, part: str, wrong: list[str]) -> str:
    known = SPLIT_NAMES.get(text.lower())
    if part == "fold":
        if known:
            wrong.append(f"fold {text!r} is the name of a part; name the column split if it says train and test")
        return text
    if text and known is None:
        wrong.append(f"split {text!r} is none of {', '.join(SPLITS)}; name the column fold if these are folds")
    return known or ""


def _is_plain(text: str) -> bool:
    return not any(ord(mark) < 32 or ord(mark) == 127 or 0xD800 <= ord(mark) < 0xE000 for mark in text)
