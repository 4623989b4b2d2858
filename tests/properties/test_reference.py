"""The reference itself: it takes what is well-formed, and never reads a message otherwise than h11 does."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import damage, shapes
from tests.properties.effort import tried
from tests.properties.reference import Incomplete, Malformed, read_request, read_requests, read_response

# Finding the smallest example of a failure takes its time.
pytestmark = pytest.mark.timeout(300)

HOST = b"Host: a\r\n"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\n" + HOST + b"\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET / HTTP/2.0\r\n" + HOST + b"\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"A : b\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n c\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"A: \0\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"A: a\rb\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n",
        b"GET / HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nA: \0\r\n\r\n",
    ],
)
def test_what_is_no_request(data: bytes) -> None:
    with pytest.raises(Malformed):
        read_request(data)


def test_the_rest_of_what_cannot_be_read_is_no_request() -> None:
    whole = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
    understood = read_requests(whole + b"\r\n" + b"GET /\r\n" + HOST + b"\r\n" + whole)
    assert [request.target for request in understood.requests] == [b"/"]
    assert isinstance(understood.fault, Malformed)
    assert understood.methods == [b"GET", b"GET"]


@pytest.mark.parametrize(
    ("data", "method", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", b"GET", b"x"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", b"HEAD", b""),
        (b"HTTP/1.1 304 \r\nContent-Length: 9\r\n\r\n", b"GET", b""),
        (b"HTTP/1.1 100 \r\n\r\nHTTP/1.1 204 \r\n\r\n", b"GET", b""),
        (b"HTTP/1.1 200 OK\r\n\r\nxyz", b"GET", b"xyz"),
    ],
)
def test_the_length_of_an_answer(data: bytes, method: bytes, body: bytes) -> None:
    answer, end = read_response(data, method=method, ended=True)
    assert (answer.body, end) == (body, len(data))


def test_an_answer_that_ends_with_the_connection_is_not_whole_before() -> None:
    with pytest.raises(Incomplete):
        read_response(b"HTTP/1.1 200 OK\r\n\r\nxyz")


def by_h11(connection: h11.Connection, data: bytes) -> tuple[object, list[tuple[bytes, bytes]], bytes] | None:
    """(the message, its fields, its body) as that library reads it; None when it does not, or not whole."""
    connection.receive_data(data)
    message, body = None, b""
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError:
            return None
        if isinstance(event, h11.Request | h11.Response):
            message = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert message is not None
            return message, [(bytes(name), bytes(value)) for name, value in message.headers], body
        elif not isinstance(event, h11.InformationalResponse):
            return None


requests = shapes.requests().map(bytes)


@tried(300)
@given(requests | damage.damaged(requests))
def test_a_request_is_the_same_to_h11(data: bytes) -> None:
    try:
        request, _ = read_request(data)
    except (Malformed, Incomplete):
        return
    other = by_h11(h11.Connection(h11.SERVER), data)
    if other is None:
        return  # it takes no target or value with bytes that are no ASCII, for one
    message, fields, body = other
    assert isinstance(message, h11.Request)
    assert (request.method, request.target, request.body) == (message.method, message.target, body)
    ours = [
        (name.lower(), value.lower() if name.lower() == b"transfer-encoding" else value)
        for name, value in request.fields
    ]
    assert ours == fields


@tried(300)
@given(st.data())
def test_an_answer_is_the_same_to_h11(data: st.DataObject) -> None:
    written = data.draw(damage.damaged(shapes.responses().map(bytes)) | shapes.responses().map(bytes))
    try:
        answer, _ = read_response(written)
    except (Malformed, Incomplete):
        return
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    other = by_h11(connection, written)
    if other is None:
        return
    message, fields, body = other
    assert isinstance(message, h11.Response)
    assert (answer.status, answer.reason, answer.body) == (message.status_code, message.reason, body)
    ours = [
        (name.lower(), value.lower() if name.lower() == b"transfer-encoding" else value)
        for name, value in answer.fields
    ]
    assert ours == fields
