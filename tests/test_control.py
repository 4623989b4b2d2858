"""What the control listener answers, and to whom."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lb.certificates import client_contexts
from lb.control import Control
from lb.service import Service
from lb.settings import BackendSpec, LogSettings, PoolConfig, Settings
from lb.state.threads import ThreadRuntime

TOKEN = "a token of \u20ac"


class Told(NamedTuple):
    """One answer."""

    status: str
    fields: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(control: Control, path: str, method: str = "GET", authorization: str | None = None) -> Told:
    """Call it as a server would."""
    environ = {"PATH_INFO": path, "REQUEST_METHOD": method}
    if authorization is not None:
        environ["HTTP_AUTHORIZATION"] = authorization
    told: list[tuple[str, list[tuple[str, str]]]] = []
    body = b"".join(control(environ, lambda status, fields: told.append((status, fields))))
    ((status, fields),) = told
    assert len({name for name, _ in fields}) == len(fields)
    return Told(status, dict(fields), body)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """The parts of a worker whose store cannot be reached."""
    pool = PoolConfig("least-conn", (BackendSpec("http://a:1", 3, 7, "one"), BackendSpec("https://b:2")))
    settings = Settings(
        redis_url=f"unix://{tmp_path}/nothing-here", pools={"web": pool}, log=LogSettings(access="")
    )
    control = Control("")
    made = Service(settings, ThreadRuntime(), None, control, client_contexts(settings.pools))
    control.service = made
    yield made
    made.stop()


def of(service: Service) -> Control:
    control = service.control
    assert isinstance(control, Control)
    return control


def test_it_lives_before_it_is_ready() -> None:
    control = Control("")
    assert ask(control, "/healthz").json == {"status": "ok"}
    told = ask(control, "/readyz")
    assert told.status == "503 Service Unavailable"
    assert told.json == {"status": "starting"}


def test_ready_while_the_store_is_there(service: Service) -> None:
    service.fleet.degraded = ""
    told = ask(of(service), "/readyz")
    assert told.status == "200 OK"
    assert told.json == {"status": "ready", "shared_state": "ok"}


def test_ready_without_the_store_too(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """It goes on balancing: taking it out would make an outage of a shortage."""
    caplog.set_level(logging.CRITICAL, "lb")
    service.start()
    told = ask(of(service), "/readyz")
    assert told.status == "200 OK"
    assert told.json["status"] == "degraded"
    assert told.json["shared_state"] not in ("", "ok")


def test_not_ready_while_it_drains(service: Service) -> None:
    service.fleet.degraded = ""
    service.draining = True
    told = ask(of(service), "/readyz")
    assert (told.status, told.json) == ("503 Service Unavailable", {"status": "draining"})
    assert ask(of(service), "/healthz").status == "200 OK"


def test_the_pools(service: Service) -> None:
    told = ask(of(service), "/v1/pools")
    assert told.status == "200 OK"
    common = {"state": "unknown", "source": "file"}
    assert told.json == {
        "pools": {
            "web": {
                "algorithm": "least-conn",
                "version": 0,
                "backends": [
                    {"id": "one", "url": "http://a:1", "weight": 3, "max_connections": 7, **common},
                    {"id": "b:2+tls", "url": "https://b:2", "weight": 1, "max_connections": 0, **common},
                ],
            }
        }
    }


# The form of its answers.


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/pools", "/nothing"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_answers_are_json_with_a_length(service: Service, path: str, method: str) -> None:
    told = ask(of(service), path, method)
    whole = ask(of(service), path, "GET" if method == "HEAD" else method)
    assert told.body == (b"" if method == "HEAD" else whole.body)
    assert told.fields["Content-Length"] == str(len(whole.body))
    assert told.fields["Cache-Control"] == "no-store"
    assert told.fields["Date"].endswith(" GMT")
    bad = not whole.status.startswith("200")
    assert told.fields["Content-Type"] == f"application/{'problem+' if bad else ''}json"
    if bad:
        assert whole.status == f"{whole.json['status']} {whole.json['title']}"


def test_there_is_nothing_else(service: Service) -> None:
    for path in ("/", "/healthz/", "/v1/pools/web", "", "/V1/pools"):
        assert ask(of(service), path).status == "404 Not Found"


def test_nothing_can_be_changed(service: Service) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        told = ask(of(service), "/v1/pools", method)
        assert told.status == "405 Method Not Allowed"
        assert told.fields["Allow"] == "GET, HEAD"


# The token.


@pytest.fixture
def locked(service: Service) -> Control:
    control = Control(TOKEN)
    control.service = service
    return control


def bearer(token: str) -> str:
    """The field's value as WSGI hands over its bytes."""
    return f"Bearer {token}".encode().decode("latin-1")


def test_the_token_opens(locked: Control) -> None:
    assert ask(locked, "/v1/pools", authorization=bearer(TOKEN)).status == "200 OK"


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        bearer(TOKEN[:-1]),
        bearer(TOKEN + "x"),
        TOKEN[:5],
        "Basic " + "x",
        "\xff",
    ],
)
def test_without_the_token_nothing_is_told(locked: Control, authorization: str | None) -> None:
    """Not even what there is."""
    for path, method in (("/v1/pools", "GET"), ("/nothing", "GET"), ("/v1/pools", "POST")):
        told = ask(locked, path, method, authorization)
        assert told.status == "401 Unauthorized"
        assert told.fields["WWW-Authenticate"] == "Bearer"
        assert b"backends" not in told.body
        assert TOKEN.encode() not in told.body


def test_probes_need_no_token(locked: Control) -> None:
    assert ask(locked, "/healthz").status == ask(locked, "/readyz").status == "200 OK"
