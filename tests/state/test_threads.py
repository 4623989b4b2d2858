"""The same claims for threads, on real servers."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import redis

from lb.model import QueuePolicy, Snapshot
from lb.settings import BackendSpec, PoolConfig
from lb.state import decide
from lb.state.claims import Claims
from lb.state.fleet import Fleet
from lb.state.keys import PoolKeys
from lb.state.lease import WorkerLease
from lb.state.link import STALL
from lb.state.registry import Registry
from lb.state.store import connect
from lb.state.threads import ThreadRuntime, flush_log_forever
from tests.state.pool import Pool, stop
from tests.state.servers import Server
from tests.support.run import eventually

NAMES = ("127.0.0.1:9001", "127.0.0.1:9002", "127.0.0.1:9003")


class Desk:
    """The claims of one worker in the pool "p", for threads."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.registry = Registry(client)
        self.down: list[str] = []
        self.gaps = 0
        runtime = ThreadRuntime()
        link = self.link = runtime.link(self._on_down)
        snapshot = self.declare(*NAMES)
        self.claims = Claims(
            PoolKeys("p"), "w", snapshot, link.schedule, link.release_soon, self._on_gap, link.wake
        )
        self.source = runtime.source(self.claims)
        self.lease = WorkerLease(self.registry.scripts, "p", "w")
        link.connect(client)
        self.open()

    def declare(self, *names: str) -> Snapshot:
        specs = tuple(BackendSpec(f"http://{name}") for name in names)
        return self.registry.change("p", decide.declare(PoolConfig(backends=specs)))

    def open(self) -> None:
        with self.link.lock:
            self.lease.open(self.claims.prepare())
            self.claims.begin(self.lease.epoch)

    def refresh(self) -> None:
        snapshot = self.registry.load("p")
        with self.link.lock:
            self.claims.update(snapshot)

    def _on_gap(self, claims: Claims) -> None:
        self.gaps += 1

    def _on_down(self, why: str) -> None:
        self.down.append(why)
        self.claims.fail()

    def get(self, *exclude: str) -> str | None:
        backend = self.source.claim(exclude)
        return backend.id if backend else None


@pytest.fixture
def desk(client: redis.Redis) -> Iterator[Desk]:
    made = Desk(client)
    yield made
    made.link.close()


@pytest.fixture
def own_desk(own_server: Server) -> Iterator[tuple[Desk, Server]]:
    with own_server.client() as client:
        made = Desk(client)
        yield made, own_server
        made.link.close()


def at_once(count: int, action: Callable[[], object], seconds: float = 30) -> list[object]:
    """What `action` returns in that many threads."""
    results: list[object] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(action())
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
        assert not thread.is_alive(), f"still waiting after {seconds:g} s"
    if errors:
        raise errors[0]
    return results


def test_threads_share_an_exact_turn(desk: Desk, pool: Pool) -> None:
    counts: Counter[str | None] = Counter()

    def client() -> None:
        for _ in range(30):
            name = desk.get()
            counts[name] += 1
            assert name
            desk.source.release(name)

    at_once(12, client)
    assert counts == dict.fromkeys(NAMES, 120)
    assert desk.claims.held.counts == {}
    assert pool.in_flight() == {}


def test_a_release_goes_out_at_once(desk: Desk, pool: Pool) -> None:
    name = desk.get()
    assert pool.in_flight() == {name: 1}
    desk.source.release(str(name))
    assert pool.in_flight() == {}


def test_exclusions_and_none(desk: Desk) -> None:
    assert desk.get(*NAMES[1:]) == NAMES[0]
    assert desk.get(*NAMES) is None


def test_a_store_that_is_gone_is_no_reason_to_wait(own_desk: tuple[Desk, Server]) -> None:
    desk, server = own_desk
    server.stop()
    began = time.monotonic()
    assert set(at_once(9, desk.get)) == set(NAMES)
    assert time.monotonic() - began < 0.5
    assert len(desk.down) == 1
    assert not desk.link.up


def test_a_store_that_stops_answering_delays_nobody_for_long(own_desk: tuple[Desk, Server]) -> None:
    desk, server = own_desk
    server.send(signal.SIGSTOP)
    try:
        began = time.monotonic()
        at_once(20, desk.get)
        assert STALL <= time.monotonic() - began < STALL + 0.5
        began = time.monotonic()
        at_once(20, desk.get)
        assert time.monotonic() - began < 0.2
        assert len(desk.down) == 1
    finally:
        server.send(signal.SIGCONT)


def test_the_lease_may_be_opened_while_threads_claim(desk: Desk, pool: Pool) -> None:
    """Nobody falls back to picks of his own for it, and the books agree afterwards."""
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            name = desk.get()
            assert name
            desk.source.release(name)

    def maintain() -> None:
        for _ in range(60):
            desk.open()
        stop.set()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        clients = threading.Thread(target=at_once, args=(6, client), daemon=True)
        clients.start()
        maintain()
        clients.join(20)
    finally:
        sys.setswitchinterval(before)
    assert desk.claims.shared
    assert desk.claims.ready
    assert desk.claims.local_picks == 0
    assert desk.claims.held.counts == pool.in_flight() == pool.held("w") == {}


