"""A client's connection over a real socket: framing, keeping it open, applications that misbehave."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from lb.errors import RequestTimeout, UpstreamClosed
from lb.settings import ClientSettings
from tests.support.clients import PATIENCE, Client, request
from tests.support.serving import Serving

Environ = dict[str, Any]
Start = Callable[..., Callable[[bytes], object]]


def echo(environ: Environ, start: Start) -> Iterable[bytes]:
    """Answer with method, target and body."""
    body = environ["wsgi.input"].read()
    content = f"{environ['REQUEST_METHOD']} {environ['lb.target']} ".encode("latin-1") + body
    start("200 OK", [("Content-Length", str(len(content)))])
    return (content,)


def answering(status: str, *fields: tuple[str, str], body: Iterable[bytes] = ()) -> Any:
    """An application that answers every request the same."""

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        start(status, list(fields))
        return body

    return app


@contextlib.contextmanager
def connected(app: Any = echo, **settings: Any) -> Iterator[tuple[Serving, Client]]:
    """A server of `app`, and a connection to it."""
    with Serving(app, ClientSettings(**settings)) as serving, Client(serving.port) as client:
        yield serving, client


# Requests, one after the other and all at once.


def test_a_connection_serves_many_requests() -> None:
    with connected() as (serving, client):
        assert [client.get(f"/{n}").body for n in range(3)] == [b"GET /0 ", b"GET /1 ", b"GET /2 "]
        assert client.call("PUT", "/p", b"body").body == b"PUT /p body"
        assert len(serving.server.clients) == 1


def test_pipelined_requests_are_answered_in_their_order() -> None:
    """Bodies of both framings among them: what follows a body is the next head, byte for byte."""
    with connected() as (_, client):
        client.send(
            request("GET", "/1")
            + request("POST", "/2", "Content-Length: 3")
            + b"GET"
            + request("POST", "/3", "Transfer-Encoding: chunked")
            + b"4\r\nPOST\r\n0\r\nX: trailer\r\n\r\n"
            + request("GET", "/4")
        )
        answers = [client.read_answer().body for _ in range(4)]
        assert answers == [b"GET /1 ", b"POST /2 GET", b"POST /3 POST", b"GET /4 "]


def test_a_request_that_comes_while_another_is_served() -> None:
    """It stays in the socket until the first one is answered."""
    steps: list[str] = []

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        target = environ["lb.target"]
        steps.append(target)
        if target == "/1":
            client.send(request("GET", "/2"))
            environ["lb.start"].__self__.conn.reactor.give_way()
        steps.append(target)
        return echo(environ, start)

    with connected(app) as (_, client):
        assert client.get("/1").body == b"GET /1 "
        assert client.read_answer().body == b"GET /2 "
    assert steps == ["/1", "/1", "/2", "/2"]


def test_a_body_may_come_in_small_pieces() -> None:
    with connected() as (_, client):
        client.send(request("POST", "/", "Content-Length: 5"))
        for byte in b"abcde":
            client.send(bytes([byte]))
        assert client.read_answer().body == b"POST / abcde"
        client.send(request("POST", "/", "Transfer-Encoding: chunked"))
        for byte in b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n":
            client.send(bytes([byte]))
        assert client.read_answer().body == b"POST / abcde"


@pytest.mark.parametrize(("expect", "wanted"), [("100-continue", 1), ("100-Continue", 1)])
def test_who_expects_it_is_told_to_go_on(expect: str, wanted: int) -> None:
    with connected() as (_, client):
        client.send(request("POST", "/", "Content-Length: 1", f"Expect: {expect}"))
        if wanted:
            assert client.read_head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"x")
        assert client.read_answer().body == b"POST / x"


def test_nobody_is_told_to_go_on_when_the_body_is_not_wanted() -> None:
    """The answer comes at once, and closes: whether the body follows is open."""
    with connected(answering("403 No", ("Content-Length", "0"))) as (_, client):
        answer = client.call("POST", "/", None, "Content-Length: 5", "Expect: 100-continue")
        assert (answer.status, answer.interim) == (403, [])
        assert answer.values("Connection") == ["close"]
        assert client.at_end()


def test_an_answer_before_the_whole_body_closes_without_a_reset() -> None:
    """What still comes is read for a moment: a reset would reach the client before it has read the answer."""
    with connected(answering("413 No", ("Content-Length", "2"), body=(b"no",))) as (serving, client):
        client.send(request("POST", "/", "Content-Length: 1000000"))
        answer = client.read_answer()
        assert (answer.status, answer.body, answer.complete) == (413, b"no", True)
        assert client.at_end(), "its side of the connection is closed"
        for _ in range(10):
            client.send(bytes(99_999))
            serving.call(lambda: None)  # the server has had a turn


# How long a connection lives.


@pytest.mark.parametrize(
    ("version", "fields", "stays"),
    [
        ("1.1", (), True),
        ("1.1", ("Connection: close",), False),
        ("1.0", (), False),
        ("1.0", ("Connection: keep-alive",), True),
    ],
)
def test_who_closes(version: str, fields: tuple[str, ...], stays: bool) -> None:
    with connected() as (serving, client):
        client.send(request("GET", "/", *fields, version=version))
        answer = client.read_answer()
        assert answer.head.startswith(b"HTTP/1.1 200 OK\r\n")
        wanted = [] if version == "1.1" else ["keep-alive"]
        assert answer.values("Connection") == (wanted if stays else ["close"])
        if stays:
            assert client.get("/2").body == b"GET /2 "
        else:
            assert client.at_end()
            serving.until(lambda: not serving.server.clients, "the server to forget it")


def test_an_idle_connection_is_closed_after_keepalive() -> None:
    with connected(keepalive=0.3) as (_, client):
        assert client.get().status == 200
        began = time.monotonic()
        assert client.at_end()
        assert 0.2 < time.monotonic() - began < 5


def test_a_connection_that_says_nothing_is_closed() -> None:
    with connected(header=0.2) as (serving, client):
        assert client.at_end()
        assert serving.logged == []


def test_a_body_that_pauses_too_long_ends_the_connection() -> None:
    """The application gets the error, as it would get any other."""
    codes: list[str] = []

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        try:
            return echo(environ, start)
        except RequestTimeout as exc:
            codes.append(exc.code)
            start("408 Late", [("Content-Length", "0")])
            return (b"",)

    with connected(app, idle=0.2) as (_, client):
        client.send(request("POST", "/", "Content-Length: 5") + b"ab")
        assert client.read_answer().status == 408
    assert codes == ["client_timeout"]


def test_a_client_that_goes_away_is_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    with connected() as (serving, client):
        client.get()
        for _ in range(3):
            with Client(serving.port) as other:
                other.get()
            with Client(serving.port) as other:
                other.get()
                other.reset()
        serving.until(lambda: len(serving.server.clients) == 1, "the others to be forgotten")
    assert not caplog.records


def test_a_client_that_reads_nothing_is_cut_off() -> None:
    closed: list[bool] = []

    class Endless:
        def __iter__(self) -> Iterator[bytes]:
            while True:
                yield bytes(1_000_000)

        def close(self) -> None:
            closed.append(True)

    with connected(answering("200 OK", body=Endless()), idle=0.2) as (serving, client):
        client.send(request("GET", "/"))
        serving.until(lambda: closed, "the application's iterable to be closed")
        serving.until(lambda: not serving.server.clients, "the server to forget it")
    assert closed == [True]


# Answers.


def pieces(*content: bytes) -> Iterator[bytes]:
    """A body whose length nobody knows."""
    yield from content


def test_a_body_of_unknown_length_is_chunked() -> None:
    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        start("200 OK", [])
        return pieces(b"ab", b"", b"c")

    with connected(app) as (_, client):
        for _ in range(2):
            client.send(request("GET", "/"))
            assert b"\r\nTransfer-Encoding: chunked\r\n\r\n" in client.read_head()
            raw = b""
            while not raw.endswith(b"0\r\n\r\n"):
                raw += client.read_some()
            assert raw == b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"


def test_http_1_0_gets_such_a_body_up_to_the_end() -> None:
    with connected(answering("200 OK", body=[b"ab", b"c"])) as (_, client):
        client.send(request("GET", "/", "Connection: keep-alive", version="1.0"))
        answer = client.read_answer()
        assert answer.values("Transfer-Encoding") == []
        assert answer.values("Connection") == ["close"]
        assert answer.body == b"abc"


def test_a_tuple_has_a_length() -> None:
    with connected(answering("200 OK", body=(b"ab", b"c"))) as (_, client):
        answer = client.get()
        assert answer.values("Content-Length") == ["3"]
        assert answer.body == b"abc"
        assert client.get().complete


@pytest.mark.parametrize("body", [(b"body",), [b"body"]], ids=["tuple", "list"])
@pytest.mark.parametrize(("method", "status"), [("HEAD", "200 OK"), ("GET", "204 None"), ("GET", "304 Same")])
def test_some_answers_have_no_body(body: Iterable[bytes], method: str, status: str) -> None:
    """Whatever the application says: a body would be taken for the next answer."""
    with connected(answering(status, ("ETag", "x"), body=body)) as (_, client):
        for _ in range(2):
            answer = client.call(method, "/")
            assert answer.lines == ["ETag: x"]
        client.send(request(method, "/", "Connection: close"))
        assert client.read_answer(method).values("Connection") == ["close"]
        assert client.at_end()


def test_head_keeps_the_length_of_get() -> None:
    with connected(answering("200 OK", ("Content-Length", "4"), body=(b"body",))) as (_, client):
        assert client.call("HEAD", "/").values("Content-Length") == ["4"]
        assert client.get().body == b"body"


def test_an_empty_body_of_unknown_length() -> None:
    with connected(answering("200 OK", body=[])) as (_, client):
        answer = client.get()
        assert (answer.body, answer.complete) == (b"", True)
        assert client.get().complete


def test_fields_go_out_in_order_and_in_latin_1() -> None:
    fields = (("X", "1"), ("A", "caf\xe9"), ("X", "2"), ("content-length", "0"))
    with connected(answering("299 \xdcber", *fields, body=(b"",))) as (_, client):
        head = client.get().head
        assert head == b"HTTP/1.1 299 \xdcber\r\nX: 1\r\nA: caf\xe9\r\nX: 2\r\ncontent-length: 0\r\n\r\n"


def test_the_iterable_is_closed_once() -> None:
    closed: list[str] = []

    class Body(list[bytes]):
        def close(self) -> None:
            closed.append("closed")

    with connected(answering("200 OK", body=Body([b"x"]))) as (serving, client):
        for turn in (1, 2):
            assert client.get().body == b"x"
            serving.until(lambda turn=turn: len(closed) >= turn, "its close")  # type: ignore[misc]
    assert closed == ["closed"] * 2


# PEP 3333's write().


@pytest.mark.parametrize("rest", [[], [b"d", b"", b"e"]])
def test_write_sends_at_once_and_the_end_is_the_connections(rest: list[bytes]) -> None:
    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        write = start("200 OK", [("X", "1")])
        write(b"ab")
        write(b"c")
        return rest

    with connected(app) as (_, client):
        answer = client.get()
        assert answer.lines == ["X: 1", "Connection: close"]
        assert answer.body == b"abc" + b"".join(rest)


def test_start_response_may_be_called_again_until_something_was_sent() -> None:
    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        write = start("200 OK", [("X", "1")])
        try:
            if environ["lb.target"] == "/sent":
                write(b"x")
            raise KeyError("wrong")
        except KeyError as exc:
            start("500 Wrong", [("Content-Length", "0")], (KeyError, exc, exc.__traceback__))
        return (b"",)

    with connected(app) as (serving, client):
        answer = client.get("/")
        assert (answer.status, answer.lines) == (500, ["Content-Length: 0"])
        client.send(request("GET", "/sent"))
        answer = client.read_answer()
        assert (answer.status, answer.body) == (200, b"x")
        assert client.at_end()
        assert len(serving.logged) == 0


# Applications that fail.


def failing(at: str, error: Exception) -> Any:
    """An application that raises `error` at some point."""

    def body() -> Iterator[bytes]:
        if at == "first":
            raise error
        yield b"a piece"
        raise error

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        if at == "called":
            raise error
        start("200 OK", [("Content-Length", "100")] if at == "measured" else [])
        if at == "started":
            raise error
        return body()

    return app


@pytest.mark.parametrize("at", ["called", "started"])
def test_an_application_that_fails_is_a_500(caplog: pytest.LogCaptureFixture, at: str) -> None:
    with connected(failing(at, KeyError("secret"))) as (serving, client):
        answer = client.get("/x")
        assert answer.status == 500
        assert answer.values("Connection") == ["close"]
        assert b"internal" in answer.body
        assert b"secret" not in answer.head + answer.body
        assert client.at_end()
        client.close()
        serving.until(lambda: serving.logged, "the entry of the log")
        assert [(e.status, e.code, e.client) for e in serving.logged] == [(500, "internal", "127.0.0.1")]
        assert answer.values("X-Request-Id") == [serving.logged[0].id]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "GET" in record.getMessage()
    assert "/x" in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], KeyError)


@pytest.mark.parametrize("error", [KeyError("x"), UpstreamClosed("x")])
@pytest.mark.parametrize("at", ["between", "measured"])
def test_a_body_that_breaks_off_resets_the_connection(error: Exception, at: str) -> None:
    """A cut body must not look whole, not even one that ends with the connection."""
    for version in ("1.1", "1.0"):
        with connected(failing(at, error)) as (serving, client):
            client.send(request("GET", "/", version=version))
            answer = client.read_answer()
            assert answer.status == 200
            assert not answer.complete
            serving.until(lambda s=serving: not s.server.clients, "its end")  # type: ignore[misc]


def test_a_reset_comes_also_when_the_head_was_not_sent() -> None:
    with connected(failing("called", UpstreamClosed("x"))) as (serving, client):
        client.send(request("GET", "/"))
        with pytest.raises(ConnectionError):
            client.read_answer()
        assert serving.logged == []


def test_an_application_that_forgets_start_response_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    with connected(lambda environ, start: (b"x",)) as (_, client):
        assert client.get().status == 500
    assert "start_response" in str(caplog.records[0].exc_info)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request("HEAD", "/"), 500),
        (request("HEAD", "/", "A : b"), 400),
        (request("HEAD", "/", "Expect: x"), 417),
    ],
)
def test_an_error_has_no_content_either_when_head_asked(
    caplog: pytest.LogCaptureFixture, data: bytes, status: int
) -> None:
    with connected(failing("called", ValueError("oops"))) as (_, client):
        client.send(data)
        answer = client.read_answer("HEAD")
        assert answer.status == status
        assert client.at_end()


def test_other_connections_go_on_when_one_fails(caplog: pytest.LogCaptureFixture) -> None:
    class Worse:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"x"])

        def close(self) -> None:
            raise KeyError("in close")

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        if environ["lb.target"] == "/worse":
            start("200 OK", [])
            return Worse()
        return echo(environ, start)

    with connected(app) as (serving, client):
        assert client.get().status == 200
        with Client(serving.port) as other:
            assert other.get("/worse").body == b"x"
            assert other.at_end()
        assert client.get().status == 200
        serving.until(lambda: len(serving.server.clients) == 1, "the other to be forgotten")
    assert [record.getMessage() for record in caplog.records] == ["serving a connection failed"]


# Messages that are refused.


REFUSED = [
    pytest.param(request("GET", "/", host=""), 400, "bad_request", id="no host"),
    pytest.param(request("GET", "/", "X : 1"), 400, "bad_request", id="space before the colon"),
    pytest.param(request("GET", "/", "X: 1", " Y: 2"), 400, "bad_request", id="folding"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n", 400, "bad_request", id="bare LF"),
    pytest.param(
        request("POST", "/", "Content-Length: 1", "Content-Length: 2"), 400, "bad_request", id="lengths"
    ),
    pytest.param(request("POST", "/", "Content-Length: -1"), 400, "bad_request", id="negative"),
    pytest.param(
        request("POST", "/", "Content-Length: 1", "Transfer-Encoding: chunked"), 400, "bad_request", id="both"
    ),
    pytest.param(
        request("POST", "/", "Transfer-Encoding: chunked", version="1.0"),
        400,
        "bad_request",
        id="chunked 1.0",
    ),
    pytest.param(request("GET", "/", version="2.0"), 505, "version_not_supported", id="version"),
    pytest.param(request("CONNECT", "a:1"), 400, "bad_request", id="connect"),
    pytest.param(request("G@T", "/"), 400, "bad_request", id="method"),
    pytest.param(request("GET", "/" + "a" * 9000), 414, "uri_too_long", id="target"),
    pytest.param(request("GET", "/", "X: " + "a" * 9000), 431, "header_too_large", id="field"),
    pytest.param(request("GET", "/", *["X: 1"] * 200), 431, "header_too_large", id="fields"),
]


@pytest.mark.parametrize(("data", "status", "code"), REFUSED)
def test_a_message_that_cannot_be_read_is_refused(data: bytes, status: int, code: str) -> None:
    """With an answer, an entry in the log, and the end of the connection: what follows is anybody's guess."""
    called: list[Environ] = []

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        called.append(environ)
        return echo(environ, start)

    with connected(app) as (serving, client):
        client.send(data + request("GET", "/smuggled"))
        answer = client.read_answer()
        assert answer.status == status
        assert code in answer.body.decode()
        assert answer.values("Connection") == ["close"]
        assert client.at_end()
        client.close()
        serving.until(lambda: serving.logged, "the entry of the log")
        (entry,) = serving.logged
        assert (entry.status, entry.code, entry.client) == (status, code, "127.0.0.1")
        assert entry.bytes == len(answer.body)
        assert answer.values("X-Request-Id") == [entry.id]
        serving.until(lambda: not serving.server.clients, "its end")
    assert called == []


