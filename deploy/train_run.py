"""From a data set to a trained bundle: windows, split, choice of the recipe's open values, training, bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from deploy.dataset_windows import dataset_facts, dataset_windows
from model.architecture import EcapaDims
from model.bundle import BundleCard, Weights, read_card
from model.bundle_making.make import make_bundle, read_run
from model.data.dataset import WindowSet
from model.data.manifest import Manifest
from model.data.splits import By, Parts, leaks, parts, require_fold
from model.device import choose, cpu_has_bfloat16
from model.network import Recogniser
from model.training.audition import audition
from model.training.history import Epoch
from model.training.import_weights import for_front_end, read_initial
from model.training.processes import Processes, local_device, training_processes
from model.training.recipe import Recipe
from model.training.recipe_choice import choose_rest, choose_windows, front_end_spec
from model.training.run_folder import BUNDLE_FOLDER, run_record
from model.training.train import Progress, train_run


def _quiet(text: str) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to train, on what, and where to put it."""

    manifest: Manifest
    recipe: Recipe
    out: Path
    fold: str | None = None  #: left out, to be tested on
    split_by: By = "auto"
    roles: Mapping[str, str] = field(default_factory=dict)
    initial: Path | None = None  #: weights to begin with
    resume: bool = False
    device: str = "auto"
    command: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Who is told how it goes, in the first of several processes."""

    say: Callable[[str], None] = _quiet
    on_recording: Callable[[int, int], None] = lambda done, of: None
    on_begin: Callable[[], None] = lambda: None  #: of the training itself
    on_epoch: Callable[[Epoch], None] = lambda epoch: None
    on_step: Callable[[Progress], None] = lambda progress: None


def train_dataset(order: Order, listener: Listener) -> BundleCard | None:
    """Train as ordered and write the bundle; its card, None in all processes but the first.

    Raises
    ------
    ValueError
        With one line that names what does not fit and the way out; the modules that are called here say when.
    model.training.train.TrainingDivergedError, model.training.interruption.TrainingInterruptedError
        See `model.training.train.train_run`.
    """
    if order.fold is not None:  # before recordings are read, which may take long
        require_fold((clip.split for clip in order.manifest.clips), order.fold)
    chosen = choose(local_device(order.device)).device
    with training_processes(chosen) as processes:
        say = listener.say if processes.first else _quiet
        for note in order.manifest.notes:
            say(note)
        initial = read_initial(order.initial) if order.initial else None
        recipe, data = _windows(order, processes, listener, say)
        if initial:
            bands = _mel_bands(order.initial, initial[0])
            recipe = sized_like(recipe, initial[1], bands)
            say(
                f"weights: the network begins with {order.initial}, {initial[1].channels} channels and "
                f"{bands} mel bands; its head begins at random"
            )
        split = parts(data, fold=order.fold, by=order.split_by, validation_share=recipe.training.validation_share)
        train, validation = np.flatnonzero(split.train), np.flatnonzero(split.validation)
        if processes.first:
            _tell_split(data, split, say)
        counts = np.bincount(data.labels[train], minlength=len(data.label_names)).tolist()
        if few := [name for name, count in zip(data.label_names, counts, strict=True) if count < 2]:
            raise ValueError(
                f"fewer than two training windows of {', '.join(few)}; record more, cut shorter windows "
                "(--set windows.length_s=…), or leave the label out"
            )
        recipe, choices = choose_rest(recipe, window_samples=data.samples, counts=counts, device=chosen.type)
        if not order.resume:  # what a training was begun with has been through it
            recipe, heard = audition(data, train, recipe, chosen)
            choices += heard
        for choice in choices:
            say(choice)
        if chosen.type == "cpu" and recipe.training.precision == "auto" and cpu_has_bfloat16():
            say("precision: float32; this CPU has bfloat16, which trains faster: --set training.precision=bfloat16")
        record = run_record(
            data,
            train,
            validation,
            recipe,
            path=str(order.manifest.path.resolve()),
            by=order.split_by,
            kind=split.kind,
            note=split.note,
            fold=order.fold,
            roles=order.roles,
            device=choose(local_device(order.device), recipe.training.precision).reason,
            command=order.command,
        )
        if processes.first:
            listener.on_begin()
        model = train_run(
            data,
            split,
            recipe,
            order.out,
            device=order.device,
            resume=order.resume,
            on_epoch=listener.on_epoch,
            on_step=listener.on_step,
            say=say,
            initial=for_front_end(initial[0], front_end_spec(recipe)) if initial else None,
            record=record,
        )
        return _bundle(order, model, data, train, validation) if processes.first else None


def _windows(
    order: Order, processes: Processes, listener: Listener, say: Callable[[str], None]
) -> tuple[Recipe, WindowSet]:
    """The recipe with its windows chosen, and the data set cut into them."""
    # The first process fills the cache that the others then read.
    if not processes.first:
        processes.wait()
    recipe = order.recipe
    choices: list[str] = []
    if {"windows.rate_hz", "windows.length_s", "windows.hop_s"} & set(recipe.unresolved()):
        recipe, choices = choose_windows(recipe, dataset_facts(order.manifest))
    for choice in choices:
        say(choice)
    windows = recipe.windows
    rate_hz = Fraction(windows.rate_hz)
    data = dataset_windows(
        order.manifest,
        round(Fraction(windows.length_s) * rate_hz),
        round(Fraction(windows.hop_s) * rate_hz),
        None if windows.nominal else rate_hz,
        on_progress=listener.on_recording if processes.first else None,
    )
    if processes.first:
        processes.wait()
    return recipe, data


def _tell_split(data: WindowSet, split: Parts, say: Callable[[str], None]) -> None:
    sizes = f"{np.count_nonzero(split.train):,} windows to train on, {np.count_nonzero(split.validation):,} to validate"
    test = f", {count:,} left out to test" if (count := np.count_nonzero(split.test)) else ""
    say(f"{sizes}{test}; split by {split.kind}")
    if split.note:
        say(split.note)
    if split.kind != "random windows":
        for leak in leaks(data.select(split.train), data.select(split.validation)):
            say(f"training and validation share: {leak}")


def sized_like(recipe: Recipe, dims: EcapaDims, n_mels: int) -> Recipe:
    """The recipe with the sizes of a network to begin with, wherever it leaves a size open, and with its variant.

    Raises
    ------
    ValueError
        Naming a size that the recipe settles otherwise.
    """
    network = {name: value for name, value in asdict(dims).items() if getattr(recipe.network, name, None) == "auto"}
    network["variant"] = dims.variant  # the same weights mean something else in another
    for name, value in asdict(dims).items():
        wanted = network.get(name, getattr(recipe.network, name))
        if wanted != value:
            raise ValueError(
                f"the initial weights have network.{name} {value}, the recipe says {wanted}; "
                f"--set network.{name}={str(value).replace('(', '[').replace(')', ']')}"
            )
    front_end = {"n_mels": n_mels} if recipe.front_end.n_mels == "auto" else {}
    return msgspec.structs.replace(
        recipe,
        network=msgspec.structs.replace(recipe.network, **network),
        front_end=msgspec.structs.replace(recipe.front_end, **front_end),
    )


def _mel_bands(initial: Path | None, weights: Weights) -> int:
    """That the initial weights were trained on. Other layouts than a bundle know of no rows beside the bands."""
    if initial is not None and initial.is_dir():
        return read_card(initial).front_end.n_mels
    return int(weights["network.entry.conv.weight"].shape[1])


def _bundle(
    order: Order,
    model: Recogniser,
    data: WindowSet,
    train: npt.NDArray[np.int64],
    validation: npt.NDArray[np.int64],
) -> BundleCard:
    folder = order.out / BUNDLE_FOLDER
    run = read_run(order.out)
    return make_bundle(folder, order.out.resolve().name, run, model, data, train, validation, dict(order.roles))
