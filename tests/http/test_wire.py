"""How the corpus reads bytes: if it read wrongly, its cases would say nothing."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from tests.http.wire import read_answers, read_body, read_chunks, read_head, wait_taken
from tests.support.backends import chunked, head_of, ok


def test_answers_in_a_row() -> None:
    got = head_of(103) + ok(b"one") + head_of(200, "Transfer-Encoding: chunked") + chunked(b"tw", b"o") + b"x"
    answers, dangling, left = read_answers(got, ["GET"], over=False)
    assert [(answer.status, answer.body, len(answer.interim)) for answer in answers] == [
        (200, b"one", 1),
        (200, b"two", 0),
    ]
    assert (dangling, left) == ([], b"x")


def test_answers_without_a_body() -> None:
    got = head_of(200, "Content-Length: 5") + head_of(304, "Content-Length: 5") + ok(b"x")
    answers, _, left = read_answers(got, ["HEAD", "GET"], over=False)
    assert [answer.body for answer in answers] == [b"", b"", b"x"]
    assert left == b""


@pytest.mark.parametrize(
    ("got", "over", "complete"),
    [
        (ok(b"hello")[:-1], False, False),
        (head_of(200) + b"hello", False, False),
        (head_of(200) + b"hello", True, True),
        (head_of(200, "Transfer-Encoding: chunked") + b"5\r\nhello\r\n", True, False),
        (head_of(200, "Transfer-Encoding: chunked") + b"nonsense", True, False),
    ],
)
def test_whether_an_answer_is_complete(got: bytes, over: bool, complete: bool) -> None:
    (answer,), _, _ = read_answers(got, ["GET"], over)
    assert answer.complete is complete


def test_what_is_no_answer_is_left() -> None:
    assert read_answers(b"nonsense\r\n\r\n", ["GET"], over=True) == ([], [], b"nonsense\r\n\r\n")


def test_chunks_with_trailers() -> None:
    assert read_chunks(b"1;x\r\na\r\n0\r\nA: b\r\nC: d\r\n\r\nrest") == (b"a", True, b"rest")
    assert read_chunks(b"1\r\na\r\n0\r\nA: b\r\n") == (b"a", False, b"")


def test_requests() -> None:
    data = b"POST /a HTTP/1.1\r\nContent-Length: 5\r\n\r\nhelloGET"
    found = read_head(data, 3)
    assert found is not None
    head, rest = found
    request, rest = read_body(head, rest)
    assert (request.body, request.whole, request.connection, rest) == (b"hello", True, 3, b"GET")
    assert not read_body(head, b"hell")[0].whole
    assert read_head(data[:20], 0) is None
    lenient = read_head(b"GET / HTTP/1.1\nA: b\n\nx", 0)
    assert lenient is not None
    assert lenient[1] == b"x"


def test_wait_until_the_other_side_has_read() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        listener.accept()[0] as server,
    ):
        client.sendall(b"hello")
        began = time.monotonic()
        wait_taken(client, 0.2)
        assert time.monotonic() - began >= 0.2, "nobody has read it yet"
        threading.Timer(0.1, server.recv, [5]).start()
        began = time.monotonic()
        wait_taken(client, 5)
        assert time.monotonic() - began < 4
