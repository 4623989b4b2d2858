"""The connections of a worker: how many are taken, who serves them, how they end."""

from __future__ import annotations

import contextlib
import errno
import logging
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gevent
import msgspec
import pytest

from lb import server
from lb.proxy.conn import OUT_OF
from lb.settings import ClientSettings, LimitSettings
from tests.support.clients import PATIENCE, Client, request
from tests.support.serving import Serving

Environ = dict[str, Any]


def plain(environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
    """Answer with the request's target."""
    start("200 OK", [])
    return (environ["lb.target"].encode("latin-1"),)


class Held:
    """An application whose requests wait until they are let go on; `/now` does not wait."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []
        self.served_by: list[Any] = []

    def __call__(self, environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
        self.served_by.append(gevent.getcurrent())
        if environ["lb.target"] != "/now":
            hub = gevent.get_hub()
            self.waiting.append(gevent.getcurrent())
            hub.switch()
        return plain(environ, start)

    def let_go(self) -> None:
        """Let all that wait go on; to be called in the server's thread."""
        waiting, self.waiting = self.waiting, []
        for greenlet in waiting:
            gevent.get_hub().loop.run_callback(greenlet.switch)


# What an environ begins with.


def test_each_connection_has_its_own_environ() -> None:
    seen: list[Environ] = []

    def app(environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
        seen.append(environ)
        return plain(environ, start)

    with Serving(app) as serving, Client(serving.port) as one, Client(serving.port) as other:
        for client in (one, other, one):
            client.get("/", "X-Only: 1") if client is other else client.get()
        ports = [str(client.sock.getsockname()[1]) for client in (one, other, one)]
    assert [environ["REMOTE_PORT"] for environ in seen] == ports
    assert {environ["REMOTE_ADDR"] for environ in seen} == {"127.0.0.1"}
    assert {(environ["SERVER_NAME"], environ["SERVER_PORT"]) for environ in seen} == {
        ("127.0.0.1", str(serving.port))
    }
    assert {environ["lb.listener"] for environ in seen} == {"data"}
    assert ["HTTP_X_ONLY" in environ for environ in seen] == [False, True, False]


def test_a_unix_socket_has_no_ports(tmp_path: Path) -> None:
    seen: list[Environ] = []

    def app(environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
        seen.append(environ)
        return plain(environ, start)

    path = tmp_path / "s"
    with Serving(app, path=path), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(path))
        client.sendall(request("GET", "/"))
        assert client.recv(1000).endswith(b"\r\n\r\n/")
    keys = ("SERVER_NAME", "SERVER_PORT", "REMOTE_ADDR", "REMOTE_PORT")
    assert [seen[0][key] for key in keys] == [str(path), "", "", ""]


# How many connections are taken.


def test_accepting_pauses_at_the_limit_and_goes_on() -> None:
    with Serving(plain, ClientSettings(connections=2)) as serving:
        with Client(serving.port) as one, Client(serving.port) as two, Client(serving.port) as three:
            assert one.get().status == two.get().status == 200
            three.send(request("GET", "/late"))
            assert one.get().status == 200
            assert len(serving.server.clients) == 2
            two.close()
            assert three.read_answer().body == b"/late"
            assert len(serving.server.clients) == 2
        with Client(serving.port) as four:
            assert four.get().status == 200


def test_a_burst_is_taken_whole() -> None:
    """More than are taken in one turn of the loop."""
    count = server.ACCEPT_AT_ONCE * 3 + 1
    with Serving(plain) as serving:
        clients = [Client(serving.port) for _ in range(count)]
        assert [client.get(f"/{n}").body for n, client in enumerate(clients)] == [
            b"/%d" % n for n in range(count)
        ]
        assert len(serving.server.clients) == count
        for client in clients:
            client.close()
        serving.until(lambda: not serving.server.clients, "all to be forgotten")


def test_without_descriptors_it_waits_and_tries_again(caplog: pytest.LogCaptureFixture) -> None:
    """The limit is lowered to what is open; the connection waits in the queue meanwhile."""
    with Serving(plain) as serving:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        with Client(serving.port) as client:
            client.get()  # whatever is opened at the first request is open now
        serving.until(lambda: not serving.server.clients, "it to be forgotten")
        waiting = socket.socket()
        waiting.settimeout(PATIENCE)
        free = socket.socket()
        number = free.fileno()
        free.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, before[1]))
        try:
            waiting.connect(("127.0.0.1", serving.port))
            waiting.sendall(request("GET", "/"))
            deadline = time.monotonic() + PATIENCE
            while not caplog.records and time.monotonic() < deadline:
                time.sleep(0.01)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert caplog.records[0].levelno == logging.ERROR
        assert "Too many open files" in caplog.records[0].getMessage()
        assert waiting.recv(1000).startswith(b"HTTP/1.1 200 OK")
        waiting.close()
        assert len(caplog.records) < 5, "it must not try all the time"


