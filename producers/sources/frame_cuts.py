"""How a continuous signal is cut into frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import count, cycle, pairwise


@dataclass(frozen=True)
class FrameCuts:
    """Frames of equal duration, or of given sizes.

    Raises
    ------
    ValueError
        If the duration or a size is not positive.
    """

    frame_s: float = 0.05
    frame_sizes: Sequence[int] | None = None  #: in samples; begins anew when used up

    def __post_init__(self) -> None:
        if self.frame_sizes is None:
            if not 0 < self.frame_s < float("inf"):
                raise ValueError(f"frames of {self.frame_s} s; a positive duration is needed")
        elif not self.frame_sizes or min(self.frame_sizes) < 1:
            raise ValueError(f"frame sizes {list(self.frame_sizes)[:8]}; positive numbers of samples are needed")

    def sizes(self, rate_hz: Fraction) -> Iterator[int]:
        """Samples of one frame after another, without end; at `rate_hz` a frame holds at least one."""
        if self.frame_sizes is not None:
            return cycle(self.frame_sizes)
        # Each cut at its absolute place: at 44.1 kHz frames of 1 ms hold 44 samples, and every tenth 45.
        samples = max(Fraction(1), Fraction(self.frame_s).limit_denominator(1_000_000) * rate_hz)
        return (after - before for before, after in pairwise(int(k * samples) for k in count()))

    def frames(self, total: int, rate_hz: Fraction) -> int:
        """How many frames `total` samples make; cheap where all are of equal duration."""
        if self.frame_sizes is None:
            samples = max(Fraction(1), Fraction(self.frame_s).limit_denominator(1_000_000) * rate_hz)
            # The k-th cut is at floor(k * samples), which reaches `total` exactly when k * samples does.
            return -(-total // samples)
        rounds, left = divmod(total, sum(self.frame_sizes))
        frames = rounds * len(self.frame_sizes)
        for size in self.frame_sizes:
            if left <= 0:
                break
            frames, left = frames + 1, left - size
        return frames
