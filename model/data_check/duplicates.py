"""Which clips hold the same sound: the same samples, a stretch of the same samples, or nearly the same waveform.

What merely sounds alike, as a machine does from one minute to the next, is not the same: random samples agree in none
of the three.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.int16] | npt.NDArray[np.float32]
Hashes = npt.NDArray[np.uint64]

STRETCH = 32  #: samples that one hash is made of
DISTINCT = 12  #: different values that they must hold at least; silence and flat tops are alike everywhere
FACTOR = np.uint64(0x9E3779B97F4A7C15)
KEPT = 1 << 22  #: hashes in memory; when there are more, the larger half of all values goes
FIRST_LIMIT = np.uint64(1 << 60)  #: one in 16 is kept at first
SHARED_HASHES = 4
SHARED_SHARE = 0.05  #: of the shorter clip's hashes
NEARLY = 0.98  #: correlation of two sketches
MOST_SKETCHES = 100_000  #: more are not compared, pair by pair it would take minutes
ROWS = 2048


@dataclass(frozen=True, slots=True)
class Alike:
    """Two clips, by number, and how much of the one is in the other, 0 to 1."""

    first: int
    second: int
    share: float


class Stretches:
    """Finds clips that share a stretch of samples, wherever in them it lies, in bounded memory.

    Of each clip it keeps hashes of `STRETCH` samples whose value is below a limit; the same samples have the same
    hash, so what two clips share is kept of both or of neither. Where there are too many hashes the limit is halved.
    """

    def __init__(self) -> None:
        self._limit = FIRST_LIMIT
        self._hashes: list[Hashes] = []
        self._clips: list[npt.NDArray[np.int32]] = []
        self._count = 0

    def add(self, clip: int, hashes: Hashes) -> None:
        """`stretch_hashes` of samples of clip number `clip`; a clip may come in several blocks."""
        kept = hashes[hashes < self._limit]
        self._hashes.append(kept)
        self._clips.append(np.full(len(kept), clip, dtype=np.int32))
        self._count += len(kept)
        if self._count > KEPT:
            self._thin()

    def alike(self) -> list[Alike]:
        """Pairs of clips that share more than chance would have it. Of many that share one stretch, neighbours."""
        if not self._hashes:
            return []
        hashes, clips = np.concatenate(self._hashes), np.concatenate(self._clips)
        order = np.lexsort((clips, hashes))
        hashes, clips = hashes[order], clips[order]
        first_of_its_kind = np.ones(len(hashes), dtype=np.bool_)
        first_of_its_kind[1:] = (hashes[1:] != hashes[:-1]) | (clips[1:] != clips[:-1])
        hashes, clips = hashes[first_of_its_kind], clips[first_of_its_kind]
        held = Counter(dict(zip(*(values.tolist() for values in np.unique(clips, return_counts=True)), strict=True)))
        same = np.flatnonzero(hashes[1:] == hashes[:-1])
        shared = Counter(zip(clips[same].tolist(), clips[same + 1].tolist(), strict=True))
        found = []
        for (first, second), count in sorted(shared.items()):
            share = count / min(held[first], held[second])
            if count >= SHARED_HASHES and share >= SHARED_SHARE:
                found.append(Alike(first, second, min(share, 1.0)))
        return found

    def _thin(self) -> None:
        hashes, clips = np.concatenate(self._hashes), np.concatenate(self._clips)
        while len(hashes) > KEPT // 2:
            self._limit //= np.uint64(2)
            below = hashes < self._limit
            hashes, clips = hashes[below], clips[below]
        self._hashes, self._clips, self._count = [hashes], [clips], len(hashes)


def stretch_hashes(samples: Samples) -> Hashes:
    """Hashes of those stretches of `STRETCH` samples (n,) that are below `FIRST_LIMIT`, each once, in order of value.

    Stretches with fewer than `DISTINCT` values are left out.
    """
    if len(samples) < STRETCH:
        return np.empty(0, dtype=np.uint64)
    bits: Hashes = samples.view(np.uint16 if samples.dtype == np.int16 else np.uint32).astype(np.uint64)
    hashes, factor, length = bits + np.uint64(1), FACTOR, 1
    with np.errstate(over="ignore"):
        # A polynomial in FACTOR over 2, 4, 8, … values, then stirred, since its low bits are those of the samples.
        while length < STRETCH:
            hashes = hashes[:-length] * factor + hashes[length:]
            factor = factor * factor
            length *= 2
        hashes ^= hashes >> np.uint64(31)
        hashes *= FACTOR
        hashes ^= hashes >> np.uint64(29)
    chosen = np.flatnonzero(hashes < FIRST_LIMIT)
    pieces = np.sort(bits[chosen[:, None] + np.arange(STRETCH)], axis=1)
    distinct = 1 + np.count_nonzero(np.diff(pieces, axis=1), axis=1)
    return np.unique(hashes[chosen[distinct >= DISTINCT]])


def nearly_alike(sketches: npt.NDArray[np.float32]) -> list[Alike]:
    """Pairs whose sketches (n, size), of unit length or zero, correlate by `NEARLY` or more: copies from the first
    sample on that were scaled, rounded or coded anew. No pairs of more than `MOST_SKETCHES`.
    """
    if len(sketches) > MOST_SKETCHES:
        return []
    found = []
    for start in range(0, len(sketches), ROWS):
        alike = sketches[start : start + ROWS] @ sketches[start:].T
        for row, column in np.argwhere(np.abs(alike) >= NEARLY).tolist():
            if column > row:
                found.append(Alike(start + row, start + column, float(abs(alike[row, column]))))
    return found


def equal(digests: Sequence[bytes]) -> list[Alike]:
    """Neighbours among those with the same digest."""
    last: dict[bytes, int] = {}
    found = []
    for number, digest in enumerate(digests):
        if digest in last:
            found.append(Alike(last[digest], number, 1.0))
        last[digest] = number
    return found


def families(count: int, pairs: Sequence[Alike]) -> list[list[int]]:
    """Sets of two or more that the pairs connect, each sorted, the largest first."""
    parent = list(range(count))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for pair in pairs:
        parent[root(pair.second)] = root(pair.first)
    members: dict[int, list[Any]] = {}
    for number in sorted({number for pair in pairs for number in (pair.first, pair.second)}):
        members.setdefault(root(number), []).append(number)
    return sorted(members.values(), key=lambda family: (-len(family), family))
