"""How a model is made of a data set: every choice by name. "auto" leaves one to `model.training.recipe_choice`."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

RECIPES = Path(__file__).parent / "recipes"
Auto = Literal["auto"]


class RecipeError(ValueError):
    """A recipe that cannot be used; the message names the field and what it may be."""


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Windows(_Section, frozen=True):
    """How recordings become windows."""

    nominal: bool  #: samples of any rate go in as they are, and the rate is taken for 16 kHz
    rate_hz: float | Auto  #: of the model; other rates are resampled to it
    length_s: float | Auto
    hop_s: float | Auto  #: from window to window of a recording longer than one


class FrontEnd(_Section, frozen=True):
    """Samples to features; see `model.architecture.FrontEndSpec`."""

    n_fft: int | Auto
    win_length: int | Auto
    hop_length: int | Auto
    n_mels: int | Auto
    level: Literal["none", "rms"]
    context: Literal["none", "window"]
    pre_emphasis: float


class Network(_Section, frozen=True):
    """Sizes of the ECAPA-TDNN; see `model.architecture.EcapaDims`."""

    channels: int | Auto
    mfa_channels: int | Auto
    attention: int | Auto
    embedding: int | Auto
    se_bottleneck: int | Auto
    scale: int
    dilations: tuple[int, ...]
    variant: Literal["paper", "speechbrain"] = "paper"


class Loss(_Section, frozen=True):
    """What is minimised; see `model.training.losses`."""

    kind: Literal["cross_entropy", "aam_softmax"]
    margin: float  #: radians, of AAM-softmax
    scale: float | Auto  #: of AAM-softmax's cosines
    label_smoothing: float
    logit_adjustment: float  #: times the logarithm of each label's share is added to its logit in training


class Sampling(_Section, frozen=True):
    """In which shares the labels are seen."""

    balance: Literal["equal", "square_root", "none"]


class Augment(_Section, frozen=True):
    """What is changed of a training window, see `model.training.augment`. A share: of the windows it happens to."""

    audition: bool  #: leave out what the data does not bear, see `model.training.audition`
    shift_share: float  #: of a window's length it is moved by at most, either way
    gain_db: float  #: drawn from minus to plus this
    polarity: bool
    noise_share: float
    noise_snr_db: tuple[float, float]
    response_share: float  #: a random short FIR: another sensor, another path
    response_taps: int
    response_depth: float
    reverb_share: float
    reverb_s: tuple[float, float]  #: time in which it dies away by 60 dB, in share of the window's length
    mixup: float  #: alpha of the beta distribution; 0 is none
    mixup_share: float
    mask_bands: int  #: SpecAugment: so many stripes of mel bands
    mask_band_share: float  #: the widest, in share of the bands
    mask_spans: int  #: and of time
    mask_span_share: float
    drop_context_share: float  #: windows without the rows of context, where the front end gives them


class Optimizer(_Section, frozen=True):
    """How weights move."""

    kind: Literal["adam", "adamw"]
    learning_rate: float  #: at its peak
    weight_decay: float
    schedule: Literal["one_cycle", "steps"]
    warm_up_share: float  #: of all steps, of one_cycle
    decay: float  #: steps: the rate is multiplied by it …
    decay_every_epochs: int  #: … so often
    gradient_norm: float  #: longer gradients are shortened to this; 0 leaves them


class Training(_Section, frozen=True):
    """How long, and how exactly."""

    epochs: int | Auto
    batch: int | Auto
    ema: float  #: share of the averaged weights that each step keeps; 0 is no averaging
    precision: Literal["auto", "float32", "bfloat16"]
    deterministic: bool  #: only algorithms that give the same bits each time, also on a GPU
    seed: int
    validation_share: float  #: of the training data, where the data set names no validation part
    choose_by: Literal["macro_f1", "loss", "last"]  #: which epoch is kept: the best on the validation part, or the last


class Recipe(_Section, frozen=True):
    """All of it."""

    name: str
    windows: Windows
    front_end: FrontEnd
    network: Network
    loss: Loss
    sampling: Sampling
    augment: Augment
    optimizer: Optimizer
    training: Training

    def unresolved(self) -> list[str]:
        """Fields that are still "auto", as section.field."""
        built = msgspec.to_builtins(self)
        return [
            f"{section}.{field}"
            for section, values in built.items()
            if isinstance(values, dict)
            for field, value in values.items()
            if value == "auto" and (section, field) != ("training", "precision")
        ]


def load_recipe(name_or_file: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of that name (see `RECIPES`) or in that TOML file, with `section.field=value` overrides.

    A value is read as TOML, and taken for text where it is none.

    Raises
    ------
    RecipeError
        Naming the file, field or override, and what it may be.
    """
    path = Path(name_or_file)
    if path.suffix != ".toml":
        path = RECIPES / f"{name_or_file}.toml"
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.toml")))
            raise RecipeError(f"{name_or_file}: no such recipe; there are {known}, or name a .toml file")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path}: {error}") from error
    for override in overrides:
        _apply(values, override)
    try:
        return msgspec.convert(values, type=Recipe)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{path}{' with overrides' if overrides else ''}: {error}") from error


def _apply(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    section, dot, field = name.strip().partition(".")
    if not equals or not dot:
        raise RecipeError(f"{override}: an override is written section.field=value")
    if not isinstance(values.get(section), dict):
        sections = ", ".join(key for key, value in values.items() if isinstance(value, dict))
        raise RecipeError(f"{override}: no section {section}; there are {sections}")
    if field not in values[section]:
        raise RecipeError(f"{override}: {section} has no {field}; it has {', '.join(values[section])}")
    try:
        values[section][field] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        values[section][field] = text.strip()


def recipe_text(recipe: Recipe) -> str:
    """The recipe as a TOML file that `load_recipe` reads back."""
    lines = []
    for section, values in msgspec.to_builtins(recipe).items():
        if not isinstance(values, dict):
            lines.append(f"{section} = {_toml(values)}")
            continue
        lines += ["", f"[{section}]", *(f"{field} = {_toml(value)}" for field, value in values.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    # What JSON makes of numbers, texts, truth values and lists of them is TOML too, but for the pairs of escapes that
    # stand for one character, and DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
