"""The WSGI application as a plain callable, with real backends: what a request becomes on its way."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from lb import app
from lb.certificates import client_contexts
from lb.proxy.body import BodyReader
from lb.service import Service
from lb.settings import BackendSpec, LogSettings, PoolConfig, Route, Settings
from lb.state.threads import ThreadRuntime
from tests.support.backends import Backend, answer_of, chunked, head_of, ok, once, refusing, serve

Environ = dict[str, Any]


class Told(NamedTuple):
    """What came back."""

    status: str
    fields: list[tuple[str, str]]
    body: bytes


class Balancer:
    """The application with a service that has no store."""

    def __init__(self, service: Service, log: Path) -> None:
        self.service = service
        self._log = log

    def call(
        self,
        method: str = "GET",
        target: str = "/",
        body: bytes = b"",
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> Told:
        """Call it as a server of WSGI would, and close what it returns."""
        told: list[tuple[str, list[tuple[str, str]]]] = []
        result = app.application(
            environ(method, target, body) | dict(more), lambda status, fields: told.append((status, fields))
        )
        try:
            content = b"".join(result)
        finally:
            if close := getattr(result, "close", None):
                close()
        ((status, fields),) = told
        return Told(status, fields, content)

    def entries(self) -> list[Any]:
        """The access log."""
        self.service.log.flush()
        return [json.loads(line) for line in self._log.read_text().splitlines()]


def environ(method: str = "GET", target: str = "/", body: bytes = b"") -> Environ:
    """What PEP 3333 asks for."""
    path, _, query = target.partition("?")
    found: Environ = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "RAW_URI": target,
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "192.0.2.7",
        "HTTP_HOST": "front.example:8000",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
    }
    return found | ({"CONTENT_LENGTH": str(len(body))} if body else {})


def control(environ: Environ, start_response: Any) -> tuple[bytes, ...]:
    """What answers on the control listener."""
    start_response("200 OK", [])
    return (b"control " + environ["PATH_INFO"].encode(),)


Install = Callable[..., Balancer]


@pytest.fixture
def install(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Install]:
    """Makes this process a balancer of the given pools."""
    caplog.set_level(logging.CRITICAL, "lb")

    def make(pools: dict[str, list[str]], *routes: Route) -> Balancer:
        settings = Settings(
            redis_url=f"unix://{tmp_path}/nothing-here",
            pools={
                name: PoolConfig(backends=tuple(BackendSpec(url) for url in urls))
                for name, urls in pools.items()
            },
            routes=routes,
            log=LogSettings(access=str(tmp_path / "log")),
        )
        service = Service(settings, ThreadRuntime(), None, control, client_contexts(settings.pools))
        service.start()
        app.install(service)
        return Balancer(service, tmp_path / "log")

    yield make
    app.uninstall()


def test_without_a_service_it_says_how_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_ended", None)
    with pytest.raises(RuntimeError, match="gunicorn -c"):
        app.application(environ(), lambda status, fields: None)


def test_a_request_goes_through(install: Install) -> None:
    with Backend(once(answer_of(201, b"made", "X: 1", "X: 2", "Keep-Alive: 5", "Date: d"))) as backend:
        balancer = install({"default": [backend.url]})
        told = balancer.call("POST", "/a%20b?c=%41", b"content", {"HTTP_X_MINE": "m", "HTTP_TE": "trailers"})
        assert told.status == "201 Some Words"
        assert told.fields == [("Content-Length", "4"), ("X", "1"), ("X", "2"), ("Date", "d")]
        assert told.body == b"made"
        (request,) = backend.requests
    assert (request.method, request.target, request.body) == ("POST", "/a%20b?c=%41", b"content")
    assert request.values("Host") == ["front.example:8000"]
    assert request.values("X-Mine") == ["m"]
    assert request.values("TE") == []


def test_the_backend_is_told_who_asked(install: Install) -> None:
    """What the client says of itself counts for nothing."""
    with Backend() as backend:
        balancer = install({"default": [backend.url]})
        forged = {f"HTTP_X_{name}": "forged" for name in ("FORWARDED_FOR", "FORWARDED_HOST", "REQUEST_ID")}
        balancer.call(more=forged)
        (request,) = backend.requests
        (entry,) = balancer.entries()
    assert request.values("X-Forwarded-For") == ["192.0.2.7"]
    assert request.values("X-Forwarded-Proto") == ["http"]
    assert request.values("X-Forwarded-Host") == ["front.example:8000"]
    assert request.values("X-Request-Id") == [entry["id"]]
    assert "forged" not in request.head.decode()


def test_each_request_has_its_line_in_the_log(install: Install) -> None:
    with Backend(serve(ok(b"four"))) as backend:
        balancer = install({"default": [backend.url]})
        for target in ("/1?x", "/2"):
            balancer.call(target=target)
        first, second = balancer.entries()
    assert first["id"] != second["id"]
    told = {
        key: first[key]
        for key in ("client", "method", "host", "target", "status", "bytes", "pool", "backend")
    }
    assert told == {
        "client": "192.0.2.7",
        "method": "GET",
        "host": "front.example:8000",
        "target": "/1?x",
        "status": 200,
        "bytes": 4,
        "pool": "default",
        "backend": backend.id,
    }
    assert 0 < first["upstream"] <= first["duration"] < 20


def test_routes_choose_the_pool(install: Install) -> None:
    with Backend(serve(ok(b"a"))) as a, Backend(serve(ok(b"b"))) as b:
        routes = (Route("a", host="front.example"), Route("b", path="/b"))
        balancer = install({"a": [a.url], "b": [b.url]}, *routes)
        assert balancer.call(target="/b").body == b"a"
        assert balancer.call(target="/b", more={"HTTP_HOST": "other"}).body == b"b"
        told = balancer.call(target="/c", more={"HTTP_HOST": "other"})
        assert told.status == "404 Not Found"
        assert [entry.get("code") for entry in balancer.entries()] == [None, None, "no_route"]


@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        (once(b"what is this\r\n\r\n"), "502 Bad Gateway", "bad_response"),
        (None, "502 Bad Gateway", "connect_failed"),
    ],
)
def test_failures_have_an_answer_and_a_line(install: Install, script: Any, status: str, code: str) -> None:
    with Backend(script or serve()) as backend:
        if script is None:
            backend.stop_listening()
        balancer = install({"default": [backend.url]})
        told = balancer.call("POST", "/", b"x")
        (entry,) = balancer.entries()
    assert told.status == status
    assert (entry["status"], entry["code"]) == (int(status[:3]), code)
    assert dict(told.fields)["X-Request-Id"] == entry["id"]
    assert re.fullmatch(rf"{status}: {code} \(request {entry['id']}\)\n", told.body.decode())
    assert entry["duration"] > 0


def test_no_backend_is_503(install: Install) -> None:
    told = install({"default": []}).call()
    assert told.status == "503 Service Unavailable"
    assert dict(told.fields)["Retry-After"] == "1"


def test_a_backend_that_refuses_is_not_noticed(install: Install) -> None:
    with Backend() as backend, refusing() as other:
        balancer = install({"default": [other, backend.url]})
        assert [balancer.call().status for _ in range(4)] == ["200 Some Words"] * 4
        assert any(entry.get("tried") for entry in balancer.entries())


def test_a_body_streams(install: Install) -> None:
    with Backend(once(head_of(200, "Transfer-Encoding: chunked") + chunked(b"ab", b"c"))) as backend:
        told = install({"default": [backend.url]}).call()
    assert ([name for name, _ in told.fields], told.body) == (["Date"], b"abc")


def test_a_bad_length_is_the_clients_fault(install: Install) -> None:
    with Backend() as backend:
        balancer = install({"default": [backend.url]})
        assert balancer.call("POST", more={"CONTENT_LENGTH": "-1"}).status == "400 Bad Request"
        assert backend.requests == []


def test_the_socket_says_which_application_answers(install: Install) -> None:
    """Nothing that a client sends gets it to the control side, or from there to a backend."""
    with Backend() as backend:
        balancer = install({"default": [backend.url]})
        forged = {"HTTP_HOST": "127.0.0.1:8001", "HTTP_LB_LISTENER": "control"}
        told = balancer.call(target="/healthz", more=forged)
        assert told.body == b"ok"
        assert balancer.call(target="/healthz", more={"lb.listener": "control"}).body == b"control /healthz"
        assert len(backend.requests) == len(balancer.entries()) == 1


def test_our_own_worker_gets_the_fields_as_they_came(install: Install) -> None:
    started: list[tuple[int, str, bytes, bool]] = []
    with Backend(once(answer_of(200, b"body", "x-Odd:  spaced"))) as backend:
        install({"default": [backend.url]})
        whole: Environ = {
            "lb.start": lambda *told: started.append(told),
            "lb.target": "/t",
            "lb.head": b"GET /t HTTP/1.1\r\nhost: AS-it-came\r\n",
            "lb.body": None,
        }
        result = app.application(environ() | whole, lambda status, fields: pytest.fail("not to be called"))
        assert b"".join(result) == b"body"
        assert type(result) is tuple, "a body that is here whole needs no closing"
        assert backend.requests[0].head.startswith(
            b"GET /t HTTP/1.1\r\nhost: AS-it-came\r\nX-Forwarded-For: "
        )
    ((status, reason, lines, measured),) = started
    assert (status, reason, measured) == (200, "Some Words", True)
    assert b"x-Odd:  spaced\r\n" in lines


def test_our_own_workers_body_is_taken_as_it_is(install: Install) -> None:
    with Backend() as backend:
        balancer = install({"default": [backend.url]})
        stream: Any = None  # all of it is here
        body = BodyReader(stream, 3, b"abcGET", lambda exc: pytest.fail(str(exc)))
        fields = ((b"Host", b"h"), (b"Content-Length", b"3"))
        told = balancer.call("POST", more={"lb.body": body, "lb.fields": fields, "lb.target": "/"})
        assert told.status.startswith("200")
        assert backend.requests[0].body == b"abc"
        assert body.rest == b"GET"


def test_uninstalling_stops_the_service(install: Install) -> None:
    balancer = install({"default": []})
    balancer.call()
    app.uninstall()
    app.uninstall()
    assert balancer.service.fleet._stopping
    told = balancer.call()  # under gthread: it had waited for a thread
    assert told.status.startswith("503 ")
    assert ("Retry-After", "1") in told.fields
    assert b"stopping" in told.body
