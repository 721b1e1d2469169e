import subprocess
import sys
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import soundfile

from producers.sources import Reading, RecordingError, open_recording
from producers.sources.audio_file import AudioFile
from producers.sources.frame_cuts import FrameCuts
from stream.records import Flags
from tests.played_recordings import frames_until


@pytest.fixture
def counts():
    """Two channels, 44.1 kHz, a bit over one second."""
    return np.random.default_rng(1).integers(-32768, 32768, (50_000, 2)).astype(np.int16)


@pytest.fixture
def wav(tmp_path, counts):
    path = tmp_path / "pump.wav"
    soundfile.write(path, counts, 44_100, subtype="PCM_16")
    return path


def channel(frames, sensor):
    return [frame for frame in frames if frame.sensor == sensor]


def joined(frames):
    return np.concatenate([frame.samples for frame in frames])


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_int16_stays_int16_sample_for_sample(tmp_path, counts, suffix):
    path = tmp_path / f"pump{suffix}"
    soundfile.write(path, counts, 44_100, subtype="PCM_16")
    source = open_recording(path, "night")
    frames = list(source)
    assert source.sensors == ("replay/night/pump/ch0", "replay/night/pump/ch1")
    for number, sensor in enumerate(source.sensors):
        own = channel(frames, sensor)
        assert all(frame.samples.dtype == np.int16 for frame in own)
        np.testing.assert_array_equal(joined(own), counts[:, number])
        assert own[0].volts_per_count == 1 / 32768
        assert own[0].rate_hz == Fraction(44_100)


@pytest.mark.parametrize(("suffix", "subtype"), [(".wav", "PCM_24"), (".wav", "FLOAT"), (".flac", "PCM_24")])
def test_what_int16_cannot_hold_becomes_float32_of_full_scale_one(tmp_path, suffix, subtype):
    path = tmp_path / f"fine{suffix}"
    samples = (np.random.default_rng(2).integers(-(2**23), 2**23, 5_000) / 2**23).astype(np.float32)
    soundfile.write(path, samples, 96_000, subtype=subtype)
    frames = list(open_recording(path, "r"))
    assert frames[0].samples.dtype == np.float32
    np.testing.assert_array_equal(joined(frames), samples)
    assert frames[0].volts_per_count == 1.0


def test_eight_bit_files_keep_their_values(tmp_path):
    path = tmp_path / "old.wav"
    samples = (np.arange(-128, 128, dtype=np.int16)) * 256
    soundfile.write(path, samples, 8_000, subtype="PCM_U8")
    frames = list(open_recording(path, "r"))
    assert frames[0].samples.dtype == np.int16
    np.testing.assert_array_equal(joined(frames), samples)


