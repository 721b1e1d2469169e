"""Samples as MQTT payloads: raw, channels interleaved, one topic a source."""

from __future__ import annotations

from collections.abc import AsyncIterator
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SecretStr

from producers.live.pcm import DatagramCounter, Decoder, PcmSettings
from producers.live.source import Block, SourceError, SourceSettings


class MqttSettings(PcmSettings):
    """Where the broker is, and what its payloads hold."""

    topic: str
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65_535)] = 1_883
    username: str = ""
    password: SecretStr = SecretStr("")
    tls: bool = False
    qos: Literal[0, 1, 2] = 1
    counter: Literal["none", "uint32", "uint64"] = "none"  #: little-endian number of the payload at its beginning
    client_id: str = ""  #: with one, the broker keeps what comes while the connection is away (QoS 1 and 2)


class Mqtt:
    """Each payload is a piece of the row of samples, in the order in which the broker gives them.

    QoS 1 may give a payload twice; with a counter the second one is left out.
    """

    Settings: ClassVar[type[SourceSettings]] = MqttSettings

    @staticmethod
    def require() -> None:
        """Raises `SourceError` if the extra is not installed; for `producers.live.registry.missing_here`."""
        _aiomqtt()

    def __init__(self, settings: MqttSettings) -> None:
        self.rate_hz, self.channels = Fraction(settings.rate_hz), settings.channels
        self._settings = settings

    async def blocks(self) -> AsyncIterator[Block]:
        """One for each payload."""
        aiomqtt = _aiomqtt()
        settings = self._settings
        where = f"mqtt://{settings.host}:{settings.port}/{settings.topic}"
        decoder, counted = Decoder(settings), DatagramCounter(settings.counter)
        try:
            async with aiomqtt.Client(
                settings.host,
                settings.port,
                username=settings.username or None,
                password=settings.password.get_secret_value() or None,
                identifier=settings.client_id or None,
                clean_session=not settings.client_id,
                tls_params=aiomqtt.TLSParameters() if settings.tls else None,
            ) as client:
                await client.subscribe(settings.topic, qos=settings.qos)
                async for message in client.messages:
                    payload = message.payload
                    place = counted.next(payload) if isinstance(payload, bytes) else None
                    if place is None:
                        continue
                    data, missing = place
                    if not data or len(data) % decoder.row_bytes:
                        raise SourceError(
                            f"{where}: a payload of {len(data)} bytes of samples; {settings.channels} channels of "
                            f"{settings.sample_type} take a multiple of {decoder.row_bytes}"
                        )
                    samples = decoder.rows(data)
                    yield Block(samples, lost=missing * len(samples))
        except aiomqtt.MqttError as error:
            raise SourceError(f"{where}: {error}; is the broker there, and are the credentials right?") from error


def _aiomqtt() -> Any:
    try:
        import aiomqtt
    except ImportError as error:
        raise SourceError("MQTT needs aiomqtt; pip install 'aewatch[mqtt]'") from error
    return aiomqtt
