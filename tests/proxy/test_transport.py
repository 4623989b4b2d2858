"""The adapter: exact bytes to a backend and back, strict reading, and errors that say what was sent."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
import requests

from lb.certificates import client_context
from lb.errors import (
    BadRequest,
    BadResponse,
    ClientGone,
    ConnectFailed,
    ConnectTimeout,
    ProxyError,
    ResponseTimeout,
    UpstreamClosed,
)
from lb.proxy.body import BodyReader, client_fault
from lb.proxy.conn import Conn, Reactor
from lb.proxy.dial import ThreadConn
from lb.proxy.http1 import CHUNKED
from lb.proxy.messages import ProxyRequest, ProxyResponse
from lb.proxy.transport import MAX_INTERIM, Transport
from lb.proxy.upstream import Upstream
from lb.settings import UpstreamTls
from tests.support.backends import (
    Backend,
    Peer,
    Script,
    answer_of,
    chunked,
    close_unanswered,
    cut,
    deaf,
    head_of,
    in_turn,
    ok,
    once,
    refusing,
    reset_unanswered,
    serve,
    stall,
)
from tests.support.green import in_greenlet, raw_pair, until

Body = BodyReader | bytes | None


class Way:
    """A transport, in greenlets or in threads, and one backend's connections, perhaps with TLS."""

    def __init__(self, reactor: Reactor | None, tls: ssl.SSLContext | None = None) -> None:
        self.reactor = reactor
        self.tls = tls
        self.transport = Transport(reactor, idle=5.0, tls=tls)
        self.upstreams: dict[str, Upstream] = {}

    def upstream(self, url: str) -> Upstream:
        if url not in self.upstreams:
            self.upstreams[url] = Upstream(url, self.reactor, tls=self.tls)
        return self.upstreams[url]

    def send(
        self, url: str, method: str = "GET", body: Body = None, *fields: str, timeout: float = 5.0
    ) -> ProxyResponse:
        """Send, and return the answer with its body still to be read."""
        if isinstance(body, BodyReader) and body.length == CHUNKED:
            fields += ("Transfer-Encoding: chunked",)
        elif body is not None:
            fields += (f"Content-Length: {len(body) if isinstance(body, bytes) else body.length}",)
        head = ("\r\n".join([f"{method} /path?q=1 HTTP/1.1", "Host: h", *fields]) + "\r\n\r\n").encode(
            "latin-1"
        )
        request = ProxyRequest(method, self.upstream(url), "/path?q=1", head, body)
        return in_greenlet(lambda: self.transport.send(request, stream=True, timeout=(0.5, timeout)))

    def get(
        self, url: str, method: str = "GET", body: Body = None, *fields: str, timeout: float = 5.0
    ) -> tuple[int, bytes]:
        """Send, read the whole answer, give back its connection."""
        response = self.send(url, method, body, *fields, timeout=timeout)
        try:
            return response.status_code, in_greenlet(response.raw.read)
        finally:
            response.close()

    def client_body(self, length: int, *pieces: bytes, end: bool = False) -> BodyReader:
        """A request's body that has yet to be read from a client."""
        raw, theirs = raw_pair(blocking=self.reactor is None)
        conn = ThreadConn(raw) if self.reactor is None else Conn(self.reactor, raw)
        conn.timeout = 5
        self.clients.append((conn, theirs))
        for piece in pieces:
            theirs.sendall(piece)
        if end:
            theirs.close()
        return BodyReader(conn, length, b"", client_fault)

    def __enter__(self) -> Way:
        self.clients: list[Any] = []
        return self

    def __exit__(self, *_: object) -> None:
        for conn, theirs in self.clients:
            conn.close()
            theirs.close()
        for upstream in self.upstreams.values():
            upstream.close()
        self.transport.close()


