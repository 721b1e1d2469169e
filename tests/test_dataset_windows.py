import multiprocessing
import os
from fractions import Fraction

import h5py
import numpy as np
import pytest
import soundfile

from deploy import clip_survey
from deploy import dataset_windows as made_windows
from deploy.clip_survey import DatasetError
from deploy.dataset_windows import cache_folder, dataset_facts, dataset_windows
from model.architecture import EcapaDims, FrontEndSpec
from model.data.manifest import Clip, Manifest, read_manifest
from model.engine import Engine
from model.untrained import write_untrained_bundle
from producers.sources import open_recording
from stream.windows import SensorWindows, WindowSpec

RATE = 8_000


def noise(count, seed=0, channels=1):
    samples = np.random.default_rng(seed).integers(-20_000, 20_000, (count, channels)).astype(np.int16)
    return samples[:, 0] if channels == 1 else samples


@pytest.fixture
def write(tmp_path):
    def write(name, samples, rate=RATE, subtype="PCM_16"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, rate, subtype=subtype)
        return path

    return write


@pytest.fixture
def cut(tmp_path):
    """Windows of clips, in a cache of the test's own."""

    def cut(*clips, length=1000, hop=500, rate=Fraction(RATE), on_progress=None):
        manifest = Manifest(tmp_path / "set.csv", clips)
        return dataset_windows(manifest, length, hop, rate, tmp_path / "cache", on_progress)

    return cut


def clip(path, label="x", **more):
    return Clip(path, label, recording=path.name, **more)


def test_windows_are_the_ones_that_the_stream_would_make(write, cut):
    path = write("a.wav", noise(12_345), rate=11_025)
    windows = cut(clip(path), length=800, hop=300)
    cutter = SensorWindows("s", WindowSpec(800, 300, Fraction(RATE)))
    expected = []
    for frame in open_recording(path, "r", frame_s=0.01):
        expected += [w.samples for w in cutter.push(frame).windows]
    assert len(windows) in (len(expected), len(expected) + 1)
    np.testing.assert_array_equal(windows.windows[: len(expected)], np.stack(expected))


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
@pytest.mark.parametrize("rate", [RATE, 11_025])
def test_training_and_live_give_a_network_the_same_numbers(write, cut, tmp_path, rate, subtype):
    path = write("a.wav", noise(9_000) if subtype == "PCM_16" else (noise(9_000) / 32768).astype(np.float32), rate)
    windows = cut(clip(path), length=800, hop=300)
    spec = FrontEndSpec(n_fft=64, win_length=64, hop_length=32, n_mels=8, level="none", context="window")
    dims = EcapaDims(channels=8, mfa_channels=8, attention=4, embedding=4, scale=2, se_bottleneck=4, dilations=(2,))
    write_untrained_bundle(
        tmp_path / "b", network=dims, front_end=spec, rate_hz=RATE, window_samples=800, hop_samples=300
    )
    engine = Engine(tmp_path / "b", device="cpu", threads=1)
    cutter = SensorWindows("s", WindowSpec(800, 300, Fraction(RATE)))
    live = [window for frame in open_recording(path, "r", frame_s=0.01) for window in cutter.push(frame).windows]
    stored = windows.windows[: len(live)]
    heard = [window.samples for window in live]
    np.testing.assert_array_equal(engine.infer(heard).embeddings, engine.infer(list(stored)).embeddings)
    scale = np.float32(1 / 32768)
    floats = [np.stack([w * scale if w.dtype == np.int16 else w for w in part]) for part in (heard, stored)]
    np.testing.assert_array_equal(floats[0], floats[1])
    assert 0.3 < floats[0].max() < 1.5
    assert len(live) > 15


def test_samples_that_are_not_resampled_stay_int16(write, cut):
    samples = noise(2000)
    windows = cut(clip(write("a.wav", samples)))
    assert windows.windows.dtype == np.int16
    np.testing.assert_array_equal(windows.windows, [samples[:1000], samples[500:1500], samples[1000:]])
    assert windows.rate_hz == RATE
    assert windows.lengths.tolist() == [1000] * 3


def test_one_recording_of_floats_makes_all_of_them_floats_of_full_scale_one(write, cut):
    whole, fine = noise(1000), (noise(1000, 1) / 32768).astype(np.float32)
    windows = cut(clip(write("a.wav", whole)), clip(write("b.wav", fine, subtype="FLOAT")))
    assert windows.windows.dtype == np.float32
    np.testing.assert_array_equal(windows.windows, [whole / np.float32(32768), fine])


