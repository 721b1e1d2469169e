import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from fractions import Fraction
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from deploy.cli.publish import clock_text, state_text
from deploy.cli.replay import MediaTime, Moment, SampleRate, replay
from deploy.cli.replay_keys import Key, parse_keys
from deploy.replay_drain import Drained
from model.architecture import EcapaDims
from model.untrained import write_untrained_bundle
from producers.replay import Progress
from stream.alerts import Alert, Priority, Transition
from stream.records import Flags

# A publisher that keeps, or writes into a file, what would go to Kafka.
DRIVER = """
import json, os, sys
import deploy.topics, producers.publisher
from aiokafka.errors import KafkaError
from producers.publisher import PublisherCounts

class Collecting:
    def __init__(self, options, topic):
        self.counts = PublisherCounts()
    async def __aenter__(self):
        return self
    async def __aexit__(self, *error):
        self.out.flush()
    async def publish(self, frame):
        row = [frame.sensor, frame.epoch_ns, frame.first_sample, len(frame.samples)]
        print(json.dumps(row), file=self.out, flush=True)
        self.counts.acknowledged_frames += 1
        self.counts.acknowledged_samples += len(frame.samples)
        self.counts.acknowledged_bytes += frame.samples.nbytes
        if self.counts.acknowledged_frames == int(os.environ["BREAKS_AFTER"]):
            raise KafkaError("the broker is gone")
    async def flush(self):
        pass

async def there(kafka, uses=None):
    pass

if __name__ == "__main__":
    deploy.topics.await_topics = there
    producers.publisher.Publisher = Collecting
    Collecting.out = open(sys.argv[1], "w")
    from deploy.cli import main
    main(["replay", *sys.argv[2:]])
"""


