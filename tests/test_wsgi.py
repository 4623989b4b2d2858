"""WSGI's border: what is read from an environ that another server made, and the answers of our own."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from lb.errors import BadRequest, NoBackend, ResponseTimeout
from lb.wsgi import client_body, listener, origin_form, problem, raw_head, raw_target


def environ(**changes: Any) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/a b",
        "RAW_URI": "/a%20b?q=1",
        "SERVER_NAME": "front",
        "SERVER_PORT": "8000",
        "wsgi.input": io.BytesIO(),
        **changes,
    }


def test_target() -> None:
    assert raw_target(environ()) == "/a%20b?q=1"
    assert raw_target(environ(RAW_URI="http://h:1/x?y")) == "/x?y"
    assert raw_target(environ(RAW_URI="*")) == "*"
    assert raw_target(environ(**{"lb.target": "/own"})) == "/own"


@pytest.mark.parametrize(
    ("target", "path", "authority"),
    [
        ("http://h/x", "/x", "h"),
        ("HTTPS://h:1", "/", "h:1"),
        ("http://h?q", "/?q", "h"),
        ("http://h/a/../b?c/d", "/a/../b?c/d", "h"),
    ],
)
def test_origin_form(target: str, path: str, authority: str) -> None:
    assert origin_form(target) == (path, authority)


@pytest.mark.parametrize("target", ["x", "ftp://h/", "http://", "http:///x", "http://u@h/", "h:443", ""])
def test_origin_form_refused(target: str) -> None:
    with pytest.raises(BadRequest):
        origin_form(target)


def test_head_from_the_standard_keys() -> None:
    made = raw_head(
        environ(HTTP_HOST="h", HTTP_X_ONE="1", HTTP_CONNECTION="close, x-one", CONTENT_TYPE="text/plain"),
        "/t",
    )
    lines = made.split(b"\r\n")
    assert lines[0] == b"GET /t HTTP/1.1"
    assert sorted(lines[1:-1]) == [b"Content-Type: text/plain", b"Host: h"]


def test_head_without_a_host_gets_the_servers_own() -> None:
    assert b"Host: front:8000\r\n" in raw_head(environ(), "/")


def test_head_that_came_whole_is_taken_as_it_is() -> None:
    assert raw_head(environ(**{"lb.head": b"raw"}), "/") == b"raw"


def test_body_by_length_and_chunked() -> None:
    assert client_body(environ()) is None
    body = client_body(environ(CONTENT_LENGTH="3", **{"wsgi.input": io.BytesIO(b"abcdef")}))
    assert body is not None
    assert body.read() == b"abc"
    chunked = environ(HTTP_TRANSFER_ENCODING="chunked", **{"wsgi.input": io.BytesIO(b"abc")})
    body = client_body(chunked)
    assert body is not None
    assert body.read() == b"abc"
    with pytest.raises(BadRequest):
        client_body(environ(CONTENT_LENGTH="-3"))


class _Sock:
    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", 8001)


def test_listener_is_a_matter_of_sockets() -> None:
    assert listener(environ(), ()) == "data"
    assert listener(environ(**{"gunicorn.socket": _Sock()}), (("127.0.0.1", 8001),)) == "control"
    assert listener(environ(**{"gunicorn.socket": _Sock()}), (("127.0.0.1", 9),)) == "data"
    assert listener(environ(HTTP_HOST="127.0.0.1:8001"), (("127.0.0.1", 8001),)) == "data"
    assert listener(environ(**{"lb.listener": "control"}), ()) == "control"


def answer(exc: Any, **changes: Any) -> tuple[str, dict[str, str], bytes]:
    seen: list[Any] = []
    body = b"".join(problem(exc, environ(**changes), lambda *args: seen.extend(args), "id7"))
    return seen[0], dict(seen[1]), body


def test_problem_as_text() -> None:
    status, headers, body = answer(NoBackend("b1 at 10.0.0.1 is down"))
    assert status == "503 Service Unavailable"
    assert headers["X-Request-Id"] == "id7"
    assert int(headers["Retry-After"]) > 0
    assert int(headers["Content-Length"]) == len(body)
    assert b"no_backend" in body
    assert b"10.0.0.1" not in body


def test_problem_as_a_document() -> None:
    status, headers, body = answer(ResponseTimeout("x"), HTTP_ACCEPT="application/json")
    assert status == "504 Gateway Timeout"
    assert headers["Content-Type"] == "application/problem+json"
    assert "Retry-After" not in headers
    assert json.loads(body) == {
        "type": "about:blank",
        "title": "Gateway Timeout",
        "status": 504,
        "code": "response_timeout",
        "request_id": "id7",
    }


def test_problem_for_head_has_no_body() -> None:
    _, headers, body = answer(NoBackend("x"), REQUEST_METHOD="HEAD")
    assert body == b""
    assert int(headers["Content-Length"]) > 0