def test_ogg_is_played_as_float32(tmp_path):
    path = tmp_path / "tone.ogg"
    soundfile.write(path, 0.5 * np.sin(np.arange(48_000) / 10), 48_000, format="OGG", subtype="VORBIS")
    frames = list(open_recording(path, "r"))
    assert frames[0].samples.dtype == np.float32
    assert np.max(np.abs(joined(frames))) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    "cuts",
    [FrameCuts(0.001), FrameCuts(0.1), FrameCuts(1.0), FrameCuts(60.0), FrameCuts(frame_sizes=[1, 5_000, 17, 333])],
)
def test_every_cut_gives_the_same_samples_and_the_counts_it_announced(wav, counts, cuts):
    source = AudioFile(wav, Reading(run="r", cuts=cuts))
    frames = list(source)
    assert len(frames) == source.total_frames
    assert sum(len(frame.samples) for frame in frames) == source.total_samples == counts.size
    assert source.duration_s == pytest.approx(50_000 / 44_100)
    for number, sensor in enumerate(source.sensors):
        own = channel(frames, sensor)
        np.testing.assert_array_equal(joined(own), counts[:, number])
        assert [frame.sequence for frame in own] == list(range(len(own)))
        assert all(before.end_sample == after.first_sample for before, after in pairwise(own))
        assert all(frame.time_ns == frame.first_sample * 10**9 // 44_100 for frame in own)
        assert all(frame.epoch_ns == 0 for frame in own)


def test_frames_of_a_millisecond_do_not_drift_where_a_millisecond_is_no_whole_number_of_samples(wav):
    own = channel(AudioFile(wav, Reading(run="r", cuts=FrameCuts(0.001))), "replay/r/pump/ch0")
    assert own[1000].first_sample == 44_100
    assert {len(frame.samples) for frame in own[:-2]} == {44, 45}


def test_the_last_frame_of_each_channel_ends_its_epoch(wav):
    source = open_recording(wav, "r")
    frames = list(source)
    for sensor in source.sensors:
        assert [frame.flags for frame in channel(frames, sensor)] == [Flags(0)] * 23 + [Flags.END]


def test_a_source_can_be_played_twice(wav):
    source = open_recording(wav, "r")
    np.testing.assert_array_equal(joined(source), joined(source))


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", 500_000, 2, "PCM_16") as file:
        for _ in range(20):
            file.write(np.zeros((500_000, 2), dtype=np.int16))
    assert path.stat().st_size > 39_000_000
    # In a process of its own: memory of other tests' threads would be counted as well.
    program = (
        "import pathlib, sys, tracemalloc; from producers.sources import open_recording;"
        "source = open_recording(pathlib.Path(sys.argv[1]), 'r'); tracemalloc.start();"
        "frames = sum(1 for _ in source); print(frames, tracemalloc.get_traced_memory()[1])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    frames, peak = map(int, done.stdout.split())
    assert frames > 100
    assert peak < 2_000_000


def test_full_scale_in_volts_sets_the_scale(wav):
    frame = next(iter(AudioFile(wav, Reading(run="r", full_scale_v=0.1))))
    assert frame.volts_per_count == pytest.approx(0.1 / 32768)


def test_a_recording_is_known_by_its_content_where_the_suffix_says_nothing(wav, counts):
    renamed = wav.rename(wav.with_suffix(".dat"))
    assert open_recording(renamed, "r").total_samples == counts.size


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("noise.wav", b"this is no audio at all" * 10, "WAV, FLAC or OGG"),
        ("notes.txt", b"hello", "convert it to WAV or FLAC"),
        ("hits.pridb", b"SQLite format 3\0", "hits.tradb"),
        ("hits.db", b"SQLite format 3\0", "rename"),
        ("empty.wav", b"", "WAV, FLAC or OGG"),
    ],
)
def test_a_file_that_cannot_be_played_is_named_with_the_way_out(tmp_path, name, content, hint):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=hint) as error:
        open_recording(path, "r")
    assert str(path) in str(error.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(RecordingError, match=r"gone\.wav: there is no such file"):
        open_recording(tmp_path / "gone.wav", "r")
    with pytest.raises(RecordingError, match="is a folder"):
        open_recording(tmp_path, "r")


def test_a_file_without_samples_is_refused(tmp_path):
    path = tmp_path / "silent.wav"
    soundfile.write(path, np.empty(0, dtype=np.int16), 8_000)
    with pytest.raises(RecordingError, match="no samples"):
        open_recording(path, "r")


def test_a_file_cut_off_in_the_middle_is_played_as_far_as_it_goes_and_told(wav, counts):
    wav.write_bytes(wav.read_bytes()[:-40_002])
    frames, why = frames_until(open_recording(wav, "r"))
    np.testing.assert_array_equal(joined(channel(frames, "replay/r/pump/ch1")), counts[: 50_000 - 10_001, 1])
    assert why is not None
    assert why.startswith(f"{wav}: ends after 39999 samples, its header announces 200000 bytes, 159998 are there")


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".aiff", ".w64", ".rf64", ".caf", ".au"])
def test_a_lost_end_is_told_and_a_whole_file_is_not(tmp_path, counts, suffix):
    path = tmp_path / f"pump{suffix}"
    soundfile.write(path, counts, 44_100)
    frames, why = frames_until(open_recording(path, "r"))
    assert why is None
    assert len(joined(channel(frames, "replay/r/pump/ch0"))) == len(counts)
    content = path.read_bytes()
    for lost in (20, len(content) // 100, len(content) // 2):
        path.write_bytes(content[:-lost])
        try:
            frames, why = frames_until(open_recording(path, "r"))
        except RecordingError as error:
            why = str(error)
        assert why is not None, lost
        assert str(path) in why


def test_a_header_that_could_not_know_the_length_announces_nothing(wav, counts):
    content = bytearray(wav.read_bytes())
    content[4:8] = content[40:44] = b"\xff" * 4
    wav.write_bytes(content)
    frames, why = frames_until(open_recording(wav, "r"))
    assert why is None
    np.testing.assert_array_equal(joined(channel(frames, "replay/r/pump/ch1")), counts[:, 1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_sample_that_is_no_number_is_told_after_what_came_before(tmp_path, value):
    samples = np.linspace(-0.5, 0.5, 20_000).astype(np.float32).reshape(10_000, 2)
    samples[7_123, 1] = value
    path = tmp_path / "pump.wav"
    soundfile.write(path, samples, 10_000, subtype="FLOAT")
    frames, why = frames_until(open_recording(path, "r"))
    assert why is not None
    assert f"{path}: sample 7123 of channel 1 is {value:g}" in why
    np.testing.assert_array_equal(joined(channel(frames, "replay/r/pump/ch0")), samples[:7_123, 0])


def test_a_rate_that_no_sensor_has_is_refused(wav):
    content = bytearray(wav.read_bytes())
    content[24:28] = (2**31 - 1).to_bytes(4, "little")
    wav.write_bytes(content)
    with pytest.raises(RecordingError, match="2147483647 Hz; at most 100000000 Hz"):
        open_recording(wav, "r")


def test_a_name_that_makes_no_sensor_id_is_refused(tmp_path, counts):
    path = tmp_path / f"{'long' * 50}.wav"
    soundfile.write(path, counts, 44_100)
    with pytest.raises(RecordingError, match="rename"):
        open_recording(path, "r")


@pytest.mark.parametrize("cuts", [{"frame_s": 0.0}, {"frame_s": -1.0}, {"frame_sizes": []}, {"frame_sizes": [5, 0]}])
def test_frames_of_nothing_are_refused(cuts):
    with pytest.raises(ValueError, match="positive"):
        FrameCuts(**cuts)


def test_real_clips_are_played_whole(real_data):
    path = sorted((real_data / "esc10").glob("*/*.ogg"))[0]
    source = open_recording(path, "r")
    frames = list(source)
    expected, rate_hz = soundfile.read(path, dtype="float32")
    assert frames[0].rate_hz == rate_hz == 44_100
    np.testing.assert_array_equal(joined(frames), expected)


def test_a_header_of_0_hz_is_told_in_words_that_help(tmp_path):
    path = tmp_path / "pump.wav"
    soundfile.write(path, np.zeros(100, np.int16), 8_000, subtype="PCM_16")
    sound = path.read_bytes()
    path.write_bytes(sound[:24] + bytes(4) + sound[28:])
    with pytest.raises(RecordingError, match=r"pump\.wav: its header says 0 Hz"):
        open_recording(path, "r")
