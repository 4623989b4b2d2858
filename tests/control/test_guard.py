"""Who may ask: the token, the Host and the Origin."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from lb.control.guard import is_ours, same_origin
from lb.service import Service
from lb.settings import Settings
from tests.control.conftest import Asker

TOKEN = "abc.DEF-1"


@pytest.fixture
def locked(settings: Settings, service: Service) -> Asker:
    return Asker(msgspec.structs.replace(settings, control_token=TOKEN), service)


def test_the_token_opens(locked: Asker) -> None:
    for scheme in ("Bearer", "bearer"):
        assert locked("/v1/pools", HTTP_AUTHORIZATION=f"{scheme} {TOKEN}").status == 200
    assert locked("/v1/pools", HTTP_AUTHORIZATION=f"Bearer {TOKEN}", HTTP_HOST="any.example").status == 200


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        TOKEN,
        f"Basic {TOKEN}",
        "\xff",
    ],
)
def test_without_the_token_nothing_is_told(locked: Asker, given: str | None) -> None:
    """Not even what there is."""
    fields: dict[str, Any] = {} if given is None else {"HTTP_AUTHORIZATION": given}
    for path, method in (("/v1/pools", "GET"), ("/nothing", "GET"), ("/v1/pools", "POST"), ("/v1/x", "FOO")):
        told = locked(path, method, **fields)
        assert told.status == 401
        assert told.fields["www-authenticate"] == "Bearer"
        assert b"least" not in told.body
        assert TOKEN.encode() not in told.body


def test_probes_need_no_token_and_no_name(locked: Asker, ask: Asker) -> None:
    for path in ("/healthz", "/readyz"):
        assert locked(path).status == 200
        assert ask(path, HTTP_HOST="pod.example").status == 200


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8001", "[::1]:8001", "localhost", "LocalHost:8001", "10.1.2.3", ""]
)
def test_our_own_names(ask: Asker, host: str) -> None:
    assert ask("/v1/pools", HTTP_HOST=host).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8001", "localhost.evil.example", "[::1].evil", "["]
)
def test_a_name_that_was_made_to_point_here(ask: Asker, host: str) -> None:
    for method in ("GET", "DELETE"):
        told = ask("/v1/pools/web/backends/one", method, HTTP_HOST=host)
        assert told.status == 421
        assert b"http://a:1" not in told.body


def test_the_name_it_is_bound_by(settings: Settings, service: Service) -> None:
    ask = Asker(msgspec.structs.replace(settings, control_bind="lb.internal:8001"), service)
    assert ask("/v1/pools", HTTP_HOST="lb.internal:8001").status == 200
    assert ask("/v1/pools", HTTP_HOST="other.internal:8001").status == 421
    ask = Asker(msgspec.structs.replace(settings, control_bind="unix:/run/lb.sock"), service)
    assert ask("/v1/pools", HTTP_HOST="whatever").status == 200


def test_changes_from_pages_elsewhere(ask: Asker) -> None:
    change = {"weight": 9}
    path = "/v1/pools/web/backends/one"
    for origin in ("http://evil.example", "null", "http://127.0.0.1:8002", "http://[", "file://"):
        assert ask(path, "PATCH", change, HTTP_ORIGIN=origin).status == 403
        assert ask(path, "DELETE", HTTP_ORIGIN=origin).status == 403
        assert ask(path, HTTP_ORIGIN=origin).status == 200
    assert ask(path).json["weight"] == 3
    assert ask(path, "PATCH", change, HTTP_ORIGIN="http://127.0.0.1:8001").status == 200
    assert ask(path).json["weight"] == 9


def test_origins() -> None:
    assert same_origin("http://localhost", "localhost:80")
    assert same_origin("https://lb.example", "lb.example")
    assert same_origin("http://[::1]:8001", "[::1]:8001")
    assert not same_origin("http://localhost", "localhost:8001")
    assert not same_origin("ftp://localhost", "localhost")
    assert not is_ours("x", frozenset(("localhost",)))


def test_methods_that_nobody_knows(ask: Asker) -> None:
    assert ask("/v1/pools", "FOO").status == 501
