"""Bytes pass on as they come, at the pace of the slower side, and for nobody who has left."""

from __future__ import annotations

import contextlib
import hashlib
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_memory import growth
from tests.support.backends import Backend, Peer, Script, head_of, in_steps, ok, stall
from tests.support.clients import Client, request
from tests.support.processes import Balancer, own_system
from tests.support.run import eventually

HALF_CLOSE = 0.5
SMALL = 65536
"""Bytes: the socket buffers of both ends; those of the balancer are what the system gives."""
MOST_MIB = 2.0
"""What a worker may grow by for one body that does not get on."""
PROMPT = 1.5
"""Seconds after which a backend must not work any more for a client that has left."""


@pytest.fixture(scope="module")
def balancer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Backend, Balancer]]:
    """A balancer and its only backend."""
    with own_system(tmp_path_factory.mktemp("streaming")) as system, Backend() as backend:
        env = {"LB_CLIENT_HALF_CLOSE": str(HALF_CLOSE), "LB_UPSTREAM_MAX_IDLE": "0"}
        yield backend, system.balancer(backends=backend.url, env=env)


@pytest.fixture
def place(balancer: tuple[Backend, Balancer]) -> Iterator[tuple[Backend, Balancer]]:
    """The same, with nothing going on, before and after."""
    backend, one = balancer
    backend.requests.clear()
    backend.closed = type(backend.closed)(0)
    backend.may_go_on = type(backend.may_go_on)(0)
    yield balancer
    one.idle()


def kernel_holds() -> int:
    """Bytes that the system may keep in the balancer's two sockets of one direction, at most."""
    most = [int(Path(f"/proc/sys/net/ipv4/tcp_{kind}mem").read_text().split()[2]) for kind in "rw"]
    return sum(most)


def push(sock: socket.socket, block: bytes, most: int) -> int:
    """Send `block` again and again until nothing more is taken for half a second; how many bytes were."""
    sock.setblocking(False)
    sent = 0
    try:
        while sent < most and select.select([], [sock], [], 0.5)[1]:
            with contextlib.suppress(BlockingIOError):
                at = sent % len(block)
                sent += sock.send(block[at:])
    finally:
        sock.settimeout(20)
    return sent


# The pace of the slower side.

