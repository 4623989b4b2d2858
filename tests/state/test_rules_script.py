"""`redis/claim.lua`, claims with candidates: the rules, caps, and what is done when none of them is free."""

from __future__ import annotations

import math
import struct
from collections import Counter
from random import Random
from typing import Any

import pytest

from lb.state.scripts import Put
from tests.state.pool import Pool, put

BY_TURNS, BY_LOAD = "round-robin", "weighted-least-connections"


def ruled(pool: Pool, kind: str, candidates: str, count: int = 1, excluded: str = "") -> list[str | None]:
    """`count` claims in one call, all with the same candidates."""
    return pool.call(count, rules=[(kind, candidates, excluded)] * count)[1]


@pytest.mark.parametrize("algorithm", [BY_TURNS, BY_LOAD])
def test_the_first_that_is_free(pool: Pool, algorithm: str) -> None:
    pool.make(algorithm, "abcd")
    assert ruled(pool, "f", "cab", 3) == ["c", "c", "c"]
    pool.commit([put("c", available=False), put("a", cap=1)])
    assert ruled(pool, "f", "cab", 3) == ["a", "b", "b"]
    assert pool.in_flight() == pool.held() == {"a": 1, "b": 2, "c": 3}


def test_who_is_behind_a_free_candidate_is_not_read(pool: Pool) -> None:
    """And when somebody must be, all that are left are, in one step."""

    def reads() -> int:
        stats: Any = pool.client.info("commandstats")
        return int(stats["cmdstat_hmget"]["calls"])

    pool.make(BY_TURNS, "abcdefgh")
    pool.client.config_resetstat()
    assert ruled(pool, "f", "abcdefgh", 5) == ["a"] * 5
    assert reads() == 1
    pool.commit([put("a", cap=1), put("b", cap=2), put("e", cap=1)])
    pool.release(*"aaaa")
    pool.client.config_resetstat()
    wishes = [("f", "abc", ""), ("f", "bca", ""), ("f", "abe", ""), ("f", "ef", ""), ("f", "eg", "")]
    assert pool.call(5, rules=wishes)[1] == ["b", "b", "e", "f", "g"]
    assert reads() == 2


@pytest.mark.parametrize("algorithm", [BY_TURNS, BY_LOAD])
def test_without_a_free_candidate_it_goes_to_who_is_next(pool: Pool, algorithm: str) -> None:
    pool.make(algorithm, "abcd")
    pool.commit([put("c", cap=1), put("d", available=False)])
    picks = ruled(pool, "f", "dc", 4)
    assert picks[0] == "c"
    assert sorted(filter(None, picks[1:3])) == ["a", "b"]
    assert picks[3] in ("a", "b")
    assert ruled(pool, "f", "", 1) != ["c"]
    assert ruled(pool, "f", ["never-there"]) != [None]  # type: ignore[arg-type]
    assert ruled(pool, "f", "d", excluded="abc") == [None]


@pytest.mark.parametrize("algorithm", [BY_TURNS, BY_LOAD])
def test_caps_hold_and_who_was_full_comes_back(pool: Pool, algorithm: str) -> None:
    pool.make(algorithm, "ab", cap=2)
    assert Counter(ruled(pool, "f", "ab", 5)) == {"a": 2, "b": 2, None: 1}
    assert pool.order() == {}
    pool.release("a", "b")
    assert set(pool.order()) == {"a", "b"}
    assert ruled(pool, "f", "ba", 3) == ["b", "a", None]


def test_by_turns_candidates_take_nobody_elses_turn(pool: Pool) -> None:
    pool.make(BY_TURNS, "abc")
    assert pool.claim(2) == ["a", "b"]
    before = pool.order()
    ruled(pool, "f", "cba", 5)
    assert pool.order() == before
    assert pool.claim(4) == ["c", "a", "b", "c"]


def test_a_turn_is_kept_over_a_time_of_being_full(pool: Pool) -> None:
    pool.make(BY_TURNS, "abc")
    pool.commit([put("b", cap=1)])
    assert pool.claim() == ["a"]
    assert ruled(pool, "f", "b") == ["b"]
    pool.release("b")
    assert pool.claim(3) == ["b", "c", "a"]


