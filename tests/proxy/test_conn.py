"""Connections: every wait ends with data, the end of the stream, an error or the deadline."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import gevent
import pytest

from lb.proxy.conn import NEVER, Conn, Reactor
from lb.proxy.dial import ThreadConn
from tests.support.green import in_greenlet, raw_pair, until

Made = tuple["Conn | ThreadConn", socket.socket]


@pytest.fixture(params=["greenlets", "threads"])
def pair(request: pytest.FixtureRequest, reactor: Reactor) -> Iterator[Made]:
    """A connection of either kind, and its other end."""
    green = request.param == "greenlets"
    raw, theirs = raw_pair(blocking=not green)
    conn = Conn(reactor, raw) if green else ThreadConn(raw)
    yield conn, theirs
    conn.close()
    theirs.close()


@pytest.fixture
def green(reactor: Reactor) -> Iterator[tuple[Conn, socket.socket]]:
    raw, theirs = raw_pair()
    conn = Conn(reactor, raw)
    yield conn, theirs
    conn.close()
    theirs.close()


def later(action: Callable[[], object]) -> threading.Timer:
    """Do it in another thread, after a moment in which others begin to wait."""
    timer = threading.Timer(0.05, action)
    timer.start()
    return timer


# What both kinds do.


def test_recv_takes_what_is_there(pair: Made) -> None:
    conn, theirs = pair
    theirs.sendall(b"hello")
    assert in_greenlet(lambda: conn.recv(3)) == b"hel"
    assert in_greenlet(lambda: conn.recv(100)) == b"lo"


def test_recv_waits_for_what_comes(pair: Made) -> None:
    conn, theirs = pair
    timer = later(lambda: theirs.sendall(b"late"))
    assert in_greenlet(lambda: conn.recv(100)) == b"late"
    timer.join()


def test_recv_into_waits_for_what_comes(pair: Made) -> None:
    conn, theirs = pair
    timer = later(lambda: theirs.sendall(b"late"))
    buffer = memoryview(bytearray(10))
    assert in_greenlet(lambda: conn.recv_into(buffer)) == 4
    assert bytes(buffer[:4]) == b"late"
    timer.join()


def test_the_end_of_the_stream_is_empty(pair: Made) -> None:
    conn, theirs = pair
    theirs.close()
    assert in_greenlet(lambda: conn.recv(100)) == b""
    assert in_greenlet(lambda: conn.recv_into(memoryview(bytearray(5)))) == 0


@pytest.mark.parametrize("way", ["recv", "recv_into", "sendall"])
def test_a_wait_ends_at_its_timeout(pair: Made, way: str) -> None:
    conn, _ = pair
    conn.timeout = 0.1
    calls: dict[str, Callable[[], object]] = {
        "recv": lambda: conn.recv(100),
        "recv_into": lambda: conn.recv_into(memoryview(bytearray(5))),
        "sendall": lambda: conn.sendall(bytes(8_000_000)),
    }
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        in_greenlet(calls[way])
    assert 0.09 < time.monotonic() - began < 2


def test_each_wait_has_its_own_timeout(pair: Made) -> None:
    """Three pieces that come 0.15 s apart are no timeout of 0.3 s."""
    conn, theirs = pair
    conn.timeout = 0.3
    timers = [threading.Timer(0.15 * n, theirs.sendall, (b"x",)) for n in (1, 2, 3)]
    for timer in timers:
        timer.start()
    assert [in_greenlet(lambda: conn.recv(1)) for _ in timers] == [b"x"] * 3


def test_sendall_sends_more_than_the_socket_holds(pair: Made) -> None:
    conn, theirs = pair
    data = os.urandom(3_000_000)
    got = hashlib.sha256()

    def read() -> None:
        while piece := theirs.recv(10_000):
            got.update(piece)

    reader = threading.Thread(target=read)
    reader.start()
    in_greenlet(lambda: conn.sendall(data))
    conn.close()
    reader.join(10)
    assert got.digest() == hashlib.sha256(data).digest()


def test_sendall_to_a_closed_end_fails(pair: Made) -> None:
    conn, theirs = pair
    theirs.close()
    with pytest.raises(OSError, match="."):
        in_greenlet(lambda: conn.sendall(b"x"))


@pytest.mark.parametrize("event", ["data", "end"])
def test_readable_tells_of_data_and_of_the_end(pair: Made, event: str) -> None:
    conn, theirs = pair
    conn.timeout = 30  # readable() waits for nothing
    gevent.sleep(0.01)
    began = time.monotonic()
    assert not conn.readable()
    assert time.monotonic() - began < 1
    theirs.sendall(b"x") if event == "data" else theirs.close()
    until(conn.readable, "the connection to be readable")
    assert in_greenlet(lambda: conn.recv(10)) == (b"x" if event == "data" else b"")


# Greenlets only.


def test_data_that_nobody_waits_for_does_not_turn_the_loop(green: tuple[Conn, socket.socket]) -> None:
    """epoll is level-triggered: a watcher that is left on would fire for ever."""
    conn, theirs = green
    theirs.sendall(b"x")
    until(conn.readable, "the data")
    turns = time.process_time()
    gevent.sleep(0.3)
    assert time.process_time() - turns < 0.1


def test_idle_is_told_of_data(green: tuple[Conn, socket.socket]) -> None:
    conn, theirs = green
    told: list[bytes] = []
    conn.idle = lambda: told.append(conn.sock.recv(10))
    theirs.sendall(b"x")
    until(lambda: told, "idle to be told")
    assert told == [b"x"]


def test_arm_watches_again(green: tuple[Conn, socket.socket]) -> None:
    conn, theirs = green
    theirs.sendall(b"x")
    until(conn.readable, "the data")
    told: list[bytes] = []
    conn.idle = lambda: told.append(conn.sock.recv(10))
    conn.arm()
    until(lambda: told, "idle to be told")


def test_an_idle_connection_is_closed_at_its_deadline(green: tuple[Conn, socket.socket]) -> None:
    conn, theirs = green
    conn.idle = lambda: None
    conn.deadline = time.monotonic() + 0.05
    until(lambda: conn.closed, "the connection to be closed")
    assert theirs.recv(1) == b""


def test_a_deadline_left_over_from_a_wait_means_nothing(green: tuple[Conn, socket.socket]) -> None:
    conn, theirs = green
    conn.timeout = 0.05
    theirs.sendall(b"x")
    in_greenlet(lambda: conn.recv(10))
    gevent.sleep(0.2)
    assert not conn.closed


def test_a_deadline_that_was_renewed_during_a_sweep_counts(reactor: Reactor) -> None:
    """Many connections expire in the same sweep; who is woken first gives those that are left more time."""
    pairs = [raw_pair() for _ in range(50)]
    waiting, *idle = [Conn(reactor, raw) for raw, _ in pairs]
    left: list[Conn] = []

    def wait() -> None:
        with contextlib.suppress(TimeoutError):
            waiting.wait_readable()
        for conn in idle:
            if not conn.closed:
                left.append(conn)
                conn.deadline = time.monotonic() + 60

    waiting.timeout = 0.1
    greenlet = gevent.spawn(wait)
    gevent.sleep(0)
    for conn in idle:
        conn.idle, conn.deadline = (lambda: None), waiting.deadline
    greenlet.join(10)
    gevent.sleep(0.1)
    for _, theirs in pairs:
        theirs.close()
    assert not [conn for conn in left if conn.closed]


def test_closing_wakes_who_waits(green: tuple[Conn, socket.socket]) -> None:
    conn, _ = green
    failures: list[OSError] = []

    def wait() -> None:
        try:
            conn.recv(10)
        except OSError as exc:
            failures.append(exc)

    gevent.spawn(wait)
    gevent.sleep(0.01)
    conn.close()
    conn.close()
    until(lambda: failures, "the waiting greenlet to be woken")
    assert failures[0].errno == errno.ECONNABORTED


def test_a_wait_for_room_does_not_lose_what_comes_to_read(green: tuple[Conn, socket.socket]) -> None:
    conn, theirs = green
    theirs.sendall(b"early")
    got = bytearray()

    def read() -> None:
        while len(got) < 4_000_000:
            got.extend(theirs.recv(100_000))

    reader = threading.Thread(target=read)
    reader.start()
    in_greenlet(lambda: conn.sendall(bytes(4_000_000)))
    reader.join(10)
    assert conn.readable()
    assert in_greenlet(lambda: conn.recv(10)) == b"early"


def test_what_waits_to_be_sent_is_no_longer_in_the_scratch_buffer(
    reactor: Reactor, green: tuple[Conn, socket.socket]
) -> None:
    conn, theirs = green
    scratch = reactor.scratch
    scratch[:] = b"a" * len(scratch)
    full = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            full += conn.sock.send(bytes(65536))
    sender = gevent.spawn(conn.sendall, scratch)
    gevent.sleep(0.01)
    scratch[:] = b"b" * len(scratch)  # somebody else's turn
    got = bytearray()

    def read() -> None:
        while len(got) < full + len(scratch):
            got.extend(theirs.recv(65536))

    reader = threading.Thread(target=read)
    reader.start()
    sender.join(10)
    reader.join(10)
    assert got[full:] == b"a" * len(scratch)


def test_a_greenlet_may_sleep_while_others_go_on(reactor: Reactor) -> None:
    began = time.monotonic()
    said: list[str] = []

    def slow() -> None:
        reactor.sleep(0.1)
        said.append("slow")

    sleeper = gevent.spawn(slow)
    in_greenlet(lambda: said.append("quick"))
    sleeper.join(20)
    assert said == ["quick", "slow"]
    assert time.monotonic() - began >= 0.099


def test_the_reactor_closes_what_is_left(reactor: Reactor) -> None:
    raw, theirs = raw_pair()
    conn = Conn(reactor, raw)
    assert conn.timeout == NEVER
    reactor.close()
    assert conn.closed
    assert theirs.recv(1) == b""
    theirs.close()
