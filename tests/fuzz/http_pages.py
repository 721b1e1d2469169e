"""Targets: anything a client may send to the pages of a producer, a window agent or a worker, over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import cache

from tests.fuzz.bytes_reader import Reader
from tests.fuzz.target import Target

ANSWER_WITHIN_S = 2.0
WAITS_S = 0.01  #: for an answer to half a request, which never comes
METHODS = (b"GET", b"HEAD", b"POST", b"OPTIONS", b"TRACE", b"PUT", b"GETT", b"")
PATHS = (
    b"/metrics",
    b"/sensors",
    b"/healthz",
    b"/readyz",
    b"/",
    b"*",
    b"//x",
    b"/%00",
    b"/../etc/passwd",
    b"http://h:x/",
)
VERSIONS = (b"HTTP/1.1", b"HTTP/1.0", b"HTTP/9", b"")
HEADERS = (
    b"Host: x", b"Host: x\r\nHost: y", b"Content-Length: 5", b"Content-Length: -1", b"Transfer-Encoding: chunked",
    b"Expect: 100-continue", b"Connection: close", b"Connection: upgrade\r\nUpgrade: websocket", b"Range: bytes=5-1",
    b"Accept: \xff\xfe", b"X: " + b"y" * 9000, b"Cookie: a=b; c", b"If-None-Match: *", b" folded",
    b"Content-Encoding: gzip", b"Accept-Encoding: gzip, br",
)  # fmt: skip


def producer() -> AbstractAsyncContextManager[str]:
    # Imported late, as is all below: it takes seconds, and most targets need none of it.
    from deploy.producer_pages import ProducerState, producer_pages
    from producers.live.sensor_meter import SensorMeter

    meters = [SensorMeter("plant/p\u00fcmp", "rig", 5.0, {"machine": "pump 3"}), SensorMeter("b", "rig", 5.0)]
    return producer_pages("127.0.0.1:0", lambda: ProducerState([meter.report(0) for meter in meters], {}, "connected"))


def role() -> AbstractAsyncContextManager[str]:
    from deploy.role_metrics import agent_metrics
    from deploy.role_pages import role_pages
    from stream.frame_partition import FrameCounts
    from stream.health import Health
    from stream.window_agent import AgentSnapshot
    from stream.window_output import OutputCounts

    health = Health((), ("Kafka has not answered for 5 s",))  # so /readyz is 503, as documented
    snapshot = AgentSnapshot(1.0, 1, 0, 0, {}, {}, True, FrameCounts(), OutputCounts())
    return role_pages("127.0.0.1:0", lambda: health, lambda: agent_metrics(snapshot, health, {}))


class Pages:
    """Pages served from a thread, until the process ends."""

    def __init__(self, pages: Callable[[], AbstractAsyncContextManager[str]]) -> None:
        ready = threading.Event()

        async def serve() -> None:
            async with pages() as address:
                host, _, port = address.rpartition(":")
                self.address = (host, int(port))
                ready.set()
                await asyncio.get_running_loop().create_future()

        threading.Thread(target=asyncio.run, args=(serve(),), daemon=True).start()
        assert ready.wait(90)

    def ask(self, request: bytes, patience_s: float) -> bytes:
        """All that is answered until the server hangs up or says nothing for so long."""
        answer = bytearray()
        with socket.create_connection(self.address, ANSWER_WITHIN_S) as client:
            client.settimeout(patience_s)
            with contextlib.suppress(ConnectionError, TimeoutError):  # a server may hang up, or wait for more
                client.sendall(request)
                while part := client.recv(2**16):
                    answer += part
        return bytes(answer)


@cache
def served(which: str) -> Pages:
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)
    return Pages(role if which == "role" else producer)


def request_in(reader: Reader) -> bytes:
    """A request line and headers from lists, or any bytes at all, then a body."""
    if reader.number(1) % 4 == 0:
        return reader.rest()
    line = b" ".join((reader.choice(METHODS), reader.choice(PATHS) + reader.take(reader.number(1) % 16)))
    headers = [reader.choice(HEADERS) for _ in range(reader.number(1) % 6)]
    return b"\r\n".join((line + b" " + reader.choice(VERSIONS), *headers, b"", reader.rest()))


def check_pages(which: str, data: bytes) -> None:
    pages = served(which)
    request = request_in(Reader(data))
    for status in statuses(pages.ask(request, WAITS_S)):
        assert status < 500 or (which == "role" and status == 503), f"{status} for {request!r}"
    page = b"/healthz"
    answer = pages.ask(b"GET " + page + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", ANSWER_WITHIN_S)
    assert answer.startswith(b"HTTP/1.1 200 "), answer[:100]


def statuses(answer: bytes) -> list[int]:
    """Of each answer in what came back over one connection, as far as they can be told apart."""
    found = []
    while answer:
        head, _, rest = answer.partition(b"\r\n\r\n")
        line, *fields = head.split(b"\r\n")
        assert line.startswith(b"HTTP/1."), line
        found.append(int(line.split(b" ")[1]))
        lengths = [int(field[15:]) for field in fields if field.lower().startswith(b"content-length:")]
        following = rest.find(b"HTTP/1.") if not lengths else min(lengths[0], len(rest))
        answer = rest[following:] if following >= 0 else b""
        if not answer.startswith(b"HTTP/1."):
            break  # the answer to HEAD has a length and no body
    return found


def page_seeds() -> list[bytes]:
    lines = [bytes([1, method, path, 0, 1, 0, 0]) for method in range(len(METHODS)) for path in range(len(PATHS))]
    headers = [bytes([1, 0, 0, 0, 2, number, 0, 0]) + b"5\r\nhello\r\n0\r\n\r\n" for number in range(len(HEADERS))]
    plain = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    return [*lines, *headers, b"\0" + plain, b"\0" + plain * 3, b"\0\x16\x03\x01", b"\0" + b"A" * 5000]


TARGETS = [
    Target(
        "producer-pages",
        "any request: no 5xx, and the next one is answered within 2 s",
        lambda data: check_pages("producer", data),
        page_seeds,
        max_bytes=512,
        share=0.02,
    ),
    Target(
        "role-pages",
        "the same for a window agent or worker, where 503 says not ready",
        lambda data: check_pages("role", data),
        page_seeds,
        max_bytes=512,
        share=0.02,
    ),
]
