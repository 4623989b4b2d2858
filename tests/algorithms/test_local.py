"""Picks without the store: the same rules over what one process knows."""

from __future__ import annotations

from collections import Counter

import pytest

from lb.algorithms import ALGORITHMS
from lb.algorithms.local import LocalOrder
from lb.model import Backend, PoolSettings, Snapshot


def order(algorithm: str, held: dict[str, int], *backends: Backend) -> LocalOrder:
    snapshot = Snapshot("p", 1, PoolSettings(algorithm), {backend.id: backend for backend in backends})
    return LocalOrder(snapshot, held)


def backend(name: str, **changes: object) -> Backend:
    return Backend(name, f"http://{name}:80", **changes)  # type: ignore[arg-type]


def pick(local: LocalOrder, held: dict[str, int], *exclude: str) -> str | None:
    found = local.pick(exclude)
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
    assert "capped" in {pick(local, held) for _ in range(6)}


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
