"""What is measured of one clip's samples for the look at a data set: level, clipping, silence, spectrum, fingerprints.

Samples come in blocks of any size and are looked at once. All levels are in full scales: int16 counts over 32768, or
float32 as it is.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from model.data.manifest import Clip

Samples = npt.NDArray[np.int16] | npt.NDArray[np.float32]
Values = npt.NDArray[np.float32]

BLOCK = 4096  #: samples that a sketch is made of at once
SKETCH = 128  #: numbers of a sketch
QUIET_BLOCK = 256  #: samples whose level is one; silence is counted in such blocks
QUIET_SHARE = 1e-4  #: of the loudest block's level: 80 dB below it is silence …
ONE_COUNT = 1.0 / 32768  #: … and so is what 16 bits cannot hold
SPECTRUM = 64  #: bands from 0 to half the rate, equally wide
TRANSFORM = 2 * SPECTRUM * 4
FLAT_TOP = 3  #: so many equal samples at the extreme are a flat top
FULL_SCALE = 32767 / 32768
SEED = 20_260_101


@dataclass(frozen=True, slots=True, eq=False)
class ClipMeasures:
    """Of one channel of one clip, or of one hit."""

    clip: Clip
    channel: int
    rate_hz: float
    sample_type: str  #: "int16" or "float32"
    hit_s: float | None  #: where in the recording a hit begins; None of a continuous clip
    samples: int
    not_finite: int  #: samples that are no number; all else is measured with zeros there
    low: float  #: smallest sample
    high: float  #: largest sample
    mean: float
    deviation: float  #: root mean square around the mean
    flat_tops: int  #: samples in runs of `FLAT_TOP` or more at the largest or the smallest value
    at_full_scale: int  #: samples at ±1 or beyond
    silent_share: float  #: of blocks that are silence; 1 for a clip of one value
    spectrum: Values  #: (SPECTRUM,), mean power of each band
    digest: bytes  #: of the samples as they are; equal for equal samples of one type
    sketch: Values  #: (SKETCH,), of unit length; of clips that are alike sample by sample so are the sketches; or zeros

    def __str__(self) -> str:
        """Where it is."""
        channel = f" channel {self.channel}" if self.clip.channel is None and self.channel else ""
        return f"{self.clip}{channel}{'' if self.hit_s is None else f' hit at {self.hit_s:.6f} s'}"

    @property
    def duration_s(self) -> float:
        """Of the clip, or the hit."""
        return self.samples / self.rate_hz


class ClipMeter:
    """Measures one clip: `push` its samples in order, then `finish`."""

    def __init__(self, clip: Clip, channel: int, rate_hz: float, hit_s: float | None = None) -> None:
        self._clip, self._channel, self._rate_hz, self._hit_s = clip, channel, rate_hz, hit_s
        self._sample_type = ""
        self._samples = 0
        self._not_finite = 0
        self._digest = hashlib.blake2b(digest_size=16)
        self._low, self._high = np.inf, -np.inf
        self._flat_low = self._flat_high = 0
        self._at_full_scale = 0
        self._sum = self._squares = 0.0
        self._levels: list[Values] = []
        self._power = np.zeros(SPECTRUM)
        self._transforms = 0
        self._rest = np.empty(0, dtype=np.float32)
        self._sketch = np.zeros(SKETCH, dtype=np.float32)
        self._blocks = 0

    def push(self, samples: Samples) -> None:
        """Take the next samples, (n,), int16 or float32."""
        if not len(samples):
            return
        self._sample_type = str(samples.dtype)
        self._samples += len(samples)
        self._digest.update(np.ascontiguousarray(samples).data)
        if samples.dtype == np.int16:
            values = samples.astype(np.float32) * np.float32(ONE_COUNT)
        else:
            finite = np.isfinite(samples)
            wrong = len(samples) - int(np.count_nonzero(finite))
            self._not_finite += wrong
            values = np.where(finite, samples, np.float32(0)) if wrong else np.asarray(samples, dtype=np.float32)
        self._measure_extremes(values)
        self._sum += float(values.sum(dtype=np.float64))
        self._squares += float(np.square(values, dtype=np.float64).sum())
        values = np.concatenate((self._rest, values)) if len(self._rest) else values
        whole = len(values) - len(values) % BLOCK
        self._measure_blocks(values[:whole])
        self._rest = values[whole:].copy()

    def finish(self) -> ClipMeasures:
        """What was measured.

        Raises
        ------
        ValueError
            If no samples came.
        """
        if not self._samples:
            raise ValueError(f"{self._clip}: no samples were measured")
        if len(self._rest):
            self._measure_rest()
        mean = self._sum / self._samples
        deviation = max(self._squares / self._samples - mean**2, 0.0) ** 0.5
        levels = np.concatenate(self._levels)
        silent = levels < max(ONE_COUNT / 2, QUIET_SHARE * float(levels.max()))
        constant = self._low == self._high
        norm = float(np.linalg.norm(self._sketch))
        return ClipMeasures(
            clip=self._clip,
            channel=self._channel,
            rate_hz=self._rate_hz,
            sample_type=self._sample_type,
            hit_s=self._hit_s,
            samples=self._samples,
            not_finite=self._not_finite,
            low=float(self._low),
            high=float(self._high),
            mean=mean,
            deviation=0.0 if constant else deviation,
            flat_tops=0 if constant else self._flat_low + self._flat_high,
            at_full_scale=self._at_full_scale,
            silent_share=1.0 if constant else float(silent.mean()),
            spectrum=(self._power / max(self._transforms, 1)).astype(np.float32),
            digest=self._digest.digest(),
            sketch=self._sketch / np.float32(norm) if norm > 0 and not constant else np.zeros_like(self._sketch),
        )

    def _measure_extremes(self, values: Values) -> None:
        low, high = float(values.min()), float(values.max())
        if high >= FULL_SCALE or low <= -FULL_SCALE:
            self._at_full_scale += int(np.count_nonzero(np.abs(values) >= np.float32(FULL_SCALE)))
        if high >= self._high:
            self._flat_high = _flat_top(values, high) + (self._flat_high if high == self._high else 0)
            self._high = high
        if low <= self._low:
            self._flat_low = _flat_top(values, low) + (self._flat_low if low == self._low else 0)
            self._low = low

    def _measure_blocks(self, values: Values) -> None:
        """Whole blocks."""
        if not len(values):
            return
        self._levels.append(_levels(values.reshape(-1, QUIET_BLOCK)))
        self._add_spectrum(values.reshape(-1, TRANSFORM))
        steps = np.diff(values.reshape(-1, BLOCK), axis=1, prepend=np.float32(0))
        # The step into a block is not known to it; without it no offset of the samples counts.
        steps[:, 0] = 0
        self._add_sketch(steps)

    def _measure_rest(self) -> None:
        rest = self._rest
        short = len(rest) % QUIET_BLOCK
        if len(rest) > short:
            self._levels.append(_levels(rest[: len(rest) - short].reshape(-1, QUIET_BLOCK)))
        if short:
            self._levels.append(_levels(rest[None, len(rest) - short :]))
        padded = np.zeros(-(-len(rest) // TRANSFORM) * TRANSFORM, dtype=np.float32)
        padded[: len(rest)] = rest
        self._add_spectrum(padded.reshape(-1, TRANSFORM))
        steps = np.zeros((1, BLOCK), dtype=np.float32)
        steps[0, 1 : len(rest)] = np.diff(rest)
        self._add_sketch(steps)

    def _add_sketch(self, steps: Values) -> None:
        """A count sketch (Charikar et al., 2002): every step goes with a random sign into one of SKETCH random sums.

        Products of sketches are on average those of the steps themselves.
        """
        order, signs = _dealing()
        sums = (steps[:, order] * signs).reshape(len(steps), SKETCH, -1).sum(axis=2)
        for row in sums:
            self._sketch += row * _signs(self._blocks)
            self._blocks += 1

    def _add_spectrum(self, blocks: Values) -> None:
        power = np.abs(np.fft.rfft(blocks * np.hanning(TRANSFORM).astype(np.float32), axis=1)) ** 2
        self._power += power[:, 1:].reshape(len(blocks), SPECTRUM, -1).mean(axis=2).sum(axis=0)
        self._transforms += len(blocks)


def _levels(blocks: Values) -> Values:
    """Root mean square of each row around its mean."""
    levels: Values = blocks.std(axis=1)
    return levels


def _flat_top(values: Values, extreme: float) -> int:
    """Samples in runs of `FLAT_TOP` or more at that value."""
    there = np.flatnonzero(values == np.float32(extreme))
    if len(there) < FLAT_TOP:
        return 0
    edges = np.flatnonzero(np.diff(there) != 1) + 1
    runs = np.diff(np.concatenate(([0], edges, [len(there)])))
    return int(runs[runs >= FLAT_TOP].sum())


@lru_cache(maxsize=1)
def _dealing() -> tuple[npt.NDArray[np.int64], Values]:
    """Order in which the steps of a block are dealt out to the sums, and their signs, the same in every run."""
    rng = np.random.default_rng(SEED)
    return rng.permutation(BLOCK), rng.choice(np.array([-1, 1], dtype=np.float32), BLOCK)


@lru_cache(maxsize=4096)
def _signs(block: int) -> Values:
    """Signs of a block's sums, (SKETCH,)."""
    return np.random.default_rng([SEED, block]).choice(np.array([-1, 1], dtype=np.float32), SKETCH)