class Published(list):
    """Frames as they would have gone to Kafka."""

    def publisher(self):
        published = self

        class Collecting:
            def __init__(self, options, topic):
                from producers.publisher import PublisherCounts

                self.counts = PublisherCounts()

            async def __aenter__(self):
                return self

            async def __aexit__(self, *error):
                pass

            async def publish(self, frame):
                published.append(frame)
                self.counts.acknowledged_frames += 1
                self.counts.acknowledged_samples += len(frame.samples)

            async def flush(self):
                pass

        return Collecting

    @property
    def sensors(self):
        return sorted({frame.sensor for frame in self})

    def order(self):
        return list(dict.fromkeys(frame.sensor for frame in self))

    def samples(self, sensor):
        return [k for frame in self if frame.sensor == sensor for k in range(frame.first_sample, frame.end_sample)]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command; gives its result and what it published."""

    async def there(kafka, uses=None):
        pass

    for name in [name for name in os.environ if name.startswith("AEWATCH_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        published = Published()
        monkeypatch.setattr("deploy.topics.await_topics", there)
        monkeypatch.setattr("producers.publisher.Publisher", published.publisher())
        result = CliRunner().invoke(replay, [*map(str, arguments), "--rate", "max"])
        assert result.exit_code == code, result.output
        return result.output, published

    return run


def wav(path, samples=8_000, channels=1, rate_hz=8_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    signal = (np.arange(samples * channels) % 1000).astype(np.int16).reshape(samples, channels)
    soundfile.write(path, signal, rate_hz, subtype="PCM_16")
    return path


def test_a_recording_is_published_as_a_run_of_its_own(run, tmp_path):
    output, published = run(wav(tmp_path / "pump.wav", channels=2), "--run", "night")
    assert published.sensors == ["replay/night/pump/ch0", "replay/night/pump/ch1"]
    assert published.samples("replay/night/pump/ch1") == list(range(8_000))
    assert output.splitlines()[0] == "run night: replay/night/pump/ch0, replay/night/pump/ch1"
    assert re.fullmatch(r"42 frames, 16000 samples, \d+\.\d MB acknowledged", output.splitlines()[-1])


def test_two_replays_in_one_second_are_two_runs(run, tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda *_: "20260101T000000Z")
    path = wav(tmp_path / "pump.wav")
    (_, first), (_, second) = run(path), run(path)
    assert first.sensors != second.sensors
    assert first.sensors[0].startswith("replay/20260101T000000Z-")


def test_a_passage_can_be_chosen(run, tmp_path):
    _, published = run(wav(tmp_path / "a.wav"), "--run", "r", "--start", "0:00:00.25", "--duration", "0.5")
    assert published.samples("replay/r/a/ch0") == list(range(2_000, 6_000))
    assert published[-1].flags == Flags.END


def test_a_start_behind_the_end_is_told(run, tmp_path):
    output, published = run(wav(tmp_path / "a.wav"), "--start", "5", code=1)
    assert "--start 5 s: no recording has samples there" in output
    assert not published


@pytest.mark.parametrize(
    ("chosen", "expected"), [("1", [1]), ("0,2", [0, 2]), ("ch*", [0, 1, 2]), ("ch[12], 0", [0, 1, 2])]
)
def test_channels_are_chosen_by_number_or_glob(run, tmp_path, chosen, expected):
    _, published = run(wav(tmp_path / "a.wav", channels=3), "--run", "r", "--channels", chosen)
    assert published.sensors == [f"replay/r/a/ch{channel}" for channel in expected]
    first = next(frame for frame in published if frame.sensor.endswith(f"ch{expected[-1]}"))
    assert first.samples[0] == expected[-1]


@pytest.mark.parametrize("chosen", ["7", "0,,1", ""])
def test_channels_that_are_not_there_are_told(run, tmp_path, chosen):
    output, _ = run(wav(tmp_path / "a.wav"), "--channels", chosen, code=1 if chosen == "7" else 2)
    assert ("no channel 7; it has 0" if chosen == "7" else "missing between commas") in output


def test_sensors_are_called_as_the_pattern_says(run, tmp_path):
    _, published = run(wav(tmp_path / "a.wav"), "--run", "r", "--sensors", "replay/{run}/east-{file}/{channel}")
    assert published.sensors == ["replay/r/east-a/0"]


def test_a_pattern_that_counts_as_live_data_needs_the_word(run, tmp_path):
    path = wav(tmp_path / "a.wav", channels=2)
    output, published = run(path, "--sensors", "plant1/{file}/ch{channel}", code=2)
    assert "would count as live data" in " ".join(output.split())
    assert "--live" in output
    assert not published
    begun_ns = time.time_ns()
    _, published = run(path, "--sensors", "plant1/pump", "--channels", "1", "--live")
    assert published.sensors == ["plant1/pump"]
    assert begun_ns <= published[0].time_ns == published[0].epoch_ns <= time.time_ns()


@pytest.mark.parametrize("arguments", [("--live",), ("--live", "--sensors", "replay/x/{file}")])
def test_a_replays_sensors_are_never_live(run, tmp_path, arguments):
    output, _ = run(wav(tmp_path / "a.wav"), *arguments, code=2)
    assert "--live: needs --sensors" in output


def test_channels_that_would_become_one_sensor_are_refused(run, tmp_path):
    output, _ = run(wav(tmp_path / "a.wav", channels=2), "--sensors", "replay/{run}/{file}", code=1)
    assert "put {channel}" in " ".join(output.split())


def test_a_folder_plays_its_recordings_one_after_another_in_order_of_name(run, tmp_path):
    wav(tmp_path / "set/b/1.wav", samples=400)
    wav(tmp_path / "set/a/2.wav", samples=400)
    wav(tmp_path / "set/a/1.flac", samples=400)
    wav(tmp_path / "set/.hidden/1.wav")
    (tmp_path / "set/notes.txt").write_text("not a recording")
    output, published = run(tmp_path / "set", "--run", "r")
    assert published.order() == ["replay/r/a/1/ch0", "replay/r/a/2/ch0", "replay/r/b/1/ch0"]
    assert [frame.flags for frame in published] == [Flags(0), Flags.END] * 3
    assert "skipped: 1 .txt" in output


def test_a_damaged_recording_in_a_folder_is_told_and_the_others_are_played(run, tmp_path):
    wav(tmp_path / "set/1.wav", samples=400)
    (tmp_path / "set/2.wav").write_bytes(b"RIFF and nothing more")
    wav(tmp_path / "set/3.wav", samples=400)
    output, published = run(tmp_path / "set", "--run", "r", code=1)
    assert published.order() == ["replay/r/1/ch0", "replay/r/3/ch0"]
    assert "2.wav: cannot be opened as audio" in output
    assert output.splitlines()[-1] == "Error: 1 recording failed; all others were played"


def test_a_recording_that_cannot_be_read_on_is_told_and_the_others_are_played(run, tmp_path, monkeypatch):
    from producers.sources.audio_file import AudioFile

    whole = AudioFile.__iter__

    def breaking(self):
        for number, frame in zip(count(), whole(self), strict=False):
            if number == 2 and "broken" in frame.sensor:
                raise OSError("broken.wav: the disk is gone")
            yield frame

    monkeypatch.setattr(AudioFile, "__iter__", breaking)
    output, published = run(wav(tmp_path / "broken.wav"), wav(tmp_path / "sound.wav"), "--run", "r", code=1)
    assert published.samples("replay/r/sound/ch0") == list(range(8_000))
    assert published.samples("replay/r/broken/ch0") == list(range(800))
    assert "failed: broken.wav: the disk is gone" in output
    assert "Error: 1 recording failed" in output


@pytest.mark.parametrize("name", ["nothing.wav", "empty"])
def test_a_path_with_nothing_to_play_is_told(run, tmp_path, name):
    (tmp_path / "empty").mkdir()
    output, published = run(tmp_path / name, code=1)
    assert name in output
    assert not published


def test_a_manifest_plays_each_of_its_files_once_in_its_order(run, tmp_path):
    wav(tmp_path / "set/b.wav", samples=400)
    wav(tmp_path / "set/a/x.wav", samples=400)
    table = tmp_path / "set/clips.csv"
    table.write_text("path,label,start,end\nb.wav,knock,0,0.01\na/x.wav,drop,,\nb.wav,drop,0.01,0.02\n")
    output, published = run(table, "--run", "r")
    assert published.order() == ["replay/r/b/ch0", "replay/r/a/x/ch0"]
    assert published.samples("replay/r/b/ch0") == list(range(400))
    assert "whole recordings are played" in output


def test_a_manifest_that_names_what_is_not_there_is_told(run, tmp_path):
    (tmp_path / "clips.csv").write_text("path,label\nnowhere.wav,knock\n")
    output, _ = run(tmp_path / "clips.csv", code=1)
    assert "clips.csv, line 2: path 'nowhere.wav': no such file" in output


def test_paths_play_side_by_side(run, tmp_path):
    _, published = run(wav(tmp_path / "a.wav"), wav(tmp_path / "b.wav"), "--run", "r")
    ends = [frame.end_sample for frame in published]
    assert ends == sorted(ends)


def test_hits_of_a_real_recording_are_played_in_their_passage(run, real_data):
    path = real_data / "vallen/bearing/bearing.tradb"
    _, whole = run(path, "--run", "r")
    _, part = run(path, "--run", "r", "--start", "1", "--duration", "2")
    inside = [frame for frame in whole if len(frame.samples) and 1e9 <= frame.time_ns < 3e9]
    assert [frame.first_sample for frame in part[:-1]] == [frame.first_sample for frame in inside]
    assert 0 < len(inside) < len(whole) - 1
    assert part[-1].flags == Flags.END


@pytest.mark.parametrize(
    ("text", "expected_ns"),
    [("0", 0), ("90.5", 90_500_000_000), ("1:30.25", 90_250_000_000), ("2:00:00.000000001", 7_200_000_000_001)],
)
def test_times_are_exact_to_the_nanosecond(text, expected_ns):
    assert MediaTime()(text) == expected_ns


@pytest.mark.parametrize(
    "text", ["", "-1", "1e3", "1:60", "1:2:3:4", ":5", "1:", "nan", "٣", "9" * 5000, "0" * 10 + ":1"]
)
def test_what_is_no_time_is_refused(run, tmp_path, text):
    output, _ = run(wav(tmp_path / "a.wav"), f"--start={text}", code=2)
    assert "is no time" in output


@pytest.mark.parametrize(("text", "expected"), [("44100", 44100), ("1e6", 10**6), ("44100/7", Fraction(44100, 7))])
def test_sample_rates_are_exact(text, expected):
    assert SampleRate()(text) == expected


@pytest.mark.parametrize("text", ["0", "-5", "1e999999999", "nan", "1/0", "x", "0.1", "1e9", "9/10000000000", "4" * 99])
def test_what_is_no_sample_rate_is_refused(run, tmp_path, text):
    output, _ = run(wav(tmp_path / "a.wav"), f"--sample-rate={text}", code=2)
    assert "is no sample rate" in output


def test_the_bar_tells_pace_pause_and_place():
    assert state_text(Progress(rate=0.5, paused=True)) == "paused x0.5"
    assert state_text(Progress(rate=None)) == "max"
    assert clock_text(3_723.45) == "1:02:03.4"


# --- As an experiment --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A network that has learned nothing."""
    folder = tmp_path_factory.mktemp("bundle")
    dims = EcapaDims(channels=16, mfa_channels=48, attention=16, embedding=16, scale=4, se_bottleneck=8)
    sizes = {"window_samples": 1024, "hop_samples": 1024, "rate_hz": 8_000.0}
    write_untrained_bundle(folder, network=dims, **sizes)
    return folder


