import json

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from deploy import data_reading
from deploy.cli.data import data
from deploy.data_reading import measure
from model.data.manifest import Clip, read_manifest
from model.data_check import duplicates
from model.data_check.check import WindowChoice, check
from model.data_check.clip_measures import ClipMeter
from model.data_check.duplicates import Stretches, families, nearly_alike, stretch_hashes
from model.data_check.text import text

RATE = 16_000


def noise(seed, count=16_000, level=0.1):
    rng = np.random.default_rng(seed)
    return np.convolve(rng.standard_normal(count + 19), np.hanning(20) / 5, "valid").astype(np.float32)[:count] * level


@pytest.fixture
def dataset(tmp_path):
    """Three labels, two parts, nothing wrong; call it to write one more file."""

    def write(name, samples, rate=RATE, subtype="PCM_16"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, rate, subtype=subtype)
        return path

    for part in ("train", "test"):
        for number, label in enumerate(("leak", "pump", "rub")):
            for clip in range(3):
                write(f"{part}/{label}/{clip}.wav", noise([number, clip, len(part)]))
    write.path = tmp_path / "set"
    return write


def report_on(path, windows=None):
    manifest = read_manifest(path)
    measured = measure(manifest)
    windows = windows or WindowChoice(320, 160, RATE)
    return check(manifest, measured.clips, windows, measured.shared_stretches, measured.unreadable)


def told(report, severity=None):
    return "\n".join(
        f"{f.severity}: {f.what} | {' | '.join(f.where)}" for f in report.findings if severity in (None, f.severity)
    )


def test_a_sound_data_set_has_nothing_but_the_note_on_recordings(dataset):
    report = report_on(dataset.path)
    assert [finding.severity for finding in report.findings] == ["note"]
    assert not report.has_errors
    assert report.parts == ("train", "test")
    assert [label.label for label in report.labels] == ["leak", "pump", "rub"]
    assert report.labels[0].parts["train"].clips == 3
    assert report.labels[0].total.seconds == pytest.approx(6.0)
    assert report.labels[0].total.windows == 6 * 99
    assert report.rates_hz == {"16000": 18}
    assert "3 labels, 18 clips, 18 s" in text(report)


def test_the_same_audio_in_two_parts_is_an_error(dataset):
    dataset("test/leak/copy.wav", noise([0, 0, 5]))
    assert "clips of different parts hold the same samples, 1 time" in told(report_on(dataset.path), "error")


def test_the_same_audio_under_two_labels_is_an_error(dataset):
    dataset("train/pump/copy.wav", noise([0, 0, 5]))
    assert "clips of different labels hold the same samples, 1 time" in told(report_on(dataset.path), "error")


def test_a_piece_cut_from_a_clip_of_another_part_is_an_error(dataset):
    dataset("test/leak/cut.wav", noise([0, 0, 5])[5001:9000])
    found = told(report_on(dataset.path), "error")
    assert "clips of different parts share a stretch of samples, 1 time" in found
    assert "cut.wav" in found


def test_overlapping_pieces_in_one_part_are_a_warning(dataset):
    long = noise(99, 24_000)
    dataset("train/rub/a.wav", long[:16_000])
    dataset("train/rub/b.wav", long[8_000:])
    report = report_on(dataset.path)
    assert not report.has_errors
    assert "clips of different recordings share a stretch of samples, 1 time" in told(report, "warning")


def test_a_copy_that_was_coded_anew_at_another_level_is_a_warning(dataset):
    dataset("test/leak/copy.ogg", -0.3 * noise([0, 0, 5]), subtype="VORBIS")
    found = told(report_on(dataset.path), "warning")
    assert "clips of different parts have nearly the same waveform, 1 time" in found
    assert "copy.ogg" in found


def test_what_sounds_alike_is_not_taken_for_the_same(dataset):
    # The same machine again and again: equal spectrum, equal level, other samples.
    for number in range(40):
        dataset(f"train/rub/more{number}.wav", noise([7, number]))
    found = told(report_on(dataset.path))
    assert "same" not in found
    assert "stretch" not in found


def test_what_one_label_shares_with_itself_inside_one_recording_is_no_finding(tmp_path, dataset):
    table = tmp_path / "set.csv"
    rows = [
        f"{dataset.path}/train/{name}/0.wav,{name},{s},{s + 0.5},r{name}"
        for name in ("leak", "pump")
        for s in (0, 0.25)
    ]
    table.write_text("path,label,start,end,recording\n" + "\n".join(rows))
    report = report_on(table)
    assert "stretch" not in told(report)
    assert "clips that overlap the one before them: 2" in told(report, "note")


