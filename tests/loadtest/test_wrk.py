"""What wrk's script prints, as numbers."""

from __future__ import annotations

import json

import pytest

from loadtest.bench.wrk import ERROR_KINDS, MIB, Scenario, WrkError, parse, scenarios

TOLD = {
    "requests": 1000,
    "microseconds": 2_000_000,
    "p50": 1500,
    "p99": 9000,
    **dict.fromkeys(ERROR_KINDS, 0),
}


def output(**changed: int) -> str:
    """wrk's own words around the line of the script."""
    return f"Running 2s test\n  1 threads\nRESULT {json.dumps(TOLD | changed)}\n"


def test_a_result() -> None:
    sample = parse(output())
    assert (sample.requests, sample.seconds) == (1000, 2.0)
    assert (sample.p50_ms, sample.p99_ms) == (1.5, 9.0)
    assert sample.rate == 500
    assert sample.failed == 0


@pytest.mark.parametrize("kind", ERROR_KINDS)
def test_every_kind_of_error_counts(kind: str) -> None:
    sample = parse(output(**{kind: 3}))
    assert sample.failed == 3
    assert sample.errors[kind] == 3


def test_no_answer_at_all_is_a_failure() -> None:
    sample = parse(output(requests=0, microseconds=0))
    assert (sample.rate, sample.failed) == (0, 1)


@pytest.mark.parametrize("printed", ["", "Running\n", "unable to connect\n", " RESULT {}\n"])
def test_no_result_is_an_error_that_says_what_was_printed(printed: str) -> None:
    with pytest.raises(WrkError) as found:
        parse(printed)
    assert printed in str(found.value)


def test_scenarios_by_kind() -> None:
    found = scenarios(["upload", "get"], [1, 64])
    assert [(one.name, one.connections, one.upload) for one in found] == [
        ("get-1", 1, 0),
        ("get-64", 64, 0),
        ("upload", 16, MIB),
    ]
    assert [one.title for one in found[:2]] == ["small GETs, 1 connection", "small GETs, 64 connections"]
    assert scenarios([], [1]) == []


def test_what_the_script_is_told() -> None:
    assert Scenario("s", "t", "/", 1).told == ("get",)
    assert Scenario("s", "t", "/", 1, upload=MIB).told == ("upload", str(MIB))
    assert Scenario("s", "t", "/", 1, keys=1000).told == ("keys", "1000")
