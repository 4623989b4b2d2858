"""`/v1/decisions` on a real store, and of what this worker has not written yet."""

from __future__ import annotations

import pytest

from lb.service import Service
from lb.state.decisions import write
from lb.state.registry import Registry
from tests.control.conftest import Asker
from tests.test_decision import decision


def test_one_of_another_worker(ask: Asker, registry: Registry) -> None:
    write(registry, [decision("some/id", pool="web")], 60, 10)
    told = ask("/v1/decisions/some/id")
    assert told.status == 200
    assert (told.json["id"], told.json["pool"], told.json["attempts"][0]["outcome"]) == (
        "some/id",
        "web",
        "answered",
    )


def test_one_that_is_not_written_yet(ask: Asker, service: Service) -> None:
    service.recorder.pending.append(decision("mine", pool="web"))
    assert ask("/v1/decisions/mine").json["id"] == "mine"


def test_nothing_is_known_of_it(ask: Asker) -> None:
    for path in ("nothing", "x" * 500, "a b", "\n"):
        told = ask(f"/v1/decisions/{path}")
        assert (told.status, told.json["status"]) == (404, 404)
        assert len(told.json["detail"]) < 700


def test_the_list(ask: Asker, registry: Registry) -> None:
    write(registry, [decision(f"r{n}", pool="web", status=502 if n % 2 else 200) for n in range(30)], 60, 100)
    told = ask("/v1/decisions").json["decisions"]
    assert len(told) == 20
    assert told[0]["attempts"] == 1
    failed = ask("/v1/decisions", QUERY_STRING="failed=true&pool=web&limit=100").json["decisions"]
    assert len(failed) == 15
    assert all(one["failed"] and one["status"] == 502 for one in failed)
    assert len(ask("/v1/decisions", QUERY_STRING="failed=false&limit=3").json["decisions"]) == 3


@pytest.mark.parametrize(
    "query",
    [
        *("pool=wob", "pool=", "failed=maybe", "limit=0", "limit=101", "limit=x", "limit=-1", "limit=%C2%B2"),
        *("limit=1&limit=2", "other=1", "limit=000000000000000000100"),
    ],
)
def test_what_cannot_be_asked(ask: Asker, query: str) -> None:
    assert ask("/v1/decisions", QUERY_STRING=query).status == 422


def test_without_the_store(lone: Asker) -> None:
    assert lone("/v1/decisions").status == 503
    assert lone("/v1/decisions/x").status == 503
    assert lone.control.service is not None
    lone.control.service.recorder.pending.append(decision("mine", pool="web"))
    assert lone("/v1/decisions/mine").status == 200
