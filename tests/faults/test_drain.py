"""A backend is drained under load, and gone the moment that the drain is over."""

from __future__ import annotations

from websockets.sync.client import connect

from tests.support.clients import Load
from tests.support.processes import System


def test_a_backend_that_was_waited_for_may_be_killed(system: System) -> None:
    slow, other = system.plain_backend(delay=0.1), system.plain_backend()
    balancer = system.balancer(backends=f"{slow.url},{other.url}", workers=2)
    with Load([balancer.port], 16, checked=True).running() as load:
        load.more(100)
        done = balancer.lb("backends", "drain", slow.id, "--wait", "--timeout", "20")
        slow.kill()
        load.more(200)
    assert done.stdout == (f"{slow.id} gets no new requests; in flight now: 0\n")
    assert load.failures == []


def test_websockets_are_given_time(system: System) -> None:
    backend = system.plain_backend()
    balancer = system.balancer(backends=backend.url, env={"LB_CLIENT_STREAM_CLOSE_DELAY": "2"})
    with connect(f"ws://127.0.0.1:{balancer.port}/ws") as socket:
        command = ("backends", "drain", backend.id, "--wait", "--timeout")
        early = balancer.try_lb(*command, "0")
        assert early.returncode == 1
        assert early.stderr == f"lb: {backend.id} gets no new requests, but serves 1 after 0 s\n"
        socket.send("still")
        assert socket.recv(20) == "still"
        balancer.lb(*command, "20")
        assert balancer.view.in_flight() == 0
