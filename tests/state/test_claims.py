"""The books of claims: what the store is told, who gets what, and what is held, through every disturbance."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

import pytest
import redis
from msgspec.structs import replace

from lb.algorithms.request import HeadRequest
from lb.model import Backend
from lb.settings import BackendSpec, PoolConfig
from lb.state import decide
from lb.state.claims import MAX_BATCH, Claims
from lb.state.keys import PoolKeys
from lb.state.lease import WorkerLease
from lb.state.registry import Registry
from lb.state.scripts import CLAIM_SOURCE
from lb.state.wishes import Waiter
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

    def __init__(
        self, registry: Registry, worker: str = "w", pool: str = "p", connect: bool = True, zone: str = ""
    ) -> None:
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
            zone,
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

    def ask(self, *exclude: str, request: HeadRequest | None = None, canary: bool = False) -> Waits:
        waiter = Waits()
        pick = self.claims.claim(waiter, lambda: None, exclude, request, canary)
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

    def sent(self) -> list[str]:
        """One call to the store; what it said: claims, releases, whose claims, then each of them."""
        command = self.claims.batch()
        assert command is not None
        self.claims.settle(self.client.execute_command(*command))  # type: ignore[no-untyped-call]
        return [str(part) for part in command[command.index(self.lease.epoch) + 1 :]]

    def get(self, *exclude: str, request: HeadRequest | None = None) -> str | None:
        """One claim, at once."""
        waiter = self.ask(*exclude, request=request)
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
    assert desk.claims.held.counts == pool.held("w") == pool.in_flight()


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


# Algorithms that name candidates, that look at requests and times, and two side by side.


def wants(desk: Desk) -> tuple[bool, bool, bool]:
    """Is there more to a claim? Does it come with its request, and do releases come with times?"""
    return desk.claims.choice.special, desk.claims.choice.asks, desk.claims.choice.timed


def asking(client: str) -> HeadRequest:
    return HeadRequest(b"GET / HTTP/1.1\r\n", client, "/")


def test_candidates_travel_with_their_claims(registry: Registry, desk: Desk, pool: Pool) -> None:
    declare(registry, algorithm="random")
    desk.refresh()
    desk.ask()
    desk.ask(NAMES[1])
    claims, releases, whose, *wishes = desk.sent()
    assert (claims, releases, whose, len(wishes)) == ("2", "0", "", 2)
    rules, names, without = zip(*(wish.split("\t") for wish in wishes), strict=True)
    assert rules == ("f", "f")
    assert without == ("", NAMES[1])
    assert [sorted(each.split("\n")) for each in names] == [list(NAMES), [NAMES[0], NAMES[2]]]
    assert sum(desk.claims.held.counts.values()) == 2
    books_agree(desk, pool)


def test_a_request_says_where_it_belongs(registry: Registry, desk: Desk, pool: Pool) -> None:
    assert wants(desk) == (False, False, False)
    declare(registry, algorithm="ip-hash")
    desk.refresh()
    assert wants(desk) == (True, True, False)
    clients = [f"192.0.2.{number}" for number in range(40)]
    homes = {client: desk.get(request=asking(client)) for client in clients}
    assert set(homes.values()) == set(NAMES)
    assert {client: desk.get(request=asking(client)) for client in clients} == homes
    for client, home in homes.items():
        assert desk.get(str(home), request=asking(client)) not in (home, None)
    desk.claims.fail()  # and without the store it is the same place
    assert {client: desk.get(request=asking(client)) for client in clients} == homes
    desk.open()
    books_agree(desk, pool)


def test_times_travel_with_releases_where_somebody_wants_them(registry: Registry, desk: Desk) -> None:
    declare(registry, URLS[:1], "least-time")
    desk.refresh()
    assert wants(desk) == (True, False, True)
    for _ in range(5):
        desk.get()
    for took in (0.2, 0.4, -1.0):
        desk.claims.release(NAMES[0], took)
    assert desk.sent() == ["0", "1", "", NAMES[0], "3 0.300000 0.400000"]
    assert registry.client.hstrlen(PoolKeys("p").state, NAMES[0]) == 7 * 8
    desk.claims.release(NAMES[0])
    assert desk.sent() == ["0", "1", "", NAMES[0], "1"]
    declare(registry, URLS[:1], "random")
    desk.refresh()
    assert wants(desk) == (False, False, False)
    desk.claims.release(NAMES[0], 0.2)
    assert desk.sent() == ["0", "1", "", NAMES[0], "1"]


def try_out(desk: Desk, algorithm: str, share: float) -> None:
    desk.registry.change("p", decide.switch(algorithm, share))
    desk.refresh()


@pytest.mark.parametrize("share", [0.1, 0.25, 1 / 3, 0.07, 0.5, 0.999])
def test_the_share_of_a_canary_is_met_exactly(desk: Desk, share: float) -> None:
    assert not any(desk.claims.choice.canary_is_next() for _ in range(10))
    try_out(desk, "random", share)
    assert wants(desk) == (True, False, False)
    count = 0
    for number in range(1, 3001):
        count += desk.claims.choice.canary_is_next()
        assert abs(count - share * number) <= 1 + 1e-9, number
    try_out(desk, "random", 0)
    assert wants(desk) == (False, False, False)
    assert not any(desk.claims.choice.canary_is_next() for _ in range(10))


def test_a_call_serves_the_claims_of_one_of_the_two(desk: Desk, pool: Pool) -> None:
    try_out(desk, "least-connections", 0.5)
    waiters = [desk.ask(canary=bool(number % 2)) for number in range(6)]
    waiters += [desk.ask(NAMES[0], canary=True), desk.ask(NAMES[0])]
    assert desk.sent() == ["4", "0", "", f"\t\t{NAMES[0]}"]
    assert [len(waiter.picks) for waiter in waiters] == [1, 0, 1, 0, 1, 0, 0, 1]
    late = desk.ask()
    assert desk.sent() == ["4", "0", "c", f"\t\t{NAMES[0]}"]
    assert [len(waiter.picks) for waiter in waiters] == [1] * 8
    assert desk.sent() == ["1", "0", ""]
    assert late.got is not None
    assert [waiters[number].got for number in (0, 2, 4)] == list(NAMES)
    assert NAMES[0] not in (waiters[6].got, waiters[7].got)
    books_agree(desk, pool)


def test_a_canary_that_has_ended_meanwhile(desk: Desk, pool: Pool, registry: Registry) -> None:
    """The worker has not heard of it yet: its claims are served by the pool's own algorithm."""
    try_out(desk, "least-connections", 0.5)
    registry.change("p", decide.switch("least-connections", 0))
    waiters = [desk.ask(canary=True) for _ in range(3)]
    assert desk.sent() == ["3", "0", "c"]
    assert [waiter.got for waiter in waiters] == list(NAMES)
    assert desk.gaps == 1
    desk.refresh()
    desk.ask(canary=True)  # chosen for it before that, too
    assert desk.sent() == ["1", "0", ""]
    books_agree(desk, pool)