def test_a_pick_that_the_snapshot_does_not_have_waits_for_it(desk: Desk) -> None:
    desk.declare("127.0.0.1:9009")
    found: list[str | None] = []
    asking = threading.Thread(target=lambda: found.append(desk.get()), daemon=True)
    asking.start()
    eventually(lambda: desk.gaps, "the gap")
    spent = time.process_time()
    desk.refresh()
    asking.join(5)
    assert found == ["127.0.0.1:9009"]
    assert desk.claims.local_picks == 0
    assert time.process_time() - spent < 1


def test_nobody_waits_for_ever_for_a_snapshot(desk: Desk) -> None:
    desk.declare("127.0.0.1:9009")
    began, spent = time.monotonic(), time.process_time()
    assert desk.get() in NAMES  # what this process knows is the best there is
    assert time.monotonic() - began < STALL + 0.5
    assert time.process_time() - spent < STALL / 2, "it turned in circles"


def test_a_lease_that_was_lost_is_waited_for(desk: Desk, pool: Pool) -> None:
    pool.scripts.reap(desk.claims.keys, "w", -1.0)
    found: list[str | None] = []
    asking = threading.Thread(target=lambda: found.append(desk.get()), daemon=True)
    asking.start()
    eventually(lambda: desk.gaps, "the loss to be noticed")
    desk.open()
    asking.join(5)
    assert found[0] in NAMES
    assert desk.claims.local_picks == 0
    assert pool.in_flight() == {found[0]: 1}


def test_nobody_waits_for_ever_for_a_lease(desk: Desk, pool: Pool) -> None:
    pool.scripts.reap(desk.claims.keys, "w", -1.0)
    began = time.monotonic()
    assert desk.get() in NAMES
    assert time.monotonic() - began < STALL + 0.5
    desk.open()
    assert pool.in_flight() == desk.claims.held.counts


POOLS = ("p", "q")


class Site:
    """Two workers of a fleet with two pools, of one slot each. Nobody in the queue asks by himself."""

    def __init__(self, url: str) -> None:
        specs = tuple(BackendSpec(f"http://{name}", max_connections=1) for name in NAMES[:1])
        config = PoolConfig(backends=specs, queue=QueuePolicy(size=100, timeout=60))
        with connect(url) as client:
            for pool in POOLS:
                Registry(client).change(pool, decide.declare(config))
        self.fleets = [Fleet(url, dict.fromkeys(POOLS, config), worker, ThreadRuntime()) for worker in "vw"]
        for fleet in self.fleets:
            fleet.start()
        eventually(lambda: all(self._listens(fleet) for fleet in self.fleets), "them to listen")

    @staticmethod
    def _listens(fleet: Fleet) -> bool:
        return bool(fleet._listener.connected)

    def request(self, worker: int, pool: str) -> None:
        """Get a slot, however long that takes."""
        source = self.fleets[worker].claims_of(pool)
        assert (source.claim() or source.wait((), None, False, "", Waited())) is not None

    def release(self, worker: int, pool: str) -> None:
        self.fleets[worker].claims_of(pool).release(NAMES[0])


@dataclass
class Waited:
    """What the access log is told."""

    queued: float = 0.0


@pytest.fixture
def site(store_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr("lb.state.queue.POLL", 60.0)
    made = Site(store_url)
    yield made
    stop(*made.fleets)


def test_a_call_wakes_one_whom_it_is_about(site: Site, registry: Registry) -> None:
    """Not one who waits for another pool, and would not send it."""
    for pool in POOLS:
        site.request(0, pool)
    threads = []
    for number, pool in enumerate(("q", "q", "p", "q")):
        threads.append(threading.Thread(target=site.request, args=(1, pool), daemon=True))
        threads[-1].start()
        eventually(
            lambda: sum(registry.pool_status(each).queued for each in POOLS) == number + 1,
            "it to wait",
        )
    site.release(0, "p")
    threads[2].join(20)
    assert [thread.is_alive() for thread in threads] == [True, True, False, True]
    site.release(1, "p")
    for worker, thread in ((0, threads[0]), (1, threads[1]), (1, threads[3])):
        site.release(worker, "q")
        thread.join(20)
        assert not thread.is_alive()
    site.release(1, "q")


def test_no_call_is_lost_in_the_crowd(site: Site, registry: Registry) -> None:
    most = Counter[str]()
    running = Counter[str]()

    def client(number: int) -> None:
        worker, pool = number % 2, POOLS[number // 2 % 2]
        for _ in range(25):
            site.request(worker, pool)
            running[pool] += 1
            most[pool] = max(most[pool], running[pool])
            running[pool] -= 1
            site.release(worker, pool)

    numbers = iter(range(24))
    at_once(24, lambda: client(next(numbers)))
    assert most == dict.fromkeys(POOLS, 1)
    assert [registry.pool_status(pool).queued for pool in POOLS] == [0, 0]


def test_what_is_spawned_does_not_keep_the_process_alive() -> None:
    ran = threading.Event()
    thread = ThreadRuntime().spawn(ran.set)
    assert thread.daemon
    assert ran.wait(5)
    thread.join(5)


def test_the_log_is_flushed_again_and_again() -> None:
    flushed = threading.Semaphore(0)
    flush_log_forever(flushed.release, 0.05)
    for _ in range(3):
        assert flushed.acquire(timeout=5)
