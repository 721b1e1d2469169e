"""Weights that others have trained, under our names: from TaoRuijie/ECAPA-TDNN, SpeechBrain's ECAPA_TDNN or a bundle.

Imported into the variant they were trained in (`EcapaDims.variant`), they give the embeddings that they gave there,
for the same features. TaoRuijie's layers are ours one by one. Of SpeechBrain's,

- a Res2 convolution leaves its first group of channels as it is, ours the last: the groups change places;
- a batch norm follows the aggregation's ReLU, ours has none: what it does to a channel is done by its neighbours;
- nothing follows the last convolution: our batch norm there is made to change nothing.

A file of SpeechBrain's does not say how far its convolutions are dilated; 2, 3, 4 are its authors' own. Its features
are decibels, from 0 to 8,000 Hz; those of `model.front_end` are natural logarithms, so a training that begins with
these weights has the scale to learn.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
import torch
from torch import Tensor

from model.architecture import EcapaDims, FrontEndSpec, HeadSpec, parameter_shapes
from model.bundle import Weights, load_weights, read_card

Layout = Literal["taoruijie", "speechbrain", "aewatch"]
Arrays = dict[str, npt.NDArray[Any]]

SUFFIXES = (".safetensors", ".pt", ".pth", ".model", ".ckpt", ".bin")
#: A tensor that only this layout has; what stands before it in a file is the prefix of all of them.
MARKS: dict[Layout, str] = {
    "taoruijie": "layer1.convs.0.weight",
    "speechbrain": "blocks.1.res2net_block.blocks.0.conv.conv.weight",
    "aewatch": "network.blocks.0.groups.0.conv.weight",
}
#: Beside the network: front end, augmentation, classifier.
PASSED_OVER = ("torchfbank.", "specaug.", "speaker_loss.", "classifier.")
DILATIONS = (2, 3, 4)
NORM_PARTS = ("weight", "bias", "running_mean", "running_var")
NORM_EPS = 1e-5
_DIMS = "ecapa_dims"  # the entry of a file's header that holds them


class WeightsImportError(ValueError):
    """Weights that cannot be taken over; the message names the file, the tensor, its shape and the one wanted."""


def read_initial(path: str | os.PathLike[str]) -> tuple[Weights, EcapaDims]:
    """The network of a bundle or of a file of weights, to begin a training with.

    Parameters
    ----------
    path
        Folder of a bundle, what `write_initial` wrote, or a file of another layout; see `import_file`.

    Returns
    -------
    weights
        Every `network.…` tensor of `parameter_shapes`, float32. The head is not among them.
    dims
        The sizes of that network.

    Raises
    ------
    BundleError
        If a bundle cannot be used.
    WeightsImportError
        If a file cannot be.
    """
    if not Path(path).is_dir():
        return import_file(path)
    card = read_card(path)
    weights = load_weights(path, card)
    return {name: array for name, array in weights.items() if name.startswith("network.")}, card.network


def write_initial(path: str | os.PathLike[str], weights: Mapping[str, npt.NDArray[Any]], dims: EcapaDims) -> None:
    """Write a safetensors file that `read_initial` reads back, the sizes in its header."""
    path = Path(path)
    scratch = path.with_name(f".{path.name}")
    arrays = {name: np.ascontiguousarray(array) for name, array in weights.items()}
    safetensors.numpy.save_file(arrays, scratch, metadata={_DIMS: json.dumps(asdict(dims))})
    scratch.chmod(path.parent.stat().st_mode & 0o666)  # safetensors gives its files to their owner alone
    scratch.replace(path)


def import_file(path: str | os.PathLike[str], layout: Layout | None = None) -> tuple[Weights, EcapaDims]:
    """Weights under our names, float32, and the sizes of their network.

    Parameters
    ----------
    path
        .safetensors, or what `torch.save` wrote of tensors and nothing else (.pt, .pth, .model, .ckpt, .bin): no file
        can run code here.
    layout
        None: told by the names of the tensors.

    Raises
    ------
    WeightsImportError
        If the file cannot be read, a tensor is missing, has another shape, is not finite, or is one that the layout
        has not.
    """
    path = Path(path)
    try:
        tensors, header = _read(path)
        found, prefix = _find(tensors, layout)
        if found == "aewatch":
            weights, dims = _own(tensors, prefix, header)
        else:
            weights, dims = (from_taoruijie if found == "taoruijie" else from_speechbrain)(_under(tensors, prefix))
    except ValueError as error:  # sizes that no network has are told so by EcapaDims
        raise WeightsImportError(f"{path}: {error}") from error
    single = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in weights.items()}
    for name, array in single.items():
        if not np.isfinite(array).all():
            raise WeightsImportError(f"{path}: {name} is not finite")
    return single, dims


def for_front_end(weights: Mapping[str, npt.NDArray[Any]], front_end: FrontEndSpec) -> Weights:
    """The weights for a network that is given the features of `front_end`.

    Where these are the mel bins and beside them their means, weights for the bins alone pass over the means, to begin
    with.

    Raises
    ------
    WeightsImportError
        If the weights are for another number of mel bins.
    """
    entry = weights["network.entry.conv.weight"]
    if entry.shape[1] == front_end.features:
        return dict(weights)
    if entry.shape[1] != front_end.n_mels:
        raise WeightsImportError(
            f"the initial weights take {entry.shape[1]} features, the recipe's front end gives {front_end.features}; "
            f"set front_end.n_mels={entry.shape[1]}"
        )
    beside = np.zeros((entry.shape[0], front_end.features - front_end.n_mels, entry.shape[2]), entry.dtype)
    return {**weights, "network.entry.conv.weight": np.concatenate([entry, beside], axis=1)}


def from_taoruijie(tensors: Mapping[str, npt.NDArray[Any]]) -> tuple[Arrays, EcapaDims]:
    """Tensors of TaoRuijie's `ECAPA_TDNN` (names without "speaker_encoder.") under our names, in their own precision.

    Raises
    ------
    WeightsImportError
        As `import_file`.
    """
    groups = _count(tensors, r"layer1\.convs\.(\d+)\.weight")
    dims = EcapaDims(
        **_sizes(
            tensors,
            groups,
            channels="conv1.weight",
            width="layer1.convs.0.weight",
            mfa_channels="layer4.weight",
            attention="attention.0.weight",
            embedding="fc6.weight",
            se_bottleneck="layer1.se.se.1.weight",
        )
    )
    names = {
        "entry.conv": "conv1",
        "entry.norm": "bn1",
        "aggregate": "layer4",
        "pooling.squeeze": "attention.0",
        "pooling.norm": "attention.2",
        "pooling.expand": "attention.4",
        "pooled_norm": "bn5",
        "embed": "fc6",
        "embedding_norm": "bn6",
    }
    for block in range(len(dims.dilations)):
        ours, theirs = f"blocks.{block}", f"layer{block + 1}"
        names |= {f"{ours}.widen.conv": f"{theirs}.conv1", f"{ours}.widen.norm": f"{theirs}.bn1"}
        names |= {f"{ours}.merge.conv": f"{theirs}.conv3", f"{ours}.merge.norm": f"{theirs}.bn3"}
        names |= {f"{ours}.excite.squeeze": f"{theirs}.se.se.1", f"{ours}.excite.expand": f"{theirs}.se.se.3"}
        for group in range(groups):
            names[f"{ours}.groups.{group}.conv"] = f"{theirs}.convs.{group}"
            names[f"{ours}.groups.{group}.norm"] = f"{theirs}.bns.{group}"
    return _renamed(tensors, names, dims), dims


def from_speechbrain(tensors: Mapping[str, npt.NDArray[Any]]) -> tuple[Arrays, EcapaDims]:
    """Tensors of SpeechBrain's `ECAPA_TDNN` under our names, in their own precision.

    Raises
    ------
    WeightsImportError
        As `import_file`; and if there are not three blocks, or they have unlike widths.
    """
    groups = _count(tensors, r"blocks\.1\.res2net_block\.blocks\.(\d+)\.conv\.conv\.weight")
    if (blocks := _count(tensors, r"blocks\.(\d+)\.tdnn1\.conv\.conv\.weight")) != len(DILATIONS):
        raise WeightsImportError(f"{blocks} SE-Res2Net blocks; how far they are dilated is known of three only")
    if shortcut := next((name for name in tensors if re.match(r"blocks\.\d+\.shortcut\.", name)), None):
        raise WeightsImportError(f"{shortcut}: its blocks have unlike widths; ours have one")
    dims = EcapaDims(
        **_sizes(
            tensors,
            groups,
            channels="blocks.0.conv.conv.weight",
            width="blocks.1.res2net_block.blocks.0.conv.conv.weight",
            mfa_channels="mfa.conv.conv.weight",
            attention="asp.tdnn.conv.conv.weight",
            embedding="fc.conv.weight",
            se_bottleneck="blocks.1.se_block.conv1.conv.weight",
        ),
        variant="speechbrain",
    )
    names = {
        "entry.conv": "blocks.0.conv.conv",
        "entry.norm": "blocks.0.norm.norm",
        "aggregate": "mfa.conv.conv",
        "pooling.squeeze": "asp.tdnn.conv.conv",
        "pooling.norm": "asp.tdnn.norm.norm",
        "pooling.expand": "asp.conv.conv",
        "pooled_norm": "asp_bn.norm",
        "embed": "fc.conv",
    }
    for block in range(len(dims.dilations)):
        ours, theirs = f"blocks.{block}", f"blocks.{block + 1}"
        names |= {f"{ours}.widen.conv": f"{theirs}.tdnn1.conv.conv", f"{ours}.widen.norm": f"{theirs}.tdnn1.norm.norm"}
        names |= {f"{ours}.merge.conv": f"{theirs}.tdnn2.conv.conv", f"{ours}.merge.norm": f"{theirs}.tdnn2.norm.norm"}
        names |= {
            f"{ours}.excite.{part}": f"{theirs}.se_block.conv{n}.conv" for n, part in ((1, "squeeze"), (2, "expand"))
        }
        for group in range(groups):
            names[f"{ours}.groups.{group}.conv"] = f"{theirs}.res2net_block.blocks.{group}.conv.conv"
            names[f"{ours}.groups.{group}.norm"] = f"{theirs}.res2net_block.blocks.{group}.norm.norm"
    followed = {f"mfa.norm.norm.{part}": (dims.mfa_channels,) for part in NORM_PARTS}
    weights = _renamed(tensors, names, dims, besides=followed)
    _last_group_untouched(weights, dims)
    _fold_norm(weights, *(_taken(tensors, name, shape) for name, shape in followed.items()))
    ones = np.ones(dims.embedding, weights["network.embed.bias"].dtype)
    statistics = (ones, 0 * ones, 0 * ones, ones * (1 - NORM_EPS))
    weights |= {f"network.embedding_norm.{part}": array for part, array in zip(NORM_PARTS, statistics, strict=True)}
    return weights, dims


def _last_group_untouched(weights: Arrays, dims: EcapaDims) -> None:
    """The first group of channels, which goes through a Res2 convolution as it is, becomes the last."""
    width = dims.channels // dims.scale
    for block in range(len(dims.dilations)):
        name = f"network.blocks.{block}"
        for part in ("conv.weight", "conv.bias", *(f"norm.{part}" for part in NORM_PARTS)):
            weights[f"{name}.widen.{part}"] = np.roll(weights[f"{name}.widen.{part}"], -width, axis=0)
        weights[f"{name}.merge.conv.weight"] = np.roll(weights[f"{name}.merge.conv.weight"], -width, axis=1)


def _fold_norm(
    weights: Arrays,
    weight: npt.NDArray[Any],
    bias: npt.NDArray[Any],
    running_mean: npt.NDArray[Any],
    running_var: npt.NDArray[Any],
) -> None:
    """Take a batch norm after the aggregation's ReLU into the layers before and behind it.

    It makes s·r + b of a channel r, which is sign(s)·|s|·r + b. The aggregation is scaled by |s|, which a ReLU lets
    through, so that spreads are what they were; signs and b go where means come in: into the attention and the norm
    of what was pooled.
    """
    scale = weight / np.sqrt(running_var + NORM_EPS)
    shift = bias - running_mean * scale
    sign = np.sign(scale)
    weights["network.aggregate.weight"] = weights["network.aggregate.weight"] * np.abs(scale)[:, None, None]
    weights["network.aggregate.bias"] = weights["network.aggregate.bias"] * np.abs(scale)
    frame, mean, spread = np.split(weights["network.pooling.squeeze.weight"], 3, axis=1)
    weights["network.pooling.squeeze.bias"] = weights["network.pooling.squeeze.bias"] + (frame + mean)[:, :, 0] @ shift
    turned = [frame * sign[:, None], mean * sign[:, None], spread]
    weights["network.pooling.squeeze.weight"] = np.concatenate(turned, axis=1)
    count = len(scale)
    gain, offset, centre, variance = (weights[f"network.pooled_norm.{part}"].copy() for part in NORM_PARTS)
    # Where s is 0 the mean is b, whatever comes: that is a constant, and the gain is 0.
    still = np.where(sign == 0, gain[:count] * (shift - centre[:count]) / np.sqrt(variance[:count] + NORM_EPS), 0.0)
    offset[:count] += still
    gain[:count] *= sign
    centre[:count] = sign * (centre[:count] - shift)
    for part, array in zip(NORM_PARTS, (gain, offset, centre, variance), strict=True):
        weights[f"network.pooled_norm.{part}"] = array


def _read(path: Path) -> tuple[Arrays, dict[str, str]]:
    """Every floating-point tensor of a file, float64 or float32, and the file's header."""
    if path.suffix not in SUFFIXES:
        raise WeightsImportError(f"not a file of weights by its name; {', '.join(SUFFIXES)} are, or a bundle's folder")
    header: dict[str, str] = {}
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                loaded: Any = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsImportError(error.strerror or str(error)) from error
    except UnpicklingError as error:
        raise WeightsImportError(
            "holds more than tensors, which may be a program; ask its maker for the state dict alone, or safetensors"
        ) from error
    except (safetensors.SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise WeightsImportError(f"cannot be read as {path.suffix}: {error}") from error
    floats = {name: tensor for name, tensor in _flat(loaded) if tensor.is_floating_point()}
    double = {name: tensor.dtype == torch.float64 for name, tensor in floats.items()}
    return {name: (t if double[name] else t.float()).contiguous().numpy() for name, t in floats.items()}, header


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors in nested mappings, names joined by dots: some save {"model": …}, some {"state_dict": …}."""
    if isinstance(value, Tensor):
        yield name, value.detach()
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))


def _find(tensors: Arrays, layout: Layout | None) -> tuple[Layout, str]:
    """Layout and prefix."""
    wanted: tuple[Layout, ...] = (layout,) if layout else tuple(MARKS)
    found = [
        (each, name.removesuffix(MARKS[each]))
        for each in wanted
        for name in tensors
        if name == MARKS[each] or name.endswith(f".{MARKS[each]}")
    ]
    if not found:
        some = ", ".join(list(tensors)[:3]) or "none"
        marks = " or ".join(f"{MARKS[each]} ({each})" for each in wanted)
        raise WeightsImportError(f"no tensor {marks}; its {len(tensors)} tensors begin with {some}")
    if len(found) > 1:
        places = ", ".join(f"{prefix or 'the top'} ({each})" for each, prefix in found)
        raise WeightsImportError(f"more than one network: under {places}; keep one")
    return found[0]


def _under(tensors: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}


def _own(tensors: Arrays, prefix: str, header: Mapping[str, str]) -> tuple[Arrays, EcapaDims]:
    try:
        dims = msgspec.json.decode(header[_DIMS], type=EcapaDims)
    except KeyError as error:
        raise WeightsImportError(
            "does not say which network it is of; name the bundle that was made of it instead"
        ) from error
    except msgspec.DecodeError as error:
        raise WeightsImportError(f"its header: {error}") from error
    names = {name.removeprefix("network."): name for name in _wanted(dims, 1)}
    modules = {name.rpartition(".")[0]: theirs.rpartition(".")[0] for name, theirs in names.items()}
    only = {name: array for name, array in _under(tensors, prefix).items() if name.startswith("network.")}
    return _renamed(only, modules, dims), dims


def _count(tensors: Mapping[str, Any], pattern: str) -> int:
    """How many tensors have such a name."""
    return sum(re.fullmatch(pattern, name) is not None for name in tensors)


def _sizes(tensors: Mapping[str, npt.NDArray[Any]], groups: int, **names: str) -> dict[str, Any]:
    """Each size is the number of outputs of the convolution named."""
    sizes: dict[str, Any] = {size: int(_there(tensors, name).shape[0]) for size, name in names.items()}
    width = sizes.pop("width")
    if width * (groups + 1) != sizes["channels"]:
        raise WeightsImportError(
            f"{names['width']} is {_there(tensors, names['width']).shape}: {groups} groups of {width} channels and one "
            f"untouched are not {sizes['channels']}"
        )
    return {**sizes, "scale": groups + 1}


def _wanted(dims: EcapaDims, features: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the network's tensors."""
    shapes = parameter_shapes(dims, features, HeadSpec(), 2)
    return {name: shape for name, shape in shapes.items() if name.startswith("network.")}


def _renamed(
    tensors: Mapping[str, npt.NDArray[Any]],
    names: Mapping[str, str],
    dims: EcapaDims,
    besides: Mapping[str, Any] | None = None,
) -> Arrays:
    """The tensors of every module in `names` (ours → theirs), each of the shape that `dims` ask for.

    `besides` are tensors that have no name here and are not too many.
    """
    features = int(_there(tensors, f"{names['entry.conv']}.weight").shape[1])
    weights: Arrays = {}
    used = set(besides or {})
    for name, shape in _wanted(dims, features).items():
        module, _, part = name.removeprefix("network.").rpartition(".")
        if module not in names:
            continue
        theirs = f"{names[module]}.{part}"
        used.add(theirs)
        # A linear layer is a convolution of one frame.
        flat = len(shape) == 3 and shape[2] == 1 and _there(tensors, theirs).ndim == 2
        weights[name] = _taken(tensors, theirs, shape[:2] if flat else shape).reshape(shape)
    surplus = [name for name in tensors if name not in used and not name.startswith(PASSED_OVER)]
    if surplus := [name for name in surplus if not name.endswith("num_batches_tracked")]:
        raise WeightsImportError(f"{surplus[0]}: this layout has no such tensor (nor {len(surplus) - 1} others)")
    return weights


def _there(tensors: Mapping[str, npt.NDArray[Any]], name: str) -> npt.NDArray[Any]:
    if name not in tensors:
        raise WeightsImportError(f"{name} is missing")
    if not tensors[name].ndim:
        raise WeightsImportError(f"{name} is a single number")
    return tensors[name]


def _taken(tensors: Mapping[str, npt.NDArray[Any]], name: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    array = _there(tensors, name)
    if array.shape != shape:
        raise WeightsImportError(f"{name} is {array.shape}, {shape} is wanted")
    return array
