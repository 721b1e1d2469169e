"""A Redis-compatible server behind TLS: an installed one that has it, or the bundled one behind a terminator."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from deploy.local_stack.ports import HOST, accepts, free_port
from tests.certificates import Authority, Certificate
from tests.integration.redis_parts import own_server


@dataclass(slots=True)
class TlsServer:
    """Two doors to one server: TLS for users, and plain for the test."""

    port: int
    plain_url: str
    authority: Authority
    doors: Any = field(repr=False)

    def url(self, login: str = "", host: str = HOST) -> str:
        """As users write it."""
        return f"rediss://{login + '@' if login else ''}{host}:{self.port}/0"

    def show(self, certificate: Certificate, *, wants_client: bool = False) -> None:
        """From now on this certificate, and whether clients need one too."""
        self.doors.show(certificate, self.authority.ca, wants_client)


def installed_server() -> str | None:
    """The first server on the path that speaks TLS."""
    for name in ("valkey-server", "redis-server"):
        if (command := shutil.which(name)) is None:
            continue
        # With no certificate it ends: for that reason where it knows TLS, for the unknown setting where not.
        asked = [command, "--port", "0", "--tls-port", str(free_port()), "--daemonize", "no", "--save", ""]
        said = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False).stdout
        if "tls-cert-file" in said:
            return command
    return None


@contextmanager
def tls_server(folder: Path, kind: str) -> Iterator[TlsServer]:
    """Kind "installed" or "terminator"."""
    authority = Authority(folder / "ca")
    with (_installed if kind == "installed" else _terminated)(folder, authority) as server:
        yield server


@contextmanager
def _installed(folder: Path, authority: Authority) -> Iterator[TlsServer]:
    command, first = installed_server(), authority.sign("first")
    assert command is not None
    plain, port = free_port(), free_port()
    settings = {
        "port": plain,
        "bind": HOST,
        "tls-port": port,
        "tls-cert-file": first.certificate,
        "tls-key-file": first.key,
        "tls-ca-cert-file": authority.ca,
        "tls-auth-clients": "no",
        "dir": folder,
        "save": '""',
        "appendonly": "no",
    }
    (folder / "redis.conf").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen([command, str(folder / "redis.conf")], stdout=log, stderr=log)
    try:
        give_up_s = time.monotonic() + 20
        while not accepts(port):
            assert process.poll() is None, (folder / "redis.log").read_text()
            assert time.monotonic() < give_up_s
            time.sleep(0.02)
        url = f"redis://{HOST}:{plain}/0"
        yield TlsServer(port, url, authority, _ConfiguredDoors(url))
    finally:
        process.terminate()
        process.wait(10)


class _ConfiguredDoors:
    def __init__(self, url: str) -> None:
        self._url = url

    def show(self, certificate: Certificate, ca: Path, wants_client: bool) -> None:
        with redis.Redis.from_url(self._url) as client:
            client.execute_command(
                "CONFIG", "SET", "tls-cert-file", str(certificate.certificate), "tls-key-file", str(certificate.key),
                "tls-auth-clients", "yes" if wants_client else "no",
            )  # fmt: skip


@contextmanager
def _terminated(folder: Path, authority: Authority) -> Iterator[TlsServer]:
    with own_server(folder / "server") as server:
        terminator = _Terminator(server.port, authority.sign("first"), authority.ca)
        try:
            yield TlsServer(terminator.port, server.url, authority, terminator)
        finally:
            terminator.stop()


class _Terminator:
    """TLS outside, plain inside, in a thread of its own so that it does not matter what the test does."""

    def __init__(self, inner_port: int, certificate: Certificate, ca: Path) -> None:
        self.port = free_port()
        self._inner_port = inner_port
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.show(certificate, ca, wants_client=False)

    def show(self, certificate: Certificate, ca: Path, wants_client: bool) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.certificate, certificate.key)
        context.load_verify_locations(ca)
        context.verify_mode = ssl.CERT_REQUIRED if wants_client else ssl.CERT_NONE
        asyncio.run_coroutine_threadsafe(self._open(context), self._loop).result(10)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _open(self, context: ssl.SSLContext) -> None:
        if self._server is not None:
            self._server.close()
        self._server = await asyncio.start_server(self._handle, HOST, self.port, ssl=context)

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(HOST, self._inner_port)

        async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    target.write(data)
                    await target.drain()

        ways = [asyncio.create_task(carry(reader, inner_writer)), asyncio.create_task(carry(inner_reader, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            writer.close()
            inner_writer.close()