@pytest.fixture(params=["greenlets", "threads", "greenlets with tls", "threads with tls"])
def way(request: pytest.FixtureRequest, reactor: Reactor, monkeypatch: pytest.MonkeyPatch) -> Iterator[Way]:
    """Each kind of connection in turn."""
    kind, _, tls = request.param.partition(" with ")
    context = None
    if tls:
        monkeypatch.setattr(Backend, "all_tls", request.getfixturevalue("server_pair").server())
        ca = str(request.getfixturevalue("authority").ca)
        context = client_context(UpstreamTls(ca=ca), "tls")
    with Way(reactor if kind == "greenlets" else None, context) as made:
        yield made


def bytewise(answer: bytes) -> Script:
    """Answer one request a byte at a time."""

    def script(peer: Peer) -> None:
        if peer.read_request() is not None:
            for at in range(len(answer)):
                peer.send(answer[at : at + 1])

    return script


def then_watch(answer: bytes) -> Script:
    """Answer one request, then note when the other side hangs up."""

    def script(peer: Peer) -> None:
        if peer.read_request() is not None:
            with contextlib.suppress(ConnectionError):  # it may have hung up already
                peer.send(answer)
            peer.wait_closed()

    return script


# What goes out, and what comes back.


def test_the_head_goes_out_as_it_is(way: Way) -> None:
    with Backend() as backend:
        assert way.get(backend.url, "GET", None, "x-A: \xff", "X-a: 2") == (200, b"ok")
        assert backend.requests[0].head == b"GET /path?q=1 HTTP/1.1\r\nHost: h\r\nx-A: \xff\r\nX-a: 2\r\n\r\n"


ANSWERS = {
    "length": (ok(b"hello"), b"hello"),
    "empty": (ok(b""), b""),
    "chunked": (head_of(200, "Transfer-Encoding: chunked") + chunked(b"he", b"llo"), b"hello"),
    "until the end": (head_of(200) + b"hello", b"hello"),
    "no content": (head_of(204), b""),
    "after 100": (b"HTTP/1.1 100 Continue\r\n\r\n" + ok(b"hello"), b"hello"),
    "after 103s": (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 3 + ok(b"hello"), b"hello"),
    "1.0": (b"HTTP/1.0 200 OK\r\n\r\nhello", b"hello"),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
}


@pytest.mark.parametrize("how", ["at once", "bytewise"])
@pytest.mark.parametrize("name", ANSWERS)
def test_answers(way: Way, name: str, how: str) -> None:
    data, body = ANSWERS[name]
    with Backend(once(data) if how == "at once" else bytewise(data)) as backend:
        assert way.get(backend.url) == (204 if name == "no content" else 200, body)


def test_an_answer_to_head_has_no_body(way: Way) -> None:
    with Backend(serve(head_of(200, "Content-Length: 1000"))) as backend:
        for _ in range(2):
            assert way.get(backend.url, "HEAD") == (200, b"")
        assert backend.connections == 1


def test_a_head_that_comes_again_means_what_the_request_asks_for(way: Way) -> None:
    head = head_of(200, "Content-Length: 5")
    bodies = {b"GET": (b"hello", b"other"), b"HEAD": (b"", b"")}

    def script(peer: Peer) -> None:
        for turn in range(6):
            request = peer.read_request()
            assert request is not None
            peer.send(head + bodies[request.head.split()[0]][turn % 2])

    with Backend(script) as backend:
        got = [way.get(backend.url, method) for method in ("GET", "GET", "HEAD", "GET", "HEAD", "GET")]
        assert backend.connections == 1
    assert got == [(200, b"hello"), (200, b"other"), (200, b""), (200, b"other"), (200, b""), (200, b"other")]


def test_a_head_that_begins_like_the_last_one_is_another(way: Way) -> None:
    answers = [ok(b"1"), ok(b"2", "X: y"), ok(b"3"), head_of(404, "X: z") + b"4", ok(b"5")]
    with Backend(in_turn(*(once(answer) for answer in answers))) as backend:
        got = [way.get(backend.url) for _ in answers]
    assert got == [(200, b"1"), (200, b"2"), (200, b"3"), (404, b"4"), (200, b"5")]