def labelled(path, rows="0.1,0.2,knock"):
    path.with_suffix(".labels.csv").write_text(f"start,end,label\n{rows}\n")
    return path


def test_bundles_are_tried_on_labelled_recordings_without_publishing(run, tmp_path, bundle):
    path = labelled(wav(tmp_path / "pump.wav", samples=40_000, channels=2))
    out = tmp_path / "out"
    output, published = run(path, "--report", out, "--bundle", bundle, "--bundle", bundle, "--run", "r")
    assert not published
    report = json.loads((out / "report.json").read_text())
    assert report["run"] == "r"
    assert [len(of["events"]) for of in report["judgements"]] == [2, 2], "of each channel, by each model"
    assert report["comparison"]["differences"] == [], "the same model finds the same"
    assert report["labelled_s"] == pytest.approx(10.0)
    assert "recognised by both" in output
    assert "<svg" in (out / "report.html").read_text()


def test_a_passage_of_a_trial_leaves_events_outside_out(run, tmp_path, bundle):
    path = labelled(wav(tmp_path / "pump.wav", samples=40_000), "0.1,0.2,knock\n3,3.5,drop")
    out = tmp_path / "out"
    passage = ("--start", "2", "--duration", "2")
    output, _ = run(path, "--report", out, "--bundle", bundle, *passage)
    report = json.loads((out / "report.json").read_text())
    assert [event["label"] for event in report["judgements"][0]["events"]] == ["drop"]
    assert report["labelled_s"] == pytest.approx(2.0)
    assert "1 labelled events lie outside what was played" in output


