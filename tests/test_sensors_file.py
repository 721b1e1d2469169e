from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.cli.produce_sensors import produce
from producers.live.pcm import PcmTcp, TcpSettings
from producers.sensors_file import SensorsFileError, read_sensors_file

SOUND = """
[producer]
frame_ms = 20.0

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
id = "plant1/pump3/ch1"
source = "rig"
channel = 1

[[sensor]]
id = "trial"
source = "trial"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "sensors.toml"
    path.write_text(text)
    return path


def test_sensors_are_on_the_channels_of_their_sources(tmp_path: Path) -> None:
    file = read_sensors_file(write(tmp_path, SOUND))
    rig, trial = file.sources
    assert [(sensor.id, sensor.channel) for sensor in rig.sensors] == [("plant1/pump3/ch0", 0), ("plant1/pump3/ch1", 1)]
    assert isinstance(rig.start(), PcmTcp)
    assert isinstance(rig.settings, TcpSettings)
    assert (rig.settings.port, file.producer.frame_ms, file.spool.full) == (5000, 20.0, "block")
    assert rig.sensors[0].metadata == {"machine": "pump 3", "height_m": 1.5}
    assert trial.kind == "simulator"


def test_all_mistakes_are_told_at_once_each_by_its_place(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
[producer]
frame_ms = -1
colour = "red"

[source.rig]
kind = "pcm-tcp"
port = 99999
speed = 3

[source.other]
kind = "oscilloscope"

[source.idle]
kind = "simulator"

[source.two]
kind = "simulator"
channels = 2

[[sensor]]
id = "a"
source = "rig"

[[sensor]]
id = "a"
source = "nowhere"
volts_per_count = 1.0
full_scale_v = 1.0

[[sensor]]
id = "replay/x"
source = "two"
channel = 2

[[sensor]]
id = "b"
source = "two"
volts_per_count = nan

[[sensor]]
source = "other"
""",
    )
    with pytest.raises(SensorsFileError) as caught:
        read_sensors_file(path)
    told = str(caught.value)
    for mistake in (
        f"{path}: ",
        "producer.frame_ms: Input should be greater than 0, not -1",
        "producer.colour: there is no such setting",
        "source.rig.port: Input should be less than or equal to 65535, not 99999",
        "source.rig.rate_hz: is missing",
        "source.rig.speed: there is no such setting",
        "source.other: kind 'oscilloscope': no such source; there are folder, linwave, mqtt",
        "source.idle: no sensor is on it",
        "sensor 'a': 2 sensors have this id",
        "sensor 'a': there is no [source.nowhere]; there are rig, other, idle, two",
        "sensor 'a': has volts_per_count and full_scale_v",
        "sensor 'replay/x': ids that begin with replay/ belong to replays",
        "sensor 'replay/x': channel 2, but source.two has 2 (the first is 0)",
        "sensor 'b': volts_per_count: Input should be",
        "sensor number 5: id: is missing",
    ):
        assert mistake in told, f"{mistake}\n\n{told}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "there is no [[sensor]]"),
        ("sensor = 3", "sensor: Input should be a valid list"),
        ("source = 3\n[[sensor]]\nid='a'\nsource='b'", "source: Input should be a valid dictionary"),
        ("[source.a]\nport = 1\n[[sensor]]\nid='a'\nsource='a'", "source.a: says no kind"),
        ("= 3", "is no TOML"),
        ("[source.a]\nkind='simulator'\n[[sensor]]\nid=\"a\\u0007\"\nsource='a'", "control characters"),
        ("[source.a]\nkind='simulator'\n" + 2 * "[[sensor]]\nid='a'\nsource='a'\n", "2 sensors are on channel 0"),
    ],
)
def test_what_is_no_file_of_sensors_is_told(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(SensorsFileError) as caught:
        read_sensors_file(write(tmp_path, text))
    assert told in str(caught.value)


def mistakes_of(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(SensorsFileError) as caught:
        read_sensors_file(write(tmp_path, text))
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_a_sensor_with_one_mistake_is_looked_at_for_others_and_is_on_its_source(tmp_path: Path) -> None:
    text = "[source.s]\nkind = 'simulator'\n[[sensor]]\nid = 'replay/a'\nsource = 's'\nchannel = -1\n"
    assert mistakes_of(tmp_path, text) == [
        "sensor 'replay/a': channel: Input should be greater than or equal to 0, not -1",
        "sensor 'replay/a': ids that begin with replay/ belong to replays",
    ]


@pytest.mark.parametrize(
    ("table", "claim"),
    [
        ("kind = 'pcm-stdin'\nrate_hz = 8000", "standard input"),
        ("kind = 'pcm-udp'\nrate_hz = 8000\nport = 9000", "UDP port 127.0.0.1:9000"),
        ("kind = 'folder'\npath = '/data'", "/data/.aewatch-published.jsonl"),
        ("kind = 'tradb'\npath = '/data/run.tradb'", "/data/.run.tradb.aewatch.json"),
        ("kind = 'linwave'\naddress = '10.0.0.7'", "linWave 10.0.0.7"),
        ("kind = 'spotwave'\nport = '/dev/ttyACM0'", "port /dev/ttyACM0"),
    ],
)
def test_what_only_one_source_can_have_is_not_given_to_two(tmp_path: Path, table: str, claim: str) -> None:
    sensors = "".join(f"[[sensor]]\nid = '{name}'\nsource = '{name}'\n" for name in "ab")
    (told,) = mistakes_of(tmp_path, f"[source.a]\n{table}\n[source.b]\n{table}\n{sensors}")
    assert told.startswith("source.b: takes ")
    assert claim in told
    assert "as source.a does" in told


def test_metadata_may_be_dates_and_what_it_may_not_be_is_told_once(tmp_path: Path) -> None:
    text = "[source.s]\nkind = 'simulator'\n[[sensor]]\nid = 'a'\nsource = 's'\nmetadata = { calibrated = %s }"
    (plan,) = read_sensors_file(write(tmp_path, text % "2026-05-11")).sources
    assert plan.sensors[0].metadata == {"calibrated": "2026-05-11"}
    assert mistakes_of(tmp_path, text % "[1, 2]") == [
        "sensor 'a': metadata: has calibrated = [1, 2]; texts, numbers, dates, true and false are allowed"
    ]


@pytest.mark.parametrize("listen", ["9464", "localhost", "127.0.0.1:99999", "127.0.0.1:http"])
def test_an_address_that_cannot_be_one_is_told_before_anything_starts(tmp_path: Path, listen: str) -> None:
    (told,) = mistakes_of(tmp_path, f"producer = {{ listen = '{listen}' }}\n" + SOUND.partition("20.0\n")[2])
    assert told.startswith("producer.listen: should be host:port")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SensorsFileError, match=r"sensors\.toml: cannot be read"):
        read_sensors_file(tmp_path / "sensors.toml")


@given(st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_damage_to_a_file_is_a_mistake_or_none(tmp_path: Path, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(SOUND) - 1))
    text = SOUND[:at] + data.draw(st.text(max_size=3)) + SOUND[at + data.draw(st.integers(0, 30)) :]
    path = tmp_path / "sensors.toml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        read_sensors_file(path)
    except SensorsFileError as error:
        told = str(error)
    else:
        return
    assert told.startswith(str(path))


def test_a_check_names_the_extra_that_a_source_lacks_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sensors.toml"
    path.write_text(
        "[source]\nm = { kind = 'mqtt', topic = 't', rate_hz = 1000 }\nd = { kind = 'linwave', address = 'a' }\n"
        "s = { kind = 'simulator' }\n" + "".join(f"[[sensor]]\nid = '{name}'\nsource = '{name}'\n" for name in "mds")
    )
    monkeypatch.setitem(sys.modules, "aiomqtt", None)
    monkeypatch.setitem(sys.modules, "waveline", None)
    result = CliRunner().invoke(produce, ["--check", str(path)])
    assert result.exit_code == 0
    sound, *missing = result.output.splitlines()
    assert sound == f"{path}: sound; 3 sensors on 3 sources"
    assert missing == [
        "source.m: cannot start on this machine: MQTT needs aiomqtt; pip install 'aewatch[mqtt]'",
        "source.d: cannot start on this machine: Vallen devices need waveline; pip install 'aewatch[waveline]'",
    ]


def test_a_mistake_in_a_password_is_told_without_it(tmp_path: Path) -> None:
    source = "[source.m]\nkind = 'mqtt'\ntopic = 'a'\nrate_hz = 1000\npassword = 12345678\n"
    (told,) = mistakes_of(tmp_path, source + "[[sensor]]\nid = 'x'\nsource = 'm'\n")
    assert "m.password" in told
    assert "12345678" not in told


def test_a_file_too_large_for_its_kind_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sensors.toml"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    with pytest.raises(SensorsFileError, match="larger than 16,777,216 bytes"):
        read_sensors_file(path)
