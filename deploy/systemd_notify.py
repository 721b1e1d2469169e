"""What systemd is told of a service of `Type=notify`: one datagram a message, to the socket it names."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

log = logging.getLogger("aewatch.systemd")

READY = "READY=1"
WATCHDOG = "WATCHDOG=1"
STOPPING = "STOPPING=1"


class ServiceManager:
    """systemd, where it started us and wants to hear of us; elsewhere nobody, and nothing is said."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) if address else None

    def say(self, message: str) -> bool:
        """Send it; never waits and never raises, from any thread. False where it did not get through."""
        if self._socket is None:
            return True
        try:
            self._socket.sendto(message.encode(), socket.MSG_DONTWAIT, self._address)
        except OSError as error:
            log.debug("systemd was not told", extra={"said": message, "error": str(error)})
            return False
        return True
