"""TERM under load: said first, then done; nobody who listens to `/readyz` loses a request."""

from __future__ import annotations

import json
import signal
from contextlib import ExitStack

import pytest

from tests.faults.test_reload import KINDS, loads
from tests.support.backends import Backend, in_steps, ok, stall
from tests.support.clients import Client, get, request
from tests.support.processes import System, refuses
from tests.support.run import eventually


@pytest.mark.slow
@pytest.mark.parametrize("worker", KINDS)
def test_who_listens_to_readyz_loses_nothing(system: System, worker: str) -> None:
    backend = system.plain_backend()
    balancer = system.balancer(backends=backend.url, workers=2, worker=worker, env={"LB_DRAIN_DELAY": "6"})
    with ExitStack() as stack:
        kept, fresh = loads(stack, balancer)
        kept.more(100)
        balancer.send(signal.SIGTERM)
        eventually(lambda: get(balancer.control, "/readyz").status == 503, "it to be said")
        assert json.loads(get(balancer.control, "/readyz").body) == {"status": "draining"}
        assert get(balancer.control, "/healthz").status == 200
        kept.more(20)  # it serves all the same
        fresh.more(20)
    assert kept.failures == fresh.failures == []
    assert balancer.process.wait() == 0
    assert "draining: ends in 6 s" in balancer.process.err


def test_kept_connections_are_told_before_they_are_closed(system: System) -> None:
    with Backend() as backend:
        balancer = system.balancer(backends=backend.url, env={"LB_DRAIN_DELAY": "10"})
        with Client(balancer.port) as client:
            assert client.get().values("Connection") == []
            balancer.send(signal.SIGTERM)
            while not (answer := client.get()).values("Connection"):
                assert answer.status == 200
            assert (answer.status, answer.values("Connection")) == (200, ["close"])
            assert client.at_end()
        assert get(balancer.port).status == 200  # it is not over yet
        balancer.send(signal.SIGTERM)
        assert balancer.process.wait() == 0


@pytest.mark.parametrize("worker", KINDS)
@pytest.mark.parametrize("announced", [True, False])
def test_a_second_signal_forces_it(system: System, worker: str, announced: bool) -> None:
    env = {"LB_DRAIN_DELAY": "50" if announced else "0", "LB_GRACEFUL_TIMEOUT": "50"}
    with Backend(stall) as backend:
        balancer = system.balancer(backends=backend.url, worker=worker, env=env)
        with Client(balancer.port) as client:
            client.send(request("GET", "/"))
            eventually(lambda: backend.requests, "the request")
            balancer.send(signal.SIGTERM)
            if announced:
                eventually(lambda: "draining: ends in 50 s" in balancer.process.err, "it to be said")
                assert not refuses(balancer.port)
            else:
                eventually(lambda: "signal: term" in balancer.process.err, "the signal to be seen")
            balancer.send(signal.SIGTERM)
            assert balancer.process.wait(20) == 0
            assert client.at_end()


def test_who_gets_a_thread_too_late_is_told_so(system: System) -> None:
    """Under gthread, where requests wait for a thread: two are served, the others' time is over before."""
    env = {"LB_GRACEFUL_TIMEOUT": "1", "GUNICORN_CMD_ARGS": "--threads 2"}
    with Backend(in_steps(ok())) as backend, ExitStack() as stack:
        balancer = system.balancer(backends=backend.url, worker="gthread", env=env)
        clients = [stack.enter_context(Client(balancer.port)) for _ in range(5)]
        for client in clients:
            client.send(request("GET", "/"))
        eventually(lambda: len(backend.requests) == 2, "the requests that have a thread")
        balancer.send(signal.SIGTERM)
        eventually(lambda: balancer.view.workers() == 0, "the worker's time to be over")
        backend.may_go_on.release(10)
        answers = [client.read_answer() for client in clients]
        assert sorted(answer.status for answer in answers) == [200, 200, 503, 503, 503]
        for answer in answers:
            if answer.status == 503:
                assert b"stopping" in answer.body
                assert answer.values("Retry-After") == ["1"]
        assert balancer.process.wait() == 0
        assert "Traceback" not in balancer.process.err
