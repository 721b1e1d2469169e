"""Ports on 127.0.0.1: is one free, who has it, which are free."""

from __future__ import annotations

import random
import socket

HOST = "127.0.0.1"

# Below what Linux, macOS and Windows hand out to outgoing connections, so that a server that was killed finds its port
# again, and above what well-known services use.
_LOWEST, _HIGHEST = 20_000, 32_000


def is_free(port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def accepts(port: int) -> bool:
    """Whether somebody listens there now."""
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


def holder(port: int) -> str | None:
    """Name and process id of who listens there, or None if that is not to be learnt."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            if (
                connection.status == psutil.CONN_LISTEN
                and connection.laddr
                and connection.laddr.port == port
                and connection.pid
            ):
                return f"{psutil.Process(connection.pid).name()}, process {connection.pid}"
    except psutil.Error:
        return None
    return None


def free_port(span: int = 1) -> int:
    """The first of `span` neighbouring free ports, picked at random so that two who look at once seldom meet.

    Raises
    ------
    OSError
        If none was found.
    """
    for _ in range(200):
        port = random.randrange(_LOWEST, _HIGHEST - span)
        if all(is_free(port + offset) for offset in range(span)):
            return port
    raise OSError(f"no {span} neighbouring free ports on {HOST} between {_LOWEST} and {_HIGHEST}")
