"""Picks without the store: the same rules over what one process knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from lb.algorithms import ALGORITHMS
from lb.algorithms.local import LocalOrder
from lb.model import Backend, PoolSettings, Snapshot


def order(algorithm: str, held: dict[str, int], *backends: Backend) -> LocalOrder:
    snapshot = Snapshot("p", 1, PoolSettings(algorithm), {backend.id: backend for backend in backends})
    return LocalOrder(snapshot, held)


def backend(name: str, **changes: object) -> Backend:
    return Backend(name, f"http://{name}:80", **changes)  # type: ignore[arg-type]


def pick(
    local: LocalOrder, held: dict[str, int], *exclude: str, named: Sequence[str] = (), first: bool = True
) -> str | None:
    found = local.pick(exclude, named, first=first)
    if found is None:
        return None
    held[found.id] = held.get(found.id, 0) + 1
    return found.id


@pytest.mark.parametrize("algorithm", ["round-robin", "least-connections"])
def test_equal_backends_take_turns(algorithm: str) -> None:
    held: dict[str, int] = {}
    local = order(algorithm, held, *[backend(name) for name in "abc"])
    picks = [pick(local, held) for _ in range(9)]
    assert Counter(picks) == {"a": 3, "b": 3, "c": 3}
    assert all(len(set(picks[at : at + 3])) == 3 for at in (0, 3, 6))


def test_weights_are_kept_in_each_cycle_and_interleaved() -> None:
    held: dict[str, int] = {}
    local = order("weighted-round-robin", held, backend("a", weight=3), backend("b", weight=1))
    picks = [pick(local, held) for _ in range(40)]
    for at in range(0, 40, 4):
        assert abs(picks[at : at + 4].count("a") - 3) <= 1
    assert Counter(picks) == {"a": 30, "b": 10}


def test_least_connections_sees_what_was_released() -> None:
    held: dict[str, int] = {}
    local = order("least-connections", held, backend("a"), backend("b"))
    for _ in range(6):
        pick(local, held)
    assert held == {"a": 3, "b": 3}
    for _ in range(3):
        held["b"] -= 1
        local.released("b")
    assert [pick(local, held) for _ in range(3)] == ["b", "b", "b"]


def test_weighted_least_connections_divides_by_the_weight() -> None:
    held: dict[str, int] = {}
    local = order("weighted-least-connections", held, backend("a", weight=4), backend("b"))
    for _ in range(10):
        pick(local, held)
    assert held == {"a": 8, "b": 2}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_who_may_not_be_taken(algorithm: str) -> None:
    held: dict[str, int] = {}
    local = order(
        algorithm,
        held,
        backend("down", health="down"),
        backend("drained", admin="drain"),
        backend("none", weight=0),
        backend("capped", max_connections=1),
        backend("free"),
    )
    assert {pick(local, held, "free"), pick(local, held, "free")} == {"capped", None}
    assert [pick(local, held) for _ in range(3)] == ["free"] * 3
    held["capped"] = 0
    local.released("capped")
    assert {pick(local, held, "free"), pick(local, held, "free")} == {"capped", None}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_empty_pool(algorithm: str) -> None:
    assert pick(order(algorithm, {}), {}) is None


def test_entries_do_not_pile_up() -> None:
    held: dict[str, int] = {}
    local = order("least-connections", held, backend("a"), backend("b"))
    for _ in range(2000):
        name = pick(local, held)
        assert name is not None
        held[name] -= 1
        local.released(name)
    assert len(local._heap) < 200


def test_many_at_their_cap_are_passed_over_once() -> None:
    """They leave the order until one of their connections is given back, and do not catch up then."""
    held: dict[str, int] = {}
    capped = [backend(f"c{n}", max_connections=1) for n in range(50)]
    local = order("round-robin", held, *capped, backend("free"), backend("other"))
    for _ in range(52):
        pick(local, held)
    assert [pick(local, held) for _ in range(40)].count("free") == 20
    assert len(local._heap) == 2
    held["c7"] = 0
    local.released("c7")
    assert [pick(local, held) for _ in range(6)].count("c7") == 1


def test_one_that_was_full_does_not_catch_up() -> None:
    held: dict[str, int] = {}
    local = order("round-robin", held, backend("capped", max_connections=2), backend("free"))
    for _ in range(40):
        pick(local, held)
    assert held == {"capped": 2, "free": 38}
    for left in (1, 0):
        held["capped"] = left
        local.released("capped")
    picks = [pick(local, held) for _ in range(4)]
    assert picks.count("capped") == 2
    assert "free" in picks[:2]


def test_a_cap_that_was_reached_before_it_was_made() -> None:
    held = {"capped": 1}
    local = order("least-connections", held, backend("capped", max_connections=1), backend("free"))
    assert [pick(local, held) for _ in range(3)] == ["free"] * 3
    held["capped"] = 0
    local.released("capped")
    assert pick(local, held) == "capped"


def test_reported_turns_go_by_the_weights() -> None:
    held: dict[str, int] = {}
    local = order("resource-based", held, backend("a", weight=3), backend("b"))
    assert Counter(pick(local, held) for _ in range(40)) == {"a": 30, "b": 10}


def test_the_first_candidate_that_may_be_taken() -> None:
    held: dict[str, int] = {}
    local = order("ip-hash", held, backend("a", max_connections=2), *map(backend, "bc"))
    named = ("gone", "a", "b")
    assert [pick(local, held, named=named) for _ in range(4)] == ["a", "a", "b", "b"]
    assert pick(local, held, "b", named=named) == "c"  # nobody is left of them: who is next
    held["a"] = 1
    local.released("a")
    assert pick(local, held, named=named) == "a"


def test_the_candidate_with_the_fewest_over_its_weight() -> None:
    held: dict[str, int] = {}
    local = order("power-of-two-choices", held, backend("a", weight=2), *map(backend, "bc"))
    for _ in range(30):
        pick(local, held, named=("b", "a"), first=False)
    assert held == {"a": 20, "b": 10}
    assert pick(local, held, "b", named=("b", "a"), first=False) == "a"


def test_an_order_by_load_counts_the_candidates() -> None:
    held: dict[str, int] = {}
    local = order("least-connections", held, *map(backend, "abc"))
    assert [pick(local, held, named=["b"]) for _ in range(4)] == ["b"] * 4
    assert pick(local, held, "b", named=["b", "a"]) == "a"
    picks = [pick(local, held) for _ in range(7)]
    assert held == {"a": 4, "b": 4, "c": 4}
    assert "b" not in picks


def test_another_order_than_that_of_the_pool() -> None:
    held: dict[str, int] = {}
    snapshot = Snapshot("p", 1, PoolSettings("round-robin"), {"a": backend("a", weight=3), "b": backend("b")})
    local = LocalOrder(snapshot, held, "weighted-load")
    for _ in range(8):
        pick(local, held)
    assert held == {"a": 6, "b": 2}


def test_an_algorithm_that_this_host_does_not_have() -> None:
    held: dict[str, int] = {}
    local = order("not-installed-here", held, backend("a"), backend("b"))
    assert Counter(pick(local, held) for _ in range(8)) == {"a": 4, "b": 4}
