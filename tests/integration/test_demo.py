import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_the_demo_answers_every_event_adds_up_and_leaves_nothing_running(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AEWATCH_")}
    command = [sys.executable, "-m", "deploy.cli", "demo", "--seconds", "20", "--keep", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Everything adds up." in done.stdout
    for kind in ("pencil_lead_break", "friction", "knock", "drop"):
        assert kind in done.stdout
    left = [
        process.info["cmdline"]
        for process in psutil.process_iter(["cmdline"])
        if any(str(tmp_path) in part for part in process.info["cmdline"] or ())
    ]
    assert left == []


def test_a_folder_that_is_in_use_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    command = [sys.executable, "-m", "deploy.cli", "demo", "--keep", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is not empty" in " ".join(done.stdout.split()), "lines are broken where the terminal ends"
    assert (tmp_path / "precious").read_text() == "data"