def test_the_answer_keeps_its_fields(way: Way) -> None:
    with Backend(serve(ok(b"", "set-Cookie: a", "Set-Cookie: b", "X: \xff"))) as backend:
        response = way.send(backend.url)
        assert (response.status_code, response.reason) == (200, "Some Words")
        assert response.head.lines == b"Content-Length: 0\r\nset-Cookie: a\r\nSet-Cookie: b\r\nX: \xff\r\n"
        response.close()


# Bodies, both ways.


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("kind", ["bytes", "empty", "length", "chunked"])
def test_request_bodies(way: Way, method: str, kind: str) -> None:
    bodies: dict[str, Callable[[], Body]] = {
        "bytes": lambda: b"hello",
        "empty": lambda: way.client_body(0),
        "length": lambda: way.client_body(5, b"hel", b"lo"),
        "chunked": lambda: way.client_body(CHUNKED, b"3\r\nhel\r\n2;x\r\nlo\r\n0\r\nA: b\r\n\r\n"),
    }
    with Backend() as backend:
        assert way.get(backend.url, method, bodies[kind]()) == (200, b"ok")
        assert backend.requests[0].body == (b"" if kind == "empty" else b"hello")
        assert way.get(backend.url) == (200, b"ok")
        assert backend.connections == 1


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_megabytes_both_ways(way: Way, framing: str) -> None:
    size = 8 << 20
    content = os.urandom(1 << 20) * 8
    digest = hashlib.sha256(content).hexdigest()

    def echo(peer: Peer) -> None:
        request = peer.read_head()
        assert request is not None
        if framing == "length":
            found = peer.digest(size)
            peer.send(head_of(200, f"Content-Length: {size}", f"X-Hash: {found}") + content)
        else:
            body, _ = peer._read_chunks()
            found = hashlib.sha256(body).hexdigest()
            pieces = [content[at : at + 100_000] for at in range(0, size, 100_000)]
            peer.send(head_of(200, "Transfer-Encoding: chunked", f"X-Hash: {found}") + chunked(*pieces))

    with Backend(echo) as backend:
        body = way.client_body(size if framing == "length" else CHUNKED)
        _, theirs = way.clients[-1]
        data = content if framing == "length" else chunked(content)
        sender = threading.Thread(target=theirs.sendall, args=(data,))
        sender.start()
        response = way.send(backend.url, "POST", body)
        sender.join(10)
        assert response.headers["X-Hash"] == digest
        assert hashlib.sha256(in_greenlet(response.raw.read)).hexdigest() == digest
        response.close()


# Keeping connections.


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (ok(), True),
        (head_of(200, "Transfer-Encoding: chunked") + chunked(b"ok"), True),
        (head_of(204), True),
        (ok(b"ok", "Connection: close"), False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", True),
        (ok() + b"HTTP/1.1 200 OK\r\n\r\n", False),
        (head_of(200, "Transfer-Encoding: chunked") + chunked(b"ok") + b"x", False),
        (head_of(204) + b"not allowed", False),
    ],
)
def test_which_connections_are_kept(way: Way, answer: bytes, kept: bool) -> None:
    with Backend(then_watch(answer)) as backend:
        way.get(backend.url)
        assert way.upstream(backend.url).idle == kept
        if not kept:
            assert backend.closed.acquire(timeout=5)


def test_one_is_kept_whose_answer_came_while_nobody_waited(way: Way) -> None:
    """It looks as if something waited there still, until one looks."""
    size, sent = 300_000, threading.Event()

    def script(peer: Peer) -> None:
        while peer.read_request() is not None:
            peer.send(answer_of(200, b"x" * size))
            sent.set()

    with Backend(script) as backend:
        for _ in range(3):
            response = way.send(backend.url)
            assert sent.wait(10)
            sent.clear()
            in_greenlet(lambda: gevent.sleep(0))  # the loop notices what has come
            assert len(in_greenlet(response.raw.read)) == size
            response.close()
            assert way.upstream(backend.url).idle == 1
        assert backend.connections == 1


