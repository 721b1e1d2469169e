"""The README of the demo bundle, from what its training found. Pure."""

from __future__ import annotations

from deploy.demo_rehearsal import Rehearsal
from model.bundle import BundleCard
from model.metrics import Scores

_TEXT = """\
# The demo bundle

An ECAPA-TDNN of {parameters:,} parameters (the paper's has 15,444,544) that tells five things apart in what a simulated
acoustic-emission sensor hears: {labels}. It comes with aewatch so that `make demo` and a first
`aewatch classify` have something to run. It has never heard a real sensor.

## What goes in and what comes out
Windows of {window:,} samples ({window_ms:.0f} ms) every {hop:,} at {rate:,.0f} Hz, scaled to unit RMS so that the
gain of a sensor does not matter; then the paper's front end (mel filters for a nominal 16 kHz). Out come calibrated
probabilities of the five labels (temperature {temperature:.2f}), an embedding, and an unknown score ({unknown},
threshold {threshold:.2f}).

## Data
All simulated by `producers.simulator`: source, way through a plate, sensor and background are each drawn per position.
{data}.

{positions}

The eight positions of the demo are in none of these.

Every second window lies anywhere around its event, the others cut it somewhere within 0.3 to 40 ms after an impact. A
window in which an event stands out from the noise carries its label, however little of it there is; windows in doubt
are left out. Label counts are balanced in training; augmentation is a time shift of up to {shift_ms:.1f} ms,
polarity, short random filters and coloured noise at 0 to 40 dB.

## Results on positions that were heard in neither training nor validation
{windows:,} single windows, half of which cut their event (rows are true, columns recognised):

{table}

Streams like the demo's with the default alarm rules (2 of 3 windows over 0.6; a pencil-lead break: one over 0.8):

| windows | events | recognised | missed | alerts without a cause |
|---|---|---|---|---|
| {stream_windows:,} | {events} | {recognised} | {missed} | {causeless} |

These figures are from simulated data and cannot be compared with the paper's 93.73 %, whose recordings are not public.

## Limits
- A simulation is cleaner than a plant: one event at a time, steady background, no interference, no ageing couplant. For
  your machine train on your recordings.
- In the first one or two milliseconds a drop is a knock, and any impact may be a pencil-lead break. Single windows that
  end so soon after an onset are a doubt; the next window decides.
- The unknown threshold lies a tenth over everything heard in streams at the validation positions: trains of spikes and
  drop-outs are told as unknown, but a steady tone or white noise passes for background, and other sounds may pass for a
  label.

## Reproduce
```
{command}
```
Seed {seed}, {date}. The same machine, thread count and library versions give the same weights; others give weights
that differ in the last digits and recognise the same.
"""


def model_card(card: BundleCard, parameters: int, shift_share: float, found: Scores, rehearsal: Rehearsal) -> str:
    """Markdown. `found` is of single windows and `rehearsal` of streams, both at the test positions.

    `shift_share` of a window's length is how far training moved it at most, either way.
    """
    positions = "\n".join(f"- {part} positions: {which}" for part, which in card.training.positions.items())
    streams = rehearsal.as_card()
    return _TEXT.format(
        parameters=parameters,
        labels=", ".join(name.replace("_", " ") for name in card.label_names),
        window=card.window_samples,
        window_ms=1e3 * card.window_samples / card.rate_hz,
        hop=card.hop_samples,
        rate=card.rate_hz,
        temperature=card.temperature,
        unknown=card.unknown.kind,
        threshold=card.unknown.threshold,
        data=card.training.data[0].upper() + card.training.data[1:],
        positions=positions,
        shift_ms=1e3 * shift_share * card.window_samples / card.rate_hz,
        windows=int(found.confusion.sum()),
        table=found.table(card.label_names),
        stream_windows=streams["windows"],
        events=streams["events"],
        recognised=streams["events_recognised"],
        missed=streams["events_missed"],
        causeless=streams["alerts_without_cause"],
        command=card.training.command,
        seed=card.training.seed,
        date=card.training.date,
    )
