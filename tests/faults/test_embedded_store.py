"""The embedded store is killed: its master starts it again, with all that it knew."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack

import pytest

from tests.faults.pools import two_pools
from tests.faults.test_reload import KINDS, loads
from tests.support.backends import Backend, stall
from tests.support.clients import Client, Load, request
from tests.support.processes import Balancer, PlainBackend, System
from tests.support.run import alive, eventually


def kill_store(balancer: Balancer) -> None:
    """Kill -9 it, and wait until it is there again and whoever has missed it uses it."""

    def missing() -> int:
        log = balancer.process.err
        return log.count("shared state away") - log.count("shared state in use")

    killed, before = balancer.store_pid, missing()
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: "the embedded store had died" in balancer.process.err, "it to be noticed")
    eventually(lambda: balancer.store_pid != killed, "another store")
    eventually(lambda: missing() == before, "the workers to be back")


def exact(balancer: Balancer, backends: list[PlainBackend], load: int) -> None:
    """`load` more requests go round robin, and the cursor is where it was."""
    assert Load([balancer.port], 8, total=load, checked=True).run().failures == []
    balancer.idle()
    counts = balancer.view.counts()
    found = [counts[backend.id] for backend in backends]
    assert max(found) - min(found) <= 1, found


@pytest.mark.parametrize("worker", KINDS)
def test_it_is_killed(system: System, worker: str) -> None:
    backends = [system.plain_backend() for _ in range(3)]
    with Backend(stall) as stalled:
        balancer = system.balancer(
            config=two_pools((one.url for one in backends[:2]), "slow", stalled.url), workers=2, worker=worker
        )
        balancer.lb("backends", "add", backends[2].url)
        balancer.lb("algorithm", "set", "least-connections", "--pool", "slow")
        eventually(lambda: len(balancer.view.states()) == 3, "the new backend")
        exact(balancer, backends, 31)
        with Client(balancer.port) as client:
            client.send(request("GET", "/", host="slow.example"))
            eventually(lambda: balancer.view.in_flight("slow") == 1, "a request that lasts")
            before = balancer.view.counts()
            kill_store(balancer)
            # What was known is known: who there is, how to choose, how often each was chosen, who is at work.
            assert balancer.view.counts() == before
            assert set(balancer.view.states()) == {one.id for one in backends}
            assert balancer.view.registry.load("slow").settings.algorithm == "least-connections"
            assert balancer.view.in_flight("slow") == 1
            exact(balancer, backends, 31)  # from where it was: 62 in all are 21, 21 and 20
        stalled.hang_up()  # threads do not notice that a client has gone
        balancer.idle("slow")


@pytest.mark.parametrize("worker", KINDS)
def test_it_is_killed_under_load(system: System, worker: str) -> None:
    backends = [system.plain_backend() for _ in range(2)]
    balancer = system.balancer(backends=",".join(one.url for one in backends), workers=2, worker=worker)
    with ExitStack() as stack:
        kept, fresh = loads(stack, balancer)
        for _ in range(2):
            kept.more(100)
            fresh.more(100)
            kill_store(balancer)
            assert balancer.readyz()["status"] == "ready"
        kept.more(100)
        fresh.more(100)
    assert kept.failures == fresh.failures == []
    balancer.idle()
    store = balancer.store_pid
    assert balancer.stop() == 0
    assert not alive(store)


def test_it_is_killed_after_an_upgrade(system: System) -> None:
    """Its parent is gone: the new master sees to it."""
    backend = system.plain_backend()
    balancer = system.balancer(backends=backend.url, workers=2)
    balancer.upgrade()
    assert balancer.stop() == 0
    with ExitStack() as stack:
        kept, fresh = loads(stack, balancer)
        kept.more(50)
        kill_store(balancer)
        fresh.more(50)
    assert kept.failures == fresh.failures == []
    balancer.stop_successor()
