"""Frames from .csv and .tsv: a line is one sample of every channel, a first column may be the time."""

from __future__ import annotations

import csv
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from producers.sources.reading import Reading, RecordingError
from producers.sources.sample_rate import TIME_NAMES, EvenTimes, StatedRate, agreed_rate, stated_rate, time_unit_s
from producers.sources.sampled import MAX_CHANNELS, Block, Channel, Read, SampledRecording, Track, readable
from producers.sources.stored_arrays import is_fact, volts_per_count

TEXT_AT_ONCE = 1 << 20  #: characters; also the longest line
COUNTER_NAMES = frozenset({"", "#", "n", "no", "no.", "index", "sample", "samples"})
NAME_AND_UNIT = re.compile(r"(.*?)\s*[\[(]\s*([^\])]*?)\s*[\])]\s*")
REMARK = re.compile(r"#+\s*([^:=]+?)\s*[:=]\s*(.*?)\s*")
EVEN_STEPS = 8  #: so many make a first column without a name look like times
FIRST_LINES = 10_000  #: that the times are looked at, to tell the rate


@dataclass(frozen=True, slots=True)
class _Lines:
    """Lines with something in them, as they stand."""

    texts: list[str]
    numbers: Sequence[int]  #: of each in the file


@dataclass(slots=True)
class _Head:
    """What the first lines say."""

    encoding: str
    delimiter: str = ","
    decimal_comma: bool = False
    header_line: int = 0  #: 0 is none
    names: list[str] = field(default_factory=list)  #: of each column
    units: list[str] = field(default_factory=list)  #: "" where the header does not say
    remarks: dict[str, str] = field(default_factory=dict)  #: from comment lines
    skipped: int = 0  #: first columns that are no channels
    time_unit_s: float | None = None  #: of the first column; None if that holds no times


def open_source(path: Path, reading: Reading) -> SampledRecording:
    """See `producers.sources.formats`."""
    with readable(path, "CSV"):
        head, first = _read_head(path)
        stated: list[StatedRate] = []
        for name, value in head.remarks.items():
            said = stated_rate(path, f"# {name}", name, value.lower().removesuffix("hz"))
            if said is not None:
                stated.append(said)
        if head.time_unit_s is not None:
            stated.append(_even_times(path, head, first).rate)
        rate_hz = agreed_rate(path, stated, reading.rate_hz)
        units = {name: {"unit": unit} for name, unit in zip(head.names, head.units, strict=True) if unit}
        channels = tuple(
            Channel(
                reading.sensor(path, number, name),
                name or f"column {head.skipped + number + 1}",
                volts_per_count(path, name, {"": head.remarks} | units, reading, int16=False),
            )
            for number, name in enumerate(head.names[head.skipped :])
        )

    @contextmanager
    def open_tracks() -> Generator[Sequence[Read]]:
        blocks = _blocks(path, head, first)
        yield [lambda *_: next(blocks, np.empty((0, len(channels))))]

    return SampledRecording(path, reading.cuts, [Track(channels, rate_hz, None, int16=False)], open_tracks)


def _blocks(path: Path, head: _Head, first: _Lines) -> Iterator[Block]:
    even = None if head.time_unit_s is None else _even_times(path, head, first)
    for lines in _data_lines(path, head):
        values = _numbers(path, head, lines)
        wrong = None if even is None else even.uneven(values[:, 0] * (head.time_unit_s or 1.0))
        if wrong is not None:
            yield values[:wrong, head.skipped :]
            raise RecordingError(
                f"{path}, line {lines.numbers[wrong]}: the time {values[wrong, 0]:.12g} does not follow evenly; "
                "resample the "
                "recording, or leave the times out and give --sample-rate"
            )
        yield values[:, head.skipped :]


# --- Lines -------------------------------------------------------------------------------------------------------


def _lines(path: Path, encoding: str) -> Iterator[_Lines]:
    """All lines that hold something, comments too, in pieces; a line too long to hold is refused."""
    number = 1
    left = ""
    # What is no text in the encoding is then no number either, and told with its line.
    with path.open(encoding=encoding, errors="replace") as file:
        while text := file.read(TEXT_AT_ONCE):
            *texts, left = (left + text).split("\n")
            if len(left) > TEXT_AT_ONCE:
                raise RecordingError(
                    f"{path}, line {number + len(texts)}: is longer than {TEXT_AT_ONCE} characters; a line is one "
                    "sample of "
                    "every channel"
                )
            yield _with_something(texts, number)
            number += len(texts)
    yield _with_something([left], number)


