"""A trained model as a folder: `model.json` says what it is, `model.safetensors` holds its weights. Needs no torch.

The version is a hash of both, so a bundle whose parts do not belong together, or that was edited, is refused. It is
taken from what the files say, not from what this program makes of them: a field that a later program knows, with a
default for the bundles that lack it, leaves their versions as they are.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from model.architecture import EcapaDims, FrontEndSpec, HeadSpec, UnknownKind, parameter_shapes

FORMAT = 1
CARD_FILE = "model.json"
WEIGHTS_FILE = "model.safetensors"
MAX_CARD_BYTES = 1 << 20
MAX_WEIGHTS_BYTES = 1 << 30
MAX_WINDOW_SAMPLES = 1 << 20
MAX_LABELS = 1_000
_HEADER_SLACK_BYTES = 1 << 20

Role = Literal["background", "calibration", "fault"]
Weights = dict[str, npt.NDArray[Any]]


class BundleError(ValueError):
    """A bundle that cannot be used; the message names the file, what is wrong, and where there is one the way out."""


class Label(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One class of the model, and what it means to an alarm."""

    name: str
    role: Role  #: nothing happens; recorded, no fault (coupling check); an alarm


#: The paper's four classes, and what a sensor hears when nothing happens.
PAPER_LABELS = (
    Label("background", "background"),
    Label("pencil_lead_break", "calibration"),
    Label("friction", "fault"),
    Label("knock", "fault"),
    Label("drop", "fault"),
)


class UnknownRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a window counts as none of the labels: its score, from `model.unknown`, is over the threshold."""

    kind: UnknownKind
    threshold: float


class TrainingRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the weights come from."""

    data: str  #: what the windows are, in a sentence
    data_hash: str  #: SHA-256 of the training windows and labels
    command: str  #: reproduces the bundle
    seed: int
    positions: dict[str, str]  #: part of the data ("train", "validation", "test") → its sensor positions in words
    date: str  #: ISO 8601
    counts: dict[str, dict[str, int]] = {}  #: part of the data → windows of each label
    recordings: dict[str, tuple[str, ...]] = {}  #: part of the data → what was heard; a part with very many is left out
    split: str = ""  #: how the parts were made: "recording", "sensor", "position", "random windows", …
    recipe: str = ""  #: TOML, every value resolved; see `model.training.recipe`


