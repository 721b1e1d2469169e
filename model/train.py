"""Trains a recogniser on labelled windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model.architecture import EcapaDims, FrontEndSpec, HeadSpec
from model.augment import AugmentSpec, augment
from model.denormals import flushed_denormals
from model.losses import classification_loss
from model.metrics import Scores, confusion_matrix, scores
from model.network import Recogniser
from model.sampling import balanced_batches

INT16_SCALE = 1.0 / 32768.0
FRONT_END_WINDOWS = 8  # at once: the spectrograms of more cost more in fresh memory than the larger batch saves
JUDGED_WINDOWS = 16


@dataclass(frozen=True, slots=True, eq=False)
class LabelledWindows:
    """Windows of equal length, the label of each, and which group (sensor position, recording) it is from."""

    windows: npt.NDArray[np.int16]  #: (n, samples)
    labels: npt.NDArray[np.int64]  #: (n,)
    groups: npt.NDArray[np.str_]  #: (n,)

    def __post_init__(self) -> None:
        if not len(self.windows) == len(self.labels) == len(self.groups):
            raise ValueError(f"{len(self.windows)} windows, {len(self.labels)} labels, {len(self.groups)} groups")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSpec:
    """How to train."""

    labels: int
    window_samples: int  #: training windows may be longer: room for the time shift
    front_end: FrontEndSpec = field(default_factory=lambda: FrontEndSpec(level="rms"))
    network: EcapaDims = field(default_factory=EcapaDims)
    head: HeadSpec = field(default_factory=HeadSpec)
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    epochs: int = 10
    batch: int = 64
    learning_rate: float = 1e-3  #: at its peak, after a tenth of the way; falls to a hundredth along a cosine
    weight_decay: float = 1e-4
    gradient_norm: float = 5.0  #: longer gradients are shortened to this
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands after an epoch."""

    epoch: int  #: from 1
    epochs: int
    loss: float  #: mean over the epoch
    held_out: Scores


class TrainingDivergedError(RuntimeError):
    """The loss is no longer a finite number."""


@flushed_denormals()
def train(
    data: LabelledWindows,
    held_out: LabelledWindows,
    spec: TrainSpec,
    on_epoch: Callable[[Progress], None] = lambda progress: None,
) -> Recogniser:
    """A recogniser trained on `data`, in evaluation mode.

    The same data, spec, machine and number of threads give the same weights.

    Raises
    ------
    ValueError
        If a group is in both parts, or the data hold less than one batch.
    TrainingDivergedError
        If a loss is not finite; the message names epoch, batch and the windows in it.
    """
    if shared := sorted(set(data.groups.tolist()) & set(held_out.groups.tolist())):
        raise ValueError(f"groups in training and held-out windows alike, the first is {shared[0]}; split by group")
    if len(data.windows) < spec.batch:
        raise ValueError(f"{len(data.windows)} windows do not fill a batch of {spec.batch}; lower the batch")
    torch.manual_seed(spec.seed)
    generator = torch.Generator().manual_seed(spec.seed)
    model = Recogniser(spec.front_end, spec.network, spec.head, spec.labels)
    steps = spec.epochs * sum(1 for _ in balanced_batches(data.labels, spec.batch, spec.seed, 0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=spec.learning_rate, total_steps=steps, pct_start=0.1, final_div_factor=4.0
    )
    for epoch in range(1, spec.epochs + 1):
        model.train()
        losses: list[float] = []
        for number, indices in enumerate(balanced_batches(data.labels, spec.batch, spec.seed, epoch - 1)):
            with torch.no_grad():
                windows = augment(_floats(data.windows[indices]), spec.window_samples, spec.augment, generator)
                features = torch.cat([model.front_end(part)[0] for part in torch.split(windows, FRONT_END_WINDOWS)])
            embeddings = model.network(features)
            loss = classification_loss(model.head, embeddings, torch.from_numpy(data.labels[indices]))
            if not torch.isfinite(loss):
                raise TrainingDivergedError(
                    f"loss is {loss.item()} in epoch {epoch}, batch {number}, windows {indices.tolist()}; "
                    "look at these windows, or lower the learning rate"
                )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), spec.gradient_norm)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        recognised = judge(model, held_out, spec)[0].argmax(axis=1)
        matrix = confusion_matrix(held_out.labels, recognised, spec.labels)
        on_epoch(Progress(epoch, spec.epochs, float(np.mean(losses)), scores(matrix)))
    return model.eval()


def judge(
    model: Recogniser, data: LabelledWindows, spec: TrainSpec
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Logits (n, labels) and embeddings (n, embedding) of `data`, not augmented, each window cut to its middle."""
    model.eval()
    before = (data.windows.shape[1] - spec.window_samples) // 2
    parts: list[tuple[Tensor, Tensor]] = []
    with torch.inference_mode():
        for start in range(0, len(data.windows), JUDGED_WINDOWS):
            part = data.windows[start : start + JUDGED_WINDOWS, before : before + spec.window_samples]
            parts.append(model(_floats(part)))
    logits, embeddings = (torch.cat(tensors).numpy() for tensors in zip(*parts, strict=True))
    return logits, embeddings


def _floats(windows: npt.NDArray[np.int16]) -> Tensor:
    return torch.from_numpy(windows.astype(np.float32)) * INT16_SCALE
