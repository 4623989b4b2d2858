"""Slow start in the scripts: who gets one, what it does to each kind of choice, and that it ends.

A ramp of an hour that began half an hour ago stands still for as long as a test runs, so that shares are
exact; ramps that end are short, and waited for.
"""

from __future__ import annotations

import struct
import time
from collections import Counter
from typing import cast

import pytest

from lb.model import Backend, PoolSettings
from lb.state import decide
from lb.state.decide import Change
from lb.state.registry import Registry
from tests.state.pool import Pool, put
from tests.support.run import eventually

HOUR = 3600.0


def ramps(pool: Pool) -> dict[str, tuple[float, float]]:
    """Backend → from, until when its last slow start goes, in seconds from now."""
    at = Registry(pool.client).now()
    state = cast("dict[bytes, bytes]", pool.client.hgetall(pool.keys.state))
    found = {}
    for name, value in state.items():
        if name.startswith(b"_u") and name != b"_u":
            begin, end = struct.unpack("<2d", value)
            found[name[2:].decode()] = (begin - at, end - at)
    return found


def half_way(pool: Pool, *names: str) -> None:
    """Let each name have come half way through its slow start: 0.55 of its weight counts."""
    now = time.time()
    for name in names:
        pool.client.hset(pool.keys.state, f"_u{name}", struct.pack("<2d", now - HOUR / 2, now + HOUR / 2))
    for field in ("_u", "_cu"):
        pool.client.hset(pool.keys.state, field, now + HOUR / 2)


def has_served_for(pool: Pool, seconds: float) -> None:
    began = float(pool.client.hget(pool.keys.state, "_b") or 0)
    assert began == pytest.approx(time.time(), abs=5)
    pool.client.hset(pool.keys.state, "_b", began - seconds)


def test_one_that_joins_a_serving_pool_starts_slowly(pool: Pool) -> None:
    pool.make("round-robin", "ab")
    assert ramps(pool) == {}
    pool.commit([put("c"), put("a", 2)], slow_start=HOUR)
    ((name, times),) = ramps(pool).items()
    assert name == "c"
    assert times == pytest.approx((0, HOUR), abs=5)
    # A tenth of a share: one round in ten.
    assert Counter(pool.claim(210)) == {"a": 100, "b": 100, "c": 10}


def test_so_does_one_that_comes_back_but_none_that_only_changes(pool: Pool) -> None:
    pool.make("round-robin", "abcd")
    pool.commit([put("a", available=False), put("b", cap=3)], slow_start=HOUR)
    assert ramps(pool) == {}
    pool.commit([put("a"), put("b", 2), put("c", available=False)], slow_start=HOUR)
    assert set(ramps(pool)) == {"a"}
    pool.commit([put("d", available=False)])
    pool.commit([put("c"), put("d")])
    assert set(ramps(pool)) == {"a"}  # without the setting


def test_not_when_the_whole_pool_begins(pool: Pool) -> None:
    pool.commit([put("a")], algorithm="round-robin", slow_start=HOUR, begins=True)
    pool.commit([put("b")], slow_start=HOUR)
    assert ramps(pool) == {}
    has_served_for(pool, HOUR)
    pool.commit([put("c")], slow_start=HOUR)
    assert set(ramps(pool)) == {"c"}


@pytest.mark.parametrize("algorithm", ["weighted-round-robin", "resource-based"])
def test_turns_go_by_the_share_of_the_weight(pool: Pool, algorithm: str) -> None:
    pool.make(algorithm, {"a": 2, "b": 1, "c": 4})
    half_way(pool, "c")
    counts = Counter(pool.claim(520))
    assert counts["a"] == pytest.approx(200, abs=2)
    assert counts["b"] == pytest.approx(100, abs=2)
    assert counts["c"] == pytest.approx(220, abs=2)  # 4 * 0.55 of 5.2


@pytest.mark.parametrize(
    ("algorithm", "weight"), [("least-connections", 1), ("weighted-least-connections", 3)]
)
def test_loads_go_by_it_too(pool: Pool, algorithm: str, weight: int) -> None:
    pool.make(algorithm, {"a": 1, "b": weight})
    half_way(pool, "b")
    pool.claim(155)
    share = 0.55 * weight
    assert pool.in_flight()["b"] == pytest.approx(155 * share / (1 + share), abs=2)
    pool.release("b", "b", "b", "a")
    assert Counter(pool.claim(4)) == {"a": 1, "b": 3}
    # Whoever opens a lease anew places backends by it, too.
    held = pool.held()
    pool.scripts.lease(pool.keys, "w", "e", held | {"b": held["b"] - 2})
    assert pool.order()["b"] == pytest.approx((held["b"] - 2) / share, abs=0.01)


