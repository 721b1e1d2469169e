"""Runs, one after another, each with a plan of its own, until the time is over or one fails."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from deploy.chaos.arena import Arena, own_arena
from deploy.chaos.battle import ENGINE, Outcome, Workload, fight
from deploy.chaos.faults import KINDS, PROCESS_KINDS, Act, Role, draw_plan
from deploy.chaos.report import passed, told
from deploy.chaos.workload import truth_of, write_recordings, write_twin
from deploy.settings import Settings
from model.bundle import demo_bundle_path

RECORDING_SEED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """What is run. Recordings are the same in every run; the plan of faults is what the seed draws."""

    seed: int
    minutes: float | None = None  #: None: one run
    sensors: int = 32
    recording_s: float = 8.0
    takes_s: float = 90.0  #: that a run's replay shall take
    faults: int = len(KINDS) + 8  #: in a run
    kinds: Sequence[tuple[Act, Role]] | None = None  #: None: all that can be done to these servers


def run_campaign(
    campaign: Campaign, tell: Callable[[str], None], cluster: Settings | None = None, keep: Path | None = None
) -> list[Outcome]:
    """Run it; the last outcome is the one that failed, if any did.

    Parameters
    ----------
    campaign
        What to do.
    tell
        Told what happens, a line or a few at a time.
    cluster
        Whose Kafka and Redis to use; then only processes are broken. None: servers of its own.
    keep
        An empty or new folder for logs and data, which stay; else they go, unless a run fails.

    Raises
    ------
    deploy.local_stack.StackError, deploy.processes.ProcessError, deploy.topics.TopicError
        If it cannot begin.
    """
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # of our own looks at a broker that is away
    folder = keep or Path(tempfile.mkdtemp(prefix="aewatch-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    begun = time.monotonic()
    try:
        load = _workload(campaign, folder)
        tell(
            f"{campaign.sensors} sensors, {campaign.recording_s:g} s of each; the oracle finds "
            f"{len(load.truth.predictions)} windows and {len(load.truth.alerts)} alerts"
        )
        arena = own_arena(folder / "stack") if cluster is None else nullcontext(Arena(cluster.kafka, cluster.redis))
        kinds = campaign.kinds or (KINDS if cluster is None else PROCESS_KINDS)
        with arena as place:
            while True:
                seed = campaign.seed + len(outcomes)
                plan = draw_plan(seed, campaign.takes_s, campaign.faults, kinds)
                tell(f"run {len(outcomes) + 1}, seed {seed}: {len(plan)} faults within {campaign.takes_s:g} s")
                outcomes.append(fight(place, folder / f"run-{seed}", load, plan, seed, tell))
                tell(told(outcomes[-1]))
                used_s = time.monotonic() - begun
                if not passed(outcomes[-1]) or campaign.minutes is None:
                    break
                if used_s + outcomes[-1].seconds > 60 * campaign.minutes:
                    break
    finally:
        if keep is None and outcomes and passed(outcomes[-1]):
            shutil.rmtree(folder, ignore_errors=True)
        else:
            shutil.rmtree(folder / "stack" / "kafka", ignore_errors=True)
            tell(f"logs are in {folder}")
    return outcomes


def _workload(campaign: Campaign, folder: Path) -> Workload:
    recordings = write_recordings(folder / "recordings", campaign.sensors, campaign.recording_s, RECORDING_SEED)
    plain = {key: value for key, value in os.environ.items() if not key.startswith("AEWATCH_")}
    truth = truth_of(recordings, plain | ENGINE | {"AEWATCH_CONFIG": ""})
    write_twin(demo_bundle_path(), folder / "twin")
    return Workload(
        recordings=recordings,
        recording_s=campaign.recording_s,
        takes_s=campaign.takes_s,
        truth=truth,
        bundles=(str(demo_bundle_path()), str(folder / "twin")),
    )
