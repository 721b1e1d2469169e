"""Where it takes place: a Kafka and a Redis-compatible server of its own, with a proxy on each way to them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from deploy.chaos.faults import Role
from deploy.chaos.tcp_proxy import TcpProxy
from deploy.local_stack import LocalStack
from deploy.local_stack.kafka_jars import terminal_progress
from deploy.local_stack.ports import HOST, free_port
from deploy.settings import KafkaSettings, RedisSettings

START_S = 60.0
#: Those whose way to Kafka can be broken by itself: each has a listener and a proxy of its own.
KAFKA_WAYS = (Role.AGENT, Role.WORKER, Role.PRODUCER)


@dataclass(frozen=True, slots=True)
class Arena:
    """Servers, and how each role reaches them."""

    kafka: KafkaSettings  #: the direct way, for those who watch
    redis: RedisSettings  #: likewise
    stack: LocalStack | None = None  #: None: somebody else's servers
    proxies: Mapping[Role, TcpProxy] = field(default_factory=dict)

    def bootstrap_of(self, role: Role) -> str:
        """Where processes of this role find Kafka."""
        return self.proxies[role].address if role in self.proxies else self.kafka.bootstrap_servers

    def redis_url_of(self, role: Role) -> str:
        """Where they find Redis; subscribers and workers go by the proxy."""
        if role in (Role.WORKER, Role.SUBSCRIBER) and Role.REDIS in self.proxies:
            return f"redis://{self.proxies[Role.REDIS].address}/0"
        return self.redis.connection_url()

    def restart_kafka(self, *, kill: bool) -> None:
        """Stop it in order or with SIGKILL, and start it again; returns when it is ready."""
        assert self.stack is not None
        service = self.stack.kafka.service
        service.kill() if kill else service.stop()
        self.stack.kafka.start(owned=True)
        self.stack.kafka.wait_ready(START_S)

    def restart_redis(self, *, kill: bool) -> None:
        """Likewise; it comes back with its append-only file."""
        assert self.stack is not None
        service = self.stack.valkey.service
        service.kill() if kill else service.stop()
        self.stack.valkey.start(owned=True)
        self.stack.valkey.wait_ready(START_S)


@contextlib.contextmanager
def own_arena(folder: Path) -> Iterator[Arena]:
    """Real servers on free ports, which stop with this process.

    Raises
    ------
    deploy.local_stack.StackError
        If they cannot be started.
    """
    port = free_port(2 + 2 * len(KAFKA_WAYS))
    listeners = {role: (port + 2 + 2 * number, port + 3 + 2 * number) for number, role in enumerate(KAFKA_WAYS)}
    stack = LocalStack(
        folder, port, None, progress=terminal_progress("Kafka"), kafka_properties=_properties(port, listeners)
    )
    with contextlib.ExitStack() as stop:
        stop.enter_context(stack)
        proxies = {
            role: stop.enter_context(TcpProxy(proxied, (HOST, real))) for role, (real, proxied) in listeners.items()
        }
        proxies[Role.REDIS] = stop.enter_context(TcpProxy(free_port(), (HOST, stack.valkey.port)))
        yield Arena(
            KafkaSettings(bootstrap_servers=stack.kafka_bootstrap),
            RedisSettings(url=SecretStr(stack.redis_url)),
            stack,
            proxies,
        )


def _properties(port: int, listeners: Mapping[Role, tuple[int, int]]) -> dict[str, str]:
    """Clients go where the broker says it is, so a proxied way needs a listener that names the proxy."""
    names = {role: role.name for role in listeners}
    real = [f"{names[role]}://{HOST}:{here}" for role, (here, _) in listeners.items()]
    said = [f"{names[role]}://{HOST}:{proxied}" for role, (_, proxied) in listeners.items()]
    protocols = ",".join(f"{name}:PLAINTEXT" for name in ("PLAINTEXT", "CONTROLLER", *names.values()))
    return {
        "listeners": ",".join([f"PLAINTEXT://{HOST}:{port}", f"CONTROLLER://{HOST}:{port + 1}", *real]),
        "advertised.listeners": ",".join([f"PLAINTEXT://{HOST}:{port}", *said]),
        "listener.security.protocol.map": protocols,
    }
