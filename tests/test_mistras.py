import random
import re
import struct
from dataclasses import replace
from datetime import datetime, timedelta
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from producers.sources.mistras import open_source
from producers.sources.reading import Reading, RecordingError
from stream.records import Flags, decode_frames, encode_frame

START = "Thu May 27 10:53:54 2021"
RATE_KHZ = 5_000
PRETRIGGER = 100


def record(kind, body=b""):
    head = bytes([kind, 0]) if 40 <= kind <= 49 else bytes([kind])
    return struct.pack("<H", len(head) + len(body)) + head + body


def product(name=b"Express-8 (r) Location Version "):
    return record(41, struct.pack("<H", 680) + name + b"\n\rVersion V5.92\n\r\n\r\x1a\0")


def start(text=START):
    return record(99, text.encode() + b"\n\0")


def digitiser(channel=1, rate_khz=RATE_KHZ, delay=-PRETRIGGER, full_scale_v=10, sample_type=2):
    body = struct.pack("<BHBHH", 42, 100, sample_type, 1, 17)
    return record(173, body + struct.pack("<BHHHHHhHH", channel, 1, 0, rate_khz, 0, 1, delay, full_scale_v, 40))


def gain(channel=1, gain_db=0):
    return record(23, bytes([channel, gain_db, 20]))


def preamplifier(channel=1, gain_db=40):
    return record(20, bytes([channel, gain_db]))


def setup(*of_settings):
    return record(42, b"\x67\0" + b"".join((record(100), *of_settings, record(101))))


def of_channel(channel, **of_digitiser):
    return (preamplifier(channel), gain(channel), digitiser(channel, **of_digitiser))


def head(*channels, **of_digitiser):
    return [product(), start(), setup(*(s for channel in channels for s in of_channel(channel, **of_digitiser)))]


def ticks_of(time_s):
    return round(time_s * 4_000_000).to_bytes(6, "little")


def waveform(time_s, samples, channel=1, kind=1):
    return record(173, bytes([kind]) + ticks_of(time_s) + bytes([channel, 0]) + np.asarray(samples, "<i2").tobytes())


def hit(time_s, channel=1):
    return record(1, ticks_of(time_s) + bytes([channel]) + bytes(19))


def burst(seed, count=64):
    return np.random.default_rng(seed).integers(-3000, 3000, count).astype(np.int16)


def write(path, *records):
    path.write_bytes(b"".join(records))
    return path


def opened(path, **reading):
    return open_source(path, Reading(run="r", **reading))


def hits_of(source):
    return [frame for frame in source if Flags.HIT in frame.flags]


@pytest.fixture
def dta(tmp_path):
    return write(
        tmp_path / "valve.DTA",
        *head(1, 2),
        record(128, bytes(6)),
        hit(0.5),
        waveform(0.5, burst(1)),
        hit(0.3, 2),
        waveform(0.3, burst(2), channel=2),
        hit(0.6),
        waveform(0.7, burst(3), kind=10),
        waveform(0.9, burst(4), channel=2),
        record(129, bytes(6)),
    )


def test_each_waveform_is_a_frame_and_they_come_in_order_of_time(dta):
    source = opened(dta)
    assert source.sensors == ("replay/r/valve/ch1", "replay/r/valve/ch2")
    frames = list(source)
    hits = frames[:4]
    assert [frame.sensor[-3:] for frame in hits] == ["ch2", "ch1", "ch1", "ch2"]
    for frame, seed in zip(hits, (2, 1, 3, 4), strict=True):
        assert frame.samples.dtype == np.int16
        np.testing.assert_array_equal(frame.samples, burst(seed))
        assert frame.rate_hz == Fraction(RATE_KHZ * 1000)
        assert frame.epoch_ns == 0
    assert (source.total_frames, source.total_samples) == (6, 256)
    assert source.duration_s == pytest.approx(0.6 + 64 / 5e6)
    assert [[f.sequence for f in frames if f.sensor == sensor] for sensor in source.sensors] == [[0, 1, 2], [0, 1, 2]]
    assert list(map(encode_frame, source)) == list(map(encode_frame, frames))


