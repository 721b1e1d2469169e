from __future__ import annotations

import asyncio
import builtins
import itertools
import re
import socket
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from producers.live import registry
from producers.live.mqtt import Mqtt, MqttSettings
from producers.live.recording_file import RecordingFile, RecordingFileSettings
from producers.live.simulated import Simulated, SimulatedSettings
from producers.live.sound_card import SoundCard, SoundCardSettings
from producers.live.source import Block, BlockSource, FrameSource, SourceError
from producers.live.vallen_devices import LinWave, LinWaveSettings, SpotWave, SpotWaveSettings
from stream.records import Flags

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("kind", registry.BUILT_IN)
def test_every_built_in_kind_is_a_source(kind: str) -> None:
    found = registry.source_class(kind)
    assert hasattr(found, "blocks") != hasattr(found, "frames")
    assert found.Settings.model_config["extra"] == "forbid"


def test_a_package_adds_a_kind_by_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "plant_logger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plant-logger\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[aewatch.sources]\nplant-logger = plant_logger:PlantLogger\nbroken = plant_broken:Nothing\n"
    )
    example = re.search(r"```python\n# plant_logger\.py\n(.*?)```", (ROOT / "docs/sources.md").read_text(), re.DOTALL)
    assert example
    (tmp_path / "plant_logger.py").write_text(example[1])
    (tmp_path / "plant_broken.py").write_text("import nothing_of_that_name")

    class Port:
        def __init__(self, port: str, timeout: float) -> None:
            self._data = np.arange(2_500, dtype="<i2").tobytes()

        def __enter__(self) -> Port:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def read(self, count: int) -> bytes:
            data, self._data = self._data[:count], self._data[count:]
            return data

    serial = ModuleType("serial")
    serial.Serial, serial.SerialException = Port, OSError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "serial", serial)
    monkeypatch.syspath_prepend(tmp_path)
    assert "plant-logger" in registry.kinds()
    made: Any = registry.source_class("plant-logger")
    source = made(made.Settings(port="/dev/ttyUSB0"))
    assert isinstance(source, BlockSource)
    assert source.rate_hz == 20_000
    blocks = source.blocks()
    assert [int(next(blocks).samples[0]) for _ in range(2)] == [0, 1_000]
    with pytest.raises(SourceError, match="silent for 2 s"):
        next(blocks)
    with pytest.raises(SourceError, match=r"plant_broken:Nothing cannot be imported: ModuleNotFoundError"):
        registry.source_class("broken")


async def test_the_simulator_keeps_its_rate_and_each_channel_is_its_own() -> None:
    source = Simulated(SimulatedSettings(rate_hz=8_000, channels=3))
    begun = asyncio.get_running_loop().time()
    blocks = [block async for block in limited(source.blocks(), 4)]
    assert asyncio.get_running_loop().time() - begun >= 0.19
    samples = np.concatenate([block.samples for block in blocks])
    assert (samples.shape, samples.dtype) == ((1_600, 3), np.int16)
    assert not np.array_equal(samples[:, 0], samples[:, 1])


async def limited(blocks: Any, count: int) -> Any:
    async for block in blocks:
        yield block
        count -= 1
        if not count:
            return


def test_a_recording_comes_as_if_it_were_taken_now(tmp_path: Path) -> None:
    samples = np.arange(800, dtype=np.int16).reshape(-1, 2)
    soundfile.write(tmp_path / "a.wav", samples, 4_000, subtype="PCM_16")
    source = RecordingFile(RecordingFileSettings(path=tmp_path / "a.wav"))
    assert isinstance(source, FrameSource)
    frames = list(source.frames({1: "plant/a"}))
    assert {frame.sensor for frame in frames} == {"plant/a"}
    assert np.array_equal(np.concatenate([frame.samples for frame in frames]), samples[:, 1])
    assert all(frame.time_ns - frame.epoch_ns == frame.first_sample * 250_000 for frame in frames)
    assert frames[-1].flags == Flags.END
    with pytest.raises(SourceError, match="has 2 channels, there is no channel 2"):
        list(source.frames({2: "plant/a"}))
    with pytest.raises(SourceError, match="there is no such file"):
        list(RecordingFile(RecordingFileSettings(path=tmp_path / "b.wav")).frames({0: "a"}))


@pytest.fixture
async def mqtt_port() -> Any:
    from amqtt.broker import Broker

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    broker = Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
    )
    await broker.start()
    yield port
    await broker.shutdown()


async def test_payloads_of_a_broker_are_one_row_of_samples(mqtt_port: int) -> None:
    import aiomqtt

    source = Mqtt(MqttSettings(port=mqtt_port, topic="rig/1", rate_hz=1_000, channels=2, counter="uint32"))

    async def read() -> list[Block]:
        return [block async for block in limited(source.blocks(), 3)]

    reading = asyncio.create_task(read())
    async with asyncio.timeout(20), aiomqtt.Client("127.0.0.1", mqtt_port) as client:
        await asyncio.sleep(0.5)
        for number in (0, 1, 4):
            payload = np.full((5, 2), number, "<i2").tobytes()
            await client.publish("rig/1", number.to_bytes(4, "little") + payload, qos=1)
        blocks = await reading
    assert [(int(block.samples[0, 1]), block.samples.shape, block.lost) for block in blocks] == [
        (0, (5, 2), 0),
        (1, (5, 2), 0),
        (4, (5, 2), 10),
    ]


