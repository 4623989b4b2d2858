"""Sticky sessions over a whole fleet: two balancers with two workers each on one store, and real backends."""

from __future__ import annotations

import os
import re
import signal
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from lb.state import decide
from tests.e2e.test_upgrade import SWITCH, UPGRADE
from tests.support.backends import Backend, in_steps, ok, once, serve
from tests.support.certificates import Pair
from tests.support.clients import Answer, Client, get, request
from tests.support.http2 import Client as Http2Client
from tests.support.processes import Balancer, Store, System
from tests.support.run import eventually


class Visitor:
    """A browser: it keeps the cookie, and makes a connection for each request."""

    def __init__(self, value: str = "") -> None:
        self.value = value
        #: How often it was given a cookie.
        self.given = 0
        self.answer: Answer

    @property
    def home(self) -> str:
        """What stands for its backend."""
        return self.value.partition(".")[0]

    def get(self, port: int) -> str:
        """Who answers."""
        self.answer = get(port, "/", *([f"Cookie: lb={self.value}"] if self.value else []))
        assert self.answer.status == 200, self.answer
        found = self.answer.values("Set-Cookie")
        assert len(found) <= 1, found
        if found:
            self.given += 1
            self.value = found[0].partition(";")[0].removeprefix("lb=")
        return self.answer.body.decode()


class Fleet:
    """Three backends that answer with their names, and balancers before them."""

    def __init__(self, system: System, stack: ExitStack) -> None:
        self.system = system
        self.store: Store = system.store("redis")
        self.backends = [stack.enter_context(Backend()) for _ in range(3)]
        for backend in self.backends:
            backend.script = serve(ok(str(backend.port).encode()))
        self.ports: list[int] = []
        self.balancers: list[Balancer] = []
        self._started = 0

    def start(self, count: int = 2, options: str = "", worker: str = "gevent", **env: str) -> Balancer:
        """Start balancers; returns the first."""
        self.balancers = [
            self.system.balancer(
                store=self.store.url,
                backends=",".join(backend.url + options for backend in self.backends),
                workers=2,
                worker=worker,
                env={"LB_STICKY_COOKIE": "lb", "LB_UPSTREAM_MAX_IDLE": "0", **env},
                wait=False,
            )
            for _ in range(count)
        ]
        for balancer in self.balancers:
            balancer.start()
        first = self.balancers[0]
        self._started += count
        eventually(lambda: first.view.workers() == 2 * self._started, "all workers to join")
        self.ports = [balancer.port for balancer in self.balancers]
        return first

    def backend(self, name: str) -> Backend:
        return next(backend for backend in self.backends if str(backend.port) == name)

    def id(self, name: str) -> str:
        return f"127.0.0.1:{name}"


@pytest.fixture
def fleet(system: System) -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(system, stack)


@pytest.mark.parametrize("worker", ["gevent", "gthread"])
def test_a_client_stays_and_new_ones_take_exact_turns(fleet: Fleet, worker: str) -> None:
    fleet.start(worker=worker)
    old = Visitor()
    home = old.get(fleet.ports[0])
    new: Counter[str] = Counter()
    for turn in range(200):
        assert old.get(fleet.ports[turn % 2]) == home
        if turn < 60:
            new[Visitor().get(fleet.ports[turn % 2])] += 1
    assert old.given == 1
    assert len(new) == 3
    # The first visitor's own turn is one of them; those that came back took none.
    new[home] += 1
    assert sorted(new.values()) == [20, 20, 21]


@pytest.mark.parametrize("algorithm", ["least-connections", "random", "least-time", "consistent-hash"])
def test_a_client_stays_whatever_the_algorithm(fleet: Fleet, algorithm: str) -> None:
    fleet.start(1, LB_ALGORITHM=algorithm, LB_HASH_KEY="path")
    visitors = [Visitor() for _ in range(6)]
    homes = [visitor.get(fleet.ports[0]) for visitor in visitors]
    for _ in range(10):
        assert [visitor.get(fleet.ports[0]) for visitor in visitors] == homes
    assert [visitor.given for visitor in visitors] == [1] * 6


def test_a_cookie_that_is_not_ours_is_replaced(fleet: Fleet) -> None:
    fleet.start(1)
    good = Visitor()
    home = good.get(fleet.ports[0])
    token, date, signature = good.value.split(".")
    younger = f"{token}.{int(date, 16) + 9:x}.{signature}"
    for value in (fleet.id(home), "x" * 4000, "..", younger, f'"{good.value}"', token, "\xff"):
        visitor = Visitor(value)
        its = visitor.get(fleet.ports[0])
        assert visitor.given == 1
        assert visitor.value != value
        assert visitor.get(fleet.ports[0]) == its
        assert visitor.given == 1


