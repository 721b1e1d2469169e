"""A real Kafka behind TLS and logins, where everybody may do only what `docs/security.md` grants."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import re
import secrets
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest_v1
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    CompactArray,
    CompactBytes,
    CompactString,
    Int8,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

from deploy.local_stack.kafka import Kafka
from deploy.local_stack.ports import HOST, free_port
from deploy.settings import KafkaSettings
from deploy.topics import ensure_topics
from tests.certificates import Authority, Certificate

SECURITY = Path(__file__).parents[2] / "docs" / "security.md"
ITERATIONS = 4096
LISTENERS = {
    "TLS": "SSL",
    "MUTUAL": "SSL",
    "LOGIN": "SASL_SSL",
    "EXPIRED": "SSL",
    "STRANGER": "SSL",  # its certificate is for another host
}


@dataclass(frozen=True, slots=True)
class Grant:
    """One `kafka-acls.sh --add`."""

    principal: str
    operation: str
    topics: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GuardedKafka:
    """Its doors, and the passwords of those who log in."""

    server: Kafka
    ports: dict[str, int]
    authority: Authority
    stranger: Authority  #: that has signed nothing here
    passwords: dict[str, str]

    def at(self, listener: str, **fields: Any) -> KafkaSettings:
        """Settings for one of its doors."""
        return KafkaSettings(
            bootstrap_servers=f"{HOST}:{self.ports[listener]}",
            **{"security_protocol": LISTENERS[listener], "ca_file": self.authority.ca, "partitions": 2, **fields},
        )

    def as_user(self, user: str, mechanism: str = "SCRAM-SHA-512", **fields: Any) -> KafkaSettings:
        """Settings that log in."""
        login = {"username": user, "password": self.passwords[user], "sasl_mechanism": mechanism}
        return self.at("LOGIN", **(login | fields))

    def certificate(self, name: str) -> Certificate:
        """Of a client that is called so."""
        return self.authority.sign(name)

    @property
    def super_user(self) -> KafkaSettings:
        """Through the door that only this machine sees."""
        return KafkaSettings(bootstrap_servers=self.server.address, partitions=2)


@contextmanager
def guarded_kafka(folder: Path, users: Sequence[str], grants: Sequence[Grant]) -> Iterator[GuardedKafka]:
    """Started with the five topics, these users and these rights."""
    authority, stranger = Authority(folder / "ca"), Authority(folder / "stranger", "somebody else")
    passwords = {user: secrets.token_urlsafe(12) for user in users}
    ports = {name: free_port() for name in LISTENERS}
    own = free_port(2)
    server = Kafka(folder / "kafka", folder / "kafka.log", own, _properties(own, ports, authority, passwords))
    server.start(owned=True)
    try:
        server.wait_ready(60)
        guarded = GuardedKafka(server, ports, authority, stranger, passwords)
        asyncio.run(_furnish(guarded, grants))
        yield guarded
    finally:
        server.service.stop()


def documented_grants() -> list[Grant]:
    """The `kafka-acls.sh` commands of docs/security.md."""
    parser = argparse.ArgumentParser()
    for name, wanted in (
        ("--allow-principal", None),
        ("--operation", None),
        ("--topic", "append"),
        ("--group", "append"),
    ):
        parser.add_argument(name, **({"action": wanted, "default": []} if wanted else {"required": True}))
    grants = []
    for line in re.findall(r"^kafka-acls.sh \$KAFKA --add (.*)$", SECURITY.read_text(encoding="utf-8"), re.MULTILINE):
        given = parser.parse_args(shlex.split(line))
        grants.append(Grant(given.allow_principal, given.operation, tuple(given.topic), tuple(given.group)))
    return grants


def _properties(own: int, ports: dict[str, int], authority: Authority, passwords: dict[str, str]) -> dict[str, str]:
    doors = ",".join(f"{name}://{HOST}:{port}" for name, port in ports.items())
    modules = "org.apache.kafka.common.security"
    users = " ".join(f'user_{user}="{password}"' for user, password in passwords.items())
    return {
        "listeners": f"PLAINTEXT://{HOST}:{own},CONTROLLER://{HOST}:{own + 1},{doors}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{own},{doors}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,"
        + ",".join(f"{name}:{protocol}" for name, protocol in LISTENERS.items()),
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(authority.sign("broker").bundle),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(authority.ca),
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.expired.ssl.keystore.location": str(authority.sign("expired", ended=timedelta(hours=1)).bundle),
        "listener.name.stranger.ssl.keystore.location": str(authority.sign("other", ("kafka.elsewhere",)).bundle),
        "ssl.principal.mapping.rules": "RULE:^CN=([^,]+).*$/$1/,DEFAULT",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN",
        "listener.name.login.scram-sha-512.sasl.jaas.config": f"{modules}.scram.ScramLoginModule required;",
        "listener.name.login.plain.sasl.jaas.config": f"{modules}.plain.PlainLoginModule required {users};",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "false",
        "super.users": "User:ANONYMOUS",
        # A test that is refused on purpose need not wait.
        "connection.failed.authentication.delay.ms": "10",
    }


async def _furnish(kafka: GuardedKafka, grants: Sequence[Grant]) -> None:
    await ensure_topics(kafka.super_user)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.server.address)
    await admin.start()
    try:
        logins = await admin._send_to_controller(_AlterLogins([_login(*one) for one in kafka.passwords.items()]))
        assert not any(code for _, code, _, _ in logins.results), logins
        acls = await admin._send_to_controller(_CreateAcls([row for grant in grants for row in _rows(grant)]))
        assert not any(code for code, _ in acls.creation_responses), acls
    finally:
        await admin.close()


def _rows(grant: Grant) -> Iterator[tuple[int, str, int, str, str, int, int]]:
    literal, allow, topic, group = 3, 3, 2, 3
    operation = {"Read": 3, "Write": 4, "Describe": 8}[grant.operation]
    for kind, names in ((topic, grant.topics), (group, grant.groups)):
        for name in names:
            yield kind, name, literal, grant.principal, "*", operation, allow


def _login(user: str, password: str) -> tuple[str, int, int, bytes, bytes, dict[int, bytes]]:
    scram_sha_512, salt = 2, secrets.token_bytes(16)
    return user, scram_sha_512, ITERATIONS, salt, hashlib.pbkdf2_hmac("sha512", password.encode(), salt, ITERATIONS), {}


class _CreateAcls(Request[CreateAclsRequest_v1]):
    API_KEY = 30

    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows

    def build(self, request_struct_class: type[CreateAclsRequest_v1]) -> CreateAclsRequest_v1:
        return request_struct_class(self._rows)


class _AlterLoginsResponse(Response):
    API_KEY = 51
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "results",
            CompactArray(
                ("user", CompactString("utf-8")),
                ("error_code", Int16),
                ("error_message", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _AlterLoginsRequest(RequestStruct):
    API_KEY = 51
    API_VERSION = 0
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _AlterLoginsResponse
    SCHEMA = Schema(
        (
            "deletions",
            CompactArray(("name", CompactString("utf-8")), ("mechanism", Int8), ("tags", TaggedFields)),
        ),
        (
            "upsertions",
            CompactArray(
                ("name", CompactString("utf-8")),
                ("mechanism", Int8),
                ("iterations", Int32),
                ("salt", CompactBytes),
                ("salted_password", CompactBytes),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _AlterLogins(Request[_AlterLoginsRequest]):
    API_KEY = 51

    def __init__(self, logins: list[Any]) -> None:
        self._logins = logins

    def build(self, request_struct_class: type[_AlterLoginsRequest]) -> _AlterLoginsRequest:
        return request_struct_class([], self._logins, {})
