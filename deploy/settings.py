"""Everything that can be set: one TOML file and `AEWATCH_…` variables over defaults that fit the local stack.

Variables win over the file. A nested field is reached with two underscores: `AEWATCH_KAFKA__BOOTSTRAP_SERVERS`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from stream.hidden_secrets import passwords_of

CONFIG_VARIABLE = "AEWATCH_CONFIG"
CONFIG_NAME = "aewatch.toml"
ENV_PREFIX = "AEWATCH_"
PORTS_FILE = "ports.json"
LISTEN = "host:port of /healthz, /readyz and /metrics; port 0: any free one, which is logged; empty: no pages"
STALL_LIMIT = "an event loop that stands still for longer hangs: the process ends, to be started again, s"


class Section(BaseModel):
    """A table of the settings file; unknown names are errors, so that a typing mistake does not pass in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class KafkaSettings(Section):
    """Where Kafka is, how to log in, and what the topics are called."""

    bootstrap_servers: str = Field("127.0.0.1:19092", description="host:port of one or more brokers, comma separated")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="how to connect"
    )
    ca_file: Path | None = Field(None, description="PEM file with the authority that signed the broker's certificate")
    certificate_file: Path | None = Field(None, description="PEM file with this client's certificate, for mutual TLS")
    key_file: Path | None = Field(None, description="PEM file with this client's private key, for mutual TLS")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="used when security_protocol begins with SASL"
    )
    username: str = Field("", description="SASL user")
    password: SecretStr = Field(SecretStr(""), description="SASL password")
    frames_topic: str = Field("ae.frames", description="what sensors publish")
    windows_topic: str = Field("ae.windows", description="what the window agent publishes")
    predictions_topic: str = Field("ae.predictions", description="what the worker publishes")
    shadow_predictions_topic: str = Field(
        "ae.predictions.shadow", description="what the worker's shadow model says, where one runs"
    )
    deadletter_topic: str = Field("ae.deadletter", description="input that could not be used, with the reason")
    partitions: int = Field(4, ge=1, le=1000, description="partitions of a topic that has to be created")
    replication_factor: int = Field(1, ge=1, le=10, description="copies of a topic that has to be created")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """What is set must have an effect: a password or a certificate in vain means less protection than was meant."""
        encrypted, login = self.security_protocol.endswith("SSL"), self.security_protocol.startswith("SASL")
        _check_tls_fields(self, encrypted, "security_protocol is SSL or SASL_SSL")
        for name, value in (("username", self.username), ("password", self.password.get_secret_value())):
            if value and not login:
                raise ValueError(
                    f"{name} is set, but with security_protocol {self.security_protocol} nobody logs in; "
                    "set it to SASL_SSL"
                )
        if login and not (self.username and self.password.get_secret_value()):
            raise ValueError(f"security_protocol {self.security_protocol} needs username and password")
        return self

    def client_options(self) -> dict[str, Any]:
        """Keyword arguments for any aiokafka client.

        Raises
        ------
        stream.tls_files.TlsFilesError
            If a PEM file cannot be used.
        """
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "security_protocol": self.security_protocol,
        }
        if "SSL" in self.security_protocol.split("_"):
            from stream.tls_files import client_context

            ca_file, certificate_file, key_file = map(_at_home, _tls_files(self))
            options["ssl_context"] = client_context(ca_file, certificate_file, key_file)
        if self.security_protocol.startswith("SASL"):
            options |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.username,
                "sasl_plain_password": self.password.get_secret_value(),
            }
        return options


