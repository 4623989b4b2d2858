"""The scripts but `claim`, through their Python callers, and how they are loaded."""

from __future__ import annotations

import hashlib
import threading
from typing import Any, cast

import pytest
import redis

from lb.errors import StoreConflict
from lb.state import scripts as module
from lb.state.keys import PoolKeys
from lb.state.scripts import CLAIM_SHA, CLAIM_SOURCE, LeaseLost, Scripts, source
from tests.state.pool import Pool, put
from tests.state.servers import Server


def test_sources_are_whole() -> None:
    assert "-- @include" not in CLAIM_SOURCE
    assert "local function entry(" in CLAIM_SOURCE
    assert CLAIM_SOURCE.startswith("-- Gives connections back")
    assert hashlib.sha1(CLAIM_SOURCE.encode()).hexdigest() == CLAIM_SHA
    with pytest.raises(FileNotFoundError):
        source("no-such-script")


def test_the_server_knows_them_by_the_same_digest(client: redis.Redis) -> None:
    for script in (module.COMMIT, module.LEASE, module.BEAT, module.REAP, module.HOLD):
        assert client.script_load(script.text) in (script.sha, script.sha.encode())


def test_a_server_that_forgot_the_scripts_is_taught_again(pool: Pool) -> None:
    pool.client.script_flush()
    assert pool.commit([put("a")], algorithm="round-robin") == 1
    pool.client.script_flush()
    assert pool.scripts.lease(pool.keys, "w", "e", {}) == 1


# commit


def test_commit_counts_versions_and_refuses_an_old_one(pool: Pool, scripts: Scripts) -> None:
    keys = pool.keys
    assert scripts.commit(keys, 0, b"{}", [put("a")], order="turns") == 1
    assert scripts.commit(keys, 1, b"{}", [put("b")]) == 2
    for stale in (0, 1, 3):
        with pytest.raises(StoreConflict, match="at version 2, not at"):
            scripts.commit(keys, stale, b"{}", [put("c")], ["a"])
    assert set(pool.records()) == set(pool.order()) == {"a", "b"}
    assert pool.version() == 2


def test_commit_against_a_lost_pool_is_a_conflict(pool: Pool, scripts: Scripts) -> None:
    with pytest.raises(StoreConflict, match="at version 0, not at 7"):
        scripts.commit(pool.keys, 7, b"{}", [put("a")])


def test_commit_publishes_its_message(pool: Pool) -> None:
    pubsub: Any = pool.client.pubsub()  # type: ignore[no-untyped-call]
    pubsub.subscribe(pool.keys.changes)
    assert pubsub.get_message(timeout=5)["type"] == "subscribe"
    pool.scripts.commit(pool.keys, 0, b"what changed", [put("a")])
    message = pubsub.get_message(timeout=5)
    assert (message["channel"], message["data"]) == (pool.keys.changes.encode(), b"what changed")
    pubsub.close()


def test_commit_writes_and_removes_members(pool: Pool) -> None:
    pool.commit([put("a"), put("b", 3, 7)], settings=b"{1}", algorithm="least-connections")
    members = cast("dict[bytes, bytes]", pool.client.hgetall(pool.keys.members))
    assert members == {b"a": b'{"id":"a"}', b"b": b'{"id":"b"}'}
    assert pool.records()["b"][:4] == (0, 0, 3, 7)
    assert pool.client.hmget(pool.keys.state, "_settings", "_a") == [b"{1}", b"load"]
    pool.commit(delete=["a", "never-there"])
    assert pool.client.hkeys(pool.keys.members) == [b"b"]
    assert set(pool.records()) == set(pool.order()) == {"b"}
    # Settings and algorithm stay when none are given.
    assert pool.client.hmget(pool.keys.state, "_settings", "_a") == [b"{1}", b"load"]


def test_a_record_that_the_order_cannot_see_moves_nobody(pool: Pool) -> None:
    pool.make("least-connections", "ab")
    before = pool.order()
    pool.commit([put("a")])
    assert pool.order() == before


def test_a_new_cap_acts_at_once(pool: Pool) -> None:
    pool.make("round-robin", "ab")
    pool.claim(6)
    pool.commit([put("a", cap=3), put("b", cap=4)])
    assert list(pool.order()) == ["b"]
    assert pool.call(3)[1] == ["b", None, None]
    pool.commit([put("a", cap=5)])
    assert pool.call(3)[1] == ["a", "a", None]
    pool.commit([put("b", cap=0), put("a", cap=2)])
    assert pool.call(3, {"a": 2})[1] == ["b", "b", "b"]


def test_thousands_in_one_commit(pool: Pool) -> None:
    names = [f"b{n}" for n in range(5000)]
    assert pool.commit([put(name, 2, 3) for name in names], algorithm="weighted-round-robin") == 1
    assert set(pool.order()) == set(pool.records()) == set(names)
    pool.commit(algorithm="least-connections")
    assert len(pool.order()) == 5000
    pool.commit(delete=names[1:])
    assert list(pool.order()) == list(pool.records()) == ["b0"]


