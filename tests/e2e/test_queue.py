"""Requests that wait for a slot, in a running fleet: in order, bounded, never above the cap of a backend."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.state.keys import PoolKeys
from tests.support.backends import Backend, Peer, ok
from tests.support.certificates import Authority
from tests.support.clients import Client, Load, get, request
from tests.support.http2 import Client as Client2
from tests.support.processes import Balancer, System, refuses
from tests.support.run import eventually

KINDS = ["gevent", "gthread"]


class Held:
    """A backend that answers a request when the test says so, and knows the most it had at one time."""

    def __init__(self) -> None:
        self.backend = Backend(self._script)
        self.running = 0
        self.most = 0
        self._lock = threading.Lock()

    def _script(self, peer: Peer) -> None:
        while (found := peer.read_request()) is not None:
            with self._lock:
                self.running += 1
                self.most = max(self.most, self.running)
            if not found.target.startswith("/quick"):
                assert peer.backend.may_go_on.acquire(timeout=60)
            with self._lock:
                self.running -= 1
            peer.send(ok())

    @property
    def targets(self) -> list[str]:
        return [each.target for each in self.backend.requests]

    def answer(self, count: int = 1) -> None:
        """Answer so many requests."""
        self.backend.may_go_on.release(count)


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held()
    with made.backend:
        yield made
        made.answer(1000)


def queued(balancer: Balancer) -> int:
    return balancer.view.registry.pool_status("default").queued


def tickets(balancer: Balancer) -> int:
    return int(balancer.view.client.zcard(PoolKeys("default").queue))


def until_queued(balancer: Balancer, count: int) -> None:
    eventually(lambda: queued(balancer) == count, f"{count} to wait")


class Crowd:
    """Clients that have sent a request each and wait."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self.clients: list[Client] = []

    def send(self, port: int, target: str) -> Client:
        client = self._stack.enter_context(Client(port, timeout=60))
        client.send(request("GET", target))
        self.clients.append(client)
        return client


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    with contextlib.ExitStack() as stack:
        yield Crowd(stack)


def fleet(
    system: System, backends: str, worker: str = "gevent", size: int = 100, timeout: float = 60
) -> list[Balancer]:
    """Two gunicorns with two workers each, on one store."""
    store = system.store()
    env = {"LB_QUEUE_SIZE": str(size), "LB_QUEUE_TIMEOUT": str(timeout)}
    found = [
        system.balancer(store=store.url, backends=backends, workers=2, worker=worker, env=env, wait=False)
        for _ in range(2)
    ]
    for one in found:
        one.start()
    eventually(lambda: found[0].view.workers() == 4, "all four workers to join")
    return found


@pytest.mark.parametrize("worker", KINDS)
def test_first_come_first_served_over_the_fleet(
    system: System, held: Held, crowd: Crowd, worker: str
) -> None:
    """Each comes when the one before it is seen to wait, at whichever worker: then the order is exact."""
    balancers = fleet(system, f"{held.backend.url};max_connections=2", worker)
    for number in range(2):
        crowd.send(balancers[number].port, f"/slot{number}")
        eventually(lambda: held.running == number + 1, "a slot to be taken")
    wanted = []
    for number in range(16):
        wanted.append(f"/{number}")
        crowd.send(balancers[number % 2].port, wanted[-1])
        until_queued(balancers[0], number + 1)
    # One slot at a time, so that the backend sees the order.
    for number in range(16):
        held.answer()
        eventually(lambda: len(held.targets) == number + 3, "the next one to come")
    held.answer(2)
    assert [client.read_answer().status for client in crowd.clients] == [200] * 18
    assert held.targets[2:] == wanted
    assert held.most == 2
    assert tickets(balancers[0]) == queued(balancers[0]) == 0
    balancers[0].idle()
    for number, target in enumerate(wanted):
        assert balancers[number % 2].logged(target)["queued"] > 0
    assert "queued" not in balancers[0].logged("/slot0")


