"""Frames from National Instruments' .tdms; every channel of numbers is a sensor."""

from __future__ import annotations

import logging
import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from producers.sources.reading import Reading, RecordingError
from producers.sources.sample_rate import agreed_rate, stated_rate
from producers.sources.sampled import Block, Channel, Read, SampledRecording, Track, readable
from producers.sources.stored_arrays import volts_per_count

MAX_CHUNK_BYTES = 1 << 29  #: the library reads a chunk of the file as a whole
INTERLEAVED = 1 << 5  #: bit of a segment's table of contents
SCALES = ("NI_Number_Of_Scales", "NI_Scale[")


def open_source(path: Path, reading: Reading) -> SampledRecording:
    """See `producers.sources.formats`.

    Raises
    ------
    RecordingError
        If `nptdms` is not installed, or the file holds nothing that can be played.
    """
    try:
        import nptdms
        from nptdms.log import log_manager
    except ImportError as error:
        raise RecordingError(f"{path}: reading .tdms needs nptdms; pip install 'aewatch[tdms]'") from error
    for logger in log_manager.loggers.values():
        logger.removeHandler(log_manager.console_handler)  # it would print beside whatever this process logs to
    with readable(path, "TDMS"), nptdms.TdmsFile.open(path) as file:
        tracks: list[Track] = []
        used: list[tuple[str, str]] = []
        for stored in _channels(file):
            if len(stored) == 0 or stored.dtype.kind not in "iufc":
                continue  # text, dates, or announced only
            _refuse_missing(path, stored)
            track = _track(path, file, stored, len(used), reading)
            tracks.append(track)
            used.append((stored.group_name, stored.name))
        _refuse_large_chunks(path, file)
        # The library reads a file that is cut off as far as it goes. Of its channels the longest tells, so that the
        # others are played to their ends.
        last = max(range(len(tracks)), key=lambda n: (tracks[n].samples or 0) / tracks[n].rate_hz, default=-1)
        if cut_off := last >= 0 and _is_cut_off(path, file):
            tracks[last] = replace(tracks[last], samples=None)

    @contextmanager
    def open_tracks() -> Generator[Sequence[Read]]:
        with _told_before(log_manager):
            opened = nptdms.TdmsFile.open(path)
        with opened as file:
            reads = [_chunks(file, file[group][name]) for group, name in used]
            if cut_off:
                reads[last] = _then_told(path, reads[last])
            yield reads

    return SampledRecording(path, reading.cuts, tracks, open_tracks)


@contextmanager
def _told_before(log_manager: Any) -> Generator[None]:
    """The library says the same at each opening of a file."""
    log_manager.set_level(logging.ERROR)
    try:
        yield
    finally:
        log_manager.set_level(logging.WARNING)


def _channels(file: Any) -> Iterator[Any]:
    for group in file.groups():
        yield from group.channels()


def _track(path: Path, file: Any, stored: Any, number: int, reading: Reading) -> Track:
    name = f"{stored.group_name}/{stored.name}"
    counts_v = _volts_of_a_count(file, stored)
    if stored.dtype.kind == "c":
        raise RecordingError(f"{path}: {name} holds complex numbers; save its real part")
    said = None
    if "wf_increment" in stored.properties:
        said = stated_rate(path, f"wf_increment of {name}", "wf_increment", stored.properties["wf_increment"])
    rate_hz = agreed_rate(path, [] if said is None else [said], reading.rate_hz)
    int16 = counts_v is not None or stored.dtype == np.int16
    facts = {name: {"unit": stored.properties.get("unit_string", "")}}
    if counts_v is not None:
        facts[name]["scale"] = counts_v
    volts = volts_per_count(path, name, facts, reading, int16)
    channel = Channel(reading.sensor(path, number, stored.name), name, volts)
    return Track((channel,), rate_hz, len(stored), int16)


def _volts_of_a_count(file: Any, stored: Any) -> float | None:
    """The slope, where raw int16 is scaled by one line through zero; None where the library must scale."""
    properties = stored.properties
    around = (*file.properties, *file[stored.group_name].properties)
    plain = (
        getattr(stored.data_type, "nptype", None) == np.int16
        and properties.get("NI_Scaling_Status") != "scaled"
        and properties.get("NI_Number_Of_Scales") == 1
        and properties.get("NI_Scale[0]_Scale_Type") == "Linear"
        and properties.get("NI_Scale[0]_Linear_Y_Intercept") == 0
        and not any(name.startswith(SCALES) for name in around)
    )
    slope = properties.get("NI_Scale[0]_Linear_Slope", math.nan)
    return float(slope) if plain and 0 < slope < math.inf else None


def _chunks(file: Any, stored: Any) -> Read:
    """What reads the channel chunk by chunk, each once: as counts where they have a scale of volts."""
    if _volts_of_a_count(file, stored) is not None:
        stored.properties["NI_Scaling_Status"] = "scaled"  # the library then gives numbers as they are stored
    chunks = stored.data_chunks()

    def read(_begin: int, _count: int) -> Block:
        return next((values for chunk in chunks if len(values := chunk[:])), np.empty(0)).reshape(-1, 1)

    return read


def _is_cut_off(path: Path, file: Any) -> bool:
    """Whether the last segment lacks something, or bytes that are no segment stand behind it."""
    incomplete: bool = file.file_status.incomplete_final_segment
    return incomplete or bool(file._reader._segments[-1].next_segment_pos < path.stat().st_size)


def _then_told(path: Path, read: Read) -> Read:
    def read_and_tell(begin: int, count: int) -> Block:
        block = read(begin, count)
        if len(block) == 0:
            raise RecordingError(
                f"{path}: ends within its last segment, after {begin} samples; the file is cut off, what is there has "
                "been played"
            )
        return block

    return read_and_tell


def _refuse_missing(path: Path, stored: Any) -> None:
    size = getattr(stored.data_type, "size", None)
    if size is not None and len(stored) * size > path.stat().st_size:
        raise RecordingError(
            f"{path}: {stored.group_name}/{stored.name} announces {len(stored) * size} bytes, more than the file has; "
            "it is "
            "damaged"
        )


def _refuse_large_chunks(path: Path, file: Any) -> None:
    if path.stat().st_size <= MAX_CHUNK_BYTES:
        return
    # The library does not say in public how it reads: a segment whole if interleaved, else chunk by chunk.
    for segment in file._reader._segments:
        whole = segment.next_segment_pos - segment.data_position
        largest = whole if segment.toc_mask & INTERLEAVED else min(whole, segment._get_chunk_size())
        if largest > MAX_CHUNK_BYTES:
            raise RecordingError(
                f"{path}: holds {largest} bytes in one piece, at most {MAX_CHUNK_BYTES} are read; write it in shorter "
                "pieces, "
                "or export it as HDF5 or WAV"
            )
