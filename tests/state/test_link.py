"""The connection for claims, in a loop, on real servers: few calls, nobody waits for a store that is away."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
import redis
from gevent import get_hub

from lb.errors import StoreUnavailable
from lb.model import Backend, OutlierPolicy
from lb.settings import BackendSpec, PoolConfig
from lb.state import decide, outlier
from lb.state.claims import MAX_BATCH, Claims
from lb.state.green import GreenClaims, GreenRuntime
from lb.state.guard import FAILED, FINE, Event, Guard
from lb.state.keys import PoolKeys
from lb.state.lease import WorkerLease
from lb.state.link import RELEASE_DELAY, STALL, Link
from lb.state.registry import Registry
from lb.state.store import connect
from tests.state.pool import Pool
from tests.state.servers import Server
from tests.support.green import in_greenlet, until

NAMES = ("127.0.0.1:9001", "127.0.0.1:9002", "127.0.0.1:9003")

EJECTS = OutlierPolicy(enabled=True)


class Desk:
    """The claims of one worker in some pools, on one link, for greenlets."""

    def __init__(self, client: redis.Redis, *pools: str) -> None:
        self.runtime = GreenRuntime(get_hub())
        self.down: list[str] = []
        self.link = self.runtime.link(self._on_down)
        self.client = client
        self.claims: dict[str, Claims] = {}
        self.leases: dict[str, WorkerLease] = {}
        self.sources: dict[str, GreenClaims] = {}
        registry = Registry(client)
        self.gaps = 0
        for pool in pools:
            specs = tuple(BackendSpec(f"http://{name}") for name in NAMES)
            snapshot = registry.change(pool, decide.declare(PoolConfig(backends=specs, outlier=EJECTS)))
            link = self.link
            claims = Claims(
                PoolKeys(pool), "w", snapshot, link.schedule, link.release_soon, self._on_gap, link.wake
            )
            self.claims[pool] = claims
            self.leases[pool] = WorkerLease(registry.scripts, pool, "w")
            self.sources[pool] = self.runtime.source(claims)
        self.connect()

    def connect(self) -> None:
        in_greenlet(lambda: self.link.connect(self.client))
        for name, claims in self.claims.items():
            self.leases[name].open(claims.prepare())
            claims.begin(self.leases[name].epoch)

    def _on_gap(self, claims: Claims) -> None:
        self.gaps += 1

    def _on_down(self, why: str) -> None:
        self.down.append(why)
        for claims in self.claims.values():
            claims.fail()

    def get(self, pool: str = "p", *exclude: str) -> Backend | None:
        return in_greenlet(lambda: self.sources[pool].claim(exclude))

    def ask(self, count: int, pool: str = "p") -> list[gevent.Greenlet[[], Backend | None]]:
        return [gevent.spawn(self.sources[pool].claim) for _ in range(count)]


@pytest.fixture
def desk(client: redis.Redis) -> Iterator[Desk]:
    made = Desk(client, "p", "q")
    yield made
    made.link.close()
    assert made.link.up is False


@pytest.fixture
def own_desk(own_server: Server) -> Iterator[tuple[Desk, Server]]:
    """On a server that the test may stop or kill."""
    with own_server.client() as client:
        made = Desk(client, "p")
        yield made, own_server
        made.link.close()


def names(greenlets: list[gevent.Greenlet[[], Backend | None]]) -> list[str]:
    gevent.joinall(greenlets, timeout=20)
    found = [greenlet.value for greenlet in greenlets]
    assert None not in found
    return [backend.id for backend in found if backend]


def test_one_claim(desk: Desk) -> None:
    backend = desk.get()
    assert backend is not None
    assert backend.id in NAMES
    assert backend.url == f"http://{backend.id}"


def test_claims_of_one_turn_travel_in_one_call(desk: Desk) -> None:
    counts = Counter(names(desk.ask(90)))
    assert set(counts.values()) == {30}
    assert desk.claims["p"].calls == 1


def test_claims_gather_while_a_call_is_under_way(desk: Desk) -> None:
    """64 clients in a closed loop: far fewer calls than requests, and exact."""
    counts: Counter[str] = Counter()

    def client() -> None:
        for _ in range(30):
            backend = desk.sources["p"].claim()
            assert backend is not None
            counts[backend.id] += 1
            gevent.sleep(0)
            desk.sources["p"].release(backend.id)

    gevent.joinall([gevent.spawn(client) for _ in range(64)], timeout=20)
    assert set(counts.values()) == {640}
    assert desk.claims["p"].calls <= 0.25 * 1920
    assert desk.claims["p"].held.counts == {}


def test_more_than_fit_into_one_call(desk: Desk) -> None:
    counts = Counter(names(desk.ask(2 * MAX_BATCH + 44)))
    assert set(counts.values()) == {100}
    assert desk.claims["p"].calls == 3


def test_pools_share_the_link(desk: Desk) -> None:
    asked = desk.ask(30, "p"), desk.ask(60, "q")
    assert set(Counter(names(asked[0])).values()) == {10}
    assert set(Counter(names(asked[1])).values()) == {20}
    assert (desk.claims["p"].calls, desk.claims["q"].calls) == (1, 1)


def test_a_release_goes_out_soon_without_a_claim(desk: Desk, pool: Pool) -> None:
    for name in names(desk.ask(3)):
        desk.sources["p"].release(name)
    assert sum(pool.in_flight().values()) == 3
    began = time.monotonic()
    until(lambda: not pool.in_flight(), "the releases")
    assert time.monotonic() - began < RELEASE_DELAY + 0.2
    assert desk.claims["p"].calls == 2


def test_failures_go_with_what_they_give_back_and_claims_follow(desk: Desk, pool: Pool) -> None:
    def scripts() -> int:
        stats: Any = pool.client.info("commandstats")
        return int(stats["cmdstat_evalsha"]["calls"])

    told: list[Event] = []
    claims = desk.claims["p"]
    claims.guard = desk.sources["p"].guard = Guard(claims.snapshot, told.append)
    claims.guard.store_is(away=False)
    taken = names(desk.ask(18))
    bad = NAMES[0]
    before = scripts()
    for name in taken:
        desk.sources["p"].release(name) if name != bad else desk.sources["p"].blame(name, -1.0, FAILED)
    assert len(names(desk.ask(9))) == 9
    assert scripts() == before + 2
    assert sum(pool.in_flight().values()) == 9
    assert told == [Event(bad, "outlier", reason="6 failures in a row")]
    # Successes have a call of their own no more than ever.
    for name in claims.held.counts.copy():
        for _ in range(3):
            desk.sources["p"].blame(name, -1.0, FINE)
    until(lambda: not pool.in_flight(), "the releases")
    assert scripts() == before + 3


def test_a_probe_goes_out_by_itself(desk: Desk, pool: Pool) -> None:
    out = outlier.eject(NAMES[0], "why", Registry(pool.client).now() - 60)
    desk.claims["p"].update(Registry(pool.client).change("p", out))
    source = desk.sources["p"]
    asked = [gevent.spawn(lambda: source.probe(NAMES[0], None, False, "")) for _ in range(3)]
    others = names(desk.ask(4))
    assert Counter(names(asked))[NAMES[0]] == 1
    assert NAMES[0] not in others
    assert desk.claims["p"].calls == 4


def test_exclusions_and_none(desk: Desk) -> None:
    backend = desk.get("p", *NAMES[1:])
    assert backend is not None
    assert backend.id == NAMES[0]
    assert desk.get("p", *NAMES) is None


# A store that goes away.


def test_a_store_that_is_gone_is_no_reason_to_wait(own_desk: tuple[Desk, Server]) -> None:
    desk, server = own_desk
    desk.get()
    server.stop()
    until(lambda: desk.down, "the end of the connection to be seen")
    assert len(desk.down) == 1
    assert not desk.link.up
    began = time.monotonic()
    assert Counter(names(desk.ask(30))).keys() == set(NAMES)
    assert time.monotonic() - began < 0.5
    assert desk.claims["p"].local_picks == 30


def test_a_store_that_stops_answering_delays_nobody_for_long(own_desk: tuple[Desk, Server]) -> None:
    desk, server = own_desk
    server.send(signal.SIGSTOP)
    try:
        began = time.monotonic()
        first = desk.ask(40)
        gevent.sleep(0.1)
        second = desk.ask(40)
        assert len(names(first) + names(second)) == 80
        assert STALL < time.monotonic() - began < STALL * 1.25 + 0.3
        assert len(desk.down) == 1
        began = time.monotonic()
        names(desk.ask(40))
        assert time.monotonic() - began < 0.05 + 0.1
    finally:
        server.send(signal.SIGCONT)


def test_an_idle_link_does_not_stall(desk: Desk) -> None:
    desk.get()
    gevent.sleep(STALL * 1.5)
    assert desk.down == []
    assert desk.link.up


def test_a_store_that_forgot_the_script_is_away(desk: Desk) -> None:
    """Until `connect` has taught it again."""
    desk.client.script_flush()
    assert desk.get() is not None
    assert "NOSCRIPT" in desk.down[0]
    desk.connect()
    desk.get()
    assert len(desk.down) == 1
    assert desk.claims["p"].local_picks == 1


def test_back_after_an_outage(own_desk: tuple[Desk, Server]) -> None:
    desk, server = own_desk
    held = names(desk.ask(4))
    server.stop()
    until(lambda: desk.down, "the end of the connection to be seen")
    held += names(desk.ask(2))
    desk.sources["p"].release(held.pop(0))
    server.start()
    specs = tuple(BackendSpec(f"http://{name}") for name in NAMES)
    Registry(desk.client).change("p", decide.declare(PoolConfig(backends=specs)))
    desk.connect()
    assert Pool(desk.client).in_flight() == dict(Counter(held))
    assert desk.get() is not None
    assert desk.claims["p"].local_picks == 2


def test_nothing_to_connect_to(tmp_path: Path) -> None:
    link = Link(get_hub().loop, lambda why: None)
    with pytest.raises(StoreUnavailable):
        link.connect(connect(f"unix://{tmp_path}/none"))
    assert not link.up
    link.close()


# Who wakes whom.


@pytest.mark.parametrize("what", ["fail", "update"])
def test_whoever_wakes_a_waiting_request_goes_on_himself(desk: Desk, what: str) -> None:
    """Not only the loop says that the store is away, or has a newer view: greenlets do, which nobody would
    switch back to if they switched to another one."""
    claims = desk.claims["p"]
    if what == "update":
        specs = (BackendSpec("http://127.0.0.1:9009"),)
        newer = Registry(desk.client).change("p", decide.declare(PoolConfig(backends=specs)))
    asked = desk.ask(3)
    if what == "update":
        until(lambda: claims._unknown, "a pick that the snapshot does not have")
    else:
        gevent.sleep(0)
        assert claims.waiting

    def someone() -> str:
        if what == "update":
            claims.update(newer)
        else:
            claims.fail()
        gevent.sleep(0)
        return "went on"

    assert in_greenlet(someone, 5) == "went on"
    assert len(names(asked)) == 3