def test_each_channel_ends_with_an_end_frame(dta):
    frames = list(opened(dta))
    assert [frame.flags for frame in frames[-2:]] == [Flags.END, Flags.END]
    for end in frames[-2:]:
        last = [frame for frame in frames if frame.sensor == end.sensor][-2]
        assert (end.first_sample, len(end.samples)) == (last.end_sample, 0)
        assert end.time_ns == last.time_ns + 64 * 200


def test_a_frame_begins_its_pretrigger_before_the_stored_time(dta):
    frame = hits_of(opened(dta))[1]
    assert frame.time_ns == 500_000_000 - PRETRIGGER * 200
    assert frame.first_sample == 2_500_000 - PRETRIGGER


def test_times_keep_their_250_ns(tmp_path):
    path = write(tmp_path / "a.DTA", *head(1), waveform(59.39986225, burst(1)))
    assert hits_of(opened(path))[0].time_ns == 59_399_862_250 - PRETRIGGER * 200


def test_a_trigger_delay_begins_a_frame_after_the_stored_time(tmp_path):
    path = write(tmp_path / "a.DTA", *head(1, delay=50), waveform(0.5, burst(1)))
    assert hits_of(opened(path))[0].first_sample == 2_500_050
    assert hits_of(opened(path))[0].time_ns == 500_010_000


def test_a_pretrigger_before_the_beginning_is_kept_at_zero(tmp_path):
    path = write(tmp_path / "a.DTA", *head(1), waveform(0, burst(1)))
    frame = hits_of(opened(path))[0]
    assert (frame.first_sample, frame.time_ns) == (0, 0)


def test_waveforms_of_the_sensor_self_test_are_test_pulses(dta):
    assert [frame.flags for frame in hits_of(opened(dta))] == [
        Flags.HIT,
        Flags.HIT,
        Flags.HIT | Flags.TEST_PULSE,
        Flags.HIT,
    ]


def test_a_waveform_that_reaches_the_end_of_the_range_is_saturated(tmp_path):
    peaks = (32_767, -32_768, 32_766, -32_767)
    path = write(tmp_path / "a.DTA", *head(1), *(waveform(n, [0, peak, 0]) for n, peak in enumerate(peaks, 1)))
    assert [Flags.SATURATED in frame.flags for frame in hits_of(opened(path))] == [True, True, False, False]


def test_counts_become_volts_at_the_sensor_before_all_amplifiers(tmp_path):
    settings_of = (preamplifier(1, 40), gain(1, 6), digitiser(1, full_scale_v=5))
    path = write(tmp_path / "a.DTA", product(), start(), setup(*settings_of), waveform(1, burst(1)))
    assert hits_of(opened(path))[0].volts_per_count == pytest.approx(5 / 32_768 / 10 ** (46 / 20))


def test_a_gain_changed_during_the_test_counts_from_there_on(tmp_path):
    time_marked = record(211, ticks_of(2.5) + gain(1, 40))
    path = write(
        tmp_path / "a.DTA",
        *head(1),
        waveform(1, burst(1)),
        gain(1, 20),
        waveform(2, burst(2)),
        time_marked,
        waveform(3, burst(3)),
    )
    first, second, third = (frame.volts_per_count for frame in hits_of(opened(path)))
    assert (first / second, second / third) == (pytest.approx(10), pytest.approx(10))


def test_a_setup_of_channel_0_is_that_of_every_channel(tmp_path):
    path = write(tmp_path / "a.DTA", *head(0), waveform(1, burst(1), channel=7))
    assert [frame.sensor for frame in hits_of(opened(path))] == ["replay/r/a/ch7"]


def test_records_of_unknown_kind_are_passed_over(tmp_path):
    unknown = [record(kind, bytes(kind)) for kind in (2, 3, 7, 21, 38, 44, 49, 116, 208, 255)]
    other_waveforms = record(173, b"\x03" + bytes(100))
    path = write(tmp_path / "a.DTA", *head(1), *unknown, other_waveforms, waveform(1, burst(1)), *unknown)
    assert [len(frame.samples) for frame in opened(path)] == [64, 0]


