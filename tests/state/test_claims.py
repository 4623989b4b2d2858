"""The books of claims: what the store is told, who gets what, and what is held, through every disturbance."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

import pytest
import redis
from msgspec.structs import replace

from lb.model import Backend
from lb.settings import BackendSpec, PoolConfig
from lb.state import decide
from lb.state.claims import MAX_BATCH, Claims, Waiter
from lb.state.keys import PoolKeys
from lb.state.lease import WorkerLease
from lb.state.registry import Registry
from lb.state.scripts import CLAIM_SOURCE
from tests.state.pool import Pool

URLS = tuple(f"http://127.0.0.1:{9001 + n}" for n in range(3))
NAMES = ("127.0.0.1:9001", "127.0.0.1:9002", "127.0.0.1:9003")


class Waits:
    """Somebody who waits for a pick."""

    def __init__(self) -> None:
        self.picks: list[Backend | None] = []

    def switch(self, pick: Backend | None, /) -> None:
        self.picks.append(pick)

    @property
    def got(self) -> str | None:
        (pick,) = self.picks
        return pick.id if pick else None


class Desk:
    """The claims of a worker on a real store, with a link that is turned by hand."""

    def __init__(self, registry: Registry, worker: str = "w", pool: str = "p", connect: bool = True) -> None:
        self.registry = registry
        self.client = registry.client
        self.scheduled = 0
        self.release_asked = 0
        self.gaps = 0
        self.claims = Claims(
            PoolKeys(pool),
            worker,
            registry.load(pool),
            self._schedule,
            self._release_soon,
            self._on_gap,
            self._wake,
        )
        self.lease = WorkerLease(registry.scripts, pool, worker)
        if connect:
            self.open()

    def _schedule(self, claims: Claims) -> None:
        self.scheduled += 1

    def _release_soon(self, claims: Claims) -> None:
        self.release_asked += 1

    def _on_gap(self, claims: Claims) -> None:
        self.gaps += 1

    def _wake(self, waiter: Waiter, pick: Backend | None) -> None:
        waiter.switch(pick)

    def open(self) -> None:
        self.lease.open(self.claims.prepare())
        self.claims.begin(self.lease.epoch)

    def refresh(self) -> None:
        self.claims.update(self.registry.load("p"))

    def ask(self, *exclude: str) -> Waits:
        waiter = Waits()
        pick = self.claims.claim(waiter, lambda: None, exclude)
        if not self.claims.shared:
            waiter.switch(pick)
        return waiter

    def turn(self) -> int:
        """One call to the store; the number of claims in it."""
        command = self.claims.batch()
        if command is None:
            return 0
        answer = self.client.execute_command(*command)  # type: ignore[no-untyped-call]
        self.claims.settle(answer)
        return len(answer) - 1

    def get(self, *exclude: str) -> str | None:
        """One claim, at once."""
        waiter = self.ask(*exclude)
        if self.claims.shared:
            self.turn()
        return waiter.got


def declare(
    registry: Registry, urls: Iterable[str] = URLS, algorithm: str = "round-robin", cap: int = 0
) -> None:
    specs = tuple(BackendSpec(url, max_connections=cap) for url in urls)
    registry.change("p", decide.declare(PoolConfig(algorithm, specs)))


@pytest.fixture
def desk(client: redis.Redis, registry: Registry) -> Desk:
    client.script_load(CLAIM_SOURCE)
    declare(registry)
    return Desk(registry)


def books_agree(desk: Desk, pool: Pool) -> None:
    """What the worker holds, what its lease says and what the pool counts are the same."""
    assert desk.claims.held == pool.held("w") == pool.in_flight()


def test_a_turn_serves_everybody_who_waits(desk: Desk, pool: Pool) -> None:
    waiters = [desk.ask() for _ in range(7)]
    assert desk.scheduled >= 1
    assert desk.turn() == 7
    assert [waiter.got for waiter in waiters] == [*NAMES, *NAMES, NAMES[0]]
    assert desk.turn() == 0
    books_agree(desk, pool)
    assert (desk.claims.calls, desk.claims.picks, desk.claims.local_picks) == (1, 7, 0)


def test_releases_travel_with_the_next_claims(desk: Desk, pool: Pool) -> None:
    for _ in range(3):
        desk.get()
    calls = desk.claims.calls
    desk.claims.release(NAMES[0])
    desk.claims.release(NAMES[1])
    assert desk.release_asked == 2
    desk.get()
    assert desk.claims.calls == calls + 1
    assert pool.in_flight() == {NAMES[0]: 1, NAMES[2]: 1}
    books_agree(desk, pool)


def test_releases_alone_go_too(desk: Desk, pool: Pool) -> None:
    desk.get()
    desk.claims.release(NAMES[0])
    desk.turn()
    assert pool.in_flight() == {}
    books_agree(desk, pool)


def test_a_turn_takes_no_more_than_so_many(desk: Desk) -> None:
    waiters = [desk.ask() for _ in range(2 * MAX_BATCH + 1)]
    assert [desk.turn(), desk.turn(), desk.turn(), desk.turn()] == [MAX_BATCH, MAX_BATCH, 1, 0]
    counts = Counter(waiter.got for waiter in waiters)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_nobody_gets_what_he_excludes(desk: Desk) -> None:
    plain, retry, other = desk.ask(), desk.ask(NAMES[0], NAMES[1]), desk.ask(NAMES[2])
    desk.turn()
    assert plain.got == NAMES[0]
    assert retry.got == NAMES[2]
    assert other.got in NAMES[:2]
    assert desk.get(*NAMES) is None


def test_none_when_all_are_full(registry: Registry, desk: Desk, pool: Pool) -> None:
    declare(registry, cap=1)
    desk.refresh()
    waiters = [desk.ask() for _ in range(4)]
    desk.turn()
    assert sorted(str(waiter.got) for waiter in waiters) == sorted([*NAMES, "None"])
    desk.claims.release(NAMES[1])
    assert desk.get() == NAMES[1]
    books_agree(desk, pool)


def test_workers_share_one_turn(registry: Registry, desk: Desk) -> None:
    other = Desk(registry, "w2")
    assert [one.get() for one in (desk, other, desk, other)] == [*NAMES, NAMES[0]]


# A newer view of the pool.


def test_a_changed_pool_is_noticed_at_the_next_claim(registry: Registry, desk: Desk) -> None:
    declare(registry, URLS[:2])
    assert desk.gaps == 0
    desk.get()
    assert desk.gaps == 1
    desk.refresh()
    desk.get()
    assert desk.gaps == 1


def test_a_pick_that_the_snapshot_does_not_have_waits_for_it(
    registry: Registry, desk: Desk, pool: Pool
) -> None:
    declare(registry, ["http://127.0.0.1:9009"])
    waiter = desk.ask()
    desk.turn()
    assert waiter.picks == []
    assert desk.gaps == 1
    desk.refresh()
    assert waiter.got == "127.0.0.1:9009"
    books_agree(desk, pool)


def test_one_that_is_gone_before_it_was_seen_is_given_back(
    registry: Registry, desk: Desk, pool: Pool
) -> None:
    declare(registry, ["http://127.0.0.1:9009", "http://127.0.0.1:9010"])
    waiter = desk.ask("127.0.0.1:9010")
    desk.turn()
    declare(registry, ["http://127.0.0.1:9010", "http://127.0.0.1:9011"])
    desk.refresh()
    assert waiter.picks == []
    desk.turn()
    assert waiter.got == "127.0.0.1:9011"  # and what was excluded still is
    books_agree(desk, pool)


def test_the_connections_of_a_backend_that_left_are_given_back(
    registry: Registry, desk: Desk, pool: Pool
) -> None:
    desk.get()
    declare(registry, URLS[1:])
    desk.refresh()
    assert pool.in_flight() == {NAMES[0]: 1}
    desk.claims.release(NAMES[0])
    desk.turn()
    assert pool.in_flight() == {}
    books_agree(desk, pool)


# Without the store.


def test_before_there_is_a_store_picks_are_made_from_the_configuration(
    registry: Registry, client: redis.Redis
) -> None:
    declare(registry)
    desk = Desk(registry, connect=False)
    picks = [desk.get() for _ in range(6)]
    assert set(picks[:3]) == set(NAMES)
    assert picks[3:] == picks[:3]
    assert desk.claims.local_picks == 6
    assert desk.claims.held == dict.fromkeys(NAMES, 2)


def test_when_the_store_fails_everybody_is_served_at_once(desk: Desk) -> None:
    flying, waiting = desk.ask(), desk.ask(NAMES[1])
    desk.claims.batch()  # sent, never answered
    later = desk.ask()
    desk.claims.fail()
    assert None not in {flying.got, waiting.got, later.got}
    assert waiting.got != NAMES[1]
    assert desk.get() in NAMES
    assert not desk.claims.shared


def test_a_pick_that_waited_for_the_snapshot_is_served_too(registry: Registry, desk: Desk) -> None:
    declare(registry, ["http://127.0.0.1:9009"])
    waiter = desk.ask(NAMES[0])
    desk.turn()
    desk.claims.fail()
    assert waiter.got in NAMES[1:]
    assert sum(desk.claims.held.values()) == 1


def test_back_to_the_store_with_what_is_held(desk: Desk, pool: Pool) -> None:
    shared = [desk.get() for _ in range(2)]
    desk.claims.fail()
    local = [desk.get() for _ in range(3)]
    desk.claims.release(str(shared[0]))
    desk.claims.release(str(local[0]))
    held = dict(desk.claims.held)
    assert sum(held.values()) == 3
    desk.open()
    books_agree(desk, pool)
    assert desk.claims.held == held
    for name in [*held] * 3:
        if desk.claims.held.get(name):
            desk.claims.release(name)
    desk.turn()
    assert pool.in_flight() == {}


def test_claims_wait_while_the_lease_is_opened(desk: Desk, pool: Pool) -> None:
    desk.get()
    held = desk.claims.prepare()
    waiter = desk.ask()
    desk.claims.release(NAMES[0])  # given back meanwhile: told afterwards
    assert desk.turn() == 0
    desk.lease.open(held)
    desk.claims.begin(desk.lease.epoch)
    assert pool.in_flight() == {NAMES[0]: 1}
    desk.turn()
    assert waiter.got
    books_agree(desk, pool)


def test_a_lease_that_was_lost_is_asked_for_and_nobody_is_forgotten(desk: Desk, pool: Pool) -> None:
    desk.get()
    pool.scripts.reap(desk.claims.keys, "w", -1.0)
    assert pool.in_flight() == {}
    waiters = [desk.ask(), desk.ask(NAMES[1])]
    desk.claims.release(NAMES[0])
    desk.turn()
    assert desk.gaps == 1
    assert not desk.claims.ready
    assert [waiter.picks for waiter in waiters] == [[], []]
    desk.open()
    desk.turn()
    assert [len(waiter.picks) for waiter in waiters] == [1, 1]
    assert waiters[1].got != NAMES[1]
    books_agree(desk, pool)


def test_a_call_that_is_late_finds_another_epoch(desk: Desk, pool: Pool) -> None:
    """It was sent before the lease was opened anew, and counts nothing."""
    waiter = desk.ask()
    command = desk.claims.batch()
    assert command is not None
    desk.claims.fail()
    local = waiter.got
    desk.open()
    assert desk.client.execute_command(*command) == [-1]  # type: ignore[no-untyped-call]
    assert pool.in_flight() == {local: 1}
    books_agree(desk, pool)


@pytest.mark.parametrize("algorithm", ["round-robin", "least-connections"])
def test_local_picks_follow_the_algorithm_of_the_newest_snapshot(
    registry: Registry, desk: Desk, algorithm: str
) -> None:
    declare(registry, URLS[:2], algorithm)
    desk.claims.fail()
    desk.refresh()
    picks = [desk.get() for _ in range(4)]
    assert Counter(picks) == {NAMES[0]: 2, NAMES[1]: 2}
    desk.claims.release(NAMES[0])
    desk.claims.release(NAMES[0])
    more = [desk.get(), desk.get()]
    assert set(more) == ({NAMES[0]} if algorithm == "least-connections" else set(NAMES[:2]))


def test_any_mixture_leaves_the_books_in_agreement(desk: Desk, pool: Pool, registry: Registry) -> None:
    """A long random life with outages: nothing is counted twice or forgotten."""
    chance = random.Random(7)
    held: list[str] = []
    for step in range(600):
        what = chance.random()
        if what < 0.5:
            name = desk.get(*chance.sample(NAMES, chance.choice((0, 0, 1, 2))))
            assert name is not None
            held.append(name)
        elif what < 0.9 and held:
            desk.claims.release(held.pop(chance.randrange(len(held))))
        elif what < 0.93:
            desk.claims.fail()
        elif what < 0.97 and not desk.claims.ready:
            desk.refresh()
            desk.open()
        elif what < 0.98:
            pool.scripts.reap(desk.claims.keys, "w", -1.0)
            if desk.claims.shared:
                desk.open()
        assert sum(desk.claims.held.values()) == len(held), step
    if not desk.claims.ready:
        desk.open()
    desk.turn()
    assert Counter(held) == desk.claims.held
    books_agree(desk, pool)


@pytest.mark.parametrize("shared", [True, False])
def test_a_request_that_all_others_failed_gets_a_backup(
    client: redis.Redis, registry: Registry, pool: Pool, shared: bool
) -> None:
    """Before anybody has found out that the others are down."""
    client.script_load(CLAIM_SOURCE)
    specs = [BackendSpec(url) for url in URLS]
    specs[1:] = [replace(spec, backup=True) for spec in specs[1:]]
    registry.change("p", decide.declare(PoolConfig(backends=tuple(specs))))
    desk = Desk(registry, connect=shared)

    def claim(*exclude: str) -> str | None:
        waiter = Waits()

        def switch() -> Backend | None:
            desk.turn()
            return waiter.picks.pop()

        pick = desk.claims.claim(waiter, switch, exclude)
        return pick.id if pick else None

    assert [claim(), claim()] == [NAMES[0], NAMES[0]]
    assert {claim(NAMES[0]), claim(NAMES[0])} == {NAMES[1], NAMES[2]}
    assert claim(NAMES[0], NAMES[1]) == NAMES[2]
    assert claim(*NAMES) is None
    if shared:
        books_agree(desk, pool)
    for name, count in dict(desk.claims.held).items():
        for _ in range(count):
            desk.claims.release(name)
    assert not desk.claims.held
    assert claim() == NAMES[0]