@pytest.mark.parametrize("worker", ["gevent", "gthread"])
def test_a_killed_backend_is_replaced_without_a_failure(system: System, worker: str) -> None:
    backends = [system.plain_backend() for _ in range(3)]
    balancer = system.balancer(
        backends=",".join(backend.url for backend in backends),
        workers=2,
        worker=worker,
        env={"LB_STICKY_COOKIE": "lb"},
    )
    visitors = [Visitor() for _ in range(9)]
    for visitor in visitors:
        visitor.get(balancer.port)
    homes = [visitor.home for visitor in visitors]
    done: Counter[Visitor] = Counter()
    stopping = threading.Event()

    def browse(visitor: Visitor) -> None:
        while not stopping.is_set():
            visitor.get(balancer.port)
            done[visitor] += 1

    def each_has_done(more: int) -> None:
        before = done.copy()
        eventually(lambda: all(done[one] >= before[one] + more for one in visitors), "all to go on")

    with ThreadPoolExecutor(len(visitors)) as threads:
        browsing = [threads.submit(browse, visitor) for visitor in visitors]
        try:
            each_has_done(20)
            assert [visitor.given for visitor in visitors] == [1] * 9
            backends[0].kill()
            each_has_done(20)
        finally:
            stopping.set()
    for one in browsing:
        one.result()  # none of its requests has failed
    # Nobody probes: each client of the dead one has found out by itself, once, and stays where it was sent.
    (dead,) = set(homes) - {visitor.home for visitor in visitors}
    assert Counter(homes) == dict.fromkeys(homes, 3)
    assert [visitor.given for visitor in visitors] == [2 if home == dead else 1 for home in homes]
    balancer.idle()


def test_a_full_backend_is_replaced(fleet: Fleet) -> None:
    balancer = fleet.start(1, ";max_connections=1")
    visitor = Visitor()
    home = fleet.backend(visitor.get(balancer.port))
    balancer.idle()
    home.script = in_steps(ok(b"late"))
    before = visitor.value
    with Client(balancer.port) as slow:
        slow.send(request("GET", "/", f"Cookie: lb={before}"))
        eventually(lambda: balancer.view.in_flight() == 1, "the slow request")
        other = visitor.get(balancer.port)
        assert other != str(home.port)
        assert visitor.given == 2
        home.may_go_on.release()
        answer = slow.read_answer()
        assert (answer.body, answer.values("Set-Cookie")) == (b"late", [])
    balancer.idle()
    assert visitor.get(balancer.port) == other


def test_a_drained_backend_goes_on_with_its_sessions_only(fleet: Fleet) -> None:
    balancer = fleet.start(1, LB_ALGORITHM="least-connections")
    visitor = Visitor()
    home = visitor.get(balancer.port)
    registry = balancer.view.registry
    registry.change("default", decide.update(fleet.id(home), admin="drain"))
    for _ in range(20):
        assert Visitor().get(balancer.port) != home
        assert visitor.get(balancer.port) == home
    assert visitor.given == 1
    balancer.idle()
    # Back in turn, with counts that are right.
    registry.change("default", decide.update(fleet.id(home), admin="ready"))
    eventually(lambda: Visitor().get(balancer.port) == home, "new clients to come again")
    registry.change("default", decide.verdicts([(fleet.id(home), "down")]))
    eventually(lambda: visitor.get(balancer.port) != home, "the client to be moved")
    assert visitor.given == 2
    registry.change("default", decide.remove(fleet.id(home)))
    assert visitor.get(balancer.port) != home
    assert visitor.given == 2


def test_a_client_stays_while_the_store_is_away_and_when_it_has_lost_everything(fleet: Fleet) -> None:
    first = fleet.start()
    visitors = [Visitor() for _ in range(6)]
    homes = [visitor.get(fleet.ports[0]) for visitor in visitors]

    def all_at_home() -> bool:
        return all(
            [visitor.get(port) for visitor in visitors] == homes for port in fleet.ports for _ in range(2)
        )

    fleet.store.stop()
    assert all_at_home()
    fleet.store.start()
    eventually(lambda: first.view.workers() == 4, "all workers to come back")
    assert all_at_home()
    # One that starts now learns what the others knew.
    fleet.start(1)
    assert all_at_home()
    assert [visitor.given for visitor in visitors] == [1] * 6


