"""Drawing lots: distributions with seeded chance.

A count of n draws with probability p has the standard deviation sqrt(n p (1 - p)). Tolerances are 4.5 of
those: by chance alone one count in 150,000 is farther off, and the seeds are fixed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import cycle
from math import sqrt
from random import Random

import pytest

from lb.algorithms import algorithm
from lb.algorithms.base import CANDIDATES
from tests.algorithms.model import DECAY, Latency, Line, Model, backend, pool, weights

DRAWN = ["random", "power-of-two-choices", "least-time"]


def close(seen: Counter[str], expected: Mapping[str, float]) -> None:
    """Is each count within 4.5 standard deviations of its probability?"""
    total = seen.total()
    for name, chance in expected.items():
        assert abs(seen[name] - total * chance) <= 4.5 * sqrt(total * chance * (1 - chance)) + 1e-9, name


def share(given: Mapping[str, int]) -> dict[str, float]:
    return {name: weight / sum(given.values()) for name, weight in given.items()}


WEIGHTS = [
    [1],
    [7],
    [1, 1],
    [1, 1000],
    [1000, 1, 1],
    [1, 1, 1, 1, 1],
    [1000, *[1] * 50],
    [1, 2, 3, 4, 5, 6],
]


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("parts", WEIGHTS, ids=str)
def test_they_are_distinct_and_the_first_goes_by_weight(name: str, parts: list[int]) -> None:
    snapshot = pool(name, *[backend(f"b{n}", weight) for n, weight in enumerate(parts)])
    chosen = algorithm(name)(snapshot)
    wanted = min(CANDIDATES if name == "random" else 2, len(parts))
    chance = Random(5)
    firsts: Counter[str] = Counter()
    for _ in range(5000):
        found = list(chosen.candidates(None, chance.random))
        assert len(found) == len(set(found)) == wanted
        firsts[found[0]] += 1
    close(firsts, share(weights(snapshot)))


def test_the_second_goes_by_what_is_left() -> None:
    """P(second is j) is the sum over i of p(i) · w(j) / (W - w(i)): draws without putting back."""
    given = {"a": 6, "b": 3, "c": 1, "d": 2}
    chosen = algorithm("random")(pool("random", *[backend(name, each) for name, each in given.items()]))
    chance = Random(6)
    seen = Counter(chosen.candidates(None, chance.random)[1] for _ in range(30_000))
    total = sum(given.values())
    close(
        seen,
        {
            name: sum(
                first / total * weight / (total - first) for other, first in given.items() if other != name
            )
            for name, weight in given.items()
        },
    )


def test_a_draw_asks_chance_once_for_each_candidate() -> None:
    """However uneven the weights: nothing is drawn again."""
    chosen = algorithm("power-of-two-choices")(pool("power-of-two-choices", backend("a", 1000), backend("b")))
    numbers = iter([0.999999, 0.0])
    assert list(chosen.candidates(None, lambda: next(numbers))) == ["b", "a"]
    numbers = iter([0.0, 0.999999])
    assert list(chosen.candidates(None, lambda: next(numbers))) == ["a", "b"]


@pytest.mark.parametrize("name", DRAWN)
def test_nobody_unavailable_is_drawn(name: str) -> None:
    snapshot = pool(
        name, backend("a"), backend("d", health="down"), backend("e", admin="drain"), backend("f", 0)
    )
    assert list(algorithm(name)(snapshot).candidates(None, Random(1).random)) == ["a"]
    assert list(algorithm(name)(pool(name)).candidates(None, Random(1).random)) == []


@pytest.mark.parametrize("name", DRAWN)
def test_an_idle_pool_is_used_by_weight(name: str) -> None:
    """Each request is over before the next: the first that was drawn is taken."""
    snapshot = pool(name, backend("a", 8), backend("b", 1), backend("c", 1))
    model = Model(snapshot, Random(7).random)
    if name == "least-time":  # all were measured just now
        model.latency = {each: Latency(0.1, 0.0) for each in "abc"}
    for _ in range(4000):
        taken = model.claim()
        assert taken
        model.release(taken)
    close(model.requests, share(weights(snapshot)))


@pytest.mark.parametrize("seed", range(5))
def test_the_power_of_two_choices(seed: int) -> None:
    """n connections on n backends: the most on one is about ln n / ln ln n = 3.6 and more by random (in
    practice 5 to 7 for 1000), about ln ln n / ln 2 = 2.8 with two choices (3, rarely 4) (Mitzenmacher 2001).
    """
    most = {}
    for name in ("random", "power-of-two-choices"):
        model = Model(pool(name, *[backend(f"b{n}") for n in range(1000)]), Random(seed).random)
        for _ in range(1000):
            model.claim()
        most[name] = max(model.in_flight.values())
    assert most["power-of-two-choices"] <= 4
    assert most["random"] >= 5


def test_two_choices_fill_by_weight() -> None:
    """Under load each gets connections in proportion to its weight; two choices see all of a pool often
    enough that none is more than two over or under.
    """
    snapshot = pool("power-of-two-choices", backend("a", 6), backend("b", 3), backend("c", 1))
    model = Model(snapshot, Random(8).random)
    for _ in range(200):
        model.claim()
    for name, weight in weights(snapshot).items():
        assert abs(model.in_flight[name] - 20 * weight) <= 2


def test_the_slow_one_gets_less_time() -> None:
    """64 clients, eight backends, one answers ten times slower. A backend's requests are in proportion to
    connections over latency, so even load means a tenth of the requests for the slow one: 1/71. Twice that is
    allowed, for two choices do not always see a better one. By turns it would get an eighth.
    """
    snapshot = pool("least-time", *[backend(f"b{n}") for n in range(8)])
    chance = Random(9)
    model = Model(snapshot, chance.random)
    line = Line(model)

    def ask() -> None:
        taken = model.claim()
        assert taken
        line.answer_after(taken, (0.1 if taken == "b0" else 0.01) * (0.5 + chance.random()))

    for _ in range(64):
        ask()
    for _ in range(20_000):
        line.step()
        ask()
    fast = [model.requests[f"b{n}"] for n in range(1, 8)]
    assert 0 < model.requests["b0"] < 2 / 71 * model.requests.total()
    # The fast ones are alike: within a tenth of each other's mean.
    assert max(fast) - min(fast) < 0.1 * sum(fast) / 7


def test_a_backend_that_was_slow_gets_another_chance() -> None:
    """A peak of 5 s fades below 10 ms after ten times ln 500 = 62 s without requests, to be seen again."""
    model = Model(pool("least-time", backend("a"), backend("b")), Random(10).random)
    for name, latency in (("a", 5.0), ("b", 0.01)):
        model.latency[name] = Latency(latency, 0.0)
    taken = Counter[str]()
    for second in range(1, 90):
        model.now = float(second)
        pick = model.claim()
        assert pick
        taken[pick] += 1
        model.release(pick, 0.01)
        if second == 50:
            assert taken == {"b": 50}
    assert taken["a"] > 5


def test_peak_ewma() -> None:
    latency = Latency(1.0, 0.0)
    latency.add(3.0, 0.0)
    assert latency.value == 3.0  # a peak at once
    latency.add(1.0, DECAY)
    assert latency.value == pytest.approx(1 + 2 / 2.718281828)
    assert latency.faded(2 * DECAY) == pytest.approx(latency.value / 2.718281828)


@pytest.mark.parametrize("name", DRAWN)
def test_caps_hold_and_the_others_take_what_is_left(name: str) -> None:
    snapshot = pool(name, backend("a", 1000, 2), backend("b", 1, 3), backend("c", 1, 1), backend("d", 1, 1))
    model = Model(snapshot, Random(11).random)
    assert [bool(model.claim()) for _ in range(8)] == [True] * 7 + [False]
    assert model.in_flight == {"a": 2, "b": 3, "c": 1, "d": 1}


@pytest.mark.parametrize("name", DRAWN)
def test_backends_come_and_go(name: str) -> None:
    """Only who is there is ever taken, and each stretch is shared by its weights (counted while idle)."""
    chance = Random(12)
    parts = cycle([1, 2, 5])
    model = Model(pool(name, backend("a")), chance.random)
    for version in range(2, 20):
        snapshot = pool(
            name,
            *[backend(each, next(parts)) for each in chance.sample("abcdefgh", chance.randint(1, 8))],
            version=version,
        )
        model.update(snapshot)
        model.latency = {each: Latency(0.1, 0.0) for each in snapshot.backends}
        seen: Counter[str] = Counter()
        for _ in range(500):
            taken = model.claim()
            assert taken
            seen[taken] += 1
            model.release(taken)
        close(seen, share(weights(snapshot)))
