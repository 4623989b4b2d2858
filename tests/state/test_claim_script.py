"""`redis/claim.lua`: batches, caps, exclusions, leases, and what a call costs the server."""

from __future__ import annotations

import random
import threading
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from lb.state.scripts import CLAIM_SOURCE
from tests.state.pool import LostError, Pool, put
from tests.state.servers import KINDS, Server

LEAST = ("least-connections", "weighted-least-connections")
TURNS = ("round-robin", "weighted-round-robin")


def test_an_empty_pool_has_nobody(pool: Pool) -> None:
    pool.scripts.lease(pool.keys, "w", "e", {})
    assert pool.call(2, exclude=[["a"]]) == (0, [None, None])
    assert pool.call(0) == (0, [])


def test_a_call_carries_the_version_and_counts_everywhere(pool: Pool) -> None:
    pool.make("round-robin", "ab")
    assert pool.call(3) == (1, ["a", "b", "a"])
    assert pool.in_flight() == pool.held() == {"a": 2, "b": 1}
    assert {name: record.requests for name, record in pool.records().items()} == {"a": 2, "b": 1}
    assert pool.call(1, {"a": 2}) == (1, ["b"])
    assert pool.in_flight() == pool.held() == {"b": 2}
    assert {name: record.requests for name, record in pool.records().items()} == {"a": 2, "b": 2}


def test_a_stale_epoch_does_nothing(pool: Pool) -> None:
    pool.make("round-robin", "ab")
    pool.claim(2)
    before = pool.client.dump(pool.keys.state), pool.client.dump(pool.keys.order)
    for epoch, worker in (("other", "w"), ("e", "nobody"), ("", "nobody")):
        with pytest.raises(LostError):
            pool.call(1, {"a": 1}, epoch=epoch, worker=worker)
    assert (pool.client.dump(pool.keys.state), pool.client.dump(pool.keys.order)) == before
    assert pool.held() == {"a": 1, "b": 1}


def test_a_release_of_what_nobody_knows_changes_nothing(pool: Pool) -> None:
    pool.make("least-connections", "ab")
    pool.claim(2)
    pool.call(0, {"unknown": 3})
    assert pool.in_flight() == {"a": 1, "b": 1}
    assert set(pool.records()) == {"a", "b"}
    pool.call(0, [("a", 1), ("b", 5)])
    assert pool.in_flight() == {}


def test_a_lease_does_not_grow_without_end(pool: Pool) -> None:
    """A call that says all that is held puts that in place of what has been written down so far."""

    def entries() -> int:
        return pool.client.llen(pool.keys.lease("w"))

    pool.make("round-robin", "abc")
    for _ in range(50):
        pool.release(*pool.claim(3))
    pool.claim(2)
    assert entries() > 100
    pool.call(4, {"a": 1}, whole={"b": 1})
    assert entries() == 3
    assert pool.held() == pool.in_flight() == {"a": 1, "b": 2, "c": 2}
    pool.call(0, {"a": 1, "b": 2, "c": 2}, whole={})
    assert entries() == 2
    assert pool.held() == pool.in_flight() == {}
    with pytest.raises(LostError):
        pool.call(1, epoch="other", whole={"a": 5})
    assert pool.held() == {}


def test_a_removed_backend_keeps_its_count_until_it_is_given_back(pool: Pool) -> None:
    pool.make("round-robin", "ab", cap=2)
    assert pool.claim(4) == ["a", "b", "a", "b"]
    pool.commit(delete=["a"])
    assert pool.in_flight() == {"a": 2, "b": 2}
    pool.release("a")
    assert pool.in_flight() == {"a": 1, "b": 2}
    # Back again, while one connection to it is open still: its cap counts that one.
    pool.commit([put("a", cap=2)])
    assert pool.call(2)[1] == ["a", None]
    pool.commit(delete=["a"])
    pool.call(0, {"a": 2})
    assert "a" not in pool.records()
    assert "a" not in pool.order()
    assert "a" not in pool.held()


def test_a_drained_backend_counts_down_and_stays_out(pool: Pool) -> None:
    for algorithm in (*TURNS, *LEAST):
        pool.client.flushdb()
        pool.make(algorithm, "ab", cap=2)
        pool.claim(4)
        pool.commit([put("a", cap=2, available=False)])
        assert pool.call(3, {"a": 2, "b": 1})[1] == ["b", None, None]
        assert list(pool.order()) == []
        pool.commit([put("a", cap=2)])
        assert pool.claim(2) == ["a", "a"]


@pytest.mark.parametrize("algorithm", [*TURNS, *LEAST])
def test_a_cap_is_reached_and_given_way_to(pool: Pool, algorithm: str) -> None:
    pool.make(algorithm, "abc", cap=2)
    assert Counter(pool.call(8)[1]) == {"a": 2, "b": 2, "c": 2, None: 2}
    assert pool.order() == {}
    # Releases come first: what they free is claimed in the same call.
    assert pool.call(2, {"b": 1})[1] == ["b", None]
    assert pool.in_flight() == {"a": 2, "b": 2, "c": 2}


def test_a_backend_at_its_cap_does_not_catch_up_afterwards(pool: Pool) -> None:
    pool.make("round-robin", "bc")
    pool.commit([put("a", cap=1)])
    assert "a" in pool.claim(3)
    pool.claim(40)
    counts: Counter[str] = Counter()
    for _ in range(30):
        pool.release("a")  # nor does it get a second turn for coming back at once
        counts.update(pool.claim(1))
    assert counts["a"] in (10, 11)
    assert abs(counts["b"] - counts["c"]) <= 1


