"""`aewatch evaluate`: how good a bundle is on a labelled data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploy.cli.session import plain_errors

if TYPE_CHECKING:
    from deploy.evaluate_bundle import Evaluated


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--data",
    metavar="DATASET",
    required=True,
    type=click.Path(path_type=Path, exists=True),
    help="Folder of class folders, or a CSV or Parquet table.",
)
@click.option(
    "--split",
    type=click.Choice(("test", "validation", "train", "all")),
    help="Part of the data set.  [default: test; else what the bundle was not trained on; else all]",
)
@click.option("--fold", metavar="F", help="This fold of the data set; the baseline learns from the others.")
@click.option(
    "--train-data",
    metavar="DATASET",
    type=click.Path(path_type=Path, exists=True),
    help="What the baseline learns from.  [default: the training part of --data]",
)
@click.option("--no-baseline", is_flag=True, help="Leave the baseline out.")
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the report as JSON, text and HTML, and for each picture.",
)
@click.option(
    "--html", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False), help="Write the report as one HTML page."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object with every figure.")
@click.option("--device", metavar="DEVICE", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def evaluate(
    bundle: Path,
    data: Path,
    split: str | None,
    fold: str | None,
    train_data: Path | None,
    no_baseline: bool,
    out: Path | None,
    html: Path | None,
    as_json: bool,
    device: str,
) -> None:
    """Measure BUNDLE, a bundle or the folder of a training, on the recordings of DATASET.

    Accuracy, macro-F1, precision, recall and F1 of each label, accuracy at each position, the confusion matrix,
    calibration and speed, with ranges; beside it random forests on statistics and spectrum bands, which learned from
    the same training part. What of the data set the bundle was trained on is told.
    """
    if split and fold:
        raise click.UsageError("--split and --fold: choose one")
    if no_baseline and train_data:
        raise click.UsageError("--train-data is what the baseline learns from; leave out --no-baseline")
    import shlex
    import sys

    import msgspec

    from deploy.cli.data import progress
    from deploy.evaluate_bundle import Order, evaluate_bundle, write_report
    from model.evaluation.report import report

    order = Order(
        bundle=bundle,
        data=data,
        split=split,
        fold=fold,
        baseline=not no_baseline,
        train_data=train_data,
        device=device,
        command=f"aewatch {shlex.join(sys.argv[1:])}",
    )
    with plain_errors(ValueError, OSError), progress("evaluating") as on_progress:
        found = evaluate_bundle(
            order, say=lambda text: click.echo(text, err=True), on_recording=on_progress, on_window=on_progress
        )
    evaluation = found.evaluation
    click.echo(msgspec.json.encode(evaluation) if as_json else report(evaluation))
    with plain_errors(ValueError, OSError):
        written = write_report(found, out) if out else []
        if html:
            written.append(_write_page(found, html))
    for path in written:
        click.echo(f"wrote {path}", err=True)


def _write_page(found: Evaluated, path: Path) -> Path:
    from model.evaluation.report_html import report_html

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report_html(found.evaluation, found.history), encoding="utf-8")
    return path