@pytest.mark.parametrize("before", [b"", b"\r\n"])
@pytest.mark.parametrize("fields", [("Content-Length: +5",), ("Content-Length: 1", "A : b")])
def test_a_refused_head_has_no_content(before: bytes, fields: tuple[str, ...]) -> None:
    """Its sender would take it for another answer (RFC 9110, section 9.3.2)."""
    with connected() as (_, client):
        client.send(before + request("HEAD", "/", *fields))
        answer = client.read_answer("HEAD")
        assert (answer.status, answer.values("Connection")) == (400, ["close"])
        assert client.at_end()


def test_a_head_whose_application_failed_has_no_content(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        raise LookupError("its fault")

    caplog.set_level(logging.CRITICAL, "lb")
    with connected(app) as (_, client):
        assert client.call("HEAD", "/").status == 500
        assert client.at_end()


def test_methods_are_tokens() -> None:
    with connected() as (_, client):
        assert client.call("PROPFIND", "/").body == b"PROPFIND / "
        assert client.call("get", "/").body == b"get / "


def test_a_later_minor_version_may_come_with_any_method() -> None:
    """RFC 9110, section 2.5; the parser names one of its two objections at a time."""
    with connected() as (_, client):
        client.send(request("GET", "/a", version="1.2") + request("get", "/b", version="1.2"))
        assert [client.read_answer().body, client.read_answer().body] == [b"GET /a ", b"get /b "]


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00\r\n", b"GET /a b HTTP/1.1\r\n\r\n", b"GET x HTTP/1.1\r\nHost: a\r\n\r\n"]
)
def test_what_is_no_head_is_refused(data: bytes) -> None:
    with connected() as (serving, client):
        client.send(data)
        assert client.read_answer().status == 400
        assert client.at_end()
        client.close()
        serving.until(lambda: serving.logged, "the entry of the log")
        assert serving.logged[0].code == "bad_request"