@pytest.mark.parametrize(("samples", "starts"), [(1250, [0]), (1251, [0, 251]), (1499, [0, 499]), (1500, [0, 500])])
def test_more_than_half_a_hop_at_the_end_makes_a_window_that_ends_with_the_clip(write, cut, samples, starts):
    content = noise(samples)
    windows = cut(clip(write("a.wav", content)))
    np.testing.assert_array_equal(windows.windows, [content[start : start + 1000] for start in starts])


def test_a_clip_shorter_than_a_window_ends_in_zeros(write, cut):
    content = noise(300)
    windows = cut(clip(write("a.wav", content)))
    np.testing.assert_array_equal(windows.windows[0, :300], content)
    assert not windows.windows[0, 300:].any()
    assert windows.lengths.tolist() == [300]


def test_a_resampled_clip_of_one_window_is_one_window(write, cut):
    # The filter reaches beyond the clip, so the stream's grid alone would make none.
    tone = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000).astype(np.float32)
    windows = cut(clip(write("a.wav", tone, rate=16_000, subtype="FLOAT")), length=8000, hop=4000)
    assert windows.windows.shape == (1, 8000)
    assert windows.lengths.tolist() == [8000]
    middle = slice(500, 7500)
    np.testing.assert_allclose(
        windows.windows[0, middle], np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)[middle], atol=1e-3
    )


def test_the_end_window_of_a_resampled_clip_holds_its_last_samples(write, cut):
    tone = np.sin(2 * np.pi * 440 * np.arange(23_456) / 16_000).astype(np.float32)
    windows = cut(clip(write("a.wav", tone, rate=16_000, subtype="FLOAT")), length=8000, hop=6000)
    assert len(windows) == 2
    start = 23_456 // 2 - 8000
    expected = np.sin(2 * np.pi * 440 * np.arange(start, start + 8000) / 8000)
    np.testing.assert_allclose(windows.windows[1, :7500], expected[:7500], atol=1e-3)


def test_start_and_end_cut_a_clip_out_of_its_recording(write, cut, monkeypatch):
    content = noise(100_000)
    path = write("long.wav", content)
    clips = [
        clip(path, "late", start_s=10.0, end_s=10.25),
        clip(path, "early", start_s=1.0, end_s=1.125),
        clip(path, "over", start_s=1.0625, end_s=1.1875),
        clip(path, "rest", start_s=12.2),
    ]
    for read_samples in (1 << 18, 777):
        monkeypatch.setattr(clip_survey, "READ_SAMPLES", read_samples)
        monkeypatch.setattr(made_windows, "CACHE_VERSION", read_samples)
        windows = cut(*clips)
        by_label = {name: windows.windows[windows.labels == n] for n, name in enumerate(windows.label_names)}
        np.testing.assert_array_equal(by_label["early"], [content[8000:9000]])
        np.testing.assert_array_equal(by_label["over"], [content[8500:9500]])
        np.testing.assert_array_equal(by_label["late"][[0, -1]], [content[80_000:81_000], content[81_000:82_000]])
        assert len(by_label["rest"]) == 4
        np.testing.assert_array_equal(by_label["rest"][-1], content[-1000:])


def test_every_channel_makes_windows_unless_one_is_named(write, cut):
    content = noise(1000, channels=3)
    path = write("a.wav", content)
    every = cut(clip(path))
    np.testing.assert_array_equal(every.windows, content.T)
    assert every.sensors.tolist() == ["a.wav/ch0", "a.wav/ch1", "a.wav/ch2"]
    one = cut(clip(path, channel=2, sensor="pump3", position="flange"))
    np.testing.assert_array_equal(one.windows, content[:, 2:].T)
    assert (one.sensors.tolist(), one.positions.tolist()) == (["pump3"], ["flange"])
    assert cut(clip(write("mono.wav", noise(1000)))).sensors.tolist() == [""]


def test_a_nominal_rate_takes_samples_as_they_are(write, cut):
    first, second = noise(1000), noise(1000, 1)
    recordings = {"a.wav": (first, 48_000), "b.wav": (second, 96_000), "c.wav": (first, 96_000)}
    clips = [clip(write(name, samples, rate=rate)) for name, (samples, rate) in recordings.items()]
    windows = cut(*clips, rate=None)
    np.testing.assert_array_equal(windows.windows, [first, second, first])
    assert windows.rate_hz == 96_000