def test_one_with_more_than_its_answer_is_closed(way: Way) -> None:
    """Though what is too much of it has not been read: the body was, to its last byte."""
    size, sent = 300_000, threading.Event()

    def script(peer: Peer) -> None:
        if peer.read_request() is not None:
            peer.send(answer_of(200, b"x" * size) + ok(b"of nobody"))
            sent.set()
            peer.wait_closed()

    with Backend(script) as backend:
        response = way.send(backend.url)
        assert len(in_greenlet(response.raw.read)) == size
        assert sent.wait(10)
        response.close()
        assert way.upstream(backend.url).idle == 0
        assert backend.closed.acquire(timeout=5)


def test_one_whose_body_was_not_read_to_its_end_is_closed(way: Way) -> None:
    with Backend(then_watch(head_of(200, "Content-Length: 10") + b"hello")) as backend:
        response = way.send(backend.url)
        assert in_greenlet(response.raw.next_piece) == b"hello"
        response.close()
        response.close()
        assert backend.closed.acquire(timeout=5)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_one_that_the_backend_closed_meanwhile_costs_nothing(way: Way, method: str) -> None:
    """Also a POST gets a fresh connection: that the old one is closed was seen before anything was sent."""
    with Backend(once(ok())) as backend:
        for _ in range(3):
            assert way.get(backend.url, method, b"x" if method == "POST" else None) == (200, b"ok")
            # The backend closes after each answer. No turn of the loop: only the kernel knows of it.
            deadline = time.monotonic() + 5
            while backend._open:
                assert time.monotonic() < deadline
                time.sleep(0.001)
        assert (backend.connections, len(backend.requests)) == (3, 3)


def second_time(act: Callable[[Peer], None]) -> Script:
    """Serve a connection's first request; `act` when the second one came."""

    def script(peer: Peer) -> None:
        if peer.read_request() is not None:
            peer.send(ok(b"first"))
            if peer.read_request() is not None:
                act(peer)

    return script


@pytest.mark.parametrize("act", [Peer.reset, Peer.close])
def test_a_get_is_sent_again_when_a_kept_connection_breaks(way: Way, act: Callable[[Peer], None]) -> None:
    with Backend(in_turn(second_time(act), serve(ok(b"again")))) as backend:
        assert way.get(backend.url) == (200, b"first")
        assert way.get(backend.url) == (200, b"again")
        assert [request.connection for request in backend.requests] == [0, 0, 1]


@pytest.mark.parametrize("act", [Peer.reset, Peer.close])
def test_a_post_is_not(way: Way, act: Callable[[Peer], None]) -> None:
    """It may have been carried out."""
    with Backend(in_turn(second_time(act), serve(ok(b"again")))) as backend:
        assert way.get(backend.url) == (200, b"first")
        with pytest.raises(UpstreamClosed):
            way.get(backend.url, "POST", b"x")
        assert len(backend.requests) == 2


def test_a_get_is_not_sent_again_on_a_fresh_connection(way: Way) -> None:
    """Whoever has other backends decides on that."""
    with Backend(reset_unanswered) as backend:
        with pytest.raises(UpstreamClosed):
            way.get(backend.url)
        assert backend.connections == 1


# Faults.


def test_refused(way: Way) -> None:
    with refusing() as url, pytest.raises(ConnectFailed) as caught:
        way.get(url)
    assert not caught.value.sent


def test_not_accepted(way: Way) -> None:
    with deaf() as url, pytest.raises(ConnectTimeout) as caught:
        way.get(url)
    assert not caught.value.sent


