"""The two published ECAPA-TDNN layouts, in plain tensor operations and their own tensor names; nothing of the project.

Written after https://github.com/TaoRuijie/ECAPA-TDNN (model.py) and
https://github.com/speechbrain/speechbrain (speechbrain/lobes/models/ECAPA_TDNN.py, nnet/CNN.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import conv1d, linear, pad

Tensors = dict[str, Tensor]


def taoruijie_shapes(c: int, mfa: int = 1536, attention: int = 256, se: int = 128, scale: int = 8) -> dict[str, tuple]:
    """Of `ECAPA_TDNN(C)` there; its other sizes are fixed at the defaults."""
    width, embedding = c // scale, 192
    shapes: dict[str, tuple] = {}

    def add(name: str, *weight: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = weight
        if bias:
            shapes[f"{name}.bias"] = (weight[0],)

    def norm(name: str, size: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (size,)
        shapes[f"{name}.num_batches_tracked"] = ()

    shapes["torchfbank.0.flipped_filter"] = (1, 1, 2)
    shapes["torchfbank.1.spectrogram.window"] = (400,)
    shapes["torchfbank.1.mel_scale.fb"] = (257, 80)
    add("conv1", c, 80, 5)
    norm("bn1", c)
    for layer in ("layer1", "layer2", "layer3"):
        add(f"{layer}.conv1", c, c, 1)
        norm(f"{layer}.bn1", c)
        for group in range(scale - 1):
            add(f"{layer}.convs.{group}", width, width, 3)
            norm(f"{layer}.bns.{group}", width)
        add(f"{layer}.conv3", c, c, 1)
        norm(f"{layer}.bn3", c)
        add(f"{layer}.se.se.1", se, c, 1)
        add(f"{layer}.se.se.3", c, se, 1)
    add("layer4", mfa, 3 * c, 1)
    add("attention.0", attention, 3 * mfa, 1)
    norm("attention.2", attention)
    add("attention.4", mfa, attention, 1)
    norm("bn5", 2 * mfa)
    add("fc6", embedding, 2 * mfa)
    norm("bn6", embedding)
    return shapes


def speechbrain_shapes(c: int, mfa: int, attention: int = 128, se: int = 128, scale: int = 8) -> dict[str, tuple]:
    """Of `ECAPA_TDNN(80, channels=[c, c, c, c, mfa])` there."""
    width, embedding = c // scale, 192
    shapes: dict[str, tuple] = {}

    def conv(name: str, *weight: int) -> None:
        shapes[f"{name}.weight"] = weight
        shapes[f"{name}.bias"] = (weight[0],)

    def norm(name: str, size: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.norm.{part}"] = (size,)
        shapes[f"{name}.norm.num_batches_tracked"] = ()

    def tdnn(name: str, *weight: int) -> None:
        conv(f"{name}.conv.conv", *weight)
        norm(f"{name}.norm", weight[0])

    tdnn("blocks.0", c, 80, 5)
    for block in ("blocks.1", "blocks.2", "blocks.3"):
        tdnn(f"{block}.tdnn1", c, c, 1)
        for group in range(scale - 1):
            tdnn(f"{block}.res2net_block.blocks.{group}", width, width, 3)
        tdnn(f"{block}.tdnn2", c, c, 1)
        conv(f"{block}.se_block.conv1.conv", se, c, 1)
        conv(f"{block}.se_block.conv2.conv", c, se, 1)
    tdnn("mfa", mfa, 3 * c, 1)
    tdnn("asp.tdnn", attention, 3 * mfa, 1)
    conv("asp.conv.conv", mfa, attention, 1)
    norm("asp_bn", 2 * mfa)
    conv("fc.conv", embedding, 2 * mfa, 1)
    return shapes


def drawn(shapes: dict[str, tuple], seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensors:
    """Random weights, and statistics of batch norms, such that signals neither die nor grow on their way."""
    generator = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            tensors[name] = torch.rand(shape, generator=generator, dtype=dtype) + 0.5
        elif len(shape) > 1:
            fan_in = shape[1] * (shape[2] if len(shape) > 2 else 1)
            tensors[name] = torch.randn(shape, generator=generator, dtype=dtype) * (2.0 / fan_in) ** 0.5
        else:
            tensors[name] = torch.randn(shape, generator=generator, dtype=dtype)
    return tensors


def _norm(t: Tensors, name: str, x: Tensor) -> Tensor:
    mean, var, weight, bias = (t[f"{name}.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
    shape = (1, -1, 1)[: x.ndim]
    return (x - mean.view(shape)) / torch.sqrt(var.view(shape) + 1e-5) * weight.view(shape) + bias.view(shape)


def taoruijie_embedding(t: Tensors, features: Tensor) -> Tensor:
    """(batch, 80, frames) → (batch, 192). `t` by the names of `taoruijie_shapes`."""

    def conv(name: str, x: Tensor, dilation: int = 1) -> Tensor:
        weight = t[f"{name}.weight"]
        return conv1d(x, weight, t[f"{name}.bias"], dilation=dilation, padding=dilation * (weight.shape[2] // 2))

    def block(name: str, x: Tensor, dilation: int) -> Tensor:
        out = _norm(t, f"{name}.bn1", torch.relu(conv(f"{name}.conv1", x)))
        width = t[f"{name}.convs.0.weight"].shape[0]
        chunks = torch.split(out, width, dim=1)
        done: list[Tensor] = []
        for i, chunk in enumerate(chunks[:-1]):
            sp = chunk if i == 0 else done[-1] + chunk
            done.append(_norm(t, f"{name}.bns.{i}", torch.relu(conv(f"{name}.convs.{i}", sp, dilation))))
        out = torch.cat([*done, chunks[-1]], dim=1)
        out = _norm(t, f"{name}.bn3", torch.relu(conv(f"{name}.conv3", out)))
        gate = torch.relu(conv(f"{name}.se.se.1", out.mean(dim=2, keepdim=True)))
        return out * torch.sigmoid(conv(f"{name}.se.se.3", gate)) + x

    x = _norm(t, "bn1", torch.relu(conv("conv1", features)))
    x1 = block("layer1", x, 2)
    x2 = block("layer2", x + x1, 3)
    x3 = block("layer3", x + x1 + x2, 4)
    x = torch.relu(conv("layer4", torch.cat([x1, x2, x3], dim=1)))
    frames = x.shape[2]
    mean = x.mean(dim=2, keepdim=True).repeat(1, 1, frames)
    deviation = torch.sqrt(torch.var(x, dim=2, keepdim=True).clamp(min=1e-4)).repeat(1, 1, frames)
    a = torch.relu(conv("attention.0", torch.cat([x, mean, deviation], dim=1)))
    w = torch.softmax(conv("attention.4", torch.tanh(_norm(t, "attention.2", a))), dim=2)
    mu = torch.sum(x * w, dim=2)
    sg = torch.sqrt((torch.sum(x**2 * w, dim=2) - mu**2).clamp(min=1e-4))
    x = _norm(t, "bn5", torch.cat([mu, sg], dim=1))
    return _norm(t, "bn6", linear(x, t["fc6.weight"], t["fc6.bias"]))


def speechbrain_embedding(t: Tensors, features: Tensor) -> Tensor:
    """(batch, 80, frames) → (batch, 192). `t` by the names of `speechbrain_shapes`."""

    def conv(name: str, x: Tensor, dilation: int = 1) -> Tensor:
        weight = t[f"{name}.weight"]
        if width := dilation * (weight.shape[2] - 1) // 2:
            x = pad(x, (width, width), mode="reflect")
        return conv1d(x, weight, t[f"{name}.bias"], dilation=dilation)

    def tdnn(name: str, x: Tensor, dilation: int = 1) -> Tensor:
        return _norm(t, f"{name}.norm.norm", torch.relu(conv(f"{name}.conv.conv", x, dilation)))

    def res2net(name: str, x: Tensor, dilation: int) -> Iterator[Tensor]:
        scale = 1 + sum(key.startswith(f"{name}.blocks.") and key.endswith("conv.weight") for key in t)
        for i, chunk in enumerate(torch.chunk(x, scale, dim=1)):
            if i == 0:
                y = chunk
            elif i == 1:
                y = tdnn(f"{name}.blocks.0", chunk, dilation)
            else:
                y = tdnn(f"{name}.blocks.{i - 1}", chunk + y, dilation)
            yield y

    def block(name: str, x: Tensor, dilation: int) -> Tensor:
        y = tdnn(f"{name}.tdnn1", x)
        y = torch.cat(list(res2net(f"{name}.res2net_block", y, dilation)), dim=1)
        y = tdnn(f"{name}.tdnn2", y)
        gate = torch.relu(conv(f"{name}.se_block.conv1.conv", y.mean(dim=2, keepdim=True)))
        return torch.sigmoid(conv(f"{name}.se_block.conv2.conv", gate)) * y + x

    def statistics(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        mean = (weight * x).sum(dim=2)
        return mean, torch.sqrt((weight * (x - mean[:, :, None]) ** 2).sum(dim=2).clamp(1e-12))

    x = tdnn("blocks.0", features)
    outputs = []
    for number, dilation in ((1, 2), (2, 3), (3, 4)):
        x = block(f"blocks.{number}", x, dilation)
        outputs.append(x)
    x = tdnn("mfa", torch.cat(outputs, dim=1))
    mean, std = statistics(x, torch.full_like(x[:, :1], 1 / x.shape[2]))
    context = torch.cat([x, mean[:, :, None].expand_as(x), std[:, :, None].expand_as(x)], dim=1)
    w = torch.softmax(conv("asp.conv.conv", torch.tanh(tdnn("asp.tdnn", context))), dim=2)
    pooled = _norm(t, "asp_bn.norm", torch.cat(statistics(x, w), dim=1))
    return conv("fc.conv", pooled[:, :, None])[:, :, 0]