class BundleCard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `model.json` holds."""

    format: int = FORMAT
    name: str
    version: str = ""  #: first 16 hex digits of the SHA-256 of card, as the file has it, and weights
    front_end: FrontEndSpec
    network: EcapaDims
    head: HeadSpec
    labels: tuple[Label, ...]  #: in the order of the network's outputs
    rate_hz: float  #: of the samples that go in
    rate_is_nominal: bool  #: samples of any rate go in as they are
    window_samples: int
    hop_samples: int
    temperature: float  #: logits are divided by it before the softmax
    unknown: UnknownRule
    thresholds: dict[str, float]  #: label → probability over which a window counts for an alarm
    training: TrainingRecord
    metrics: dict[str, Any]  #: on held-out data; "data" says which

    def __post_init__(self) -> None:
        names = [label.name for label in self.labels]
        checks = [
            (2 <= len(names) <= MAX_LABELS, f"{len(names)} labels, allowed are 2 to {MAX_LABELS}"),
            (len(set(names)) == len(names), f"labels repeat: {', '.join(names)}"),
            (all(name.isprintable() and 0 < len(name) <= 100 for name in names), f"label names {names}"),
            (math.isfinite(self.rate_hz) and self.rate_hz > 0, f"rate_hz is {self.rate_hz}"),
            (0 < self.window_samples <= MAX_WINDOW_SAMPLES, f"window_samples is {self.window_samples}"),
            (0 < self.hop_samples <= self.window_samples, f"hop_samples is {self.hop_samples}"),
            (math.isfinite(self.temperature) and self.temperature > 0, f"temperature is {self.temperature}"),
            (math.isfinite(self.unknown.threshold), f"unknown threshold is {self.unknown.threshold}"),
            (set(self.thresholds) <= set(names), f"thresholds for {sorted(set(self.thresholds) - set(names))}"),
            (all(0 < value < 1 for value in self.thresholds.values()), f"thresholds are {self.thresholds}"),
        ]
        for holds, problem in checks:
            if not holds:
                raise ValueError(problem)

    @property
    def label_names(self) -> tuple[str, ...]:
        """In the order of the network's outputs."""
        return tuple(label.name for label in self.labels)

    @property
    def roles(self) -> dict[str, str]:
        """Label → background, calibration or fault, in the order of the network's outputs."""
        return {label.name: label.role for label in self.labels}

    @property
    def window_rate_hz(self) -> Fraction | None:
        """Rate that windows must have; None where the rate is nominal and samples go in as they are."""
        return None if self.rate_is_nominal else Fraction(self.rate_hz)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor in the weights."""
        return parameter_shapes(
            self.network, self.front_end.features, self.head, len(self.labels), self.front_end.context_rows
        )


def demo_bundle_path() -> Path:
    """The trained bundle that comes with the package."""
    return Path(__file__).parent / "bundles" / "demo"


def read_card(bundle: str | os.PathLike[str]) -> BundleCard:
    """The card of the bundle in folder `bundle`. Looks at `model.json` alone, so it is quick; see `load_weights`.

    Raises
    ------
    BundleError
        If it is missing, too large, not JSON, of another format version, or a field is missing or wrong.
    """
    path = Path(bundle) / CARD_FILE
    inside = Path(bundle) / "bundle"
    if not path.exists() and (inside / CARD_FILE).exists():
        raise BundleError(f"{os.fspath(bundle)}: a training, not a bundle; did you mean {inside}?")
    return _read_card(path)[0]


def load_weights(bundle: str | os.PathLike[str], card: BundleCard | None = None) -> Weights:
    """The weights of the bundle in folder `bundle`, checked against its card: names, shapes, finiteness, version hash.

    Parameters
    ----------
    bundle
        The folder.
    card
        What `read_card` gave, if it was read already: the weights are then those of that card, or an error.

    Raises
    ------
    BundleError
        If a file is missing, larger than the card's sizes make it, damaged, or does not belong to the card.
    """
    found, content = _read_card(Path(bundle) / CARD_FILE)
    if card is not None and card.version != found.version:
        raise BundleError(
            f"{Path(bundle)}: now version {found.version or 'nothing'}, no longer {card.version}; read its card again"
        )
    card = card or found
    path = Path(bundle) / WEIGHTS_FILE
    expected = card.shapes
    size = 8 * sum(math.prod(shape) for shape in expected.values())
    if size > 2 * MAX_WEIGHTS_BYTES:
        raise BundleError(
            f"{Path(bundle) / CARD_FILE}: a network of {size // 2:,} bytes; at most {MAX_WEIGHTS_BYTES:,}"
        )
    data = _read(path, size + _HEADER_SLACK_BYTES)
    try:
        weights: Weights = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise BundleError(f"{path}: not a safetensors file: {error}") from error
    _check_weights(weights, expected, str(path))
    version = _version(content, data)
    if version != card.version:
        raise BundleError(
            f"{path}: card and weights hash to {version}, the card says {card.version or 'nothing'}; "
            "the bundle was changed or its files come from two bundles: copy both again"
        )
    return weights


def write_bundle(
    bundle: str | os.PathLike[str],
    card: BundleCard,
    weights: Mapping[str, npt.NDArray[Any]],
    readme: str | None = None,
) -> BundleCard:
    """Write a bundle into folder `bundle`, and return its card with the version filled in.

    A new folder appears whole or not at all. In one that exists, each file is replaced at once, weights first: who
    reads in between is told that the two do not belong together.

    Raises
    ------
    BundleError
        If the weights are not those that the card's sizes ask for, or not finite.
    """
    folder = Path(bundle)
    arrays = {name: np.ascontiguousarray(array) for name, array in weights.items()}
    _check_weights(arrays, card.shapes, str(folder / WEIGHTS_FILE))
    data = safetensors.numpy.save(arrays)
    card = msgspec.structs.replace(card, version=_version(msgspec.to_builtins(card), data))
    files = {WEIGHTS_FILE: data, CARD_FILE: msgspec.json.format(msgspec.json.encode(card), indent=2) + b"\n"}
    if readme is not None:
        files = {"README.md": readme.encode(), **files}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        staged = Path(scratch) / folder.name
        staged.mkdir()
        for name, content in files.items():
            with (staged / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if not folder.exists():
            staged.rename(folder)
        else:
            for name in files:
                (staged / name).replace(folder / name)
    return card


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise BundleError(f"{path}: {size:,} bytes, at most {limit:,} make sense here")
            return file.read(limit)
    except OSError as error:
        raise BundleError(
            f"{path}: {error.strerror}; a bundle is a folder with {CARD_FILE} and {WEIGHTS_FILE}"
        ) from error


def _read_card(path: Path) -> tuple[BundleCard, dict[str, Any]]:
    """The card, and what the file says word for word."""
    data = _read(path, MAX_CARD_BYTES)
    try:
        content = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise BundleError(f"{path}: not a model card: {error}") from error
    if (found := content.get("format")) != FORMAT:
        raise BundleError(f"{path}: format version {found}, this program reads {FORMAT}; install a matching aewatch")
    try:
        card = msgspec.convert(content, type=BundleCard)
    except msgspec.ValidationError as error:
        raise BundleError(f"{path}: {error}") from error
    # msgspec passes over what a dataclass does not know; here it would be a choice about the network that is not made.
    for section, known in (("front_end", FrontEndSpec), ("network", EcapaDims), ("head", HeadSpec)):
        if unknown := sorted(content[section].keys() - {field.name for field in fields(known)}):
            raise BundleError(f"{path}: {section} has {', '.join(unknown)}, unknown here; install a later aewatch")
    return card, content


def _version(content: dict[str, Any], weights: bytes) -> str:
    unversioned = msgspec.json.encode({**content, "version": ""}, order="sorted")
    digest = hashlib.sha256(unversioned)
    digest.update(hashlib.sha256(weights).digest())
    return digest.hexdigest()[:16]


def _check_weights(weights: Weights, expected: dict[str, tuple[int, ...]], where: str) -> None:
    if missing := sorted(expected.keys() - weights.keys()):
        raise BundleError(f"{where}: {len(missing)} tensors missing, the first is {missing[0]}")
    if surplus := sorted(weights.keys() - expected.keys()):
        raise BundleError(f"{where}: {len(surplus)} tensors that the card knows nothing of, the first is {surplus[0]}")
    for name, shape in expected.items():
        array = weights[name]
        if array.shape != shape or array.dtype != np.float32:
            raise BundleError(f"{where}: {name} is {array.dtype} {array.shape}, the card asks for float32 {shape}")
        if not np.isfinite(array).all():
            raise BundleError(f"{where}: {name} is not finite")
