"""`aewatch chaos`: break everything, and compare with the oracle."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click

from deploy.cli.session import plain_errors, settings


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0), help="Run plan after plan for so long (default: one plan).")
@click.option("--seed", type=click.IntRange(0), help="Of the first plan; the next ones count on (default: the time).")
@click.option("--faults", type=click.IntRange(1), help="Faults in one plan (default: each kind once, and eight more).")
@click.option("--fault", "named", multiple=True, metavar="KIND", help="Only this kind, as 'kill worker'; repeatable.")
@click.option("--sensors", default=32, show_default=True, type=click.IntRange(1, 256), help="How many sensors.")
@click.option("--takes-s", default=90.0, show_default=True, type=click.FloatRange(10), help="How long a replay takes.")
@click.option("--cluster", is_flag=True, help="Use the Kafka and Redis of the settings, and break processes only.")
@click.option("--keep", metavar="DIR", type=click.Path(path_type=Path, file_okay=False), help="Keep logs and data.")
@click.option("--json", "as_object", is_flag=True, help="One JSON object at the end.")
def chaos(
    minutes: float | None,
    seed: int | None,
    faults: int | None,
    named: tuple[str, ...],
    sensors: int,
    takes_s: float,
    cluster: bool,
    keep: Path | None,
    as_object: bool,
) -> None:
    """Break a running pipeline in every way, and hold what came out against `aewatch classify`.

    Recordings of 32 sensors are replayed through Kafka, two window agents, two workers and Redis, each a process,
    while these are killed, frozen, cut off, restarted, poisoned, told the wrong time and given other models. Every
    prediction, alert and dead letter must then be there, once. Exit status 1, and the seed, if one is not.

    With --cluster, topics and keys of its own are made in your Kafka and Redis; the topics are deleted afterwards.
    """
    in_force = settings()
    from deploy.chaos.campaign import Campaign, run_campaign
    from deploy.chaos.faults import KINDS, kinds_named
    from deploy.chaos.report import as_json, passed, table, table_text
    from deploy.local_stack import StackError
    from deploy.processes import ProcessError
    from deploy.topics import TopicError

    with plain_errors(StackError, ProcessError, TopicError, ValueError, OSError):
        kinds = kinds_named(named) or None
        campaign = Campaign(
            seed=int(time.time()) if seed is None else seed,
            minutes=minutes,
            sensors=sensors,
            takes_s=takes_s,
            faults=faults or len(kinds or KINDS) + 8,
            kinds=kinds,
        )
        outcomes = run_campaign(
            campaign, lambda text: click.echo(text, err=as_object), in_force if cluster else None, keep
        )
    if as_object:
        click.echo(json.dumps(as_json(outcomes)))
    else:
        whole = as_json(outcomes)
        click.echo(table_text(table(outcomes)))
        click.echo(
            f"{whole['runs']} runs, {whole['faults']} faults ({whole['kills']} kills), {whole['windows']} windows and "
            f"{whole['alerts']} alerts checked, {whole['restarts']} processes started again"
        )
    if failed := [one.seed for one in outcomes if not passed(one)]:
        click.echo(f"FAILED; `aewatch chaos --seed {failed[0]}` draws the same plan", err=True)
        sys.exit(1)
