import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.cli import COMMANDS

HEAVY = ("torch", "faust", "scipy", "matplotlib", "pandas")


def aewatch(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AEWATCH_")} | variables
    command = [sys.executable, "-m", "deploy.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)


def imported_by(*arguments: str) -> set[str]:
    script = (
        "import json, sys\n"
        "from deploy.cli import cli\n"
        f"try: cli.main({list(arguments)!r}, prog_name='aewatch')\n"
        "except SystemExit: pass\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_help_imports_nothing_but_the_command_line() -> None:
    assert not imported_by("--help") & {*HEAVY, "numpy", "pydantic", "aiokafka", "redis", "rich"}


def test_the_users_home_is_understood_where_the_shell_leaves_it(tmp_path: Path) -> None:
    for arguments in (("data", "check", "~/set.csv"), ("train", "--out=~/run", "--data=~/set.csv")):
        done = aewatch(*arguments, cwd=tmp_path, HOME=str(tmp_path))
        assert done.returncode != 0
        assert str(tmp_path / "set.csv") in done.stderr


def test_following_alerts_imports_no_network_and_no_stream_processor() -> None:
    # A port where nothing listens: the command gets as far as connecting.
    os.environ["AEWATCH_REDIS__URL"] = "redis://127.0.0.1:1/0"
    try:
        modules = imported_by("alerts", "active")
    finally:
        del os.environ["AEWATCH_REDIS__URL"]
    assert "redis" in modules
    assert not modules & {*HEAVY, "aiokafka", "numpy"}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_subcommand_has_help(command: str, tmp_path: Path) -> None:
    done = aewatch(command, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Usage: aewatch" in done.stdout or "Usage: python" in done.stdout


def test_a_mistyped_subcommand_gets_the_nearest_one(tmp_path: Path) -> None:
    done = aewatch("alrets", cwd=tmp_path)
    assert done.returncode == 2
    assert "Did you mean 'alerts'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("classify", "nowhere.wav"), "nowhere.wav"),
        (("classify", "empty.wav"), "empty.wav"),
        (("classify", "notes.txt"), "notes.txt"),
        (("replay", "--rate", "-1", "empty.wav"), "-1"),
        (("alerts", "shelve", "s", "knock", "--for", "soon"), "soon"),
        (("model", "show", "nowhere"), "nowhere"),
        (("model", "add", "nowhere"), "nowhere"),
        (("model", "use", "nowhere"), "nowhere"),
        (("simulate", "--plan", "notes.txt"), "notes.txt"),
    ],
)
def test_bad_input_is_named_without_a_traceback(arguments: tuple[str, ...], told: str, tmp_path: Path) -> None:
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("not a recording")
    done = aewatch(*arguments, cwd=tmp_path)
    assert done.returncode != 0
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_alerts_without_a_redis_say_where_it_was_looked_for(tmp_path: Path) -> None:
    done = aewatch("alerts", "active", cwd=tmp_path, AEWATCH_REDIS__URL="redis://user:secret@127.0.0.1:1/0")
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr
    assert "secret" not in done.stderr