async def test_a_broker_that_is_away_is_told() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    source = Mqtt(MqttSettings(port=port, topic="rig/1", rate_hz=1_000))
    with pytest.raises(SourceError, match=rf"mqtt://127\.0\.0\.1:{port}/rig/1: .*is the broker there"):
        await anext(source.blocks().__aiter__())


class Record(SimpleNamespace):
    pass


def fake_waveline(device: type) -> Any:
    """The device's own protocol needs the device; what is tested is what is made of its records."""
    return SimpleNamespace(LinWave=device, SpotWave=device, TRRecord=Record)


async def test_both_channels_of_a_linwave_are_in_step(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Any, ...]] = []

    class Device:
        def __init__(self, address: str) -> None:
            told.append(("address", address))

        async def __aenter__(self) -> Device:
            return self

        async def __aexit__(self, *error: object) -> None:
            told.append(("closed",))

        def __getattr__(self, name: str) -> Any:
            async def call(*arguments: Any) -> None:
                told.append((name, *arguments))

            return call

        def stream(self, channel: int, size: int, raw: bool, timeout: float) -> Any:
            async def blocks() -> Any:
                for number in range(2):
                    yield number * 0.02, np.full(size, 10 * channel + number, np.int16)

            return blocks()

    monkeypatch.setitem(sys.modules, "waveline", fake_waveline(Device))
    source = LinWave(LinWaveSettings(address="192.168.0.100", channels=2, decimation=100))
    assert source.rate_hz == 100_000
    blocks: list[Block] = []

    async def read_on() -> None:
        async for block in source.blocks():
            blocks.append(block)  # noqa: PERF401 - they must be kept when it fails

    with pytest.raises(SourceError, match=r"linWave 192\.168\.0\.100: closed the stream"):
        await read_on()
    assert [block.samples[0].tolist() for block in blocks] == [[10, 20], [11, 21]]
    assert blocks[0].samples.shape == (2_000, 2)
    assert ("set_tr_decimation", 2, 100) in told
    assert told[-1] == ("closed",)


def test_hits_of_a_spotwave_have_its_time_and_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    class Device:
        def __init__(self, port: str) -> None:
            if port == "gone":
                raise OSError("no such port")

        @classmethod
        def discover(cls) -> list[str]:
            return ["/dev/ttyACM3"]

        def __enter__(self) -> Device:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def __getattr__(self, name: str) -> Any:
            return lambda *arguments: SimpleNamespace(adc_to_volts=2e-6)

        def acquire(self, raw: bool) -> Iterator[Any]:
            assert raw
            yield SimpleNamespace(time=0.5)  # features
            yield Record(time=0.5, data=np.arange(8))
            yield Record(time=0.75, data=np.arange(4))

    monkeypatch.setitem(sys.modules, "waveline", fake_waveline(Device))
    source = SpotWave(SpotWaveSettings(port="/dev/ttyACM0", pretrigger_samples=100))
    one, other = source.frames({0: "plant/tank"})
    assert (one.first_sample, one.flags, one.volts_per_count, one.rate_hz) == (
        999_900,
        Flags.HIT,
        2e-6,
        Fraction(2_000_000),
    )
    assert one.time_ns - one.epoch_ns == 499_950_000
    assert (other.sequence, len(other.samples)) == (1, 4)
    with pytest.raises(SourceError, match=r"spotWave gone: no such port; devices here: /dev/ttyACM3"):
        next(iter(SpotWave(SpotWaveSettings(port="gone")).frames({0: "a"})))


@pytest.mark.parametrize(
    ("source", "module", "extra"),
    [
        (lambda: SoundCard(SoundCardSettings()).blocks(), "sounddevice", "sound"),
        (lambda: Mqtt(MqttSettings(topic="a", rate_hz=1)).blocks(), "aiomqtt", "mqtt"),
        (lambda: LinWave(LinWaveSettings(address="a")).blocks(), "waveline", "waveline"),
        (lambda: SpotWave(SpotWaveSettings(port="a")).frames({0: "a"}), "waveline", "waveline"),
    ],
)
async def test_a_missing_extra_is_named(source: Any, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == module:
            raise ImportError(name)
        return whole(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    items = source()
    with pytest.raises(SourceError, match=rf"pip install 'aewatch\[{extra}\]'"):
        await anext(items) if hasattr(items, "__anext__") else next(items)


def test_a_sound_card_s_blocks_come_in_order_and_an_overflow_ends_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        def __init__(self, callback: Any, channels: int, blocksize: int, **options: Any) -> None:
            for number in range(3):
                callback(np.full((blocksize, channels), number, np.int16), blocksize, None, status(False))
            callback(np.zeros((blocksize, channels), np.int16), blocksize, None, status(True))

        def __enter__(self) -> Stream:
            return self

        def __exit__(self, *error: object) -> None:
            pass

    def status(overflow: bool) -> Any:
        return SimpleNamespace(input_overflow=overflow)

    monkeypatch.setitem(
        sys.modules, "sounddevice", SimpleNamespace(InputStream=Stream, PortAudioError=type("E", (Exception,), {}))
    )
    blocks = SoundCard(SoundCardSettings(rate_hz=8_000, channels=2)).blocks()
    assert [block.samples[0, 1] for block in itertools.islice(blocks, 3)] == [0, 1, 2]
    with pytest.raises(SourceError, match="overflow, samples were lost"):
        next(blocks)
