"""The README of a bundle, from what its training found. Pure."""

from __future__ import annotations

from model.architecture import FrontEndSpec, count_parameters
from model.bundle import BundleCard
from model.metrics import Scores

FEW_WINDOWS = 50
FEW_POSITIONS = 4
WEAK_RECALL = 0.8

_TEXT = """\
# {name}

An ECAPA-TDNN of {parameters:,} parameters that tells {count} things apart in what an acoustic-emission sensor hears:
{labels}.

## What goes in and what comes out
Windows of {window:,} samples ({window_ms:.4g} ms) every {hop:,} at {rate}. {level}
The front end makes {features} features of each frame ({n_fft} point transform, window {win_length}, hop {hop_length},
{n_mels} mel filters{context}). Out come calibrated probabilities of the labels (temperature {temperature:.3g}), an
embedding of {embedding} numbers, and an unknown score ({unknown}, threshold {threshold:.4g}).

## Data
{data} (SHA-256 of windows and labels `{data_hash}`). Parted by {split}.

{counts}
{positions}{note}
## Results on the validation windows
They set the temperature and the unknown threshold too, so expect a little less elsewhere. Rows are true, columns
recognised:

{table}

Macro-F1 {macro_f1:.2f} %. Mean negative log likelihood {nll_before:.4g}, after calibration {nll_after:.4g}. Of the
windows, {strange:.2f} % are wrongly called unknown.

## Limits
{limits}

## How it was made
```
{command}
```
{made}, with this recipe:

```toml
{recipe}
```
"""


def model_card(card: BundleCard, found: Scores, split_note: str, fold: str | None, device: str) -> str:
    """Markdown. `found` is of the validation windows; `split_note` is what a reader must know of the split."""
    training, front_end, metrics = card.training, card.front_end, card.metrics
    rate = f"{card.rate_hz:,.10g} Hz"
    rate += ", nominal: samples of any rate go in as they are" if card.rate_is_nominal else ""
    positions = [f"- {part} positions: {which}\n" for part, which in training.positions.items()]
    return _TEXT.format(
        name=card.name,
        parameters=count_parameters(card.shapes, ""),
        count=len(card.labels),
        labels=", ".join(f"{label.name} ({label.role})" for label in card.labels),
        window=card.window_samples,
        window_ms=1e3 * card.window_samples / card.rate_hz,
        hop=card.hop_samples,
        rate=rate,
        level=_level(front_end),
        context=f", {front_end.context_rows} statistics of the whole window" if front_end.context_rows else "",
        features=front_end.features,
        n_fft=front_end.n_fft,
        win_length=front_end.win_length,
        hop_length=front_end.hop_length,
        n_mels=front_end.n_mels,
        temperature=card.temperature,
        embedding=card.network.embedding,
        unknown=card.unknown.kind,
        threshold=card.unknown.threshold,
        data=training.data,
        data_hash=training.data_hash,
        split=training.split + (f"; fold {fold} was left out of everything" if fold is not None else ""),
        counts=_counts(card),
        positions="\n" + "".join(positions) if positions else "",
        note=f"\n{split_note}\n" if split_note else "",
        table=found.table(card.label_names),
        macro_f1=100 * found.macro_f1,
        nll_before=metrics["negative_log_likelihood"]["as_trained"],
        nll_after=metrics["negative_log_likelihood"]["calibrated"],
        strange=100 * metrics["called_unknown"],
        limits="\n".join(f"- {limit}" for limit in _limits(card, found)),
        command=training.command,
        made=f"On {training.date}, seed {training.seed}{f' ({device})' if device else ''}",
        recipe=training.recipe.strip(),
    )


def _level(front_end: FrontEndSpec) -> str:
    if front_end.level == "none":
        return "They go in at the level at which they come: the gain of a sensor matters."
    if front_end.context_rows:
        return "Each is scaled to unit RMS, but how loud it was is among the statistics: the gain of a sensor matters."
    return "Each is scaled to unit RMS: the gain of a sensor does not matter."


def _counts(card: BundleCard) -> str:
    rows = ["| label | role | " + " | ".join(f"{part} windows" for part in card.training.counts) + " |"]
    rows.append("|---|---|" + "---|" * len(card.training.counts))
    for label in card.labels:
        numbers = (f"{counts[label.name]:,}" for counts in card.training.counts.values())
        rows.append(f"| {label.name} | {label.role} | {' | '.join(numbers)} |")
    return "\n".join(rows) + "\n"


def _limits(card: BundleCard, found: Scores) -> list[str]:
    """What these facts forbid to expect."""
    training = card.training
    limits = []
    if training.split.startswith("random"):
        limits.append(
            "Windows were parted at random: validation windows come from recordings that were trained on too. The "
            "figures above say nothing about recordings that are new."
        )
    if few := [f"{name} ({count:,})" for name, count in training.counts["train"].items() if count < FEW_WINDOWS]:
        limits.append(f"Fewer than {FEW_WINDOWS} training windows of {', '.join(few)}.")
    if unseen := [name for name, count in training.counts["validation"].items() if not count]:
        limits.append(f"No validation window of {', '.join(unseen)}: nothing is known about how these are recognised.")
    rows = found.confusion.sum(axis=1)
    weak = [
        f"{name} ({100 * found.recall[i]:.1f} %)"
        for i, name in enumerate(card.label_names)
        if rows[i] and found.recall[i] < WEAK_RECALL
    ]
    if weak:
        limits.append(f"Recall under {100 * WEAK_RECALL:.0f} %: {', '.join(weak)}.")
    if "train" not in training.positions:
        limits.append(
            "Nobody said at which sensor positions the data were recorded; a new position may be another world."
        )
    elif (heard := int(training.positions["train"].partition(":")[0])) < FEW_POSITIONS:
        limits.append(f"Trained at {heard} sensor position{'s' if heard > 1 else ''} only.")
    if not any(label.role == "background" for label in card.labels):
        limits.append("No label says that nothing happens: what is not called unknown is taken for one of the labels.")
    limits.append(
        f"It knows its {len(card.labels)} labels. The unknown score catches what lies far from all of them, "
        "which is not everything."
    )
    return limits
