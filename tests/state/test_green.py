"""The shared state under gevent: claims wait in greenlets, and nothing else waits for them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import gevent
import pytest
import redis
from gevent import get_hub

from lb.model import Backend, PoolSettings, Snapshot
from lb.state.claims import MAX_BATCH, Claims
from lb.state.green import GreenClaims, GreenRuntime
from lb.state.keys import PoolKeys
from lb.state.link import Link
from tests.state.pool import EPOCH, Pool
from tests.support.green import in_greenlet, until

NAMES = ("a", "b", "c")


class Worker:
    """A worker's claims in the pool "p", as `lb.state.fleet` puts them together."""

    def __init__(self, client: redis.Redis) -> None:
        self.pool = Pool(client)
        self.pool.make("round-robin", NAMES)
        backends = {name: Backend(name, f"http://{name}:1") for name in NAMES}
        snapshot = Snapshot("p", self.pool.version(), PoolSettings(), backends)
        runtime = GreenRuntime(get_hub())
        self.link = runtime.link(self.down)
        self.claims = Claims(
            PoolKeys("p"),
            "w",
            snapshot,
            self.link.schedule,
            self.link.release_soon,
            lambda claims: None,
            self.link.wake,
        )
        self.source = runtime.source(self.claims)
        self.link.connect(client)
        self.claims.prepare()
        self.claims.begin(EPOCH)

    def down(self, why: str) -> None:
        """The store is away."""
        self.claims.fail()


@pytest.fixture
def worker(client: redis.Redis) -> Iterator[Worker]:
    made = Worker(client)
    yield made
    made.link.close()


def claim_at_once(source: GreenClaims, count: int) -> list[Backend | None]:
    """What as many greenlets get that claim in one turn of the loop."""

    def claims() -> list[Backend | None]:
        greenlets = [gevent.spawn(source.claim) for _ in range(count)]
        gevent.joinall(greenlets, timeout=20, raise_error=True)
        return [greenlet.value for greenlet in greenlets]

    return in_greenlet(claims)


def test_a_greenlet_waits_for_its_claim_while_others_run(worker: Worker) -> None:
    source = worker.source
    turns: list[str] = []

    def body() -> Backend | None:
        gevent.spawn(turns.append, "another greenlet ran")
        found = source.claim()
        turns.append("claimed")
        return found

    backend = in_greenlet(body)
    assert backend is not None
    assert backend.id in NAMES
    assert turns == ["another greenlet ran", "claimed"]


def test_greenlets_of_one_turn_share_a_call(worker: Worker) -> None:
    source, claims = worker.source, worker.claims
    before = claims.calls
    found = claim_at_once(source, 30)
    assert claims.calls == before + 1
    counts = [sum(1 for backend in found if backend and backend.id == name) for name in NAMES]
    assert counts == [10, 10, 10]
    assert worker.pool.in_flight() == dict.fromkeys(NAMES, 10)
    assert worker.pool.held() == dict.fromkeys(NAMES, 10)


def test_more_greenlets_than_a_call_may_carry(worker: Worker) -> None:
    count = 2 * MAX_BATCH + 3
    found = claim_at_once(worker.source, count)
    assert None not in found
    assert sum(worker.pool.in_flight().values()) == count


def test_what_is_excluded_is_not_claimed(worker: Worker) -> None:
    source = worker.source
    found = [in_greenlet(lambda: source.claim(("a", "c"))) for _ in range(3)]
    assert [backend and backend.id for backend in found] == ["b"] * 3
    assert in_greenlet(lambda: source.claim(NAMES)) is None


def test_a_release_reaches_the_store_by_itself(worker: Worker) -> None:
    source, pool = worker.source, worker.pool
    backend = in_greenlet(source.claim)
    assert backend is not None
    assert pool.in_flight() == {backend.id: 1}
    in_greenlet(lambda: source.release(backend.id))
    until(lambda: pool.in_flight() == {}, "the release")
    assert pool.held() == {}


def test_claims_go_on_without_the_store(worker: Worker) -> None:
    source, claims = worker.source, worker.claims

    def away() -> None:
        worker.link.close()
        worker.down("gone")

    in_greenlet(away)
    found = claim_at_once(source, 6)
    assert sorted(backend.id for backend in found if backend) == sorted(NAMES * 2)
    assert claims.local_picks == 6


def test_the_runtime_is_gevents() -> None:
    runtime = GreenRuntime(get_hub())
    event, done = runtime.event(), []
    assert isinstance(runtime.link(lambda why: None), Link)

    def body() -> None:
        event.wait(20)
        done.append(time.monotonic())

    began = time.monotonic()
    greenlet = runtime.spawn(body)
    assert not done, "spawn runs it beside the caller"
    get_hub().loop.run_callback(event.set)  # in the hub, where nothing may wait
    greenlet.join(20)
    assert done
    assert done[0] - began < 5
