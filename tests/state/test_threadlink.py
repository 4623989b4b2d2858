"""Calls to the store made by threads: one at a time, for all who have something to say, on real servers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic

from lb.state.link import STALL
from tests.state.pool import Pool
from tests.state.test_threads import NAMES, Desk, desk
from tests.support.run import eventually

__all__ = ["desk"]


def started(count: int, action: Callable[[], object]) -> list[threading.Thread]:
    """So many threads that do this."""
    threads = [threading.Thread(target=action, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def over(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_what_comes_during_a_call_goes_with_the_next(desk: Desk, pool: Pool) -> None:
    calls = desk.claims.calls
    desk.link.enter()
    threads = started(20, desk.get)
    eventually(lambda: len(desk.claims.waiting) == 20, "all to have come")
    assert desk.claims.calls == calls
    desk.link.leave()
    over(threads)
    assert desk.claims.calls == calls + 1
    assert sum(pool.in_flight().values()) == 20


def test_a_release_does_not_wait_for_a_call(desk: Desk, pool: Pool) -> None:
    name = str(desk.get())
    desk.link.enter()
    over(started(1, lambda: desk.source.release(name)))
    assert pool.in_flight() == {name: 1}
    desk.link.leave()
    assert pool.in_flight() == {}


def test_what_a_change_brings_about_is_sent_at_its_end(desk: Desk, pool: Pool) -> None:
    name = str(desk.get())
    with desk.link.lock:
        with desk.link.lock:
            desk.claims.release(name)
        assert pool.in_flight() == {name: 1}
    assert pool.in_flight() == {}
    with desk.link.calls:
        desk.claims.released[name] = 0
        desk.link.schedule(desk.claims)
        calls = desk.claims.calls
    assert desk.claims.calls == calls + 1


def test_the_store_is_not_blamed_for_a_wait_for_the_wire(desk: Desk) -> None:
    began = monotonic()
    desk.link.enter()
    threads = started(3, desk.get)
    eventually(lambda: monotonic() - began > 1.5 * STALL, "them to lose patience")
    desk.link.leave()
    over(threads)
    assert desk.claims.shared
    assert desk.claims.local_picks == 0
    assert sum(desk.claims.held.counts.values()) == 3


def test_a_call_that_breaks_lets_go_of_the_wire(desk: Desk) -> None:
    """Also when it was made in the name of others."""
    desk.link.enter()
    threads = started(3, desk.get)
    eventually(lambda: len(desk.claims.waiting) == 3, "them to have come")
    desk.link.close()
    desk.link.leave()
    over(threads)
    assert len(desk.down) == 1
    assert desk.claims.local_picks == 3
    assert desk.get() in NAMES
