"""The proof: everything is broken, and what comes out is what the oracle says. `make chaos` does it for longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.chaos.campaign import Campaign, run_campaign
from deploy.chaos.faults import KINDS
from deploy.chaos.report import told

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

SEED = 6


def test_whatever_breaks_every_prediction_alert_and_dead_letter_is_there_once(tmp_path: Path) -> None:
    campaign = Campaign(seed=SEED, sensors=32, recording_s=5.0, takes_s=75.0, faults=len(KINDS))
    [outcome] = run_campaign(campaign, print, keep=tmp_path / "chaos")
    assert outcome.failure == "", told(outcome)
    assert outcome.verdict.problems == [], told(outcome)
    assert sum(bool(done.target) for done in outcome.done) >= len(KINDS) * 0.8, "most faults met something"
    assert outcome.verdict.alerts > 30
    assert outcome.verdict.poison > 20