@pytest.mark.parametrize("act", [reset_unanswered, close_unanswered])
def test_closed_without_an_answer(way: Way, act: Script) -> None:
    with Backend(act) as backend, pytest.raises(UpstreamClosed):
        way.get(backend.url)


def test_no_answer_in_time(way: Way) -> None:
    with Backend(stall) as backend:
        began = time.monotonic()
        with pytest.raises(ResponseTimeout):
            way.get(backend.url, timeout=0.2)
        assert 0.19 < time.monotonic() - began < 2
        assert backend.closed.acquire(timeout=5)


BAD = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "another protocol": b"HTTP/2 200 OK\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "status 000": b"HTTP/1.1 000 What\r\n\r\n",
    "status 42": b"HTTP/1.1 042 What\r\n\r\n",
    "unasked switch": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    "interim answers without end": head_of(103) * (MAX_INTERIM + 1) + ok(),
    "two lengths": head_of(200, "Content-Length: 1", "Content-Length: 2") + b"ab",
    "length and coding": head_of(200, "Content-Length: 5", "Transfer-Encoding: chunked") + chunked(b"ab"),
    "unknown coding": head_of(200, "Transfer-Encoding: gzip"),
    "folded": head_of(200, "A: b\r\n c"),
    "NUL": head_of(200, "A: \0"),
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "endless head": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20_000,
    "bad chunk at once": head_of(200, "Transfer-Encoding: chunked") + b"nonsense\r\n",
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_answer(way: Way, name: str) -> None:
    with Backend(then_watch(BAD[name])) as backend:
        with pytest.raises(BadResponse):
            way.get(backend.url)
        assert backend.closed.acquire(timeout=5), "the connection stays open"
        assert way.upstream(backend.url).idle == 0


def test_the_end_within_the_head(way: Way) -> None:
    with Backend(once(b"HTTP/1.1 200 OK\r\nA: b")) as backend, pytest.raises(BadResponse):
        way.get(backend.url)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (head_of(200, "Content-Length: 10") + b"hello", UpstreamClosed),
        (head_of(200, "Transfer-Encoding: chunked") + b"5\r\nhello\r\n", UpstreamClosed),
        (head_of(200, "Transfer-Encoding: chunked") + b"5\r\nhello\r\nx", UpstreamClosed),
    ],
)
def test_the_end_within_the_body(way: Way, answer: bytes, error: type[ProxyError]) -> None:
    with Backend(once(answer)) as backend:
        response = way.send(backend.url)
        assert response.status_code == 200
        with pytest.raises(error):
            in_greenlet(response.raw.read)
        response.close()
        assert way.upstream(backend.url).idle == 0


def test_a_reset_within_the_body(way: Way) -> None:
    """Also of one that ends with the connection: it is not whole."""
    for head in (head_of(200), head_of(200, "Content-Length: 10")):
        with Backend(cut(head + b"hello")) as backend:
            response = way.send(backend.url)
            assert in_greenlet(response.raw.next_piece) == b"hello"
            backend.may_go_on.release()
            with pytest.raises(UpstreamClosed):
                in_greenlet(response.raw.read)
            response.close()


def test_a_bad_chunk_later_in_the_body(way: Way) -> None:
    with Backend(once(head_of(200, "Transfer-Encoding: chunked") + b"2\r\nok\r\n" + b"x" * 10)) as backend:
        response = way.send(backend.url, "GET")
        with pytest.raises(ProxyError):
            in_greenlet(response.raw.read)
        response.close()


def test_a_body_that_pauses_too_long(way: Way) -> None:
    way.transport.idle = 0.1
    with Backend(then_watch(head_of(200, "Content-Length: 10") + b"hello")) as backend:
        response = way.send(backend.url)
        with pytest.raises(ResponseTimeout):
            in_greenlet(response.raw.read)
        response.close()
        assert backend.closed.acquire(timeout=5)


# Uploads that do not go to their end.