def test_facts_are_lengths_and_rates_of_the_clips(write):
    path = write("a.wav", noise(9000, channels=2))
    other = write("b.ogg", noise(500), rate=16_000, subtype="VORBIS")
    facts = dataset_facts(Manifest(path, (clip(path), clip(path, start_s=0.5, end_s=1.0), clip(other))))
    assert facts.clip_samples.tolist() == [9000, 4000, 500]
    assert facts.clip_rates_hz.tolist() == [RATE, RATE, 16_000]


def test_everything_that_cannot_be_used_is_told_at_once(tmp_path, write, cut):
    good = write("good.wav", noise(1000))
    trash = tmp_path / "trash.wav"
    trash.write_bytes(b"RIFF and then nothing")
    with pytest.raises(DatasetError) as caught:
        cut(
            clip(good),
            clip(trash),
            clip(tmp_path / "gone.wav"),
            clip(good, start_s=5.0),
            clip(good, channel=1),
            clip(good, start_s=0.0, end_s=0.00001),
        )
    told = str(caught.value)
    assert "5 of its clips or recordings" in told
    assert "trash.wav: cannot be opened as audio" in told
    assert "gone.wav: there is no such file" in told
    assert "good.wav 5 s to its end: holds no samples; the recording ends at 0.125 s" in told
    assert "good.wav channel 1: there is no such channel; the recording has 0" in told
    assert "good.wav 0 s to 1e-05 s: holds no samples" in told


def test_samples_that_are_no_numbers_are_told(tmp_path, write, cut):
    samples = np.zeros(1000, dtype=np.float32)
    samples[500] = np.nan
    paths = [write(f"{name}.wav", samples, subtype="FLOAT") for name in "ab"]
    with pytest.raises(DatasetError) as caught:
        cut(*map(clip, paths))
    assert str(caught.value).count("is nan") == 2
    assert not list((tmp_path / "cache").iterdir())


def test_a_rate_that_cannot_be_resampled_is_told(write, cut):
    with pytest.raises(DatasetError, match="in lowest terms"):
        cut(clip(write("a.wav", noise(1000), rate=44_101)), rate=Fraction(16_000))


def test_the_second_time_nothing_is_read(write, cut, monkeypatch):
    clips = [clip(write("a.wav", noise(5000)))]
    first = cut(*clips)
    monkeypatch.setattr(made_windows, "_build", lambda *_: pytest.fail("made again"))
    again = cut(*clips)
    np.testing.assert_array_equal(first.windows, again.windows)
    assert isinstance(again.windows, np.memmap)
    assert first.fingerprint() == again.fingerprint()


def test_a_changed_recording_another_label_or_another_window_makes_other_windows(write, cut):
    path = write("a.wav", noise(5000))
    first = cut(clip(path))
    assert len(cut(clip(path), hop=1000)) < len(first)
    assert cut(clip(path, "y")).label_names == ("y",)
    write("a.wav", noise(5000, 1))
    os.utime(path, ns=(1, 1))
    assert (cut(clip(path)).windows != first.windows).any()


