"""The algorithms of a pool's claims, and which of them is next."""

from __future__ import annotations

from lb.model import Backend, Canary, PoolSettings, Snapshot
from lb.state.choice import Choice
from lb.state.wishes import CANARY, PLAIN, mark_of


def view(algorithm: str = "round-robin", canary: Canary | None = None, version: int = 1) -> Snapshot:
    backends = {n: Backend(id=n, url=f"http://{n}:1") for n in ("a", "b")}
    return Snapshot("p", version, PoolSettings(algorithm, canary=canary), backends)


def test_a_choice_follows_its_pool() -> None:
    choice = Choice(view(), {})
    assert (choice.special, choice.asks, choice.timed) == (False, False, False)
    assert choice.wish((), None, False, "") == PLAIN
    choice.update(view("least-time", version=2))
    assert (choice.special, choice.asks, choice.timed) == (True, False, True)
    choice.update(view("ip-hash", version=3))
    assert (choice.special, choice.asks, choice.timed) == (True, True, False)
    choice.update(view(version=4))
    assert not choice.special


def test_a_canary_has_its_share_and_its_mark() -> None:
    choice = Choice(view(canary=Canary("least-connections", 0.25)), {})
    assert [choice.canary_is_next() for _ in range(8)] == [False, False, False, True] * 2
    assert mark_of(choice.wish((), None, True, "")) == CANARY
    assert mark_of(choice.wish((), None, False, "")) == 0
    assert choice.picker(True)[0].name == "least-connections"
    choice.tally(True, False, 0.5)
    assert choice.tallies == {True: (1, 1, 0.5)}
    choice.update(view(version=2))
    assert not any(choice.canary_is_next() for _ in range(8))
    assert choice.wish((), None, True, "") == PLAIN


def test_alone_it_picks_by_what_this_process_holds() -> None:
    held = {"a": 3}
    choice = Choice(view("least-connections"), held)
    choice.begin()
    first = choice.pick(PLAIN)
    assert first is not None
    assert first.id == "b"
