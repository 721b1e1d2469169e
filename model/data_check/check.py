"""What a model builder should know of a data set before training on it: from measures of its clips to findings."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from model.data.manifest import SPLITS, Manifest
from model.data_check.clip_measures import ClipMeasures
from model.data_check.duplicates import MOST_SKETCHES, Alike, equal, families, nearly_alike
from model.training.recipe import Recipe
from model.training.recipe_choice import Facts, choose_windows

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

TOLD_PLACES = 5
FEW_WINDOWS = 50  #: of a label; below, training is a gamble
FEW_RECORDINGS = 2  #: of a label; below, no split by recording has it on both sides
ROUNDED = 0.01  #: of the shorter of two clips, that they may overlap by where a table rounds their ends
IMBALANCE = 10.0  #: windows of the commonest label over those of the rarest
CLIPPED_SHARE = 1e-4  #: of a clip's samples at flat tops, or at full scale
CLIPPED_SAMPLES = 6  #: and at least so many
SILENT_SHARE = 0.5
OFFSET = 0.5  #: mean over deviation
SHORTEST_SKETCHED = 512  #: samples; shorter clips have too little in them to be called nearly alike


@dataclass(frozen=True, slots=True)
class WindowChoice:
    """How windows would be cut."""

    samples: int
    hop: int
    rate_hz: float | None  #: None is a nominal rate

    def count(self, clip: ClipMeasures) -> int:
        """Windows of a clip, to within one."""
        total = clip.samples if self.rate_hz is None else math.floor(clip.samples * self.rate_hz / clip.rate_hz)
        if clip.hit_s is not None or total <= self.samples:
            return 1
        windows, left = divmod(total - self.samples, self.hop)
        return 1 + windows + (2 * left > self.hop)

    def __str__(self) -> str:
        """In words."""
        rate = "a nominal rate" if self.rate_hz is None else f"{self.rate_hz:g} Hz"
        return f"{self.samples} samples every {self.hop} at {rate}"


def windows_of(clips: Sequence[ClipMeasures], recipe: Recipe) -> WindowChoice:
    """How `recipe` would cut these clips."""
    if not clips:
        return WindowChoice(1, 1, None)
    samples = np.array([clip.samples for clip in clips], dtype=np.int64)
    chosen, _ = choose_windows(recipe, Facts(samples, np.array([clip.rate_hz for clip in clips])))
    cut = chosen.windows
    rate_hz = float(cut.rate_hz)
    length, hop = (max(1, round(float(seconds) * rate_hz)) for seconds in (cut.length_s, cut.hop_s))
    return WindowChoice(length, hop, None if cut.nominal else rate_hz)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know, and what to do about it."""

    severity: Severity
    what: str
    way_out: str
    where: tuple[str, ...] = ()  #: the first few places


@dataclass(frozen=True, slots=True)
class Amount:
    """How much there is of one label in one part."""

    clips: int
    windows: int
    seconds: float


@dataclass(frozen=True, slots=True)
class LabelSummary:
    """What the clips of one label are like."""

    label: str
    parts: dict[str, Amount]  #: by split or fold, "" where the data set has none
    recordings: int
    sensors: int
    positions: int
    duration_s: tuple[float, float, float]  #: shortest, median, longest
    level_db: tuple[float, float, float]  #: quietest, median, loudest clip, root mean square in dB below full scale

    @property
    def total(self) -> Amount:
        """Over all parts."""
        amounts = self.parts.values()
        return Amount(
            sum(a.clips for a in amounts), sum(a.windows for a in amounts), math.fsum(a.seconds for a in amounts)
        )


