"""`redis/order.lua` as distributions: who gets how many picks, in which order, while the pool changes."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest

from tests.state.pool import Pool, put


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_round_robin_is_within_one_after_every_pick(pool: Pool, size: int) -> None:
    names = [f"b{n:03}" for n in range(size)]
    pool.make("round-robin", names)
    pool.scripts.lease(pool.keys, "x", "e", {})
    counts, chance = Counter(dict.fromkeys(names, 0)), random.Random(size)
    for _ in range(60):
        worker = chance.choice("wx")
        picks = pool.claim(chance.randint(1, 40), worker=worker)
        counts.update(picks)
        assert max(counts.values()) - min(counts.values()) <= 1
        pool.call(0, Counter(picks[::2]), worker=worker)


def test_round_robin_gives_each_its_turn_while_one_flaps(pool: Pool) -> None:
    """A cursor over a list of who is available repeats some and skips others whenever the list changes."""
    pool.make("round-robin", "abcd")
    counts: Counter[str] = Counter()
    chance = random.Random(1)
    for step in range(200):
        pool.commit([put("d", available=step % 2 == 0)])
        counts.update(pool.claim(chance.randint(1, 3)))
        steady = [counts[name] for name in "abc"]
        assert max(steady) - min(steady) <= 1
    assert counts["d"] <= counts["a"] + 1


def test_round_robin_is_within_one_from_whenever_it_is_counted(pool: Pool) -> None:
    """Also from the middle of a round, right after somebody came whose name is or is not passed yet."""
    chance, names = random.Random(7), [f"b{n}" for n in range(8)]
    pool.make("round-robin", ["b4"])
    available = {"b4"}
    for _ in range(40):
        name = chance.choice(names)
        pool.commit([put(name, available=name not in available)])
        available ^= {name}
        picks = [pick for _ in range(9) for pick in pool.call(chance.randint(1, 3))[1] if pick]
        for first in range(min(len(picks), 8)):
            counts = Counter(dict.fromkeys(available, 0))
            for pick in picks[first:]:
                counts[pick] += 1
                assert max(counts.values()) - min(counts.values()) <= 1


def test_a_backend_that_was_away_does_not_catch_up(pool: Pool) -> None:
    pool.make("round-robin", "abc")
    pool.claim(3)
    pool.commit([put("c", available=False)])
    pool.claim(100)
    pool.commit([put("c")])
    assert Counter(pool.claim(30)) == {"a": 10, "b": 10, "c": 10}


def test_a_newcomer_does_not_catch_up(pool: Pool) -> None:
    pool.make("round-robin", "ab")
    pool.claim(1000)
    pool.commit([put("c")])
    assert Counter(pool.claim(30)) == {"a": 10, "b": 10, "c": 10}


def test_retries_do_not_make_a_newcomer_wait(pool: Pool) -> None:
    pool.make("round-robin", "abc")
    for _ in range(10):
        assert pool.call(1, exclude=[["a", "b"]])[1] == ["c"]
    pool.commit([put("d")])
    assert Counter(pool.claim(6)) == {"a": 2, "b": 2, "d": 2}


@pytest.mark.parametrize("algorithm", ["round-robin", "weighted-round-robin"])
def test_releases_below_a_cap_change_nobodys_turn(pool: Pool, algorithm: str) -> None:
    names = [f"b{n}" for n in range(10)]
    pool.commit([put(name, cap=5) for name in names], algorithm=algorithm)
    pool.scripts.lease(pool.keys, "w", "e", {})
    picks = []
    for _ in range(50):
        picks += pool.claim(1)
        pool.release(picks[-1])
    assert Counter(picks) == dict.fromkeys(names, 5)
    assert picks[:10] * 5 == picks


WEIGHTS = (
    {"a": 5, "b": 1, "c": 1},
    {"a": 3, "b": 2, "c": 1},
    {"a": 1000, "b": 999, "c": 1},
    {"a": 20, **{f"l{n}": 1 for n in range(20)}},
    {f"b{n}": n + 1 for n in range(12)},
)


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_weights_are_exact_over_each_cycle(pool: Pool, weights: dict[str, int]) -> None:
    pool.make("weighted-round-robin", weights)
    total = sum(weights.values())
    picks: list[str] = []
    while len(picks) < 4 * total:
        picks += pool.claim(128)
    for first in (0, 1, total // 3, total - 1):
        counts = Counter(picks[first : first + total])
        assert all(abs(counts[name] - weight) <= 1 for name, weight in weights.items())
    # After whole cycles from the start there is not even the one.
    assert Counter(picks[: 3 * total]) == {name: 3 * weight for name, weight in weights.items()}


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_weights_are_interleaved(pool: Pool, weights: dict[str, int]) -> None:
    """Between two picks of a backend the others get about what their weights say, never a burst."""
    pool.make("weighted-round-robin", weights)
    total = sum(weights.values())
    picks: list[str] = []
    while len(picks) < 3 * total:
        picks += pool.claim(100)
    for name, weight in weights.items():
        gaps = [
            after - before for before, after in pairwise(i for i, pick in enumerate(picks) if pick == name)
        ]
        # All others together deviate by one pick each at worst; spread by the golden ratio they deviate by
        # far less: the slack below would fail with everybody starting at the same point (20 in a row).
        slack = 3 + len(weights) ** 0.5
        assert max(gaps, default=0) <= total / weight + slack
        assert min(gaps, default=total) >= total / weight - slack


def test_light_backends_that_return_together_keep_apart(pool: Pool) -> None:
    weights = {"heavy": 20, **{f"l{n:02}": 1 for n in range(20)}}
    pool.make("weighted-round-robin", weights)
    pool.claim(50)
    for available in (False, True):
        pool.commit([put(name, available=available) for name in weights if name != "heavy"])
        pool.claim(205)
    picks = pool.claim(120)
    longest = max(len(run) for run in "".join("h" if p == "heavy" else "l" for p in picks).split("h"))
    assert longest <= 6


def test_a_new_weight_acts_at_once(pool: Pool) -> None:
    pool.make("weighted-round-robin", {"a": 1, "b": 1, **{f"c{n}": 1 for n in range(8)}})
    pool.claim(25)
    pool.commit([put("a", 90)])
    assert Counter(pool.claim(99))["a"] == pytest.approx(90, abs=2)
    pool.commit([put("a", 1)])
    assert Counter(pool.claim(100))["a"] == pytest.approx(10, abs=2)


def test_a_new_weight_does_not_wait_for_the_old_turn(pool: Pool) -> None:
    pool.make("weighted-round-robin", {"a": 1, **{f"c{n}": 100 for n in range(9)}})
    while "a" not in pool.claim(1):
        pass
    pool.commit([put("a", 100)])  # its turn would come in 900 picks
    assert Counter(pool.claim(100))["a"] == pytest.approx(10, abs=1)


def test_a_weight_that_grew_while_away_acts_at_once(pool: Pool) -> None:
    pool.make("weighted-round-robin", {"a": 1, **{f"c{n}": 1 for n in range(10)}})
    pool.claim(11)
    pool.commit([put("a", available=False)])
    pool.commit([put("a", 90)])
    assert Counter(pool.claim(100))["a"] == pytest.approx(90, abs=2)


def test_weight_zero_means_no_new_traffic(pool: Pool) -> None:
    pool.make("weighted-least-connections", {"a": 1, "b": 0})
    assert pool.claim(3) == ["a"] * 3
    assert list(pool.order()) == ["a"]


def test_least_connections_takes_the_least_and_rotates_ties(pool: Pool) -> None:
    pool.make("least-connections", "abc")
    # One at a time, each given back before the next: always a tie, and never the same one twice.
    picks = []
    for _ in range(30):
        picks += pool.claim(1)
        pool.release(picks[-1])
    assert Counter(picks) == {"a": 10, "b": 10, "c": 10}
    assert all(one != other for one, other in pairwise(picks))


def test_weighted_least_connections_fills_by_weight(pool: Pool) -> None:
    pool.make("weighted-least-connections", {"a": 1, "b": 2, "c": 7})
    pool.claim(100)
    assert pool.in_flight() == {"a": 10, "b": 20, "c": 70}


@pytest.mark.parametrize("algorithm", ["least-connections", "weighted-least-connections"])
def test_ties_go_on_rotating_when_the_count_of_turns_is_numbered_anew(pool: Pool, algorithm: str) -> None:
    pool.make(algorithm, {"a": 1, "b": 1, "c": 1, "d": 1000})
    pool.claim(40)
    held = pool.held()
    pool.client.hset(pool.keys.state, "_q", str(2**24 - 15))
    picks = []
    for _ in range(60):
        loads = {
            name: record.in_flight / (record.weight if algorithm.startswith("weighted") else 1)
            for name, record in pool.records().items()
        }
        (pick,) = pool.claim(1)
        assert loads[pick] == min(loads.values())
        picks.append(pick)
        pool.release(pick)
    assert pool.held() == held
    assert int(pool.client.hget(pool.keys.state, "_q") or 0) < 1000
    counts = Counter(picks)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_deadlines_are_taken_back_before_they_get_coarse(pool: Pool) -> None:
    weights = {"a": 3, "b": 2, "c": 1}
    pool.make("weighted-round-robin", weights)
    pool.commit([put("away", available=True)])
    pool.claim(14)
    pool.call(0, [("away", "1 0.1 0.1")])
    pool.commit([put("away", available=False)])
    before, far = pool.order(), 2**20 - 2
    pool.client.zadd(pool.keys.order, {name: score + far for name, score in before.items()})
    floor = float(pool.client.hget(pool.keys.state, "_f") or 0)
    pool.client.hset(pool.keys.state, "_f", repr(floor + far))
    picks = pool.claim(60)
    assert all(abs(Counter(picks)[name] - 10 * weight) <= 1 for name, weight in weights.items())
    assert all(score < 100 for score in pool.order().values())
    assert pool.client.hstrlen(pool.keys.state, "away") == 7 * 8  # its latency is still known
    pool.commit([put("away")])
    assert Counter(pool.claim(70))["away"] == pytest.approx(10, abs=1)


def test_a_new_algorithm_takes_over_with_all_counts(pool: Pool) -> None:
    weights = {"a": 1, "b": 2, "c": 3}
    pool.make("round-robin", weights)
    pool.claim(12)
    pool.commit(algorithm="weighted-least-connections")
    assert pool.in_flight() == {"a": 4, "b": 4, "c": 4}
    pool.claim(12)
    assert pool.in_flight() == {"a": 4, "b": 8, "c": 12}
    pool.commit(algorithm="weighted-round-robin")
    assert Counter(pool.claim(60)) == {"a": 10, "b": 20, "c": 30}
    pool.commit(algorithm="round-robin")
    assert Counter(pool.claim(30)) == {"a": 10, "b": 10, "c": 10}
    assert sum(pool.in_flight().values()) == sum(pool.held().values()) == 114


def test_scores_of_one_algorithm_are_forgotten_by_the_next(pool: Pool) -> None:
    pool.make("round-robin", "abc")
    pool.claim(300)
    # Two have left at a score of about 100; "c" is still away at the switch.
    pool.commit([put(name, available=False) for name in "ac"])
    pool.commit([put("a")])
    for algorithm in ("least-connections", "round-robin"):
        pool.commit(algorithm=algorithm)
    assert Counter(pool.claim(20)) == {"a": 10, "b": 10}
    pool.commit([put("c")])
    assert Counter(pool.claim(30)) == {"a": 10, "b": 10, "c": 10}