def test_an_early_answer_ends_the_upload(way: Way) -> None:
    """The client still has megabytes to send; the backend has said no after the head."""

    def refuse(peer: Peer) -> None:
        assert peer.read_head() is not None
        peer.send(head_of(413, "Content-Length: 3") + b"big")
        peer.wait_closed()

    with Backend(refuse) as backend:
        body = way.client_body(10_000_000, b"x" * 1000)
        _, theirs = way.clients[-1]

        def trickle() -> None:
            with contextlib.suppress(OSError):
                while True:
                    theirs.sendall(b"x" * 1000)
                    time.sleep(0.001)

        feeder = threading.Thread(target=trickle)
        feeder.start()
        response = way.send(backend.url, "POST", body)
        assert (response.status_code, in_greenlet(response.raw.read)) == (413, b"big")
        assert not body.complete
        response.close()
        assert way.upstream(backend.url).idle == 0
        assert backend.closed.acquire(timeout=5)
        way.clients[-1][0].close()
        feeder.join(10)


def test_an_early_answer_arrives_though_the_backend_hangs_up(way: Way) -> None:
    """It closes with our bytes unread, so the kernel answers those with a reset."""

    def refuse(peer: Peer) -> None:
        assert peer.read_head() is not None
        peer.send(head_of(413, "Content-Length: 3", "Connection: close") + b"big")
        peer.close()

    with Backend(refuse) as backend:
        body = way.client_body(100_000_000)
        _, theirs = way.clients[-1]

        def feed() -> None:
            with contextlib.suppress(OSError):
                while True:
                    theirs.sendall(b"x" * 100_000)

        feeder = threading.Thread(target=feed)
        feeder.start()
        try:
            response = way.send(backend.url, "POST", body)
        except UpstreamClosed:
            pass  # the reset may overtake the answer, there is no cure for that
        else:
            assert response.status_code == 413
            response.close()
        way.clients[-1][0].close()
        feeder.join(10)


def test_an_early_answer_does_not_wait_for_a_client_that_pauses(reactor: Reactor) -> None:
    def refuse(peer: Peer) -> None:
        assert peer.read_head() is not None
        peer.read(10)
        peer.send(head_of(413, "Content-Length: 3") + b"big")
        peer.wait_closed()

    with Way(reactor) as way, Backend(refuse) as backend:
        for length in (1000, CHUNKED):
            body = way.client_body(length, b"0123456789" if length > 0 else b"a\r\n0123456789\r\n")
            began = time.monotonic()
            response = way.send(backend.url, "POST", body, timeout=1)
            assert (response.status_code, in_greenlet(response.raw.read)) == (413, b"big")
            assert time.monotonic() - began < 2
            response.close()
            assert backend.closed.acquire(timeout=5)


@pytest.mark.parametrize(
    "interim", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 102 Processing\r\n\r\n" * 3]
)
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_an_interim_answer_does_not_end_the_upload(way: Way, interim: bytes, framing: str) -> None:
    """A backend may say so as soon as it has read the head, and then waits for the rest."""

    def script(peer: Peer) -> None:
        request = peer.read_head()
        assert request is not None
        peer.send(interim)
        peer.backend.may_go_on.release()
        body, _ = peer._read_body(request)
        peer.send(ok(body[-4:]))
        peer.wait_closed()

    with Backend(script) as backend:
        body = way.client_body(1008 if framing == "length" else CHUNKED)
        _, theirs = way.clients[-1]

        def feed() -> None:
            pieces = [b"x" * 1000, b"half", b"last"]
            for number, piece in enumerate(pieces):
                theirs.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if framing == "chunked" else piece)
                if number == 0:
                    backend.may_go_on.acquire(timeout=5)
                time.sleep(0.02)  # a turn of the loop, in which what was said is seen
            if framing == "chunked":
                theirs.sendall(b"0\r\n\r\n")

        feeder = threading.Thread(target=feed)
        feeder.start()
        assert way.get(backend.url, "POST", body, timeout=2.0) == (200, b"last")
        feeder.join(10)
        assert way.upstream(backend.url).idle == 1


