"""What the pipeline is given while it is broken: recordings drawn from a seed, and what the oracle finds in them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from deploy.processes import ProcessError
from deploy.simulation import Plan, write_wav
from model.bundle import demo_bundle_path, load_weights, read_card, write_bundle
from producers.propagation import DEMO_POSITIONS, draw_positions
from producers.simulator import RATE_HZ, plan_events
from stream.alarms import AlarmRules, SensorState, advance
from stream.alerts import Alert, decode_alert
from stream.predictions import Prediction

RUN = "chaos"
CHANNELS = 8  #: of one recording
SPACING_S = 2.5


@dataclass(frozen=True, slots=True)
class Truth:
    """What must come out. Predictions and alerts of one sensor are in order."""

    predictions: Sequence[Prediction]
    alerts: Sequence[Alert]
    states: Mapping[str, SensorState]  #: of each sensor's alarms at the end


def write_recordings(folder: Path, sensors: int, duration_s: float, seed: int) -> list[Path]:
    """WAV files of up to eight channels each, with events of all kinds on every channel."""
    folder.mkdir(parents=True, exist_ok=True)
    positions = (*DEMO_POSITIONS, *draw_positions(seed, max(0, sensors - len(DEMO_POSITIONS)), "plant2"))[:sensors]
    paths = []
    for number, first in enumerate(range(0, sensors, CHANNELS)):
        some = positions[first : first + CHANNELS]
        names = [position.name for position in some]
        events = plan_events(seed + number, names, duration_s, spacing_s=SPACING_S, first_s=0.5, last_s=2.0)
        paths.append(folder / f"box{number}.wav")
        write_wav(paths[-1], Plan(seed + number, duration_s, RATE_HZ, some, events))
    return paths


def truth_of(recordings: Sequence[Path], environment: Mapping[str, str]) -> Truth:
    """What `aewatch classify` finds in them.

    Raises
    ------
    ProcessError
        If it fails.
    """
    command = [sys.executable, "-m", "deploy.cli", "classify", *map(str, recordings), "--run", RUN, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(environment))
    if done.returncode:
        raise ProcessError(f"the oracle ended with status {done.returncode}:\n{done.stderr[-2_000:]}")
    predictions, alerts = [], []
    for line in done.stdout.splitlines():
        row = msgspec.json.decode(line)
        kind = row.pop("kind")
        if kind == "alert":
            alerts.append(decode_alert(msgspec.json.encode(row)))
        elif kind == "prediction":
            predictions.append(msgspec.convert(row, Prediction))
    return Truth(predictions, alerts, _states(predictions, alerts))


def _states(predictions: Sequence[Prediction], alerts: Sequence[Alert]) -> dict[str, SensorState]:
    """Where the alarms of each sensor stand after its last window.

    Raises
    ------
    ProcessError
        If the rules as they are here do not find the oracle's alerts: then nothing could be held against them.
    """
    rules = AlarmRules.for_labels(read_card(demo_bundle_path()).roles, {})
    states: dict[str, SensorState] = {}
    raised = [
        alert.id
        for one in predictions
        for alert in advance(states.setdefault(one.sensor, SensorState(sensor=one.sensor)), one, rules)
    ]
    if sorted(raised) != sorted(alert.id for alert in alerts):
        raise ProcessError("the alarm rules of this process are not those of the oracle")
    return states


def write_twin(bundle: Path, folder: Path) -> str:
    """The same model under another name, and so another version, which is returned: swapped in, it decides alike."""
    card = read_card(bundle)
    twin = msgspec.structs.replace(card, name=f"{card.name}-twin")
    return write_bundle(folder, twin, load_weights(bundle, card)).version
