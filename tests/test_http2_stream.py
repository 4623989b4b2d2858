"""Requests and answers as streams, over TLS: framing, bodies, applications and clients that misbehave."""

from __future__ import annotations

import contextlib
import logging
import ssl
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import gevent
import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import DataFrame, HeadersFrame

from lb.errors import UpstreamClosed
from lb.settings import ClientSettings, LimitSettings
from tests.support.http2 import Client
from tests.support.serving import Serving

Environ = dict[str, Any]
Start = Callable[..., Callable[[bytes], object]]
Connect = Callable[..., contextlib.AbstractContextManager[tuple[Serving, Client]]]


def echo(environ: Environ, start: Start) -> Iterable[bytes]:
    """Answer with method, target and body."""
    body = environ["wsgi.input"].read()
    content = f"{environ['REQUEST_METHOD']} {environ['lb.target']} ".encode("latin-1") + body
    start("200 OK", [("Content-Length", str(len(content))), ("X-Mixed", " v ")])
    return (content,)


def answering(status: str, *fields: tuple[str, str], body: Iterable[bytes] = ()) -> Any:
    """An application that answers every request the same."""

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        start(status, list(fields))
        return body

    return app


@pytest.fixture
def connected(http2_server: ssl.SSLContext, http2_trust: ssl.SSLContext) -> Connect:
    """Make a server of an application, and a connection to it."""

    @contextlib.contextmanager
    def make(app: Any = echo, hold: bool = False, limits: Any = None, **settings: Any) -> Iterator[Any]:
        how = ClientSettings(**settings)
        with (
            Serving(app, how, limits=limits or LimitSettings(), tls=http2_server) as serving,
            Client(serving.port, http2_trust, hold=hold) as client,
        ):
            yield serving, client
            serving.call(lambda: None)

    return make


def quiet(serving: Serving) -> None:
    """Nothing is left of any request."""
    serving.until(
        lambda: not serving.reactor.streams and all(not c.streams for c in serving.server.clients),
        "the streams to be over",
    )


def test_an_environ(connected: Connect) -> None:
    seen: list[Environ] = []

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        seen.append(environ)
        return echo(environ, start)

    with connected(app) as (serving, client):
        answer = client.get("/%41/b?c=d", ("cookie", "a=1"), ("x-a", "1"), ("cookie", "b=2"), ("a_b", "x"))
        assert (answer.status, answer.body) == (200, b"GET /%41/b?c=d ")
        assert answer.fields == [("content-length", "15"), ("x-mixed", "v")]
        assert answer.frames == 1
        quiet(serving)
    (environ,) = seen
    assert environ["SERVER_PROTOCOL"] == "HTTP/2.0"
    assert environ["wsgi.url_scheme"] == "https"
    assert (environ["PATH_INFO"], environ["QUERY_STRING"]) == ("/A/b", "c=d")
    assert environ["HTTP_HOST"] == "t.example"
    assert environ["HTTP_COOKIE"] == "a=1; b=2"
    assert "HTTP_A_B" not in environ
    assert environ["lb.body"] is None


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("size", [0, 1, 16384, 16385, 700_000])
def test_bodies(connected: Connect, measured: bool, size: int) -> None:
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    with connected() as (serving, client):
        fields = [("content-length", str(size))] if measured else []
        number = client.start("POST", "/up", *fields, end=False)
        client.upload(number, content, end=False)
        client.data(number, b"", end=True)
        answer = client.answer(number)
        assert (answer.status, answer.body) == (200, b"POST /up " + content)
        assert answer.reset in (None, ErrorCodes.NO_ERROR)
        quiet(serving)


def test_padding_counts_and_is_given_back(connected: Connect) -> None:
    """More than all windows hold, most of it padding."""
    with connected() as (_, client):
        number = client.start("POST", "/", end=False)
        for _ in range(3000):
            frame = DataFrame(number, data=b"y" * 10, flags=["PADDED"], pad_length=240)
            client.until(lambda: client.room(number) > 251, "a window")
            client.windows[0] -= 251
            client.windows[number] -= 251
            client.send_frame(frame)
        client.data(number, b"", end=True)
        assert client.answer(number).body == b"POST / " + b"y" * 30000


@pytest.mark.parametrize(
    ("said", "parts", "last"), [(5, [b"123456"], False), (5, [b"123"], True), (5, [b"123", b"456"], True)]
)
def test_content_and_its_length_must_agree(
    connected: Connect, said: int, parts: list[bytes], last: bool
) -> None:
    with connected() as (serving, client):
        number = client.start("POST", "/", ("content-length", str(said)), end=False)
        for part in parts:
            client.data(number, part, end=last and part is parts[-1])
        assert client.answer(number).reset == ErrorCodes.PROTOCOL_ERROR
        assert client.get("/next").status == 200
        quiet(serving)


