"""What of a message goes on, and what a head means."""

from __future__ import annotations

import pytest
from gunicorn_h1c import parse_response

from lb.proxy.fields import ResponseHead, may_switch, nominated, request_head, response_lines
from lb.proxy.http1 import CHUNKED, UNTIL_CLOSE

Pairs = list[tuple[bytes, bytes]]


def head(lines: bytes, method: str = "GET") -> ResponseHead:
    """What a head means that was parsed as the transport does it. `lines` begin with the status line."""
    data = lines.replace(b"\n", b"\r\n") + b"\r\n\r\n"
    parsed = parse_response(data)
    return ResponseHead(
        method, parsed["status"], parsed["message"], parsed["minor_version"], parsed["headers"], data
    )


# Requests.


def test_a_request_keeps_spelling_order_and_repetitions() -> None:
    fields = [
        (b"hOST", b"h"),
        (b"X-a", b"1"),
        (b"x-A", b"2"),
        (b"Cookie", b"a"),
        (b"Cookie", b"b"),
        (b"E", b""),
    ]
    assert request_head(b"GET", b"/%2F?x=\xff", fields, b"d") == (
        b"GET /%2F?x=\xff HTTP/1.1\r\nhOST: h\r\nX-a: 1\r\nx-A: 2\r\nCookie: a\r\nCookie: b\r\nE: \r\n"
    )


