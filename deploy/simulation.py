"""A plan of simulated sensors and events: drawn from a seed, written as JSON, turned into a source."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import soundfile

from producers.propagation import DEMO_POSITIONS, Position, draw_positions
from producers.simulator import RATE_HZ, VOLTS_PER_COUNT, PlannedEvent, SensorSimulator, plan_events
from producers.sources.frame_cuts import FrameCuts
from producers.sources.simulator import SimulatedSensors

FULL_SCALE_V = VOLTS_PER_COUNT * 32768


class PlanError(ValueError):
    """A plan file that cannot be used."""


class Plan(msgspec.Struct, frozen=True):
    """Everything that decides the samples, so the same plan is the same signal."""

    seed: int
    duration_s: float
    rate_hz: int
    positions: tuple[Position, ...]  #: one sensor each, named after it
    events: tuple[PlannedEvent, ...]

    @property
    def sensors(self) -> tuple[str, ...]:
        """Sensor ids, in the order of the positions."""
        return tuple(position.name for position in self.positions)


def draw_plan(sensors: int, duration_s: float, seed: int) -> Plan:
    """The demo's eight positions first, then as many more as it takes; events on all of them."""
    more = draw_positions(seed=0, count=max(0, sensors - len(DEMO_POSITIONS)), prefix="plant2")
    positions = (*DEMO_POSITIONS[:sensors], *more)
    events = plan_events(seed, [position.name for position in positions], duration_s, RATE_HZ)
    return Plan(seed, duration_s, RATE_HZ, positions, events)


def write_plan(path: Path, plan: Plan) -> None:
    """As JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(plan)))


def read_plan(path: Path) -> Plan:
    """The plan in a file.

    Raises
    ------
    PlanError
        If there is no such file, or it is not a plan; the message says where.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Plan)
    except (OSError, msgspec.DecodeError) as error:
        raise PlanError(
            f"{path}: not a simulation plan: {error}; `aewatch simulate --plan-out FILE` writes one"
        ) from error


def write_wav(path: Path, plan: Plan) -> None:
    """As a WAV file (RF64 where it is large), 16 bits, a channel for each sensor; full scale is `FULL_SCALE_V`."""
    simulators = _simulators(plan)
    samples = round(plan.duration_s * plan.rate_hz)
    layout = {"samplerate": plan.rate_hz, "channels": len(simulators), "subtype": "PCM_16"}
    kind = "RF64" if samples * len(simulators) * 2 >= 2**31 else "WAV"
    with soundfile.SoundFile(str(path), "w", format=kind, **layout) as out:
        for first in range(0, samples, plan.rate_hz):
            last = min(first + plan.rate_hz, samples)
            out.write(np.stack([simulator.samples(first, last) for simulator in simulators], axis=1))


def source_of(plan: Plan, frame_s: float, epoch_ns: int) -> SimulatedSensors:
    """The plan's sensors, in step, beginning at `epoch_ns`."""
    return SimulatedSensors(_simulators(plan), plan.duration_s, FrameCuts(frame_s=frame_s), epoch_ns)


def _simulators(plan: Plan) -> list[SensorSimulator]:
    return [
        SensorSimulator(
            position.name,
            position,
            plan.rate_hz,
            plan.seed,
            [event for event in plan.events if event.sensor == position.name],
        )
        for position in plan.positions
    ]