@pytest.mark.parametrize("status", [200, 204, 304])
@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_answers_without_content(connected: Connect, status: int, method: str) -> None:
    fields = [("Content-Length", "5")] if status != 204 else []
    with connected(answering(f"{status} Fine", *fields, body=(b"",))) as (_, client):
        if (status, method) == (200, "GET"):
            return
        answer = client.answer(client.start(method))
        assert (answer.status, answer.frames, answer.ended) == (status, 0, True)
        assert answer.values("content-length") == [value for _, value in fields]


def test_pieces_and_what_is_written_at_once(connected: Connect) -> None:
    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        write = start("200 OK", [])
        if environ["lb.target"] == "/write":
            write(b"one ")
        return iter([b"two ", b"", b"three"])

    with connected(app) as (_, client):
        assert client.get("/").body == b"two three"
        assert client.get("/write").body == b"one two three"


def test_an_answer_before_the_upload_is_over(connected: Connect) -> None:
    """First the whole answer, then RST_STREAM without an error (RFC 9113, section 8.1)."""
    with connected(answering("413 No", body=(b"no",))) as (serving, client):
        number = client.start("POST", "/", end=False)
        client.data(number, bytes(1000))
        client.until(lambda: client.answers[number].reset is not None, "the reset")
        answer = client.answers[number]
        assert (answer.status, answer.body, answer.ended) == (413, b"no", True)
        assert answer.reset == ErrorCodes.NO_ERROR
        client.data(number, bytes(1000))  # it was on its way
        assert client.get("/next").status == 413
        quiet(serving)
        assert client.windows[0] <= 4 << 20


def test_who_expects_it_is_told_to_go_on(connected: Connect) -> None:
    with connected() as (_, client):
        number = client.start("POST", "/", ("expect", "100-continue"), end=False)
        client.until(lambda: client.answers[number].interim, "100")
        assert client.answers[number].interim == [(100, [])]
        client.data(number, b"x", end=True)
        assert client.answer(number).body == b"POST / x"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([("host", "other.example")], 400),
        ([("expect", "miracles")], 417),
        ([(f"x-{n}", "y") for n in range(60)], 431),
        ([("x", "y" * 5000)], 431),
    ],
)
def test_what_is_refused(connected: Connect, fields: list[tuple[str, str]], status: int) -> None:
    with connected(limits=LimitSettings(fields=50, field_size=4000, head=20000)) as (serving, client):
        answer = client.get("/", *fields)
        assert answer.status == status
        assert answer.values("x-request-id") == [serving.logged[0].id]
        assert client.get("/").status == 200
    assert [entry.status for entry in serving.logged] == [status]
    assert serving.logged[0].bytes == len(answer.body)


def test_what_is_malformed_ends_that_stream_only(connected: Connect) -> None:
    with connected() as (serving, client):
        other = client.start("POST", "/other", end=False)
        for field in [("connection", "close"), ("te", "gzip"), ("content-length", "x"), ("x", "a\rb")]:
            assert client.get("/", field).reset == ErrorCodes.PROTOCOL_ERROR
        client.data(other, b"x", end=True)
        assert client.answer(other).body == b"POST /other x"
    assert [(entry.status, entry.code) for entry in serving.logged] == [(400, "bad_request")] * 4


def test_trailers_of_a_request(connected: Connect) -> None:
    seen: list[bytes] = []

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        environ["wsgi.input"].read()
        seen.append(environ["lb.body"].trailers)
        return answering("200 OK")(environ, start)  # type: ignore[no-any-return]

    with connected(app) as (_, client):
        for trailer in [("x-sum", "1"), ("x-sum", "a\nb")]:
            number = client.start("POST", "/", end=False)
            client.data(number, b"body")
            client.send_frame(client.headers([trailer], number=number)[1])
            client.answer(number)
        assert client.answers[number].reset == ErrorCodes.PROTOCOL_ERROR
    assert seen == [b"x-sum: 1\r\n"]


