"""The proxy does what it is told."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.backends import Backend
from tests.support.chaos import Proxy
from tests.support.clients import Client
from tests.support.run import eventually, free_port


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Backend() as backend, Proxy(("127.0.0.1", backend.port)) as made:
        yield made
        made.close()


def test_it_passes_on(proxy: Proxy) -> None:
    with Client(proxy.port) as client:
        assert client.get().status == 200
    assert proxy.connections == 1


def test_nobody_behind_it() -> None:
    with free_port() as port, Proxy(("127.0.0.1", port)) as proxy, Client(proxy.port) as client:
        assert client.at_end()


def test_late(proxy: Proxy) -> None:
    proxy.delay = 0.2
    with Client(proxy.port) as client:
        began = time.monotonic()
        assert client.get().status == 200
        assert time.monotonic() - began >= 0.2


def test_in_part(proxy: Proxy) -> None:
    with Client(proxy.port) as client:
        assert client.get().status == 200
        proxy.cut = 7
        client.sock.sendall(b"GET / HTTP/1.1\r\nHost: t.example\r\n\r\n")
        with pytest.raises(ConnectionError):
            while client.sock.recv(65536):
                pass


@pytest.mark.parametrize("how", [Proxy.reset, Proxy.close])
def test_no_more(proxy: Proxy, how: Callable[[Proxy], None]) -> None:
    with Client(proxy.port) as client:
        assert client.get().status == 200
        how(proxy)
        assert client.at_end()


def test_not_at_all(proxy: Proxy) -> None:
    proxy.silent = True
    with socket.create_connection(("127.0.0.1", proxy.port)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: t.example\r\n\r\n")
        sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        proxy.silent = False
        with pytest.raises(TimeoutError):  # what was lost stays lost
            sock.recv(1)
    with Client(proxy.port) as client:
        assert client.get().status == 200


def test_elsewhere(proxy: Proxy) -> None:
    with Backend() as other:
        proxy.target = ("127.0.0.1", other.port)
        with Client(proxy.port) as client:
            assert client.get().status == 200
        eventually(lambda: other.requests, "the request")
        proxy.close()