def test_the_fewest_connections_over_weight(pool: Pool) -> None:
    pool.make(BY_TURNS, {"a": 1, "b": 2, "c": 1})
    assert ruled(pool, "l", "ab", 6) == ["a", "b", "b", "a", "b", "b"]
    assert ruled(pool, "l", "ac") == ["c"]
    pool.release("a", "a")
    assert ruled(pool, "l", "ba") == ["a"]


def test_plain_and_ruled_claims_in_one_call(pool: Pool) -> None:
    pool.make(BY_LOAD, "abc")
    picks = pool.call(5, rules=[("l", "ab", ""), ("f", "c", "")])[1]
    # Those with candidates first, then who is next by the loads that they left.
    assert picks[3:] == ["a", "c"]
    assert Counter(picks) == {"a": 2, "b": 2, "c": 1} or Counter(picks) == {"a": 2, "b": 1, "c": 2}
    assert max(pool.in_flight().values()) == 2


def took(pool: Pool, name: str, seconds: float, count: int = 1, longest: float | None = None) -> None:
    """Claim and give back: `name` took so long to answer."""
    ruled(pool, "f", name, count)
    pool.call(0, [(name, f"{count} {seconds} {seconds if longest is None else longest}")])


def test_the_least_time(pool: Pool) -> None:
    pool.make(BY_TURNS, "ab")
    took(pool, "a", 0.1)
    took(pool, "b", 0.03)
    # 0.03 x 1, 0.03 x 2, 0.03 x 3; then 0.1 x 1 is less than 0.03 x 4
    assert ruled(pool, "t", "ab", 4) == ["b", "b", "b", "a"]


def test_a_newcomer_is_tried_with_one_request(pool: Pool) -> None:
    pool.make(BY_TURNS, "ab")
    took(pool, "a", 0.1)
    assert ruled(pool, "t", "ab", 4) == ["b", "a", "a", "a"]


def test_a_peak_counts_at_once_and_what_is_better_slowly(pool: Pool) -> None:
    pool.make(BY_TURNS, "a")
    took(pool, "a", 0.01)
    took(pool, "a", 0.02, 10, longest=0.9)
    assert latency(pool, "a") == pytest.approx(0.9, rel=0.05)
    took(pool, "a", 0.001)
    assert latency(pool, "a") == pytest.approx(0.9, rel=0.1)


def latency(pool: Pool, name: str) -> float:
    packed: Any = pool.client.hget(pool.keys.state, name)
    *_, cost, _ = struct.unpack("<ddddddd", packed)
    return float(cost)


def test_latencies_are_forgotten_with_their_backend(pool: Pool) -> None:
    pool.make(BY_TURNS, "ab")
    took(pool, "a", 0.1)
    ruled(pool, "f", "b")
    took(pool, "b", 0.1)
    pool.commit(delete=["a", "b"])
    assert pool.client.hexists(pool.keys.state, "b")  # one connection is left
    pool.call(0, [("b", "1 0.1 0.1")])
    names: Any = pool.client.hkeys(pool.keys.state)
    assert not {b"a", b"b"} & set(names)


def test_latencies_outlive_what_changes_a_backend(pool: Pool) -> None:
    pool.make(BY_TURNS, "ab")
    took(pool, "a", 0.1)
    known = latency(pool, "a")
    pool.commit([put("a", weight=7, cap=3)])
    assert latency(pool, "a") == known
    assert pool.call(2)[1] != [None, None]
    assert latency(pool, "a") == known
    pool.release("a")
    assert latency(pool, "a") == known


def test_bounded_load(pool: Pool) -> None:
    """With factor 1.25 no candidate gets more than 1.25 times its share while another one is below."""
    names = "abcdefgh"
    pool.make(BY_TURNS, names)
    bound = 1.25 / len(names)
    for _ in range(200):
        pick = ruled(pool, f"b{bound}", names)[0]
        assert pick is not None
        total = sum(pool.in_flight().values())
        assert max(pool.in_flight().values()) <= math.ceil(bound * total)
    # The first ones of the list are as full as they may be.
    assert pool.in_flight()["a"] == math.ceil(bound * 200)


