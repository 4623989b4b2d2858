"""`redis/report.lua`: reports change shares, are smoothed, lapse, and wait out a blackout."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest

from tests.state.pool import Pool, put
from tests.support.run import eventually


def report(
    pool: Pool, name: str, free: float, lasts: float = 60, fade: float = 10, blackout: float = 0
) -> float:
    found = pool.scripts.report(pool.keys, name, free, lasts, fade, blackout)
    assert found is not None
    return found


def shares(pool: Pool, claims: int) -> Counter[str]:
    return Counter(pool.claim(claims))


def test_turns_follow_weight_times_share(pool: Pool) -> None:
    pool.make("resource-based", {"a": 2, "b": 1, "c": 1})
    assert report(pool, "b", 0.5) == 0.5
    assert report(pool, "c", 0.25) == 0.25
    assert shares(pool, 110) == {"a": 80, "b": 20, "c": 10}


def test_without_reports_it_is_weighted_round_robin(pool: Pool) -> None:
    pool.make("resource-based", {"a": 2, "b": 1})
    assert shares(pool, 30) == {"a": 20, "b": 10}


def test_one_call_or_many_give_the_same_picks(pool: Pool) -> None:
    pool.make("resource-based", {"a": 3, "b": 2, "c": 1})
    report(pool, "a", 0.3)
    together = pool.claim(40)
    pool.client.flushdb()
    pool.make("resource-based", {"a": 3, "b": 2, "c": 1})
    report(pool, "a", 0.3)
    assert [pool.claim()[0] for _ in range(40)] == together


def test_reports_are_smoothed(pool: Pool) -> None:
    pool.make("resource-based", "ab")
    assert report(pool, "a", 0.8) == 0.8
    assert 0.7 < report(pool, "a", 0.1) < 0.8
    assert report(pool, "a", 0.1, fade=1e-9) == pytest.approx(0.1)
    assert 0.1 <= report(pool, "a", 0.9) < 0.2


def test_it_acts_on_the_step_under_way(pool: Pool) -> None:
    """Who was put far back as overloaded does not wait out that whole step once it is free again."""
    pool.make("resource-based", "ab")
    report(pool, "a", 0.01, fade=1e-9)
    assert shares(pool, 20)["a"] <= 1
    report(pool, "a", 1, fade=1e-9)
    assert shares(pool, 10)["a"] in (4, 5, 6)


def test_an_old_report_does_not_count(pool: Pool) -> None:
    pool.make("resource-based", "ab")
    report(pool, "a", 0.01, lasts=0.05)
    until = time.monotonic() + 0.06
    eventually(lambda: time.monotonic() > until, "the report to lapse")
    picks = shares(pool, 200)
    # The step that was begun under the report may still be under way.
    assert picks["a"] > 50


def test_a_new_backend_waits_out_its_blackout(pool: Pool) -> None:
    pool.make("resource-based", "ab")
    report(pool, "a", 0.01, blackout=60)
    assert shares(pool, 20) == {"a": 10, "b": 10}
    report(pool, "a", 0.01, blackout=0)
    assert shares(pool, 20)["a"] <= 2


def test_other_algorithms_keep_the_report_for_later(pool: Pool) -> None:
    pool.make("round-robin", "ab")
    before = pool.order()
    report(pool, "a", 0.01)
    assert pool.order() == before
    assert shares(pool, 20) == {"a": 10, "b": 10}
    pool.commit(algorithm="resource-based")
    assert shares(pool, 20)["a"] <= 1


def test_nobody_of_that_name(pool: Pool) -> None:
    pool.make("resource-based", "a")
    assert pool.scripts.report(pool.keys, "b", 1, 1, 1, 0) is None
    pool.claim()
    pool.commit(delete=["a"])  # gone, but for a connection
    assert pool.scripts.report(pool.keys, "a", 1, 1, 1, 0) is None
    pool.release("a")
    names: Any = pool.client.hkeys(pool.keys.state)
    assert not [name for name in names if name.endswith(b"a") and name != b"_a"]


def test_what_was_reported_is_forgotten_with_its_backend(pool: Pool) -> None:
    pool.make("resource-based", "ab")
    report(pool, "a", 0.01)
    pool.commit(delete=["a"])
    assert not pool.client.hexists(pool.keys.state, "_sa")
    pool.commit([put("a")])
    assert abs(shares(pool, 20)["a"] - 10) <= 1


@pytest.mark.parametrize("free", [0.01, 1])
def test_a_drained_backend_may_report(pool: Pool, free: float) -> None:
    pool.make("resource-based", "ab")
    pool.commit([put("a", available=False)])
    report(pool, "a", free)
    assert set(pool.order()) == {"b"}
