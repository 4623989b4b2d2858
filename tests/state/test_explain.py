"""Claims that are explained, on a real store: the same picks, the numbers of their instant, one call each."""

from __future__ import annotations

import random

import pytest

from lb.algorithms.request import HeadRequest
from lb.model import Backend
from lb.settings import BackendSpec, PoolConfig
from lb.state import decide
from lb.state.claims import Claims
from lb.state.explain import MAX_TOLD
from lb.state.registry import Registry
from lb.state.scripts import CLAIM_SHA, CLAIM_SOURCE, EXPLAIN_SHA, EXPLAIN_SOURCE
from lb.state.seen import Seen
from lb.state.wishes import EXPLAINED, PLAIN, marked
from tests.state.pool import Pool
from tests.state.test_claims import NAMES, Desk, Waits, declare


class Explained(Waits):
    """Somebody who waits for a pick, and for what it was made on."""

    def __init__(self, desk: Desk, *exclude: str, own: str = "", canary: bool = False) -> None:
        super().__init__()
        self.desk = desk
        self.pick, self.seen = desk.claims.explainer.explain(
            self, self._switch, exclude, HeadRequest(b"", "192.0.2.1", "/"), canary, own
        )

    def _switch(self) -> Backend | None:
        while not self.picks and self.desk.turn():
            pass
        return self.picks.pop()


@pytest.fixture
def desk(registry: Registry) -> Desk:
    for script in (CLAIM_SOURCE, EXPLAIN_SOURCE):
        registry.client.script_load(script)
    declare(registry, algorithm="least-connections")
    return Desk(registry)


def counts(seen: Seen) -> dict[str, int | None]:
    return {one.id: one.in_flight for one in seen.candidates}


def test_the_numbers_before_the_pick_and_after_the_releases(desk: Desk, pool: Pool) -> None:
    for _ in range(5):
        desk.get()
    desk.claims.release(NAMES[0])
    desk.claims.release(NAMES[0])
    one = Explained(desk)
    assert one.pick is not None
    assert one.pick.id == NAMES[0]
    assert counts(one.seen) == {NAMES[0]: 0, NAMES[1]: 2, NAMES[2]: 1}
    assert (one.seen.basis, one.seen.connections, one.seen.algorithm) == ("shared", 3, "least-connections")
    assert (
        desk.claims.held.counts
        == pool.held("w")
        == pool.in_flight()
        == {NAMES[0]: 1, NAMES[1]: 2, NAMES[2]: 1}
    )


@pytest.mark.parametrize("algorithm", ["round-robin", "weighted-round-robin", "least-connections", "random"])
def test_the_same_picks_as_those_of_others(registry: Registry, desk: Desk, algorithm: str) -> None:
    """With releases in between: a pool where every second claim is explained does as one where none is."""
    specs = tuple(BackendSpec(f"http://127.0.0.1:{9001 + n}", n + 1) for n in range(3))
    picks = []
    for explained in (False, True):
        registry.client.flushdb()
        registry.change("p", decide.declare(PoolConfig(algorithm, specs)))
        mine = Desk(registry)
        chance = random.Random(3)
        mine.claims.choice._picker._chance = chance.random
        found: list[str | None] = []
        held: list[str] = []
        for turn in range(200):
            if len(held) > 9 or (held and chance.random() < 0.4):
                mine.claims.release(held.pop(chance.randrange(len(held))))
            if explained and turn % 2:
                pick = Explained(mine).pick
                name = None if pick is None else pick.id
            else:
                name = mine.get()
            found.append(name)
            held += [name] if name else []
        picks.append(found)
    assert picks[0] == picks[1]


def test_it_travels_alone_when_its_turn_has_come(desk: Desk) -> None:
    waiters = [desk.ask() for _ in range(3)]
    calls, sent = desk.claims.calls, []
    explained = desk.claims.explainer

    def switch() -> Backend | None:
        waiters.append(desk.ask())
        while command := desk.claims.batch():
            sent.append((command[1], [len(waiter.picks) for waiter in waiters]))
            desk.claims.settle(desk.client.execute_command(*command))  # type: ignore[no-untyped-call]
        (pick,) = mine.picks
        return pick

    mine = Waits()
    pick, seen = explained.explain(mine, switch)
    assert pick is not None
    assert seen.basis == "shared"
    # Those of one kind go together, and the oldest claim says whose turn it is.
    assert sent == [(CLAIM_SHA, [0, 0, 0, 0]), (EXPLAIN_SHA, [1, 1, 1, 1])]
    assert desk.claims.calls == calls + 2


