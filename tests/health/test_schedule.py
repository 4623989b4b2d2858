from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.health import schedule
from lb.health.schedule import Schedule


def test_fast_is_a_third_but_no_flood() -> None:
    assert schedule.fast_interval(10) == pytest.approx(10 / 3)
    assert schedule.fast_interval(1) == 0.5
    assert schedule.fast_interval(0.3) == 0.3


@given(st.floats(0.1, 1000), st.floats(0, 1), st.floats(0, 0.999))
def test_jitter_stays_inside_its_share_and_a_fast_probe_is_never_late(
    interval: float, jitter: float, chance: float
) -> None:
    steady = schedule.delay(interval, jitter, True, chance)
    assert steady >= 0.05
    assert interval * (1 - jitter) * 0.999 <= steady <= interval * (1 + jitter) * 1.001
    assert schedule.delay(interval, jitter, False, chance) <= schedule.fast_interval(interval)
    assert 0 < schedule.phase(interval, chance) <= interval


def test_a_few_newcomers_are_probed_at_once_and_many_at_a_bounded_rate() -> None:
    assert schedule.first(0, 1, 10) == 0
    assert max(schedule.first(n, 3, 10) for n in range(3)) < 0.01
    assert max(schedule.first(n, 5000, 10) for n in range(5000)) == pytest.approx(5, abs=0.01)
    assert max(schedule.first(n, 100_000, 10) for n in range(0, 100_000, 1000)) < 10


def test_takes_what_is_due_longest_waiting_first_and_no_more_than_asked() -> None:
    plan: Schedule[str] = Schedule()
    for key, due in (("c", 3.0), ("a", 1.0), ("b", 2.0), ("d", 9.0)):
        plan.plan(key, due)
    assert plan.next() == 1.0
    assert plan.take(0.5, 10) == []
    assert plan.take(5.0, 2) == [("a", 1.0), ("b", 2.0)]
    assert plan.take(5.0, 2) == [("c", 3.0)]
    assert len(plan) == 1
    assert plan.next() == 9.0


def test_planning_again_replaces_and_dropping_forgets() -> None:
    plan: Schedule[str] = Schedule()
    plan.plan("a", 1.0)
    plan.plan("a", 5.0)
    plan.plan("b", 2.0)
    plan.drop("b")
    plan.drop("never seen")
    assert plan.take(4.0, 10) == []
    assert plan.next() == 5.0
    assert plan.take(5.0, 10) == [("a", 5.0)]
    assert plan.next() is None
    plan.plan("a", 1.0)
    plan.clear()
    assert plan.take(9.0, 10) == []


def test_replanning_forever_keeps_the_heap_small() -> None:
    plan: Schedule[int] = Schedule()
    for turn in range(2000):
        plan.plan(turn % 10, 1e6 - turn)
    assert len(plan._heap) < 100
    assert len(plan.take(1e6, 100)) == 10


def test_in_virtual_time_a_fleet_is_probed_evenly_and_once_per_interval() -> None:
    """1,000 backends for 20 intervals of 10 s: what each second has to do stays near 100 probes.

    Evenly spread, a second's count is binomial with mean 100 and deviation below 10; six deviations are
    not met in 190 seconds by chance.
    """
    chance = random.Random(7)
    plan: Schedule[int] = Schedule()
    total, interval = 1000, 10.0
    for key in range(total):
        plan.plan(key, schedule.first(key, total, interval))
    per_second: dict[int, int] = {}
    times: dict[int, list[float]] = {}
    while (now := plan.next()) is not None and now < 20 * interval:
        for key, due in plan.take(now, 10):
            seen = times.setdefault(key, [])
            seen.append(due)
            per_second[int(due)] = per_second.get(int(due), 0) + 1
            if len(seen) == 1:
                plan.plan(key, due + schedule.phase(interval, chance.random()))
            else:
                plan.plan(key, due + schedule.delay(interval, 0.1, True, chance.random()))
    assert all(40 <= per_second[second] <= 160 for second in range(10, 200))
    for seen in times.values():
        assert 20 <= len(seen) <= 24
        assert all(8.99 < later - earlier < 11.01 for earlier, later in pairwise(seen[1:]))
