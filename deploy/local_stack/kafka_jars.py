"""The jars of Apache Kafka: which ones, exactly (`kafka-jars.toml`), and how they get into the user's cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.local_stack.service import StackError

# With log4j-slf4j-impl in place of slf4j-simple the clients resolve to 3.9.1, which this broker does not run with;
# with neither, the broker logs nothing.
ROOTS = ("org.apache.kafka:kafka_2.13:4.3.1", "org.slf4j:slf4j-simple:1.7.36")
LIST = Path(__file__).with_name("kafka-jars.toml")

_CONNECTIONS = 8
_ATTEMPTS = 3

Progress = Callable[[int, int], None]  #: bytes here so far, bytes in all


@dataclass(frozen=True, slots=True)
class Jar:
    """One file of the class path."""

    group: str
    artifact: str
    version: str
    size: int  #: bytes
    sha256: str

    @property
    def name(self) -> str:
        """File name."""
        return f"{self.artifact}-{self.version}.jar"


def cache_dir() -> Path:
    """The user's cache folder of aewatch, shared by all checkouts."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "aewatch"


def listed_jars() -> list[Jar]:
    """What `kafka-jars.toml` names, in the order of the class path."""
    jars = []
    for coordinate, facts in tomllib.loads(LIST.read_text())["jars"].items():
        group, artifact, version = coordinate.split(":")
        jars.append(Jar(group, artifact, version, facts["size"], facts["sha256"]))
    return jars


def kafka_version() -> str:
    """The broker's version."""
    return ROOTS[0].split(":")[2]


def jar_dir() -> Path:
    """Where the jars of this version are, or will be."""
    return cache_dir() / f"kafka-{kafka_version()}"


def provide_jars(progress: Progress | None = None) -> list[Path]:
    """The class path, after downloading what is missing.

    Two processes at once do not download twice: the second waits. What was complete before an interruption stays.

    Parameters
    ----------
    progress
        Called from several threads, one at a time, and only if something has to be downloaded.

    Raises
    ------
    StackError
        If a jar cannot be had, or is not the one that is listed.
    """
    jars = listed_jars()
    folder = jar_dir()
    folder.mkdir(parents=True, exist_ok=True)
    if _missing(jars, folder):
        with open(folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _download(jars, _missing(jars, folder), folder, progress)
    return [folder / jar.name for jar in jars]


def _missing(jars: list[Jar], folder: Path) -> list[Jar]:
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.name.endswith(".jar")}
    return [jar for jar in jars if sizes.get(jar.name) != jar.size]


def _download(jars: list[Jar], missing: list[Jar], folder: Path, progress: Progress | None) -> None:
    if not missing:
        return
    for left_over in folder.glob("partial-*"):  # by a download that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    total = sum(jar.size for jar in jars)
    here = total - sum(jar.size for jar in missing)
    counting = threading.Lock()

    def count(added: int) -> None:
        nonlocal here
        with counting:
            here += added
            if progress is not None:
                progress(min(here, total), total)

    count(0)
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        # The largest first, so that none of them is left for last.
        fetches = [pool.submit(download_jar, jar, folder, count) for jar in sorted(missing, key=lambda jar: -jar.size)]
        try:
            for fetch in fetches:
                fetch.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def download_jar(jar: Jar, folder: Path, count: Callable[[int], None]) -> None:
    """Download one jar, look at its hash, and put it in place in one step."""
    import requests
    from jgo.maven import MavenContext, PythonResolver

    reason = ""
    for attempt in range(_ATTEMPTS):
        time.sleep(attempt)
        got = 0

        @contextmanager
        def counted(_name: str, _size: int) -> Iterator[Callable[[int], None]]:
            def add(size: int) -> None:
                nonlocal got
                got += size
                count(size)

            yield add

        # A folder of its own for each attempt: jgo takes a file that an interruption left behind for a whole one.
        with tempfile.TemporaryDirectory(prefix="partial-", dir=folder) as partial:
            context = MavenContext(
                resolver=PythonResolver(progress_callback=counted), repo_cache=Path(partial), timeout=30
            )
            component = context.project(jar.group, jar.artifact).at_version(jar.version)
            try:
                path = component.artifact().resolve()
                sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            except (requests.RequestException, RuntimeError, OSError) as error:
                reason = str(error)
            else:
                if sha256 == jar.sha256:
                    os.replace(path, folder / jar.name)
                    count(jar.size - got)
                    return
                reason = f"its SHA-256 is {sha256} instead of {jar.sha256}"
            count(-got)
    raise StackError(
        f"{jar.name}: {reason}. Kafka's jars are downloaded once from Maven Central; without access to it, "
        f"copy the folder {folder} from a machine that has it"
    )


def terminal_progress(what: str) -> Progress:
    """A line on stderr that rewrites itself, or on anything but a terminal a new line every few seconds."""
    tty = sys.stderr.isatty()
    shown_at = -60.0
    complete = False

    def show(here: int, total: int) -> None:
        nonlocal shown_at, complete
        now = time.monotonic()
        if complete or (here < total and now - shown_at < (0.1 if tty else 5.0)):
            return
        shown_at, complete = now, here >= total
        line = f"{what}: {here / 1e6:.1f} of {total / 1e6:.1f} MB"
        if tty:
            line = f"\r{line}\x1b[K"
        print(line, end="" if tty and not complete else "\n", file=sys.stderr, flush=True)

    return show
