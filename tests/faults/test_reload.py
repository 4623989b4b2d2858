"""HUP under load: no request fails, and none waits for the new workers to start."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.gate import Gate
from tests.support.clients import Load, get
from tests.support.processes import Balancer, System
from tests.support.run import alive, eventually

KINDS = ["gevent", "gthread"]


def loads(stack: ExitStack, balancer: Balancer, clients: int = 8) -> list[Load]:
    """Clients that keep their connections, and as many that have a new one for each request."""
    return [
        stack.enter_context(Load([balancer.port], clients, checked=True, fresh=fresh, pause=0.005).running())
        for fresh in (False, True)
    ]


@pytest.mark.parametrize("worker", KINDS)
def test_old_workers_accept_until_the_new_ones_do(system: System, tmp_path: Path, worker: str) -> None:
    gate = Gate(tmp_path)
    backend = system.plain_backend()
    balancer = system.balancer(backends=backend.url, workers=2, worker=worker, options=gate.options)
    old = set(balancer.worker_pids)
    with ExitStack() as stack:
        kept, fresh = loads(stack, balancer)
        gate.shut()
        balancer.send(signal.SIGHUP)
        eventually(lambda: len(balancer.worker_pids) == 4, "the new workers to be forked")
        kept.more(200)
        fresh.more(200)  # whoever accepts them is an old one
        assert get(balancer.control, "/readyz").status == 200
        assert old < set(balancer.worker_pids)
        gate.open()
        eventually(lambda: not old & set(balancer.worker_pids), "the old workers to go")
        kept.more(200)
        fresh.more(200)
    assert kept.failures == fresh.failures == []
    assert len(balancer.worker_pids) == 2


@pytest.mark.parametrize("worker", KINDS)
def test_many_reloads(system: System, worker: str) -> None:
    backend = system.plain_backend()
    balancer = system.balancer(backends=backend.url, workers=2, worker=worker)
    with ExitStack() as stack:
        kept, fresh = loads(stack, balancer)
        for _ in range(3):
            old = set(balancer.worker_pids)
            balancer.send(signal.SIGHUP)
            eventually(lambda old=old: not old & set(balancer.worker_pids), "the old workers to go")  # type: ignore[misc]
            kept.more(100)
            fresh.more(100)
    assert kept.failures == fresh.failures == []
    balancer.idle()
    eventually(lambda: balancer.view.workers() == 2, "the old workers' leases to be gone")


def test_new_workers_that_do_not_start_change_nothing(system: System, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    backend = system.plain_backend()
    balancer = system.balancer(backends=backend.url, workers=2, options=gate.options)
    balancer.tracebacks = True
    old = set(balancer.worker_pids)
    with ExitStack() as stack:
        kept, fresh = loads(stack, balancer)
        gate.breaks()
        balancer.send(signal.SIGHUP)
        eventually(lambda: "the old ones go on serving" in balancer.process.err, "it to be said")
        eventually(lambda: set(balancer.worker_pids) == old, "the new ones to be gone")
        kept.more(100)
        fresh.more(100)
        gate.mend()
        balancer.send(signal.SIGHUP)
        eventually(lambda: not old & set(balancer.worker_pids), "the old workers to go")
        kept.more(100)
        fresh.more(100)
    assert kept.failures == fresh.failures == []
    assert alive(balancer.pid)


def test_new_workers_that_hang_change_nothing(system: System, tmp_path: Path) -> None:
    gate = Gate(tmp_path, "from lb import master\n\nmaster.READY_TIMEOUT = 1.0")
    backend = system.plain_backend()
    balancer = system.balancer(backends=backend.url, options=gate.options)
    old = balancer.worker_pids
    gate.shut()
    balancer.send(signal.SIGHUP)
    eventually(lambda: "do not serve after 1 s; the old ones go on" in balancer.process.err, "it to be said")
    eventually(lambda: balancer.worker_pids == old, "the new one to be gone")
    assert get(balancer.port).status == 200
    gate.open()
    balancer.send(signal.SIGHUP)
    eventually(lambda: not set(old) & set(balancer.worker_pids), "the old worker to go")
    assert get(balancer.port).status == 200


def test_a_stop_ends_a_reload(system: System, tmp_path: Path) -> None:
    """It does not wait for workers that have not served yet longer than for any other."""
    gate = Gate(tmp_path)
    backend = system.plain_backend()
    balancer = system.balancer(backends=backend.url, options=gate.options, env={"LB_GRACEFUL_TIMEOUT": "2"})
    gate.shut()
    balancer.send(signal.SIGHUP)
    eventually(lambda: len(balancer.worker_pids) == 2, "the new worker to be forked")
    assert get(balancer.port).status == 200
    assert balancer.stop() == 0
