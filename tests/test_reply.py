"""The writing half of a connection: how each kind of answer is framed."""

from __future__ import annotations

import gevent
import pytest

from lb.errors import ClientGone
from lb.proxy.conn import Conn, Reactor
from lb.reply import Reply
from tests.support.green import in_greenlet, raw_pair

GET = {"REQUEST_METHOD": "GET"}


@pytest.fixture
def reactor() -> Reactor:
    return Reactor(gevent.get_hub())


@pytest.mark.parametrize(
    ("version", "measured", "result", "keep", "wanted"),
    [
        (1, True, (b"ab",), True, b"HTTP/1.1 200 OK\r\nA: 1\r\n\r\nab"),
        (1, False, (b"a", b"b"), True, b"HTTP/1.1 200 OK\r\nA: 1\r\nContent-Length: 2\r\n\r\nab"),
        (
            1,
            False,
            [b"a", b"", b"b"],
            True,
            b"HTTP/1.1 200 OK\r\nA: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n",
        ),
        (0, True, [b"ab"], True, b"HTTP/1.1 200 OK\r\nA: 1\r\nConnection: keep-alive\r\n\r\nab"),
        (0, False, [b"ab"], True, b"HTTP/1.1 200 OK\r\nA: 1\r\nConnection: close\r\n\r\nab"),
        (1, True, [b"ab"], False, b"HTTP/1.1 200 OK\r\nA: 1\r\nConnection: close\r\n\r\nab"),
    ],
)
def test_framing(
    reactor: Reactor, version: int, measured: bool, result: object, keep: bool, wanted: bytes
) -> None:
    raw, other = raw_pair()
    reply = Reply(Conn(reactor, raw))
    reply.version = version
    reply.start_raw(200, "OK", b"A: 1\r\n", measured)
    stays = in_greenlet(lambda: reply.write(GET, result, keep))
    assert stays is (keep and b"close" not in wanted)
    reply.conn.close()
    assert b"".join(iter(lambda: other.recv(1000), b"")) == wanted
    other.close()


def test_interim_answers_end_with_the_head(reactor: Reactor) -> None:
    raw, other = raw_pair()
    reply = Reply(Conn(reactor, raw))
    reply.interim(b"HTTP/1.1 103 Early\r\n\r\n")
    reply.start_raw(204, "No Content", b"", False)
    in_greenlet(lambda: reply.write(GET, (b"",), True))
    reply.interim(b"HTTP/1.1 103 Late\r\n\r\n")
    assert other.recv(1000) == b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"
    reply.conn.close()
    other.close()


def test_an_interim_answer_to_nobody_is_the_clients_fault(reactor: Reactor) -> None:
    raw, other = raw_pair()
    reply = Reply(Conn(reactor, raw))
    other.close()
    with pytest.raises(ClientGone):
        for _ in range(2):
            reply.interim(b"HTTP/1.1 100 Continue\r\n\r\n")
    reply.conn.close()
