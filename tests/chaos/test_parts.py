"""The proxy, the collector and the clock that is off: each does what the faults say it does."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.chaos.collector import collected, open_whole
from deploy.chaos.tcp_proxy import TcpProxy, Way
from deploy.local_stack.ports import HOST, free_port
from stream.alerts import encode_alert
from tests.chaos.test_judge import alert


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that answers with what it is told; its port."""
    with socket.create_server((HOST, 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        def answer(connection: socket.socket) -> None:
            with connection, contextlib.suppress(ConnectionResetError):
                while data := connection.recv(4096):
                    connection.sendall(data)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


@pytest.fixture
def proxy(echo: int) -> Iterator[TcpProxy]:
    with TcpProxy(free_port(), (HOST, echo)) as made:
        yield made


def connect(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection((HOST, proxy.port), timeout=5)


def ask(connection: socket.socket, text: bytes) -> bytes:
    connection.sendall(text)
    return connection.recv(4096)


def test_a_free_way_passes_all_on(proxy: TcpProxy) -> None:
    with connect(proxy) as connection:
        assert ask(connection, b"hello") == b"hello"


def test_what_is_said_while_the_way_is_cut_comes_when_it_is_free_again(proxy: TcpProxy) -> None:
    with connect(proxy) as connection:
        ask(connection, b"before")
        proxy.go(Way.CUT)
        connection.sendall(b"during")
        connection.settimeout(0.4)
        with pytest.raises(TimeoutError):
            connection.recv(4096)
        with connect(proxy) as other:  # new ones are taken and wait as well
            other.settimeout(0.4)
            other.sendall(b"new")
            with pytest.raises(TimeoutError):
                other.recv(4096)
        proxy.go(Way.FREE)
        connection.settimeout(5)
        assert connection.recv(4096) == b"during"


def test_a_slow_way_takes_its_time(proxy: TcpProxy) -> None:
    with connect(proxy) as connection:
        proxy.go(Way.SLOW)
        begun = time.monotonic()
        assert ask(connection, b"hello") == b"hello"
        assert time.monotonic() - begun > 0.29


def test_a_reset_ends_the_connections_there_are_and_takes_new_ones(proxy: TcpProxy) -> None:
    with connect(proxy) as connection:
        ask(connection, b"hello")
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            connection.recv(4096)
    with connect(proxy) as connection:
        assert ask(connection, b"again") == b"again"


def test_where_the_server_is_gone_connections_are_refused_at_once() -> None:
    with (
        TcpProxy(free_port(), (HOST, free_port())) as proxy,
        connect(proxy) as connection,
        pytest.raises(ConnectionResetError),
    ):
        connection.recv(1)


def test_a_collector_goes_on_behind_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "collected.tsv"
    assert collected(path) == []
    whole = b"5-0\t" + encode_alert(alert("a", 1)) + b"\n"
    path.write_bytes(whole + b'6-0\t{"id": "half')
    assert collected(path) == [("5-0", alert("a", 1))]
    with open_whole(path) as file:
        file.write(b"6-0\t" + encode_alert(alert("a", 2)) + b"\n")
    assert [cursor for cursor, _ in collected(path)] == ["5-0", "6-0"]


def test_a_clock_that_is_off_tells_the_time_of_day_wrong_and_durations_right() -> None:
    program = (
        "import time; from deploy.chaos.skewed_clock import set_off; real = time.time(), time.monotonic();"
        "set_off(-86400); print(time.time() - real[0], time.time_ns() / 1e9 - real[0],"
        "time.mktime(time.localtime()) - real[0], time.monotonic() - real[1])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    off = [float(number) for number in done.stdout.split()]
    assert off == pytest.approx([-86400, -86400, -86400, 0], abs=2)
