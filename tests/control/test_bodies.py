"""How bodies are read: everything that is wrong with one, at once, with its place."""

from __future__ import annotations

from typing import Any

import pytest

from lb.control.bodies import MOST
from tests.control.conftest import Asker

LIST, ONE, ALGORITHM = "/v1/pools/web/backends", "/v1/pools/web/backends/one", "/v1/pools/web/algorithm"
CAP, SHARE = "#/max_connections", "#/canary/share"


def choice(algorithm: str, share: float) -> dict[str, Any]:
    return {"algorithm": "random", "canary": {"algorithm": algorithm, "share": share}}


@pytest.mark.parametrize(
    "raw",
    [
        *(
            b"",
            b"{",
            b"nonsense",
            b'{"url": NaN}',
            b"\xff",
            b'{"url": "\xff"}',
            b'{"url": "\\ud800"}',
            b"{} {}",
        ),
        b"[" * 60_000,
    ],
)
def test_no_json(ask: Asker, raw: bytes) -> None:
    for path, method in ((LIST, "POST"), (ONE, "PATCH"), (ALGORITHM, "PUT")):
        told = ask(path, method, raw=raw)
        assert told.status == 400, told
        assert "JSON" in told.json["detail"]


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonp"])
def test_another_kind(ask: Asker, kind: str) -> None:
    told = ask(LIST, "POST", {"url": "http://127.0.0.1:1"}, kind=kind)
    assert told.status == 415
    assert ask(LIST, "POST", {"url": "http://127.0.0.1:1"}, HTTP_CONTENT_ENCODING="gzip").status == 415


def test_a_charset_is_no_other_kind(ask: Asker) -> None:
    assert ask(ONE, "PATCH", {"weight": 4}, kind="Application/JSON; charset=utf-8").status == 200


def test_too_long(ask: Asker) -> None:
    fits = b'{"weight": 4}' + b" " * (MOST - 13)
    assert ask(ONE, "PATCH", raw=fits).status == 200
    assert ask(ONE, "PATCH", raw=fits + b" ").status == 413
    assert ask(ONE, "PATCH", raw=fits + b" ", HTTP_TRANSFER_ENCODING="chunked").status == 413
    assert ask(ONE, "PATCH", raw=fits, HTTP_TRANSFER_ENCODING="chunked").status == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "places"),
    [
        ("POST", LIST, [], ["#"]),
        ("POST", LIST, None, ["#"]),
        ("POST", LIST, {}, ["#"]),
        ("POST", LIST, {"url": 5}, ["#/url"]),
        ("POST", LIST, {"url": "nonsense"}, ["#/url"]),
        ("POST", LIST, {"url": "http://u:secret@127.0.0.1:1"}, ["#/url"]),
        ("POST", LIST, {"url": "http://127.0.0.1:99999"}, ["#/url"]),
        ("POST", LIST, {"url": "http://127.0.0.1:0"}, ["#/url"]),
        ("POST", LIST, {"url": "http://127.0.0.1/path"}, ["#/url"]),
        ("POST", LIST, {"url": "http://nothing.invalid:1"}, ["#/url"]),
        ("POST", LIST, {"url": "http://\u00fc.example:1"}, ["#/url"]),
        ("POST", LIST, {"url": "http://127.0.0.1:1", "id": "a b"}, ["#/id"]),
        ("POST", LIST, {"url": "http://127.0.0.1:1", "id": "_v"}, ["#/id"]),
        ("POST", LIST, {"url": "http://127.0.0.1:1", "weight": True}, ["#/weight"]),
        ("POST", LIST, {"url": "http://127.0.0.1:1", "wieght": 1}, ["#/wieght"]),
        ("POST", LIST, {"url": "http://127.0.0.1:1", "a/b~c": 1}, ["#/a~1b~0c"]),
        ("POST", LIST, {"url": "x", "weight": -1, "max_connections": 10**7}, ["#/url", "#/weight", CAP]),
        ("PATCH", ONE, {}, ["#"]),
        ("PATCH", ONE, {"weight": 1001}, ["#/weight"]),
        ("PATCH", ONE, {"weight": None}, ["#/weight"]),
        ("PATCH", ONE, {"weight": 1.5}, ["#/weight"]),
        ("PATCH", ONE, {"weight": 10**30}, ["#/weight"]),
        ("PATCH", ONE, {"admin": "down"}, ["#/admin"]),
        ("PATCH", ONE, {"url": "http://127.0.0.1:1"}, ["#/url"]),
        ("PATCH", ONE, {"report": {}}, ["#/report"]),
        ("PATCH", ONE, {"report": None}, ["#/report"]),
        ("PATCH", ONE, {"report": {"running": 1}}, ["#/report"]),
        ("PATCH", ONE, {"report": {"cpu": 1.1, "time": 5}}, ["#/report/time", "#/report/cpu"]),
        ("PATCH", ONE, {"report": {"running": 1, "capacity": 0}}, ["#/report/capacity"]),
        ("PUT", ALGORITHM, {}, ["#"]),
        ("PUT", ALGORITHM, {"algorithm": "nonsense"}, ["#/algorithm"]),
        ("PUT", ALGORITHM, {"algorithm": "random", "canary": {"algorithm": "random"}}, ["#/canary"]),
        ("PUT", ALGORITHM, choice("x", 1), ["#/canary/algorithm", SHARE]),
        ("PUT", ALGORITHM, choice("random", 0), [SHARE]),
    ],
)  # fmt: skip
def test_what_is_wrong_and_where(ask: Asker, method: str, path: str, body: Any, places: list[str]) -> None:
    before = ask("/v1/pools/web").json
    told = ask(path, method, raw=b"null") if body is None else ask(path, method, body)
    assert told.status == 422, told
    assert [fault["pointer"] for fault in told.json["errors"]] == places
    assert all(fault["detail"] for fault in told.json["errors"])
    assert b"secret" not in told.body
    assert ask("/v1/pools/web").json == before


def test_a_wrong_key_says_which_there_is(ask: Asker) -> None:
    told = ask(ONE, "PATCH", {"wieght": 1})
    assert told.json["errors"][0]["detail"] == "there is no such key; did you mean 'weight'?"