def test_overlapping_clips_with_two_labels_or_in_two_parts_are_errors(tmp_path, dataset):
    file = dataset.path / "train/leak/0.wav"
    table = tmp_path / "set.csv"
    table.write_text(f"path,label,start,end,split\n{file},a,0,0.5,train\n{file},b,0.4,0.9,test\n{file},b,0.9,,test\n")
    found = told(report_on(table), "error")
    assert "two labels on overlapping clips, 1 time" in found
    assert "overlapping clips in two parts, 1 time" in found
    assert "recordings in two parts or more: 1 of 1" in found


def test_ends_that_were_rounded_make_no_overlap(tmp_path, dataset):
    path = dataset("train/leak/0.wav", noise(1, count=2 * RATE))
    table = tmp_path / "rounded.csv"
    table.write_text(f"path,label,start,end\n{path},leak,0,1.001\n{path},pump,1,2\n{path},rub,1.9,2\n")
    said = told(report_on(table))
    assert "error: two labels on overlapping clips, 1 time" in said
    assert "1.9 s to 2 s is rub" in said


def test_faults_of_single_clips_are_named(dataset):
    dataset("train/leak/flat.wav", np.full(4000, 0.25))
    dataset("train/leak/silent.wav", np.concatenate((noise(1, 4000), np.zeros(12_000))))
    dataset("train/leak/clipped.wav", np.clip(noise(2, level=1.0), -0.3, 0.3))
    dataset("train/leak/full.wav", np.clip(noise(3, level=3.0), -1, 1))
    dataset("train/leak/offset.wav", noise(4, level=0.01) + 0.2)
    broken = noise(5)
    broken[7] = np.nan
    dataset("train/leak/broken.wav", broken, subtype="FLOAT")
    (dataset.path / "train/leak/trash.wav").write_bytes(b"RIFF")
    report = report_on(dataset.path)
    for severity, words, name in (
        ("error", "2 of its recordings or clips cannot be read", "broken.wav: sample 7 of channel 0 is nan"),
        ("error", "2 of its recordings or clips cannot be read", "trash.wav"),
        ("warning", "a flat line in 1 clip: 1 leak", "flat.wav: 0.25 throughout"),
        ("warning", "silence for half the length or more in 1 clip", "silent.wav: 75 % silent"),
        ("warning", "clipping in 2 clips", "clipped.wav"),
        ("warning", "clipping in 2 clips", "full.wav"),
        ("note", "an offset larger than half the deviation in 1 clip", "offset.wav"),
    ):
        (finding,) = [found for found in report.findings if words in found.what]
        assert finding.severity == severity
        assert any(name in place for place in finding.where)


def test_faint_signals_of_a_few_counts_are_not_called_clipped(dataset):
    dataset("train/leak/faint.wav", np.random.default_rng(1).integers(-2, 3, 16_000).astype(np.int16))
    assert "clipping" not in told(report_on(dataset.path))


def test_amounts_are_judged_in_windows(tmp_path, dataset):
    for number in range(60):
        dataset(f"train/rub/more{number}.wav", noise([7, number], 1600))
    report = report_on(dataset.path, WindowChoice(1600, 1600, RATE))
    assert "fewer than 50 windows" not in told(report)
    report = report_on(dataset.path, WindowChoice(16_000, 8_000, RATE))
    assert "fewer than 50 windows of 2 labels | leak: 6 | pump: 6" in told(report, "warning")
    assert "rub has 11 times as many windows" in told(report, "warning")


