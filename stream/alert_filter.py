"""Which alerts a subscriber wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from stream.alerts import Alert, Priority, run_of

URGENCY = {priority: rank for rank, priority in enumerate(Priority)}  #: 0 is the most urgent


@dataclass(frozen=True, slots=True)
class AlertFilter:
    """Which alerts are wanted; patterns are globs (`plant1/*`, `sensor.*`), one of each kind must match.

    Alerts of replays are left out unless `include_replays` is set or a sensor pattern begins with `replay/`.
    """

    sensors: Sequence[str] = ("*",)
    conditions: Sequence[str] = ("*",)
    min_priority: Priority = Priority.INFO
    include_replays: bool = False

    def matches(self, alert: Alert) -> bool:
        """Whether this alert is wanted."""
        return (
            URGENCY[alert.priority] <= URGENCY[self.min_priority]
            and any(fnmatchcase(alert.condition, pattern) for pattern in self.conditions)
            and self.matches_sensor(alert.sensor)
        )

    def matches_sensor(self, sensor: str) -> bool:
        """Whether alerts of this sensor are wanted at all."""
        patterns = self.sensors
        if run_of(sensor) and not self.include_replays:
            patterns = [pattern for pattern in patterns if pattern.startswith("replay/")]
        # The plain comparison is for ids that themselves hold the signs of a pattern.
        return any(sensor == pattern or fnmatchcase(sensor, pattern) for pattern in patterns)


EVERYTHING_LIVE = AlertFilter()
EVERYTHING = AlertFilter(include_replays=True)
