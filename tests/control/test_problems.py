"""Errors are problem documents, whoever raises them."""

from __future__ import annotations

from typing import Any

import pytest

from lb.control.problems import Problem
from lb.errors import BadRequest, ClientGone, RequestTimeout
from tests.control.conftest import Asker

ONE = "/v1/pools/web/backends/one"


class Stream:
    """A body that breaks."""

    def __init__(self, fault: Exception) -> None:
        self._fault = fault

    def read(self, size: int) -> bytes:
        raise self._fault


def patch(ask: Asker, fault: Exception) -> int:
    environ: dict[str, Any] = {
        "wsgi.input": Stream(fault),
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": "9",
    }
    return ask(ONE, "PATCH", **environ).status


def test_bodies_that_break(ask: Asker) -> None:
    assert patch(ask, BadRequest("no chunk")) == 400
    assert patch(ask, RequestTimeout("slow")) == 408
    assert patch(ask, OSError("reset")) == 400


def test_who_is_gone_is_not_answered(ask: Asker) -> None:
    with pytest.raises(ClientGone):
        patch(ask, ClientGone("gone"))


def test_the_form(ask: Asker) -> None:
    told = ask("/v1/nothing")
    assert told.json == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "there is no such resource",
    }
    told = ask(ONE, "PATCH", {"weight": -1})
    assert (told.reason, told.json["title"]) == ("Unprocessable Content", "Unprocessable Content")
    assert told.json["errors"] == [{"pointer": "#/weight", "detail": "Expected `int` >= 0"}]


def test_a_problem_is_raised_with_its_reason() -> None:
    assert Problem(413, "too long").status == "413 Content Too Large"