def test_out_of_descriptors_is_what_the_system_calls_so() -> None:
    assert errno.EMFILE in OUT_OF
    assert errno.ECONNABORTED not in OUT_OF


def test_the_reserve_is_left_to_others(caplog: pytest.LogCaptureFixture) -> None:
    """From a number on it takes one connection at a time; tests/faults/test_descriptors.py gets there."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The lowest that are free are given out first, and others may be in use between them.
    free = [socket.socket() for _ in range(16)]
    number = free[-1].fileno() + 1
    for one in free:
        one.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, before[1]))
    try:
        serving = Serving(plain)
        with serving:
            assert serving.server._last_number == number - number // 8
            resource.setrlimit(resource.RLIMIT_NOFILE, before)  # this process has the clients as well
            clients = [Client(serving.port) for _ in range(20)]
            assert [client.get(f"/{n}").status for n, client in enumerate(clients[:12])] == [200] * 12
            for client in clients:
                client.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert "cannot accept more: hardly any descriptor is left" in caplog.text
    assert len(caplog.records) < 10, "it is not said each time"


# What is refused when there is too much to do.


def test_beyond_the_ceiling_requests_are_refused_at_once() -> None:
    app = Held()
    with Serving(app, limits=LimitSettings(requests=2)) as serving:
        one, two, three = (Client(serving.port) for _ in range(3))
        with one, two, three:
            for client in (one, two):
                client.send(request("GET", "/"))
            serving.until(lambda: len(app.waiting) == 2, "two to be under way")
            answer = three.get("/now")
            assert (answer.status, answer.values("Retry-After")) == (503, ["1"])
            assert answer.values("Connection") == ["close"]
            assert answer.body.startswith(b"503 Service Unavailable: overloaded")
            assert three.at_end()
            three.close()
            serving.until(lambda: serving.logged, "an entry in the log")
            assert answer.values("X-Request-Id") == [serving.logged[0].id]
            assert (serving.logged[0].status, serving.logged[0].code) == (503, "overloaded")
            serving.call(app.let_go)
            assert one.read_answer().status == two.read_answer().status == 200
        with Client(serving.port) as four:
            assert four.get("/now").status == 200


def test_who_says_the_same_again_may_stay_when_refused() -> None:
    """Where the next head begins is known of a head that is known."""
    app = Held()
    with (
        Serving(app, limits=LimitSettings(requests=1)) as serving,
        Client(serving.port) as one,
        Client(serving.port) as two,
    ):
        for _ in range(3):
            assert one.get("/now").status == 200
        two.send(request("GET", "/"))
        serving.until(lambda: app.waiting, "one to be under way")
        for _ in range(3):
            answer = one.get("/now")
            assert (answer.status, answer.values("Connection")) == (503, [])
        serving.call(app.let_go)
        assert two.read_answer().status == 200
        assert one.get("/now").status == 200


def test_a_body_of_who_is_refused_does_no_harm() -> None:
    app = Held()
    with (
        Serving(app, limits=LimitSettings(requests=1)) as serving,
        Client(serving.port) as one,
        Client(serving.port) as two,
    ):
        one.send(request("GET", "/"))
        serving.until(lambda: app.waiting, "one to be under way")
        answer = two.call("POST", "/now", b"x" * 100_000)
        assert (answer.status, answer.complete) == (503, True)
        head = Client(serving.port)
        head.send(request("HEAD", "/now"))
        assert head.read_answer("HEAD").status == 503
        assert head.at_end()
        head.close()
        serving.call(app.let_go)
        assert one.read_answer().status == 200


def test_the_control_side_is_never_refused() -> None:
    app = Held()
    with (
        Serving(app, limits=LimitSettings(requests=1), kind="control") as serving,
        Client(serving.port) as one,
        Client(serving.port) as two,
    ):
        one.send(request("GET", "/"))
        serving.until(lambda: app.waiting, "one to be under way")
        assert two.get("/now").status == 200
        serving.call(app.let_go)
        assert one.read_answer().status == 200


def test_without_memory_idle_connections_go_and_requests_are_refused() -> None:
    app = Held()
    with Serving(app, limits=LimitSettings(memory=1)) as serving:
        serving.until(lambda: serving.server.overload.tight, "it to look")
        with Client(serving.port) as one, Client(serving.port) as two, Client(serving.port) as idle:
            one.send(request("GET", "/"))  # alone, and so it is served
            serving.until(lambda: app.waiting, "one to be under way")
            assert two.get("/now").status == 503
            assert idle.at_end()
            serving.call(app.let_go)
            assert one.read_answer().status == 200


def test_a_loop_that_is_late_makes_it_refuse_some() -> None:
    """Each request takes 10 ms of the loop's time, and sixty come at a time."""

    def app(environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
        time.sleep(0.01)
        return plain(environ, start)

    statuses: list[int] = []
    with Serving(app, limits=LimitSettings(delay=0.1)) as serving, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(serving.port)) for _ in range(60)]
        deadline = time.monotonic() + PATIENCE
        while 503 not in statuses:
            assert time.monotonic() < deadline
            for client in clients:
                client.send(request("GET", "/"))
            for at, client in enumerate(clients):
                statuses.append(client.read_answer().status)
                if statuses[-1] == 503:
                    client.close()
                    clients[at] = stack.enter_context(Client(serving.port))
        assert statuses[-60:].count(503) < 60
        assert serving.server.overload.refused == statuses.count(503)