def test_bounded_load_follows_weights(pool: Pool) -> None:
    pool.make(BY_TURNS, {"a": 3, "b": 1})
    picks = Counter(ruled(pool, f"b{1 / 4}", "ab", 40))
    assert picks == {"a": 30, "b": 10}


def test_when_all_candidates_are_at_their_bound_it_goes_to_who_is_next(pool: Pool) -> None:
    pool.make(BY_LOAD, "abcd")
    assert Counter(ruled(pool, "b0", "ab", 8)) == dict.fromkeys("abcd", 2)


def test_the_total_follows_leases_and_the_dead(pool: Pool) -> None:
    def total() -> int:
        found: Any = pool.client.hget(pool.keys.state, "_t")
        return int(found or 0)

    pool.make(BY_TURNS, "abc")
    pool.claim(7)
    assert total() == 7
    pool.scripts.lease(pool.keys, "other", "e", {"a": 3, "gone": 1})
    assert total() == 11
    pool.scripts.reap(pool.keys, "w", 0)
    assert total() == 4
    pool.scripts.close(pool.keys, "other")
    assert total() == 0


def test_commands_do_not_grow_with_the_batch(pool: Pool) -> None:
    pool.make(BY_TURNS, [f"10.0.0.{n}:80" for n in range(300)])

    def commands(count: int) -> int:
        pool.client.config_resetstat()
        pool.call(
            count, rules=[("l", [f"10.0.0.{2 * n}:80", f"10.0.0.{2 * n + 1}:80"], "") for n in range(count)]
        )
        stats: Any = pool.client.info("commandstats")
        return sum(s["calls"] for name, s in stats.items() if "evalsha" not in name and "config" not in name)

    assert commands(100) == commands(1)


# Backups that stand by.


def standing_by(name: str, weight: int = 1, cap: int = 0) -> Put:
    return put(name, weight, cap, available=False)._replace(standby=True)


@pytest.mark.parametrize("algorithm", [BY_TURNS, BY_LOAD])
def test_who_stands_by_is_taken_by_its_own_rule_alone(pool: Pool, algorithm: str) -> None:
    pool.make(algorithm, "a")
    pool.commit([standing_by("b", 2), standing_by("c", 1, cap=2), put("d", available=False)])
    assert list(pool.order()) == ["a"]
    for kind in ("f", "l", "t", "b9"):
        assert ruled(pool, kind, "bcd") == ["a"]
    assert Counter(ruled(pool, "s", "bcd", 6)) == {"b": 4, "c": 2}
    assert ruled(pool, "s", "c", excluded="a") == [None]
    assert pool.in_flight() == pool.held() == {"a": 4, "b": 4, "c": 2}
    assert list(pool.order()) == ["a"]
    pool.release("c", "b", "b")
    assert ruled(pool, "s", "c", excluded="a") == ["c"]
    assert list(pool.order()) == ["a"]
    assert pool.records()["b"].in_flight == 2


@pytest.mark.parametrize("algorithm", [BY_TURNS, BY_LOAD])
def test_who_stood_by_serves_with_its_count_and_its_cap(pool: Pool, algorithm: str) -> None:
    pool.make(algorithm, "a")
    pool.commit([standing_by("b", cap=2)])
    assert ruled(pool, "s", "b") == ["b"]
    pool.commit([put("a", available=False), put("b", cap=2)])
    assert list(pool.order()) == ["b"]
    assert pool.call(2)[1] == ["b", None]
    pool.commit([put("a"), standing_by("b", cap=2)])
    pool.release("b", "b")
    assert list(pool.order()) == ["a"]
    assert pool.in_flight() == pool.held() == {}
    pool.commit(delete=["b"])
    assert "b" not in pool.records() or pool.records()["b"].in_flight == 0


# The client's own backend.

ORDERS = ("round-robin", "weighted-round-robin", "resource-based", "least-connections", BY_LOAD)