def test_a_manifest_gives_the_labels_of_its_files(run, tmp_path, bundle):
    for name in "ab":
        wav(tmp_path / f"set/{name}.wav", samples=16_000)
    (tmp_path / "set/clips.csv").write_text("path,label,start,end\na.wav,knock,0,1\nb.wav,drop,0.5,1\n")
    out = tmp_path / "out"
    run(tmp_path / "set/clips.csv", "--report", out, "--bundle", bundle, "--run", "r")
    report = json.loads((out / "report.json").read_text())
    assert [(event["sensor"], event["label"]) for event in report["judgements"][0]["events"]] == [
        ("replay/r/a/ch0", "knock"),
        ("replay/r/b/ch0", "drop"),
    ]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--bundle", "b"), "say with --report where to write"),
        (("--report", "out", "--bundle", "b", "--bundle", "b", "--bundle", "b"), "--bundle: given 3 times"),
        (("--report", "out", "--loop"), "cannot be of a --loop"),
        (("--report", "out", "--bundle", "b", "--live", "--sensors", "x/{file}"), "nothing is --live"),
    ],
)
def test_options_of_an_experiment_that_do_not_fit_together_are_told(run, tmp_path, arguments, told):
    output, published = run(wav(tmp_path / "a.wav"), *arguments, code=2)
    assert told in " ".join(output.split())
    assert not published