def test_hits_without_a_waveform_alone_are_no_recording(tmp_path):
    with pytest.raises(RecordingError, match=r"a\.DTA: holds no waveforms; was waveform recording switched on"):
        opened(write(tmp_path / "a.DTA", *head(1), hit(1), hit(2)))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (
            waveform(2, burst(2), channel=3),
            "a waveform of channel 3, of which no record before it has a waveform setup",
        ),
        (digitiser(3) + waveform(2, burst(2), channel=3), "of which no record before it has a gain"),
        (digitiser(1, rate_khz=0) + waveform(2, burst(2)), "channel 1, whose sample rate is set to 0"),
        (digitiser(1, full_scale_v=0) + waveform(2, burst(2)), "channel 1, whose full scale is set to 0"),
        (digitiser(1, sample_type=4) + waveform(2, burst(2)), "samples of type 4"),
        (waveform(2, []), "no whole number of samples"),
        (record(173, b"\x01" + bytes(11)), "no whole number of samples"),
        (b"\xff\xff\x01" + bytes(100), "has 65535 bytes, but only 101 are left"),
        (b"\x00\x00" + bytes(50), "a record of length 0"),
        (b"\x05\x00\x00" + bytes(50), "kind 0"),
        (b"\x05\x00\x2a\x07" + bytes(50), "whose second byte is not 0"),
        (record(42, b"\x67\0" + b"\xff\x00\x17\x01"), "does not fit into the hardware setup"),
        (record(173, b"\x2a\x64\x00\x02\xff\xff\x11\x00" + bytes(17)), "65535 waveform setups"),
        (record(23, b"\x01"), "a gain in 1 bytes"),
        (b"\x09", "the file ends after 1 bytes of a record"),
    ],
)
def test_hits_before_a_damage_are_played_and_then_it_is_named(tmp_path, bad, reason):
    before = b"".join((*head(1), waveform(1, burst(1))))
    at = len(before) + (len(digitiser()) if reason.startswith(("channel 1", "of which", "samples of")) else 0)
    source = opened(write(tmp_path / "a.DTA", before, bad))
    assert (source.total_frames, source.total_samples) == (1, 64)
    frames = iter(source)
    np.testing.assert_array_equal(next(frames).samples, burst(1))
    with pytest.raises(RecordingError, match=rf"a\.DTA: byte {at}: .*{re.escape(reason)}.*have been played"):
        next(frames)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "holds no waveforms"),
        (b"RIFF of something else", "byte 0: .*has 18770 bytes"),
        (record(1, bytes(20)), "byte 0: begins with a record of kind 1"),
        (b"\x0a", "byte 0: the file ends after 1 bytes"),
    ],
)
def test_a_file_that_is_no_recording_is_named(tmp_path, content, reason):
    with pytest.raises(RecordingError, match=rf"a\.DTA: {reason}"):
        opened(write(tmp_path / "a.DTA", content))


def test_a_file_cut_anywhere_gives_the_hits_before_the_cut_and_an_error(dta):
    whole = dta.read_bytes()
    all_hits = [encode_frame(frame) for frame in hits_of(opened(dta))]
    ends = [len(whole[: whole.index(burst(seed).tobytes())]) + 128 for seed in (2, 1, 3, 4)]
    record_ends = set()
    at = 0
    while at < len(whole):
        at += 2 + struct.unpack_from("<H", whole, at)[0]
        record_ends.add(at)
    for cut in range(len(whole)):
        dta.write_bytes(whole[:cut])
        expected = [encoded for encoded, end in zip(all_hits, ends, strict=True) if end <= cut]
        played = []
        try:
            played.extend(encode_frame(frame) for frame in opened(dta) if Flags.HIT in frame.flags)
            assert cut in record_ends
        except RecordingError:
            assert cut not in record_ends or not expected
        if cut in record_ends or not expected:
            assert [encoded[40:] for encoded in played] == [encoded[40:] for encoded in expected]


