"""File descriptors used up: a worker goes on with what it has, and accepts again by itself."""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from pathlib import Path

import pytest

from tests.support.backends import Backend, Peer, ok
from tests.support.clients import Client, get, request
from tests.support.processes import Balancer, System
from tests.support.run import eventually

MOST = 256
"""Descriptors that each process of a balancer may have."""
RESERVE = MOST // 8


def start(system: System, backends: str, worker: str = "gevent") -> Balancer:
    """A balancer that may have few descriptors."""
    made = system.balancer(backends=backends, worker=worker, wait=False, launch=False)
    made._command[:0] = ["prlimit", f"--nofile={MOST}:{MOST}"]
    made.launch()
    return made.start()


def descriptors(balancer: Balancer) -> int:
    """How many its worker has."""
    (pid,) = balancer.worker_pids
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def connect(balancer: Balancer, stack: contextlib.ExitStack, count: int) -> list[socket.socket]:
    """So many connections; those that the worker does not take wait in the kernel's queue."""
    return [
        stack.enter_context(socket.create_connection(("127.0.0.1", balancer.port), 20)) for _ in range(count)
    ]


def test_idle_connections_make_room(system: System) -> None:
    with Backend() as backend, contextlib.ExitStack() as stack:
        balancer = start(system, backend.url)
        connect(balancer, stack, MOST + 50)
        eventually(lambda: "cannot accept more" in balancer.process.err, "it to run out")
        assert balancer.readyz()["status"] == "ready"
        assert descriptors(balancer) <= MOST - RESERVE + 16
        for n in range(20):  # while all the others stay
            assert get(balancer.port, f"/{n}").status == 200
        stack.close()
        eventually(lambda: descriptors(balancer) < MOST // 2, "the descriptors to be free")
        assert get(balancer.port).status == 200
        balancer.idle()


def test_no_backend_is_blamed(system: System) -> None:
    """Requests that run take two each: those for which only one is left are refused, the others answered."""

    def slow(peer: Peer) -> None:
        while (found := peer.read_request()) is not None:
            if found.target != "/quick":
                assert peer.backend.may_go_on.acquire(timeout=60)
            peer.send(ok(b"late"))

    with Backend(slow) as backend, contextlib.ExitStack() as stack:
        balancer = start(system, backend.url)
        clients = []
        for _ in range(MOST - RESERVE - 40):
            clients.append(stack.enter_context(Client(balancer.port)))
            clients[-1].send(request("GET", "/slow"))  # at once: idle ones would have to make room
        eventually(lambda: "no connection to a backend" in balancer.process.err, "it to run out")
        assert balancer.readyz()["status"] == "ready"
        assert balancer.view.states() == {backend.id: "unknown"}  # nobody probes it
        backend.may_go_on.release(1000)
        statuses = Counter(client.read_answer().status for client in clients)
        assert set(statuses) == {200, 503}
        assert statuses[200] > RESERVE // 2
        eventually(lambda: len(balancer.log) == len(clients), "all to be in the log")
        assert {entry.get("code", "") for entry in balancer.log} == {"", "overloaded"}
        stack.close()
        eventually(lambda: get(balancer.port, "/quick").status == 200, "it to serve again")
        balancer.idle()


@pytest.mark.parametrize("worker", ["gevent", "gthread"])
def test_it_serves_again_by_itself(system: System, worker: str) -> None:
    """Whatever was open is closed by its clients; nobody restarts anything."""
    with Backend() as backend, contextlib.ExitStack() as stack:
        balancer = start(system, backend.url, worker)
        balancer.tracebacks = worker == "gthread"
        before = balancer.worker_pids
        for client in connect(balancer, stack, MOST + 50):
            with contextlib.suppress(OSError):
                client.sendall(b"GET / HTTP/1.1\r\n")
        words = "cannot accept more" if worker == "gevent" else "Too many open files"
        eventually(lambda: words in balancer.process.err, "it to run out")
        stack.close()

        def serves() -> bool:
            with contextlib.suppress(OSError):
                return get(balancer.port).status == 200
            return False

        eventually(serves, "it to serve again")
        balancer.idle()
        if worker == "gevent":
            assert balancer.worker_pids == before
