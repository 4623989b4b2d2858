"""Decisions in a real store: found by their requests, forgotten in time, never more than so many."""

from __future__ import annotations

import random
from typing import cast

import msgspec

from lb.decision import Decision
from lb.settings import PoolConfig
from lb.state import decide
from lb.state.decisions import BATCH, find, recent, write
from lb.state.keys import PoolKeys
from lb.state.registry import Registry
from tests.support.run import eventually
from tests.test_decision import decision

KEYS = PoolKeys("p")


def pools(registry: Registry, *names: str) -> None:
    for name in names:
        registry.change(name, decide.declare(PoolConfig()))


def test_written_and_found(registry: Registry) -> None:
    pools(registry, "p", "q")
    write(registry, [decision("one"), decision("two", pool="q", status=502)], 60, 10)
    found = find(registry, "two")
    assert found == decision("two", pool="q", status=502)
    assert find(registry, "three") is None


def test_the_later_one_of_an_id_counts(registry: Registry) -> None:
    pools(registry, "p", "q")
    write(registry, [decision("one", time=2.0), decision("one", pool="q", time=1.0)], 60, 10)
    found = find(registry, "one")
    assert found is not None
    assert found.pool == "p"
    write(registry, [decision("one", time=3.0, status=404)], 60, 10)
    found = find(registry, "one")
    assert found is not None
    assert found.status == 404
    assert registry.client.zcard(KEYS.decided) == 1


def test_what_is_no_id_is_neither_written_nor_asked_for(registry: Registry) -> None:
    pools(registry, "p")
    for strange in ("", "a b", "x" * 129, "{p}:state", "a\nb"):
        write(registry, [decision(strange)], 60, 10)
        assert find(registry, strange) is None
    assert registry.client.exists(KEYS.decisions, KEYS.decided) == 0


def test_no_more_than_so_many(registry: Registry) -> None:
    pools(registry, "p")
    for first in range(0, 5 * BATCH, BATCH):
        write(registry, [decision(f"r{n}") for n in range(first, first + BATCH)], 60, 100)
        assert registry.client.hlen(KEYS.decisions) <= 100
    kept = recent(registry, ["p"])
    assert [one.id for one in kept] == [f"r{n}" for n in range(5 * BATCH - 1, 5 * BATCH - 101, -1)]
    assert registry.client.hlen(KEYS.decisions) == registry.client.zcard(KEYS.decided) == 100


def test_memory_of_the_store_is_flat(registry: Registry) -> None:
    """A hundred thousand, in batches as workers write them."""
    pools(registry, "p")
    raw = msgspec.json.encode(decision("r"))
    sizes = []
    for first in range(0, 100_000, 500):
        registry.scripts.keep_decisions(
            KEYS, [(f"r{n:09}", raw) for n in range(first, first + 500)], 60, 1000
        )
        if first in (2_000, 99_500):
            sizes.append(
                sum(
                    cast("int", registry.client.memory_usage(key, samples=0))
                    for key in (KEYS.decisions, KEYS.decided)
                )
            )
    assert registry.client.hlen(KEYS.decisions) == registry.client.zcard(KEYS.decided) == 1000
    assert sizes[1] < 1.5 * sizes[0]


def test_they_are_forgotten_in_time(registry: Registry) -> None:
    """Those of a pool where others are still written, and all of one where nobody writes any more."""
    pools(registry, "p", "q")
    write(registry, [decision("old"), decision("quiet", pool="q")], 1, 10)
    assert 0 < registry.client.ttl(KEYS.decisions) <= 2
    assert 0 < registry.client.ttl(KEYS.decided) <= 2

    def others() -> bool:
        write(registry, [decision("new")], 1, 10)
        return find(registry, "old") is None

    eventually(others, "the old one to be forgotten")
    assert find(registry, "new") is not None
    eventually(lambda: find(registry, "quiet") is None, "the quiet pool's to be forgotten")
    assert registry.client.exists(PoolKeys("q").decisions, PoolKeys("q").decided) == 0


def test_a_list_of_them(registry: Registry) -> None:
    pools(registry, "p", "q")
    found: list[Decision] = []
    chance = random.Random(5)
    for number in range(3 * BATCH):
        pool = chance.choice(("p", "q"))
        status, code = (503, "no_backend") if number % 40 == 0 else (200, "")
        found.append(decision(f"r{number}", pool=pool, time=float(number), status=status, code=code))
    write(registry, found, 60, 1000)
    assert recent(registry, ["p", "q"], most=50) == found[::-1][:50]
    assert recent(registry, ["q"], most=5) == [one for one in found[::-1] if one.pool == "q"][:5]
    bad_ones = [one for one in found[::-1] if one.failed]
    assert recent(registry, ["p", "q"], failed=True) == bad_ones
    assert recent(registry, ["p", "q"], failed=True, most=2) == bad_ones[:2]
    assert not any(one.failed for one in recent(registry, ["p", "q"], failed=False))
    assert recent(registry, []) == []


def test_one_that_another_version_wrote_is_left_out(registry: Registry) -> None:
    pools(registry, "p")
    write(registry, [decision("good")], 60, 10)
    registry.scripts.keep_decisions(KEYS, [("bad", b'{"id":1}')], 60, 10)
    assert find(registry, "bad") is None
    assert [one.id for one in recent(registry, ["p"])] == ["good"]
