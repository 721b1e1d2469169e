"""What a recogniser says of labelled windows as they are: while it trains, and when its bundle is made."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.data.dataset import WindowSet
from model.device import Choice, choose
from model.metrics import confusion_matrix, scores
from model.network import Recogniser
from model.training.feed import Feed
from model.training.history import Validation

FRONT_END_WINDOWS = 8  # at once on a CPU: the spectrograms of more cost more in fresh memory than the batch saves
JUDGED_WINDOWS = {"cpu": 16, "cuda": 256}

Indices = npt.NDArray[np.int64]


def judge(
    model: Recogniser, data: WindowSet, indices: Indices | None = None, *, precision: str = "float32"
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Logits (n, labels) and embeddings (n, embedding) of windows as they are, on the model's device.

    `indices` (n,) chooses windows; None: all of `data`. The model must be in evaluation mode.
    """
    device = next(model.parameters()).device
    feed = Feed(data, model.front_end.spec.min_samples, device)
    chosen = np.arange(len(data)) if indices is None else indices
    logits, embeddings = judge_fed(model, feed, chosen, choose(str(device), precision))
    return logits.numpy(), embeddings.numpy()


def validation_scores(logits: Tensor, labels: npt.NDArray[np.int64]) -> Validation:
    """Scores of logits (n, labels) against the true labels (n,)."""
    found = scores(confusion_matrix(labels, logits.argmax(dim=1).numpy(), logits.shape[1]))
    return Validation(
        accuracy=found.accuracy,
        macro_f1=found.macro_f1,
        weakest_recall=float(found.recall[np.unique(labels)].min()),
        loss=float(functional.cross_entropy(logits, torch.from_numpy(labels))),
    )


def judge_fed(model: Recogniser, feed: Feed, indices: Indices, choice: Choice) -> tuple[Tensor, Tensor]:
    """What `judge` gives, on the CPU, of windows that come from a feed made before."""
    at_once = JUDGED_WINDOWS[choice.device.type]
    labels, embedding = model.head.weight.shape
    parts = [(torch.empty(0, labels), torch.empty(0, embedding))]
    with torch.inference_mode():
        for start in range(0, len(indices), at_once):
            windows, lengths = feed(indices[start : start + at_once])
            features, mask = features_in_parts(model.front_end, windows, lengths)
            with autocast(choice):
                embeddings = model.network(features, mask)
            embeddings = embeddings.float()
            parts.append((model.logits(embeddings, features).cpu(), embeddings.cpu()))
    logits, embeddings = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return logits, embeddings


def features_in_parts(front_end: nn.Module, windows: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Features and mask of a batch, as `FrontEnd.forward` gives them."""
    at_once = FRONT_END_WINDOWS if windows.device.type == "cpu" else len(windows)
    parts = [
        front_end(windows[start : start + at_once], None if lengths is None else lengths[start : start + at_once])
        for start in range(0, len(windows), at_once)
    ]
    features = torch.cat([features for features, _ in parts])
    return features, None if lengths is None else torch.cat([mask for _, mask in parts])


def autocast(choice: Choice) -> torch.autocast:
    """The precision of the network's own computations; what goes in and comes out is float32."""
    return torch.autocast(choice.device.type, torch.bfloat16, enabled=choice.precision == "bfloat16")
