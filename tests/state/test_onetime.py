"""`redis/once.lua`, and a worker's part in it: one of those who come at once begins, and nobody else."""

from __future__ import annotations

import threading
from collections import Counter
from typing import cast

import pytest
import redis

from lb.errors import StoreUnavailable
from lb.settings import IdempotencySettings
from lb.state.keys import PoolKeys
from lb.state.lease import LEASE
from lb.state.onetime import UNTOLD, Begun, Entries
from lb.state.registry import Registry
from lb.state.store import connect
from tests.state.servers import Server
from tests.support.run import eventually

KEYS = PoolKeys("p")
FIRST, OTHER = b"\0" * 31 + b"1", b"\xff\n" * 16


def entries(registry: Registry | None, worker: str = "w", **settings: float) -> Entries:
    known = IdempotencySettings(**settings)  # type: ignore[arg-type]
    return Entries("p", worker, known, lambda: registry)


def alive(registry: Registry, *workers: str) -> None:
    for worker in workers:
        registry.scripts.lease(KEYS, worker, "e", {})


def bytes_told(client: redis.Redis) -> int:
    return int(cast("bytes | None", client.hget(KEYS.once, "_bytes")) or 0)


def test_begun_answered_repeated(registry: Registry, client: redis.Redis) -> None:
    alive(registry, "w", "v")
    one, two = entries(registry), entries(registry, "v")
    begun, number = one.begin("k", FIRST)
    assert begun is Begun.YOURS
    for who in (one, two):
        assert who.begin("k", FIRST)[0] is Begun.RUNNING
        assert who.begin("k", OTHER)[0] is Begun.OTHER
    one.end("k", FIRST, number, b"HTTP\0\n\xff")
    for who in (one, two):
        assert who.begin("k", FIRST)[0] == b"HTTP\0\n\xff"
        assert who.begin("k", OTHER)[0] is Begun.OTHER
    assert two.begin("another", FIRST)[0] is Begun.YOURS
    assert 86400 - 5 < client.ttl(KEYS.once) <= 86401
    assert 86400 - 5 < client.ttl(KEYS.once_until) <= 86401


def test_what_was_not_carried_out_may_be_tried_again(registry: Registry, client: redis.Redis) -> None:
    alive(registry, "w")
    one = entries(registry)
    one.end("k", FIRST, one.begin("k", FIRST)[1], None)
    assert bytes_told(client) == 0
    assert one.begin("k", OTHER)[0] is Begun.YOURS


def test_an_answer_that_is_too_large(registry: Registry) -> None:
    alive(registry, "w")
    one = entries(registry)
    one.end("k", FIRST, one.begin("k", FIRST)[1], b"")
    assert one.begin("k", FIRST)[0] is Begun.NOT_KEPT
    assert one.begin("k", OTHER)[0] is Begun.OTHER


def test_who_takes_over_from_the_dead_is_not_overtaken(registry: Registry) -> None:
    alive(registry, "v")  # and w has never been, or not for long
    dead, taker = entries(registry), entries(registry, "v")
    number = dead.begin("k", FIRST)[1]
    begun, second = taker.begin("k", OTHER)
    assert begun is Begun.YOURS
    dead.end("k", FIRST, number, b"late")
    dead.end("k", FIRST, number, None)
    assert taker.begin("k", OTHER)[0] is Begun.RUNNING
    taker.end("k", OTHER, second, b"right")
    assert taker.begin("k", OTHER)[0] == b"right"


def test_who_has_been_silent_for_a_lease_counts_as_dead(registry: Registry, client: redis.Redis) -> None:
    alive(registry, "w", "v")
    first, other = entries(registry), entries(registry, "v")
    assert first.begin("k", FIRST)[0] is Begun.YOURS
    # Some seconds may pass until the script looks at its clock.
    client.zadd(KEYS.workers, {"w": registry.now() - LEASE + 4})
    assert other.begin("k", FIRST)[0] is Begun.RUNNING
    client.zadd(KEYS.workers, {"w": registry.now() - LEASE - 0.1})
    assert other.begin("k", FIRST)[0] is Begun.YOURS


def test_an_entry_is_forgotten_in_time(registry: Registry, client: redis.Redis) -> None:
    alive(registry, "w")
    one = entries(registry, ttl=0.2)
    one.end("k", FIRST, one.begin("k", FIRST)[1], b"answer")
    eventually(lambda: one.begin("k", OTHER)[0] is Begun.YOURS, "the answer to be forgotten")
    for number in range(200):
        one.end(f"k{number}", FIRST, one.begin(f"k{number}", FIRST)[1], b"answer")

    def swept() -> bool:
        one.end("z", FIRST, one.begin("z", FIRST)[1], None)
        return bytes_told(client) == 0

    eventually(swept, "all to be forgotten")
    assert client.zcard(KEYS.once_until) == 0
    assert client.hkeys(KEYS.once) in ([b"_bytes"], [])


