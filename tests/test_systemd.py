"""What systemd is told through a real socket, and whether it would take our units."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.role_service import role_service
from deploy.systemd_notify import READY, STOPPING, WATCHDOG, ServiceManager
from stream.health import Health

UNITS = sorted((Path(__file__).parents[1] / "deploy" / "systemd").glob("*.service"))


class Manager:
    """The end of the socket at which systemd listens."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setblocking(False)
        self.variables = {"NOTIFY_SOCKET": address}

    def heard(self) -> list[str]:
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return messages


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@aewatch-test-{os.getpid()}"
    manager = Manager(address)
    yield manager
    manager.socket.close()


def test_each_message_is_a_datagram_to_the_socket_that_systemd_names(manager: Manager) -> None:
    service = ServiceManager(manager.variables)
    service.say(READY)
    service.say(WATCHDOG)
    assert manager.heard() == ["READY=1", "WATCHDOG=1"]


def test_nothing_is_said_where_nobody_listens(tmp_path: Path) -> None:
    ServiceManager({}).say(READY)
    ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "gone")}).say(READY)


def test_a_listener_that_does_not_read_holds_nobody_up(manager: Manager) -> None:
    service = ServiceManager(manager.variables)
    assert not all(service.say(WATCHDOG) for _ in range(10_000))


async def test_a_manager_without_room_is_told_of_readiness_when_it_has_some(manager: Manager) -> None:
    service = ServiceManager(manager.variables)
    while service.say(WATCHDOG):
        pass
    async with role_service("", service, Health, lambda: b"", asyncio.Event()):
        await asyncio.sleep(0.3)
        assert READY not in manager.heard()
        await asyncio.sleep(0.5)
        assert manager.heard() == [READY]


async def test_a_role_is_ready_when_it_works_and_stopping_when_it_is_told_to(manager: Manager) -> None:
    stop = asyncio.Event()
    now = Health(not_ready=("starting",))
    async with role_service("", ServiceManager(manager.variables), lambda: now, lambda: b"", stop):
        await asyncio.sleep(0.5)
        assert manager.heard() == []
        now = Health()
        await asyncio.sleep(0.5)
        assert manager.heard() == [READY]
        stop.set()
        await asyncio.sleep(0.1)
        assert manager.heard() == [STOPPING]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_is_one_that_systemd_takes(unit: Path, tmp_path: Path) -> None:
    installed = tmp_path / unit.name.replace("@", "@1")
    # It looks for the programs too, which are not installed there.
    installed.write_text(unit.read_text().replace("/opt/aewatch/.venv/bin/aewatch", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(installed)], capture_output=True, text=True, check=False, timeout=60
    )
    ours = [line for line in done.stderr.splitlines() if unit.name.split("@")[0].removesuffix(".service") in line]
    assert done.returncode == 0, done.stderr
    assert not ours, done.stderr


@pytest.mark.parametrize("role", ["window", "worker"])
def test_the_units_of_the_stream_are_watched_and_started_again(role: str) -> None:
    [unit] = [unit for unit in UNITS if unit.name == f"aewatch-{role}@.service"]
    lines = unit.read_text().splitlines()
    assert {"Type=notify", "Restart=always", "WatchdogSec=60"} <= set(lines)
