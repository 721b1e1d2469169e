"""All targets by name."""

from __future__ import annotations

from tests.fuzz import config_files, http_pages, redis_values, window_core, wire
from tests.fuzz.target import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for module in (wire, window_core, redis_values, config_files, http_pages)
    for target in module.TARGETS
}
