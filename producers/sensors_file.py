"""sensors.toml: which sensors a producer has, where their samples come from, and what happens without a broker.

Everything is checked before anything starts, and all mistakes are told at once.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from producers.live.registry import source_class
from producers.live.source import LiveSource, SourceError, SourceSettings
from stream.records import BadRecord, decode_sensor

RESERVED = "replay/"
MAX_FILE_BYTES = 16 * 2**20

_SECRET = re.compile("password|passphrase|secret|token|key", re.IGNORECASE)


class SensorsFileError(ValueError):
    """A sensors.toml that cannot be used; the message has a line for each mistake."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SensorTable(_Table):
    """One sensor: a channel of a source, under the name that alerts will bear."""

    id: str
    source: str  #: name of a table [source.NAME]
    channel: Annotated[int, Field(ge=0)] = 0  #: the first is 0
    volts_per_count: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    full_scale_v: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None  #: what 32,768 counts, or 1.0, are
    metadata: dict[str, str | int | float | bool] = {}  #: for people: machine, position, calibration date

    @field_validator("metadata", mode="before")
    @classmethod
    def _plain_values(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        plain = {name: str(value) if isinstance(value, date | time) else value for name, value in values.items()}
        if wrong := [
            f"{name} = {value!r}" for name, value in plain.items() if not isinstance(value, str | int | float)
        ]:
            raise ValueError(f"has {', '.join(wrong)}; texts, numbers, dates, true and false are allowed")
        return plain


class SpoolTable(_Table):
    """Where frames wait while the broker is away."""

    folder: Path | None = None  #: None: they wait in memory, and sources are held up when it is full
    max_gb: Annotated[float, Field(gt=0)] = 10.0
    full: Literal["block", "drop_newest"] = "block"
    sync_s: Annotated[float, Field(ge=0, le=60)] = 1.0  #: at most so much is lost when the power fails
    give_up_s: Annotated[float, Field(gt=0)] = 5.0  #: without an answer for so long, the broker counts as away


class ProducerTable(_Table):
    """What all sensors have in common."""

    frame_ms: Annotated[float, Field(gt=0, le=10_000)] = 50.0
    listen: str = "127.0.0.1:9464"  #: address of /metrics, /sensors and /healthz; "" is none
    flat_s: Annotated[float, Field(gt=0)] = 5.0  #: a sensor whose samples do not change for so long is flat

    @field_validator("listen")
    @classmethod
    def _host_and_port(cls, listen: str) -> str:
        port = listen.rpartition(":")[2]
        if listen and not (":" in listen and port.isascii() and port.isdigit() and int(port) < 65_536):
            raise ValueError('should be host:port, such as "127.0.0.1:9464", or "" for no pages')
        return listen


class _File(_Table):
    producer: ProducerTable = ProducerTable()
    spool: SpoolTable = SpoolTable()
    source: dict[str, dict[str, Any]] = {}
    sensor: list[SensorTable] = []


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """A source and the sensors on its channels."""

    name: str
    kind: str
    make: type[LiveSource]
    settings: SourceSettings
    sensors: tuple[SensorTable, ...]

    def start(self) -> LiveSource:
        """A new instance."""
        source: LiveSource = self.make(self.settings)  # type: ignore[call-arg]  # protocols have no constructors
        return source


@dataclass(frozen=True, slots=True)
class SensorsFile:
    """All that was read, sound as a whole."""

    path: Path
    producer: ProducerTable
    spool: SpoolTable
    sources: tuple[SourcePlan, ...]


def read_sensors_file(path: Path) -> SensorsFile:
    """Read and check.

    Raises
    ------
    SensorsFileError
        Naming the file, and each mistake by its place.
    """
    try:
        with path.open("rb") as file_read:
            content = file_read.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise SensorsFileError(f"{path}: larger than {MAX_FILE_BYTES:,} bytes; is it the right file?")
        values = tomllib.loads(content.decode())
    except OSError as error:
        raise SensorsFileError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise SensorsFileError(f"{path}: is no TOML: {error}") from error
    mistakes: list[str] = []
    try:
        file = _File.model_validate(values)
    except ValidationError as error:
        mistakes += _told(error, values, "")
        file = _File(source=_tables(values))
    outlines = list(_outlines(values))
    plans: list[SourcePlan] = []
    for name, table in file.source.items():
        sensors = tuple(sensor for sensor in file.sensor if sensor.source == name)
        try:
            plans.append(_plan(name, table, sensors))
        except ValidationError as error:
            mistakes += _told(error, table, f"source.{name}.")
        except SourceError as error:
            mistakes.append(f"source.{name}: {error}")
        if name not in {outline.source for outline in outlines}:
            mistakes.append(f"source.{name}: no sensor is on it; add a [[sensor]] or leave it out")
    mistakes += _claimed_twice(plans)
    mistakes += _of_sensors(outlines, file.source.keys(), {plan.name: plan for plan in plans})
    if not values.get("sensor"):
        mistakes.append("there is no [[sensor]]")
    if mistakes:
        count = f"{len(mistakes)} mistake{'s' * (len(mistakes) != 1)}"
        raise SensorsFileError("\n".join([f"{path}: {count}", *(f"  {mistake}" for mistake in mistakes)]))
    return SensorsFile(path, file.producer, file.spool, tuple(plans))


def _plan(name: str, table: dict[str, Any], sensors: tuple[SensorTable, ...]) -> SourcePlan:
    options = dict(table)
    kind = options.pop("kind", None)
    if not isinstance(kind, str):
        raise SourceError('says no kind; such as kind = "simulator"')
    made = source_class(kind)
    return SourcePlan(name, kind, made, made.Settings.model_validate(options), sensors)


@dataclass(frozen=True, slots=True)
class _Outline:
    """What can be told of a sensor, though some of its table may be wrong; None is what cannot."""

    id: str | None
    source: str | None
    channel: int | None
    scales: int  #: how many are given; one says it all

    @property
    def where(self) -> str:
        return f"sensor {self.id!r}"


def _outlines(values: dict[str, Any]) -> Iterator[_Outline]:
    tables = values.get("sensor")
    for table in tables if isinstance(tables, list) else []:
        if isinstance(table, dict):
            name, source, channel = table.get("id"), table.get("source"), table.get("channel", 0)
            yield _Outline(
                name if isinstance(name, str) else None,
                source if isinstance(source, str) else None,
                channel if isinstance(channel, int) and not isinstance(channel, bool) and channel >= 0 else None,
                ("volts_per_count" in table) + ("full_scale_v" in table),
            )


def _claimed_twice(plans: list[SourcePlan]) -> Iterator[str]:
    owners: dict[str, str] = {}
    for plan in plans:
        if (claim := plan.settings.claim()) is None:
            continue
        if claim in owners:
            yield f"source.{plan.name}: takes {claim}, as source.{owners[claim]} does; one of them would get it"
        owners.setdefault(claim, plan.name)


def _of_sensors(sensors: list[_Outline], sources: Any, plans: dict[str, SourcePlan]) -> Iterator[str]:
    for sensor_id, times in Counter(sensor.id for sensor in sensors if sensor.id is not None).items():
        if times > 1:
            yield f"sensor {sensor_id!r}: {times} sensors have this id"
    places = [(sensor.source, sensor.channel) for sensor in sensors if sensor.source in sources]
    for (source, channel), times in Counter(place for place in places if place[1] is not None).items():
        if times > 1:
            yield f"source.{source}: {times} sensors are on channel {channel}"
    for sensor in sensors:
        yield from _of_sensor(sensor, sources, plans)


def _of_sensor(sensor: _Outline, sources: Any, plans: dict[str, SourcePlan]) -> Iterator[str]:
    if sensor.id is not None:
        try:
            if not sensor.id:
                raise BadRecord("sensor-id", "it is empty")
            decode_sensor(sensor.id.encode("utf-8", "surrogateescape"))
        except BadRecord as error:
            yield f"{sensor.where}: is no sensor id: {error.detail}"
        if sensor.id.startswith(RESERVED):
            yield f"{sensor.where}: ids that begin with {RESERVED} belong to replays"
    if sensor.source is not None and sensor.source not in sources:
        yield f"{sensor.where}: there is no [source.{sensor.source}]; there are {', '.join(sources) or 'none'}"
    if sensor.scales > 1:
        yield f"{sensor.where}: has volts_per_count and full_scale_v; one of them says it all"
    channels = getattr(plans[sensor.source].settings, "channels", None) if sensor.source in plans else None
    if isinstance(channels, int) and sensor.channel is not None and sensor.channel >= channels:
        yield f"{sensor.where}: channel {sensor.channel}, but source.{sensor.source} has {channels} (the first is 0)"


def _told(error: ValidationError, values: Any, prefix: str) -> Iterator[str]:
    for mistake in error.errors():
        place = prefix + ".".join(map(str, mistake["loc"]))
        if mistake["loc"][:1] == ("sensor",) and len(mistake["loc"]) > 1 and isinstance(mistake["loc"][1], int):
            sensor = values["sensor"][mistake["loc"][1]]
            number, rest = mistake["loc"][1] + 1, ".".join(map(str, mistake["loc"][2:]))
            named = sensor.get("id") if isinstance(sensor, dict) else None
            place = f"sensor {named!r}: {rest}" if named else f"sensor number {number}: {rest}"
        told = {"missing": "is missing", "extra_forbidden": "there is no such setting"}.get(mistake["type"])
        yield f"{place}: {told}" if told else f"{place}: {_reason(mistake)}"


def _reason(mistake: Any) -> str:
    text = str(mistake["msg"]).removeprefix("Value error, ")
    # What was meant as a password must not reach a screen or a log.
    unsaid = mistake["loc"][-1:] == ("metadata",) or _SECRET.search(str(mistake["loc"][-1:]))
    return text if unsaid else f"{text}, not {mistake['input']!r}"


def _tables(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What of [source.*] can be looked at further, though something else in the file is wrong."""
    tables = values.get("source")
    return (
        {name: table for name, table in tables.items() if isinstance(table, dict)} if isinstance(tables, dict) else {}
    )
