"""A bundle or a bare architecture in words and a table: layers, output shapes, parameters."""

from __future__ import annotations

import os
from dataclasses import dataclass

from model.architecture import EcapaDims, FrontEndSpec, HeadSpec, count_parameters, parameter_shapes
from model.bundle import PAPER_LABELS, BundleCard, read_card

PAPER_WINDOW_SAMPLES = 65_536


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One line of the table."""

    layer: str
    output: str  #: shape for one window
    parameters: int  #: trainable


def layer_rows(front_end: FrontEndSpec, dims: EcapaDims, head: HeadSpec, labels: int, samples: int) -> list[LayerRow]:
    """Layers of the whole recogniser in the order of the data, for a window of `samples` samples."""
    shapes = parameter_shapes(dims, front_end.features, head, labels, front_end.context_rows)
    frames = front_end.frames(samples)

    def count(name: str) -> int:
        return count_parameters(shapes, name)

    c, mfa = dims.channels, dims.mfa_channels
    rows = [
        LayerRow("samples", f"{samples}", 0),
        LayerRow(
            f"log-mel, n_fft {front_end.n_fft}, window {front_end.win_length}, hop {front_end.hop_length}"
            + (f", {front_end.context_rows} statistics" if front_end.context_rows else ""),
            f"{front_end.features} × {frames}",
            0,
        ),
        LayerRow("convolution 5, ReLU, BN", f"{c} × {frames}", count("network.entry.")),
    ]
    for number, dilation in enumerate(dims.dilations):
        name = f"SE-Res2Block {number + 1}: kernel 3, dilation {dilation}, scale {dims.scale}"
        rows.append(LayerRow(name, f"{c} × {frames}", count(f"network.blocks.{number}.")))
    rows += [
        LayerRow("concatenation", f"{c * len(dims.dilations)} × {frames}", 0),
        LayerRow("convolution 1, ReLU", f"{mfa} × {frames}", count("network.aggregate.")),
        LayerRow(f"attentive statistics, bottleneck {dims.attention}", f"{2 * mfa}", count("network.pooling.")),
        LayerRow("BN", f"{2 * mfa}", count("network.pooled_norm.")),
        LayerRow("linear, BN: the embedding", f"{dims.embedding}", count("network.embed")),
        LayerRow(f"{head.kind} head", f"{labels}", count("head.")),
    ]
    if front_end.context_rows:
        name = f"beside it, linear on {front_end.context_rows} statistics"
        rows.append(LayerRow(name, f"{labels}", count("statistics.")))
    return rows


def describe_architecture(channels: int) -> str:
    """The paper's network with `channels` channels, for its front end and the demo's window and labels.

    Raises
    ------
    ValueError
        If there can be no such network.
    """
    dims, front_end, head = EcapaDims(channels=channels), FrontEndSpec(), HeadSpec()
    labels = len(PAPER_LABELS)
    title = f"ECAPA-TDNN, {channels} channels, untrained; windows of {PAPER_WINDOW_SAMPLES} samples, {labels} labels"
    return "\n".join([title, "", *_table(front_end, dims, head, labels, PAPER_WINDOW_SAMPLES)])


def describe_bundle(bundle: str | os.PathLike[str]) -> str:
    """The bundle in folder `bundle`: what it is, its layers, and how it did.

    Raises
    ------
    BundleError
        If its card cannot be read.
    """
    card = read_card(bundle)
    facts = [
        f"{card.name} {card.version}, from {os.fspath(bundle)}",
        "",
        *_facts(card),
        "",
        *_table(card.front_end, card.network, card.head, len(card.labels), card.window_samples),
    ]
    return "\n".join(facts)


def _facts(card: BundleCard) -> list[str]:
    rate = f"{card.rate_hz:,.0f} Hz"
    rate += " nominal: samples of any rate go in as they are" if card.rate_is_nominal else ", others are resampled"
    milliseconds = 1e3 / card.rate_hz
    labels = ", ".join(f"{label.name} ({label.role})" for label in card.labels)
    facts = [
        ("rate", rate),
        ("window", f"{card.window_samples:,} samples, {card.window_samples * milliseconds:.1f} ms"),
        ("hop", f"{card.hop_samples:,} samples, {card.hop_samples * milliseconds:.1f} ms"),
        ("labels", labels),
        ("level", f"{card.front_end.level}"),
        ("temperature", f"{card.temperature:.3g}"),
        ("unknown", f"{card.unknown.kind} over {card.unknown.threshold:.3g}"),
        ("trained on", card.training.data),
        ("by", f"{card.training.command}, {card.training.date}"),
    ]
    windows = card.metrics.get("windows")
    if isinstance(windows, dict) and "accuracy" in windows:
        held_out = f"accuracy {100 * windows['accuracy']:.2f} % of {windows['windows']:,} windows"
        facts.append(("held out", f"{held_out}: {card.metrics.get('data', 'data not named')}"))
    return [f"{name:<12}{value}" for name, value in facts if value.strip(", ")]


def _table(front_end: FrontEndSpec, dims: EcapaDims, head: HeadSpec, labels: int, samples: int) -> list[str]:
    rows = layer_rows(front_end, dims, head, labels, samples)
    shapes = parameter_shapes(dims, front_end.features, head, labels, front_end.context_rows)
    network, whole = count_parameters(shapes), count_parameters(shapes, "")
    width = max(len(row.layer) for row in rows) + 2
    lines = [f"{'layer':<{width}}{'output':>14}{'parameters':>14}"]
    lines += [
        f"{row.layer:<{width}}{row.output:>14}{f'{row.parameters:,}' if row.parameters else '–':>14}" for row in rows
    ]
    lines.append(f"{'network, without front end and head':<{width}}{'':>14}{network:>14,}")
    lines.append(f"{'everything':<{width}}{'':>14}{whole:>14,}")
    return lines
