"""The `aewatch` command. A subcommand's module is imported only when it runs, so that `--help` is instant."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

#: subcommand → (module, function, one line of help)
COMMANDS = {
    "up": ("stack", "up", "Start the local Kafka and Redis-compatible server and keep them running."),
    "down": ("stack", "down", "Stop what `aewatch up` started."),
    "status": ("stack", "status", "Is the local stack running, and where?"),
    "produce": ("produce_sensors", "produce", "Publish the sensors of a file, by way of the disk while Kafka is away."),
    "simulate": ("produce", "simulate", "Publish simulated sensors in real time."),
    "replay": ("replay", "replay", "Publish recordings: at their own pace, a multiple of it, or as fast as possible."),
    "window": ("run", "window", "Run a window agent: frames in, windows out."),
    "worker": ("run", "worker", "Run a worker: windows in, predictions and alerts out."),
    "alerts": ("alerts", "alerts", "Follow alerts, acknowledge them, shelve them."),
    "sensors": ("alerts", "sensors", "Which sensors are there, and how are they?"),
    "evaluate": ("evaluate", "evaluate", "How good is a bundle on a labelled data set? With a baseline beside it."),
    "classify": ("classify", "classify", "Windows, predictions and alerts of recordings, without Kafka and Redis."),
    "train": ("train", "train", "Train a model on recordings with labels."),
    "data": ("data", "data", "Look at a labelled data set before training on it."),
    "bundle": ("bundle", "bundle", "Make a bundle of a training, import weights, show a bundle."),
    "model": ("model", "model", "Look at a model bundle; swap the workers' model without stopping."),
    "dead-letters": ("dead_letters", "dead_letters", "What could not be used, and why."),
    "config": ("config", "config", "Show the settings in force."),
    "experiment": ("experiment", "experiment", "Train and test recipes side by side: the figures of docs/results.md."),
    "chaos": ("chaos", "chaos", "Break a running pipeline in every way, and compare with the oracle."),
    "bench": ("bench", "bench", "Measure this machine."),
    "demo": ("demo", "demo", "Run the whole pipeline on simulated sensors for a minute and check the result."),
}


class LazyGroup(click.Group):
    """Knows its subcommands by name and help line; imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which a newcomer needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module that holds the subcommand."""
        if cmd_name not in COMMANDS:
            return None
        module, function, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(f"deploy.cli.{module}"), function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Help from the table above, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the nearest subcommand when there is no such one."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise click.UsageError(f"No such command '{args[0]}'.{hint} `aewatch --help` lists them.")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="Settings file (default: aewatch.toml).",
)
@click.version_option(package_name="aewatch")
def cli(config: str | None) -> None:
    """Acoustic-emission monitoring: sensor frames in, fault alerts out, each exactly once."""
    if config:
        os.environ["AEWATCH_CONFIG"] = config


def main(arguments: list[str] | None = None) -> Any:
    """Entry point: errors that a user can mend end with one line and no traceback."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        return cli.main(args=[_at_home(argument) for argument in given], prog_name="aewatch", standalone_mode=True)
    except KeyboardInterrupt:
        sys.exit(130)


def _at_home(argument: str) -> str:
    """`~/…` as the user's folder, also where a shell leaves it as it is: in quotes, or behind `--option=`."""
    option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    return option + equals + (os.path.expanduser(value) if value.startswith("~/") else value)
