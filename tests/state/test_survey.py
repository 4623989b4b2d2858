"""Pools at a glance: what the store has, or a worker knows, with pauses in between."""

from __future__ import annotations

import struct

import pytest
import redis

from lb.errors import StoreError
from lb.model import Backend, Breaker, OutlierPolicy, PoolSettings, Snapshot
from lb.state.decide import Change
from lb.state.keys import PoolKeys
from lb.state.pieces import PIECE
from lb.state.registry import Registry
from lb.state.survey import Row, Survey, ask, known

A = Backend("a", "http://a:80", breaker=Breaker(open=True, until=5.0, times=2, reason="why"))
B = Backend("b", "http://b:80", weight=3, max_connections=2, admin="drain")
SETTINGS = PoolSettings("least-connections", outlier=OutlierPolicy(enabled=True))


class Pauses:
    """Counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def test_what_the_store_has(registry: Registry, client: redis.Redis) -> None:
    registry.change("p", lambda _: Change(put=(B, A), settings=SETTINGS))
    registry.change("q", lambda _: Change(put=(B,), settings=PoolSettings()))
    # As `claim.lua` writes them; fields of its own stand beside them.
    keys = PoolKeys("p")
    client.hset(keys.state, "b", struct.pack("<ddddd", 7, 12345678901, 3, 2, 0))
    client.hset(keys.state, "_w", 4)
    pauses = Pauses()
    assert ask(registry, pauses) == [
        Survey(
            "p",
            "least-connections",
            4,
            [Row("a", 1, 0, "ejected", 2, 0, 0), Row("b", 3, 2, "drain", 0, 7, 12345678901)],
        ),
        Survey("q", "round-robin", 0, [Row("b", 3, 2, "drain", 0, 0, 0)]),
    ]
    assert pauses.count == 2  # once for each pool


def test_a_large_pool_is_taken_apart_in_pieces(registry: Registry) -> None:
    many = tuple(Backend(f"b{n:05}", f"http://b:{n + 1}") for n in range(2 * PIECE))
    registry.change("p", lambda _: Change(put=many, settings=SETTINGS))
    pauses = Pauses()
    (found,) = ask(registry, pauses)
    assert [row.id for row in found.rows] == [one.id for one in many]
    assert pauses.count == 1 + 2


def test_nothing_is_there_yet(registry: Registry) -> None:
    assert ask(registry, Pauses()) == []


@pytest.mark.parametrize("key", ["members", "state"])
def test_what_cannot_be_read_is_said(registry: Registry, client: redis.Redis, key: str) -> None:
    registry.change("p", lambda _: Change(put=(A,), settings=SETTINGS))
    client.hset(getattr(PoolKeys("p"), key), "a" if key == "members" else "_settings", "nonsense")
    with pytest.raises(StoreError, match="cannot be read"):
        ask(registry, Pauses())


def test_what_a_worker_knows() -> None:
    """No counts: they are the fleet's."""
    snapshot = Snapshot("p", 3, SETTINGS, {"b": B, "a": A})
    assert known([snapshot], Pauses()) == [
        Survey("p", "least-connections", None, [Row("a", 1, 0, "ejected", 2), Row("b", 3, 2, "drain", 0)])
    ]