def test_one_that_is_over_is_not_known_though_others_are_swept_first(registry: Registry) -> None:
    alive(registry, "w")
    one = entries(registry, ttl=2)
    for number in range(80):
        one.end(f"k{number}", FIRST, one.begin(f"k{number}", FIRST)[1], b"answer")
    over = registry.now() + 2
    eventually(lambda: registry.now() > over, "all to be over")
    assert one.begin("k79", OTHER)[0] is Begun.YOURS


def test_a_shorter_time_does_not_end_what_was_promised_for_longer(
    registry: Registry, client: redis.Redis
) -> None:
    alive(registry, "w")
    for ttl in (86400, 10):
        one = entries(registry, ttl=ttl)
        one.end(f"k{ttl}", FIRST, one.begin(f"k{ttl}", FIRST)[1], b"answer")
    for key in (KEYS.once, KEYS.once_until):
        assert client.ttl(key) > 80000


def test_memory_is_bounded(registry: Registry, client: redis.Redis) -> None:
    alive(registry, "w")
    one = entries(registry, memory=20_000)
    begun: Counter[object] = Counter()
    for number in range(100):
        found, turn = one.begin(f"k{number}", FIRST)
        begun[found] += 1
        if found is Begun.YOURS:
            one.end(f"k{number}", FIRST, turn, b"x" * 500)
        assert bytes_told(client) <= 20_000
    assert set(begun) == {Begun.YOURS, Begun.FULL}
    assert 15 < begun[Begun.YOURS] < 30
    # Nothing that was promised is given up for it.
    assert one.begin("k0", FIRST)[0] == b"x" * 500
    # An answer that does not fit any more is known to have been given.
    client.flushall()
    alive(registry, "w")
    one.end("large", FIRST, one.begin("large", FIRST)[1], b"x" * 30_000)
    assert one.begin("large", FIRST)[0] is Begun.NOT_KEPT


def test_who_takes_over_needs_no_more_room(registry: Registry) -> None:
    alive(registry, "v")
    dead, taker = entries(registry, memory=336), entries(registry, "v", memory=336)
    assert dead.begin("k", FIRST)[0] is Begun.YOURS
    assert taker.begin("another", FIRST)[0] is Begun.FULL
    assert taker.begin("k", FIRST)[0] is Begun.YOURS


def test_the_sum_is_exact(registry: Registry, client: redis.Redis) -> None:
    alive(registry, "w")
    one = entries(registry)
    for number in range(20):
        turn = one.begin(f"k{number}", FIRST)[1]
        if number % 3:
            one.end(f"k{number}", FIRST, turn, None if number % 3 == 1 else b"y" * number)
    known = cast("dict[bytes, bytes]", client.hgetall(KEYS.once))
    known.pop(b"_bytes")
    assert bytes_told(client) == sum(len(value) + 300 for value in known.values())
    assert len(known) == client.zcard(KEYS.once_until) == 13


def test_of_many_at_once_one_begins(shared_server: Server, client: redis.Redis) -> None:
    alive(Registry(client), *(f"w{number}" for number in range(8)))
    found: list[object] = []

    def run(number: int) -> None:
        with connect(shared_server.url) as own:
            mine = entries(Registry(own), f"w{number}")
            found.extend(mine.begin("k", FIRST)[0] for _ in range(20))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert Counter(found) == {Begun.YOURS: 1, Begun.RUNNING: 159}


def test_nothing_is_begun_while_the_store_is_away() -> None:
    with pytest.raises(StoreUnavailable):
        entries(None).begin("k", FIRST)


def test_what_could_not_be_told_is_told_later(registry: Registry, client: redis.Redis) -> None:
    alive(registry, "w")
    away: list[Registry | None] = [registry]
    one = Entries("p", "w", IdempotencySettings(), lambda: away[0])
    turns = [one.begin(f"k{number}", FIRST)[1] for number in range(UNTOLD + 5)]
    away[0] = None
    for number, turn in enumerate(turns):
        one.end(f"k{number}", FIRST, turn, None if number == 1 else b"answer")
    away[0] = registry
    assert one.begin("k0", FIRST)[0] is Begun.RUNNING
    one.beat(registry)
    assert one.begin("k0", FIRST)[0] == b"answer"
    assert one.begin("k1", FIRST)[0] is Begun.YOURS
    assert one.begin(f"k{UNTOLD}", FIRST)[0] is Begun.NOT_KEPT  # no more than so many answers are held
    client.config_resetstat()
    one.beat(registry)
    assert "cmdstat_evalsha" not in client.info("commandstats")  # it was told once