def test_a_report_without_any_labels_says_how_to_write_them(run, tmp_path):
    output, published = run(wav(tmp_path / "a.wav"), "--report", tmp_path / "out", code=1)
    assert f"no recording has labels; write {tmp_path / 'a.labels.csv'} with columns start,end,label" in output
    assert not published


def test_wrong_labels_are_told_before_anything_is_published(run, tmp_path):
    path = labelled(wav(tmp_path / "a.wav"), "2,1,knock")
    output, published = run(path, "--report", tmp_path / "out", code=1)
    assert "a.labels.csv, line 2: end 1 is before start 2; swap them" in output
    assert not published


def test_a_bundle_that_is_none_is_told(run, tmp_path):
    path = labelled(wav(tmp_path / "a.wav"))
    output, _ = run(path, "--report", tmp_path / "out", "--bundle", tmp_path / "nowhere", code=1)
    assert str(tmp_path / "nowhere") in output


def test_a_replay_with_a_report_waits_for_the_pipeline_and_holds_its_alerts_against_the_labels(
    run, tmp_path, monkeypatch
):
    path = labelled(wav(tmp_path / "a.wav", samples=2_750_000, rate_hz=500_000), "1,1.2,knock\n5,5.2,drop")
    asked = []

    async def cursor(settings):
        return "7-0"

    async def drain(settings, sensors, last, since, patience_s):
        asked.append((sorted(sensors), {(one.sensor, one.position) for one in last}, since, patience_s))
        alert = Alert(
            id="e-1",
            episode="e",
            number=1,
            transition=Transition.RAISED,
            sensor=next(iter(sensors)),
            condition="knock",
            priority=Priority.HIGH,
            fault=True,
            time_ns=0,
            epoch_ns=0,
            first_sample=500_000,
            start_sample=500_000,
            source_count=65_536,
        )
        return Drained([alert], [])

    monkeypatch.setattr("deploy.replay_drain.alert_cursor", cursor)
    monkeypatch.setattr("deploy.replay_drain.drain", drain)
    out = tmp_path / "out"
    output, published = run(path, "--report", out, "--wait", "3")
    (sensor,) = published.sensors
    assert asked == [([sensor], {(sensor, (0, 81 * 32_768))}, "7-0", 3.0)]
    (of,) = json.loads((out / "report.json").read_text())["judgements"]
    assert [(event["label"], event["outcome"]) for event in of["events"]] == [("knock", "found"), ("drop", "missed")]
    assert "of 2 events 1 found" in output


def test_a_report_that_lacks_alerts_is_written_and_the_command_fails(run, tmp_path, monkeypatch):
    async def cursor(settings):
        return "0-0"

    async def drain(settings, sensors, last, since, patience_s):
        return Drained([], ["after 0 s group g had not worked off t"])

    monkeypatch.setattr("deploy.replay_drain.alert_cursor", cursor)
    monkeypatch.setattr("deploy.replay_drain.drain", drain)
    out = tmp_path / "out"
    output, _ = run(labelled(wav(tmp_path / "a.wav")), "--report", out, code=1)
    assert "note: after 0 s group g had not worked off t" in output
    assert "had not worked off" in (out / "report.json").read_text()