# Heads that come in parts.


def test_a_head_may_come_byte_by_byte() -> None:
    data = request("GET", "/", "X: 1")
    with connected() as (serving, client):
        client.get()
        (held,) = serving.server.clients
        for _ in range(2):
            for at, byte in enumerate(data, 1):
                client.send(bytes([byte]))
                if at < len(data):  # so that each is read by itself
                    serving.until(lambda at=at: held.pending == data[:at], "the next byte")  # type: ignore[misc]
            assert client.read_answer().body == b"GET / "


def test_a_head_may_be_cut_anywhere() -> None:
    data = request("POST", "/", "Content-Length: 2")
    with connected() as (serving, client):
        client.get()
        (held,) = serving.server.clients
        for at in range(1, len(data)):
            client.send(data[:at])
            serving.until(lambda at=at: held.pending == data[:at], "the first part")  # type: ignore[misc]
            client.send(data[at:] + b"ok")
            assert client.read_answer().body == b"POST / ok"


def test_the_next_head_may_begin_behind_a_request() -> None:
    with connected() as (_, client):
        client.send(request("GET", "/1") + b"GET /2 HT")
        assert client.read_answer().body == b"GET /1 "
        client.send(b"TP/1.1\r\nHost: a\r\n\r\n")
        assert client.read_answer().body == b"GET /2 "


def test_a_head_that_never_ends_is_refused() -> None:
    with connected() as (serving, client):
        client.send(b"GET / HTTP/1.1\r\nX: " + bytes([ord("a")]) * (65536 + 1))
        assert client.read_answer().status == 431
        assert client.at_end()
        client.close()
        serving.until(lambda: serving.logged, "the entry of the log")
        assert serving.logged[0].code == "header_too_large"


def test_a_slow_head_is_dropped() -> None:
    """Its time starts with its first byte, and does not start again with each that follows."""
    with connected(header=0.4) as (serving, client):
        client.get()
        began = time.monotonic()
        (held,) = serving.server.clients
        client.send(b"G")
        while not serving.logged and time.monotonic() - began < PATIENCE:
            before = len(held.pending)
            client.send(b"E")
            serving.until(lambda n=before: len(held.pending) > n or serving.logged, "it")  # type: ignore[misc]
        assert 0.3 < time.monotonic() - began < 5
        answer = client.read_answer()
        assert (answer.status, answer.values("Connection")) == (408, ["close"])
        assert client.at_end()
        assert [(entry.status, entry.code) for entry in serving.logged] == [(408, "client_timeout")]
