"""An answer on its way to the client: its fields, its body, and what is said when it is over."""

from __future__ import annotations

import re
from time import perf_counter

import pytest
from gunicorn_h1c import parse_response

from lb.accesslog import Entry
from lb.model import Backend
from lb.proxy.answer import Answer, Settles
from lb.proxy.fields import ResponseHead
from lb.proxy.messages import ProxyRequest, ProxyResponse
from lb.proxy.tunnel import Tunnels
from lb.proxy.upstream import Upstream


class Settled(Settles):
    """Who is told that answers are over."""

    tunnels = Tunnels(1.0, 1.0)

    def __init__(self) -> None:
        self.told: list[tuple[Answer, str]] = []

    def settle(self, answer: Answer, code: str) -> None:
        self.told.append((answer, code))


@pytest.fixture
def settled() -> Settled:
    return Settled()


def answer(settled: Settled, body: bytes, *fields: str) -> Answer:
    """One that came whole."""
    raw = "\r\n".join(["HTTP/1.1 200 Fine", f"Content-Length: {len(body)}", *fields, "", ""]).encode(
        "latin-1"
    )
    parsed = parse_response(raw)
    head = ResponseHead("GET", 200, parsed["message"], 1, parsed["headers"], raw)
    request = ProxyRequest("GET", Upstream("http://127.0.0.1:1", None), "/", b"", None)
    entry = Entry(0.0, "id", "192.0.2.1", "GET", "h", "/")
    backend = Backend(id="127.0.0.1:1", url="http://127.0.0.1:1")
    return Answer(settled, backend, entry, perf_counter(), ProxyResponse(head, request, body))


def test_fields_go_on_as_wsgi_wants_them(settled: Settled) -> None:
    fields = (
        "X-A:1",
        "Date: then",
        "Set-Cookie: a=b; c",
        "set-cookie:  d ",
        "Connection: X-Gone",
        "X-Gone: 1",
    )
    made = answer(settled, b"", *fields)
    assert (made.status, made.reason, made.measured) == (200, "Fine", True)
    assert made.headers() == [
        ("Content-Length", "0"),
        ("X-A", "1"),
        ("Date", "then"),
        ("Set-Cookie", "a=b; c"),
        ("set-cookie", "d"),
    ]


def test_an_answer_without_a_date_gets_one(settled: Settled) -> None:
    fields = dict(answer(settled, b"", "X-Date: 1").headers())
    assert list(fields) == ["Content-Length", "X-Date", "Date"]
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", fields["Date"])


def test_a_whole_one_is_settled_once(settled: Settled) -> None:
    made = answer(settled, b"hello")
    assert made.whole() == b"hello"
    made.close()
    assert [(one.sent, code) for one, code in settled.told] == [(5, "")]


def test_piece_by_piece_it_is_settled_when_closed(settled: Settled) -> None:
    made = answer(settled, b"hello")
    assert list(made) == [b"hello"]
    assert settled.told == []
    made.close()
    made.close()
    assert [(one.sent, code) for one, code in settled.told] == [(5, "")]
    assert made.duration() > 0