# --- From a topic ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "name recordings, or a topic with --from-topic"),
        (("a.wav", "--since", "-1h"), "--since and --until: are of --from-topic"),
        (("--from-topic", "t"), "say from when on with --since"),
        (("a.wav", "--from-topic", "t", "--since", "-1h"), "leave the PATHs out"),
        (("--from-topic", "t", "--since", "-1h", "--report", "out"), "--report cannot be of them"),
        (("--from-topic", "t", "--since", "-1h", "--until", "-2h"), "--until: is not after --since"),
        (("--from-topic", "t", "--since", "-1h", "--run", "a/b"), "has letters but no slash"),
        (("--from-topic", "t", "--since", "yesterday"), "is no moment; write 2026-11-23T08:00Z"),
    ],
)
def test_options_of_a_topic_that_do_not_fit_together_are_told(run, arguments, told):
    output, published = run(*arguments, code=2)
    assert told in " ".join(output.split())
    assert not published


@pytest.mark.parametrize(
    ("text", "expected_s"),
    [("1970-01-02", 86_400), ("1970-01-01T01:00:00.5Z", 3600.5), ("1970-01-01T01:00+01:00", 0)],
)
def test_moments_are_exact_and_of_their_zone(text, expected_s):
    assert Moment()(text) == int(expected_s * 1e9)


def test_a_moment_can_be_told_from_now_back(monkeypatch):
    monkeypatch.setattr("time.time_ns", lambda: 10**19)
    assert Moment()("-1.5h") == 10**19 - 5400 * 10**9


# --- Keys --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "keys", "left"),
    [
        (b" s+-q", [Key.PAUSE, Key.STEP, Key.FASTER, Key.SLOWER, Key.QUIT], b""),
        (b"\x1b[A\x1b[B\x1b[C\x1bOC", [Key.FASTER, Key.SLOWER, Key.STEP, Key.STEP], b""),
        (b"xyz\xff\x00", [], b""),
        (b"q\x1b", [Key.QUIT], b"\x1b"),
        (b"\x1b[", [], b"\x1b["),
        (b"\x1b[1;5A\x1b[3~q", [Key.QUIT], b""),
        (b"\x1bq", [Key.QUIT], b""),
        (b"\x1b[" + b"1" * 99, [], b""),
    ],
)
def test_keys_are_known_and_all_else_is_nothing(typed, keys, left):
    assert parse_keys(typed) == (keys, left)


