"""Opening connections: within the time, with nothing left of those that failed."""

from __future__ import annotations

import os
import socket
import ssl
import time
from _socket import socket as RawSocket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lb.certificates import client_context
from lb.proxy.conn import Reactor
from lb.proxy.dial import TlsThreadConn, connect
from lb.proxy.tls import TlsConn
from lb.settings import UpstreamTls
from tests.support.backends import Backend, Peer, Script, deaf, refusing
from tests.support.certificates import Authority, Pair
from tests.support.green import in_greenlet, until

Secure = TlsConn | TlsThreadConn


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


# With TLS.


@pytest.fixture
def dial(own_reactor: Reactor | None, authority: Authority) -> Callable[..., Secure]:
    context = client_context(UpstreamTls(ca=str(authority.ca)), "tls")

    def made(backend: Backend, name: str = "localhost", timeout: float = 5.0, session: Any = None) -> Secure:
        address = (socket.AF_INET, ("127.0.0.1", backend.port))
        conn = in_greenlet(lambda: connect(own_reactor, address, timeout, context, name, session))
        assert isinstance(conn, TlsConn | TlsThreadConn)
        return conn

    return made


def in_steps(*steps: bytes | Callable[[Peer], object]) -> Script:
    """Send or do one after the other, each when the test says so."""

    def script(peer: Peer) -> None:
        for step in steps:
            assert peer.backend.may_go_on.acquire(timeout=20)
            peer.send(step) if isinstance(step, bytes) else step(peer)

    return script


def test_the_handshake_is_a_part_of_connecting(dial: Callable[..., Secure], server_pair: Pair) -> None:
    with Backend(lambda peer: peer.send(peer.read(4)), tls=server_pair.server()) as backend:
        conn = dial(backend)
        in_greenlet(lambda: conn.sendall(b"echo"))
        assert in_greenlet(lambda: conn.recv(10)) == b"echo"
        assert in_greenlet(lambda: conn.recv(10)) == b""
        conn.close()
        assert backend.names == ["localhost"]


def test_a_name_that_is_not_theirs(dial: Callable[..., Secure], server_pair: Pair) -> None:
    with Backend(Peer.wait_closed, tls=server_pair.server()) as backend:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            dial(backend, "other.example")
        with pytest.raises(ValueError, match="server_hostname"):
            dial(backend, "")
        until(lambda: not backend._open, "the backend to see it")
        until(lambda: len(os.listdir("/proc/self/fd")) <= before, "it to be closed here, too")


def test_a_handshake_that_is_never_answered(dial: Callable[..., Secure]) -> None:
    began = time.monotonic()
    with Backend(Peer.wait_closed) as backend, pytest.raises(TimeoutError):
        dial(backend, timeout=0.3)
    assert 0.29 < time.monotonic() - began < 2


def test_only_data_and_the_end_are_readable(dial: Callable[..., Secure], server_pair: Pair) -> None:
    """Not the tickets that TLS 1.3 sends after the handshake."""
    with Backend(in_steps(b"hello", lambda _: None), tls=server_pair.server()) as backend:
        conn = dial(backend)
        conn.timeout = 5
        until(lambda: not conn.readable() and conn.session.has_ticket, "the tickets")
        backend.may_go_on.release()
        until(conn.readable, "the data")
        assert conn.readable()
        buffer = memoryview(bytearray(10))
        got = in_greenlet(lambda: conn.recv_into(buffer))
        rest = b"" if got == 5 else in_greenlet(lambda: conn.recv(10))
        assert bytes(buffer[:got]) + rest == b"hello"
        assert not conn.readable()
        assert conn.timeout == 5
        backend.may_go_on.release()
        until(conn.readable, "the end")
        assert in_greenlet(lambda: conn.recv(10)) == b""
        conn.close()


def test_an_end_that_was_not_announced(dial: Callable[..., Secure], server_pair: Pair) -> None:
    with Backend(in_steps(lambda peer: peer.sock.shutdown(2)), tls=server_pair.server()) as backend:
        conn = dial(backend)
        backend.may_go_on.release()
        until(conn.readable, "the end")
        with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):
            in_greenlet(lambda: conn.recv(10))
        conn.close()


def test_a_session_is_taken_up(dial: Callable[..., Secure], server_pair: Pair) -> None:
    with Backend(lambda peer: peer.send(b"hello"), tls=server_pair.server()) as backend:
        first = dial(backend)
        assert in_greenlet(lambda: first.recv(10)) == b"hello"
        assert not first.resumed
        second = dial(backend, session=first.session)
        assert second.resumed
        first.close()
        second.close()
