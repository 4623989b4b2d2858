"""Every limit on what a client may send and how long it may take, with values other than the usual ones."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.backends import Backend, Peer, head_of, serve, stall
from tests.support.clients import Client, get, request
from tests.support.processes import Balancer, System, own_system
from tests.support.run import eventually

Place = tuple[Backend, Balancer]


def start(system: System, backend: Backend, **env: object) -> Balancer:
    """A balancer before one backend, with these variables."""
    return system.balancer(backends=backend.url, env={name: str(value) for name, value in env.items()})


def refusals(balancer: Balancer) -> list[tuple[int, str]]:
    """Status and code of each entry in the log that has a code."""
    return [(entry["status"], entry["code"]) for entry in balancer.log if "code" in entry]


def becomes(balancer: Balancer, *wanted: tuple[int, str]) -> None:
    """Wait until the log tells of exactly these."""
    eventually(lambda: len(refusals(balancer)) >= len(wanted), f"{wanted} in the log")
    assert refusals(balancer) == list(wanted)


# Sizes.


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with own_system(tmp_path_factory.mktemp("limits")) as system, Backend() as backend:
        yield (
            backend,
            start(
                system,
                backend,
                LB_LIMIT_REQUEST_LINE=200,
                LB_LIMIT_FIELDS=5,
                LB_LIMIT_FIELD_SIZE=300,
                LB_LIMIT_HEAD=900,
                LB_LIMIT_BODY=1000,
            ),
        )


def field(size: int, name: str = "X-Size") -> str:
    """A field of that size, as it is counted: name, colon, space and value."""
    return f"{name}: {'a' * (size - len(name) - 2)}"


LINE = len("GET / HTTP/1.1")
HEAD = len(request("GET", "/"))


@pytest.mark.parametrize(
    ("fits", "exceeds", "status", "code"),
    [
        (
            request("GET", "/" + "a" * (190 - LINE)),
            request("GET", "/" + "a" * (201 - LINE)),
            414,
            "uri_too_long",
        ),
        (
            request("GET", "/", *[f"X-{n}: 1" for n in range(4)]),
            request("GET", "/", *[f"X-{n}: 1" for n in range(5)]),
            431,
            "header_too_large",
        ),
        (request("GET", "/", field(290)), request("GET", "/", field(310)), 431, "header_too_large"),
        (
            request("GET", "/", *[field(270)] * 3, field(900 - HEAD - 3 * 272 - 2)),
            request("GET", "/", *[field(270)] * 3, field(901 - HEAD - 3 * 272 - 2)),
            431,
            "header_too_large",
        ),
    ],
    ids=["request_line", "fields", "field_size", "head"],
)
def test_the_head(sizes: Place, fits: bytes, exceeds: bytes, status: int, code: str) -> None:
    _, balancer = sizes
    with Client(balancer.port) as client:
        client.send(fits)
        assert client.read_answer().status == 200
        client.send(exceeds)
        answer = client.read_answer()
        assert (answer.status, answer.values("Connection")) == (status, ["close"])
        assert client.at_end()
    number = answer.values("X-Request-Id")[0]
    entry = logged(balancer, number)
    assert (entry["status"], entry["code"]) == (status, code)


def logged(balancer: Balancer, number: str) -> dict[str, Any]:
    """The entry of the request with that id."""
    found: list[dict[str, Any]] = []

    def look() -> bool:
        found[:] = [entry for entry in balancer.log if entry["id"] == number]
        return bool(found)

    eventually(look, "the entry of the log")
    return found[0]


def chunks(size: int) -> bytes:
    return b"64\r\n" + bytes(100) + b"\r\n" + b"%x\r\n" % (size - 100) + bytes(size - 100) + b"\r\n0\r\n\r\n"


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_body_of_the_largest_size(sizes: Place, method: str) -> None:
    backend, balancer = sizes
    with Client(balancer.port) as client:
        assert client.call(method, "/", bytes(1000)).status == 200
        client.send(request(method, "/", "Transfer-Encoding: chunked") + chunks(1000))
        assert client.read_answer().status == 200
    assert [len(seen.body) for seen in backend.requests[-2:]] == [1000, 1000]


@pytest.mark.parametrize("fields", [(), ("Expect: 100-continue",)])
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_body_that_says_it_is_too_large(sizes: Place, method: str, fields: tuple[str, ...]) -> None:
    """Refused by its length, before any of it was sent, and before any backend was asked."""
    backend, balancer = sizes
    before = backend.connections, len(backend.requests)
    with Client(balancer.port) as client:
        client.send(request(method, "/", "Content-Length: 1001", *fields))
        answer = client.read_answer()
        assert (answer.status, answer.values("Connection"), answer.interim) == (413, ["close"], [])
        assert client.at_end()
    assert (backend.connections, len(backend.requests)) == before
    assert logged(balancer, answer.values("X-Request-Id")[0])["code"] == "body_too_large"


def test_chunks_that_become_too_much(sizes: Place) -> None:
    """Refused when they do; what the backend has of them does not look like a whole."""
    backend, balancer = sizes
    got: list[bytes] = []

    def script(peer: Peer) -> None:
        if peer.read_head() is None:
            return
        with contextlib.suppress(ConnectionError):
            while data := peer._buffer or peer.sock.recv(65536):
                peer._buffer = b""
                got.append(data)
        peer.backend.closed.release()

    backend.script = script
    backend.hang_up()
    try:
        with Client(balancer.port) as client:
            client.send(request("POST", "/", "Transfer-Encoding: chunked") + b"64\r\n" + bytes(100) + b"\r\n")
            eventually(lambda: got, "the first chunk to arrive")
            client.send(b"384\r\n" + bytes(900) + b"\r\n")
            eventually(lambda: sum(map(len, got)) > 1000, "the second")
            client.send(b"1\r\na\r\n")
            answer = client.read_answer()
            assert (answer.status, answer.values("Connection")) == (413, ["close"])
        assert backend.closed.acquire(timeout=5)
    finally:
        backend.script = serve()
    assert not b"".join(got).endswith(b"0\r\n\r\n")
    assert logged(balancer, answer.values("X-Request-Id")[0])["code"] == "body_too_large"
    balancer.idle()


# Times.


def test_a_head_that_comes_too_slowly(system: System) -> None:
    """One byte at a time is no head in time, and blocks nobody; who says nothing is not told anything."""
    with Backend() as backend:
        balancer = start(system, backend, LB_CLIENT_HEADER_TIMEOUT=0.6)
        with contextlib.ExitStack() as stack:
            slow = [stack.enter_context(Client(balancer.port)) for _ in range(50)]
            silent = stack.enter_context(Client(balancer.port))
            began = time.monotonic()
            over = threading.Event()

            def drip() -> None:
                for byte in request("GET", "/", "X-Slow: " + "a" * 10_000):
                    if over.wait(0.02):
                        return
                    for client in slow:
                        with contextlib.suppress(OSError):  # that one was dropped
                            client.send(bytes([byte]))

            dripping = threading.Thread(target=drip)
            dripping.start()
            try:
                for _ in range(20):
                    asked = time.monotonic()
                    assert get(balancer.port).status == 200
                    assert time.monotonic() - asked < 0.5
                for client in slow:
                    answer = client.read_answer()
                    assert (answer.status, answer.values("Connection")) == (408, ["close"])
                assert 0.5 < time.monotonic() - began < 5
                assert silent.at_end()
            finally:
                over.set()
                dripping.join()
        becomes(balancer, *[(408, "client_timeout")] * 50)
        assert len(backend.requests) == 20


def test_a_client_that_pauses(system: System) -> None:
    """In what it sends, and in what it reads: `client.idle`."""

    def endless(peer: Peer) -> None:
        while (seen := peer.read_head()) is not None:
            if seen.method == "POST":
                peer.wait_closed()
                return
            peer.send(head_of(200, "Connection: close"))
            with contextlib.suppress(ConnectionError):
                while True:
                    peer.send(bytes(100_000))
            peer.backend.closed.release()
            return

    with Backend(endless) as backend:
        balancer = start(system, backend, LB_CLIENT_IDLE_TIMEOUT=0.5)
        with Client(balancer.port) as client:
            client.send(request("POST", "/sends", "Content-Length: 3") + b"a")
            answer = client.read_answer()
            assert (answer.status, answer.values("Connection")) == (408, ["close"])
            assert backend.closed.acquire(timeout=5), "the backend waits on"
        assert balancer.logged("/sends")["code"] == "client_timeout"
        for version in ("1.1", "1.0"):
            with Client(balancer.port) as client:
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
                client.send(request("GET", f"/reads/{version}", version=version))
                assert client.read_head().startswith(b"HTTP/1.1 200 ")
                assert backend.closed.acquire(timeout=5), "the backend sends on"
                with pytest.raises(ConnectionResetError):  # it must not look whole
                    while client.read_some():
                        pass
            entry = balancer.logged(f"/reads/{version}")
            assert (entry["status"], entry["code"]) == (200, "client_timeout")
        balancer.idle()


def test_a_request_that_takes_too_long(system: System) -> None:
    """However much goes on meanwhile: `client.request`."""

    def events(peer: Peer) -> None:
        if peer.read_request() is not None:
            peer.send(head_of(200, "Content-Type: text/event-stream"))
            with contextlib.suppress(ConnectionError):
                while not peer.backend.may_go_on.acquire(timeout=0.05):
                    peer.send(b"data: x\n\n")
            peer.backend.closed.release()

    with Backend(stall) as backend:
        balancer = start(system, backend, LB_CLIENT_REQUEST_TIMEOUT=0.6)
        with Client(balancer.port) as client:
            began = time.monotonic()
            answer = client.get("/thinks")
            assert answer.status == 504
            assert 0.5 < time.monotonic() - began < 3
        assert backend.closed.acquire(timeout=5)
        assert balancer.logged("/thinks")["code"] == "request_deadline"
        with Client(balancer.port) as client:
            client.send(request("POST", "/sends", "Content-Length: 1000000") + b"x")
            assert client.read_answer().status == 504
        backend.script = events
        with Client(balancer.port) as client:
            began = time.monotonic()
            client.send(request("GET", "/streams", version="1.0"))
            assert client.read_head().startswith(b"HTTP/1.1 200 ")
            with pytest.raises(ConnectionResetError):
                while client.read_some():
                    pass
            assert 0.5 < time.monotonic() - began < 3
        assert balancer.logged("/streams")["code"] == "request_deadline"
        assert backend.closed.acquire(timeout=5)
        # A tunnel is no request any more, and a connection may have any number of short ones.
        backend.hang_up()
        backend.script = serve()
        with Client(balancer.port) as client:
            began = time.monotonic()
            while time.monotonic() - began < 1:
                assert client.get("/short").status == 200
        balancer.idle()


def test_a_connection_that_is_kept(system: System) -> None:
    with Backend() as backend:
        balancer = start(system, backend, LB_CLIENT_KEEPALIVE=0.6, LB_CLIENT_HEADER_TIMEOUT=30)
        with Client(balancer.port) as client:
            for _ in range(2):
                assert client.get("/").status == 200
            began = time.monotonic()
            assert client.at_end()
            assert 0.4 < time.monotonic() - began < 3
        eventually(lambda: len(balancer.log) == 2, "the entries of the log")
        assert refusals(balancer) == []


@pytest.mark.parametrize("patience", [0, 20])
def test_a_client_that_has_ended_its_half(system: System, patience: int) -> None:
    """It may wait for its answer for `client.half_close`; 0: it has gone."""

    def script(peer: Peer) -> None:
        if peer.read_request() is not None:
            if not patience:
                peer.wait_closed()
            else:
                assert peer.backend.may_go_on.acquire(timeout=20)
                peer.send(head_of(200, "Content-Length: 2") + b"ok")

    with Backend(script) as backend:
        balancer = start(system, backend, LB_CLIENT_HALF_CLOSE=patience)
        with Client(balancer.port) as client:
            client.send(request("GET", "/half"))
            eventually(lambda: backend.requests, "the request")
            client.sock.shutdown(socket.SHUT_WR)
            if patience:
                assert not select.select([client.sock], [], [], 0.5)[0], "it was not waited for"
                backend.may_go_on.release()
                assert client.read_answer().body == b"ok"
                assert client.at_end()
            else:
                assert backend.closed.acquire(timeout=2)
                assert client.read_answer().status == 499
                assert client.at_end()
        entry = balancer.logged("/half")
        assert (entry["status"], entry.get("code")) == ((200, None) if patience else (499, "client_gone"))


# Numbers.


def test_more_connections_than_allowed_wait(system: System) -> None:
    """They are taken when there is room; the control side is not counted, and answers meanwhile."""
    with Backend() as backend:
        balancer = start(system, backend, LB_CLIENT_CONNECTIONS=5)
        with contextlib.ExitStack() as stack:
            first = [stack.enter_context(Client(balancer.port)) for _ in range(5)]
            assert all(client.get("/").status == 200 for client in first)
            late = stack.enter_context(Client(balancer.port))
            late.send(request("GET", "/late"))
            for _ in range(3):
                assert json.loads(get(balancer.control, "/readyz").body)["status"] == "ready"
            assert all(client.get("/").status == 200 for client in first)
            assert not [seen for seen in backend.requests if seen.target == "/late"]
            first[0].close()
            assert late.read_answer().status == 200
