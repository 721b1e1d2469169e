"""`aewatch bundle`: from a training to a bundle, from other people's weights to a start, and what a bundle is."""

from __future__ import annotations

from pathlib import Path

import click

from deploy.cli.role_option import role_option
from deploy.cli.session import plain_errors

LAYOUTS = ("auto", "taoruijie", "speechbrain")


@click.group()
def bundle() -> None:
    """Make a bundle of a training, import weights to begin one with, show a bundle."""


@bundle.command(short_help="The bundle of a training anew: name, roles, checkpoint.")
@click.argument("run", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option(
    "--out", metavar="DIR", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder to write."
)
@click.option(
    "--checkpoint",
    type=click.Choice(("best", "last")),
    default="best",
    show_default=True,
    help="Weights of the epoch that the recipe keeps, or of the last step.",
)
@click.option(
    "--data",
    metavar="DATASET",
    type=click.Path(path_type=Path, exists=True),
    help="Where the data set lies now.  [default: where it lay]",
)
@click.option("--name", help="What the bundle is called.  [default: as RUN]")
@role_option("[default: as in the training]")
@click.option("--device", metavar="DEVICE", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def make(
    run: Path, out: Path, checkpoint: str, data: Path | None, name: str | None, roles: dict[str, str], device: str
) -> None:
    """Write the bundle of the training in folder RUN, calibrated and measured anew on its validation part.

    `aewatch train` writes RUN/bundle by itself; this is for another name, other roles or another checkpoint.
    """
    from deploy.bundle_run import bundle_run
    from deploy.cli.data import progress

    with plain_errors(ValueError), progress("reading") as on_recording:
        card = bundle_run(
            run,
            out,
            checkpoint="last" if checkpoint == "last" else "best",
            data=data,
            name=name,
            roles=roles,
            device=device,
            on_recording=on_recording,
        )
    found = card.metrics["windows"]
    scores = f"accuracy {100 * found['accuracy']:.2f} %, macro-F1 {100 * found['macro_f1']:.2f} %"
    click.echo(f"{out}: bundle {card.name} {card.version}; on the validation part {scores}")


@bundle.command("import", short_help="Other people's ECAPA-TDNN weights, to begin with.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option(
    "--out",
    metavar="FILE.safetensors",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="To write.",
)
@click.option(
    "--layout", type=click.Choice(LAYOUTS), default="auto", show_default=True, help="Whose names the tensors have."
)
def import_(file: Path, out: Path, layout: str) -> None:
    """Take ECAPA-TDNN weights of TaoRuijie/ECAPA-TDNN or SpeechBrain over, to begin a training with.

    FILE is .safetensors, or what torch.save wrote of tensors and nothing else (.pt, .pth, .model, .ckpt, .bin).
    """
    import math

    from model.training.import_weights import WeightsImportError, import_file, write_initial

    if out.suffix != ".safetensors":
        raise click.BadParameter(f"{out}: name a .safetensors file", param_hint="--out")
    with plain_errors(WeightsImportError, OSError):
        weights, dims = import_file(
            file, "taoruijie" if layout == "taoruijie" else "speechbrain" if layout == "speechbrain" else None
        )
        write_initial(out, weights, dims)
    numbers = sum(
        math.prod(array.shape) for name, array in weights.items() if not name.endswith(("running_mean", "running_var"))
    )
    bins = weights["network.entry.conv.weight"].shape[1]
    click.echo(
        f"{out}: {numbers:,} parameters, {dims.channels} channels, {bins} mel bins, variant {dims.variant}; "
        f"aewatch train --init {out} begins with them"
    )


@bundle.command(short_help="Layers, sizes, labels, version and scores of a bundle.")
@click.argument("bundle")
def show(bundle: str) -> None:
    """Print layers, shapes and parameter counts, rate, labels, version and scores of BUNDLE."""
    from model.bundle import BundleError
    from model.describe import describe_bundle

    with plain_errors(BundleError):
        click.echo(describe_bundle(bundle))
