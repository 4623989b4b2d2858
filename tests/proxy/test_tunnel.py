"""Two connections joined: every byte arrives, in both directions, and the tunnel knows when it is over."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

import gevent
import pytest
from msgspec import structs

from lb.model import Backend, PoolSettings, Snapshot
from lb.proxy.conn import NEVER, Conn, RawSocket, Reactor
from lb.proxy.tunnel import Tunnel, Tunnels
from tests.support.green import until

IDLE = 20.0


def tcp_pair() -> tuple[RawSocket, socket.socket]:
    """Two ends of a TCP connection: one as the program has its sockets, one for the test."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    raw = RawSocket(fileno=ours.detach())
    raw.setblocking(False)
    return raw, theirs


class Joined:
    """A running tunnel between two sockets of the test: `client` and `backend` are their far ends."""

    def __init__(self, reactor: Reactor, idle: float) -> None:
        near, self.client = tcp_pair()
        far, self.backend = tcp_pair()
        self.ends = (Conn(reactor, near), Conn(reactor, far))
        self.tunnel = Tunnel(*self.ends, idle)
        self.running = gevent.spawn(self.tunnel.run)
        gevent.sleep(0)

    def close(self) -> None:
        self.ends[0].expire()
        self.running.join(5)
        for conn in self.ends:
            conn.close()
        self.client.close()
        self.backend.close()


@pytest.fixture
def joined(reactor: Reactor) -> Iterator[Joined]:
    with joining(reactor) as made:
        yield made


@contextmanager
def joining(reactor: Reactor, idle: float = IDLE) -> Iterator[Joined]:
    made = Joined(reactor, idle)
    try:
        yield made
    finally:
        made.close()


def receive(sock: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes, while the loop goes on."""
    sock.setblocking(False)
    got = bytearray()

    def more() -> bool:
        try:
            data = sock.recv(size - len(got))
        except BlockingIOError:
            return False
        got.extend(data)
        return not data or len(got) == size

    until(more, f"{size} bytes")
    return bytes(got)


def test_bytes_go_both_ways(joined: Joined) -> None:
    joined.client.sendall(b"from the client")
    assert receive(joined.backend, 15) == b"from the client"
    joined.backend.sendall(b"from the backend")
    assert receive(joined.client, 16) == b"from the backend"
    assert joined.tunnel.to_client == 16
    assert not joined.running.dead


def test_what_was_there_before_it_ran_is_not_forgotten(reactor: Reactor) -> None:
    near, client = tcp_pair()
    far, backend = tcp_pair()
    ends = Conn(reactor, near), Conn(reactor, far)
    client.sendall(b"early")
    until(ends[0].readable, "it to be seen while nobody waits")
    running = gevent.spawn(Tunnel(*ends, IDLE).run)
    assert receive(backend, 5) == b"early"
    for conn in ends:
        conn.close()
    client.close()
    backend.close()
    running.kill()


@pytest.mark.parametrize("way", ["up", "down"])
def test_more_than_the_other_side_takes_arrives_whole(joined: Joined, way: str) -> None:
    """A direction that is stuck is not read any more, and goes on where it was; the other one goes on."""
    content = os.urandom(8 << 20)
    source, to = (joined.client, joined.backend) if way == "up" else (joined.backend, joined.client)
    source.setblocking(True)
    sender = threading.Thread(target=source.sendall, args=(content,), daemon=True)
    sender.start()
    until(lambda: any(c.writer for c in joined.ends), "the other side to be full")
    to.sendall(b"hello")
    assert receive(to, len(content)) == content
    sender.join(10)
    assert receive(source, 5) == b"hello"


def test_each_side_may_end_first(joined: Joined) -> None:
    joined.client.sendall(b"last words")
    joined.client.shutdown(socket.SHUT_WR)
    assert receive(joined.backend, 11) == b"last words", "and the end after them"
    assert not joined.running.dead
    joined.backend.sendall(b"answer")
    assert receive(joined.client, 6) == b"answer"
    joined.backend.shutdown(socket.SHUT_WR)
    joined.running.join(5)
    assert joined.running.dead


@pytest.mark.parametrize("who", ["client", "backend"])
def test_a_reset_ends_it(joined: Joined, who: str) -> None:
    sock = joined.client if who == "client" else joined.backend
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    sock.close()
    joined.running.join(5)
    assert joined.running.dead


def test_it_ends_when_nothing_moves(reactor: Reactor) -> None:
    with joining(reactor, idle=0.2) as joined:
        joined.running.join(5)
        assert joined.running.dead


def test_it_ends_when_the_other_side_takes_nothing(reactor: Reactor) -> None:
    with joining(reactor, idle=0.3) as joined:
        joined.client.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                joined.client.send(bytes(65536))
                gevent.sleep(0)
        joined.running.join(5)
        assert joined.running.dead


def test_it_can_be_ended_from_elsewhere(joined: Joined) -> None:
    """As by a worker that was told to stop."""
    joined.client.sendall(b"x")
    assert receive(joined.backend, 1) == b"x"
    joined.ends[0].expire()
    joined.running.join(5)
    assert joined.running.dead


def of(*backends: Backend) -> Snapshot:
    """A pool with these backends."""
    return Snapshot("p", 1, PoolSettings(), {backend.id: backend for backend in backends})


def test_one_to_a_backend_that_drains_is_ended(reactor: Reactor) -> None:
    """Also one that has been busy all the while, and one that began when the drain was on; no other."""
    tunnels = Tunnels(IDLE, 0.3)
    with joining(reactor) as old, joining(reactor) as other:
        for name, each in (("a", old), ("b", other)):
            each.tunnel.finish()
            each.running.join(5)
            each.tunnel = tunnels.join(name, *each.ends)
            each.running = gevent.spawn(each.tunnel.run)
        ready, stays = Backend("a", "http://a:1"), Backend("b", "http://b:1")
        tunnels.update(of(ready, stays))
        tunnels.update(of(structs.replace(ready, admin="drain"), stays))
        due = old.tunnel.last
        assert due < NEVER
        tunnels.update(of(structs.replace(ready, admin="drain", weight=2), stays))
        assert old.tunnel.last == due  # its time does not start again
        while not old.running.ready():
            old.client.send(b"x")
            gevent.sleep(0.01)
        assert monotonic() >= due
        tunnels.leave("a", old.tunnel)
        assert not other.tunnel.over
        with joining(reactor) as late:
            assert tunnels.join("a", *late.ends).last < NEVER


def test_one_to_a_backend_that_is_back_goes_on(reactor: Reactor) -> None:
    tunnels = Tunnels(IDLE, 20)
    ready = Backend("a", "http://a:1")
    with joining(reactor) as joined:
        tunnel = tunnels.join("a", *joined.ends)
        tunnels.update(of())  # removed
        assert tunnel.last < NEVER
        tunnels.update(of(ready))
        assert tunnel.last == NEVER