# Greenlets.


def test_parked_greenlets_are_used_again() -> None:
    app = Held()
    with Serving(app) as serving:
        with Client(serving.port) as one, Client(serving.port) as two:
            for client in (one, two, one, two):
                client.get("/now")
        assert len(set(app.served_by)) == 1
        serving.until(lambda: len(serving.server._parked) == 1, "it to be parked")
        with Client(serving.port) as one, Client(serving.port) as two:
            for client in (one, two):
                client.send(request("GET", "/"))
            serving.until(lambda: len(app.waiting) == 2, "two requests at once")
            serving.call(app.let_go)
            assert one.read_answer().status == two.read_answer().status == 200
            serving.until(lambda: len(serving.server._parked) == 2, "both to be parked")


def test_idle_connections_have_no_greenlet() -> None:
    app = Held()
    with Serving(app) as serving:
        clients = [Client(serving.port) for _ in range(20)]
        for client in clients:
            assert client.get("/now").status == 200
        assert len(serving.server.clients) == 20
        assert len(set(app.served_by)) == 1
        for client in clients:
            client.close()


def test_a_client_that_goes_away_ends_the_wait_for_others_only() -> None:
    """Who was abandoned is forgotten with its request: the greenlet's next connection is another one."""
    app = Held()
    with Serving(app) as serving:
        client = Client(serving.port)
        client.send(request("GET", "/"))
        serving.until(lambda: app.waiting, "the request")
        client.close()
        serving.until(lambda: serving.reactor.doomed, "its client's end to be noticed")
        serving.call(app.let_go)
        serving.until(lambda: not serving.server.clients, "it to be forgotten")
        serving.until(lambda: not serving.reactor.doomed, "the note to be taken away")
        with Client(serving.port) as other:
            assert other.get("/now").status == 200