@pytest.mark.parametrize("algorithm", ORDERS)
def test_a_client_gets_its_own_backend(pool: Pool, algorithm: str) -> None:
    pool.make(algorithm, "abc")
    assert ruled(pool, "o", "b", 5) == ["b"] * 5
    assert pool.in_flight() == pool.held() == {"b": 5}
    for kind in ("of", "ol", "ot", "ob1.25"):
        assert ruled(pool, kind, "bac") == ["b"]
    # When that is full, or no member any more, the rule says who does.
    pool.commit([put("b", cap=9)])
    for kind in ("of", "ol", "ob9"):
        assert ruled(pool, kind, "bc") == ["c"]
    assert ruled(pool, "ot", "bca", excluded="b") == ["a"]
    pool.commit(delete=["b"])
    assert ruled(pool, "o", "b") != ["b"]
    assert ruled(pool, "o", "x") != [None]


def test_behind_the_own_backend_latencies_count(pool: Pool) -> None:
    pool.make(BY_TURNS, "abc")
    took(pool, "a", 0.1)
    took(pool, "b", 0.03)
    pool.commit([put("c", cap=1)])
    assert ruled(pool, "ot", "cab", 5) == ["c", "b", "b", "b", "a"]


def test_by_turns_clients_that_come_back_take_nobodys_turn(pool: Pool) -> None:
    pool.make(BY_TURNS, "abc")
    taken: list[str | None] = []
    for _ in range(4):
        assert pool.call(3, rules=[("o", "b", "")] * 2)[1][1:] == ["b", "b"]
        assert ruled(pool, "o", "b") == ["b"]
        taken += pool.claim(2)
    # One of each call of three, and two more: twelve new clients, four for each backend.
    assert Counter(pool.in_flight()) == {"a": 4, "b": 4 + 12, "c": 4}


@pytest.mark.parametrize("algorithm", ORDERS)
def test_a_drained_backend_serves_its_own_clients_only(pool: Pool, algorithm: str) -> None:
    pool.make(algorithm, "ab", cap=3)
    pool.commit([put("a", cap=3, available=False)])
    assert ruled(pool, "ol", "ab", 4) == ["a", "a", "a", "b"]
    assert list(pool.order()) == ["b"]
    pool.release("a")
    assert ruled(pool, "o", "a") == ["a"]
    assert list(pool.order()) == ["b"]
    pool.call(0, {"a": 2, "b": 1})
    # Back again: its cap counts what it has.
    pool.commit([put("a", cap=3)])
    assert sorted(filter(None, pool.call(6)[1])) == ["a", "a", "b", "b", "b"]
    pool.call(0, {"a": 3, "b": 3})
    assert pool.in_flight() == pool.held() == {}


@pytest.mark.parametrize("algorithm", ORDERS)
@pytest.mark.parametrize("canary", ["-", BY_LOAD])
def test_the_books_agree_whatever_comes(pool: Pool, algorithm: str, canary: str) -> None:
    chance = Random(f"{algorithm} {canary}")
    names = "abcd"
    members = dict.fromkeys(names, (1, 0, True))
    pool.make(algorithm, names)
    pool.commit(canary=canary)
    held: list[str] = []
    for _ in range(300):
        what = chance.random()
        if what < 0.1:
            name = chance.choice(names)
            members[name] = (chance.choice([1, 2, 5]), chance.choice([0, 2, 3]), chance.random() < 0.6)
            weight, cap, available = members[name]
            pool.commit([put(name, weight, cap, available)])
        chance.shuffle(held)
        count = chance.randrange(4)
        back, held = held[:count], held[count:]
        rules = [
            (chance.choice(["o", "of", "ol", "f"]), chance.sample(names, chance.choice([1, 2])), "")
            for _ in range(chance.randrange(3))
        ]
        plain = chance.randrange(2)
        before = pool.in_flight()
        half = canary != "-" and chance.random() < 0.5
        picks = pool.call(plain + len(rules), Counter(back), rules=rules, canary=half)[1]
        held += [pick for pick in picks if pick]
        assert pool.in_flight() == pool.held() == Counter(held)
        for name, (_, cap, available) in members.items():
            now = held.count(name)
            assert not cap or now <= max(cap, before.get(name, 0))
            assert (name in pool.order()) is (available and (not cap or now < cap)), name
        for pick, (kind, candidates, _) in zip(picks[plain:], rules, strict=True):
            if kind[0] == "o" and pick != candidates[0]:  # only if that was full
                _, cap, _ = members[candidates[0]]
                assert cap
                assert held.count(candidates[0]) >= cap
        assert all(members[pick][2] for pick in picks[:plain] if pick)