@pytest.mark.parametrize("secret", ["", "a-secret-of-ours"])
def test_a_worker_that_has_never_seen_the_store(fleet: Fleet, secret: str) -> None:
    balancer = fleet.start(1, LB_STICKY_SECRET=secret)
    visitor = Visitor()
    home = visitor.get(balancer.port)
    fleet.store.stop()
    before = balancer.worker_pids
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: balancer.process.err.count("shared state away") >= 2, "new workers")
    eventually(lambda: len(set(balancer.worker_pids) - set(before)) == 2, "them to be two")
    served = {visitor.get(balancer.port) for _ in range(12)}
    # Without a secret it cannot know where the client belongs; but it does not tell it to stay where it is.
    assert len(served) == 3 if not secret else served == {home}
    assert visitor.given == 1
    fleet.store.start()
    eventually(lambda: balancer.view.workers() == 2, "the store to be in use")
    if secret:
        assert visitor.get(balancer.port) == home
        assert secret not in balancer.process.err + balancer.process.out


@pytest.mark.parametrize("worker", ["gevent", "gthread"])
def test_what_is_seen_on_both_sides(fleet: Fleet, worker: str) -> None:
    balancer = fleet.start(1, worker=worker, LB_STICKY_TTL="3600", LB_STICKY_SAME_SITE="strict")
    for backend in fleet.backends:
        backend.script = serve(ok(b"x", "Set-Cookie: lb=theirs", "Set-Cookie: b=2; Path=/x"))
    answer = get(balancer.port, "/", 'Cookie: a="1";lb=x; z= \xe4;lb=y')
    theirs, ours = answer.values("Set-Cookie")
    assert theirs == "b=2; Path=/x"
    assert re.fullmatch(r"lb=[\w.-]{48}; Path=/; Max-Age=3600; HttpOnly; SameSite=Strict", ours)
    (seen,) = [seen for backend in fleet.backends for seen in backend.requests]
    assert seen.values("Cookie") == ['a="1"; z= \xe4']
    # A known client gets no cookie, neither ours nor theirs.
    answer = get(balancer.port, "/", f"Cookie: {ours.partition(';')[0]}")
    assert answer.values("Set-Cookie") == ["b=2; Path=/x"]


def test_an_upgrade_and_its_interim_answers(fleet: Fleet) -> None:
    balancer = fleet.start(1)
    for backend in fleet.backends:
        backend.script = once(SWITCH)
    with Client(balancer.port) as client:
        client.send(request("GET", "/", *UPGRADE))
        head = client.read_head()
    assert head.startswith(SWITCH.split(b"\r\n")[0])
    assert head.count(b"Set-Cookie: lb=") == 1
    for backend in fleet.backends:
        backend.script = serve(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok())
    answer = get(balancer.port)
    assert len(answer.interim) == 1
    assert b"Set-Cookie" not in answer.interim[0]
    assert len(answer.values("Set-Cookie")) == 1


def test_http2(fleet: Fleet, server_pair: Pair, http2_trust: ssl.SSLContext) -> None:
    balancer = fleet.start(1, **server_pair.env())
    with Http2Client(balancer.port, http2_trust) as client:
        first = client.get("/")
        (cookie,) = first.values("set-cookie")
        assert cookie.endswith("; Path=/; HttpOnly; Secure; SameSite=Lax")
        pair = cookie.partition(";")[0]
        for _ in range(9):
            answer = client.get("/", ("cookie", "a=1"), ("cookie", pair), ("cookie", "b=2"))
            assert answer.body == first.body
            assert answer.values("set-cookie") == []
    home = fleet.backend(first.body.decode())
    assert [seen.values("cookie") for seen in home.requests[1:]] == [["a=1; b=2"]] * 9


def test_a_route_that_takes_cookies_away_keeps_the_session(fleet: Fleet) -> None:
    backends = ", ".join(f'{{url = "{backend.url}"}}' for backend in fleet.backends)
    balancer = fleet.system.balancer(
        config=f"[pools.default]\nbackends = [{backends}]\nsticky = {{cookie = 'lb'}}\n"
        "[[routes]]\npool = 'default'\nrequest.remove = ['Cookie']\nresponse.remove = ['Set-Cookie']\n"
    )
    visitor = Visitor()
    home = visitor.get(balancer.port)
    assert [visitor.get(balancer.port) for _ in range(6)] == [home] * 6
    assert visitor.given == 1


def test_a_reload_keeps_sessions(fleet: Fleet) -> None:
    balancer = fleet.start(1)
    visitor = Visitor()
    home = visitor.get(balancer.port)
    before = balancer.worker_pids
    balancer.send(signal.SIGHUP)
    eventually(
        lambda: len(balancer.worker_pids) == 2 and not set(before) & set(balancer.worker_pids), "new workers"
    )
    eventually(lambda: balancer.view.workers() == 2, "them to join")
    assert [visitor.get(balancer.port) for _ in range(6)] == [home] * 6
    assert visitor.given == 1