@pytest.mark.parametrize("algorithm", ["least-connections", "random"])
def test_claims_of_a_canary_without_the_store(desk: Desk, pool: Pool, algorithm: str) -> None:
    try_out(desk, algorithm, 0.5)
    waiting = desk.ask(canary=True)
    desk.claims.fail()
    later = desk.ask(NAMES[2], canary=True)
    assert waiting.got in NAMES
    assert later.got in NAMES[:2]
    desk.open()
    books_agree(desk, pool)


def test_what_became_of_requests_is_told_apart(desk: Desk) -> None:
    desk.claims.choice.tally(False, True, 1.0)
    assert desk.claims.choice.tallies == {}  # there is nothing to compare
    try_out(desk, "random", 0.5)
    for canary, ok, took in ((False, True, 0.5), (True, True, 0.25), (False, False, 1.5), (True, True, 0.5)):
        desk.claims.choice.tally(canary, ok, took)
    assert desk.claims.choice.tallies == {False: (2, 1, 2.0), True: (2, 0, 0.75)}


def test_a_lease_stays_short_and_right(desk: Desk, pool: Pool) -> None:
    """Now and then a call says all that is held, with what it gives back and takes itself besides."""
    longest = 0
    for number in range(300):
        waiters = [desk.ask() for _ in range(20)]
        desk.turn()
        for name in [waiter.got for waiter in waiters][: 20 - number % 2]:
            assert name is not None
            desk.claims.release(name)
        longest = max(longest, desk.client.llen(pool.keys.lease("w")))
        assert pool.held() == pool.in_flight()
    assert sum(desk.claims.held.counts.values()) == 150
    assert 20 < longest < 100
    desk.turn()
    books_agree(desk, pool)


def test_what_is_given_back_twice_is_given_back_once(desk: Desk, pool: Pool) -> None:
    name = desk.get()
    desk.get()
    assert name is not None
    desk.claims.release(name)
    desk.claims.release(name)
    desk.turn()
    assert sum(pool.in_flight().values()) == 1
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
    assert desk.claims.held.counts == dict.fromkeys(NAMES, 2)


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
    assert sum(desk.claims.held.counts.values()) == 1


def test_back_to_the_store_with_what_is_held(desk: Desk, pool: Pool) -> None:
    shared = [desk.get() for _ in range(2)]
    desk.claims.fail()
    local = [desk.get() for _ in range(3)]
    desk.claims.release(str(shared[0]))
    desk.claims.release(str(local[0]))
    held = dict(desk.claims.held.counts)
    assert sum(held.values()) == 3
    desk.open()
    books_agree(desk, pool)
    assert desk.claims.held.counts == held
    for name in [*held] * 3:
        if desk.claims.held.counts.get(name):
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
        assert sum(desk.claims.held.counts.values()) == len(held), step
    if not desk.claims.ready:
        desk.open()
    desk.turn()
    assert Counter(held) == desk.claims.held.counts
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
    for name, count in dict(desk.claims.held.counts).items():
        for _ in range(count):
            desk.claims.release(name)
    assert not desk.claims.held.counts
    assert claim() == NAMES[0]
