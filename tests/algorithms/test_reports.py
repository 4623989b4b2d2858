"""Reports: what is refused, what is free, and that a fleet that follows them settles."""

from __future__ import annotations

from math import exp, inf, nan

import msgspec
import pytest

from lb.algorithms.reports import LEAST_FREE, Report, check, effective, free_share, smooth


@pytest.mark.parametrize(
    ("fields", "share"),
    [
        ({"cpu": 0.0}, 1.0),
        ({"cpu": 0.25, "memory": 0.5}, 0.5),
        ({"load": 1.0}, LEAST_FREE),
        ({"cpu": 0.1, "running": 3, "capacity": 4}, 0.25),
        ({"running": 9, "capacity": 4}, LEAST_FREE),
        ({"cpu": 0.5, "running": 1000}, 0.5),
        ({"memory": 0.995}, LEAST_FREE),
    ],
)
def test_what_is_free_is_what_it_is_shortest_of(fields: dict[str, float], share: float) -> None:
    report = check(msgspec.convert({"time": 1.0, **fields}, Report))
    assert free_share(report) == pytest.approx(share)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "says nothing; give one of cpu"),
        ({"cpu": nan}, "cpu: nan is no share"),
        ({"cpu": 0.1, "memory": -0.1}, "memory: -0.1 is no share"),
        ({"load": 1.01}, "load: 1.01 is no share"),
        ({"load": inf}, "load: inf is no share"),
        ({"running": -1, "capacity": 2}, "running: -1 requests cannot be"),
        ({"running": 1, "capacity": 0}, "capacity: 0 requests cannot be"),
        ({"running": 1}, "running says nothing without capacity"),
        ({"cpu": 0.5, "capacity": 5}, "capacity says nothing without running"),
        ({"cpu": 0.5, "time": nan}, "time: nan is no time"),
        ({"cpu": 0.5, "time": -1.0}, "time: -1.0 is no time"),
    ],
)
def test_what_is_refused(fields: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        check(Report(**{"time": 1.0, **fields}))  # type: ignore[arg-type]


def test_a_report_is_json() -> None:
    report = msgspec.json.decode(b'{"time": 1700000000.5, "cpu": 0.25}', type=Report)
    assert report == Report(1700000000.5, cpu=0.25)
    assert msgspec.json.encode(report) == b'{"time":1700000000.5,"cpu":0.25}'
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"time": 1, "cpus": 0.25}', type=Report)


def test_smoothing_goes_by_time() -> None:
    assert smooth(None, 0.3, 0, 5) == 0.3
    assert smooth(1.0, 0.0, 10, 5) == pytest.approx(exp(-1))
    assert smooth(0.0, 1.0, 10, 5) == pytest.approx(1 - exp(-1))
    twice = smooth(smooth(1.0, 0.2, 3, 5), 0.2, 4, 5)
    assert smooth(1.0, 0.2, 7, 5) == pytest.approx(twice)
    assert smooth(0.8, 0.1, 0, 5) == smooth(0.8, 0.1, -60, 5) == 0.8


def test_the_weight_is_never_nothing_but_by_its_own_weight() -> None:
    assert effective(10, 0.5) == 5
    assert effective(1, 0.0) == LEAST_FREE
    assert effective(0, 1.0) == 0


def follow(load: float, rounds: int, *, falls_at_once: bool = False) -> list[list[float]]:
    """Use of each of four backends after each period, when traffic goes by what they have reported.

    Capacities are 1, 1, 1 and 2, weights say so; `load` is the traffic, as a share of all capacity. One of
    them starts as if it were nearly full.
    """
    capacity, period = [1, 1, 1, 2], 5.0
    mean: list[float | None] = [0.05, None, None, None]
    use = [load] * 4
    seen = []
    for _ in range(rounds):
        for at, used in enumerate(use):
            free = max(LEAST_FREE, 1 - min(used, 1.0))
            before = mean[at]
            fall = falls_at_once and before is not None and free < before
            mean[at] = free if fall else smooth(before, free, period, period)
        weights = [effective(each, share or 0.0) for each, share in zip(capacity, mean, strict=True)]
        traffic = load * sum(capacity)
        use = [traffic * weight / sum(weights) / each for weight, each in zip(weights, capacity, strict=True)]
        seen.append(use)
    return seen


@pytest.mark.parametrize("load", [0.1, 0.3, 0.5, 0.6, 0.7, 0.75])
def test_a_fleet_settles(load: float) -> None:
    """All equally used, within a hundredth, after 100 periods."""
    assert follow(load, 100)[-1] == pytest.approx([load] * 4, abs=0.01)


def test_why_a_fall_does_not_count_at_once() -> None:
    """At three quarters of all there is it would swing for ever."""
    swing = follow(0.75, 100, falls_at_once=True)[-4:]
    assert max(max(use) - min(use) for use in swing) > 0.1