def play(path):
    """Frames until the end or a RecordingError; anything else is an error of the reader's."""
    frames, said = [], path.name
    try:
        frames.extend(opened(path))
    except RecordingError as error:
        said = str(error)
    assert path.name in said
    for frame in frames:
        assert decode_frames(frame.sensor, encode_frame(frame)).rejects == []
    return frames


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 7)), min_size=1, max_size=4), st.integers(0, 2**16))
def test_a_file_with_flipped_bits_gives_sound_frames_or_an_error(tmp_path, flips, cut):
    recording = b"".join((*head(1, 2), *(waveform(n, burst(n, 20), channel=1 + n % 2) for n in range(1, 6))))
    content = bytearray(recording)
    for at, bit in flips:
        content[at % len(content)] ^= 1 << bit
    play(write(tmp_path / "a.DTA", bytes(content)))
    play(write(tmp_path / "a.DTA", bytes(content[: cut % len(content)])))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_any_bytes_after_a_sound_head_give_sound_frames_or_an_error(tmp_path, content):
    play(write(tmp_path / "a.DTA", *head(1), content))


def test_a_file_that_shrinks_while_it_is_played_is_an_error(dta):
    frames = iter(opened(dta))
    next(frames)
    dta.write_bytes(dta.read_bytes()[:300])
    with pytest.raises(RecordingError, match=r"valve\.DTA: byte \d+: .*the file was changed while it was played"):
        list(frames)


def test_a_removed_file_is_an_error(dta):
    source = opened(dta)
    dta.unlink()
    with pytest.raises(RecordingError, match=r"valve\.DTA: cannot be read"):
        list(source)


def test_an_unfinished_iteration_leaves_nothing_open(dta):
    frames = iter(opened(dta))
    next(frames)
    frames.close()
    dta.unlink()


# Parts


def continued(*records, dos_time=b"\x2a\x09\x51\x0e\xea\x07\x0e\x01"):
    inside = b"".join(records)
    return struct.pack("<HB", 1 + len(dos_time) + len(inside), 8) + dos_time + inside


def write_parts(folder, *numbers, text=START):
    folder.mkdir(exist_ok=True)
    write(folder / "long.DTA", *head(1), waveform(1, burst(1)), record(8, bytes(8)))
    for number in numbers:
        write(
            folder / f"long__{number}.DTA",
            continued(product(), start(text), setup(*of_channel(1))),
            waveform(number, burst(number)),
        )
    return folder / "long.DTA"