def test_a_client_that_goes_away_is_not_the_backends_fault(way: Way) -> None:
    def script(peer: Peer) -> None:
        assert peer.read_head() is not None
        peer.wait_closed()

    with Backend(script) as backend:
        body = way.client_body(1000, b"x" * 10, end=True)
        with pytest.raises(ClientGone):
            way.send(backend.url, "POST", body)
        assert backend.closed.acquire(timeout=5), "the backend must not take half a body for the whole"


def test_a_client_that_sends_nonsense_is_not_the_backends_fault(way: Way) -> None:
    def script(peer: Peer) -> None:
        assert peer.read_head() is not None
        peer.wait_closed()

    with Backend(script) as backend:
        body = way.client_body(CHUNKED, b"5\r\nhello\r\n", b"nonsense\r\n")
        with pytest.raises(BadRequest):
            way.send(backend.url, "POST", body)
        assert backend.closed.acquire(timeout=5)


def test_a_backend_that_stops_reading(way: Way) -> None:
    way.transport.idle = 0.2

    def script(peer: Peer) -> None:
        assert peer.read_head() is not None
        peer.backend.may_go_on.acquire(timeout=20)

    with Backend(script) as backend:
        with pytest.raises(ResponseTimeout):
            way.send(backend.url, "POST", bytes(20_000_000))
        backend.may_go_on.release()


def test_nothing_is_left_open_after_faults(reactor: Reactor) -> None:
    with Way(reactor) as way, Backend(then_watch(BAD["bad chunk at once"])) as backend:
        for script in (
            then_watch(BAD["bad chunk at once"]),
            reset_unanswered,
            once(b"garbage\r\n\r\n"),
            stall,
        ):
            backend.script = script
            with pytest.raises(ProxyError):
                way.get(backend.url, timeout=0.1)
        until(lambda: not reactor.conns, "all connections to be closed")


# As an adapter of requests, with what its sessions make.


@pytest.fixture
def session(way: Way) -> Iterator[requests.Session]:
    with requests.Session() as made:
        made.trust_env = False
        for scheme in ("http://", "https://", "http+unix://"):
            made.mount(scheme, way.transport)
        yield made


def answer_in_words(request: Any) -> bytes:
    seen = {
        "method": request.method,
        "target": request.target,
        "body": request.body.decode(),
        "lines": request.lines,
    }
    return ok(json.dumps(seen).encode(), "Content-Type: application/json")


def call(session: requests.Session, method: str, url: str, **more: Any) -> requests.Response:
    return in_greenlet(lambda: session.request(method, url, **more))


def test_session_get(session: requests.Session) -> None:
    with Backend(serve(answer_in_words)) as backend:
        seen = call(
            session, "GET", backend.url + "/a%20b/ü", params={"q": "1 2"}, headers={"X-A": "1"}
        ).json()
        assert seen["target"] == "/a%20b/%C3%BC?q=1+2"
        assert "X-A: 1" in seen["lines"]
        assert f"Host: 127.0.0.1:{backend.port}" in seen["lines"]
        assert call(session, "GET", backend.url).json()["target"] == "/"
        assert backend.connections == 1


@pytest.mark.parametrize(
    ("sent", "body"),
    [
        ({"data": "text"}, "text"),
        ({"data": b"bytes"}, "bytes"),
        ({"data": {"a": "b"}}, "a=b"),
        ({"json": {"a": 1}}, '{"a": 1}'),
        ({"data": [b"generated ", b"", b"in pieces"]}, "generated in pieces"),
        ({}, ""),
    ],
)
def test_session_post(session: requests.Session, sent: dict[str, Any], body: str) -> None:
    if isinstance(sent.get("data"), list):
        sent = {"data": iter(sent["data"])}
    with Backend(serve(answer_in_words)) as backend:
        assert call(session, "POST", backend.url, **sent).json()["body"] == body
        assert call(session, "GET", backend.url).status_code == 200
        assert backend.connections == 1


