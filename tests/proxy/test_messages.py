"""What `requests` promises of its types, worked out from the bytes."""

from __future__ import annotations

import pytest
import requests
from gunicorn_h1c import parse_response

from lb.proxy.fields import ResponseHead
from lb.proxy.messages import ProxyRequest, ProxyResponse
from lb.proxy.upstream import Upstream

HEAD = b"GET /a?b=c HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nx-a: 2\r\n\r\n"


def request() -> ProxyRequest:
    return ProxyRequest("GET", Upstream("http://127.0.0.1:9001", None), "/a?b=c", HEAD, None)


def response(head: bytes, whole: bytes | None) -> ProxyResponse:
    parsed = parse_response(head)
    meaning = ResponseHead("GET", parsed["status"], parsed["message"], 1, parsed["headers"], head)
    return ProxyResponse(meaning, request(), whole)


def test_a_request_tells_what_is_sent() -> None:
    made = request()
    assert isinstance(made, requests.PreparedRequest)
    assert made.method == "GET"
    assert made.url == "http://127.0.0.1:9001/a?b=c"
    assert made.headers["host"] == "h"
    assert made.headers["X-A"] == "1, 2"
    assert made.body is None


@pytest.mark.parametrize("status", [200, 404])
def test_a_response_tells_what_came(status: int) -> None:
    head = (
        b"HTTP/1.1 %d Words\r\nContent-Type: application/json\r\nA: 1\r\na: 2\r\nContent-Length: 8\r\n\r\n"
        % status
    )
    made = response(head, b'{"a": 1}')
    assert isinstance(made, requests.Response)
    assert (made.status_code, made.reason, made.ok) == (status, "Words", status == 200)
    assert made.url == "http://127.0.0.1:9001/a?b=c"
    assert made.headers["a"] == "1, 2"
    assert made.json() == {"a": 1}
    assert made.content == b'{"a": 1}'
    assert made.history == []
    if status == 404:
        with pytest.raises(requests.HTTPError, match="404"):
            made.raise_for_status()
    made.close()
    made.close()


def test_the_body_can_be_read_piece_by_piece() -> None:
    made = response(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"hello")
    assert b"".join(made.iter_content(2)) == b"hello"
