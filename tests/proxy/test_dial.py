"""Opening connections: within the time, with nothing left of those that failed."""

from __future__ import annotations

import os
import socket
import time
from _socket import socket as RawSocket
from pathlib import Path

import pytest

from lb.proxy.conn import Reactor
from lb.proxy.dial import connect
from tests.support.backends import deaf, refusing
from tests.support.green import in_greenlet


@pytest.fixture(params=["greenlets", "threads"])
def own_reactor(request: pytest.FixtureRequest, reactor: Reactor) -> Reactor | None:
    return reactor if request.param == "greenlets" else None


def target(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host, int(port)


def test_connect(own_reactor: Reactor | None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        conn = in_greenlet(lambda: connect(own_reactor, (socket.AF_INET, listener.getsockname()), 5))
        theirs, _ = listener.accept()
        with theirs:
            in_greenlet(lambda: conn.sendall(b"hello"))
            assert theirs.recv(10) == b"hello"
            assert conn.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        conn.close()


def test_connect_to_a_unix_socket(own_reactor: Reactor | None, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        conn = in_greenlet(lambda: connect(own_reactor, (socket.AF_UNIX, path), 5))
        conn.close()


def test_a_refused_connection_is_an_error_at_once(own_reactor: Reactor | None) -> None:
    with refusing() as url, pytest.raises(ConnectionRefusedError):
        in_greenlet(lambda: connect(own_reactor, (socket.AF_INET, target(url)), 5))


def test_a_connection_that_nobody_takes_ends_at_the_timeout(own_reactor: Reactor | None) -> None:
    began = time.monotonic()
    with deaf() as url, pytest.raises(TimeoutError):
        in_greenlet(lambda: connect(own_reactor, (socket.AF_INET, target(url)), 0.2))
    assert 0.19 < time.monotonic() - began < 2


def test_a_unix_socket_whose_queue_is_full_is_no_connection(reactor: Reactor, tmp_path: Path) -> None:
    """The kernel says EAGAIN, and nothing goes on in the background that could be waited for."""
    path = str(tmp_path / "s")
    fillers = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        while True:
            one = RawSocket(socket.AF_UNIX, socket.SOCK_STREAM)
            one.setblocking(False)
            fillers.append(one)
            if one.connect_ex(path):
                break
        try:
            with pytest.raises(BlockingIOError):
                in_greenlet(lambda: connect(reactor, (socket.AF_UNIX, path), 0.3))
        finally:
            for one in fillers:
                one.close()


def test_failed_connections_leave_no_descriptor(own_reactor: Reactor | None) -> None:
    with refusing() as url:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            with pytest.raises(ConnectionRefusedError):
                in_greenlet(lambda: connect(own_reactor, (socket.AF_INET, target(url)), 5))
        assert len(os.listdir("/proc/self/fd")) == before
