"""Trains a recogniser on labelled windows as a recipe says: steps, validation, checkpoints, and the way back to them.

Everything random is a function of the seed and the step, so that a training that was stopped goes on exactly.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model.data.dataset import WindowSet
from model.denormals import flushed_denormals
from model.device import Choice, choose
from model.network import Recogniser
from model.training.augment import augment_waveforms, mask_features, mix_pairs
from model.training.averaging import WeightAverage
from model.training.checkpoint import read_checkpoint, write_checkpoint
from model.training.feed import Feed
from model.training.history import Epoch, History, Validation
from model.training.interruption import Interruption, TrainingInterruptedError
from model.training.judge import autocast, features_in_parts, judge_fed, validation_scores
from model.training.losses import Mixed, classification_loss, head_outputs
from model.training.optimizer import build_optimizer, optimizer_tensors, restore_optimizer
from model.training.processes import Processes, local_device, training_processes
from model.training.recipe import Loss, Recipe
from model.training.recipe_choice import ecapa_dims, front_end_spec, head_spec
from model.training.run_folder import BEST, LAST, RunRecord, open_run, run_record
from model.training.sampling import epoch_batches, label_shares
from model.training.schedule import learning_rate
from model.training.statistics_fit import fit_statistics, unlike_groups

# A data set of a few batches is passed over many times; judging after each pass would take longer than the passes.
STEPS_BETWEEN_VALIDATIONS = 20
# A GPU runs ahead of the program that feeds it; looking at a loss waits for it. So losses are looked at in groups.
STEPS_BETWEEN_LOOKS = {"cpu": 1, "cuda": 16}
# Writing may take this share of the time at most: a large network on a fast GPU ends an epoch each second.
CHECKPOINT_TIME_SHARE = 0.05

Indices = npt.NDArray[np.int64]


class Parts(Protocol):
    """Which windows are for what: boolean masks (n,), or arrays of indices."""

    @property
    def train(self) -> npt.NDArray[Any]:
        """To learn from."""

    @property
    def validation(self) -> npt.NDArray[Any]:
        """To choose the best epoch by; never learnt from."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands between two validations."""

    step: int
    steps: int
    epoch: int  #: from 1
    epochs: int
    loss: float  #: mean since the last validation
    accuracy: float  #: of the training windows, augmented as they were, since then
    windows_per_s: float


class TrainingDivergedError(RuntimeError):
    """The loss or its gradient is no longer a finite number; the message names the batch."""


@flushed_denormals()
def train_run(
    data: WindowSet,
    parts: Parts,
    recipe: Recipe,
    out: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    on_step: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda note: None,
    initial: Mapping[str, npt.NDArray[Any]] | None = None,
    record: RunRecord | None = None,
) -> Recogniser:
    """A recogniser trained on `parts.train`, with the averaged weights that did best on `parts.validation`.

    On a CPU the same data, recipe and number of threads give the same weights, whether in one go or resumed. The end
    of an epoch is where the averaged weights are judged, the history gets a line and a checkpoint is due; but only
    after every 20 steps or more, so that tiny sets are passed over several times in between. Within `torchrun`, each
    process takes its part of every batch, and the first one writes.

    Parameters
    ----------
    data
        All windows; may be a memory map, is never copied whole.
    parts
        Which of them are for training and which for validation.
    recipe
        With nothing left to choose, see `model.training.recipe_choice`; `data` is cut as its `windows` say.
    out
        The run's folder; see `model.training.run_folder`.
    device
        "auto", "cpu", "cuda" or "cuda:N".
    resume
        Go on after the last checkpoint in `out`, if there is one. Otherwise `out` must be new.
    on_epoch, on_step, say
        Told how it goes, in the first process only; `say` gets notes in words.
    initial
        Weights to begin with, by the names of `Recogniser.state_dict()`; what is not there begins at random.
    record
        For `run.json`; by default what is known here.

    Raises
    ------
    ValueError
        If the recipe is not resolved, a part has no windows or a label none to learn from, the windows do not fill a
        batch, initial weights do not fit, or the device cannot do what is asked.
    model.training.run_folder.RunError
        If `out` holds a run and `resume` is not set, or one of other data or another recipe.
    model.training.checkpoint.CheckpointError
        If a checkpoint is damaged.
    TrainingDivergedError
        If loss or gradient is not finite; the message names the windows of the batch and their recordings.
    model.training.interruption.TrainingInterruptedError
        After SIGINT or SIGTERM, when everything is saved.
    """
    if missing := recipe.unresolved():
        raise ValueError(f"the recipe leaves {', '.join(missing)} open; model.recipe_choice chooses")
    choice = choose(local_device(device), recipe.training.precision)
    with _exactness(recipe.training.deterministic, choice.device), training_processes(choice.device) as processes:
        train, validation = _checked(data, parts)
        record = record or run_record(data, train, validation, recipe, device=choice.reason)
        if processes.first:
            open_run(out, recipe, record, resume=resume)
        processes.wait()
        talk = say if processes.first else lambda note: None
        talk(choice.reason)
        training = _Training(data, train, recipe, choice, processes, initial, talk)
        if resume and (out / LAST).exists():
            training.restore(out)
            talk(f"going on after step {training.step:,} of {training.steps:,}")
        if training.step < training.steps:
            history = History(out, training.reported_epoch) if processes.first else None
            if history and history.note:
                talk(history.note)
            with contextlib.closing(history) if history else contextlib.nullcontext():
                _run(training, validation, out, history, on_epoch, on_step)
        return training.best_model()


