"""Into which fixed shapes windows of any length and number are put. Pure arithmetic.

A window's bucket depends on its own length alone, so that what it is computed beside cannot change how it is computed.
"""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_SAMPLES = 1 << 20  # of a window, only so many samples from its start are looked at
MAX_BATCH_SAMPLES = 1 << 21  # bounds the memory of one batch


@dataclass(frozen=True, slots=True)
class Bucket:
    """All windows computed at one padded length."""

    samples: int  #: padded length
    exact: bool  #: every window is just so long, so nothing is padded nor masked


def bucket_for(samples: int, window_samples: int, min_samples: int) -> Bucket:
    """Bucket of a window of `samples` samples.

    The model's own `window_samples` has an exact bucket; other lengths go to the next of `min_samples` times 1, 1.5, 2,
    3, 4, 6, …, so that at most half as much again is computed as is needed.
    """
    samples = min(samples, LONGEST_SAMPLES)
    if samples == window_samples and samples >= min_samples:
        return Bucket(samples, exact=True)
    rung = min_samples
    while rung < samples:
        half = rung + rung // 2
        rung = half if samples <= half else 2 * rung
    return Bucket(rung, exact=False)


def batch_shapes(bucket: Bucket, largest: int) -> tuple[int, ...]:
    """Batch sizes to try in this bucket: 1, 2, 4, … up to `largest` and to what memory allows."""
    most = max(1, min(largest, MAX_BATCH_SAMPLES // bucket.samples))
    return tuple(1 << power for power in range(most.bit_length()))


def cover(count: int, shapes: tuple[int, ...]) -> list[int]:
    """Batch sizes, each one of `shapes`, that together hold `count` windows.

    The largest that fits comes first; a rest is filled up where at most a quarter of the places stays empty, or where
    there is no smaller shape.
    """
    ascending = sorted(shapes)
    sizes: list[int] = []
    while count > 0:
        above = next((shape for shape in ascending if shape >= count), None)
        below = [shape for shape in ascending if shape <= count]
        if above is not None and (not below or 4 * count >= 3 * above):
            sizes.append(above)
        else:
            sizes.append(below[-1])
        count -= sizes[-1]
    return sizes