@dataclass(frozen=True, slots=True)
class Report:
    """All that was found, and the figures it was found in."""

    data: str
    windows: str  #: how they would be cut
    parts: tuple[str, ...]
    labels: tuple[LabelSummary, ...]
    rates_hz: dict[str, int]  #: clips of each rate
    sample_types: dict[str, int]  #: clips of each
    findings: tuple[Finding, ...]  #: errors first

    @property
    def has_errors(self) -> bool:
        """Whether training on it would be wrong."""
        return any(finding.severity == "error" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Everything, in lists, dictionaries, numbers and texts."""
        return asdict(self)


@dataclass(slots=True)
class _Findings:
    found: list[Finding] = field(default_factory=list)

    def add(self, severity: Severity, what: str, way_out: str, where: Iterable[object] = ()) -> None:
        places = [str(place) for place in where]
        more = [f"… and {len(places) - TOLD_PLACES} more"] if len(places) > TOLD_PLACES else []
        self.found.append(Finding(severity, what, way_out, (*places[:TOLD_PLACES], *more)))


def check(
    manifest: Manifest,
    clips: Sequence[ClipMeasures],
    windows: WindowChoice,
    shared_stretches: Sequence[Alike] = (),
    unreadable: Sequence[str] = (),
) -> Report:
    """Look at a data set through the measures of its clips.

    Parameters
    ----------
    clips
        Of every channel that makes windows, and of every hit.
    windows
        How they would be cut.
    shared_stretches
        Pairs of `clips`, by number, as `model.data_check.duplicates.Stretches` finds them.
    unreadable
        Why recordings or clips could not be measured, a line each.
    """
    findings = _Findings()
    if unreadable:
        findings.add(
            "error",
            f"{len(unreadable)} of its recordings or clips cannot be read",
            "mend them, or leave them out",
            unreadable,
        )
    _check_samples(clips, findings)
    _check_overlaps(clips, findings)
    _check_parts(clips, manifest, findings)
    _check_alike(clips, shared_stretches, findings)
    _check_amounts(clips, manifest, windows, findings)
    _check_giveaways(clips, findings)
    _check_names(manifest, findings)
    for note in manifest.notes:
        findings.add("note", *_note(note))
    order = {severity: place for place, severity in enumerate(SEVERITIES)}
    parts = sorted({clip.split for clip in manifest.clips}, key=lambda name: ((*SPLITS, name).index(name), name))
    return Report(
        data=str(manifest.path),
        windows=str(windows),
        parts=tuple(parts),
        labels=tuple(_summary(label, clips, parts, windows) for label in manifest.label_names),
        rates_hz=dict(sorted(Counter(f"{clip.rate_hz:g}" for clip in clips).items())),
        sample_types=dict(sorted(Counter(clip.sample_type for clip in clips).items())),
        findings=tuple(sorted(findings.found, key=lambda finding: order[finding.severity])),
    )


# --- One clip by itself ------------------------------------------------------------------------------------------


def _check_samples(clips: Sequence[ClipMeasures], findings: _Findings) -> None:
    if wrong := [clip for clip in clips if clip.not_finite]:
        findings.add(
            "error",
            f"samples that are no numbers (NaN or infinite) in {_many(wrong, 'clip')}",
            "leave the stretch out with start and end, or write the recording anew",
            (f"{clip}: {clip.not_finite} of {clip.samples}" for clip in wrong),
        )
    if flat := [clip for clip in clips if clip.low == clip.high]:
        findings.add(
            "warning",
            f"a flat line in {_many(flat, 'clip')}{_of_labels(flat)}",
            "leave them out: a dead channel is not a sound of its label",
            (f"{clip}: {clip.low:g} throughout" for clip in flat),
        )
    if silent := [clip for clip in clips if clip.silent_share >= SILENT_SHARE and clip.low != clip.high]:
        findings.add(
            "warning",
            f"silence for half the length or more in {_many(silent, 'clip')}{_of_labels(silent)}",
            "cut them with start and end: windows of silence would be trained on as their label",
            (f"{clip}: {100 * clip.silent_share:.0f} % silent" for clip in silent),
        )
    if clipped := [clip for clip in clips if clipped_samples(clip)]:
        clipped.sort(key=lambda clip: -clipped_samples(clip) / clip.samples)
        findings.add(
            "warning",
            f"clipping in {_many(clipped, 'clip')}{_of_labels(clipped)}",
            "record with less gain; if one label is clipped more often, that is what will be learnt",
            (
                f"{clip}: {100 * clipped_samples(clip) / clip.samples:.2g} % of its samples at {clip.low:.3g} or "
                f"{clip.high:.3g} of full scale"
                for clip in clipped
            ),
        )
    if offset := [clip for clip in clips if abs(clip.mean) > OFFSET * clip.deviation > 0]:
        findings.add(
            "note",
            f"an offset larger than half the deviation in {_many(offset, 'clip')}{_of_labels(offset)}",
            "nothing, for mel features; take it out if other software is to read them",
            (f"{clip}: mean {clip.mean:.3g}, deviation {clip.deviation:.3g}" for clip in offset),
        )


def clipped_samples(clip: ClipMeasures) -> int:
    """Samples at flat tops or at full scale; 0 where they are too few to speak of clipping."""
    count = max(clip.flat_tops, clip.at_full_scale)
    # The extremes of a signal of a few counts are flat by rounding.
    coarse = clip.sample_type == "int16" and clip.high - clip.low < 64 / 32768
    return 0 if coarse or count < max(CLIPPED_SAMPLES, CLIPPED_SHARE * clip.samples) else count


def _many(things: Sequence[object], name: str) -> str:
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"


def _of_labels(clips: Sequence[ClipMeasures]) -> str:
    counts = Counter(clip.clip.label for clip in clips).most_common()
    told = ", ".join(f"{count} {label}" for label, count in counts[:TOLD_PLACES])
    return f": {told}{' and others' if len(counts) > TOLD_PLACES else ''}"


# --- Clips beside one another ------------------------------------------------------------------------------------


def _check_overlaps(clips: Sequence[ClipMeasures], findings: _Findings) -> None:
    """Clips of one file that lie over one another."""
    by_channel: dict[tuple[str, int], set[tuple[float, float, str, str, str]]] = defaultdict(set)
    for measured in clips:
        clip = measured.clip
        end_s = math.inf if clip.end_s is None else clip.end_s
        span = (clip.start_s or 0.0, end_s, clip.label, clip.split, str(clip))
        by_channel[str(clip.path), measured.channel].add(span)
    labels, parts, both = [], [], 0
    for spans in by_channel.values():
        last = (0.0, -1.0, "", "", "")
        for span in sorted(spans):
            if _overlap(last, span):
                both += 1
                if span[2] != last[2]:
                    labels.append(f"{last[4]} is {last[2]}, {span[4]} is {span[2]}")
                if span[3] != last[3]:
                    parts.append(f"{last[4]} in {last[3] or 'no part'}, {span[4]} in {span[3] or 'no part'}")
            last = max(last, span, key=lambda taken: taken[1])
    if labels:
        findings.add(
            "error",
            f"two labels on overlapping clips, {_many(labels, 'time')}",
            "leave one label for each stretch",
            labels,
        )
    if parts:
        findings.add(
            "error",
            f"overlapping clips in two parts, {_many(parts, 'time')}",
            "put each recording into one part",
            parts,
        )
    if both > len(labels) + len(parts):
        findings.add(
            "note",
            f"clips that overlap the one before them: {both}",
            "nothing, if that is meant: they are of one recording",
        )


def _overlap(first: tuple[float, float, str, str, str], second: tuple[float, float, str, str, str]) -> bool:
    """Whether the second begins before the first ends, by more than what rounding to a table's decimals does."""
    shorter_s = min(first[1] - first[0], second[1] - second[0])
    return first[1] - second[0] > (ROUNDED * shorter_s if math.isfinite(shorter_s) else 0.0)


def _check_alike(clips: Sequence[ClipMeasures], shared_stretches: Sequence[Alike], findings: _Findings) -> None:
    sounding = [number for number, clip in enumerate(clips) if clip.low != clip.high]
    same = [
        Alike(sounding[pair.first], sounding[pair.second], 1.0)
        for pair in equal([clips[number].digest for number in sounding])
    ]
    known = _same_family(len(clips), same)
    # Those of one file are found by where they lie.
    other_files = [pair for pair in shared_stretches if clips[pair.first].clip.path != clips[pair.second].clip.path]
    stretches = [pair for pair in other_files if not known(pair)]
    known = _same_family(len(clips), [*same, *stretches])
    sketched = [number for number in sounding if clips[number].samples >= SHORTEST_SKETCHED]
    if len(sketched) > MOST_SKETCHES:
        findings.add(
            "note", f"{len(sketched)} clips are too many to look for nearly equal ones", "check a part of the data set"
        )
        sketched = []
    nearly = []
    if sketched:
        for pair in nearly_alike(np.stack([clips[number].sketch for number in sketched])):
            pair = Alike(sketched[pair.first], sketched[pair.second], pair.share)
            if not known(pair):
                nearly.append(pair)
    _tell_alike(clips, same, "hold the same samples", "error", findings)
    _tell_alike(clips, stretches, "share a stretch of samples", "error", findings)
    _tell_alike(clips, nearly, "have nearly the same waveform", "warning", findings)


def _tell_alike(
    clips: Sequence[ClipMeasures], pairs: Sequence[Alike], what: str, worst: Severity, findings: _Findings
) -> None:
    """Errors where a family is in two parts or has two labels, warnings where a split could tear it apart."""
    torn, contrary, loose = [], [], []
    for family in families(len(clips), pairs):
        members = [clips[number].clip for number in family]
        several = f" = … {len(members)} in all" if len(members) > 3 else ""
        place = " = ".join(f"{clips[n]} ({clips[n].clip.split or clips[n].clip.label})" for n in family[:3]) + several
        if len({clip.label for clip in members}) > 1:
            contrary.append(" = ".join(f"{clips[n]} ({clips[n].clip.label})" for n in family[:3]) + several)
        if len({clip.split for clip in members}) > 1:
            torn.append(place)
        elif len({clip.recording for clip in members}) > 1:
            loose.append(place)
    if contrary:
        findings.add(
            worst,
            f"clips of different labels {what}, {_many(contrary, 'time')}",
            "find out which label is right",
            contrary,
        )
    if torn:
        findings.add(
            worst,
            f"clips of different parts {what}, {_many(torn, 'time')}",
            "put them into one part: what was trained on cannot test",
            torn,
        )
    if loose:
        findings.add(
            "warning",
            f"clips of different recordings {what}, {_many(loose, 'time')}",
            "give them one name in the column recording, or leave copies out: a split would put them on both sides",
            loose,
        )


def _same_family(count: int, pairs: Sequence[Alike]) -> Callable[[Alike], bool]:
    family_of = {member: number for number, family in enumerate(families(count, pairs)) for member in family}

    def same(pair: Alike) -> bool:
        first = family_of.get(pair.first)
        return first is not None and first == family_of.get(pair.second)

    return same


# --- The data set as a whole -------------------------------------------------------------------------------------


def _check_parts(clips: Sequence[ClipMeasures], manifest: Manifest, findings: _Findings) -> None:
    parts = sorted({clip.split for clip in manifest.clips} - {""})
    if not parts:
        return
    named = set(parts) <= set(SPLITS)
    for kind in ("recording", "sensor", "position"):
        places: dict[str, set[str]] = defaultdict(set)
        for clip in manifest.clips:
            places[getattr(clip, kind)].add(clip.split)
        shared = [name for name, where in sorted(places.items()) if len(where) > 1 and name]
        if not shared:
            continue
        findings.add(
            "error" if kind == "recording" else "note",
            f"{kind}s in two parts or more: {len(shared)} of {len(places)}",
            "put each recording into one part: pieces of it are too alike to test one another"
            if kind == "recording"
            else f"nothing, if that is meant; the scores then say nothing of a new {kind}",
            (f"{name}: {', '.join(sorted(places[name]))}" for name in shared),
        )
    held: dict[str, set[str]] = defaultdict(set)
    for clip in manifest.clips:
        held[clip.split].add(clip.label)
    labels = set(manifest.label_names)
    if named and "train" not in parts:
        findings.add("error", f"there is no train part, only {', '.join(parts)}", "name the part to train on train")
    for part in parts:
        if missing := sorted(labels - held[part]):
            in_training = named and part == "train"
            findings.add(
                "error" if in_training else "warning",
                f"{'part' if named else 'fold'} {part} has no {', '.join(missing[:TOLD_PLACES])}",
                "a label that is not trained on cannot be recognised; move some of it there"
                if in_training
                else "scores of this part say nothing of it; move some of it there",
            )


def _check_amounts(
    clips: Sequence[ClipMeasures], manifest: Manifest, windows: WindowChoice, findings: _Findings
) -> None:
    counts: Counter[str] = Counter()
    recordings: dict[str, set[str]] = {label: set() for label in manifest.label_names}
    for measured in clips:
        counts[measured.clip.label] += windows.count(measured)
        recordings[measured.clip.label].add(measured.clip.recording)
    if few := [label for label in manifest.label_names if counts[label] < FEW_WINDOWS]:
        findings.add(
            "warning",
            f"fewer than {FEW_WINDOWS} windows of {_many(few, 'label')}",
            "record more of them, or cut shorter windows: aewatch train --set windows.length_s=…",
            (f"{label}: {counts[label]}" for label in few),
        )
    most, least = max(counts.values(), default=0), min(counts.values(), default=0)
    if least and most > IMBALANCE * least:
        names = {count: label for label, count in counts.items()}
        findings.add(
            "warning",
            f"{names[most]} has {most / least:.0f} times as many windows as {names[least]}",
            "train with balanced sampling (the default recipe does), and judge by macro-F1, not by accuracy",
        )
    lonely = [label for label, names in recordings.items() if 0 < len(names) < FEW_RECORDINGS]
    if lonely and not any(clip.split for clip in manifest.clips):
        findings.add(
            "warning",
            f"one recording only of {_many(lonely, 'label')}",
            "record them again on another day: no split that keeps recordings whole can test them",
            lonely,
        )


def _check_giveaways(clips: Sequence[ClipMeasures], findings: _Findings) -> None:
    """What differs between clips for reasons other than the sound, and may tell the label by itself."""
    for kind, value in (
        ("rate", lambda clip: f"{clip.rate_hz:g} Hz"),
        ("sample type", lambda clip: clip.sample_type),
        ("sensor", lambda clip: clip.clip.sensor),
        ("position", lambda clip: clip.clip.position),
    ):
        labels: dict[str, Counter[str]] = defaultdict(Counter)
        for clip in clips:
            if name := value(clip):
                labels[name][clip.clip.label] += 1
        if len(labels) < 2:
            continue
        told = [
            f"{name}: {', '.join(f'{count} {label}' for label, count in counts.most_common(3))}"
            for name, counts in sorted(labels.items(), key=lambda item: -item[1].total())
        ]
        if all(len(counts) == 1 for counts in labels.values()):
            findings.add(
                "warning",
                f"each {kind} has one label only, so the {kind} by itself tells the label",
                f"record every label with the same {kind}s, or what is learnt may be the {kind}",
                told,
            )
        elif kind in ("rate", "sample type"):
            findings.add(
                "note",
                f"there are {len(labels)} {kind}s",
                "they are brought to one, but a label that is commoner at one of them may be told by it",
                told,
            )


def _check_names(manifest: Manifest, findings: _Findings) -> None:
    folded: dict[str, list[str]] = defaultdict(list)
    for label in manifest.label_names:
        folded["".join(filter(str.isalnum, label.casefold())) or label].append(label)
    if twins := [" and ".join(names) for names in folded.values() if len(names) > 1]:
        findings.add(
            "warning", "labels differ in nothing but case or punctuation", "write each label in one way", twins
        )


def _note(note: str) -> tuple[str, str]:
    what, _, way_out = note.partition("; ")
    return what, way_out or "nothing, if that is meant"


def _summary(label: str, clips: Sequence[ClipMeasures], parts: Sequence[str], windows: WindowChoice) -> LabelSummary:
    own = [clip for clip in clips if clip.clip.label == label]
    by_part = {part: [clip for clip in own if clip.clip.split == part] for part in parts}
    seconds = np.array([clip.duration_s for clip in own])
    level_db = np.array([level(clip) for clip in own])
    return LabelSummary(
        label=label,
        parts={
            part: Amount(len(members), sum(map(windows.count, members)), math.fsum(clip.duration_s for clip in members))
            for part, members in by_part.items()
        },
        recordings=len({clip.clip.recording for clip in own}),
        sensors=len({clip.clip.sensor for clip in own} - {""}),
        positions=len({clip.clip.position for clip in own} - {""}),
        duration_s=_range(seconds),
        level_db=_range(level_db),
    )


def level(clip: ClipMeasures) -> float:
    """Root mean square around the mean, dB of full scale; -120 is the least."""
    return 20 * math.log10(max(clip.deviation, 1e-6))


def _range(values: Any) -> tuple[float, float, float]:
    if not len(values):
        return (math.nan, math.nan, math.nan)
    return float(values.min()), float(np.median(values)), float(values.max())