def test_and_rules_that_compare(pool: Pool) -> None:
    pool.make("round-robin", "ab")
    half_way(pool, "b")
    picks = Counter(pool.call(31, rules=[("l", "ba", "")] * 31)[1])
    assert picks == {"a": 20, "b": 11}
    pool.call(0, [("a", "20 0.010000 0.010000"), ("b", "11 0.010000 0.010000")])
    picks = Counter(pool.call(31, rules=[("t", "ab", "")] * 31)[1])
    assert picks["b"] == pytest.approx(11, abs=1)
    # What hashes keeps to its keys.
    assert pool.call(3, rules=[("f", "b", "")] * 3)[1] == ["b", "b", "b"]


def test_one_that_begins_in_the_future_is_none(pool: Pool) -> None:
    """The server's clock was put back: a backend must not have a tenth until it has caught up."""
    pool.make("weighted-round-robin", {"a": 1, "b": 1})
    begin = time.time() + HOUR
    pool.client.hset(pool.keys.state, "_ua", struct.pack("<2d", begin, begin + 60))
    pool.client.hset(pool.keys.state, "_u", begin + 60)
    assert Counter(pool.claim(100)) == {"a": 50, "b": 50}


def test_a_canarys_order_has_it_too(pool: Pool) -> None:
    pool.make("round-robin", "ab")
    pool.commit(canary="least-connections")
    half_way(pool, "b")
    assert Counter(pool.call(31, canary=True)[1]) == {"a": 20, "b": 11}


@pytest.mark.parametrize("algorithm", ["round-robin", "least-connections"])
def test_when_it_is_over_all_is_as_ever(pool: Pool, algorithm: str) -> None:
    """Also for one that holds long connections, and would stand where the start of its ramp has put it."""
    pool.make(algorithm, "ab")
    pool.commit([put("b", available=False)])
    pool.commit([put("b")], slow_start=0.5)
    first = Counter(pool.claim(44))
    assert first["b"] < first["a"] / 2
    eventually(lambda: all(end < 0 for _, end in ramps(pool).values()), "the slow start to end")
    assert pool.client.hexists(pool.keys.state, "_u")
    pool.release("a")
    assert not pool.client.hexists(pool.keys.state, "_u")
    if algorithm == "least-connections":
        behind = first["a"] - 1 - first["b"]
        assert pool.claim(behind) == ["b"] * behind
    else:
        pool.claim(12)
    assert Counter(pool.claim(40)) == {"a": 20, "b": 20}


def test_without_one_nothing_more_is_asked_of_the_store(pool: Pool) -> None:
    def commands() -> int:
        pool.client.config_resetstat()
        pool.claim(5)
        stats = pool.client.info("commandstats")
        return sum(each["calls"] for name, each in stats.items() if name.startswith("cmdstat_"))

    pool.make("round-robin", "ab")
    before = commands()
    half_way(pool, "b")
    assert commands() == before + 2  # TIME and one HMGET
    pool.client.hset(pool.keys.state, "_u", time.time() - 1)
    commands()
    assert commands() == before


def test_who_is_removed_leaves_nothing(pool: Pool) -> None:
    pool.make("round-robin", "a")
    pool.commit([put("b"), put("c")], slow_start=HOUR)
    pool.claim(2)
    pool.commit(delete=["b", "c"])
    pool.release(*pool.held())
    assert ramps(pool) == {}


def test_the_registry_tells_when_it_applies(registry: Registry, pool: Pool) -> None:
    members = {name: Backend(name, f"http://{name}:80", health="up") for name in "ab"}
    backup = Backend("x", "http://x:80", health="up", backup=True)
    slow = PoolSettings(slow_start=HOUR)
    registry.change("p", lambda _: Change(put=(members["a"],), settings=slow))
    registry.change("p", decide.add(members["b"]))
    assert ramps(pool) == {}  # all of them have just begun
    has_served_for(pool, HOUR)
    registry.change("p", decide.add(backup))
    registry.change("p", decide.verdicts([("a", "down")]))
    registry.change("p", decide.verdicts([("b", "down")]))
    assert set(pool.order()) == {"x"}
    assert ramps(pool) == {}  # a backup is needed at once
    registry.change("p", decide.verdicts([("b", "up")]))
    registry.change("p", decide.verdicts([("a", "up")]))
    assert set(ramps(pool)) == {"a", "b"}
