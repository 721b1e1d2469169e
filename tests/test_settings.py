import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.settings_docs import markdown

ROOT = Path(__file__).resolve().parents[1]


def aewatch(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AEWATCH_")} | variables
    command = [sys.executable, "-m", "deploy.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)


def test_variables_win_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "aewatch.toml").write_text('[kafka]\npartitions = 7\nbootstrap_servers = "file:9092"\n')
    done = aewatch("config", "show", "--json", cwd=tmp_path, AEWATCH_KAFKA__BOOTSTRAP_SERVERS="env:9092")
    kafka = json.loads(done.stdout)["kafka"]
    assert (kafka["partitions"], kafka["bootstrap_servers"], kafka["frames_topic"]) == (7, "env:9092", "ae.frames")


@pytest.mark.parametrize(
    ("toml", "variables", "told"),
    [
        ("[kafka]\npartitons = 7\n", {}, "kafka.partitons"),
        ("[worker]\nbatch_windows = 0\n", {}, "worker.batch_windows"),
        ("[kafka\n", {}, "not valid TOML"),
        ("", {"AEWATCH_KAFKA__PARTITIONS": "many"}, "kafka.partitions"),
        ("", {"AEWATCH_KAFAK__PARTITIONS": "4"}, "AEWATCH_KAFAK__PARTITIONS"),
        ("", {"AEWATCH_CONFIG": "nowhere.toml"}, "nowhere.toml"),
    ],
)
def test_a_setting_that_does_not_fit_is_named_without_a_traceback(
    tmp_path: Path, toml: str, variables: dict[str, str], told: str
) -> None:
    (tmp_path / "aewatch.toml").write_text(toml)
    done = aewatch("config", "show", cwd=tmp_path, **variables)
    assert done.returncode != 0
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_secrets_are_masked(tmp_path: Path) -> None:
    done = aewatch(
        "config",
        "show",
        cwd=tmp_path,
        AEWATCH_REDIS__URL="rediss://plant:hunter2@redis:6379/0",
        AEWATCH_KAFKA__SECURITY_PROTOCOL="SASL_SSL",
        AEWATCH_KAFKA__USERNAME="plant",
        AEWATCH_KAFKA__PASSWORD="hunter3",
    )
    assert "plant" in done.stdout
    assert "hunter" not in done.stdout


def test_the_page_of_settings_is_up_to_date() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == markdown(), "run `aewatch config docs > docs/settings.md`"


def test_clients_find_the_local_stack_where_it_was_last_started(tmp_path: Path) -> None:
    (tmp_path / "ports.json").write_text('{"kafka": 40001, "redis": 40002}')
    variables = {"AEWATCH_STACK__DATA_DIR": str(tmp_path), "AEWATCH_KAFKA__PARTITIONS": "2"}
    shown = json.loads(aewatch("config", "show", "--json", cwd=tmp_path, **variables).stdout)
    assert shown["kafka"]["bootstrap_servers"] == "127.0.0.1:40001"
    assert shown["redis"]["url"] == "redis://127.0.0.1:40002/0"
    variables["AEWATCH_REDIS__URL"] = "redis://elsewhere:6379/0"
    shown = json.loads(aewatch("config", "show", "--json", cwd=tmp_path, **variables).stdout)
    assert shown["redis"]["url"] == "redis://elsewhere:6379/0", "what is set is never overruled"
