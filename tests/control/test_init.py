"""The control application as a whole: probes, and the form of all answers."""

from __future__ import annotations

import logging

import pytest

from lb.control import Control
from lb.service import Service
from lb.settings import Settings
from tests.control.conftest import Asker


def test_it_lives_before_it_is_ready() -> None:
    ask = Asker(Settings())
    assert ask("/healthz").json == {"status": "ok"}
    told = ask("/readyz")
    assert (told.status, told.json) == (503, {"status": "starting"})
    assert ask("/v1/pools").status == 503


def test_ready_while_the_store_is_there(ask: Asker) -> None:
    told = ask("/readyz")
    assert (told.status, told.json) == (200, {"status": "ready", "shared_state": "ok"})


def test_ready_without_the_store_too(lone: Asker, caplog: pytest.LogCaptureFixture) -> None:
    """It goes on balancing: taking it out would make an outage of a shortage."""
    caplog.set_level(logging.CRITICAL, "lb")
    assert lone.control.service is not None
    lone.control.service.start()
    told = lone("/readyz")
    assert told.status == 200
    assert told.json["status"] == "degraded"
    assert told.json["shared_state"] not in ("", "ok")


def test_not_ready_while_it_drains(ask: Asker, service: Service) -> None:
    service.draining = True
    told = ask("/readyz")
    assert (told.status, told.json) == (503, {"status": "draining"})
    assert ask("/healthz").status == 200


def test_not_ready_once_an_end_is_announced(ask: Asker, service: Service) -> None:
    service.leaving = lambda: True
    assert ask("/readyz").json == {"status": "draining"}


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/pools", "/v1/openapi.json", "/nothing"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_answers_are_json_with_a_length(ask: Asker, path: str, method: str) -> None:
    told = ask(path, method)
    whole = ask(path, "GET" if method == "HEAD" else method)
    assert told.body == (b"" if method == "HEAD" else whole.body)
    assert told.fields["content-length"] == str(len(whole.body))
    assert told.fields["cache-control"] == "no-store"
    assert told.fields["date"].endswith(" GMT")
    assert told.fields["x-content-type-options"] == "nosniff"
    assert told.fields["x-request-id"] != whole.fields["x-request-id"] or told is whole
    bad = whole.status >= 400
    assert told.fields["content-type"] == f"application/{'problem+' if bad else ''}json"
    if bad:
        assert (whole.status, whole.reason) == (whole.json["status"], whole.json["title"])


@pytest.mark.parametrize("path", ["/", "", "/healthz/", "/v1", "/V1/pools", "/v1/pools/", "/v1/pools/web/x"])
def test_there_is_nothing_else(ask: Asker, path: str) -> None:
    assert ask(path).status == 404


def test_every_resource_names_its_methods(ask: Asker) -> None:
    takes = {
        "/v1/pools": "GET, HEAD",
        "/v1/pools/web/backends": "GET, HEAD, POST",
        "/v1/pools/web/backends/one": "DELETE, GET, HEAD, PATCH",
        "/v1/pools/web/algorithm": "GET, HEAD, PUT",
    }
    for path, allowed in takes.items():
        told = ask(path, "TRACE")
        assert told.status == 405
        assert sorted(set(told.fields["allow"].split(", ")) - {"OPTIONS"}) == allowed.split(", ")


def test_a_fault_of_ours_is_told_without_a_trace(ask: Asker, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def on_get(self, req: object, resp: object) -> None:
            raise RuntimeError("a secret detail")

    control: Control = ask.control
    control._app.add_route("/broken", Broken())
    told = ask("/broken")
    assert told.status == 500
    assert b"secret" not in told.body
    assert "a secret detail" in caplog.text
