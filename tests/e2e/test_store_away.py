"""The store stops, hangs or dies under load: no request fails, and the exact turn comes back by itself."""

from __future__ import annotations

import os
import signal
import time

import pytest

from lb.state.link import STALL
from tests.support.clients import Load, get
from tests.support.processes import Balancer, PlainBackend, System
from tests.support.run import eventually

KINDS = ["gevent", "gthread"]
SOON = 0.05
"""Seconds by which a store that hangs may delay a request, after the first. A busy machine delays some by
more, but whoever waits for the store waits for `STALL` seconds."""


def exact(balancer: Balancer, backends: list[PlainBackend]) -> None:
    """The next requests are spread exactly again, by all workers."""
    before = [sum(backend.counts().values()) for backend in backends]
    load = Load([balancer.port], 8, total=100 * len(backends)).run()
    assert load.failures == []
    gained = [sum(backend.counts().values()) - count for backend, count in zip(backends, before, strict=True)]
    assert max(gained) - min(gained) <= 1
    balancer.idle()


def all_back(balancer: Balancer) -> bool:
    """Has each of two workers that lost the store got it back? One without requests may not have noticed."""
    log = balancer.process.err
    return log.count("shared state in use") == 2 + log.count("shared state away")


@pytest.mark.parametrize("worker", KINDS)
def test_a_store_that_hangs(system: System, worker: str) -> None:
    store = system.store("redis")
    backends = [system.plain_backend() for _ in range(2)]
    balancer = system.balancer(
        store=store.url, backends=",".join(backend.url for backend in backends), workers=2, worker=worker
    )
    with Load([balancer.port], 12).running() as load:
        eventually(lambda: load.done > 200, "the load")
        store.send(signal.SIGSTOP)
        try:
            done = load.done
            eventually(lambda: load.done > done + 300, "requests to go on")
            # Each worker finds out by itself: what waited for it has ended when each client sends another.
            noticed = time.perf_counter()
            eventually(lambda: min(load.began) > noticed, "each client's next request")
            first = len(load.times)
            done = load.done
            began = time.monotonic()
            eventually(lambda: load.done > done + 300 and time.monotonic() - began > 1.5, "more requests")
            later = sorted(load.times[first:])
            assert later[len(later) * 9 // 10] < SOON
            assert later[-1] < STALL
        finally:
            store.send(signal.SIGCONT)
        eventually(lambda: balancer.readyz()["status"] == "ready", "the shared state to be in use again")
        done = load.done
        eventually(lambda: load.done > done + 200, "the load to go on")
    assert load.failures == []
    assert set(load.statuses) == {200}
    assert load.slowest < 2
    assert "shared state away" in balancer.process.err
    eventually(lambda: all_back(balancer), "the workers to be back")
    exact(balancer, backends)


@pytest.mark.parametrize("worker", KINDS)
def test_a_store_that_is_killed_and_comes_back_empty(system: System, worker: str) -> None:
    store = system.store()
    backends = [system.plain_backend() for _ in range(2)]
    balancer = system.balancer(
        store=store.url, backends=",".join(backend.url for backend in backends), workers=2, worker=worker
    )
    with Load([balancer.port], 12).running() as load:
        eventually(lambda: load.done > 200, "the load")
        store.stop()
        eventually(lambda: balancer.readyz()["status"] == "degraded", "it to be noticed")
        done = load.done
        eventually(lambda: load.done > done + 500, "requests to go on")
        store.start()
        eventually(lambda: all_back(balancer), "both workers to be back")
        eventually(lambda: balancer.readyz()["status"] == "ready", "it to be said")
    assert load.failures == []
    assert set(load.statuses) == {200}
    assert len(balancer.view.states()) == 2
    exact(balancer, backends)


def test_a_worker_that_was_stopped_counts_again(system: System) -> None:
    """Longer than its lease, as on a machine that was suspended."""
    backends = [system.plain_backend() for _ in range(2)]
    balancer = system.balancer(backends=",".join(backend.url for backend in backends), workers=2)
    (stopped, _) = balancer.worker_pids
    assert [get(balancer.port).status for _ in range(10)] == [200] * 10
    os.kill(stopped, signal.SIGSTOP)
    try:
        eventually(lambda: balancer.view.workers() == 1, "its lease to be reaped", 15)
    finally:
        os.kill(stopped, signal.SIGCONT)
    eventually(lambda: balancer.view.workers() == 2, "it to be back")
    exact(balancer, backends)
