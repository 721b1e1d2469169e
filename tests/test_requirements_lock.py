import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCK = (ROOT / "requirements.lock").read_text()


def locked() -> dict[str, list[str]]:
    """Name → its versions; more than one where platforms or Pythons need different ones."""
    found: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)==(\S+)", LOCK, re.MULTILINE):
        found.setdefault(name, []).append(version)
    return found


def wanted_by(project: dict[str, object], extra: str | None) -> list[Requirement]:
    """What an extra, or else the project itself, names; extras that it refers to included."""
    named = project["dependencies"] if extra is None else project["optional-dependencies"][extra]  # type: ignore[index]
    found: list[Requirement] = []
    for line in named:  # type: ignore[attr-defined]
        requirement = Requirement(line)
        if requirement.name == project["name"]:
            found += [one for inner in requirement.extras for one in wanted_by(project, inner)]
        else:
            found.append(requirement)
    return found


def test_the_lock_fits_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = locked()
    for requirement in wanted_by(project, None) + wanted_by(project, "dev"):
        name = canonicalize_name(requirement.name)
        assert name in versions, f"{name} is not in requirements.lock: make lock"
        assert all(requirement.specifier.contains(version) for version in versions[name]), f"{requirement}: make lock"


def test_the_lock_holds_uv_in_the_version_that_the_makefile_names() -> None:
    [version] = re.findall(r"^UV_VERSION := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert locked()["uv"] == [version]


def test_every_locked_version_has_a_hash() -> None:
    for block in re.split(r"\n(?=\S)", LOCK):
        if not block.startswith("#"):
            assert "--hash=sha256:" in block, block.splitlines()[0]


def test_the_lock_says_how_it_was_made_and_names_no_address_and_no_path() -> None:
    assert "make lock" in LOCK.splitlines()[1]
    assert "://" not in LOCK
    assert "--index-url" not in LOCK
    assert "--find-links" not in LOCK
    assert not re.search(r"(^|\s)[./~]*/\w", LOCK)
