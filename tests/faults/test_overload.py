"""More requests than can be served: as many as ever are, and in time; the rest is told so early."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from lb.settings import LimitSettings
from tests.support.backends import Backend, Peer, ok, stall
from tests.support.clients import Client, Load, get, request
from tests.support.openload import OpenLoad
from tests.support.processes import System
from tests.support.run import eventually
from tests.support.serving import Serving

KINDS = ["gevent", "gthread"]
SERVICE = 0.2
"""Seconds that the backend takes for a request."""
SLOTS = 8
"""Requests that it may have at a time: so it is its pace that bounds the system, not this machine's."""
CAPACITY = SLOTS / SERVICE
PATIENCE = 2.0
"""Seconds that clients wait: longer than `queue.target`, shorter than `queue.timeout`."""


@pytest.mark.slow
def test_goodput_at_three_times_the_capacity(system: System) -> None:
    backend = system.plain_backend(delay=SERVICE)
    env = {"LB_QUEUE_TIMEOUT": "4", "LB_QUEUE_TARGET": "0.4"}
    balancer = system.balancer(backends=f"{backend.url};max_connections={SLOTS}", env=env, workers=2)
    peak = Load([balancer.port], SLOTS, "/peak")
    with peak.running():
        eventually(lambda: peak.done >= 2 * CAPACITY, "the peak")
    assert not peak.failures
    before = 5.5  # `queue.timeout`, until it has noticed, and until what was taken before that is over
    threading.Timer(before, lambda: served.append(backend.counts()["/"])).start()
    served: list[int] = []
    load = OpenLoad(balancer.port, 3 * CAPACITY, before + 4, PATIENCE).run()
    served.append(backend.counts()["/"])
    found = load.since(before)
    assert set(found) <= {200, 503, 0}
    # Counted, not timed: what the backend did was not in vain, whatever pace this machine lets it have.
    assert found[200] >= 0.8 * (served[1] - served[0])
    assert found[200] >= 0.6 * 4 * CAPACITY
    assert found[503] > found[0]
    refused = [entry for entry in balancer.log if entry["status"] == 503]
    assert {entry["code"] for entry in refused} == {"queue_timeout"}
    balancer.idle()
    # And when it is over it is as before.
    assert get(balancer.port, "/after").status == 200


@pytest.mark.slow
def test_goodput_when_the_worker_itself_is_too_slow() -> None:
    """Each request takes the event loop 10 ms; three times as many come, on connections of their own."""
    served: list[float] = []

    def app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        time.sleep(0.01)
        served.append(time.monotonic())
        start("200 OK", [])
        return (b"ok",)

    before, seconds = 4.0, 4.0
    with Serving(app, limits=LimitSettings(delay=0.2)) as serving:
        began = time.monotonic()
        found = OpenLoad(serving.port, 300, before + seconds, PATIENCE).run().since(before)
    assert set(found) <= {200, 503, 0}
    took = sum(began + before <= at for at in served)
    assert found[200] >= 0.8 * took  # what it did was not in vain
    assert found[200] >= 0.4 * 100 * seconds
    assert found[503] > found[0]


@pytest.mark.slow
def test_goodput_when_threads_are_too_few(system: System) -> None:
    """Each of four threads is kept for 200 ms by a request; three times as many come."""
    backend = system.plain_backend(delay=SERVICE)
    balancer = system.balancer(
        backends=backend.url, worker="gthread", options=("--threads", "4"), env={"LB_LIMIT_DELAY": "0.4"}
    )
    before, seconds, capacity = 5.0, 6.0, 4 / SERVICE
    served: list[int] = []
    threading.Timer(before, lambda: served.append(backend.counts()["/"])).start()
    load = OpenLoad(balancer.port, 3 * capacity, before + seconds, PATIENCE).run()
    served.append(backend.counts()["/"])
    found = load.since(before)
    assert set(found) <= {200, 503, 0}
    assert found[200] >= 0.8 * (served[1] - served[0])  # what the backend did was not in vain
    assert found[200] >= 0.3 * capacity * seconds
    assert found[503] > found[0]
    assert {entry["code"] for entry in balancer.log if entry["status"] == 503} == {"overloaded"}
    assert "overloaded: more than 0.4 s late" in balancer.process.err
    balancer.idle()


@pytest.mark.parametrize("worker", KINDS)
def test_a_ceiling_of_requests(system: System, worker: str) -> None:
    with Backend(stall) as backend, contextlib.ExitStack() as stack:
        balancer = system.balancer(backends=backend.url, worker=worker, env={"LB_LIMIT_REQUESTS": "5"})
        clients = [stack.enter_context(Client(balancer.port)) for _ in range(5)]
        for client in clients:
            client.send(request("GET", "/held"))
        eventually(lambda: len(backend.requests) == 5, "all to be under way")
        for _ in range(3):
            answer = get(balancer.port, "/more")
            assert (answer.status, answer.values("Retry-After")) == (503, ["1"])
        assert balancer.readyz()["status"] == "ready"
        with urllib.request.urlopen(f"http://127.0.0.1:{balancer.control}/v1/pools", timeout=10) as found:
            assert json.load(found)["pools"]["default"]["backends"][0]["in_flight"] == 5
        assert len(backend.requests) == 5
        backend.hang_up()
        assert {client.read_answer().status for client in clients} == {502}
        backend.script = lambda peer: peer.send(ok()) if peer.read_request() else None
        assert get(balancer.port).status == 200
        eventually(lambda: "no longer overloaded; 3 requests were refused" in balancer.process.err, "the end")
        assert balancer.process.err.count("overloaded: 5 requests under way") == 1
        balancer.idle()


@pytest.mark.parametrize("worker", KINDS)
def test_a_ceiling_of_memory(system: System, worker: str) -> None:
    """It is below what a worker needs, so that there is nothing to wait for. Under gthread idle connections
    stay open.
    """

    def slow(peer: Peer) -> None:
        while peer.read_request() is not None:
            assert peer.backend.may_go_on.acquire(timeout=60)
            peer.send(ok())

    with Backend(slow) as backend:
        balancer = system.balancer(backends=backend.url, worker=worker, env={"LB_LIMIT_MEMORY": "1000000"})
        with Client(balancer.port) as one, Client(balancer.port) as idle:
            one.send(request("GET", "/alone"))
            eventually(lambda: backend.requests, "it to be under way")
            assert get(balancer.port).status == 503
            assert worker == "gthread" or idle.at_end()
            assert balancer.readyz()["status"] == "ready"
            backend.may_go_on.release()
            assert one.read_answer().status == 200
        said = "overloaded: more than 0.9537 MiB of memory"
        eventually(lambda: said in balancer.process.err, "the log to say so")
        balancer.idle()
