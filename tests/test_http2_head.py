"""The fields of HTTP/2: exactly one way to read a request, and answers as they must look."""

from __future__ import annotations

from typing import Any

import pytest

from lb.errors import BadRequest, HeaderTooLarge, UriTooLong
from lb.http2_head import Malformed, RequestHead, answer_fields, fields_of, read_request, read_trailers
from lb.limits import Limits
from lb.proxy.http1 import UNTIL_CLOSE
from lb.settings import LimitSettings

Fields = list[tuple[bytes, bytes]]
PSEUDO: Fields = [
    (b":method", b"GET"),
    (b":scheme", b"https"),
    (b":authority", b"a.example"),
    (b":path", b"/x?y"),
]


def read(*fields: tuple[bytes, bytes], ended: bool = True, **limits: Any) -> RequestHead:
    """Read the usual pseudo-fields, replaced by those given, and the other fields."""
    given = [field for field in fields if field[0].startswith(b":")]
    names = {name for name, _ in given}
    kept = [field for field in PSEUDO if field[0] not in names] + [
        field for field in given if field[1] != b"-"
    ]
    rest = [field for field in fields if not field[0].startswith(b":")]
    return read_request(kept + rest, ended, Limits(LimitSettings(**limits)))


def test_a_request() -> None:
    head = read((b"accept", b"*/*"), (b"te", b"Trailers"), (b"x", b""))
    assert (head.method, head.path, head.length) == (b"GET", b"/x?y", 0)
    assert head.fields == [(b"host", b"a.example"), (b"accept", b"*/*"), (b"x", b"")]


def test_cookies_become_one_field() -> None:
    head = read((b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2"))
    assert head.fields[1:] == [(b"x", b"y"), (b"cookie", b"a=1; b=2")]


@pytest.mark.parametrize(
    ("fields", "ended", "length", "framing"),
    [
        ([], True, 0, []),
        ([(b"content-length", b"0")], True, 0, [(b"content-length", b"0")]),
        ([(b"content-length", b"7")], False, 7, [(b"content-length", b"7")]),
        ([], False, UNTIL_CLOSE, [(b"transfer-encoding", b"chunked")]),
    ],
)
def test_how_long_a_body_is(fields: Fields, ended: bool, length: int, framing: Fields) -> None:
    head = read(*fields, ended=ended)
    assert head.length == length
    assert head.fields[1:] == framing


@pytest.mark.parametrize(
    ("fields", "hosts"),
    [
        ([(b"host", b"A.example")], [b"a.example"]),
        ([(b":authority", b"-"), (b"host", b"b.example")], [b"b.example"]),
        ([(b":authority", b"-"), (b"host", b"b"), (b"host", b"c")], [b"b", b"c"]),
        ([(b":authority", b"-")], []),
    ],
)
def test_authority_and_host(fields: Fields, hosts: list[bytes]) -> None:
    """None, and more than one, are for `lb.environ` to refuse, as in HTTP/1."""
    assert [value for name, value in read(*fields).fields if name == b"host"] == hosts


@pytest.mark.parametrize(
    "fields",
    [
        [(b":method", b"-")],
        [(b":method", b"")],
        [(b":method", b"GE T")],
        [(b":method", b"GET / HTTP/1.1\r\nX: y\r\n")],
        [(b":scheme", b"-")],
        [(b":scheme", b"ftp")],
        [(b":path", b"-")],
        [(b":path", b"")],
        [(b":path", b"x")],
        [(b":path", b"https://other/")],
        [(b":path", b"/ HTTP/1.1\r\nX: y")],
        [(b":path", b"/\x7f")],
        [(b":protocol", b"websocket")],
        [(b":status", b"200")],
        [(b":authority", b"a"), (b":authority", b"a")],
        [(b"connection", b"close")],
        [(b"proxy-connection", b"close")],
        [(b"keep-alive", b"1")],
        [(b"transfer-encoding", b"chunked")],
        [(b"upgrade", b"h2c")],
        [(b"te", b"gzip")],
        [(b"te", b"trailers, gzip")],
        [(b"Upper", b"x")],
        [(b"", b"x")],
        [(b"sp ace", b"x")],
        [(b"co:lon", b"x")],
        [(b"x", b" y")],
        [(b"x", b"y\t")],
        [(b"x", b"a\r\nb: c")],
        [(b"x", b"a\0b")],
        [(b"content-length", b"1"), (b"content-length", b"1")],
        [(b"content-length", b"+1")],
        [(b"content-length", b"1")],
    ],
)
def test_what_is_malformed(fields: Fields) -> None:
    with pytest.raises(Malformed):
        read(*fields)


def test_pseudo_fields_come_first() -> None:
    with pytest.raises(Malformed):
        read_request([(b"x", b"y"), *PSEUDO], True, Limits(LimitSettings()))


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ([(b":method", b"CONNECT"), (b":scheme", b"-"), (b":path", b"-")], BadRequest),
        ([(b"host", b"other.example")], BadRequest),
        ([(b":path", b"/" + b"x" * 200)], UriTooLong),
        ([(b"x-%d" % number, b"y") for number in range(9)], HeaderTooLarge),
        ([(b"x", b"y" * 130)], HeaderTooLarge),
        ([(b"x-%d" % number, b"y" * 100) for number in range(6)], HeaderTooLarge),
    ],
)
def test_what_is_refused(fields: Fields, wanted: type[Exception]) -> None:
    with pytest.raises(wanted):
        read(*fields, request_line=100, fields=8, field_size=128, head=700)


def test_trailers() -> None:
    assert read_trailers([(b"x-sum", b"1"), (b"content-length", b"1"), (b"a_b", b"c")]) == b"x-sum: 1\r\n"
    for field in [(b":path", b"/"), (b"X", b"y"), (b"x", b"a\nb"), (b"te", b"trailers")]:
        with pytest.raises(Malformed):
            read_trailers([field])


def test_answers() -> None:
    assert answer_fields(204, b"Date: now\r\nSet-Cookie:a=b \r\n") == [
        (b":status", b"204"),
        (b"date", b"now"),
        (b"set-cookie", b"a=b"),
    ]
    assert fields_of(b"") == []
