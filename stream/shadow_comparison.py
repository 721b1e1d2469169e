"""What a shadow model says beside what the live one said of the same windows. Pure, and JSON for Redis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from stream.json_decoding import decode_json
from stream.predictions import Prediction


class Comparison(msgspec.Struct):
    """Sums over the windows that both models have judged."""

    live: str  #: version of the live model
    shadow: str  #: version of the shadow
    windows: int = 0
    pairs: dict[str, dict[str, int]] = {}  #: most probable class by the live model → by the shadow → windows
    difference: float = 0.0  #: summed over windows: mean of |p live - p shadow| over the labels that both have
    live_unknown: int = 0
    shadow_unknown: int = 0

    def add(self, live: Sequence[Prediction], shadow: Sequence[Prediction]) -> None:
        """Count windows that both have judged; `live[i]` and `shadow[i]` are of the same window."""
        for ours, theirs in zip(live, shadow, strict=True):
            self.windows += 1
            row = self.pairs.setdefault(ours.label, {})
            row[theirs.label] = row.get(theirs.label, 0) + 1
            both = ours.probabilities.keys() & theirs.probabilities.keys()
            if both:
                apart = sum(abs(ours.probabilities[name] - theirs.probabilities[name]) for name in both)
                self.difference += apart / len(both)
            self.live_unknown += ours.unknown
            self.shadow_unknown += theirs.unknown

    @property
    def agreed(self) -> int:
        """Windows to which both give the same class."""
        return sum(row.get(name, 0) for name, row in self.pairs.items())

    @property
    def agreement(self) -> float:
        """Share of the windows to which both give the same class."""
        return self.agreed / self.windows if self.windows else 0.0

    @property
    def mean_difference(self) -> float:
        """Mean absolute difference of the probabilities, over windows and the labels that both have."""
        return self.difference / self.windows if self.windows else 0.0


def summed(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """One comparison for each pair of models, over all workers."""
    sums: dict[tuple[str, str], Comparison] = {}
    for one in comparisons:
        total = sums.setdefault((one.live, one.shadow), Comparison(one.live, one.shadow))
        total.windows += one.windows
        total.difference += one.difference
        total.live_unknown += one.live_unknown
        total.shadow_unknown += one.shadow_unknown
        for label, row in one.pairs.items():
            mine = total.pairs.setdefault(label, {})
            for other, count in row.items():
                mine[other] = mine.get(other, 0) + count
    return list(sums.values())


_encoder = msgspec.json.Encoder(order="sorted")
_decoder = msgspec.json.Decoder(Comparison)


def encode_comparison(comparison: Comparison) -> bytes:
    """JSON, UTF-8."""
    return _encoder.encode(comparison)


def decode_comparison(text: bytes) -> Comparison:
    """The comparison in `text`.

    Raises
    ------
    msgspec.DecodeError
        If it is none.
    """
    return decode_json(_decoder, text)