@pytest.mark.parametrize("worker", KINDS)
@pytest.mark.parametrize("algorithm", ["round-robin", "least-connections", "power-of-two-choices"])
def test_more_clients_than_slots(system: System, worker: str, algorithm: str) -> None:
    """Nobody fails, no cap is exceeded, nothing is left."""
    backends = [system.plain_backend(delay=0.01) for _ in range(2)]
    urls = ",".join(f"{each.url};max_connections=3" for each in backends)
    balancers = fleet(system, urls, worker)
    command = system.program("cli", "lb.cli", "algorithm", "set", algorithm, env=balancers[0].env)
    assert command.wait() == 0
    load = Load([one.port for one in balancers], 40, "/x", total=1200).run()
    assert load.failures == []
    assert [each.most()["/x"] for each in backends] == [3, 3]
    assert sum(each.counts()["/x"] for each in backends) == 1200
    balancers[0].idle()
    assert tickets(balancers[0]) == queued(balancers[0]) == 0


@pytest.mark.parametrize("worker", KINDS)
def test_a_full_queue_and_one_that_takes_too_long(
    system: System, held: Held, crowd: Crowd, worker: str
) -> None:
    balancers = fleet(system, f"{held.backend.url};max_connections=1", worker, size=2, timeout=1.2)
    crowd.send(balancers[0].port, "/slot")
    eventually(lambda: held.running == 1, "the slot to be taken")
    for number in range(2):
        crowd.send(balancers[number].port, f"/{number}")
    until_queued(balancers[0], 2)
    answer = get(balancers[1].port, "/full", "Accept: application/json")
    assert answer.status == 503
    assert answer.values("Retry-After") == ["2"]  # queue.timeout, rounded up
    assert json.loads(answer.body)["code"] == "queue_full"
    for client in crowd.clients[1:]:
        answer = client.read_answer()
        assert (answer.status, answer.values("Retry-After")) == (503, ["2"])
        assert b"queue_timeout" in answer.body
    eventually(lambda: tickets(balancers[0]) == queued(balancers[0]) == 0, "the queue to be empty")
    assert balancers[1].logged("/full")["code"] == "queue_full"
    assert balancers[0].logged("/0")["code"] == "queue_timeout"
    assert balancers[0].logged("/0")["queued"] >= 1.2
    # The slot is there for who comes then.
    held.answer()
    assert crowd.clients[0].read_answer().status == 200
    assert get(balancers[1].port, "/quick").status == 200
    assert held.most == 1


@pytest.mark.parametrize("worker", KINDS)
def test_a_worker_that_is_killed_leaves_no_tickets(
    system: System, held: Held, crowd: Crowd, worker: str
) -> None:
    """Those behind it are served when a slot is free, not when its lease has lapsed."""
    balancers = fleet(system, f"{held.backend.url};max_connections=1", worker)
    slot = crowd.send(balancers[1].port, "/slot")
    eventually(lambda: held.running == 1, "the slot to be taken")
    for number in range(3):
        crowd.send(balancers[0].port, f"/lost{number}")
        until_queued(balancers[0], number + 1)
    last = crowd.send(balancers[1].port, "/last")
    until_queued(balancers[0], 4)
    for pid in [pid for pid in balancers[0].worker_pids if pid != balancers[0].pid]:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: all(client.at_end() for client in crowd.clients[1:4]), "its clients to notice")
    held.answer()
    assert slot.read_answer().status == 200
    eventually(lambda: "/last" in held.targets, "the one behind them", 4)  # less than a lease
    assert held.targets == ["/slot", "/last"]
    eventually(lambda: tickets(balancers[1]) == queued(balancers[1]) == 0, "the queue to be empty")
    held.answer()
    assert last.read_answer().status == 200
    balancers[1].idle()


def test_a_client_that_goes_away_leaves_the_queue(system: System, held: Held, crowd: Crowd) -> None:
    balancers = fleet(system, f"{held.backend.url};max_connections=1")
    crowd.send(balancers[0].port, "/slot")
    eventually(lambda: held.running == 1, "the slot to be taken")
    gone = crowd.send(balancers[0].port, "/gone")
    until_queued(balancers[0], 1)
    crowd.send(balancers[1].port, "/stays")
    until_queued(balancers[0], 2)
    gone.reset()
    until_queued(balancers[0], 1)
    held.answer(2)
    assert crowd.clients[2].read_answer().status == 200
    assert held.targets == ["/slot", "/stays"]
    assert balancers[0].logged("/gone")["code"] == "client_gone"
    balancers[0].idle()


