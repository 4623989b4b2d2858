"""TLS on a connection of a greenlet: the same as without, and what TLS itself sends disturbs nobody."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import gevent
import pytest

from lb.certificates import harden
from lb.proxy.conn import Reactor
from lb.proxy.tls import TlsConn
from tests.support.certificates import Authority, Pair
from tests.support.green import PATIENCE, in_greenlet, raw_pair, until

T = TypeVar("T")


def server_context(pair: Pair) -> ssl.SSLContext:
    context = pair.server()
    context.set_alpn_protocols(["http/1.1"])
    return harden(context)


def client_context(authority: Authority) -> ssl.SSLContext:
    context = authority.trust()
    context.set_alpn_protocols(["http/1.1"])
    return harden(context)


class Ends:
    """A `TlsConn` and the other end, an SSL socket that blocks; what may block runs in a thread."""

    def __init__(self, reactor: Reactor, pair: Pair, authority: Authority, *, server: bool) -> None:
        ours, self.raw = raw_pair()
        if server:
            self.conn = TlsConn(reactor, ours, server_context(pair))
            theirs = client_context(authority)
        else:
            self.conn = TlsConn(reactor, ours, client_context(authority), "localhost", server=False)
            theirs = server_context(pair)
        self.peer = theirs.wrap_socket(
            self.raw,
            server_side=not server,
            server_hostname="localhost" if server else None,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )
        self._threads = ThreadPoolExecutor(1)
        self._both(self.peer.do_handshake)

    def _both(self, theirs: Callable[[], object]) -> None:
        done = self._threads.submit(theirs)
        in_greenlet(self.conn.handshake)
        until(done.done, "the other end")
        done.result()

    def aside(self, action: Callable[[], T]) -> Callable[[], T]:
        """Run it in the thread of the other end; the result waits for its outcome."""
        running = self._threads.submit(action)

        def outcome() -> T:
            until(running.done, "the other end")
            return running.result()

        return outcome

    def close(self) -> None:
        self.conn.close()
        self.peer.close()
        self._threads.shutdown()


@pytest.fixture(params=["server", "client"])
def ends(
    request: pytest.FixtureRequest, reactor: Reactor, server_pair: Pair, authority: Authority
) -> Iterator[Ends]:
    """Each side of TLS in turn."""
    made = Ends(reactor, server_pair, authority, server=request.param == "server")
    yield made
    made.close()


@pytest.fixture
def served(reactor: Reactor, server_pair: Pair, authority: Authority) -> Iterator[Ends]:
    made = Ends(reactor, server_pair, authority, server=True)
    yield made
    made.close()


def test_data_goes_both_ways(ends: Ends) -> None:
    conn, peer = ends.conn, ends.peer
    assert conn.protocol == "http/1.1"
    peer.sendall(b"hello")
    assert in_greenlet(lambda: conn.recv(3)) == b"hel"
    assert conn.pending()
    assert in_greenlet(lambda: conn.recv(100)) == b"lo"
    assert not in_greenlet(lambda: conn.sendall(b"there"))
    assert peer.recv(100) == b"there"
    buffer = memoryview(bytearray(10))
    peer.sendall(b"more")
    assert in_greenlet(lambda: conn.recv_into(buffer)) == 4
    assert bytes(buffer[:4]) == b"more"


def test_what_comes_late_is_waited_for(ends: Ends) -> None:
    conn, peer = ends.conn, ends.peer
    buffer = memoryview(bytearray(10))
    for wait in (lambda: conn.recv(100), lambda: bytes(buffer[: conn.recv_into(buffer)])):
        timer = threading.Timer(0.05, peer.sendall, (b"late",))
        timer.start()
        assert in_greenlet(wait) == b"late"
        timer.join()
    conn.timeout = 0.1
    with pytest.raises(TimeoutError):
        in_greenlet(lambda: conn.recv(100))


@pytest.mark.parametrize("into", [False, True])
def test_much_data_comes_whole(ends: Ends, into: bool) -> None:
    conn, data = ends.conn, os.urandom(3_000_000)
    sent = ends.aside(lambda: ends.peer.sendall(data))
    buffer = memoryview(bytearray(200_000))
    found = hashlib.sha256()

    def read() -> int:
        total = 0
        while total < len(data):
            piece = buffer[: conn.recv_into(buffer)] if into else memoryview(conn.recv(50_000))
            assert piece
            found.update(piece)
            total += len(piece)
        return total

    assert in_greenlet(read) == len(data)
    assert found.digest() == hashlib.sha256(data).digest()
    sent()


def test_much_data_goes_whole_though_the_buffer_is_used_by_others_meanwhile(ends: Ends) -> None:
    conn, data = ends.conn, os.urandom(3_000_000)
    buffer = bytearray(data)
    started = threading.Event()

    def read() -> bytes:
        assert started.wait(PATIENCE)
        found = hashlib.sha256()
        left = len(data)
        while left:
            piece = ends.peer.recv(65536)
            found.update(piece)
            left -= len(piece)
        return found.digest()

    digest = ends.aside(read)

    def spoil() -> None:
        while conn.writer is None:
            gevent.sleep(0.001)
        assert len(conn._unsent) + conn._outgoing.pending < 100_000
        buffer[:] = bytes(len(buffer))
        started.set()

    spoiler = gevent.spawn(spoil)
    assert in_greenlet(lambda: conn.sendall(memoryview(buffer)))
    in_greenlet(spoiler.get)
    assert digest() == hashlib.sha256(data).digest()


def test_a_wait_for_room_ends_at_its_timeout_and_the_end_is_not_announced(ends: Ends) -> None:
    ends.conn.timeout = 0.1
    with pytest.raises(TimeoutError):
        in_greenlet(lambda: ends.conn.sendall(bytes(8_000_000)))
    ends.conn.close()
    with pytest.raises((ssl.SSLEOFError, ConnectionResetError)):
        while ends.peer.recv(65536):
            pass


def test_tickets_are_no_data(reactor: Reactor, server_pair: Pair, authority: Authority) -> None:
    """A server of TLS 1.3 sends them after the handshake, when the connection may be idle already."""
    ends = Ends(reactor, server_pair, authority, server=False)
    conn = ends.conn
    told: list[str] = []
    conn.idle = lambda: told.append("idle")
    conn.noticed = lambda: told.append("noticed")
    until(lambda: conn.session is not None and conn.session.has_ticket, "a ticket")
    assert told == []
    assert not conn.readable()
    ends.peer.sendall(b"data")
    until(lambda: told, "the data to be told of")
    assert told[0] == "idle"
    assert conn.take(10) == b"data"
    conn.idle = None
    told.clear()
    ends.peer.sendall(b"more")
    until(lambda: told, "the data to be noticed")
    assert told == ["noticed"]
    assert conn.readable()
    ends.close()


def test_what_was_noticed_and_read_is_not_readable_any_more(ends: Ends) -> None:
    conn = ends.conn
    told: list[bool] = []
    conn.noticed = lambda: told.append(True)
    for number in (1, 2):
        ends.peer.sendall(b"interim")
        until(lambda number=number: len(told) == number, "it to be noticed")  # type: ignore[misc]
        assert conn.readable()
        assert in_greenlet(lambda: conn.recv(100)) == b"interim"
        assert not conn.readable()


def test_what_is_left_of_several_records_is_noticed(ends: Ends) -> None:
    """As the kernel would tell again of what it still had."""
    conn = ends.conn
    told: list[bool] = []
    for data in (b"first", b"second"):
        ends.peer.sendall(data)

    def read() -> bytes:
        data = conn.recv(100)
        conn.noticed = lambda: told.append(True)
        return data

    assert in_greenlet(read) == b"first"
    until(lambda: told, "the rest to be noticed")
    assert conn.take(100) == b"second"


def test_a_session_is_taken_up_again(reactor: Reactor, server_pair: Pair, authority: Authority) -> None:
    ours, theirs = client_context(authority), server_context(server_pair)
    session = None
    for again in (False, True):
        raw, other = raw_pair()
        conn = TlsConn(reactor, raw, ours, "localhost", session, server=False)
        with theirs.wrap_socket(other, server_side=True, do_handshake_on_connect=False) as peer:
            with ThreadPoolExecutor(1) as threads:
                done = threads.submit(peer.do_handshake)
                in_greenlet(conn.handshake)
                done.result(PATIENCE)
            assert conn._tls.session_reused is again
            assert not conn.arrived()  # reads the ticket
            session = conn.session
            conn.close()


def test_the_handshake_may_come_byte_by_byte(
    reactor: Reactor, server_pair: Pair, authority: Authority
) -> None:
    ours, theirs = raw_pair()
    conn = TlsConn(reactor, ours, server_context(server_pair))
    got, put = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context(authority).wrap_bio(got, put, server_hostname="localhost")
    taken: list[bytes] = []

    def take() -> None:
        with contextlib.suppress(BlockingIOError):
            taken.append(conn.take(100))

    conn.idle = take
    theirs.setblocking(False)

    def step(action: Callable[[], object]) -> bool:
        try:
            action()
        except ssl.SSLWantReadError:
            done = False
        else:
            done = True
        for byte in put.read():
            assert taken == []
            while True:
                gevent.sleep(0)
                with contextlib.suppress(BlockingIOError):
                    theirs.send(bytes([byte]))
                    break
        with contextlib.suppress(BlockingIOError):
            got.write(theirs.recv(65536))
        return done

    def run() -> None:
        assert conn.protocol == ""
        while not step(client.do_handshake):
            gevent.sleep(0.001)
        step(lambda: client.write(b"hello"))
        while not taken:
            gevent.sleep(0.001)

    in_greenlet(run)
    assert taken == [b"hello"]
    assert conn.protocol == "http/1.1"
    theirs.close()


def _take(conn: TlsConn) -> bytes:
    until(conn.readable, "the end")
    return conn.take(10)


def _more(conn: TlsConn) -> bool:
    until(conn.readable, "the end")
    return not conn.ended()


WAYS: dict[str, Callable[[TlsConn], object]] = {
    "recv": lambda conn: in_greenlet(lambda: conn.recv(10)),
    "recv_into": lambda conn: in_greenlet(lambda: conn.recv_into(memoryview(bytearray(10)))),
    "take": _take,
    "ended": _more,
}


@pytest.mark.parametrize("way", WAYS)
def test_an_announced_end_is_an_end(ends: Ends, way: str) -> None:
    unwrapped = ends.aside(lambda: _shut(ends.peer))
    assert not WAYS[way](ends.conn)
    assert ends.conn.readable()
    ends.conn.close()
    unwrapped()


def _shut(peer: ssl.SSLSocket) -> None:
    with contextlib.suppress(OSError):
        peer.unwrap()


@pytest.mark.parametrize("way", WAYS)
def test_an_unannounced_end_is_an_error(ends: Ends, way: str) -> None:
    ends.peer.shutdown(socket.SHUT_WR)  # of the socket, without a word of TLS
    for _ in range(2):
        with pytest.raises(ConnectionResetError, match="cut"):
            WAYS[way](ends.conn)
    assert ends.conn.readable()


def test_data_before_the_end_comes_first(ends: Ends) -> None:
    conn = ends.conn
    told: list[bool] = []
    conn.noticed = lambda: told.append(conn.ended())
    ends.peer.sendall(b"last words")
    until(lambda: told, "the data")
    assert told == [False]
    ended = ends.aside(lambda: _shut(ends.peer))
    conn.idle = lambda: told.append(True)
    assert conn.readable()
    assert conn.take(100) == b"last words"
    conn.arm()  # the kernel tells of the end only once
    until(lambda: len(told) > 1, "the end")
    assert conn.take(100) == b""
    conn.close()
    ended()


def test_what_was_decrypted_ahead_is_told_of_again(ends: Ends) -> None:
    """As after a request behind which another one came: nothing more arrives at the socket."""
    conn = ends.conn
    ends.peer.sendall(b"one" * 10)
    until(conn.arrived, "the data")
    told: list[bytes] = []
    conn.idle = lambda: told.append(conn.take(20))
    assert conn.readable()
    conn.arm()
    until(lambda: len(told) == 2, "both parts")
    assert told == [b"one" * 6 + b"on", b"e" + b"one" * 3]


def test_one_side_may_end_before_the_other(ends: Ends) -> None:
    conn, peer = ends.conn, ends.peer
    peer.sendall(b"before")
    peer.sendall(b" and after")
    until(conn.arrived, "the data")
    assert conn._incoming.pending
    conn.end()
    assert peer.recv(10) == b""
    peer.sendall(b", at length")
    got = b""
    while len(got) < 27:
        got += in_greenlet(lambda: conn.recv(100))
    assert got == b"before and after, at length"


def test_closing_announces_the_end(ends: Ends) -> None:
    in_greenlet(lambda: ends.conn.sendall(b"bye"))
    ends.conn.close()
    ends.conn.close()
    assert ends.peer.recv(10) == b"bye"
    assert ends.peer.recv(10) == b""


def test_aborting_does_not(ends: Ends) -> None:
    in_greenlet(lambda: ends.conn.sendall(b"half of"))
    ends.conn.abort()
    assert ends.peer.recv(10) == b"half of"
    with pytest.raises((ssl.SSLEOFError, ConnectionResetError)):
        ends.peer.recv(10)


def test_what_is_no_record_is_an_error(ends: Ends) -> None:
    os.write(ends.peer.fileno(), b"this is not TLS" * 10)
    with pytest.raises(ConnectionResetError, match="TLS: WRONG_VERSION_NUMBER"):
        in_greenlet(lambda: ends.conn.recv(10))
    with pytest.raises(ConnectionResetError):
        in_greenlet(lambda: ends.conn.sendall(b"x"))
    ends.conn.close()


def test_plain_http_is_answered_in_kind(reactor: Reactor, server_pair: Pair) -> None:
    ours, theirs = raw_pair()
    conn = TlsConn(reactor, ours, server_context(server_pair))
    theirs.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    with pytest.raises(OSError, match="HTTP_REQUEST"):
        in_greenlet(lambda: conn.recv(10))
    conn.close()
    head, _, body = theirs.recv(1000).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"Content-Length: %d\r\n" % len(body) in head
    assert theirs.recv(10) == b""
    theirs.close()


def test_a_refused_handshake_says_why(reactor: Reactor, server_pair: Pair) -> None:
    ours, theirs = raw_pair()
    conn = TlsConn(reactor, ours, server_context(server_pair))
    strange = ssl.create_default_context()  # does not trust that authority
    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(strange.wrap_socket, theirs, server_hostname="localhost")
        with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
            in_greenlet(lambda: conn.recv(10))
        with pytest.raises(ssl.SSLCertVerificationError):
            done.result(PATIENCE)
    assert conn.protocol == ""
    conn.close()
    theirs.close()


def test_the_name_is_verified(reactor: Reactor, server_pair: Pair, authority: Authority) -> None:
    ours, theirs = raw_pair()
    conn = TlsConn(reactor, ours, client_context(authority), "other.example", server=False)
    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(server_context(server_pair).wrap_socket, theirs, server_side=True)
        with pytest.raises(ssl.SSLCertVerificationError):
            in_greenlet(conn.handshake)
        conn.close()
        with pytest.raises(OSError):
            done.result(PATIENCE)
    theirs.close()


def test_plain_bytes_may_come_first(reactor: Reactor, server_pair: Pair, authority: Authority) -> None:
    ours, theirs = raw_pair()
    conn = TlsConn(reactor, ours, server_context(server_pair), plain=True)
    theirs.sendall(b"first of all\n")
    assert in_greenlet(lambda: conn.recv(100)) == b"first of all\n"
    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(client_context(authority).wrap_socket, theirs, server_hostname="localhost")
        conn.start(in_greenlet(lambda: conn.recv(10)))
        in_greenlet(conn.handshake)
        peer = done.result(PATIENCE)
    peer.sendall(b"and then")
    assert in_greenlet(lambda: conn.recv(100)) == b"and then"
    peer.close()


def test_closing_wakes_who_waits(served: Ends) -> None:
    waiting = gevent.spawn(served.conn.recv, 10)
    until(lambda: served.conn.reader is not None, "somebody to wait")
    served.conn.close()
    with pytest.raises(ConnectionAbortedError):
        in_greenlet(waiting.get)
