"""The orders, as the model of the shared state keeps them: shares, sequences, minima."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from lb.algorithms import algorithm
from tests.algorithms.model import Model, backend, pool, weights


def run(model: Model, count: int) -> list[str]:
    picks = [model.claim() for _ in range(count)]
    assert None not in picks
    return [pick for pick in picks if pick]


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("round-robin", "turns"),
        ("weighted-round-robin", "weighted-turns"),
        ("least-connections", "load"),
        ("weighted-least-connections", "weighted-load"),
        ("resource-based", "reported-turns"),
    ],
)
def test_they_name_nobody_and_leave_it_to_the_order(name: str, order: str) -> None:
    chosen = algorithm(name)(pool(name, backend("a")))
    assert (chosen.name, chosen.order, chosen.rule, chosen.asks) == (name, order, None, False)
    assert list(chosen.candidates(None, Random(1).random)) == []


@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_counts_of_round_robin_differ_by_one_at_most(count: int) -> None:
    model = Model(pool("round-robin", *[backend(f"b{n}", n + 1) for n in range(count)]), Random(1).random)
    for _ in range(5 * count + 3):
        model.claim()
        assert max(model.requests.values()) - min(model.requests[f"b{n}"] for n in range(count)) <= 1


def test_round_robin_while_backends_come_and_go() -> None:
    """Between any two changes counts differ by one at most, from whenever they are counted."""
    chance = Random(2)
    model = Model(pool("round-robin", backend("a")), chance.random)
    for version in range(2, 60):
        names = chance.sample("abcdefgh", chance.randint(1, 8))
        model.update(pool("round-robin", *map(backend, names), version=version))
        seen = Counter(dict.fromkeys(names, 0))
        for _ in range(chance.randint(0, 30)):
            seen.update(run(model, 1))
            assert max(seen.values()) - min(seen.values()) <= 1


def test_weighted_turns_are_within_one_of_the_share_per_cycle_and_interleaved() -> None:
    snapshot = pool("weighted-round-robin", backend("a", 5), backend("b", 3), backend("c", 1))
    model = Model(snapshot, Random(1).random)
    picks = run(model, 90)
    for cycle in range(0, 90, 9):
        for name, weight in weights(snapshot).items():
            assert abs(picks[cycle : cycle + 9].count(name) - weight) <= 1
    assert "aaa" not in "".join(picks)  # 5 of 9: never three in a row


def test_weighted_turns_while_weights_change() -> None:
    """A backend's deadlines are a step apart, so in a stretch of picks it gets its share within one turn of
    its own; a stretch ends with each change, which makes it two (the step under way at either end).
    """
    chance = Random(3)
    model = Model(pool("weighted-round-robin", backend("a")), chance.random)
    for version in range(2, 40):
        members = [backend(name, chance.choice([0, 1, 2, 3, 10])) for name in "abcde"]
        snapshot = pool("weighted-round-robin", *members, backend("z", 1), version=version)
        model.update(snapshot)
        total = sum(weights(snapshot).values())
        seen = Counter(run(model, 3 * total))
        for name, weight in weights(snapshot).items():
            assert abs(seen[name] - 3 * weight) <= 2
        assert set(seen) <= set(weights(snapshot))


@pytest.mark.parametrize("name", ["least-connections", "weighted-least-connections"])
def test_a_claim_takes_the_least_at_that_instant(name: str) -> None:
    """While clients and backends come and go and weights change; no tolerance: it is exact."""
    chance = Random(4)
    model = Model(pool(name, backend("a")), chance.random)
    held: list[str] = []
    for version in range(2, 60):
        members = [
            backend(each, chance.choice([1, 1, 2, 5]), chance.choice([0, 0, 3]))
            for each in chance.sample("abcdefgh", chance.randint(1, 8))
        ]
        model.update(pool(name, *members, version=version))
        for _ in range(40):
            if held and chance.random() < 0.5:
                model.release(held.pop(chance.randrange(len(held))))
                continue
            choice = model.open()
            least = min(
                (model.in_flight[each.id] / (each.weight if name.startswith("w") else 1) for each in choice),
                default=None,
            )
            before = model.in_flight.copy()
            taken = model.claim()
            if taken is None:
                assert not choice
                continue
            by = model.snapshot.backends[taken].weight if name.startswith("w") else 1
            assert before[taken] / by == least
            held.append(taken)
            cap = model.snapshot.backends[taken].max_connections
            assert not 0 < cap < model.in_flight[taken]


def test_ties_rotate() -> None:
    model = Model(pool("least-connections", *map(backend, "abc")), Random(1).random)
    picks = []
    for _ in range(9):
        picks += run(model, 1)
        model.release(picks[-1])
    assert Counter(picks) == {"a": 3, "b": 3, "c": 3}


def test_turns_follow_what_is_reported() -> None:
    """Within one turn of the share per cycle, as with weights; who has not reported has its own weight."""
    model = Model(pool("resource-based", backend("a", 2), backend("b", 2), backend("c", 1)), Random(1).random)
    model.report("a", 0.5)
    model.report("b", 1.0)
    assert Counter(run(model, 400)) == pytest.approx(Counter(a=100, b=200, c=100), abs=1)
    model.report("b", 0.01)  # the least there is: it is still asked at times
    seen = Counter(run(model, 404))
    assert seen["b"] == pytest.approx(404 * 0.02 / 2.02, abs=1)
