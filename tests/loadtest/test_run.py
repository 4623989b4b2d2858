"""The load test's verdict: no request failed, and round robin was exact."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import pytest
from rich.console import Console

from loadtest.run import Result, counted, differences, kinds_table, shares_table


def kind(requests: int, failures: int = 0) -> dict[str, Any]:
    """One kind of request in Locust's summary."""
    times = {"p50": 1.4, "p95": 2.6, "p99": 30.0, "max": 41.0}
    return {"name": "GET", "requests": requests, "failures": failures, "rate": 10.0, **times}


def result(
    served: Mapping[str, int], *, sent: int | None = None, failures: int = 0, errors: int = 0, **told: Any
) -> Result:
    """What came of a run in which the backends served so many."""
    requests = sum(served.values()) if sent is None else sent
    found = [{"count": errors, "kind": "GET", "error": "503"}] if errors else []
    summary = {"kinds": [kind(requests, failures)], "errors": found}
    return Result(summary, served, told.get("counted", served))


@pytest.mark.parametrize("served", [{"a": 5, "b": 5}, {"a": 6, "b": 5, "c": 5}, {"a": 1}])
def test_it_passes(served: dict[str, int]) -> None:
    found = result(served)
    assert found.problems() == []
    assert found.requests == sum(served.values())


def test_round_robin_may_be_off_by_one_only() -> None:
    (told,) = result({"a": 7, "b": 5}, counted={"a": 6, "b": 6}).problems()
    assert "as counted by the backends" in told
    (told,) = result({"a": 6, "b": 6}, counted={"a": 7, "b": 5}).problems()
    assert "as counted by the shared state" in told


def test_failures_are_named() -> None:
    assert result({"a": 5}, failures=2, errors=2).problems() == ["2 x GET: 503"]
    assert result({"a": 5}, failures=2).problems() == ["2 requests failed"]


def test_a_run_without_requests_is_none() -> None:
    assert "the clients sent nothing" in result({"a": 0, "b": 0}).problems()


@pytest.mark.parametrize("sent", [9, 11])
def test_what_was_sent_arrived(sent: int) -> None:
    assert result({"a": 5, "b": 5}, sent=sent).problems() == [f"{sent} requests were sent, 10 arrived"]


def test_what_the_shared_state_tells() -> None:
    told = {
        "pools": {
            "web": {"backends": [{"url": "http://a:1", "requests": 3}, {"url": "http://b:1", "requests": 4}]},
            "other": {"backends": [{"url": "http://c:1", "requests": 5}]},
        }
    }
    assert counted(told) == {"http://a:1": 3, "http://b:1": 4, "http://c:1": 5}
    assert differences({"a": 5, "b": 2}, {"a": 3}) == {"a": 2, "b": 2}


def test_tables() -> None:
    file = io.StringIO()
    console = Console(file=file, width=120)
    console.print(kinds_table([kind(7, 1)]), shares_table({"a": 3, "b": 1}))
    lines = [line.split() for line in file.getvalue().splitlines()]
    assert ["GET", "7", "1", "10.0", "1", "3", "30", "41"] in lines
    assert ["a", "3", "75.00%"] in lines
    Console(file=file).print(shares_table({"a": 0}))  # nothing was served