def test_a_balancer_that_stops_serves_who_waits(system: System, held: Held, crowd: Crowd) -> None:
    balancer = system.balancer(backends=f"{held.backend.url};max_connections=1", workers=2)
    crowd.send(balancer.port, "/slot")
    eventually(lambda: held.running == 1, "the slot to be taken")
    for number in range(3):
        crowd.send(balancer.port, f"/{number}")
    until_queued(balancer, 3)
    balancer.send(signal.SIGTERM)
    eventually(lambda: refuses(balancer.port), "it to be stopping")
    held.answer(4)
    assert [client.read_answer().status for client in crowd.clients] == [200] * 4
    assert balancer.process.wait() == 0


def test_streams_of_http2_wait_too(system: System, held: Held, tmp_path: Path, crowd: Crowd) -> None:
    """One of them is given up, the others get their answers."""
    authority = Authority(tmp_path)
    pair = authority.issue("localhost")
    env = {"LB_TLS_CERTIFICATE": str(pair.certificate), "LB_TLS_KEY": str(pair.key)}
    balancer = system.balancer(backends=f"{held.backend.url};max_connections=1", workers=2, env=env)
    context = authority.trust()
    context.set_alpn_protocols(["h2"])
    with Client2(balancer.port, context) as client:
        numbers = [client.start(path=f"/{number}") for number in range(4)]
        eventually(lambda: held.running == 1 and queued(balancer) == 3, "three to wait")
        waiting = [number for number in numbers if f"/{numbers.index(number)}" not in held.targets]
        client.reset(waiting[1])
        until_queued(balancer, 2)
        held.answer(3)
        for number in numbers:
            if number != waiting[1]:
                client.until(lambda: client.answer(number).over, "an answer")
                assert client.answer(number).status == 200
    assert len(held.targets) == 3
    balancer.idle()


@pytest.mark.parametrize("worker", KINDS)
def test_while_the_store_is_away_each_process_has_its_own_queue(
    system: System, held: Held, crowd: Crowd, worker: str
) -> None:
    store = system.store()
    env = {"LB_QUEUE_SIZE": "2", "LB_QUEUE_TIMEOUT": "60"}
    balancer = system.balancer(
        store=store.url, backends=f"{held.backend.url};max_connections=1", worker=worker, env=env
    )
    crowd.send(balancer.port, "/slot")
    eventually(lambda: held.running == 1, "the slot to be taken")
    crowd.send(balancer.port, "/first")
    until_queued(balancer, 1)
    store.stop()
    eventually(lambda: balancer.readyz()["status"] == "degraded", "it to be noticed")
    # There is room for one more, and nobody to ask who has got it: of two one is turned away at once.
    pair = [crowd.send(balancer.port, f"/pair{number}") for number in range(2)]
    ready, _, _ = select.select([one.sock for one in pair], [], [], 20)
    (refused,) = [one for one in pair if one.sock in ready]
    answer = refused.read_answer()
    assert (answer.status, answer.values("Retry-After")) == (503, ["60"])
    crowd.clients.remove(refused)
    second = f"/pair{1 - pair.index(refused)}"
    held.answer()
    eventually(lambda: held.targets[1:] == ["/first"], "the first")
    held.answer()
    eventually(lambda: held.targets[1:] == ["/first", second], "the second")
    # The store is back, empty, while one is served and one waits.
    crowd.send(balancer.port, "/third")
    store.start()
    eventually(lambda: balancer.readyz()["status"] == "ready", "the store to be in use")
    until_queued(balancer, 1)
    held.answer(2)
    assert [client.read_answer().status for client in crowd.clients] == [200] * 4
    assert held.targets == ["/slot", "/first", second, "/third"]
    assert held.most == 1
    balancer.idle()