def test_a_spoilt_cache_is_made_anew(tmp_path, write, cut, caplog):
    clips = [clip(write("a.wav", noise(5000)))]
    first = cut(*clips)
    expected = np.array(first.windows)
    del first
    (entry,) = (tmp_path / "cache").iterdir()
    for name in ("windows.npy", "columns.npz"):
        whole = (entry / name).read_bytes()
        (entry / name).write_bytes(whole[: len(whole) // 2])
        np.testing.assert_array_equal(cut(*clips).windows, expected)
        assert "made anew" in caplog.text


def test_what_a_killed_process_left_is_removed_after_a_day(tmp_path, write, cut):
    for name, age_s in (("old", 90_000), ("young", 10)):
        left = tmp_path / "cache" / f".building-{name}"
        left.mkdir(parents=True)
        stamp = os.stat(tmp_path).st_mtime - age_s
        os.utime(left, (stamp, stamp))
    cut(clip(write("a.wav", noise(1000))))
    assert [entry.name for entry in (tmp_path / "cache").glob(".*")] == [".building-young"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path, write):
    (tmp_path / "file").touch()
    manifest = Manifest(tmp_path, (clip(write("a.wav", noise(1000))),))
    with pytest.raises(DatasetError, match="XDG_CACHE_HOME"):
        dataset_windows(manifest, 100, 100, None, tmp_path / "file" / "cache")


def test_the_cache_lies_where_the_desktop_keeps_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "aewatch" / "windows"


def _build_at_once(arguments):
    manifest, cache = arguments
    return dataset_windows(manifest, 1000, 500, Fraction(RATE), cache).fingerprint()


def test_processes_that_make_the_same_windows_at_once_agree(tmp_path, write):
    manifest = Manifest(tmp_path, tuple(clip(write(f"{n}.wav", noise(50_000, n))) for n in range(4)))
    with multiprocessing.get_context("fork").Pool(3) as pool:
        prints = pool.map(_build_at_once, [(manifest, tmp_path / "cache")] * 6, chunksize=1)
    assert len(set(prints)) == 1
    (entry,) = (tmp_path / "cache").iterdir()
    assert sorted(file.name for file in entry.iterdir()) == ["columns.npz", "windows.npy"]


def test_progress_counts_recordings(write, cut):
    told = []
    cut(*(clip(write(f"{n}.wav", noise(1000))) for n in range(3)), on_progress=lambda *done: told.append(done))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_long_recordings_are_read_piece_by_piece(write, cut, monkeypatch):
    content = noise(60_000, channels=2)
    clips = [clip(write("a.wav", content)), clip(write("b.wav", content[::-1]))]
    expected = cut(*clips)
    monkeypatch.setattr(clip_survey, "SHORT_RECORDING", 0)
    monkeypatch.setattr(clip_survey, "READ_SAMPLES", 999)
    monkeypatch.setattr(made_windows, "CACHE_VERSION", -1)
    pieces = cut(*clips)
    for recording in ("a.wav", "b.wav"):
        for channel in ("ch0", "ch1"):
            sensor = f"{recording}/{channel}"
            np.testing.assert_array_equal(
                pieces.windows[pieces.sensors == sensor], expected.windows[expected.sensors == sensor]
            )


def test_each_hit_of_a_vallen_recording_is_a_window(real_data, tmp_path):
    pytest.importorskip("vallenae")
    path = real_data / "vallen" / "bearing" / "bearing.tradb"
    manifest = Manifest(path, (clip(path),))
    windows = dataset_windows(manifest, 6000, 3000, None, tmp_path)
    assert windows.windows.shape == (490, 6000)
    assert windows.windows.dtype == np.int16
    assert set(windows.lengths.tolist()) == {5000}
    hits = [frame.samples for frame in open_recording(path, "r") if len(frame.samples)]
    np.testing.assert_array_equal(windows.windows[:, :5000], hits)
    facts = dataset_facts(manifest)
    assert set(facts.clip_samples.tolist()) == {5000}
    assert len(facts.clip_rates_hz) == 490
    some = dataset_windows(Manifest(path, (clip(path, start_s=1.0, end_s=2.0),)), 4000, 2000, None, tmp_path)
    assert 0 < len(some) < 490
    assert set(some.lengths.tolist()) == {4000}


def test_real_clips_of_equal_length_make_a_window_each(real_data, tmp_path):
    whole = read_manifest(real_data / "esc10")
    manifest = Manifest(whole.path, whole.clips[::40])
    windows = dataset_windows(manifest, 80_000, 40_000, Fraction(16_000), tmp_path)
    assert windows.counts == dict.fromkeys(whole.label_names, 1)
    assert windows.windows.dtype == np.float32
    assert 0.01 < np.abs(windows.windows).max() < 2.0


def test_channels_of_other_lengths_and_rates_in_one_file_are_all_cut(tmp_path):
    arrays = {"a": np.arange(1_000, dtype=np.int16), "b": np.arange(2_000, 3_500, dtype=np.int16)}
    for label in ("drop", "knock"):
        (tmp_path / label).mkdir()
        with h5py.File(tmp_path / label / "rig.h5", "w") as file:
            for name, samples in arrays.items():
                file.create_dataset(name, data=samples).attrs["sample_rate"] = 1_000
    windows = dataset_windows(read_manifest(tmp_path), 500, 500, None)
    assert windows.counts == {"drop": 5, "knock": 5}
    assert sorted(windows.windows[:, 0].tolist()) == sorted(2 * [0, 500, 2_000, 2_500, 3_000])
    assert sorted(set(windows.sensors.tolist())) == [
        f"{label}/rig.h5/ch{n}" for label in ("drop", "knock") for n in (0, 1)
    ]
