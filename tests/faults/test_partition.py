"""Two balancer hosts and one Redis host, in network namespaces, cut off from each other and joined again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from lb.model import Backend as Member
from lb.state import decide
from tests.faults.crowd import Crowd, exact
from tests.faults.pools import two_pools
from tests.support.backends import Backend, in_steps, ok
from tests.support.chaos import Proxy
from tests.support.clients import Client, request
from tests.support.netns import Wire, three_hosts
from tests.support.processes import Balancer, PlainBackend, System, View
from tests.support.run import eventually

PORT = 8000


@pytest.fixture
def wire() -> Iterator[Wire]:
    with three_hosts() as made:
        yield made


class Site:
    """A balancer with two workers on each of two hosts, and a store on a third one.

    Its ports on this machine's side lead to the balancers, those on the hosts' side to the backends.
    """

    def __init__(self, system: System, wire: Wire, stack: ExitStack) -> None:
        self.system = system
        self.wire = wire
        self._stack = stack
        self.held = stack.enter_context(Backend(in_steps(ok())))
        self.backends: list[PlainBackend] = [system.plain_backend() for _ in range(3)]
        self.urls = [self._reachable(backend.port) for backend in self.backends]
        self.store = system.store(
            "redis",
            prefix=wire.prefix("store"),
            tcp=True,
            options=("--bind", *wire.store.values(), "--protected-mode", "no"),
        )
        config = two_pools(self.urls[:2], "held", self._reachable(self.held.port))
        self.a, self.b = (self._balancer(host, config) for host in ("a", "b"))
        for one in (self.a, self.b):
            one.start()
        eventually(lambda: self.a.view.workers() == 4, "all workers to join")

    def _reachable(self, port: int) -> str:
        proxy = self._stack.enter_context(Proxy(("127.0.0.1", port), host=self.wire.outside))
        return f"http://{self.wire.outside}:{proxy.port}"

    def _balancer(self, host: str, config: str) -> Balancer:
        control = self.system.folder / f"{host}.sock"
        made = self.system.balancer(
            prefix=self.wire.prefix(host),
            store=f"redis://{self.wire.store[host]}:{self.store.port}/0",
            config=config,
            workers=2,
            env={"LB_BIND": f"{self.wire.address[host]}:{PORT}", "LB_CONTROL_BIND": f"unix:{control}"},
            wait=False,
        )
        made.view_ = View(self.store.url)
        self._stack.enter_context(Proxy((self.wire.address[host], PORT), made.port))
        self._stack.enter_context(Proxy(control, made.control))
        return made


def says(balancer: Balancer, status: str) -> bool:
    """Is that what one of its workers says on `/readyz`?"""
    with suppress(OSError):
        return bool(balancer.readyz()["status"] == status)
    return False


def test_each_goes_on_alone_and_then_together(system: System, wire: Wire) -> None:
    with ExitStack() as stack:
        stack.callback(system.close)  # before the hosts
        site = Site(system, wire, stack)
        a, b, held = site.a, site.b, site.held
        ports = [a.port, b.port]
        clients = [stack.enter_context(Client(port)) for port in (*ports, *ports)]
        for client in clients:
            client.send(request("GET", "/", host="held.example"))
        eventually(lambda: a.view.in_flight("held") == 4, "requests that last")
        with Crowd([a.port]).running() as at_a, Crowd([b.port]).running() as at_b:
            at_a.more(100)
            at_b.more(100)
            # One is cut off; what it held is given back, and a change passes it by.
            wire.cut("a")
            eventually(lambda: says(a, "degraded"), "it to be noticed")
            a.view.registry.change(
                "default", decide.add(Member(site.urls[2].removeprefix("http://"), site.urls[2]))
            )
            at_a.more(200)
            eventually(lambda: b.view.workers() == 2, "the leases of those cut off to lapse", 20)
            # Each pool has a lease of its own.
            eventually(lambda: b.view.in_flight("held") == 2, "what they held to be given back")
            eventually(lambda: says(b, "ready"), "the other one to have nothing to do with it")
            # Then the other one, too.
            wire.cut("b")
            eventually(lambda: says(b, "degraded"), "it to be noticed")
            at_a.more(100)
            at_b.more(100)
            mended = time.monotonic()
            wire.mend("a")
            eventually(lambda: says(a, "ready"), "one to be back")
            wire.mend("b")
            eventually(lambda: a.view.workers() == 4, "all workers to be back")
            back = time.monotonic() - mended
            eventually(lambda: a.view.in_flight("held") == 4, "what they hold to be counted again")
            eventually(lambda: says(a, "ready") and says(b, "ready"), "it to be said")
            at_a.more(100)
            at_b.more(100)
        assert at_a.failures == at_b.failures == []
        print(f"{at_a.figures()}; {at_b.figures()}; both back after {back:.1f} s")
        held.may_go_on.release(4)
        assert [client.read_answer().status for client in clients] == [200] * 4
        a.idle("held")
        assert len(a.view.states()) == 3
        exact(ports, site.backends, a)
