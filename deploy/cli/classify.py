"""`aewatch classify`: what the pipeline would find in recordings, without Kafka and Redis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploy.cli.produce import full_scale_option, open_all
from deploy.cli.session import plain_errors, settings

if TYPE_CHECKING:
    from stream.alerts import Alert
    from stream.predictions import Prediction
    from stream.records import Frame


@click.command()
@click.argument("recordings", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--bundle", metavar="DIR", help="Model bundle (default: the settings').")
@click.option("--run", "run_name", default="classify", show_default=True, help="Name of the run; part of sensor ids.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line: predictions, alerts, then a summary.")
@click.option("--plot", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False), help="Write a picture.")
@full_scale_option
@click.option("--alerts-only", is_flag=True, help="Leave out the windows.")
def classify(
    recordings: tuple[Path, ...],
    bundle: str | None,
    run_name: str,
    as_json: bool,
    plot: Path | None,
    full_scale_v: float,
    alerts_only: bool,
) -> None:
    """Cut RECORDINGS (WAV, FLAC, OGG, Vallen .tradb) into windows, infer, and apply the alarm rules.

    The same modules as in the stream, so its alerts are those that a replay of the files under the same run name
    raises: the same ids, once each.
    """
    in_force = settings()
    import sys

    import msgspec

    from deploy.pipeline import alarm_rules, build_engine, window_spec
    from model.bundle import BundleError
    from producers.sources import RecordingError
    from stream.alarms import RulesError
    from stream.classify import classify as classify_frames

    encoder = msgspec.json.Encoder()
    tally: Counter[str] = Counter()
    found: list[Alert] = []
    rejected: list[str] = []
    with plain_errors(BundleError, RecordingError, RulesError):
        sources = open_all(recordings, run_name, full_scale_v)
        engine = build_engine(in_force, bundle)
        spec, rules = window_spec(engine.card), alarm_rules(in_force, engine.card)
        picture = None
        if plot:
            from stream.classify_plot import Picture

            picture = Picture(engine.card)
        for path, source in zip(recordings, sources, strict=True):
            frames = _with_progress(source, source.total_frames, path.name, sys.stderr.isatty())
            for batch in classify_frames(frames, engine, spec, rules, in_force.worker.feature_threshold_db_ae):
                if picture:
                    picture.add(batch)
                for prediction in batch.predictions:
                    tally[prediction.label] += 1
                    if alerts_only:
                        continue
                    click.echo(
                        encoder.encode({"kind": "prediction", **msgspec.structs.asdict(prediction)})
                        if as_json
                        else window_line(prediction)
                    )
                for alert in batch.alerts:
                    fields = {"kind": "alert", **msgspec.to_builtins(alert)}
                    click.echo(encoder.encode(fields) if as_json else alert_line(alert))
                found += batch.alerts
                rejected += batch.rejected
    if as_json:
        summary = {"windows": tally.total(), "labels": tally, "alerts": len(found), "rejected": rejected}
        click.echo(encoder.encode({"kind": "summary", **summary}))
    else:
        for reason in rejected:
            click.echo(f"not used: {reason}", err=True)
        labels = ", ".join(f"{count} {label}" for label, count in tally.most_common())
        click.echo(f"{tally.total()} windows ({labels or 'none: shorter than one window?'}), {len(found)} alerts")
    if picture and plot:
        with plain_errors(OSError, ValueError):
            for written in picture.write(plot):
                click.echo(f"wrote {written}", err=True)


def _with_progress(frames: Iterable[Frame], total: int | None, name: str, visible: bool) -> Iterator[Frame]:
    """The frames, with a bar on stderr where somebody sees it."""
    if not visible:
        yield from frames
        return
    import rich.progress
    from rich.console import Console

    yield from rich.progress.track(frames, description=name, total=total, console=Console(stderr=True), transient=True)


def window_line(prediction: Prediction) -> str:
    """One window for a person."""
    start_s = prediction.start_sample / prediction.source_rate_hz
    likely = sorted(prediction.probabilities.items(), key=lambda item: -item[1])[:2]
    names = "  ".join(f"{name} {probability:.3f}" for name, probability in likely)
    unknown = "  unknown" if prediction.unknown else ""
    return f"{prediction.sensor}  {start_s:10.4f} s  {prediction.features.peak_db_ae:5.1f} dB_AE  {names}{unknown}"


def alert_line(alert: Alert) -> str:
    """One alert for a person."""
    peak = f"  {alert.features.peak_db_ae:.1f} dB_AE" if alert.features else ""
    return (
        f"ALERT {alert.transition:<9} {alert.condition}  {alert.sensor}  sample {alert.first_sample}  "
        f"{alert.priority}  {alert.probability:.3f}{peak}  {alert.id}"
    )