def environment(breaks_after=-1):
    """For the driver, without settings of whoever runs the tests."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AEWATCH_")}
    return inherited | {"PYTHONPATH": str(Path(__file__).parent.parent), "BREAKS_AFTER": str(breaks_after)}


class Terminal:
    """The command in a terminal of its own."""

    def __init__(self, folder, *arguments, breaks_after=-1, background=False):
        self.out = folder / "published.jsonl"
        self.out.touch()
        driver = folder / "driver.py"
        driver.write_text(DRIVER)
        self.ours, theirs = pty.openpty()
        self.before = termios.tcgetattr(self.ours)
        # With job control the shell puts what it starts with & into a process group of its own.
        shell = ["sh", "-mc", '"$@" & wait $!', "sh"] if background else []
        self.process = subprocess.Popen(
            [*shell, sys.executable, str(driver), str(self.out), *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            env=environment(breaks_after),
            start_new_session=True,
            preexec_fn=lambda: _make_controlling(0),
        )
        os.close(theirs)
        self.shown = b""

    def type(self, keys):
        os.write(self.ours, keys)

    def await_text(self, text, patience_s=15.0):
        deadline = time.monotonic() + patience_s
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown[-500:]
            if select.select([self.ours], [], [], 0.1)[0]:
                try:
                    self.shown += os.read(self.ours, 4096)
                except OSError:  # it has gone
                    assert text in self.shown, self.shown[-500:]

    def published(self):
        return [json.loads(line) for line in self.out.read_text().splitlines()]

    def await_published(self, number, patience_s=10.0):
        deadline = time.monotonic() + patience_s
        while len(self.published()) < number:
            assert time.monotonic() < deadline, (self.published(), self.shown[-500:])
            self.drain()
            time.sleep(0.02)

    def drain(self):
        while select.select([self.ours], [], [], 0)[0]:
            try:
                if not (read := os.read(self.ours, 4096)):
                    return
            except OSError:
                return
            self.shown += read

    def end(self):
        deadline = time.monotonic() + 10
        while self.process.poll() is None and time.monotonic() < deadline:
            self.drain()
            time.sleep(0.02)
        return self.process.poll()

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.ours)


def _make_controlling(terminal):
    import fcntl

    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal(tmp_path):
    opened = []

    def open_terminal(*arguments, **given):
        path = wav(tmp_path / "a.wav", samples=80_000)
        opened.append(Terminal(tmp_path, path, "--frame-ms", "100", *arguments, **given))
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.close()


def local_modes(descriptor):
    return termios.tcgetattr(descriptor)[3]


def test_in_a_terminal_keys_pause_step_change_pace_and_quit(terminal):
    shell = terminal("--start-paused", "--run", "r")
    shell.await_text(b"keys: space")
    shell.await_text(b"paused x1")
    assert not local_modes(shell.ours) & (termios.ICANON | termios.ECHO)
    assert shell.published() == []
    shell.type(b"s\x1b[C")
    shell.await_published(2)
    time.sleep(0.3)
    assert len(shell.published()) == 2
    shell.type(b"++-")
    shell.await_text(b"paused x2")
    shell.type(b" ")
    shell.await_published(6)
    shell.type(b"q")
    assert shell.end() == 0
    assert b"acknowledged" in shell.shown
    *frames, end = shell.published()
    assert frames == [["replay/r/a/ch0", 0, 800 * k, 800] for k in range(len(frames))]
    assert end == ["replay/r/a/ch0", 0, 800 * len(frames), 0]
    assert termios.tcgetattr(shell.ours) == shell.before


def test_ended_with_ctrl_c_all_is_acknowledged_and_the_terminal_is_as_before(terminal):
    shell = terminal("--start-paused")
    shell.await_text(b"paused x1")
    assert not local_modes(shell.ours) & termios.ICANON
    shell.type(b"\x03")
    assert shell.end() == 0, shell.shown[-500:]
    assert b"acknowledged" in shell.shown
    assert termios.tcgetattr(shell.ours) == shell.before


def test_stopped_by_the_shell_and_continued_it_has_its_keys_again(terminal):
    shell = terminal("--start-paused")
    shell.await_text(b"paused x1")
    shell.process.send_signal(signal.SIGSTOP)
    termios.tcsetattr(shell.ours, termios.TCSANOW, shell.before)
    shell.process.send_signal(signal.SIGCONT)
    deadline = time.monotonic() + 10
    while local_modes(shell.ours) & termios.ICANON:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    shell.type(b"+")
    shell.await_text(b"paused x2")
    shell.process.send_signal(signal.SIGTERM)
    assert shell.end() == 0
    assert termios.tcgetattr(shell.ours) == shell.before


def test_in_the_background_of_a_terminal_it_plays_without_keys(terminal):
    shell = terminal("--rate", "50", background=True)
    assert shell.end() == 0
    assert b"keys" not in shell.shown
    assert b"101 frames, 80000 samples" in shell.shown
    assert termios.tcgetattr(shell.ours) == shell.before


def test_after_an_error_the_terminal_is_as_before(terminal):
    shell = terminal("--run", "r", breaks_after=3)
    shell.await_text(b"keys: space")
    assert shell.end() == 1
    assert b"the broker is gone" in shell.shown
    assert termios.tcgetattr(shell.ours) == shell.before


def test_without_a_terminal_there_are_no_keys_and_no_error(run, tmp_path):
    output, published = run(wav(tmp_path / "a.wav"))
    assert "keys" not in output
    assert len(published) == 21