class RedisSettings(Section):
    """Where alerts go."""

    url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:16379/0"),
        description="redis://, rediss:// (TLS), unix:// or redis+sentinel://; user and password may be in it",
    )
    username: str = Field("", description="user of the server's access list, if it is not in the URL")
    password: SecretStr = Field(SecretStr(""), description="its password, if it is not in the URL")
    ca_file: Path | None = Field(
        None, description="PEM file with the authority that signed the server's certificate, for rediss://"
    )
    certificate_file: Path | None = Field(None, description="PEM file with this client's certificate, for mutual TLS")
    key_file: Path | None = Field(None, description="PEM file with this client's private key, for mutual TLS")
    prefix: str = Field("aewatch", min_length=1, description="what every key and the channel begin with")
    keep_alerts: int = Field(1_000_000, ge=1000, description="alerts kept in the stream, at least")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """As of Kafka; and what is said twice could be said differently."""
        parts = urlsplit(self.url.get_secret_value())
        _check_tls_fields(self, parts.scheme.startswith("rediss"), "url begins with rediss://")
        if self.username and not self.password.get_secret_value():
            raise ValueError(f"username {self.username} has no password; set AEWATCH_REDIS__PASSWORD")
        if self.password.get_secret_value() and "@" in self.url.get_secret_value():
            raise ValueError("a login is in url and in password; leave one of them out")
        return self

    def connection_url(self) -> str:
        """The URL with login and PEM files in it, for `stream.redis_connection.connect`. It is a secret."""
        url, password = self.url.get_secret_value(), self.password.get_secret_value()
        if password:
            scheme, _, rest = url.partition("://")
            url = f"{scheme}://{quote(self.username, safe='')}:{quote(password, safe='')}@{rest}"
        for name, path in zip(("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"), _tls_files(self), strict=True):
            if path is not None:
                url += f"{'&' if '?' in url else '?'}{name}={quote(str(_at_home(path)), safe='')}"
        return url


def _tls_files(section: KafkaSettings | RedisSettings) -> tuple[Path | None, Path | None, Path | None]:
    return section.ca_file, section.certificate_file, section.key_file


def _at_home(path: Path | None) -> Path | None:
    return None if path is None else path.expanduser()


def _check_tls_fields(section: KafkaSettings | RedisSettings, encrypted: bool, wanted: str) -> None:
    for name, path in zip(("ca_file", "certificate_file", "key_file"), _tls_files(section), strict=True):
        if path is not None and not encrypted:
            raise ValueError(f"{name} is set, but nothing would be encrypted: it takes effect where {wanted}")
    if section.key_file is not None and section.certificate_file is None:
        raise ValueError("key_file is set without certificate_file; mutual TLS needs both")


class ModelSettings(Section):
    """Which model, and on what it runs."""

    bundle: str = Field("demo", description="folder of a model bundle, or 'demo' for the one that comes along")
    store: Path = Field(Path("~/.local/state/aewatch/models"), description="folder of bundles, each under its version")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, …")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="arithmetic of the network")
    threads: int | None = Field(
        None, ge=1, description="CPU threads of one engine; unset: one less than cores, at least one"
    )


class WindowAgentSettings(Section):
    """The agent that cuts frames into windows."""

    group: str = Field("aewatch-windows", description="consumer group; agents of one group share the partitions")
    max_message_bytes: int = Field(16 * 2**20, ge=1024, description="a larger frames message is dead-lettered")
    hold_s: float = Field(600.0, gt=0, description="how long a sensor that stopped mid-window may hold the commit, s")
    hold_bytes: int = Field(512 * 2**20, ge=2**20, description="how much it may make a restart read again, bytes")
    listen: str = Field("", description=LISTEN)
    stall_limit_s: float = Field(30.0, ge=1, description=STALL_LIMIT)


class WorkerSettings(Section):
    """The worker that infers and raises alarms."""

    group: str = Field("aewatch-workers", description="consumer group; workers of one group share the partitions")
    batch_windows: int = Field(32, ge=1, le=4096, description="windows in one batch, at most")
    batch_delay_ms: float = Field(10.0, ge=0, le=10_000, description="how long the first window of a batch waits, ms")
    feature_threshold_db_ae: float = Field(40.0, description="threshold of the hit features, dB above 1 µV")
    late_after_s: float = Field(10.0, gt=0, description="a live alert published later than this says by how much, s")
    listen: str = Field("", description=LISTEN)
    stall_limit_s: float = Field(30.0, ge=1, description=STALL_LIMIT)
    inference_limit_s: float = Field(
        60.0, ge=1, description="a batch on which the model takes longer hangs: the worker ends, to be started again, s"
    )


