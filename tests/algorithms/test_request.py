"""What an algorithm sees of a request."""

from __future__ import annotations

import pytest

from lb.algorithms.request import HeadRequest

HEAD = (
    b"GET /a?Host:=x HTTP/1.1\r\n"
    b"Host: example.com\r\n"
    b"X-One:  two words\t \r\n"
    b"X-Many: 1\r\n"
    b"x-many:2\r\n"
    b"X-Empty:\r\n"
    b"X-Latin: caf\xe9\r\n"
    b"Not-X-Inner: X-Inner: no\r\n"
    b"Cookie: a=1; b=2; a=3;c\r\n"
    b'cookie: d="q"; e = 5 ; f==; =g\r\n'
)


@pytest.fixture
def request_() -> HeadRequest:
    return HeadRequest(HEAD, "192.0.2.1", "/a?Host:=x")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("host", "example.com"),
        ("HOST", "example.com"),
        ("X-One", "two words"),
        ("x-many", "1, 2"),
        ("X-Empty", ""),
        ("x-latin", "café"),
        ("X-Inner", ""),
        ("X", ""),
        ("", ""),
        ("nöne☃", ""),
        ("GET /a?Host", ""),
    ],
)
def test_fields(request_: HeadRequest, name: str, value: str) -> None:
    assert request_.header(name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("a", "1"),
        ("b", "2"),
        ("c", ""),
        ("d", '"q"'),
        ("e", "5"),
        ("f", "="),
        ("A", ""),
        ("g", ""),
        ("none", ""),
    ],
)
def test_cookies(request_: HeadRequest, name: str, value: str) -> None:
    assert request_.cookie(name) == value


def test_the_rest_is_kept_as_it_is(request_: HeadRequest) -> None:
    assert (request_.client, request_.target) == ("192.0.2.1", "/a?Host:=x")


@pytest.mark.parametrize("head", [b"", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nX: 1"])
def test_heads_that_end_early(head: bytes) -> None:
    found = HeadRequest(head, "", "/")
    assert found.header("x") == ("1" if head.endswith(b"1") else "")
    assert found.cookie("x") == ""