def _with_something(texts: list[str], first: int) -> _Lines:
    if all(map(str.strip, texts)):
        return _Lines(texts, range(first, first + len(texts)))
    kept = [place for place, text in enumerate(texts) if text.strip()]
    return _Lines([texts[place] for place in kept], [first + place for place in kept])


def _data_lines(path: Path, head: _Head) -> Iterator[_Lines]:
    for lines in _lines(path, head.encoding):
        texts, numbers = lines.texts, lines.numbers
        if any(text.lstrip().startswith("#") for text in texts) or (texts and numbers[0] <= head.header_line):
            kept = [
                place
                for place, text in enumerate(texts)
                if numbers[place] > head.header_line and not text.lstrip().startswith("#")
            ]
            texts, numbers = [texts[place] for place in kept], [numbers[place] for place in kept]
        if texts:
            yield _Lines(texts, numbers)


# --- The head ----------------------------------------------------------------------------------------------------


def _read_head(path: Path) -> tuple[_Head, _Lines]:
    """What the first lines say, and the first lines with numbers."""
    with path.open("rb") as file:
        mark = file.read(2)
    head = _Head("utf-16" if mark in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    comments: list[str] = []
    header = ""
    for lines in _data_lines_of_head(path, head, comments):
        text, number = lines.texts[0], lines.numbers[0]
        head.delimiter = _delimiter(path, text)
        fields = _fields(text, head.delimiter)
        if not _is_number(fields[0], head.delimiter):
            head.header_line, header = number, text
        break
    first = next(_data_lines(path, head), None)
    if first is None:
        raise RecordingError(f"{path}: holds no samples: no line of numbers is in it")
    if header:
        head.delimiter = _delimiter(path, first.texts[0], header)
    first = _Lines(first.texts[:FIRST_LINES], first.numbers[:FIRST_LINES])
    head.decimal_comma = head.delimiter != "," and any("," in text for text in first.texts)
    columns = len(_fields(first.texts[0], head.delimiter))
    for comment in comments:
        if (said := REMARK.fullmatch(comment)) and is_fact(name := said[1].replace(" ", "_")):
            head.remarks[name] = said[2]
    names = _fields(header, head.delimiter) if header else _named_in_a_comment(comments, head, columns)
    if names and len(names) != columns:
        raise RecordingError(
            f"{path}, line {first.numbers[0]}: {columns} fields, the header has {len(names)}; write a name for each "
            "column, "
            "and separate columns by semicolons where a comma is in numbers"
        )
    if columns > MAX_CHANNELS + 1:
        raise RecordingError(
            f"{path}: {columns} columns; at most {MAX_CHANNELS} channels are played; a line is one sample"
        )
    for name in names or [""] * columns:
        split = NAME_AND_UNIT.fullmatch(name)
        head.names.append(split[1].strip() if split else name)
        head.units.append(split[2] if split else "")
    _tell_first_column(path, head, first, named=bool(names))
    return head, first


def _data_lines_of_head(path: Path, head: _Head, comments: list[str]) -> Iterator[_Lines]:
    """The first line that is no comment, and the comments before it."""
    for lines in _lines(path, head.encoding):
        for text, number in zip(lines.texts, lines.numbers, strict=True):
            if text.lstrip().startswith("#"):
                comments.append(text.strip())
            else:
                yield _Lines([text], [number])
                return


def _delimiter(path: Path, *texts: str) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    return next((mark for mark in ";\t" if all(mark in text for text in texts)), ",")


def _fields(text: str, delimiter: str) -> list[str]:
    return [entry.strip() for entry in next(csv.reader([text], delimiter=delimiter, skipinitialspace=True), [""])]


def _is_number(text: str, delimiter: str) -> bool:
    try:
        float(text if delimiter == "," else text.replace(",", "."))
    except ValueError:
        return False
    return "_" not in text


def _named_in_a_comment(comments: list[str], head: _Head, columns: int) -> list[str]:
    """Names from the last comment before the numbers, if it names a time and each column; numpy.savetxt writes so."""
    if not comments or REMARK.fullmatch(comments[-1]):
        return []
    names = _fields(comments[-1].lstrip("#"), head.delimiter)
    return names if len(names) == columns and time_unit_s(names[0].partition(" ")[0]) is not None else []


def _tell_first_column(path: Path, head: _Head, first: _Lines, *, named: bool) -> None:
    """Whether it is the time, or only counts."""
    name, unit = head.names[0], head.units[0]
    head.time_unit_s = time_unit_s(name, unit)
    if head.time_unit_s is None and name.lower() in TIME_NAMES:
        raise RecordingError(f"{path}: column {name} is in {unit!r}; give times in s, ms, us or ns")
    column = _numbers(path, head, first)[:, 0]
    steps = np.diff(column)
    counts = len(steps) > 1 and bool((steps == 1).all())
    if head.time_unit_s is not None or (named and counts and name.lower() in COUNTER_NAMES):
        head.skipped = 1
        if len(head.names) == 1:
            raise RecordingError(f"{path}: holds no samples: column {name or 1} is the only one, and no channel")
    elif not named and len(head.names) > 1 and len(steps) >= EVEN_STEPS:
        even = steps.mean() > 0 and bool((np.abs(steps - steps.mean()) <= 0.5 * steps.mean()).all())
        if even:
            raise RecordingError(
                f"{path}: the first column rises evenly, as times do, but no header says so; add a first line that "
                "names "
                "the columns: time,… in seconds, or another name if it is a channel"
            )


def _even_times(path: Path, head: _Head, first: _Lines) -> EvenTimes:
    unit_s = head.time_unit_s or 1.0
    times = _numbers(path, head, first)[:, 0] * unit_s
    texts = [_fields(text, head.delimiter)[0].replace(",", ".") for text in first.texts]
    return EvenTimes(path, f"column {head.names[0]}", times, unit_s * _rounding(texts))


def _rounding(texts: Sequence[str]) -> float:
    """What the last digit counts of those that are written with the most digits."""
    most, counts = 0, 0.0
    for text in texts:
        mantissa, _, exponent = text.lower().partition("e")
        whole, _, decimals = mantissa.lstrip("+-").partition(".")
        digits = len((whole + decimals).lstrip("0"))
        if digits >= most:
            value = 10.0 ** (int(exponent or 0) - len(decimals))
            most, counts = digits, max(value, counts) if digits == most else value
    return counts


# --- Numbers -----------------------------------------------------------------------------------------------------


def _numbers(path: Path, head: _Head, lines: _Lines) -> npt.NDArray[np.float64]:
    """The fields as numbers, shape (lines, columns)."""
    texts = [text.replace(",", ".") for text in lines.texts] if head.decimal_comma else lines.texts
    try:
        values: npt.NDArray[Any] = np.loadtxt(
            texts, dtype=np.float64, delimiter=head.delimiter, comments=None, quotechar='"', ndmin=2
        )
    except ValueError as error:
        raise _wrong(path, head, texts, lines.numbers) from error
    if values.shape != (len(texts), len(head.names)):
        raise _wrong(path, head, texts, lines.numbers)
    return values


def _wrong(path: Path, head: _Head, texts: Sequence[str], numbers: Sequence[int]) -> RecordingError:
    """What is wrong with the first line that is no line of numbers."""
    for text, number in zip(texts, numbers, strict=True):
        fields = _fields(text, head.delimiter)
        if len(fields) != len(head.names):
            return RecordingError(
                f"{path}, line {number}: {len(fields)} fields, the first line has {len(head.names)}; is the line cut "
                "off?"
            )
        for column, entry in enumerate(fields, start=1):
            if not _is_number(entry, head.delimiter):
                held = f"{entry[:40]!r} is no number" if entry else "is empty"
                return RecordingError(
                    f"{path}, line {number}, column {column}: {held}; give each line a number for each column"
                )
    return RecordingError(
        f"{path}, line {numbers[0]} or after it: not only numbers; give each line one for each column"
    )