def test_of_two_writers_one_wins(shared_server: Server, pool: Pool) -> None:
    wins: list[int] = []

    def write(name: str) -> None:
        with shared_server.client() as client:
            mine = Pool(client)
            for _ in range(40):
                try:
                    wins.append(mine.commit([put(name)]))
                except StoreConflict:
                    continue

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wins) == list(range(1, pool.version() + 1))


# lease, beat, reap


def test_a_lease_is_made_what_the_worker_says(pool: Pool) -> None:
    pool.make("least-connections", "abc")
    pool.claim(6)
    assert pool.scripts.lease(pool.keys, "w", "e2", {"a": 5, "c": 2, "b": 0, "unknown": 1}) == 1
    assert pool.held() == {"a": 5, "c": 2, "unknown": 1}
    assert pool.in_flight() == {"a": 5, "c": 2, "unknown": 1}
    assert pool.claim(2, epoch="e2") == ["b", "b"]
    # A name that is unknown counts all the same: the pool may have been lost, and come back.
    pool.commit([put("unknown", cap=1)])
    assert "unknown" not in pool.order()
    pool.call(0, {"unknown": 1}, epoch="e2")
    assert "unknown" in pool.order()


def test_a_lease_opened_twice_counts_once(pool: Pool) -> None:
    pool.make("round-robin", "ab")
    for epoch in ("e1", "e2", "e2"):
        pool.scripts.lease(pool.keys, "w", epoch, {"a": 3})
        assert pool.in_flight() == {"a": 3}


def test_closing_gives_everything_back(pool: Pool) -> None:
    pool.make("round-robin", "ab", cap=2)
    pool.claim(4)
    pool.scripts.close(pool.keys, "w")
    assert pool.in_flight() == {}
    assert set(pool.order()) == {"a", "b"}
    assert not pool.client.exists(pool.keys.lease("w"), pool.keys.workers)


def test_an_epoch_is_needed(pool: Pool) -> None:
    with pytest.raises(ValueError, match="epoch"):
        pool.scripts.lease(pool.keys, "w", "", {})


def test_beats_count_for_the_living_only(pool: Pool) -> None:
    with pytest.raises(LeaseLost, match="the lease of w in pool p"):
        pool.scripts.beat(pool.keys, "w", "e")
    assert not pool.client.exists(pool.keys.workers)
    pool.make("round-robin", "ab")
    assert pool.scripts.beat(pool.keys, "w", "e") == 1
    pool.commit([put("c")])
    assert pool.scripts.beat(pool.keys, "w", "e") == 2
    with pytest.raises(LeaseLost):
        pool.scripts.beat(pool.keys, "w", "old")


def test_reaping_gives_back_once_and_only_the_dead(pool: Pool) -> None:
    pool.make("least-connections", "ab", cap=3)
    pool.claim(4)
    assert pool.scripts.reap(pool.keys, "w", 1000) is None
    assert pool.in_flight() == {"a": 2, "b": 2}
    assert pool.scripts.reap(pool.keys, "w", 0) == 4
    assert pool.scripts.reap(pool.keys, "w", 0) == 0
    assert pool.in_flight() == {}
    assert not pool.client.exists(pool.keys.lease("w"), pool.keys.workers)


def test_a_beat_makes_a_worker_young_again(pool: Pool) -> None:
    pool.make("round-robin", "a")
    pool.client.zadd(pool.keys.workers, {"w": 1000.0})
    pool.scripts.beat(pool.keys, "w", "e")
    assert pool.scripts.reap(pool.keys, "w", 5) is None
    pool.client.zadd(pool.keys.workers, {"w": 1000.0})
    assert pool.scripts.reap(pool.keys, "w", 5) == 0


def test_reapers_at_the_same_time_give_back_once(shared_server: Server, pool: Pool) -> None:
    pool.make("round-robin", "ab")
    pool.scripts.lease(pool.keys, "alive", "e", {"a": 7})
    pool.claim(10)
    given: list[int | None] = []

    def reap() -> None:
        with shared_server.client() as client:
            given.append(Scripts(client).reap(pool.keys, "w", 0))

    threads = [threading.Thread(target=reap) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(given, key=str) == [0, 0, 0, 0, 0, 10]
    assert pool.in_flight() == {"a": 7}


# hold


def test_a_lock_has_one_owner(client: redis.Redis, scripts: Scripts) -> None:
    assert scripts.hold("lock", "one", 60_000)
    assert not scripts.hold("lock", "two", 60_000)
    assert not scripts.hold("lock", "two", 0)
    assert client.get("lock") == b"one"
    assert 0 < client.pttl("lock") <= 60_000
    assert scripts.hold("lock", "one", 90_000)
    assert client.pttl("lock") > 60_000
    assert scripts.hold("lock", "one", 0)
    assert scripts.hold("lock", "two", 60_000)


def test_all_keys_of_a_call_are_in_one_slot(client: redis.Redis) -> None:
    """A cluster serves a script only if its keys have one hash tag."""
    keys = PoolKeys("some.pool")
    names = [keys.state, keys.members, keys.order, keys.workers, keys.changes, keys.lease("host:1:x")]
    assert {name[name.index("{") : name.index("}") + 1] for name in names} == {"{some.pool}"}