@pytest.mark.parametrize(
    "name",
    [
        *("Connection", "Proxy-Connection", "Keep-Alive", "TE", "Upgrade", "Expect"),
        *("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "X-Real-IP"),
        "x-request-id",
    ],
)
def test_a_request_loses_what_is_for_this_hop_or_ours_to_say(name: str) -> None:
    fields = [(b"Host", b"h"), (name.encode(), b"x"), (name.upper().encode(), b"y"), (b"A", b"1")]
    assert request_head(b"GET", b"/", fields, b"d") == b"GET / HTTP/1.1\r\nHost: h\r\nA: 1\r\n"


def test_a_request_without_a_host_gets_one() -> None:
    """HTTP/1.0 needs none, and what is sent on is HTTP/1.1."""
    assert request_head(b"GET", b"/", [(b"A", b"1")], b"d:80") == b"GET / HTTP/1.1\r\nHost: d:80\r\nA: 1\r\n"


def test_a_request_keeps_what_frames_it() -> None:
    fields = [(b"Host", b"h"), (b"Content-Length", b"5")]
    assert request_head(b"PUT", b"/", fields, b"d").endswith(b"Content-Length: 5\r\n")
    fields = [(b"Host", b"h"), (b"Transfer-Encoding", b"chunked")]
    assert request_head(b"PUT", b"/", fields, b"d").endswith(b"Transfer-Encoding: chunked\r\n")


def test_a_request_loses_what_connection_nominates() -> None:
    fields = [(b"Host", b"h"), (b"Connection", b"close, X-Hop"), (b"x-hop", b"1"), (b"X-Hops", b"2")]
    assert request_head(b"GET", b"/", fields, b"d") == b"GET / HTTP/1.1\r\nHost: h\r\nX-Hops: 2\r\n"


@pytest.mark.parametrize("name", ["Host", "Content-Length", "Transfer-Encoding"])
def test_connection_cannot_take_away_what_frames_or_routes(name: str) -> None:
    """Otherwise a client could make the proxy forward a body without its length."""
    fields = [(b"Connection", name.encode()), (name.encode(), b"5")]
    assert nominated(fields) == frozenset()
    assert name.encode() in request_head(b"GET", b"/", fields, b"d")


def test_all_connection_fields_count() -> None:
    fields = [(b"Connection", b"keep-alive"), (b"connection", b"A , b"), (b"CONNECTION", b",C")]
    assert nominated(fields) >= {b"a", b"b", b"c"}


# Responses: lines.


def test_an_answer_with_nothing_to_take_out_keeps_its_bytes() -> None:
    found = head(b"HTTP/1.1 200 OK\nServer:x\nset-cookie: a\nSet-Cookie:  b \nContent-Length: 2")
    assert found.lines == b"Server:x\r\nset-cookie: a\r\nSet-Cookie:  b \r\nContent-Length: 2\r\n"
    assert found.measured


@pytest.mark.parametrize(
    "extra",
    [
        b"Connection: keep-alive",
        b"connection: keep-alive",
        b"Connection: Keep-Alive",
        b"Connection: close",
        b"Connection:",
        b"Connection: X-Gone\nX-Gone: 1",
        b"X-Gone: 1\nConnection: keep-alive, x-gone",
        b"Connection: keep-alive\nConnection: X-Gone\nX-Gone: 1",
        b"Connection: X-Gone\nConnection: keep-alive\nX-Gone: 1",
        b"Keep-Alive: timeout=5",
        b"Connection: keep-alive\nKeep-Alive: timeout=5",
        b"Proxy-Connection: keep-alive",
        b"Upgrade: h2c\nConnection: Upgrade",
        b"TE: x",
    ],
)
def test_an_answer_loses_what_is_for_this_hop(extra: bytes) -> None:
    for before, after in (
        (b"A: 1\n" + extra, b"\nB: 2"),
        (extra, b"\nA: 1\nB: 2"),
        (b"A: 1\nB: 2\n" + extra, b""),
    ):
        found = head(b"HTTP/1.1 200 OK\n" + before + after + b"\nContent-Length: 2")
        assert found.lines.split(b"\r\n") == [b"A: 1", b"B: 2", b"Content-Length: 2", b""]
        assert found.length == 2


def test_a_field_whose_value_looks_like_a_hop_field_stays() -> None:
    found = head(b"HTTP/1.1 200 OK\nX: Connection: keep-alive\nConnection: keep-alive\nContent-Length: 0")
    assert found.lines == b"X: Connection: keep-alive\r\nContent-Length: 0\r\n"


def test_answers_keep_what_only_requests_lose() -> None:
    found = head(b"HTTP/1.1 200 OK\nX-Request-Id: 7\nX-Forwarded-For: a\nHost: h\nConnection: close")
    assert found.lines == b"X-Request-Id: 7\r\nX-Forwarded-For: a\r\nHost: h\r\n"


def test_response_lines_take_pairs() -> None:
    fields = [(b"Connection", b"X-A"), (b"X-A", b"1"), (b"Set-Cookie", b"a"), (b"Set-Cookie", b"b")]
    assert response_lines(fields) == b"Set-Cookie: a\r\nSet-Cookie: b\r\n"


@pytest.mark.parametrize(
    ("offered", "named", "may"),
    [
        (b"websocket", [b"websocket"], True),
        (b"WebSocket", [b"websocket"], True),
        (b"a, b/1", [b"b/1"], True),
        (b"a, b/1", [b"a", b"b/1"], True),
        (b"websocket", [b"evil"], False),
        (b"a", [b"a, evil"], False),
        (b"a", [b"a", b"evil"], False),
        (b"a", [b""], False),
        (b"a", [], False),
    ],
)
def test_a_switch_is_to_what_was_offered(offered: bytes, named: list[bytes], may: bool) -> None:
    head = b"GET / HTTP/1.1\r\nX-Upgrade: evil\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n" % offered
    assert may_switch(head, [(b"A", b"evil"), *((b"Upgrade", value) for value in named)]) is may


# Responses: the length of the body (RFC 9112, section 6.3).


@pytest.mark.parametrize(
    ("lines", "method", "length"),
    [
        (b"HTTP/1.1 200 OK\nContent-Length: 5", "GET", 5),
        (b"HTTP/1.1 200 OK\nContent-Length: 0", "GET", 0),
        (b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked", "GET", CHUNKED),
        (b"HTTP/1.1 200 OK\nTransfer-Encoding: Chunked", "GET", CHUNKED),
        (b"HTTP/1.1 200 OK", "GET", UNTIL_CLOSE),
        (b"HTTP/1.0 200 OK", "GET", UNTIL_CLOSE),
        (b"HTTP/1.1 200 OK\nContent-Length: 5", "HEAD", 0),
        (b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked", "HEAD", 0),
        (b"HTTP/1.1 200 OK", "HEAD", 0),
        (b"HTTP/1.1 204 No Content", "GET", 0),
        (b"HTTP/1.1 304 Not Modified\nContent-Length: 5", "GET", 0),
        (b"HTTP/1.1 304 Not Modified", "GET", 0),
        (b"HTTP/1.1 404 Not Found", "GET", UNTIL_CLOSE),
    ],
)
def test_length(lines: bytes, method: str, length: int) -> None:
    assert head(lines, method).length == length


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 5\nContent-Length: 5",
        b"Content-Length: 5\ncontent-length: 6",
        b"Content-Length: 5, 5",
        b"Content-Length: -1",
        b"Content-Length: +1",
        b"Content-Length: 1_0",
        b"Content-Length:",
        b"Content-Length: 5\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\nContent-Length: 5",
        b"Transfer-Encoding: gzip",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked, chunked",
        b"Transfer-Encoding: chunked\nTransfer-Encoding: chunked",
        b"Transfer-Encoding:",
        b"A: 1\n folded",
    ],
)
def test_heads_with_more_than_one_reading(lines: bytes) -> None:
    with pytest.raises(ValueError, match="."):
        head(b"HTTP/1.1 200 OK\n" + lines)


def test_a_bare_line_feed_is_refused() -> None:
    data = b"HTTP/1.1 200 OK\r\nA: 1\nContent-Length: 0\r\n\r\n"
    parsed = parse_response(data)
    with pytest.raises(ValueError, match="CRLF"):
        ResponseHead("GET", 200, b"OK", 1, parsed["headers"], data)


def test_http_1_0_knows_no_transfer_coding() -> None:
    with pytest.raises(ValueError, match=r"1\.0"):
        head(b"HTTP/1.0 200 OK\nTransfer-Encoding: chunked")


def test_whether_there_is_a_date() -> None:
    assert head(b"HTTP/1.1 200 OK\ndate: x").dated
    assert not head(b"HTTP/1.1 200 OK\nDated: x\nX-Date: x").dated


# Responses: the connection (RFC 9112, section 9.3).


@pytest.mark.parametrize(
    ("lines", "keep"),
    [
        (b"HTTP/1.1 200 OK", True),
        (b"HTTP/1.1 200 OK\nConnection: keep-alive", True),
        (b"HTTP/1.1 200 OK\nConnection: close", False),
        (b"HTTP/1.1 200 OK\nConnection: Close", False),
        (b"HTTP/1.1 200 OK\nConnection: x, close", False),
        (b"HTTP/1.1 200 OK\nConnection: keep-alive\nConnection: close", False),
        (b"HTTP/1.1 200 OK\nConnection: close\nConnection: keep-alive", False),
        (b"HTTP/1.0 200 OK", False),
        (b"HTTP/1.0 200 OK\nConnection: keep-alive", True),
        (b"HTTP/1.0 200 OK\nConnection: Keep-Alive", True),
        (b"HTTP/1.0 200 OK\nConnection: close, keep-alive", False),
    ],
)
def test_keep(lines: bytes, keep: bool) -> None:
    assert head(lines + b"\nContent-Length: 0").keep is keep


@pytest.mark.parametrize(
    ("field", "keep"),
    [
        (b"A: b", True),
        (b"Content-Length: 0", True),
        (b"Content-Length: 5", False),
        (b"Transfer-Encoding: chunked", False),
    ],
)
def test_a_204_that_announces_content_is_the_last(field: bytes, keep: bool) -> None:
    found = head(b"HTTP/1.1 204 No Content\n" + field)
    assert (found.keep, found.length) == (keep, 0)
