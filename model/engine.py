"""Runs a bundle over windows. A window gives the same bits whatever it is computed beside."""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.batching import LONGEST_SAMPLES, Bucket, batch_shapes, bucket_for, cover
from model.bundle import load_weights, read_card
from model.denormals import flushed_denormals
from model.device import Choice, choose, sensible_threads
from model.host_memory import keep_freed_memory
from model.network import Recogniser

Windows = Sequence[npt.NDArray[np.int16] | npt.NDArray[np.float32]]

INT16_SCALE = np.float32(1.0 / 32768.0)
LARGEST_BATCH_CPU = 32
LARGEST_BATCH_CUDA = 128
# Sums of another order differ in the last bit, and only in some of the numbers; of so many, surely in one.
PROBED_NUMBERS = 512
CPU_BATCH_MACS = 12e9  # beyond this a larger batch is no faster on a CPU, only later


@dataclass(frozen=True, slots=True, eq=False)
class Inference:
    """What the network says of n windows, in their order."""

    probabilities: npt.NDArray[np.float32]  #: (n, labels), calibrated, each row sums to 1
    unknown_scores: npt.NDArray[np.float32]  #: (n,), larger is stranger; compare with `card.unknown.threshold`
    embeddings: npt.NDArray[np.float32]  #: (n, embedding)


@dataclass(frozen=True, slots=True)
class CheckedShapes:
    """Batch sizes of a bucket that were seen to give the same bits, and those that were not."""

    used: tuple[int, ...]
    refused: tuple[int, ...]
    fingerprint: str  #: of the check's results: engines with the same one compute alike