def test_the_first_part_plays_all_parts_as_one_recording(tmp_path):
    source = opened(write_parts(tmp_path, *range(2, 12)))
    assert source.sensors == ("replay/r/long/ch1",)
    frames = list(source)
    assert [frame.time_ns // 10**8 for frame in frames[:-1]] == [9 + 10 * n for n in range(11)]
    assert [frame.sequence for frame in frames] == list(range(12))
    for number, frame in enumerate(frames[:-1], 1):
        np.testing.assert_array_equal(frame.samples, burst(number))


def test_a_later_part_is_played_alone(tmp_path):
    write_parts(tmp_path, 2, 3)
    source = opened(tmp_path / "long__2.DTA")
    assert source.sensors == ("replay/r/long__2/ch1",)
    assert [frame.flags for frame in source] == [Flags.HIT, Flags.END]


def test_a_part_without_its_own_setup_goes_on_with_that_of_the_first(tmp_path):
    path = write_parts(tmp_path)
    write(tmp_path / "long__2.DTA", record(8, bytes(8)), waveform(2, burst(2)))
    assert len(hits_of(opened(path))) == 2
    with pytest.raises(RecordingError, match=r"long__2\.DTA: byte 11: a waveform of channel 1, of which no record"):
        opened(tmp_path / "long__2.DTA")


def test_a_missing_part_between_others_is_named(tmp_path):
    path = write_parts(tmp_path, 2, 4)
    with pytest.raises(RecordingError, match=r"long__3\.DTA: is missing, though long__4\.DTA is there"):
        opened(path)


def test_a_part_of_a_test_that_was_begun_again_follows_at_its_own_time(tmp_path):
    later = datetime.strptime(START, "%a %b %d %H:%M:%S %Y") + timedelta(hours=3, seconds=5)
    path = write_parts(tmp_path, 2, text=later.strftime("%a %b %d %H:%M:%S %Y"))
    plain = hits_of(opened(write_parts(tmp_path / "plain", 2)))
    first, second = hits_of(opened(path))
    assert first.time_ns == plain[0].time_ns
    assert second.time_ns - plain[1].time_ns == 10_805 * 10**9
    assert second.first_sample - plain[1].first_sample == 10_805 * second.rate_hz


@pytest.mark.parametrize("text", ["Fri May 28 10:53:54 1999", "yesterday"])
def test_a_part_of_an_earlier_test_is_left_out_and_said_so(tmp_path, caplog, text):
    path = write_parts(tmp_path, 2, text=text)
    assert len(hits_of(opened(path))) == 1
    assert f"long__2.DTA: is of a test begun {text}" in caplog.text


def test_parts_of_other_recordings_are_none_of_this_one(tmp_path):
    path = write_parts(tmp_path, 2)
    for name in ("longer__3.DTA", "long__x.DTA", "long__3.txt", "long__0.DTA"):
        (tmp_path / name).write_bytes(b"")
    assert len(hits_of(opened(path))) == 2


def test_a_damage_in_one_part_does_not_lose_the_others(tmp_path):
    path = write_parts(tmp_path, 2, 3)
    second = tmp_path / "long__2.DTA"
    second.write_bytes(second.read_bytes()[:-1])
    frames = iter(opened(path))
    assert [next(frames).time_ns // 10**8 for _ in range(2)] == [9, 29]
    with pytest.raises(RecordingError, match=r"long__2\.DTA: byte \d+: .*but only"):
        next(frames)


# Real recordings


def reference(real_data, name):
    with np.load(real_data / "mistras" / name) as file:
        return file["rec"], file["wfm"]


@pytest.mark.parametrize(
    ("name", "gain_db", "flags"),
    [
        # Recorded gain is 0 dB; the references hold volts behind the preamplifier (60 dB), and behind one of 26 dB and
        # the 14 dB that a Micro-SHM-4 does not record.
        ("210527-CH1-15", 60, Flags.HIT),
        ("260114-4ch-1para", 40, Flags.HIT | Flags.TEST_PULSE),
    ],
)
def test_a_real_recording_equals_its_reference_decoding(real_data, name, gain_db, flags):
    _, expected = reference(real_data, f"{name}.npz")
    expected = expected[np.argsort(expected["SSSSSSSS.mmmuuun"], kind="stable")]
    hits = hits_of(opened(real_data / "mistras" / f"{name}.DTA"))
    assert len(hits) >= len(expected) > 0  # the references know of no second part
    for frame, row in zip(hits, expected, strict=False):
        # NumPy cuts zero bytes off the end of its byte strings.
        volts = np.frombuffer(row["WAVEFORM"].ljust(8 * len(frame.samples), b"\0"))
        np.testing.assert_allclose(frame.samples * frame.volts_per_count * 10 ** (gain_db / 20), volts, rtol=1e-12)
        assert frame.rate_hz == row["SRATE"]
        assert frame.sensor.endswith(f"/ch{row['CH']}")
        trigger_ns = frame.time_ns - row["TDLY"] * 10**9 // row["SRATE"]
        assert trigger_ns == round(row["SSSSSSSS.mmmuuun"] * 4e6) * 250
        assert frame.flags == flags


def test_levels_are_those_the_device_measured_itself(real_data):
    measured, _ = reference(real_data, "210527-CH1-15.npz")
    levels = [peak_db_ae(frame) for frame in hits_of(opened(real_data / "mistras/210527-CH1-15.DTA"))]
    # The device stores whole dB, rounded down; two of the eight crossed the threshold by less than 3 us.
    long_enough = measured["DURATION"] > 10
    assert sum(long_enough) == 5
    np.testing.assert_array_equal(np.floor(levels)[long_enough], measured["AMP"][long_enough])


def peak_db_ae(frame):
    return 20 * np.log10(np.abs(frame.samples.astype(float)).max() * frame.volts_per_count / 1e-6)


def test_levels_of_a_micro_shm_are_those_it_measured_itself(real_data):
    path = real_data / "mistras/260114-4ch-1para__2.DTA"
    content = path.read_bytes()
    measured = {}
    at = 0
    while at < len(content):
        length, kind = struct.unpack_from("<HB", content, at)
        if kind == 1:
            ticks = int.from_bytes(content[at + 3 : at + 9], "little")
            _, _, _, duration_us, amplitude = struct.unpack_from("<HHHIB", content, at + 10)
            measured[ticks, content[at + 9]] = (duration_us * 5, amplitude)
        at += 2 + length
    compared, pretrigger = 0, 1280
    for frame in hits_of(opened(path)):
        duration, amplitude = measured[round(frame.time_ns / 250) + 1024, int(frame.sensor[-1])]
        if pretrigger + duration < len(frame.samples):  # all of the hit is in the waveform
            compared += 1
            hit = replace(frame, samples=frame.samples[pretrigger : pretrigger + duration + 1])
            assert int(peak_db_ae(hit)) == amplitude
    assert compared == 31


def test_a_real_second_part_equals_another_readers_decoding(real_data, monkeypatch):
    reader = pytest.importorskip("MistrasDTA").MistrasDTA
    # Two features that it does not know would stop it.
    monkeypatch.setattr(reader, "CHID_to_str", reader.CHID_to_str | {22: "A", 31: "B"})
    monkeypatch.setattr(reader, "CHID_byte_len", reader.CHID_byte_len | {22: 0, 31: 0})
    path = real_data / "mistras/260114-4ch-1para__2.DTA"
    _, expected = reader.read_bin(str(path))
    expected = expected[np.argsort(expected["SSSSSSSS.mmmuuun"], kind="stable")]
    hits = hits_of(opened(path))
    assert len(hits) == 243
    for frame, row in zip(hits, expected, strict=True):
        volts = np.frombuffer(row["WAVEFORM"].ljust(8 * len(frame.samples), b"\0"))
        np.testing.assert_allclose(frame.samples * (10 / 32_768), volts, rtol=1e-12)
        assert frame.sensor.endswith(f"/ch{row['CH']}")


def test_the_real_parts_are_one_recording_the_second_at_its_own_time(real_data):
    hits = hits_of(opened(real_data / "mistras/260114-4ch-1para.DTA"))
    alone = hits_of(opened(real_data / "mistras/260114-4ch-1para__2.DTA"))
    assert (len(hits), len(alone)) == (40 + 243, 243)
    assert [hit.time_ns for hit in hits] == sorted(hit.time_ns for hit in hits)
    between_ns = hits[40].time_ns - alone[0].time_ns  # the tests were begun at 06:11 and at 09:39:04
    assert 3.4 * 3600 < between_ns / 10**9 < 3.5 * 3600
    for hit, other in zip(hits[40:], alone, strict=True):
        np.testing.assert_array_equal(hit.samples, other.samples)
        assert hit.time_ns - other.time_ns == between_ns


def test_a_real_recording_cut_at_any_percent_gives_the_hits_before(real_data, tmp_path):
    content = (real_data / "mistras/210527-CH1-15.DTA").read_bytes()
    whole = hits_of(opened(real_data / "mistras/210527-CH1-15.DTA"))
    counts = []
    for percent in range(100):
        frames = play(write(tmp_path / "cut.DTA", content[: len(content) * percent // 100]))
        frames = [frame for frame in frames if Flags.HIT in frame.flags]
        counts.append(len(frames))
        for frame, expected in zip(frames, whole, strict=False):
            np.testing.assert_array_equal(frame.samples, expected.samples)
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 8)


def test_a_real_recording_with_flipped_bytes_gives_frames_or_an_error(real_data, tmp_path):
    original = (real_data / "mistras/260114-4ch-1para.DTA").read_bytes()
    chance = random.Random(1)
    for _ in range(40):
        content = bytearray(original)
        for _ in range(chance.randint(1, 5)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        play(write(tmp_path / "flipped.DTA", bytes(content)))