# The end.


class Draining(threading.Thread):
    """A drain of up to `seconds` in the server's thread, while the test goes on."""

    def __init__(self, serving: Serving, seconds: float) -> None:
        super().__init__(daemon=True)
        self.notified = 0
        self.took = 0.0
        self._serving = serving
        self._seconds = seconds
        self.start()
        serving.until(lambda: serving.server.draining, "the drain")

    def run(self) -> None:
        began = time.monotonic()
        self._serving.call(lambda: self._serving.server.drain(self._seconds, self._notify))
        self.took = time.monotonic() - began

    def _notify(self) -> None:
        self.notified += 1

    def end(self) -> float:
        """Wait for it; the seconds it took."""
        self.join(PATIENCE)
        assert not self.is_alive()
        return self.took


def test_a_drain_without_connections_is_over_at_once() -> None:
    with Serving(plain) as serving:
        with Client(serving.port) as client:
            client.get()
        serving.until(lambda: not serving.server.clients, "it to be forgotten")
        assert Draining(serving, 20).end() < 1


def test_a_drain_finishes_what_runs() -> None:
    app = Held()
    with Serving(app) as serving, Client(serving.port) as client:
        client.send(request("GET", "/last"))
        serving.until(lambda: app.waiting, "the request")
        draining = Draining(serving, 20)
        with pytest.raises(ConnectionRefusedError):
            Client(serving.port)
        serving.until(lambda: draining.notified > 2, "the heartbeat to go on")
        serving.call(app.let_go)
        answer = client.read_answer()
        assert (answer.body, answer.values("Connection")) == (b"/last", ["close"])
        assert client.at_end()
        assert draining.end() < 5


def test_a_drain_answers_a_request_that_was_on_its_way() -> None:
    with Serving(plain) as serving, Client(serving.port) as client:
        assert client.get().values("Connection") == []
        draining = Draining(serving, 20)
        assert client.get("/late").values("Connection") == ["close"]
        assert client.at_end()
        assert draining.end() < 5


def test_a_drain_closes_what_idles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "IDLE_GRACE", 0.1)
    with Serving(plain) as serving, Client(serving.port) as client:
        client.get()
        draining = Draining(serving, 20)
        assert client.at_end()
        assert draining.end() < 5


def test_a_drain_ends_in_time(caplog: pytest.LogCaptureFixture) -> None:
    app = Held()
    with Serving(app) as serving, Client(serving.port) as client:
        client.send(request("GET", "/"))
        serving.until(lambda: app.waiting, "the request")
        assert 0.2 < Draining(serving, 0.3).end() < 5
        assert [record.getMessage() for record in caplog.records] == ["1 connections cut after 0.3 s"]
        serving.call(app.let_go)
        assert client.at_end()


def test_when_all_is_over_no_stream_gets_more_time_than_requests() -> None:
    with Serving(plain, ClientSettings(stream_close_delay=50)) as serving, Client(serving.port) as client:
        client.get()
        (served,) = serving.server.clients
        serving.call(lambda: setattr(served, "upgraded", True))
        began = time.monotonic()
        serving.call(lambda: serving.server.drain(0.3, lambda: None, True))
        assert 0.3 <= time.monotonic() - began < 10
        assert client.at_end()


@pytest.mark.parametrize("settings", [{"keepalive": 0.2}, {"header": 0.2}])
def test_a_connection_that_timed_out_leaves_its_place(settings: dict[str, float]) -> None:
    limits = msgspec.structs.replace(ClientSettings(connections=1), **settings)
    with Serving(plain, limits) as serving:
        with Client(serving.port) as client:
            if "keepalive" in settings:
                client.get()
            assert client.at_end()
        with Client(serving.port) as other:
            assert other.get().status == 200