class Engine:
    """A bundle, ready to run on one device.

    *Batch-invariant*: on one device, with one number of threads and one version of the libraries, a window gives the
    same bits alone, in any batch, at any place, beside any others. Every window is computed at the padded length that
    its own length asks for (`model.batching`) and in one of a few batch sizes, filled up. On the first use of a padded
    length the engine computes random windows at every place of every batch size, the more of them the fewer numbers an
    embedding has, and from then on uses only sizes that agree bit for bit.

    Windows shorter than the front end's transform are zero-padded to its length. Of windows longer than
    `LONGEST_SAMPLES` only the first so many samples are looked at.

    Parameters
    ----------
    bundle
        Folder of the bundle.
    device
        "auto", "cpu", "cuda" or "cuda:N".
    precision
        "auto", "float32" or "bfloat16"; see `model.device.choose`.
    threads
        Threads that one batch is spread over on a CPU; None is `model.device.sensible_threads`.

    Raises
    ------
    BundleError
        If the bundle cannot be used.
    ValueError
        If device or precision are not to be had.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
    ) -> None:
        self.card = read_card(bundle)
        self._bundle = Path(bundle)
        self._choice = choose(device, precision)
        self._threads = threads or sensible_threads()
        if self._choice.device.type == "cpu":
            keep_freed_memory()
        else:
            # The fastest algorithm may differ from run to run, and TF32 is not the float32 that was asked for.
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.allow_tf32 = False
        card = self.card
        self._model = Recogniser(card.front_end, card.network, card.head, len(card.labels), card.unknown.kind)
        self._model.load_state_dict(
            {name: torch.from_numpy(array) for name, array in load_weights(bundle, card).items()}
        )
        self._model.eval().to(self._choice.device)
        self._shapes: dict[Bucket, CheckedShapes] = {}
        self._lock = threading.Lock()

    def infer(self, windows: Windows) -> Inference:
        """Probabilities, unknown scores and embeddings of `windows`. May be called from any thread, one at a time runs.

        Parameters
        ----------
        windows
            Each one-dimensional, of any length from 1: int16 counts, or float32 with full scale at ±1. They are only
            read. With the front end's level "rms" and without rows of context their scale does not matter.

        Raises
        ------
        ValueError
            If a window is empty, not one-dimensional, of another type, or not finite; the message names it.
        """
        prepared = [self._prepare(index, window) for index, window in enumerate(windows)]
        labels, size = len(self.card.labels), self.card.network.embedding
        inference = Inference(
            np.empty((len(windows), labels), dtype=np.float32),
            np.empty(len(windows), dtype=np.float32),
            np.empty((len(windows), size), dtype=np.float32),
        )
        by_bucket: dict[Bucket, list[int]] = {}
        for index, window in enumerate(prepared):
            by_bucket.setdefault(self._bucket(len(window)), []).append(index)
        with self._lock:
            for bucket, indices in by_bucket.items():
                done = 0
                for shape in cover(len(indices), self._checked(bucket).used):
                    rows = indices[done : done + shape]
                    done += shape
                    probabilities, scores, embeddings = self._run(bucket, shape, [prepared[row] for row in rows])
                    inference.probabilities[rows] = probabilities[: len(rows)]
                    inference.unknown_scores[rows] = scores[: len(rows)]
                    inference.embeddings[rows] = embeddings[: len(rows)]
        return inference

    @property
    def choice(self) -> Choice:
        """Device and precision that it computes in, and why."""
        return self._choice

    def warm_up(self, like: Engine | None = None) -> None:
        """Check the batch sizes for the model's own window length now, instead of when the first window comes.

        With `like`, an engine whose place this one is to take, for all lengths that one has met as well.
        """
        met = [] if like is None else [bucket.samples for bucket in list(like._shapes)]
        with self._lock:
            for samples in (self.card.window_samples, *met):
                self._checked(self._bucket(samples))

    def describe(self) -> str:
        """Model, device, precision, threads, and the batch sizes in use with the reason, a line each."""
        card, choice = self.card, self._choice
        lines = [
            f"model      {card.name} {card.version} from {self._bundle}",
            f"device     {choice.device} ({choice.reason})",
            f"precision  {choice.precision}",
        ]
        if choice.device.type == "cpu":
            lines.append(f"threads    {self._threads}")
        if not self._shapes:
            lines.append("batches    not checked yet; the first window of each length, or warm_up(), does it")
        for bucket, shapes in sorted(self._shapes.items(), key=lambda item: item[0].samples):
            length = f"{bucket.samples} samples{'' if bucket.exact else ' (padded)'}"
            used = ", ".join(map(str, shapes.used))
            line = f"batches    {length}: {used}, the same bits in each (check {shapes.fingerprint})"
            if shapes.refused:
                line += f"; other bits in {', '.join(map(str, shapes.refused))}, not used"
            lines.append(line)
        return "\n".join(lines)

    def _bucket(self, samples: int) -> Bucket:
        return bucket_for(samples, self.card.window_samples, self.card.front_end.min_samples)

    def _prepare(self, index: int, window: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if window.ndim != 1 or not len(window):
            raise ValueError(f"window {index} has shape {window.shape}; a window is one-dimensional and not empty")
        window = window[:LONGEST_SAMPLES]
        if window.dtype == np.int16:
            return window
        if window.dtype != np.float32:
            raise ValueError(f"window {index} holds {window.dtype}; int16 or float32 is wanted")
        # A finite sum in float64 proves every sample finite.
        with np.errstate(invalid="ignore"):
            finite = math.isfinite(window.sum(dtype=np.float64))
        if not finite:
            raise ValueError(f"window {index} holds samples that are not finite")
        front_end = self.card.front_end
        return _within_float_range(window, scale_matters=front_end.level == "none" or front_end.context != "none")

    def _run(
        self, bucket: Bucket, shape: int, windows: Sequence[npt.NDArray[Any]]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        batch = np.empty((shape, bucket.samples), dtype=np.float32)
        batch[len(windows) :] = 0.0  # places without a window hold silence of full length
        lengths = np.full(shape, bucket.samples, dtype=np.int64)
        for place, window in enumerate(windows):
            scale = INT16_SCALE if window.dtype == np.int16 else np.float32(1.0)
            np.multiply(window, scale, out=batch[place, : len(window)], dtype=np.float32)
            batch[place, len(window) :] = 0.0
            lengths[place] = max(len(window), self.card.front_end.min_samples)
        device = self._choice.device
        # The number of threads belongs to the process, decides how sums are split, and another engine may have
        # changed it.
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        with flushed_denormals(), torch.inference_mode():
            samples = torch.from_numpy(batch).to(device)
            real = None if bucket.exact else torch.from_numpy(lengths).to(device)
            logits, embeddings = self._forward(samples, real)
            probabilities = torch.softmax(logits / self.card.temperature, dim=1)
            scores = self._model.unknown(embeddings, logits)
            return _numpy(probabilities), _numpy(scores), _numpy(embeddings)

    def _forward(self, samples: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        features, mask = self._model.front_end(samples, lengths)
        with self._autocast():
            embeddings = self._model.network(features, mask)
        return self._model.logits(embeddings.float(), features), embeddings.float()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._choice.precision == "float32":
            return nullcontext()
        return torch.autocast(self._choice.device.type, dtype=torch.bfloat16)

    def _checked(self, bucket: Bucket) -> CheckedShapes:
        if bucket not in self._shapes:
            candidates = batch_shapes(bucket, self._largest_batch(bucket))
            results = {shape: self._try_shape(bucket, shape) for shape in candidates}
            self._shapes[bucket] = agreeing_shapes(results)
        return self._shapes[bucket]

    def _largest_batch(self, bucket: Bucket) -> int:
        if self._choice.device.type != "cpu":
            return LARGEST_BATCH_CUDA
        weights = sum(math.prod(shape) for name, shape in self.card.shapes.items() if name.endswith(".weight"))
        macs = weights * self.card.front_end.frames(bucket.samples)
        return max(1, min(LARGEST_BATCH_CPU, int(CPU_BATCH_MACS / macs)))

    def _try_shape(self, bucket: Bucket, shape: int) -> bytes | None:
        """The bits that random windows get in this batch size; None if they depend on the place."""
        one, other, *more = _probe_windows(bucket, 2 + math.ceil(PROBED_NUMBERS / self.card.network.embedding))
        alternating = [(one, other)[place % 2] for place in range(shape)]
        swapped = [(other, one)[place % 2] for place in range(shape)]
        seen: list[set[bytes]] = [set(), set()]
        for order, windows in enumerate((alternating, swapped)):
            for place, bits in enumerate(self._bits(bucket, shape, windows)):
                seen[(place + order) % 2].add(bits)
        if any(len(bits) != 1 for bits in seen):
            return None
        found = [bits.pop() for bits in seen]
        for start in range(0, len(more), shape):
            found += self._bits(bucket, shape, more[start : start + shape])
        return b"".join(found)

    def _bits(self, bucket: Bucket, shape: int, windows: Sequence[npt.NDArray[Any]]) -> list[bytes]:
        results = self._run(bucket, shape, windows)
        return [b"".join(result[place].tobytes() for result in results) for place in range(len(windows))]


def agreeing_shapes(results: dict[int, bytes | None]) -> CheckedShapes:
    """The largest set of batch sizes that gave the same bits; of equally large ones, that with the largest size.

    `results` maps each batch size to the bits it gave, None where they depended on the place in the batch; size 1 has
    one place only, so at least that one has bits.
    """
    groups: dict[bytes, list[int]] = {}
    for shape, bits in results.items():
        if bits is not None:
            groups.setdefault(bits, []).append(shape)
    bits, used = max(groups.items(), key=lambda item: (len(item[1]), max(item[1])))
    refused = tuple(sorted(set(results) - set(used)))
    return CheckedShapes(tuple(sorted(used)), refused, hashlib.sha256(bits).hexdigest()[:8])


def _probe_windows(bucket: Bucket, count: int) -> list[npt.NDArray[np.float32]]:
    """Unlike windows, of unlike lengths where the bucket has such: noise, and bursts that die away, in turn."""
    rng = np.random.default_rng(bucket.samples)
    decay = np.exp(-np.arange(bucket.samples, dtype=np.float32) / np.float32(bucket.samples / 10))
    windows = []
    for number in range(count):
        noise = rng.standard_normal(bucket.samples, dtype=np.float32)
        if number % 2 == 0:
            windows.append(noise * np.float32(0.1))
        else:
            windows.append((noise * decay)[: bucket.samples if bucket.exact else 3 * bucket.samples // 4])
    return windows


def _within_float_range(window: npt.NDArray[np.float32], *, scale_matters: bool) -> npt.NDArray[np.float32]:
    """The window such that its squares stay within float32.

    Times a power of two where need be; where the scale is part of what the network sees, clipped at ±2^20 instead.
    """
    peak = float(np.max(np.abs(window)))
    if peak == 0.0 or 2.0**-20 <= peak <= 2.0**20:
        return window
    if scale_matters:
        return np.clip(window, -(2.0**20), 2.0**20)
    return np.ldexp(window, -math.frexp(peak)[1])


def _numpy(tensor: Tensor) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = tensor.float().cpu().numpy()
    return array