class StackSettings(Section):
    """The local Kafka and Redis-compatible server of `aewatch up`."""

    data_dir: Path = Field(
        Path("~/.local/state/aewatch"),
        description="where their data and logs are kept",
    )
    kafka_port: int = Field(19092, ge=1, le=65535, description="port of the local Kafka on 127.0.0.1")
    redis_port: int = Field(16379, ge=1, le=65535, description="port of the local Redis-compatible server on 127.0.0.1")


class LogSettings(Section):
    """What is logged, and how."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="least serious level shown")
    format: Literal["text", "json"] = Field(
        "text", description="text for people, json (one object a line) for machines"
    )


class Settings(BaseSettings):
    """All of it. `aewatch config show` prints what is in force."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
    )

    kafka: KafkaSettings = KafkaSettings()
    redis: RedisSettings = RedisSettings()
    model: ModelSettings = ModelSettings()
    window_agent: WindowAgentSettings = WindowAgentSettings()
    worker: WorkerSettings = WorkerSettings()
    alarms: dict[str, Any] = Field(default_factory=dict, description="alarm rules, see docs/alarms.md")
    stack: StackSettings = StackSettings()
    log: LogSettings = LogSettings()

    @property
    def secrets(self) -> list[str]:
        """What must not be seen, wherever it may be written."""
        fields = (self.kafka.password.get_secret_value(), self.redis.password.get_secret_value())
        return [*filter(None, fields), *passwords_of(self.redis.url.get_secret_value())]

    def bundle_path(self, named: str | None = None) -> Path:
        """Folder of the model bundle named here, or else in the settings."""
        bundle = named or self.model.bundle
        if bundle == "demo":
            from model.bundle import demo_bundle_path

            return demo_bundle_path()
        return Path(bundle).expanduser()

    def at_local_stack(self) -> Settings:
        """The same, with Kafka and Redis at the local stack's ports where they are not set."""
        kafka_port, redis_port = remembered_ports(self.stack)
        changes: dict[str, Section] = {}
        if "bootstrap_servers" not in self.kafka.model_fields_set:
            changes["kafka"] = self.kafka.model_copy(update={"bootstrap_servers": f"127.0.0.1:{kafka_port}"})
        if "url" not in self.redis.model_fields_set:
            url = SecretStr(f"redis://127.0.0.1:{redis_port}/0")
            changes["redis"] = self.redis.model_copy(update={"url": url})
        return self.model_copy(update=changes)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Variables before the file before the defaults."""
        path = config_path()
        file = () if path is None else (TomlConfigSettingsSource(settings_cls, toml_file=path),)
        return (init_settings, env_settings, *file)


def remembered_ports(stack: StackSettings) -> tuple[int, int]:
    """Kafka's and Redis' port as `aewatch up` last used them on this data folder, else as set."""
    try:
        ports = json.loads((stack.data_dir.expanduser() / PORTS_FILE).read_text())
        return int(ports["kafka"]), int(ports["redis"])
    except (OSError, ValueError, KeyError, TypeError):
        return stack.kafka_port, stack.redis_port


def remember_ports(data_dir: Path, kafka_port: int, redis_port: int) -> None:
    """Note them for every other command."""
    (data_dir / PORTS_FILE).write_text(json.dumps({"kafka": kafka_port, "redis": redis_port}))


def config_path() -> Path | None:
    """The settings file in force: AEWATCH_CONFIG (none if that is empty), else aewatch.toml here, else none."""
    named = os.environ.get(CONFIG_VARIABLE)
    if named is not None:
        return Path(named) if named else None
    here = Path(CONFIG_NAME)
    return here if here.is_file() else None
