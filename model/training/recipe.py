"""How a model is made of a data set: every choice by name. "auto" leaves one to `model.training.recipe_choice`."""

from __future__ import annotations

import json
import os
import re
import tomllib
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

RECIPES = Path(__file__).parent / "recipes"
Auto = Literal["auto"]
Count = Annotated[int, msgspec.Meta(ge=1)]
CountOrNone = Annotated[int, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
ShareBelowOne = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Amount = Annotated[float, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(gt=0)]


class RecipeError(ValueError):
    """A recipe that cannot be used; the message names the field and what it may be."""


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Windows(_Section, frozen=True):
    """How recordings become windows."""

    nominal: bool  #: samples of any rate go in as they are, and the rate is taken for 16 kHz
    rate_hz: Positive | Auto  #: of the model; other rates are resampled to it
    length_s: Positive | Auto
    hop_s: Positive | Auto  #: from window to window of a recording longer than one


class FrontEnd(_Section, frozen=True):
    """Samples to features; see `model.architecture.FrontEndSpec`."""

    n_fft: Count | Auto
    win_length: Count | Auto
    hop_length: Count | Auto
    n_mels: Count | Auto
    level: Literal["none", "rms"]
    context: Literal["none", "window"]
    pre_emphasis: ShareBelowOne


class Network(_Section, frozen=True):
    """Sizes of the ECAPA-TDNN; see `model.architecture.EcapaDims`."""

    channels: Count | Auto
    mfa_channels: Count | Auto
    attention: Count | Auto
    embedding: Count | Auto
    se_bottleneck: Count | Auto
    scale: Annotated[int, msgspec.Meta(ge=2)]
    dilations: tuple[Count, ...]
    variant: Literal["paper", "speechbrain"] = "paper"


class Loss(_Section, frozen=True):
    """What is minimised; see `model.training.losses`."""

    kind: Literal["cross_entropy", "aam_softmax"]
    margin: Annotated[float, msgspec.Meta(ge=0, le=1.5)]  #: radians, of AAM-softmax
    scale: Positive | Auto  #: of AAM-softmax's cosines
    label_smoothing: ShareBelowOne
    logit_adjustment: Amount  #: times the logarithm of each label's share is added to its logit in training


class Sampling(_Section, frozen=True):
    """In which shares the labels are seen."""

    balance: Literal["equal", "square_root", "none"]


class Augment(_Section, frozen=True):
    """What is changed of a training window, see `model.training.augment`. A share: of the windows it happens to."""

    audition: bool  #: leave out what the data does not bear, see `model.training.audition`
    shift_share: Share  #: of a window's length it is moved by at most, either way
    gain_db: Amount  #: drawn from minus to plus this
    polarity: bool
    noise_share: Share
    noise_snr_db: tuple[float, float]
    response_share: Share  #: a random short FIR: another sensor, another path
    response_taps: Count
    response_depth: Amount
    reverb_share: Share
    reverb_s: tuple[Positive, Positive]  #: time in which it dies away by 60 dB, in share of the window's length
    mixup: Amount  #: alpha of the beta distribution; 0 is none
    mixup_share: Share
    mask_bands: CountOrNone  #: SpecAugment: so many stripes of mel bands
    mask_band_share: Share  #: the widest, in share of the bands
    mask_spans: CountOrNone  #: and of time
    mask_span_share: Share
    drop_context_share: Share  #: windows without the rows of context, where the front end gives them


class Optimizer(_Section, frozen=True):
    """How weights move."""

    kind: Literal["adam", "adamw"]
    learning_rate: Positive  #: at its peak
    weight_decay: Amount
    schedule: Literal["one_cycle", "steps"]
    warm_up_share: Share  #: of all steps, of one_cycle
    decay: Annotated[float, msgspec.Meta(gt=0, le=1)]  #: steps: the rate is multiplied by it …
    decay_every_epochs: Count  #: … so often
    gradient_norm: Amount  #: longer gradients are shortened to this; 0 leaves them


class Training(_Section, frozen=True):
    """How long, and how exactly."""

    epochs: Count | Auto
    batch: Count | Auto
    ema: ShareBelowOne  #: share of the averaged weights that each step keeps; 0 is no averaging
    precision: Literal["auto", "float32", "bfloat16"]
    deterministic: bool  #: only algorithms that give the same bits each time, also on a GPU
    seed: CountOrNone
    validation_share: Annotated[
        float, msgspec.Meta(gt=0, lt=1)
    ]  #: of the training data, where the data set names no validation part
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
        raise RecipeError(_told(path, values, overrides, str(error))) from error


def _told(path: Path, values: dict[str, Any], overrides: Sequence[str], error: str) -> str:
    """What is wrong, and what the field may be."""
    place = re.search(r"at `\$\.(\w+)\.(\w+)", error)
    hints = get_type_hints(get_type_hints(Recipe)[place[1]], include_extras=True) if place else {}
    if place is None or place[2] not in hints:
        return f"{path}{' with overrides' if overrides else ''}: {error}"
    section, field = place.groups()
    by_hand = any(override.partition("=")[0].strip() == f"{section}.{field}" for override in overrides)
    said = f"{section}.{field} = {_toml(values[section][field])}; it may be {_may_be(hints[field])}"
    return said if by_hand else f"{path}: {said}"


def _may_be(hint: Any) -> str:
    """A field's type, in words."""
    if get_origin(hint) is Literal:
        return " or ".join(get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(map(_may_be, get_args(hint)))
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        return f"a list of {'any length' if Ellipsis in kinds else len(kinds)}, each {_may_be(kinds[0])}"
    if get_origin(hint) is Annotated:
        kind, meta = get_args(hint)
        words = {"ge": "at least", "gt": "over", "le": "at most", "lt": "under"}
        bounds = [f"{word} {getattr(meta, name)}" for name, word in words.items() if getattr(meta, name) is not None]
        return f"{_may_be(kind)} {' and '.join(bounds)}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[hint]


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
