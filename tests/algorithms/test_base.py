"""What algorithms are given."""

from __future__ import annotations

from random import Random

from lb.algorithms.base import Algorithm
from tests.algorithms.model import backend, pool

SNAPSHOT = pool(
    "round-robin",
    backend("z"),
    backend("down", health="down"),
    backend("checking", health="checking"),
    backend("drained", admin="drain"),
    backend("none", 0),
    backend("a", 3, health="up"),
)


def test_they_see_who_may_receive_traffic_in_one_order() -> None:
    chosen = Algorithm(SNAPSHOT)
    assert [each.id for each in chosen.available] == ["a", "z"]
    assert chosen.available is chosen.available
    assert chosen.settings is SNAPSHOT.settings


def test_without_more_they_leave_it_to_turns() -> None:
    chosen = Algorithm(SNAPSHOT)
    assert (chosen.order, chosen.rule, chosen.asks) == ("turns", None, False)
    assert list(chosen.candidates(None, Random(1).random)) == []
