"""Bodies: read whole or reported broken, relayed byte for byte, with what follows given back."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.errors import (
    BadRequest,
    BadResponse,
    BodyTooLarge,
    ClientGone,
    IncompleteBody,
    ProxyError,
    RequestTimeout,
    ResponseTimeout,
    UpstreamClosed,
)
from lb.proxy.body import BodyReader, client_fault, upstream_fault
from lb.proxy.conn import Conn, Reactor
from lb.proxy.dial import ThreadConn
from lb.proxy.http1 import CHUNKED, LAST_CHUNK, UNTIL_CLOSE, chunk
from tests.support.green import in_greenlet, raw_pair, until


class Pieces:
    """A stream of given pieces, then its end, or an error."""

    timeout = 0.0

    def __init__(self, *pieces: bytes, then: Exception | None = None) -> None:
        self._pieces = list(pieces)
        self._then = then
        self.asked: list[int] = []

    def recv(self, size: int) -> bytes:
        self.asked.append(size)
        if not self._pieces:
            if self._then is not None:
                raise self._then
            return b""
        piece = self._pieces.pop(0)
        if len(piece) > size:
            self._pieces.insert(0, piece[size:])
        return piece[:size]


class Sink:
    """A stream that takes everything; `answered` says whether it has something to read after each write."""

    def __init__(self, *answered: bool) -> None:
        self.got = b""
        self._answered = list(answered)

    def sendall(self, data: bytes | memoryview) -> bool:
        self.got += bytes(data)
        return False

    def readable(self) -> bool:
        return self._answered.pop(0) if self._answered else False


def reader(length: int, buffered: bytes, *pieces: bytes, **more: Any) -> BodyReader:
    fault: Callable[[Exception], ProxyError] = more.pop("fault", client_fault)
    stream: Any = Pieces(*pieces, then=more.pop("then", None))
    return BodyReader(stream, length, buffered, fault, **more)


CASES = {
    "all with the head": (5, b"hello", []),
    "nothing with the head": (5, b"", [b"hello"]),
    "in pieces": (5, b"he", [b"l", b"lo"]),
    "empty": (0, b"", []),
    "chunked at once": (CHUNKED, b"5\r\nhello\r\n0\r\n\r\n", []),
    "chunked in pieces": (CHUNKED, b"5\r", [b"\nhe", b"llo\r\n0\r\n", b"\r\n"]),
    "until the end": (UNTIL_CLOSE, b"he", [b"llo"]),
}
WHOLE = {name: b"" if name == "empty" else b"hello" for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_reads_the_body(name: str) -> None:
    length, buffered, pieces = CASES[name]
    body = reader(length, buffered, *pieces)
    assert body.read() == WHOLE[name]
    assert body.complete
    assert body.rest == b""
    assert body.read() == b""


@pytest.mark.parametrize("name", CASES)
def test_reads_it_piece_by_piece(name: str) -> None:
    length, buffered, pieces = CASES[name]
    assert b"".join(reader(length, buffered, *pieces)) == WHOLE[name]
    assert b"".join(reader(length, buffered, *pieces).stream(2)) == WHOLE[name]
    body = reader(length, buffered, *pieces)
    assert body.read(2) + body.read(0) + body.read(99) == WHOLE[name]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_relays_it(name: str, chunked: bool) -> None:
    length, buffered, pieces = CASES[name]
    body, sink = reader(length, buffered, *pieces), Sink()
    assert body.relay(sink, chunked=chunked, head=b"HEAD ") == len(WHOLE[name])  # type: ignore[arg-type]
    content = sink.got.removeprefix(b"HEAD ")
    assert content != sink.got
    if chunked:
        assert content.endswith(LAST_CHUNK)
        content = reader(CHUNKED, content).read()
    assert content == WHOLE[name]


def test_never_reads_beyond_a_length() -> None:
    stream: Any = Pieces(b"hello", b"GET /next")
    body = BodyReader(stream, 5, b"", client_fault)
    assert body.read() == b"hello"
    assert stream.asked == [5]


def test_gives_back_what_was_read_beyond_the_end() -> None:
    assert reader(5, b"helloGET").rest == b"GET"
    body = reader(CHUNKED, b"", b"0\r\n\r\nGET")
    assert body.read() == b""
    assert body.rest == b"GET"


def test_a_piece_arrives_as_soon_as_it_is_there() -> None:
    body = reader(10, b"he", b"llo", b"world")
    assert [body.next_piece(), body.next_piece()] == [b"he", b"llo"]
    assert not body.complete


@pytest.mark.parametrize("length", [9, CHUNKED])
def test_an_early_end_is_an_error(length: int) -> None:
    with pytest.raises(IncompleteBody):
        reader(length, b"5\r\nhe").read()
    with pytest.raises(UpstreamClosed):
        reader(length, b"5\r\nhe", fault=upstream_fault).read()


@pytest.mark.parametrize(
    ("cause", "at_client", "at_backend"),
    [
        (TimeoutError("late"), RequestTimeout, ResponseTimeout),
        (ConnectionResetError("reset"), ClientGone, UpstreamClosed),
        (EOFError("closed"), IncompleteBody, UpstreamClosed),
        (ValueError("nonsense"), BadRequest, BadResponse),
    ],
)
def test_errors_are_translated(cause: Exception, at_client: type, at_backend: type) -> None:
    assert type(client_fault(cause)) is at_client
    assert type(upstream_fault(cause)) is at_backend


def test_errors_of_the_source_are_translated_on_every_way() -> None:
    error = ConnectionResetError("reset")
    for use in (BodyReader.read, list, lambda body: body.relay(Sink(), chunked=True)):
        with pytest.raises(ClientGone):
            use(reader(9, b"he", then=error))
    with pytest.raises(BadRequest):
        reader(CHUNKED, b"x\r\n")
    with pytest.raises(BadRequest):
        reader(CHUNKED, b"", b"x\r\n").read()


def test_errors_of_the_destination_stay_as_they_are() -> None:
    class Broken(Sink):
        def sendall(self, data: bytes | memoryview) -> bool:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        reader(5, b"hello").relay(Broken(), chunked=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["read", "readline", "iterate"])
def test_whoever_reads_an_awaited_body_asks_for_it_once(how: str) -> None:
    calls: list[str] = []
    body = reader(4, b"", b"ab", b"cd")
    body.awaited, body.go_on = True, lambda: calls.append("called")
    if how == "read":
        assert body.read(2) == b"ab"
    elif how == "readline":
        assert body.readline() == b"abcd"
    else:
        assert list(body) == [b"ab", b"cd"]
    body.read()
    assert calls == ["called"]
    assert not body.awaited


def test_who_relays_an_awaited_body_leaves_the_word_to_the_destination() -> None:
    calls: list[str] = []
    body, sink = reader(4, b"", b"ab", b"cd"), Sink()
    body.awaited, body.go_on = True, lambda: calls.append("called")
    body.relay(sink, chunked=False)  # type: ignore[arg-type]
    assert sink.got == b"abcd"
    assert calls == []


# Limits.


def test_a_length_beyond_the_limit_is_refused_at_once() -> None:
    reader(5, b"").limit_to(5)
    with pytest.raises(BodyTooLarge):
        reader(6, b"").limit_to(5)


def test_a_chunked_body_is_refused_when_it_has_grown_beyond_the_limit() -> None:
    body = reader(CHUNKED, b"3\r\nabc\r\n", b"2\r\nde\r\n", b"1\r\nf\r\n", b"0\r\n\r\n")
    body.limit_to(5)
    assert body.next_piece() == b"abc"
    assert body.next_piece() == b"de"
    with pytest.raises(BodyTooLarge):
        body.next_piece()


def test_trailers_follow_the_last_chunk() -> None:
    body, sink = reader(CHUNKED, b"1\r\na\r\n0\r\nX: y\r\nHost: z\r\n\r\n"), Sink()
    body.relay(sink, chunked=True)  # type: ignore[arg-type]
    assert sink.got == b"1\r\na\r\n0\r\nX: y\r\n\r\n"


# Stopping early.


def test_relay_stops_when_the_destination_has_answered() -> None:
    body, sink = reader(9, b"abc", b"def", b"ghi"), Sink(False, True)
    assert body.relay(sink, chunked=False, stop_on_answer=True) == 6  # type: ignore[arg-type]
    assert sink.got == b"abcdef"
    assert not body.complete


def test_a_chunked_body_that_is_complete_gets_its_end_also_when_the_answer_is_there() -> None:
    """A backend may answer while the last piece is on its way. Its connection is used again: without the last
    chunk the next request would be taken for a chunk."""
    body, sink = reader(CHUNKED, b"3\r\nabc\r\n", b"3\r\ndef\r\n0\r\n\r\n"), Sink(False, True)
    body.relay(sink, chunked=True, stop_on_answer=True)  # type: ignore[arg-type]
    assert body.complete
    assert sink.got == b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n"


# As a file: what WSGI asks for.


@given(
    st.binary(max_size=200).map(lambda d: d.replace(b"a", b"\n")),
    st.lists(st.integers(1, 50), max_size=9),
    st.data(),
)
def test_reads_like_a_file(content: bytes, cuts: list[int], data: st.DataObject) -> None:
    pieces, at = [], 0
    for size in cuts:
        pieces.append(content[at : at + size])
        at += size
    pieces.append(content[at:])
    body, file = reader(len(content), b"", *(p for p in pieces if p)), io.BytesIO(content)
    for _ in range(5):
        size = data.draw(st.integers(-1, 60))
        if data.draw(st.booleans()):
            assert body.readline(size) == file.readline(size)
        else:
            assert body.read(size) == file.read(size)
    assert body.readlines() == file.readlines()


# Bulk transfer between real connections.


@contextlib.contextmanager
def pipes(reactor: Reactor | None) -> Iterator[tuple[Any, socket.socket, Any, socket.socket]]:
    """A source and a destination, each with its other end."""
    (source, writer), (to, back) = raw_pair(reactor is None), raw_pair(reactor is None)
    conns: list[Any] = [ThreadConn(raw) if reactor is None else Conn(reactor, raw) for raw in (source, to)]
    yield conns[0], writer, conns[1], back
    for one in (*conns, writer, back):
        one.close()


@pytest.fixture(params=["greenlets", "threads"])
def own_reactor(request: pytest.FixtureRequest, reactor: Reactor) -> Reactor | None:
    return reactor if request.param == "greenlets" else None


SIZE = 8 << 20


@pytest.mark.parametrize("length", [SIZE, CHUNKED, UNTIL_CLOSE])
@pytest.mark.parametrize("chunked", [False, True])
def test_relays_megabytes(own_reactor: Reactor | None, length: int, chunked: bool) -> None:
    content = os.urandom(1 << 20) * (SIZE >> 20)
    received = hashlib.sha256()
    with pipes(own_reactor) as (source, writer, to, back):

        def write() -> None:
            for at in range(0, SIZE, 100_000):
                piece = content[at : at + 100_000]
                writer.sendall(chunk(piece) if length == CHUNKED else piece)
            if length == CHUNKED:
                writer.sendall(LAST_CHUNK)
            writer.shutdown(socket.SHUT_WR)

        def read() -> None:
            stream = BodyReader(ThreadConn(back), CHUNKED if chunked else SIZE, b"", upstream_fault)
            for piece in stream:
                received.update(piece)

        threads = [threading.Thread(target=write), threading.Thread(target=read)]
        for thread in threads:
            thread.start()
        body = BodyReader(source, length, b"", client_fault)
        assert in_greenlet(lambda: body.relay(to, chunked=chunked)) == SIZE
        assert body.complete
        for thread in threads:
            thread.join(10)
    assert received.digest() == hashlib.sha256(content).digest()


def test_relay_stops_in_the_middle_of_a_transfer(own_reactor: Reactor | None) -> None:
    with pipes(own_reactor) as (source, writer, to, back):
        feeding = threading.Event()

        def feed() -> None:
            with contextlib.suppress(OSError):
                while not feeding.is_set():
                    writer.sendall(b"x" * 1000)

        def answer() -> None:
            back.recv(5000)
            back.sendall(b"HTTP/1.1 413 No\r\n\r\n")
            with contextlib.suppress(OSError):
                while back.recv(65536):
                    pass

        threads = [threading.Thread(target=feed), threading.Thread(target=answer)]
        for thread in threads:
            thread.start()
        body = BodyReader(source, 10**12, b"", client_fault)
        in_greenlet(lambda: body.relay(to, chunked=False, stop_on_answer=True))
        assert not body.complete
        assert in_greenlet(lambda: to.recv(100)) == b"HTTP/1.1 413 No\r\n\r\n"
        feeding.set()
        source.close()
        to.close()
        for thread in threads:
            thread.join(10)


def test_a_stream_that_never_pauses_lets_others_have_their_turn(reactor: Reactor) -> None:
    """Source and destination are always ready: nothing makes the greenlet wait, so it must give way."""

    class Endless:
        timeout = 0.0

        def __init__(self) -> None:
            self.reactor = reactor

        def recv_into(self, buffer: memoryview) -> int:
            return len(buffer)

    class Bottomless(Sink):
        def sendall(self, data: bytes | memoryview) -> bool:
            return False

    endless: Any = Endless()
    bottomless: Any = Bottomless()
    body = BodyReader(endless, 1 << 60, b"", client_fault)
    relay = gevent.spawn(body.relay, bottomless, chunked=False)
    began = time.monotonic()
    for _ in range(5):
        gevent.sleep(0.001)
    relay.kill()
    assert time.monotonic() - began < 2


def test_a_waiting_relay_sees_its_destination_close(reactor: Reactor) -> None:
    """The body comes slowly; a backend that hangs up meanwhile has answered with the end of its stream."""
    with pipes(reactor) as (source, writer, to, back):
        body = BodyReader(source, 100, b"", client_fault)
        relay = gevent.spawn(lambda: body.relay(to, chunked=False, stop_on_answer=True))
        writer.sendall(b"x")
        until(lambda: len(back.recv(10, socket.MSG_PEEK)) == 1, "the first byte")
        back.close()
        until(to.readable, "the end to be seen")
        writer.sendall(b"y")
        relay.join(5)
        assert relay.dead
