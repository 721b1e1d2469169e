"""Why a Kafka that can be reached does not let this client in: aiokafka logs it and goes on, a person wants to know."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploy.settings import KafkaSettings

_ANSWER_MS = 5000


@dataclass(frozen=True, slots=True)
class Refusal:
    """What one broker did, and the way out."""

    broker: str  #: host:port
    reason: str
    final: bool  #: False where it may be a broker that is still starting

    def __str__(self) -> str:
        return f"{self.broker}: {self.reason}"


async def refusal(kafka: KafkaSettings) -> Refusal | None:
    """Why the first broker that can be reached does not let this client in; None if it does, or none can be reached.

    Raises
    ------
    stream.tls_files.TlsFilesError
        If a PEM file cannot be used.
    """
    from aiokafka.conn import collect_hosts, create_conn
    from aiokafka.errors import KafkaError

    options = kafka.client_options()
    for host, port, _ in collect_hosts(options.pop("bootstrap_servers")):
        try:
            async with asyncio.timeout(_ANSWER_MS / 1000):
                connection = await create_conn(host, port, request_timeout_ms=_ANSWER_MS, **options)
        except (OSError, KafkaError) as error:
            told = _told(error, kafka)
            if told is not None:
                return Refusal(f"{host}:{port}", *told)
        else:
            connection.close()
            return None
    return None


def _told(error: Exception, kafka: KafkaSettings) -> tuple[str, bool] | None:
    from aiokafka import errors

    match error:
        case ssl.SSLCertVerificationError():
            return _certificate(error, kafka), True
        case ssl.SSLError():
            reason = (error.reason or str(error)).lower().replace("_", " ")
            return f"TLS does not come about: {reason}; {_tls_hint(kafka)}", True
        case errors.SaslAuthenticationFailed() | errors.AuthenticationFailedError():
            way_out = "check kafka.username and kafka.password, and that the broker knows them for this mechanism"
            return f"user {kafka.username!r} is not let in with {kafka.sasl_mechanism}; {way_out}", True
        case errors.UnsupportedSaslMechanismError():
            return f"it does not know {kafka.sasl_mechanism}; set kafka.sasl_mechanism to one it has", True
        case errors.IllegalSaslStateError():
            other = "SSL" if kafka.security_protocol == "SASL_SSL" else "PLAINTEXT"
            return f"nobody logs in at this listener; use its other port, or kafka.security_protocol = {other}", True
        case errors.KafkaConnectionError() | ConnectionResetError():
            return f"it closed the connection at the first request; {_tls_hint(kafka)}", False
    return None


def _certificate(error: ssl.SSLCertVerificationError, kafka: KafkaSettings) -> str:
    said: Any = error.verify_message
    if "expired" in said or "not yet valid" in said:
        way_out = "renew it there, or set this machine's clock"
    elif "mismatch" in said or "not valid for" in said:
        way_out = "name the broker in kafka.bootstrap_servers as its certificate does"
    elif kafka.ca_file is None:
        way_out = "name the authority that signed it with kafka.ca_file"
    else:
        way_out = f"kafka.ca_file = {kafka.ca_file} is not the authority that signed it"
    return f"its certificate does not hold ({said.rstrip('.')}); {way_out}"


def _tls_hint(kafka: KafkaSettings) -> str:
    if not kafka.security_protocol.endswith("SSL"):
        return f"it may want TLS, and kafka.security_protocol is {kafka.security_protocol}"
    if kafka.certificate_file is None:
        return (
            "it may want a certificate of this client (kafka.certificate_file, kafka.key_file), "
            f"or not speak TLS there; kafka.security_protocol is {kafka.security_protocol}"
        )
    return f"it may not know the authority that signed {kafka.certificate_file}, or not speak TLS there"