def _run(
    training: _Training,
    validation: Indices,
    out: Path,
    history: History | None,
    on_epoch: Callable[[Epoch], None],
    on_step: Callable[[Progress], None],
) -> None:
    saved, cost_s = time.monotonic(), 0.0
    with Interruption(alone=training.processes.world == 1) as interruption:
        while training.step < training.steps:
            looked = training.take_step(interruption.signal_number)
            if looked and history:
                on_step(training.progress())
            if number := training.stop_signal:
                if history:
                    training.save(out)
                raise TrainingInterruptedError(
                    number, f"stopped after step {training.step:,} of {training.steps:,}; --resume goes on from there"
                )
            if not training.epoch_is_due():
                continue
            epoch = training.end_epoch(validation)
            if history is None:
                continue
            history.add(epoch)
            on_epoch(epoch)
            now = time.monotonic()
            if training.step == training.steps or cost_s <= CHECKPOINT_TIME_SHARE * (now - saved):
                training.save(out)
                saved = time.monotonic()
                cost_s = saved - now


class _Objective(nn.Module):
    """Features to loss: all that has gradients, in one module that processes can share."""

    def __init__(self, model: Recogniser, spec: Loss, shares: Tensor, choice: Choice) -> None:
        super().__init__()
        self.network = model.network
        self.head = model.head
        self._spec, self._shares, self._choice = spec, shares, choice

    def forward(
        self, features: Tensor, mask: Tensor | None, labels: Tensor, others: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The mean loss, and how many windows were recognised."""
        with autocast(self._choice):
            embeddings = self.network(features, mask)
        outputs = head_outputs(self.head, embeddings.float())
        loss = classification_loss(outputs, labels, self._spec, mixed=Mixed(others, weights), shares=self._shares)
        return loss, (outputs.detach().argmax(dim=1) == labels).sum()


class _Training:
    """Weights, their average, the optimizer, and how far they have come."""

    def __init__(
        self,
        data: WindowSet,
        train: Indices,
        recipe: Recipe,
        choice: Choice,
        processes: Processes,
        initial: Mapping[str, npt.NDArray[Any]] | None,
        say: Callable[[str], None],
    ) -> None:
        self.processes = processes
        self._data, self._train, self._recipe, self._choice = data, train, recipe, choice
        self._labels = data.labels[train]
        device, count = choice.device, len(data.label_names)
        self._batch = _shared_batch(int(recipe.training.batch), processes, say)
        self._steps_per_epoch = len(self._batches(0))
        self._epochs = int(recipe.training.epochs)
        self.steps = self._epochs * self._steps_per_epoch
        model = new_recogniser(recipe, count)
        if initial:
            load_initial(model, initial)
        self._model = model.to(device)
        self._feed = Feed(data, self._model.front_end.spec.min_samples, device)
        if model.statistics is not None:
            groups = unlike_groups(data, train)
            say(fit_statistics(model, self._feed, train, self._labels, groups, recipe.augment, recipe.training.seed))
        self._average = WeightAverage(self._model, recipe.training.ema)
        if processes.world > 1 and device.type == "cuda":
            self._model.network = nn.SyncBatchNorm.convert_sync_batchnorm(  # type: ignore[no-untyped-call]
                self._model.network
            )
        elif processes.world > 1:
            say(f"batch norm: each of {processes.world} processes by its own part of a batch; statistics are averaged")
        shares = label_shares(self._labels, count, recipe.sampling.balance)
        self._objective = _Objective(
            self._model, recipe.loss, torch.from_numpy(shares).to(device, torch.float32), choice
        )
        self._shared: nn.Module = self._objective
        if processes.world > 1:
            self._shared = nn.parallel.DistributedDataParallel(
                self._objective,
                device_ids=[device.index] if device.type == "cuda" else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )
        self._optimizer = build_optimizer(self._objective, recipe.optimizer)
        self._generator = torch.Generator(device)
        self._model.train()

        self.step = 0
        self.stop_signal = 0
        self.reported_epoch = 0
        self._order: tuple[int, Indices] | None = None
        self._best: Epoch | None = None
        self._best_weights: dict[str, Tensor] | None = None
        self._best_written = True
        self._tally = _Tally()
        self._elapsed_s = 0.0
        self._clock = time.monotonic()
        self._unseen: list[Tensor] = []

    def take_step(self, signal_number: int) -> bool:
        """One step; True where its loss, and those before it, have been looked at."""
        epoch, place = divmod(self.step, self._steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self._batches(epoch))
        size = self._batch // self.processes.world
        mine = self._order[1][place][self.processes.rank * size : (self.processes.rank + 1) * size]
        self._generator.manual_seed(_seed_of(self._recipe.training.seed, self.step, self.processes.rank))

        rate = self._learning_rate()
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        loss, hits = self._shared(*self._features(mine))
        self._optimizer.zero_grad()
        loss.backward()
        norm = loss.detach()
        if limit := self._recipe.optimizer.gradient_norm:
            norm = nn.utils.clip_grad_norm_(self._objective.parameters(), limit)
        every = STEPS_BETWEEN_LOOKS[self._choice.device.type]
        self._unseen.append(torch.stack([loss.detach(), norm, hits.to(loss.dtype)]))
        self.step += 1
        alone = self.processes.world == 1
        looked = self.step % every == 0 or self.epoch_is_due() or (alone and signal_number > 0)
        if every == 1:
            self._look(signal_number)
            self._optimizer.step()
        else:
            self._optimizer.step()
            if looked:
                self._look(signal_number)
        if not alone and self._choice.device.type == "cpu":
            self._average_statistics()
        self._average.update(self._model, self.step)
        return looked

    def _features(self, indices: Indices) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
        """Augmented features (batch, rows, frames), mask, labels, labels of what was mixed in, share of the own."""
        spec, generator, front_end = self._recipe.augment, self._generator, self._model.front_end
        with torch.no_grad():
            windows, lengths = self._feed(self._train[indices])
            windows = augment_waveforms(windows, lengths, spec, generator)
            windows, partners, weights = mix_pairs(windows, lengths, spec, generator)
            features, mask = features_in_parts(front_end, windows, lengths)
            features = mask_features(features, front_end.spec.n_mels, spec, generator)
            labels = torch.from_numpy(self._labels[indices]).to(features.device)
        return features, mask, labels, labels[partners], weights

    def _look(self, signal_number: int) -> None:
        """Wait for the steps since the last look: are they finite, and has any process been told to stop?"""
        found = torch.stack(self._unseen).double()
        self._unseen = []
        if self.processes.world > 1:
            told = torch.full_like(found[:1], float(signal_number)) / found.shape[1]
            shared = self.processes.sum(torch.cat([found, told]))
            found, signalled = shared[:-1], float(shared[-1].sum())
            found[:, :2] /= self.processes.world
            # Each process may have been told by its own signal; all stop with the same number.
            self.stop_signal = 0 if signalled == 0 else (signal_number or 15)
        else:
            self.stop_signal = signal_number
        rows = found.tolist()
        for step, (loss, norm, hits) in zip(range(self.step - len(rows), self.step), rows, strict=True):
            if not (np.isfinite(loss) and np.isfinite(norm)):
                raise TrainingDivergedError(self._named(step, loss, norm))
            self._tally.add(loss, hits, self._batch)

    def _named(self, step: int, loss: float, norm: float) -> str:
        epoch, place = divmod(step, self._steps_per_epoch)
        windows = self._train[self._batches(epoch)[place]]
        what = f"loss is {loss}" if not np.isfinite(loss) else f"the gradient's norm is {norm} at a loss of {loss}"
        recordings = ", ".join(sorted(set(self._data.recordings[windows].tolist())))
        return (
            f"{what} in epoch {epoch + 1}, batch {place}, windows {windows.tolist()} of recordings {recordings}; "
            "look at these windows, or lower optimizer.learning_rate"
        )

    def _average_statistics(self) -> None:
        """The batch norms' statistics, which each process gathered from its own part, as their mean everywhere."""
        statistics = [buffer for buffer in self._model.network.buffers() if buffer.is_floating_point()]
        flat = self.processes.sum(torch.cat(statistics)) / self.processes.world
        torch._foreach_copy_(statistics, list(torch.split(flat, [len(one) for one in statistics])))

    def epoch_is_due(self) -> bool:
        """Whether this is the end of an epoch after which validation comes."""
        epoch, place = divmod(self.step, self._steps_per_epoch)
        every = -(-STEPS_BETWEEN_VALIDATIONS // self._steps_per_epoch)
        return place == 0 and (epoch % every == 0 or epoch == self._epochs)

    def end_epoch(self, validation: Indices) -> Epoch:
        """Judge the averaged weights, and keep them if they are the best so far."""
        windows_per_s = self._tally.windows_per_s()
        model = self._average.settle(self._model)
        found = self._judged(model, validation)
        epoch = Epoch(
            epoch=self.step // self._steps_per_epoch,
            epochs=self._epochs,
            step=self.step,
            loss=self._tally.loss,
            train_accuracy=self._tally.accuracy,
            validation=found,
            learning_rate=self._learning_rate(self.step - 1),
            windows_per_s=windows_per_s,
            elapsed_s=self._elapsed(),
            best=self._best is None or self._better(found, self._best.validation),
        )
        if epoch.best:
            self._best = epoch
            self._best_weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            self._best_written = False
        self.reported_epoch = epoch.epoch
        self._tally = _Tally()
        return epoch

    def _judged(self, model: Recogniser, validation: Indices) -> Validation:
        rank, world = self.processes.rank, self.processes.world
        part = judge_fed(model, self._feed, validation[rank::world], self._choice)[0]
        logits = torch.empty(len(validation), part.shape[1])
        for number, of_rank in enumerate(self.processes.gather(part)):
            logits[number::world] = of_rank
        return validation_scores(logits, self._data.labels[validation])

    def _better(self, found: Validation, best: Validation) -> bool:
        """Whether what was `found` now is to be kept instead of the best of the epochs before."""
        match self._recipe.training.choose_by:
            case "last":
                # Averaged weights at the end of a falling learning rate; a validation part that is like the training
                # part says little about which epoch is best elsewhere, and a small one is mostly chance.
                return True
            case "loss":
                return found.loss < best.loss
            case "macro_f1":
                return (found.macro_f1, -found.loss) > (best.macro_f1, -best.loss)

    def progress(self) -> Progress:
        """Where it stands, as far as it was looked at."""
        epoch = min(self.step // self._steps_per_epoch + 1, self._epochs)
        tally = self._tally
        return Progress(self.step, self.steps, epoch, self._epochs, tally.loss, tally.accuracy, tally.windows_per_s())

    def save(self, out: Path) -> None:
        """The best so far, where it is new, and then all that going on needs."""
        if self._best and self._best_weights and not self._best_written:
            best = {f"model.{name}": tensor for name, tensor in self._best_weights.items()}
            write_checkpoint(out / BEST, best, {"epoch": msgspec.to_builtins(self._best)})
            self._best_written = True
        tensors = {f"model.{name}": tensor for name, tensor in self._model.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self._average.model.state_dict().items()}
        tensors |= {f"optimizer.{k}": t for k, t in optimizer_tensors(self._optimizer, self._objective).items()}
        facts = {
            "step": self.step,
            "reported_epoch": self.reported_epoch,
            "elapsed_s": self._elapsed(),
            "tally": {"loss_sum": self._tally.loss_sum, "hits": self._tally.hits, "windows": self._tally.windows},
        }
        write_checkpoint(out / LAST, tensors, facts)

    def restore(self, out: Path) -> None:
        """Go on where `save` was called last."""
        tensors, facts = read_checkpoint(out / LAST)
        self._model.load_state_dict(_under("model.", tensors))
        self._average.model.load_state_dict(_under("average.", tensors))
        restore_optimizer(self._optimizer, self._objective, _under("optimizer.", tensors))
        self.step, self.reported_epoch = facts["step"], facts["reported_epoch"]
        self._elapsed_s = facts["elapsed_s"]
        self._tally = _Tally(**facts["tally"])
        if (out / BEST).exists():
            best, about = read_checkpoint(out / BEST)
            self._best = msgspec.convert(about["epoch"], Epoch)
            self._best_weights = {name: t.to(self._choice.device) for name, t in _under("model.", best).items()}

    def best_model(self) -> Recogniser:
        """A recogniser of its own with the best weights, in evaluation mode, on the device."""
        if self._best_weights is None:
            raise ValueError("no epoch has been judged yet")
        model = new_recogniser(self._recipe, len(self._data.label_names)).to(self._choice.device)
        model.load_state_dict(self._best_weights)
        return model.requires_grad_(False).eval()

    def _batches(self, epoch: int) -> Indices:
        """Of all processes together: places in the training part, (batches, batch)."""
        training = self._recipe.training
        return epoch_batches(self._labels, self._batch, self._recipe.sampling.balance, training.seed, epoch)

    def _learning_rate(self, step: int | None = None) -> float:
        step = self.step if step is None else step
        return learning_rate(self._recipe.optimizer, step, self.steps, self._steps_per_epoch)

    def _elapsed(self) -> float:
        return self._elapsed_s + time.monotonic() - self._clock


class _Tally:
    """Sums since the last validation."""

    def __init__(self, loss_sum: float = 0.0, hits: float = 0.0, windows: int = 0) -> None:
        self.loss_sum, self.hits, self.windows = loss_sum, hits, windows
        self._since = time.monotonic()
        self._timed = 0

    def add(self, loss: float, hits: float, windows: int) -> None:
        self.loss_sum += loss * windows
        self.hits += hits
        self.windows += windows
        self._timed += windows

    @property
    def loss(self) -> float:
        return self.loss_sum / max(1, self.windows)

    @property
    def accuracy(self) -> float:
        return self.hits / max(1, self.windows)

    def windows_per_s(self) -> float:
        return self._timed / max(1e-9, time.monotonic() - self._since)


def new_recogniser(recipe: Recipe, labels: int) -> Recogniser:
    """Of the sizes that a resolved recipe gives, its weights drawn from the recipe's seed; on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        return Recogniser(front_end_spec(recipe), ecapa_dims(recipe), head_spec(recipe), labels)


def load_initial(model: Recogniser, initial: Mapping[str, npt.NDArray[Any]]) -> None:
    """Begin with these weights where there are any.

    Raises
    ------
    ValueError
        Naming what the model has no place for, or a shape that does not fit.
    """
    own = model.state_dict()
    for name, array in initial.items():
        if name not in own:
            raise ValueError(f"initial weights hold {name}, which the recipe's network has not")
        if tuple(array.shape) != tuple(own[name].shape):
            raise ValueError(
                f"initial {name} is {tuple(array.shape)}, the recipe's is {tuple(own[name].shape)}; "
                "set the recipe's network and front_end to the sizes of the initial weights"
            )
    with torch.no_grad():
        for name, array in initial.items():
            own[name].copy_(torch.from_numpy(np.array(array)))


def _checked(data: WindowSet, parts: Parts) -> tuple[Indices, Indices]:
    """Indices of both parts."""
    train, validation = (
        np.flatnonzero(part) if part.dtype == np.bool_ else part.astype(np.int64)
        for part in (np.asarray(parts.train), np.asarray(parts.validation))
    )
    for name, part in (("training", train), ("validation", validation)):
        if not len(part):
            raise ValueError(f"the {name} part has no windows")
    if len(both := np.intersect1d(train, validation)):
        raise ValueError(f"{len(both)} windows are in the training and the validation part, the first is {both[0]}")
    counts = np.bincount(data.labels[train], minlength=len(data.label_names))
    if lacking := [name for name, count in zip(data.label_names, counts, strict=True) if not count]:
        raise ValueError(f"no training windows of {', '.join(lacking)}; leave the label out, or split otherwise")
    return train, validation


def _shared_batch(batch: int, processes: Processes, say: Callable[[str], None]) -> int:
    """The batch of all processes together, the same share for each, and no share of one: batch norm needs two."""
    size = batch // processes.world
    if size < 2:
        raise ValueError(f"a batch of {batch} for {processes.world} processes; each needs two windows or more")
    if size * processes.world != batch:
        say(f"batch: {size * processes.world} in place of {batch}, the same for each of {processes.world} processes")
    return size * processes.world


def _seed_of(seed: int, step: int, rank: int) -> int:
    """For the generator of one process in one step."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@contextlib.contextmanager
def _exactness(deterministic: bool, device: torch.device) -> Iterator[None]:
    """The same bits each time where that is asked for; else, on a GPU, whichever algorithm proves fastest."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if deterministic:
        # cuBLAS reads it when it starts; without it, some of its sums depend on what else runs.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = device.type == "cuda" and not deterministic
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
