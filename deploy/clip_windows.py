"""The windows of one recording's clips, cut by the stream's own windowing core.

Windows of a clip lie on the stream's grid, counted from the clip's first sample. What the grid leaves at the clip's end
makes one more window, which ends with the clip, if it is more than half a hop; a clip shorter than a window makes one
shorter window. A hit makes one window, whatever the grid.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from deploy.clip_survey import DatasetError, Piece, Survey, pieces_of
from model.data.manifest import Clip
from stream.records import BadRecord, Frame, Samples, samples_to_ns
from stream.resample import Resampler, resampler
from stream.windows import SensorWindows, WindowSpec

ClipWindow = tuple[Clip, int, Samples]  #: clip, channel, samples of one window


class ClipWindows:
    """One channel of one clip: windows on the grid, and at its end the one that the grid leaves out.

    Give it the clip's samples in order with `push`, then call `finish`.
    """

    def __init__(self, clip: Clip, spec: WindowSpec, rate_hz: Fraction) -> None:
        self._clip = clip
        self._spec = spec
        self._rate_hz = rate_hz
        self._windows = SensorWindows("clip", spec)
        self._resampler: Resampler | None = None
        self._keep = spec.length
        if spec.rate_hz is not None and spec.rate_hz != rate_hz:
            try:
                self._resampler = resampler(rate_hz, spec.rate_hz)
            except BadRecord as error:
                raise DatasetError(f"{clip}: {error}") from error
            begin, end = self._resampler.source_range(1 << 40, spec.length)
            self._keep = end - begin + 2 * (self._resampler.down // self._resampler.up + 1)
        self._tail: deque[Samples] = deque()
        self._tail_samples = 0
        self._samples = 0
        self._cut = 0

    def push(self, samples: Samples) -> list[Samples]:
        """Take the next samples; the windows that are complete now.

        Raises
        ------
        DatasetError
            If no window can be made of them.
        """
        frame = Frame(
            sensor="clip",
            epoch_ns=0,
            sequence=0,
            first_sample=self._samples,
            time_ns=samples_to_ns(self._samples, self._rate_hz),
            rate_hz=self._rate_hz,
            samples=samples,
        )
        windows = self._pushed(frame)
        self._samples += len(samples)
        self._cut += len(windows)
        self._tail.append(samples)
        self._tail_samples += len(samples)
        while self._tail_samples - len(self._tail[0]) >= self._keep:
            self._tail_samples -= len(self._tail.popleft())
        return windows

    def finish(self) -> list[Samples]:
        """The window at the clip's end, if there is one more to make; it may be shorter than the others."""
        between = self._resampler
        total = self._samples if between is None else -(-self._samples * between.up // between.down)
        length, hop = self._spec.length, self._spec.hop
        if self._cut == 0:
            first = 0
        elif 2 * (total - (self._cut - 1) * hop - length) > hop:
            first = total - length
        else:
            return []
        count = min(length, total)
        tail = np.concatenate(list(self._tail))
        tail_begin = self._samples - len(tail)
        if between is None:
            return [tail[first - tail_begin :][:count]]
        begin, end = between.source_range(first, count)
        return [between.apply(tail[begin - tail_begin : end - tail_begin], begin, first, count)]

    def hit(self, frame: Frame) -> list[Samples]:
        """The window of a hit, which may be longer or shorter than others.

        Raises
        ------
        DatasetError
            If none can be made of it.
        """
        return self._pushed(frame)

    def _pushed(self, frame: Frame) -> list[Samples]:
        pushed = self._windows.push(frame)
        if pushed.rejected is not None:
            raise DatasetError(f"{self._clip}: {pushed.rejected}")
        return [window.samples for window in pushed.windows]


def windows_of(found: Survey, spec: WindowSpec) -> Iterator[ClipWindow]:
    """All windows of one recording, which is read once. One of a hit may be longer than others.

    Raises
    ------
    DatasetError, RecordingError
        If it cannot be read to the end of its last clip, or no window can be made of it.
    """
    cutters: dict[tuple[int, int], ClipWindows] = {}
    for piece in pieces_of(found):
        key = (id(piece.clip), piece.channel)
        if piece.hit is not None:
            if key not in cutters:
                cutters[key] = ClipWindows(piece.clip, spec, piece.hit.rate_hz)
            windows = cutters[key].hit(piece.hit)
        else:
            _refuse_not_finite(piece)
            if key not in cutters:
                cutters[key] = ClipWindows(piece.clip, spec, found.rate_hz)
            windows = cutters[key].push(piece.samples)
            if piece.ends:
                windows += cutters.pop(key).finish()
        for window in windows:
            yield piece.clip, piece.channel, window


def _refuse_not_finite(piece: Piece) -> None:
    if piece.samples.dtype != np.float32:
        return
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(piece.samples.sum(dtype=np.float64))
    if not finite:
        value = piece.samples[~np.isfinite(piece.samples)][0]
        raise DatasetError(
            f"{piece.clip}: a sample of channel {piece.channel} is {value}; leave that stretch out, or write the "
            "recording anew"
        )