@pytest.mark.parametrize("sent", [True, False])
@pytest.mark.parametrize("fault", [UpstreamClosed("gone"), ValueError("a bug")])
def test_applications_that_fail(
    connected: Connect, caplog: pytest.LogCaptureFixture, fault: Exception, sent: bool
) -> None:
    """A head that was sent cannot be taken back, and the content must not look whole."""

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        if environ["lb.target"] == "/fine":
            return answering("200 OK")(environ, start)  # type: ignore[no-any-return]
        if not sent:
            raise fault
        start("200 OK", [])

        def pieces() -> Iterator[bytes]:
            yield b"half"
            raise fault

        return pieces()

    caplog.set_level(logging.CRITICAL)
    with connected(app) as (serving, client):
        answer = client.get("/")
        if sent:
            assert (answer.status, answer.body, answer.ended) == (200, b"half", False)
            assert answer.reset == ErrorCodes.INTERNAL_ERROR
        elif isinstance(fault, ValueError):
            assert answer.status == 500
        else:
            assert answer.reset == ErrorCodes.INTERNAL_ERROR
        assert client.get("/fine").status == 200
        quiet(serving)


@pytest.mark.parametrize("where", ["upload", "download", "elsewhere"])
@pytest.mark.parametrize("how", ["reset", "closed"])
def test_a_client_that_gives_up(connected: Connect, where: str, how: str) -> None:
    ended: list[str] = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            while True:
                yield bytes(100_000)

        def close(self) -> None:
            ended.append("closed")

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        if where == "elsewhere":
            gevent.sleep(0.2)
        elif where == "upload":
            try:
                environ["wsgi.input"].read()
            except Exception as exc:
                ended.append(type(exc).__name__)
                raise
        start("200 OK", [])
        return Body()

    with connected(app, hold=True) as (serving, client):
        number = client.start("POST", "/", end=where != "upload")
        if where == "download":
            client.until(lambda: client.answers[number].body, "content")
        client.settle()
        if how == "reset":
            client.reset(number)
        else:
            client.close()
        quiet(serving)
    assert ended == ["ClientGone" if where == "upload" else "closed"]


def test_a_body_that_pauses_too_long(connected: Connect) -> None:
    with connected(idle=0.3) as (serving, client):
        number = client.start("POST", "/", end=False)
        assert client.answer(number).reset == ErrorCodes.INTERNAL_ERROR
        quiet(serving)


def test_a_window_that_stays_closed_too_long(connected: Connect) -> None:
    with connected(answering("200 OK", body=(bytes(100_000),)), hold=True, idle=0.3) as (serving, client):
        number = client.start()
        answer = client.answer(number)
        assert (len(answer.body), answer.reset) == (65535, ErrorCodes.CANCEL)
        quiet(serving)


def test_more_content_than_room(connected: Connect) -> None:
    """Each window by itself is waited for: the stream's and the connection's, also one that shrinks."""
    with connected(answering("200 OK", body=(bytes(200_000),)), hold=True) as (_, client):
        number = client.start()
        answer = client.answers[number]
        client.until(lambda: len(answer.body) == 65535, "all that the windows hold")
        client.give(number, 50_000)
        client.settle()
        assert len(answer.body) == 65535
        client.give(0, 20_000)
        client.until(lambda: len(answer.body) == 85_535, "so much more")
        client.give(0, 1 << 20)
        client.until(lambda: len(answer.body) == 115_535, "so much more")
        client.settle()
        assert not answer.over
        client.give(number, 1 << 20)
        assert len(client.answer(number).body) == 200_000


def test_head_and_content_in_one_read(connected: Connect) -> None:
    with connected() as (_, client):
        number, head = client.headers(client.pseudo("POST", "/"), end=False)
        assert isinstance(head, HeadersFrame)
        client.send_frame(
            head, DataFrame(number, data=b"a"), DataFrame(number, data=b"b", flags=["END_STREAM"])
        )
        assert client.answer(number).body == b"POST / ab"


def test_beyond_the_ceiling_a_stream_is_refused(connected: Connect) -> None:
    """As an answer, not as REFUSED_STREAM: clients would ask again at once."""
    waiting: list[Any] = []

    def hold(environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
        waiting.append(gevent.getcurrent())
        gevent.get_hub().switch()
        start("200 OK", [])
        return (b"first",)

    with connected(hold, limits=LimitSettings(requests=1)) as (serving, client):
        first = client.start("GET", "/first")
        serving.until(lambda: waiting, "one to be under way")
        answer = client.get("/second")
        assert (answer.status, answer.values("retry-after")) == (503, ["1"])
        assert answer.body.startswith(b"503 Service Unavailable: overloaded")
        assert [entry.code for entry in serving.logged] == ["overloaded"]
        serving.loop.run_callback_threadsafe(waiting[0].switch)
        assert client.answer(first).body == b"first"
        quiet(serving)