def test_canary_and_own(registry: Registry, desk: Desk) -> None:
    registry.change("p", decide.switch("random", 0.5))
    desk.refresh()
    one = Explained(desk, canary=True)
    assert (one.seen.algorithm, one.seen.canary, one.seen.rule) == ("random", True, "first")
    one = Explained(desk, own=NAMES[2])
    assert one.pick is not None
    assert one.pick.id == NAMES[2]
    assert (one.seen.algorithm, one.seen.candidates[0].named) == ("least-connections", 1)
    assert desk.claims.explainer.algorithm(True) == ("random", registry.version("p"))


def test_turns_latency_and_shares(registry: Registry, desk: Desk) -> None:
    specs = tuple(BackendSpec(f"http://127.0.0.1:{9001 + n}") for n in range(2))
    registry.change("q", decide.declare(PoolConfig("least-time", specs)))
    other = Desk(registry, pool="q")
    name = other.get()
    assert name is not None
    other.claims.release(name, 0.25)
    seen = Explained(other).seen
    latencies = {one.id: one.latency for one in seen.candidates}
    assert latencies.pop(name) == pytest.approx(0.25, rel=0.1)
    assert set(latencies.values()) == {None}
    assert all(one.turn is not None for one in seen.candidates)
    assert seen.rule == "least-time"


def test_a_retry_and_the_last_resort(registry: Registry, desk: Desk) -> None:
    specs = (BackendSpec("http://127.0.0.1:9001"), BackendSpec("http://127.0.0.1:9002", backup=True))
    registry.change("p", decide.declare(PoolConfig("round-robin", specs)))
    desk.refresh()
    one = Explained(desk, NAMES[0])
    assert one.pick is not None
    assert one.pick.id == NAMES[1]
    assert one.seen.rule == "last resort"
    assert {e.id: e.reason for e in one.seen.excluded} == {NAMES[0]: "tried"}
    nobody = Explained(desk, *NAMES[:2])
    assert nobody.pick is None
    assert {e.id: e.reason for e in nobody.seen.excluded} == {NAMES[0]: "tried", NAMES[1]: "tried"}


def test_a_lease_that_was_lost_costs_nothing(desk: Desk, pool: Pool) -> None:
    waiter = Waits()
    desk.claims.waiting.append((waiter, marked(EXPLAINED, PLAIN, "1")))
    desk.registry.scripts.lease(desk.claims.keys, "w", "another", {})
    desk.turn()
    assert waiter.picks == []
    assert pool.in_flight() == {}
    desk.open()
    desk.turn()
    assert waiter.got is not None


def test_without_the_store(desk: Desk) -> None:
    desk.claims.fail()
    one = Explained(desk)
    assert one.pick is not None
    assert (one.seen.basis, one.seen.candidates[0].id) == ("worker", one.pick.id)


def test_answers_that_nobody_takes_do_not_gather(desk: Desk) -> None:
    for number in range(3 * MAX_TOLD):
        desk.claims.explainer.told(marked(EXPLAINED, PLAIN, str(number)), [1, None])
    assert len(desk.claims.explainer._told) <= MAX_TOLD


def test_a_large_pool_costs_as_much_as_a_small_one(registry: Registry, desk: Desk) -> None:
    """Commands inside the call do not grow with the pool, nor does its answer."""
    sizes = []
    for count in (50, 2000):
        name = f"n{count}"
        specs = tuple(BackendSpec(f"http://127.0.0.1:{1000 + n}") for n in range(count))
        registry.change(name, decide.declare(PoolConfig("round-robin", specs)))
        mine: Claims = Desk(registry, pool=name).claims
        waiter = Waits()
        mine.waiting.append((waiter, marked(EXPLAINED, PLAIN, "1")))
        command = mine.batch()
        assert command is not None
        answer = registry.client.execute_command(*command)  # type: ignore[no-untyped-call]
        sizes.append((len(command), len(answer)))
    assert sizes[0] == sizes[1]