TOTAL = 64 << 20


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_a_slow_reader_slows_the_backend_down(place: tuple[Backend, Balancer], framing: str) -> None:
    backend, balancer = place
    block = bytes(range(256)) * 4096
    wire = b"%x\r\n%b\r\n" % (len(block), block) if framing == "chunked" else block
    heads = {
        "length": head_of(200, f"Content-Length: {TOTAL}"),
        "chunked": head_of(200, "Transfer-Encoding: chunked"),
        "close": head_of(200),
    }
    taken: list[int] = []

    def script(peer: Peer) -> None:
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        assert peer.read_request() is not None
        peer.send(heads[framing])
        taken.append(push(peer.sock, wire, TOTAL))
        at = taken[0] % len(wire)
        peer.send(wire[at:] if at else b"")
        for _ in range(TOTAL // len(block) - -(-taken[0] // len(wire))):
            peer.send(wire)
        if framing == "chunked":
            peer.send(b"0\r\n\r\n")

    backend.script = script
    (pid,) = balancer.worker_pids
    with Client(balancer.port) as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        client.send(request("GET", "/"))

        def wait() -> None:
            eventually(lambda: taken, "the backend to be stopped")

        grown = growth(pid, wait)
        assert taken[0] < kernel_holds() + 16 * SMALL, "more than the sockets hold"
        assert max(grown.peak, grown.after) < MOST_MIB, grown
        answer = client.read_answer()
    assert answer.complete
    assert hashlib.sha256(answer.body).digest() == hashlib.sha256(block * (TOTAL // len(block))).digest()


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_slow_backend_slows_the_uploader_down(place: tuple[Backend, Balancer], framing: str) -> None:
    backend, balancer = place
    block = bytes(range(256)) * 4096
    wire = b"%x\r\n%b\r\n" % (len(block), block) if framing == "chunked" else block

    def script(peer: Peer) -> None:
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        head = peer.read_head()
        assert head is not None
        assert peer.backend.may_go_on.acquire(timeout=20)
        body, _ = peer._read_body(head)
        peer.send(ok(hashlib.sha256(body).hexdigest().encode()))

    backend.script = script
    (pid,) = balancer.worker_pids
    with Client(balancer.port) as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        how = f"Content-Length: {TOTAL}" if framing == "length" else "Transfer-Encoding: chunked"
        client.send(request("POST", "/", how))
        taken: list[int] = []
        grown = growth(pid, lambda: taken.append(push(client.sock, wire, TOTAL)))
        assert taken[0] < kernel_holds() + 16 * SMALL, "more than the sockets hold"
        assert max(grown.peak, grown.after) < MOST_MIB, grown
        backend.may_go_on.release()
        at = taken[0] % len(wire)
        client.send(wire[at:] if at else b"")
        for _ in range(TOTAL // len(block) - -(-taken[0] // len(wire))):
            client.send(wire)
        if framing == "chunked":
            client.send(b"0\r\n\r\n")
        answer = client.read_answer()
    assert answer.body.decode() == hashlib.sha256(block * (TOTAL // len(block))).hexdigest()


# Bytes pass on as they come.


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("framing", ["chunked", "close", "length"])
def test_server_sent_events(place: tuple[Backend, Balancer], framing: str, version: str) -> None:
    """Each arrives before the next one is written."""
    backend, balancer = place
    events = [b"data: %d\n\n" % number for number in range(5)]
    kinds = {
        "chunked": "Transfer-Encoding: chunked",
        "close": "Connection: close",
        "length": f"Content-Length: {sum(map(len, events))}",
    }
    head = head_of(200, "Content-Type: text/event-stream", kinds[framing])
    pieces = [b"%x\r\n%b\r\n" % (len(event), event) if framing == "chunked" else event for event in events]
    backend.script = in_steps(head, *pieces, *([b"0\r\n\r\n"] if framing == "chunked" else []))
    with Client(balancer.port) as client:
        client.send(request("GET", "/events", version=version))
        backend.may_go_on.release()
        assert client.read_head().startswith(b"HTTP/1.1 200 ")
        chunked = version == "1.1" and framing != "length"
        for event in events:
            backend.may_go_on.release()
            wanted = b"%x\r\n%b\r\n" % (len(event), event) if chunked else event
            assert client.read(len(wanted)) == wanted
        backend.may_go_on.release()
        if chunked:
            assert client.read(5) == b"0\r\n\r\n"


# Clients that leave.

LARGE = 300_000


def thinking(peer: Peer) -> None:
    """Take the whole request, and never answer."""
    stall(peer)


def stopping_in_the_answer(peer: Peer) -> None:
    if peer.read_request() is not None:
        peer.send(head_of(200, "Content-Length: 100") + b"x")
        peer.wait_closed()


def silent_event_stream(peer: Peer) -> None:
    if peer.read_request() is not None:
        peer.send(head_of(200, "Transfer-Encoding: chunked") + b"3\r\none\r\n")
        peer.wait_closed()


def flowing(peer: Peer) -> None:
    if peer.read_request() is not None:
        peer.send(head_of(200, "Content-Length: 100000000000"))
        with contextlib.suppress(ConnectionError):
            while True:
                peer.send(bytes(100_000))
        peer.backend.closed.release()


def waiting_for_more(peer: Peer) -> None:
    if (head := peer.read_head()) is not None:
        peer.backend.requests.append(head)
        peer.wait_closed()


def switched(peer: Peer) -> None:
    if (head := peer.read_head()) is not None:
        peer.backend.requests.append(head)
        peer.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
        peer.wait_closed()


CHUNKED = "Transfer-Encoding: chunked"
LEAVING: dict[str, tuple[Script, bytes, bytes]] = {
    # While its backend ..., having sent ..., and having been answered so far ...
    "thinks": (thinking, request("GET", "/"), b""),
    "thinks about a small body": (thinking, request("POST", "/", "Content-Length: 3") + b"abc", b""),
    "thinks about a large body": (
        thinking,
        request("POST", "/", f"Content-Length: {LARGE}") + bytes(LARGE),
        b"",
    ),
    "thinks about chunks": (
        thinking,
        request("POST", "/", CHUNKED) + b"%x\r\n%b\r\n0\r\n\r\n" % (LARGE, bytes(LARGE)),
        b"",
    ),
    "pauses in its answer": (stopping_in_the_answer, request("GET", "/"), b"x"),
    "has no event to send": (silent_event_stream, request("GET", "/"), b"one"),
    "has no event to send for a POST": (
        silent_event_stream,
        request("POST", "/", f"Content-Length: {LARGE}") + bytes(LARGE),
        b"one",
    ),
    "sends": (flowing, request("GET", "/"), bytes(1000)),
    "reads": (waiting_for_more, request("POST", "/", "Content-Length: 1000000") + bytes(1000), b""),
    "reads chunks": (waiting_for_more, request("POST", "/", CHUNKED) + b"3\r\nabc\r\n", b""),
    "was asked to go on": (
        waiting_for_more,
        request("POST", "/", "Content-Length: 5", "Expect: 100-continue"),
        b"",
    ),
    "speaks another protocol": (
        switched,
        request("GET", "/", "Connection: Upgrade", "Upgrade: echo"),
        b"101",
    ),
}


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("case", LEAVING)
def test_a_client_that_leaves_while_its_backend(place: tuple[Backend, Balancer], case: str, how: str) -> None:
    """Its backend learns of it, at once, or after the time that a client may wait with its half closed."""
    backend, balancer = place
    script, sent, answered = LEAVING[case]
    backend.script = script
    with Client(balancer.port) as client:
        client.send(sent)
        got = b""
        while answered not in got:
            got += client.read_some()
        eventually(lambda: backend.requests, "the request to arrive")
        began = time.monotonic()
        client.reset() if how == "reset" else client.close()
        assert backend.closed.acquire(timeout=10), "it still works for nobody"
        took = time.monotonic() - began
    assert took < PROMPT if how == "reset" else took < HALF_CLOSE + PROMPT
    balancer.idle()


def test_a_client_that_has_ended_its_half_gets_all_of_a_long_answer(place: tuple[Backend, Balancer]) -> None:
    """As long as it takes what comes it is there, however long that lasts."""
    backend, balancer = place

    def slowly(peer: Peer) -> None:
        assert peer.read_request() is not None
        peer.send(head_of(200, "Transfer-Encoding: chunked"))
        until = time.monotonic() + 4 * HALF_CLOSE
        while time.monotonic() < until:
            peer.send(b"3\r\nabc\r\n")
            time.sleep(HALF_CLOSE / 5)  # its pace
        peer.send(b"0\r\n\r\n")

    backend.script = slowly
    with Client(balancer.port) as client:
        client.send(request("GET", "/long"))
        client.sock.shutdown(socket.SHUT_WR)
        answer = client.read_answer()
        assert answer.complete
        assert len(answer.body) > 30
        assert client.at_end()