def test_session_post_a_file(session: requests.Session, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a" * 100_000)
    with Backend(serve(answer_in_words)) as backend, path.open("rb") as file:
        assert call(session, "POST", backend.url, data=file).json()["body"] == "a" * 100_000


def test_session_follows_redirects(session: requests.Session) -> None:
    def script(request: Any) -> bytes:
        return (
            ok(b"there")
            if request.target == "/there"
            else head_of(302, "Location: /there", "Content-Length: 0")
        )

    with Backend(serve(script)) as backend:
        response = call(session, "GET", backend.url + "/here")
        assert (response.text, len(response.history)) == ("there", 1)


@pytest.mark.parametrize("name", ["length", "chunked", "until the end"])
def test_session_streams(session: requests.Session, way: Way, name: str) -> None:
    data, body = ANSWERS[name]
    with Backend(bytewise(data)) as backend:
        response = call(session, "GET", backend.url, stream=True)
        assert b"".join(in_greenlet(lambda: list(response.iter_content(2)))) == body
        response.close()


def test_session_gives_back_connections_by_itself(session: requests.Session, way: Way) -> None:
    """Who reads `content` never calls close: nor must he, with any other adapter."""
    data = head_of(200, "Transfer-Encoding: chunked") + chunked(*[b"x" * 70_000] * 3)
    with Backend(serve(data)) as backend:
        for _ in range(3):
            assert len(call(session, "GET", backend.url).content) == 210_000
        assert backend.connections == 1


def test_session_answers_have_all_that_answers_have(session: requests.Session) -> None:
    with Backend(
        serve(ok(b"hello", "Content-Type: text/plain; charset=utf-8", "Set-Cookie: a=b"))
    ) as backend:
        response = call(session, "GET", backend.url)
        assert response.ok
        assert response.text == "hello"
        assert response.headers["content-TYPE"] == "text/plain; charset=utf-8"
        assert response.request.method == "GET"
        assert response.url == backend.url + "/"
        assert dict(response.cookies) == {}  # a proxy has no use for them
        assert not response.is_redirect
        assert response.elapsed is not None
        assert response.apparent_encoding


def test_content_codings_are_left_alone(session: requests.Session) -> None:
    packed = gzip.compress(b"hello")
    with Backend(serve(ok(packed, "Content-Encoding: gzip"))) as backend:
        assert call(session, "GET", backend.url).content == packed


def test_session_over_a_unix_socket(session: requests.Session, tmp_path: Path) -> None:
    with Backend(serve(answer_in_words), path=tmp_path / "s") as backend:
        seen = call(session, "GET", backend.url + "/x").json()
        assert seen["target"] == "/x"
        assert "Host: localhost" in seen["lines"]


def test_session_timeouts(session: requests.Session) -> None:
    with Backend(stall) as backend:
        for timeout in (0.1, (1, 0.1)):
            with pytest.raises(ResponseTimeout):
                call(session, "GET", backend.url, timeout=timeout)


def test_many_at_once(reactor: Reactor) -> None:
    """Greenlets share one transport; each gets its own answer."""
    with (
        Way(reactor) as way,
        Backend(serve(lambda request: ok(request.values("X-N")[0].encode()))) as backend,
    ):
        upstream = way.upstream(backend.url)

        def one(n: int) -> bytes:
            head = b"GET / HTTP/1.1\r\nHost: h\r\nX-N: %d\r\n\r\n" % n
            response = way.transport.send(ProxyRequest("GET", upstream, "/", head, None), timeout=(5, 5))
            try:
                return response.raw.read()
            finally:
                response.close()

        greenlets = [gevent.spawn(one, n) for n in range(100)]
        gevent.joinall(greenlets, timeout=20)
        assert [g.value for g in greenlets] == [b"%d" % n for n in range(100)]
