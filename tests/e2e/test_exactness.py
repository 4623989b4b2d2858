"""Many workers, one turn: what each backend gets, and what that costs in calls to the store."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest

from tests.support.backends import Backend, Peer, ok
from tests.support.clients import Load, get
from tests.support.processes import Balancer, PlainBackend, System
from tests.support.run import eventually


def counted(backends: list[PlainBackend]) -> list[int]:
    """Requests that each backend says it has served."""
    return [sum(backend.counts().values()) for backend in backends]


def urls(backends: list[PlainBackend], *options: str) -> str:
    """As `LB_BACKENDS` has them, each with its options."""
    tails = options or ("",) * len(backends)
    return ",".join(backend.url + tail for backend, tail in zip(backends, tails, strict=True))


def is_over(balancers: list[Balancer], backends: list[PlainBackend], total: int) -> None:
    """What the store has counted is what the backends have, and nothing is claimed any more."""
    balancers[0].idle()
    by_name = {backend.id: count for backend, count in zip(backends, counted(backends), strict=True)}
    assert sum(by_name.values()) == total
    assert balancers[0].view.counts() == by_name


def test_two_machines_with_two_workers_each_take_exact_turns(system: System) -> None:
    store = system.store("redis")
    backends = [system.plain_backend() for _ in range(3)]
    balancers = [
        system.balancer(store=store.url, backends=urls(backends), workers=2, wait=False) for _ in range(2)
    ]
    for balancer in balancers:
        balancer.start()
    eventually(lambda: balancers[0].view.workers() == 4, "all four workers to join")
    load = Load([balancer.port for balancer in balancers], 64, "/x", total=6000).run()
    assert load.failures == []
    assert load.statuses == {200: 6000}
    assert counted(backends) == [2000, 2000, 2000]
    is_over(balancers, backends, 6000)
    # Workers of both took part; which one takes a connection is the kernel's affair.
    assert all(balancer.log for balancer in balancers)


@pytest.mark.parametrize("worker", ["gevent", "gthread"])
def test_an_odd_number_differs_by_one(system: System, worker: str) -> None:
    backends = [system.plain_backend() for _ in range(3)]
    balancer = system.balancer(backends=urls(backends), workers=2, worker=worker)
    load = Load([balancer.port], 16, total=1000).run()
    assert load.failures == []
    assert sorted(counted(backends)) == [333, 333, 334]
    is_over([balancer], backends, 1000)


def test_weights_are_met_exactly(system: System) -> None:
    backends = [system.plain_backend() for _ in range(3)]
    balancer = system.balancer(
        backends=urls(backends, ";weight=5", ";weight=2", ";weight=1"),
        workers=2,
        env={"LB_ALGORITHM": "weighted-round-robin"},
    )
    load = Load([balancer.port], 32, total=1600).run()
    assert load.failures == []
    for count, wanted in zip(counted(backends), [1000, 400, 200], strict=True):
        assert abs(count - wanted) <= 1
    is_over([balancer], backends, 1600)


def test_64_clients_cost_few_calls(system: System) -> None:
    backends = [system.plain_backend() for _ in range(2)]
    balancer = system.balancer(backends=urls(backends))
    calls: list[int] = []
    # There are 64 at once only while the clients get their turns, which they do not on a busy machine.
    while len(calls) < 4 and (not calls or calls[-1] > 0.25 * 3000):
        balancer.view.client.config_resetstat()
        load = Load([balancer.port], 64, total=3000).run()
        calls.append(balancer.view.script_calls())
        assert load.failures == []
    assert calls[-1] <= 0.25 * 3000, f"{calls} calls for 3,000 requests each"


def test_a_single_client_costs_one_call_a_request(system: System) -> None:
    """What a request gives back goes with what the next one takes."""
    backends = [system.plain_backend() for _ in range(2)]
    balancer = system.balancer(backends=urls(backends))
    balancer.view.client.config_resetstat()
    load = Load([balancer.port], 1, total=500).run()
    calls = balancer.view.script_calls()
    assert load.failures == []
    assert calls <= 1.5 * 500, f"{calls / 500:.2f} calls per request"
    is_over([balancer], backends, 500)


def test_a_cap_holds_over_all_workers(system: System) -> None:
    """Four workers, and never more than three connections to a backend."""
    most: Counter[int] = Counter()
    running: Counter[int] = Counter()
    lock = threading.Lock()

    def script(peer: Peer) -> None:
        while peer.read_request() is not None:
            with lock:
                running[peer.backend.port] += 1
                most[peer.backend.port] = max(most[peer.backend.port], running[peer.backend.port])
            time.sleep(0.02)  # a backend that takes its time
            with lock:
                running[peer.backend.port] -= 1
            peer.send(ok())

    with Backend(script) as first, Backend(script) as second:
        balancers = [
            system.balancer(
                store=store.url,
                backends=f"{first.url};max_connections=3,{second.url};max_connections=3",
                workers=2,
                env={"LB_ALGORITHM": "least-connections", "LB_QUEUE_SIZE": "0"},
            )
            for store in [system.store()]
            for _ in range(2)
        ]
        with Load([balancer.port for balancer in balancers], 24).running() as load:
            eventually(lambda: load.statuses[200] > 200 and load.statuses[503] > 20, "answers and refusals")
        assert set(load.statuses) == {200, 503}
        assert set(most.values()) == {3}
        balancers[0].idle()


def test_a_backend_that_is_killed_costs_no_get(system: System) -> None:
    """Without a health daemon, and with every request that was under way in it."""
    backends = [system.plain_backend() for _ in range(3)]
    balancer = system.balancer(backends=urls(backends), workers=2)
    with Load([balancer.port], 24).running() as load:
        eventually(lambda: load.done > 300, "the load")
        backends[1].kill()
        killed_at = load.done
        eventually(lambda: load.done > killed_at + 1500, "the load to go on")
    assert load.failures == []
    assert set(load.statuses) == {200}
    assert any("tried" in entry for entry in balancer.log)
    balancer.idle()


def test_a_backend_that_comes_back_gets_its_turns(system: System) -> None:
    backends = [system.plain_backend() for _ in range(2)]
    balancer = system.balancer(backends=urls(backends))
    port = backends[0].port
    backends[0].kill()
    assert [get(balancer.port).status for _ in range(6)] == [200] * 6
    backends[0] = system.plain_backend(port)

    def served() -> int:
        assert get(balancer.port).status == 200
        return counted(backends)[0]

    eventually(served, "the request that finds it there again")
    before = served()
    assert [get(balancer.port).status for _ in range(10)] == [200] * 10
    assert counted(backends)[0] == before + 5
    balancer.idle()
