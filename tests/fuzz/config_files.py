"""Targets: what people write: the settings file, variables, sensors.toml, alarm rules; and a spool's files on disk."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
import tomllib
from functools import cache
from pathlib import Path
from unittest.mock import patch

from pydantic import ValidationError
from pydantic_settings import SettingsError

from deploy.settings import CONFIG_VARIABLE, ENV_PREFIX, Settings
from producers.sensors_file import SensorsFile, SensorsFileError, read_sensors_file
from producers.spool import Spool, SpoolSettings, encode_record
from stream.alarms import AlarmRules, RulesError
from tests.fuzz.bytes_reader import Reader, chunked
from tests.fuzz.target import Target, quiet


@cache
def folder() -> Path:
    """Of this process; the runner names one, because a process that atheris ends does not clean up."""
    if (named := os.environ.get("FUZZ_FOLDER")) is not None:
        return Path(named)
    made = Path(tempfile.mkdtemp(prefix="aewatch-fuzz-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


VARIABLES = (
    "KAFKA__BOOTSTRAP_SERVERS", "KAFKA__PARTITIONS", "KAFKA__SECURITY_PROTOCOL", "KAFKA", "REDIS__URL",
    "REDIS__KEEP_ALERTS", "WORKER__BATCH_DELAY_MS", "WORKER__LISTEN", "WINDOW_AGENT__HOLD_S",
    "MODEL__THREADS", "ALARMS", "ALARMS__FAULTS__K", "LOG__LEVEL", "STACK__DATA_DIR", "NOTHING",
    "ALARMS__CONDITIONS__RUB__RAISE_THRESHOLD",
)  # fmt: skip
LABELS = {"rub": "fault", "quiet": "background", "break": "calibration"}

SETTINGS_TOML = b"""
[kafka]
bootstrap_servers = "kafka:9092"
security_protocol = "SASL_SSL"
username = "plant"
password = "secret"
partitions = 7
[redis]
url = "rediss://:secret@redis:6379/0"
[worker]
batch_windows = 8
[alarms]
gap_s = 2.5
[alarms.faults]
k = 3
n = 5
[alarms.conditions.rub]
priority = "critical"
raise_threshold = 0.9
[log]
level = "DEBUG"
"""


def check_settings(data: bytes) -> None:
    """As a process reads them; what does not fit is told by one of three errors, which commands put in words."""
    reader = Reader(data)
    path = folder() / "aewatch.toml"
    path.write_bytes(reader.chunk())
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    environment[CONFIG_VARIABLE] = str(path)
    while reader:
        name = reader.choice(VARIABLES)
        environment[ENV_PREFIX + name] = reader.chunk().replace(b"\0", b"").decode("utf-8", "surrogateescape")
    with patch.dict(os.environ, environment, clear=True):
        try:
            settings = Settings()
        except (ValidationError, SettingsError, tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError):
            return
        settings.at_local_stack()
    assert settings.secrets is not None
    assert "secret" not in repr(settings.kafka.password)
    with contextlib.suppress(RulesError):
        AlarmRules.for_labels(LABELS, settings.alarms)


def check_alarm_rules(data: bytes) -> None:
    try:
        table = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError):
        return  # a file that the settings refuse
    with contextlib.suppress(RulesError):
        rules = AlarmRules.for_labels(LABELS, table)
        assert "sensor.clipping" in rules.conditions or "conditions" in table


ALARMS_TOML = b"""
gap_s = 2.5
silent_s = "5"
unknown_vetoes = false
[faults]
k = 3
n = 5
clear_after_s = 3.0
[conditions.rub]
priority = "critical"
raise_threshold = 0.9
max_raises = 2
[conditions.unknown]
enabled = false
"""

SENSORS_TOML = b"""
[producer]
frame_ms = 20.0
[spool]
folder = "spool"
full = "drop_newest"
[source.rig]
kind = "pcm-tcp"
port = 5000
rate_hz = 500_000
channels = 2
[source.trial]
kind = "simulator"
[[sensor]]
id = "plant1/pump3/ch0"
source = "rig"
volts_per_count = 3.05e-5
metadata = { machine = "pump 3", height_m = 1.5 }
[[sensor]]
id = "trial"
source = "trial"
channel = 1
"""


def check_sensors_file(data: bytes) -> None:
    path = folder() / "sensors.toml"
    path.write_bytes(data)
    try:
        file = read_sensors_file(path)
    except SensorsFileError:
        return
    assert isinstance(file, SensorsFile)
    assert file.sources


def record(segment: int, number: int, key: bytes = b"s", frame: bytes = b"frame") -> bytes:
    return encode_record(segment, number, key, frame)


def check_spool(data: bytes) -> None:
    """Files of a spool as damage or a stranger may leave them: it opens, what is sound comes out, it goes on."""
    reader = Reader(data)
    place = folder() / "spool"
    place.mkdir(exist_ok=True)
    try:
        if reader.number(1) & 1:
            (place / "cursor").write_bytes(reader.chunk())
        for first in sorted({reader.number(1) for _ in range(reader.number(1) % 3 + 1)}):
            (place / f"{first:020d}.spool").write_bytes(reader.chunk())
        with Spool(place, SpoolSettings(2**20, "drop_newest", sync_s=1000)) as spool:
            pending = spool.pending_frames
            assert spool.pending_bytes <= len(data)
            read = []
            while batch := spool.read(100):
                read += batch
            assert len(read) == pending
            assert [one.number for one in read] == sorted({one.number for one in read})
            assert spool.append(b"new", b"new frame")
            (new,) = spool.read(100)
            assert (new.key, new.frame) == (b"new", b"new frame")
            spool.acknowledge(new)
            assert spool.pending_frames == 0
    finally:
        for path in place.iterdir():
            path.unlink()


def spool_seeds() -> list[bytes]:
    sound = record(3, 3) + record(3, 4, b"t", b"another")
    return [
        bytes([0, 0, 3]) + chunked(sound),
        bytes([0, 1, 3, 5]) + chunked(sound, record(5, 5)),
        bytes([1]) + chunked(b'{"acknowledged": 4, "crc32": 4088798008}') + bytes([0, 3]) + chunked(sound),
        bytes([0, 0, 3]) + chunked(sound[:20] + b"AESP" + sound[3:]),
    ]


def quietly_check_spool(data: bytes) -> None:
    with quiet():
        check_spool(data)


def settings_seeds() -> list[bytes]:
    variables = (b"many", b"7", b"SSL", b'{"partitions": 4}', b"redis://a:secret@b:1/0")
    named = b"".join(bytes([number]) + chunked(value) for number, value in enumerate(variables))
    return [chunked(SETTINGS_TOML), chunked(b"") + named, chunked(SETTINGS_TOML) + named[:9]]


TARGETS = [
    Target(
        "settings",
        "file and variables give settings, or one of the errors that commands put in words",
        check_settings,
        settings_seeds,
        share=0.02,
    ),
    Target("alarm-rules", "rules, or RulesError", check_alarm_rules, lambda: [ALARMS_TOML, b""], share=0.2),
    Target("sensors-file", "sensors, or SensorsFileError", check_sensors_file, lambda: [SENSORS_TOML, b""], share=0.05),
    Target(
        "spool",
        "any files: opens, gives each frame that it counted once and in order, and takes new ones",
        quietly_check_spool,
        spool_seeds,
        share=0.02,
    ),
]
