"""Connections that speak HTTP/2, over TLS: streams beside each other, abuse, and how a connection ends."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event
from h2.errors import ErrorCodes
from hyperframe.frame import HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame

from lb.http2 import MAX_WASTED, MOST_CONTROL, MOST_UNSENT
from lb.http2_protocol import MAX_STREAMS, STREAM_WINDOW, WINDOW
from lb.settings import ClientSettings, LimitSettings
from tests.support.clients import Client as OneClient
from tests.support.http2 import PREFACE, Client, continuation, raw_frame
from tests.support.serving import Serving

Environ = dict[str, Any]
Start = Callable[..., Callable[[bytes], object]]
Connect = Callable[..., contextlib.AbstractContextManager[tuple[Serving, Client]]]


class App:
    """Answers with as much as the target says; `/held` waits until it is let go on, `/read` for its body."""

    def __init__(self) -> None:
        self.let_go = Event()
        self.running = 0
        self.done = 0

    def __call__(self, environ: Environ, start: Start) -> Iterable[bytes]:
        target = environ["lb.target"]
        self.running += 1
        try:
            if target == "/held":
                self.let_go.wait(20)
            elif target == "/read":
                environ["wsgi.input"].read()
            elif target == "/slow":
                self.let_go.wait(20)
                environ["wsgi.input"].read()
        finally:
            self.running -= 1
            self.done += 1
        start("200 OK", [])
        if target[1:].isdigit():
            return iter([bytes(50_000)] * (int(target[1:]) // 50_000))
        return (target.encode(),)


@pytest.fixture
def connected(http2_server: ssl.SSLContext, http2_trust: ssl.SSLContext) -> Connect:
    """Make a server of an application, and a connection to it."""

    @contextlib.contextmanager
    def make(app: Any = None, limits: Any = None, client: Any = None, **settings: Any) -> Iterator[Any]:
        how = ClientSettings(**settings)
        serving = Serving(app or App(), how, limits=limits or LimitSettings(), tls=http2_server)
        with serving, Client(serving.port, http2_trust, **(client or {})) as made:
            yield serving, made

    return make


def quiet(serving: Serving) -> None:
    """Nothing is left of any request."""
    serving.until(lambda: not serving.reactor.streams, "the streams to be over")


def gone(serving: Serving) -> None:
    """Nothing is left of any connection."""
    serving.until(lambda: not serving.server.clients, "the connections to be closed")


# Streams beside each other.


def test_many_streams_at_once(connected: Connect) -> None:
    app = App()
    with connected(app) as (serving, client):
        numbers = [client.start("GET", "/held") for _ in range(MAX_STREAMS)]
        serving.until(lambda: app.running == MAX_STREAMS, "all to run")
        serving.call(app.let_go.set)
        assert {client.answer(number).body for number in numbers} == {b"/held"}
        quiet(serving)
        assert len(serving.server.clients) == 1


def test_one_stream_too_many_is_refused(connected: Connect) -> None:
    app = App()
    with connected(app) as (serving, client):
        numbers = [client.start("GET", "/held") for _ in range(MAX_STREAMS)]
        over = client.start("GET", "/over")
        assert client.answer(over).reset == ErrorCodes.REFUSED_STREAM
        serving.call(app.let_go.set)
        for number in numbers:
            client.answer(number)
        assert client.get("/again").body == b"/again"
    assert app.done == MAX_STREAMS + 1


def test_a_stream_whose_window_is_closed_stops_no_other(connected: Connect) -> None:
    with connected(client={"hold": True, "settings": {SettingsFrame.INITIAL_WINDOW_SIZE: 1000}}) as (
        _,
        client,
    ):
        client.give(0, 1 << 20)
        stalled = client.start("GET", "/50000")
        client.until(lambda: len(client.answers[stalled].body) == 1000, "its window to be used up")
        for _ in range(3):
            assert client.get("/short").body == b"/short"
        client.send_frame(SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 60_000}))
        assert len(client.answer(stalled).body) == 50_000


def test_a_large_answer_leaves_room_for_others(connected: Connect) -> None:
    """Downloads take turns, frame by frame, and a short one does not wait for the end of a long one."""
    with connected(client={"settings": {SettingsFrame.INITIAL_WINDOW_SIZE: 1 << 24}}) as (_, client):
        opened = [client.headers(client.pseudo("GET", "/10000000")) for _ in range(3)]
        opened.append(client.headers(client.pseudo("GET", "/100000")))
        client.send_frame(*(frame for _, frame in opened))
        *numbers, short = [number for number, _ in opened]
        client.answer(short)
        # The first had the connection for itself until it was full; then each had a frame in its turn.
        assert (
            sum(len(client.answers[number].body) for number in numbers) < MOST_UNSENT + 3 * 120_000 + 50_000
        )
        first = client.answer(numbers[0])
        assert len(first.body) == 10_000_000
        for number in numbers[1:]:
            assert len(client.answers[number].body) > 7_000_000
            client.answer(number)


def test_what_nobody_reads_stops_at_the_window_and_no_other_upload(connected: Connect) -> None:
    app = App()
    with connected(app) as (serving, client):
        slow = client.start("POST", "/slow", end=False)
        client.upload(slow, bytes(STREAM_WINDOW), end=False)
        client.settle()
        assert client.windows[slow] == 0
        for _ in range(3):
            number = client.start("POST", "/read", end=False)
            client.upload(number, bytes(WINDOW // 2))
            assert client.answer(number).body == b"/read"
        assert client.windows[slow] == 0
        serving.call(app.let_go.set)
        client.upload(slow, bytes(STREAM_WINDOW))
        assert client.answer(slow).body == b"/slow"
        quiet(serving)
        client.settle()
        assert client.windows[0] > WINDOW // 2 - STREAM_WINDOW


# Abuse.


@pytest.mark.parametrize("together", [True, False])
def test_rapid_reset(connected: Connect, together: bool) -> None:
    """CVE-2023-44487: never more requests run than streams may be open, and the connection ends."""
    app = App()
    with connected(app) as (serving, client):
        with contextlib.suppress(ConnectionError):
            for _ in range(MAX_WASTED + 1):
                number, head = client.headers(client.pseudo("GET", "/held"))
                if together:
                    client.send_frame(head, RstStreamFrame(number, error_code=8))
                else:
                    client.send_frame(head)
                    client.send_frame(RstStreamFrame(number, error_code=8))
        frame = client.until_closed()
        assert frame is not None
        assert frame.error_code == ErrorCodes.ENHANCE_YOUR_CALM
        assert app.running <= MAX_STREAMS
        assert not (together and app.running)
        serving.call(app.let_go.set)
        gone(serving)
        quiet(serving)


def test_resets_among_answers_are_no_abuse(connected: Connect) -> None:
    with connected() as (_, client):
        for _ in range(MAX_WASTED + 10):
            number, head = client.headers(client.pseudo("POST", "/read"), end=False)
            client.send_frame(head, RstStreamFrame(number, error_code=8))
            assert client.get("/x").status == 200


@pytest.mark.parametrize(
    "frames",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        raw_frame(0, 0, 0, b"data on stream 0"),
        raw_frame(0, 0, 5, b"data on an idle stream"),
        raw_frame(1, 4, 2, b"\x82"),
        raw_frame(1, 4, 0, b"\x82"),
        raw_frame(1, 4, 1, b"\xff\xff\xff\xff\xff"),
        raw_frame(1, 5, 1, b"\xbf"),
        raw_frame(1, 0, 1, b"\x82") + raw_frame(6, 0, 0, bytes(8)),
        raw_frame(1, 12, 1, b"\xff\x82"),
        raw_frame(3, 0, 1, bytes(4)),
        raw_frame(3, 0, 0, bytes(4)),
        raw_frame(4, 0, 1, b""),
        raw_frame(4, 0, 0, b"odd"),
        raw_frame(4, 0, 0, struct.pack(">HI", 4, 1 << 31)),
        raw_frame(4, 1, 0, bytes(6)),
        raw_frame(5, 4, 1, struct.pack(">I", 2) + b"\x82"),
        raw_frame(6, 0, 0, bytes(7)),
        raw_frame(8, 0, 0, bytes(4)),
        raw_frame(8, 0, 0, struct.pack(">I", (1 << 31) - 1)) * 2,
        raw_frame(9, 4, 1, b"\x82"),
        raw_frame(0, 0, 1, b"", length=16385),
    ],
)
def test_what_is_no_http2_ends_the_connection(
    connected: Connect, caplog: pytest.LogCaptureFixture, frames: bytes
) -> None:
    """With a GOAWAY that says it was an error, and nothing in the log."""
    with connected() as (serving, client):
        with contextlib.suppress(ConnectionError):
            client.send(frames)
            client.sock.settimeout(5)
        frame = client.until_closed()
        assert frame is not None
        assert frame.error_code != ErrorCodes.NO_ERROR
        gone(serving)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("greeting", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", PREFACE[:-1] + b"x"])
def test_another_beginning(connected: Connect, greeting: bytes) -> None:
    with connected(client={"greet": False}) as (serving, client):
        client.send(greeting)
        frame = client.until_closed()
        assert frame is not None
        assert frame.error_code == ErrorCodes.PROTOCOL_ERROR
        gone(serving)


def test_what_is_unknown_is_ignored(connected: Connect) -> None:
    with connected() as (_, client):
        client.send(raw_frame(77, 255, 0, b"x") + raw_frame(2, 0, 1, bytes(5)))
        assert client.get("/x").status == 200


def test_a_header_bomb(connected: Connect) -> None:
    """A few bytes that stand for megabytes: an entry of the table, named again and again."""
    with connected() as (serving, client):
        block = client.block(client.pseudo()) + client.block([("x", "y" * 3000)])
        block += b"\xbe" * 10_000
        client.send_frame(HeadersFrame(1, data=block, flags=["END_HEADERS", "END_STREAM"]))
        frame = client.until_closed()
        assert frame is not None
        assert frame.error_code == ErrorCodes.ENHANCE_YOUR_CALM
        gone(serving)


def test_continuations_without_end(connected: Connect) -> None:
    with connected() as (serving, client):
        client.send_frame(HeadersFrame(1, data=b"\x82", flags=[]))
        with contextlib.suppress(ConnectionError):
            for _ in range(10_000):
                client.send_frame(continuation(1, b""))
        frame = client.until_closed()
        assert frame is None or frame.error_code == ErrorCodes.PROTOCOL_ERROR
        gone(serving)


def test_a_flood_of_pings_that_nobody_reads_the_answers_of(connected: Connect) -> None:
    """What waits to be sent stays small; the server stops reading, and in the end the connection ends."""
    with connected(client={"receive_buffer": 4096}, idle=1.0) as (serving, client):
        (session,) = serving.server.clients
        pings = PingFrame(0, opaque_data=bytes(8)).serialize() * 4000
        client.sock.settimeout(10)
        with contextlib.suppress(TimeoutError, ConnectionError, ssl.SSLError):
            for _ in range(1000):
                client.send(pings)
                assert serving.call(lambda: session._outbox.waiting) < MOST_UNSENT + 2 * MOST_CONTROL + 16384
        gone(serving)


def test_an_answer_that_nobody_reads(connected: Connect) -> None:
    how = {"receive_buffer": 4096, "settings": {SettingsFrame.INITIAL_WINDOW_SIZE: 1 << 24}}
    with connected(client=how, idle=0.5) as (serving, client):
        (session,) = serving.server.clients
        for _ in range(10):
            client.start("GET", "/10000000")
        serving.until(lambda: session._outbox.waiting, "the socket to be full")
        assert serving.call(lambda: session._outbox.waiting) < MOST_UNSENT + 100_000
        gone(serving)
        quiet(serving)


# How a connection begins and ends.


def test_who_does_not_offer_it_gets_the_other(
    http2_server: ssl.SSLContext, http2_trust: ssl.SSLContext
) -> None:
    with Serving(App(), tls=http2_server) as serving:
        plain = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        plain.check_hostname, plain.verify_mode = False, ssl.CERT_NONE
        with OneClient(serving.port, tls=plain) as client:
            assert client.get("/x").body == b"/x"


@pytest.mark.parametrize("said", [b"", PREFACE, PREFACE[:10]])
def test_a_greeting_takes_no_longer_than_a_head(
    http2_server: ssl.SSLContext, http2_trust: ssl.SSLContext, said: bytes
) -> None:
    how = ClientSettings(header=0.4, keepalive=20)
    with (
        Serving(App(), how, tls=http2_server) as serving,
        Client(serving.port, http2_trust, greet=False) as client,
    ):
        client.send(said) if said else None
        began = time.monotonic()
        client.until_closed()
        assert time.monotonic() - began < 5
        gone(serving)


def test_an_idle_connection_is_closed(connected: Connect) -> None:
    """Pings are no use of it."""
    with connected(keepalive=0.5) as (serving, client):
        assert client.get("/x").status == 200
        began = time.monotonic()
        while not client.closed:
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                client.send_frame(PingFrame(0, opaque_data=bytes(8)))
            client.read()
        assert 0.3 < time.monotonic() - began < 5
        assert client.goaway is not None
        assert (client.goaway.error_code, client.goaway.last_stream_id) == (ErrorCodes.NO_ERROR, 1)
        gone(serving)


def test_a_request_that_takes_too_long(connected: Connect) -> None:
    with connected(request=0.3, client={"hold": True}) as (serving, client):
        number = client.start("GET", "/1000000")
        assert client.answer(number).reset == ErrorCodes.INTERNAL_ERROR
        quiet(serving)


def test_a_client_that_leaves_gets_its_answers(connected: Connect) -> None:
    app = App()
    with connected(app) as (serving, client):
        number = client.start("GET", "/held")
        serving.until(lambda: app.running, "the request")
        client.send(raw_frame(7, 0, 0, bytes(8)))
        serving.call(app.let_go.set)
        assert client.answer(number).body == b"/held"


def test_a_server_that_goes_tells_and_finishes(connected: Connect) -> None:
    app = App()
    with connected(app) as (serving, client):
        number = client.start("GET", "/held")
        serving.until(lambda: app.running, "the request")
        drained: list[bool] = []

        def drain() -> None:
            serving.server.drain(10, lambda: None)
            drained.append(True)

        serving.loop.run_callback_threadsafe(gevent.spawn, drain)
        client.until(lambda: client.goaway, "GOAWAY")
        assert client.goaway is not None
        assert (client.goaway.error_code, client.goaway.last_stream_id) == (0, 2**31 - 1)
        assert client.get("/late").body == b"/late", "it was on its way"
        serving.call(app.let_go.set)
        assert client.answer(number).body == b"/held"
        last = client.until_closed()
        assert last is not None
        assert (last.error_code, last.last_stream_id) == (0, 3)
        serving.until(lambda: drained, "the end")


def test_a_server_that_goes_does_not_wait_for_ever(connected: Connect) -> None:
    app = App()
    with connected(app) as (serving, client):
        client.start("GET", "/held")
        serving.until(lambda: app.running, "the request")
        serving.call(lambda: serving.server.drain(0.3, lambda: None))
        assert not serving.server.clients
        serving.call(app.let_go.set)


def test_a_client_that_ends_its_half_is_gone(connected: Connect) -> None:
    with connected() as (serving, client):
        client.start("POST", "/read", end=False)
        client.settle()
        client.sock.shutdown(socket.SHUT_WR)
        gone(serving)
        quiet(serving)
