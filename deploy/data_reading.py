"""Reads the recordings of a data set once, for the look at it before training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from deploy.clip_survey import Survey, pieces_of, read_all, survey_all
from model.data.manifest import Manifest
from model.data_check.clip_measures import ClipMeasures, ClipMeter
from model.data_check.duplicates import Alike, Hashes, Stretches, stretch_hashes


@dataclass(slots=True)
class Measured:
    """What `model.data_check.check.check` wants to know of a data set."""

    clips: list[ClipMeasures] = field(default_factory=list)
    shared_stretches: list[Alike] = field(default_factory=list)  #: of `clips`, by number
    unreadable: list[str] = field(default_factory=list)


def measure(manifest: Manifest, on_progress: Callable[[int, int], None] | None = None) -> Measured:
    """Measures of all clips; recordings that cannot be read are left out and named. Memory grows with clips alone."""
    surveys, unreadable = survey_all(manifest)
    measured = Measured(unreadable=unreadable)
    stretches = Stretches()
    begun = 0
    place_of: dict[int, int] = {}
    for done, (_, blocks, reasons) in enumerate(read_all(surveys, _measures_of), start=1):
        last = -1
        for number, hashes, clip in blocks:
            stretches.add(begun + number, hashes)
            last = max(last, number)
            if clip is not None:
                place_of[begun + number] = len(measured.clips)
                measured.clips.append(clip)
        begun += last + 1
        unreadable += reasons
        if on_progress:
            on_progress(done, len(surveys))
    measured.shared_stretches = [
        Alike(place_of[pair.first], place_of[pair.second], pair.share)
        for pair in stretches.alike()
        if pair.first in place_of and pair.second in place_of
    ]
    return measured


def _measures_of(found: Survey) -> Iterator[tuple[int, Hashes, ClipMeasures | None]]:
    """Number of the clip or hit, hashes of its next samples, and with the last of them its measures."""
    meters: dict[tuple[int, int], tuple[int, ClipMeter]] = {}
    begun = 0
    for piece in pieces_of(found):
        key = (id(piece.clip), piece.channel)
        if key not in meters:
            rate_hz, hit_s = found.rate_hz, None
            if piece.hit is not None:
                rate_hz, hit_s = piece.hit.rate_hz, float(piece.hit.first_sample / piece.hit.rate_hz)
            meters[key] = (begun, ClipMeter(piece.clip, piece.channel, float(rate_hz), hit_s))
            begun += 1
        number, meter = meters[key]
        meter.push(piece.samples)
        yield number, stretch_hashes(piece.samples), meter.finish() if piece.ends else None
        if piece.ends:
            del meters[key]