def test_labels_of_one_recording_are_a_warning_where_no_part_is_named(tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        soundfile.write(tmp_path / label / "1.wav", noise(ord(label)), RATE)
    assert "one recording only of 2 labels | a | b" in told(report_on(tmp_path), "warning")


def test_a_rate_or_a_sensor_that_gives_the_label_away_is_a_warning(tmp_path, dataset):
    low = dataset("low.wav", noise(1, 8000), rate=8000)
    table = tmp_path / "set.csv"
    table.write_text(f"path,label,sensor\n{low},quiet,s1\n{dataset.path}/train/rub/0.wav,loud,s2\n")
    found = told(report_on(table), "warning")
    assert "each rate has one label only" in found
    assert "each sensor has one label only" in found


def test_a_part_without_a_label_is_named(dataset):
    dataset("train/new/1.wav", noise(1))
    dataset("test/newer/1.wav", noise(2))
    report = report_on(dataset.path)
    assert "part test has no new" in told(report, "warning")
    assert "part train has no newer" in told(report, "error")


def test_labels_that_differ_in_case_are_told(dataset):
    dataset("train/Leak/1.wav", noise(1))
    assert "Leak and leak" in told(report_on(dataset.path), "warning")


def test_measures_do_not_depend_on_how_the_samples_come():
    samples = (noise(3, 30_000) * 32768).astype(np.int16)
    found = []
    for cuts in ([30_000], [1, 4095, 4096, 7, 21_801]):
        meter = ClipMeter(Clip("a.wav", "x"), 0, RATE)
        for piece in np.split(samples, np.cumsum(cuts)[:-1]):
            meter.push(piece)
        found.append(meter.finish())
    assert found[0].digest == found[1].digest
    np.testing.assert_allclose(found[0].sketch, found[1].sketch, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[0].spectrum, found[1].spectrum, rtol=1e-5)
    assert found[0].deviation == pytest.approx(found[1].deviation)
    assert found[0].deviation == pytest.approx((samples / 32768).std(), rel=1e-5)
    assert (found[0].low, found[0].high) == (samples.min() / 32768, samples.max() / 32768)


def test_stretches_are_found_in_bounded_memory(monkeypatch):
    monkeypatch.setattr(duplicates, "KEPT", 2000)
    stretches = Stretches()
    clips = [(noise(seed) * 32768).astype(np.int16) for seed in range(12)]
    clips[9][3000:12_000] = clips[2][5000:14_000]
    for number, samples in enumerate(clips):
        for piece in np.array_split(samples, 3):
            stretches.add(number, stretch_hashes(piece))
        assert stretches._count <= 2000 + 16_000 // 8
    (pair,) = stretches.alike()
    assert (pair.first, pair.second) == (2, 9)
    assert 0.4 < pair.share < 0.75


def test_sketches_tell_copies_from_strangers():
    sketches = []
    base = noise(1)
    for samples in (base, 0.5 * base + 1e-3 * noise(2), -base, *(noise([5, n]) for n in range(300))):
        meter = ClipMeter(Clip("a.wav", "x"), 0, RATE)
        meter.push(samples)
        sketches.append(meter.finish().sketch)
    pairs = nearly_alike(np.stack(sketches))
    assert {(pair.first, pair.second) for pair in pairs} == {(0, 1), (0, 2), (1, 2)}
    assert families(303, pairs) == [[0, 1, 2]]


def test_the_command_ends_with_one_where_there_are_errors(dataset, tmp_path):
    runner = CliRunner()
    sound = runner.invoke(data, ["check", str(dataset.path)])
    assert sound.exit_code == 0, sound.output
    assert "0 errors" in sound.output
    dataset("test/leak/copy.wav", noise([0, 0, 5]))
    bad = runner.invoke(data, ["check", str(dataset.path), "--json"])
    assert bad.exit_code == 1
    assert json.loads(bad.stdout)["findings"][0]["severity"] == "error"
    nothing = runner.invoke(data, ["check", str(tmp_path / "nowhere")])
    assert nothing.exit_code == 1
    assert "no such file or folder" in nothing.output


def test_the_picture_is_drawn(dataset, tmp_path):
    pytest.importorskip("matplotlib")
    runner = CliRunner()
    drawn = runner.invoke(data, ["check", str(dataset.path), "--plot", str(tmp_path / "set.png")])
    assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "set.png").read_bytes().startswith(b"\x89PNG")
    refused = runner.invoke(data, ["check", str(dataset.path), "--plot", str(tmp_path / "set.nonsense")])
    assert refused.exit_code == 1
    assert "nonsense" in refused.output


def test_hits_are_clips_and_copies_among_them_are_found(real_data):
    pytest.importorskip("vallenae")
    report = report_on(real_data / "vallen")
    found = told(report)
    assert "clips of different recordings hold the same samples, 4 times" in found
    assert "sample.tradb channel 1 hit at" in found
    assert report.labels[0].total.clips == 490
    assert "nearly" not in found


def test_reading_goes_once_through_every_recording(dataset, monkeypatch):
    read = []
    pieces_of = data_reading.pieces_of
    monkeypatch.setattr(data_reading, "pieces_of", lambda found: read.append(found.path) or pieces_of(found))
    measure(read_manifest(dataset.path))
    assert len(read) == len(set(read)) == 18