def test_exclusions_belong_to_the_last_claims(pool: Pool) -> None:
    pool.make("round-robin", "abc")
    assert pool.call(3, exclude=[["b"], ["a", "b"]])[1] == ["a", "c", "c"]
    assert pool.call(1, exclude=[["a", "b", "c"]])[1] == [None]
    # What one had to pass over is there for the next: b is lowest all the time.
    assert pool.call(3, exclude=[["b"], ["a"], ["a", "c"]])[1] == ["a", "b", "b"]
    assert pool.in_flight() == pool.held() == {"a": 2, "b": 2, "c": 2}


def test_exclusions_reach_beyond_the_low_end(pool: Pool) -> None:
    names = [f"{n:03}" for n in range(50)]
    pool.make("least-connections", names)
    # The first forty are excluded for all: candidates must be read that far.
    assert pool.call(3, exclude=[names[:40]] * 3)[1] == ["040", "041", "042"]
    assert pool.claim(2) == ["000", "001"]


def test_a_retry_leaves_the_turns_of_others_alone(pool: Pool) -> None:
    pool.make("round-robin", "abcd")
    for _ in range(10):
        pool.call(1, exclude=[["a", "b"]])
    # c and d took five more turns each; the next ten go to a and b.
    assert Counter(pool.claim(10)) == {"a": 5, "b": 5}
    assert Counter(pool.claim(8)) == {"a": 2, "b": 2, "c": 2, "d": 2}


@pytest.mark.parametrize("claims", [1, 7, 128, 3000])
def test_big_batches_of_many_backends(pool: Pool, claims: int) -> None:
    names = [f"10.0.0.{n}:80" for n in range(2500)]
    pool.make("round-robin", names)
    picks = Counter(pool.claim(claims))
    assert set(picks.values()) <= {claims // 2500, claims // 2500 + 1}
    assert pool.in_flight() == pool.held() == picks
    pool.call(0, picks)
    assert pool.in_flight() == pool.held() == {}


@pytest.mark.parametrize("algorithm", [*TURNS, *LEAST])
def test_one_call_or_many_give_the_same_picks(pool: Pool, algorithm: str) -> None:
    """The heap inside a batch stands for the sorted set: whatever the batch, the picks are the same."""
    weights = {name: 1 + index % 3 for index, name in enumerate("abcdefg")}
    pool.make(algorithm, weights)
    one_by_one = [pool.claim(1)[0] for _ in range(60)]
    pool.client.flushdb()
    pool.make(algorithm, weights)
    chance, batched = random.Random(5), list[str]()
    while len(batched) < 60:
        batched += pool.claim(min(chance.randint(1, 20), 60 - len(batched)))
    assert batched == one_by_one


def commands(client: redis.Redis) -> Counter[str]:
    stats = cast("dict[str, dict[str, Any]]", client.info("commandstats"))
    return Counter(
        {name.removeprefix("cmdstat_").lower(): int(each["calls"]) for name, each in stats.items()}
    )


@pytest.mark.parametrize("algorithm", [*TURNS, *LEAST])
def test_commands_do_not_grow_with_the_batch(pool: Pool, algorithm: str) -> None:
    pool.make(algorithm, [f"10.0.0.{n}:80" for n in range(300)])
    wanted = {"evalsha": 1, "zrange": 1, "lindex": 1, "hmget": 1, "hset": 1, "zadd": 1, "rpush": 1}
    for claims in (1, 8, 128):
        held = pool.claim(claims)
        pool.client.config_resetstat()
        pool.call(claims, Counter(held))
        assert {name: n for name, n in commands(pool.client).items() if name in wanted} == wanted
        assert set(commands(pool.client)) <= {*wanted, "config|resetstat", "config", "info"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_turn_survives_the_server(kind: str, tmp_path: Path) -> None:
    """What a script did is written down as its effects, the time and the turn included."""
    server = Server(kind, tmp_path, durable=True)
    server.start()
    with server.client() as client:
        pool = Pool(client)
        pool.make("round-robin", "abc")
        pool.claim(4)
        workers = client.zrange(pool.keys.workers, 0, -1, withscores=True)
        server.stop()
        server.start()
        client.script_load(CLAIM_SOURCE)
        assert client.zrange(pool.keys.workers, 0, -1, withscores=True) == workers
        assert pool.in_flight() == pool.held() == {"a": 2, "b": 1, "c": 1}
        assert pool.claim(3) == ["b", "c", "a"]
    server.stop()


@pytest.mark.parametrize("algorithm", [*TURNS, *LEAST])
def test_a_cap_holds_against_many_at_once(shared_server: Server, pool: Pool, algorithm: str) -> None:
    cap, rounds = 3, 60
    pool.make(algorithm, "abcd", cap=cap)
    exceeded: list[dict[str, int]] = []

    def work(name: str) -> None:
        with shared_server.client() as client:
            mine = Pool(client)
            mine.scripts.lease(mine.keys, name, "e", {})
            chance, held = random.Random(name), list[str]()
            for _ in range(rounds):
                back = [held.pop() for _ in range(chance.randint(0, len(held)))]
                picks = mine.call(chance.randint(0, 5), Counter(back), worker=name)[1]
                held += [pick for pick in picks if pick]
                over = {each: n for each, n in mine.in_flight().items() if n > cap}
                if over:
                    exceeded.append(over)
            mine.scripts.close(mine.keys, name)

    threads = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert exceeded == []
    assert pool.in_flight() == {}
