"""The two servers together: for the length of a `with` block, or from `up` to `down`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.local_stack import ports
from deploy.local_stack.kafka import Kafka
from deploy.local_stack.kafka_jars import Progress
from deploy.local_stack.service import Service, StackError
from deploy.local_stack.valkey import Valkey

DEFAULT_KAFKA_PORT = 19092  #: 19093 is the controller's
DEFAULT_REDIS_PORT = 16379

_LARGEST_KEPT_LOG_BYTES = 32 * 2**20


class AlreadyRunning(StackError):  # noqa: N818
    """The stack runs already; nothing was changed."""


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """What can be said of one server from outside."""

    name: str
    running: bool
    address: str | None  #: `host:port` while it runs
    pid: int | None
    started_s: float | None  #: seconds since 1970
    memory_bytes: int | None  #: resident
    log: Path


class LocalStack:
    """A real single-node Kafka and a real Redis-compatible server on 127.0.0.1.

    As a context manager it belongs to this process: when the block is left, or the process ends in whatever way, the
    servers stop. Between `up` and `down` they belong to nobody and go on. Data stay in the folder either way.

    Parameters
    ----------
    data_dir
        Data, settings and logs (`logs/kafka.log`, `logs/valkey.log`); one stack at a time can run on it.
    kafka_port
        For Kafka's clients; the port after it is taken too. None picks a free one.
    redis_port
        None picks a free one.
    start_timeout_s
        How long the servers may take until they are ready.
    progress
        Told how the first download of Kafka goes, in bytes.
    kafka_properties
        Broker settings that are added to, or replace, the usual ones.
    """

    def __init__(
        self,
        data_dir: Path | str,
        kafka_port: int | None = DEFAULT_KAFKA_PORT,
        redis_port: int | None = DEFAULT_REDIS_PORT,
        *,
        start_timeout_s: float = 90.0,
        progress: Progress | None = None,
        kafka_properties: Mapping[str, str] | None = None,
    ) -> None:
        if missing := [name for name in ("jgo", "psutil") if find_spec(name) is None]:
            raise StackError(
                f"the local stack needs {' and '.join(missing)}: install the extra `local` "
                "(pip install 'aewatch[local]')"
            )
        self.data_dir = Path(data_dir).expanduser().resolve()
        if any(letter in str(self.data_dir) for letter in ",\n\r"):
            raise StackError(f"{self.data_dir}: Kafka takes a comma for the end of a folder's name; choose another one")
        self._start_timeout_s = start_timeout_s
        self._progress = progress
        logs = self.data_dir / "logs"
        self.kafka = Kafka(
            self.data_dir / "kafka",
            logs / "kafka.log",
            ports.free_port(2) if kafka_port is None else kafka_port,
            kafka_properties,
        )
        self.valkey = Valkey(
            self.data_dir / "valkey", logs / "valkey.log", ports.free_port() if redis_port is None else redis_port
        )

    @property
    def kafka_bootstrap(self) -> str:
        """Where Kafka's clients begin."""
        return self.kafka.address

    @property
    def redis_url(self) -> str:
        """Where Redis' clients connect to."""
        return self.valkey.url

    def __enter__(self) -> Self:
        self.start(owned=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def up(self) -> None:
        """Start what is not running, detached from this process, and wait until it is ready.

        Raises
        ------
        AlreadyRunning
            If both run already.
        StackError
            If a port is taken, or a server does not start; what was started is stopped again.
        """
        self.start(owned=False)

    def down(self) -> bool:
        """Stop what runs on the data folder, whoever started it; False if nothing did."""
        return self.stop()

    def start(self, *, owned: bool) -> None:
        """Start what is not running and wait until it is ready; `owned` ties it to this process.

        Raises
        ------
        AlreadyRunning
            If both run already, or one of them does where it is not wanted: elsewhere, or owned by somebody else.
        StackError
            If a port is taken, or a server does not start; what was started is stopped again.
        """
        services = (self.kafka.service, self.valkey.service)
        busy = [service for service in services if service.settled() or service.in_use()]
        status = dict(zip(services, self.status(), strict=True))
        moved = [one for one in busy if status[one].address not in (self.kafka.address, self.valkey.address)]
        if len(busy) == len(services) or (busy and (owned or moved)):
            raise AlreadyRunning(
                f"already running on {self.data_dir}: "
                + ", ".join(f"{one.name} {status[one].address}" for one in busy)
                + "; `aewatch down` stops it, another data folder (AEWATCH_STACK__DATA_DIR) is another stack"
            )
        wanted = {
            self.kafka.service: ((self.kafka.port, self.kafka.port + 1), "AEWATCH_STACK__KAFKA_PORT"),
            self.valkey.service: ((self.valkey.port,), "AEWATCH_STACK__REDIS_PORT"),
        }
        for service, (numbers, variable) in wanted.items():
            if service not in busy:
                _want_ports(service, numbers, variable)
                _turn_over(service.log)
        with contextlib.ExitStack() as undo:
            for service in services:
                if service not in busy:
                    undo.callback(service.stop)
            # Starting does not wait, so the two come up side by side.
            if self.valkey.service not in busy:
                self.valkey.start(owned=owned)
            if self.kafka.service not in busy:
                self.kafka.start(owned=owned, progress=self._progress)
            self.valkey.wait_ready(self._start_timeout_s)
            self.kafka.wait_ready(self._start_timeout_s)
            undo.pop_all()

    def stop(self) -> bool:
        """Stop both, cleanly if they let us; False if neither ran."""
        with ThreadPoolExecutor(2) as pool:
            return any(list(pool.map(Service.stop, (self.kafka.service, self.valkey.service))))

    def status(self) -> list[ServiceStatus]:
        """Of Kafka and of Valkey, in that order; also of a stack that another process started."""
        import psutil

        found = []
        for service in (self.kafka.service, self.valkey.service):
            running = service.running()
            memory = None
            if running is not None:
                with contextlib.suppress(psutil.Error):
                    memory = psutil.Process(running.pid).memory_info().rss
            found.append(
                ServiceStatus(
                    name=service.name,
                    running=running is not None,
                    address=f"{ports.HOST}:{running.info['port']}" if running else None,
                    pid=running.pid if running else None,
                    started_s=running.started_s if running else None,
                    memory_bytes=memory,
                    log=service.log,
                )
            )
        return found


def _want_ports(service: Service, numbers: tuple[int, ...], variable: str) -> None:
    for port in numbers:
        if not ports.is_free(port):
            holder = ports.holder(port)
            raise StackError(
                f"{service.name} wants port {port} of {ports.HOST}, which is in use"
                + (f" by {holder}" if holder else "")
                + f"; stop that, or choose another port with {variable}"
            )


def _turn_over(log: Path) -> None:
    """Keep one old log, so that years of `up` and `down` do not fill a disk."""
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > _LARGEST_KEPT_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
