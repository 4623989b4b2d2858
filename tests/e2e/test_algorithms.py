"""Each algorithm keeps its law over two machines with two workers each, and is switched while they serve.

All of them run side by side on one fleet: a pool each, chosen by the Host field, and 64 clients. What a
backend has received is asked of the backend; paths begin with the name of the pool.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from lb.algorithms import ALGORITHMS
from lb.model import Snapshot
from lb.state import decide
from tests.support.clients import Load
from tests.support.example import install
from tests.support.processes import Balancer, PlainBackend, System
from tests.support.run import eventually

pytestmark = pytest.mark.xdist_group("algorithms")

CLIENTS = 64
TOTAL = 2800
SOURCES = [f"127.0.0.{number}" for number in range(2, 50)]
EQUAL, UNEQUAL = (1, 1, 1), (4, 2, 1)
SLOW = 0.5

WEIGHTS: dict[str, Sequence[int]] = {
    "weighted-round-robin": UNEQUAL,
    "weighted-least-connections": UNEQUAL,
    "random": UNEQUAL,
}
MORE = {
    "consistent-hash": 'hash = {key = "header:X-Key", balance = 1.25}',
    "resource-based": "report = {period = 600, blackout = 0}",
}


class Site:
    """Two balancers on one store, and what they balance over."""

    def __init__(self, folder: Path) -> None:
        self.system = System(folder)
        self.backends = [self.system.plain_backend() for _ in range(3)]
        self.slow = self.system.plain_backend(delay=SLOW)
        #: Those of `ip-hash`, one of which does not live long.
        self.mortal = [self.system.plain_backend() for _ in range(3)]
        lines = []
        for name in (*ALGORITHMS, "default", "live", "tried"):
            members = ", ".join(
                f'{{url = "{backend.url}", weight = {weight}}}'
                for backend, weight in zip(self.of(name), WEIGHTS.get(name, EQUAL), strict=True)
            )
            algorithm = name if name in ALGORITHMS else "round-robin"
            lines += [
                *(f"[pools.{name}]", f'algorithm = "{algorithm}"', f"backends = [{members}]"),
                *(MORE.get(name, ""), "[[routes]]", f'host = "{name}.example"', f'pool = "{name}"'),
            ]
        self.store = self.system.store("redis")
        self.balancers = [
            self.system.balancer(store=self.store.url, config="\n".join(lines), workers=2, wait=False)
            for _ in range(2)
        ]
        for balancer in self.balancers:
            balancer.start()
        self.view = self.balancers[0].view
        eventually(lambda: self.view.workers("live") == 4, "all four workers to join")

    def of(self, pool: str) -> list[PlainBackend]:
        """The backends of a pool."""
        if pool == "ip-hash":
            return self.mortal
        slow = pool in ("power-of-two-choices", "least-time")
        return [*self.backends[:2], self.slow] if slow else self.backends

    @property
    def ports(self) -> list[int]:
        return [balancer.port for balancer in self.balancers]

    def load(self, pool: str, target: str | Callable[[int], str] = "", **how: Any) -> Load:
        """Clients of a pool; its name is put before what they ask for."""
        clients = how.pop("clients", CLIENTS)

        def path(number: int) -> str:
            return f"/{pool}{target if isinstance(target, str) else target(number)}"

        return Load(self.ports, clients, path, host=f"{pool}.example", **how)

    def run(self, pool: str, target: str | Callable[[int], str] = "", **how: Any) -> list[Counter[str]]:
        """So many requests, without a failure, and all claims given back: what each backend got, by path."""
        how = {"total": TOTAL, **how}
        before, known = self.received(pool), self.view.counts(pool)
        load = self.load(pool, target, **how).run()
        assert load.failures == []
        assert load.statuses == {200: how["total"]}
        self.balancers[0].idle(pool)
        gained = [now - then for now, then in zip(self.received(pool), before, strict=True)]
        counted = [self.view.counts(pool)[each.id] - known[each.id] for each in self.of(pool)]
        assert [each.total() for each in gained] == counted
        assert sum(counted) == how["total"]
        return gained

    def received(self, pool: str) -> list[Counter[str]]:
        """What each backend of a pool has received so far, by path."""
        return [
            Counter({path: n for path, n in backend.counts().items() if path.split("/")[1] == pool})
            for backend in self.of(pool)
        ]

    def most(self, path: str) -> list[int]:
        """The most requests that each backend has had under way at one time."""
        return [backend.most().get(path, 0) for backend in self.backends]

    def lb(self, *arguments: str, balancer: Balancer | None = None, **env: str) -> str:
        """What `lb ARGUMENTS` prints on one of the machines."""
        where = balancer or self.balancers[0]
        command = self.system.program("lb", "lb.cli", *arguments, env={**where.env, **env})
        assert command.wait() == 0, command.err
        return command.out

    def close(self) -> None:
        self.system.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"))
    try:
        yield made
    finally:
        made.close()


def totals(found: Sequence[Counter[str]]) -> list[int]:
    return [each.total() for each in found]


def held(number: int) -> str:
    """Requests take 0 to 30 ms, so that who is least loaded changes all the time."""
    return f"?{number * 7 % 31}"


def is_near(counts: Sequence[int], weights: Sequence[int], sigmas: float = 5.0) -> None:
    """Each count is its share of the weights, within what chance allows: 5 sigma are missed once in a million
    runs."""
    total = sum(counts)
    for count, weight in zip(counts, weights, strict=True):
        share = weight / sum(weights)
        assert abs(count - total * share) <= sigmas * sqrt(total * share * (1 - share)), counts


# The laws.


def test_round_robin(site: Site) -> None:
    """After any number of requests no two counts differ by more than one."""
    so_far = [0, 0, 0]
    for total in (1000, 1, 901, 899):
        gained = totals(site.run("round-robin", held, total=total))
        so_far = [one + more for one, more in zip(so_far, gained, strict=True)]
        assert max(so_far) - min(so_far) <= 1


def test_weighted_round_robin(site: Site) -> None:
    """Within one of its share in each cycle of seven, wherever in it one stops to count."""
    counts = [0, 0, 0]
    for total in (1400, 1, 2, 3, 1394):
        gained = totals(site.run("weighted-round-robin", held, total=total))
        counts = [one + more for one, more in zip(counts, gained, strict=True)]
        for count, weight in zip(counts, UNEQUAL, strict=True):
            assert abs(count - sum(counts) * weight / 7) <= 1, counts


def test_least_connections(site: Site) -> None:
    """Who gets one has had at most a third of the other 63, and is above a third of all by rounding alone."""
    site.run("least-connections", held)
    most = site.most("/least-connections")
    assert max(most) <= ceil(CLIENTS / 3)
    assert min(most) >= 10  # there was something to balance


def test_weighted_least_connections(site: Site) -> None:
    site.run("weighted-least-connections", held)
    most = site.most("/weighted-least-connections")
    for count, weight in zip(most, UNEQUAL, strict=True):
        assert count <= (CLIENTS - 1) * weight // 7 + 1, most
    assert most[0] > most[1] > most[2] >= 4


def test_resource_based(site: Site) -> None:
    for backend, load in zip(site.backends, ("0", "0.5", "0.75"), strict=True):
        site.lb("backends", "report", backend.id, "--load", load, "--pool", "resource-based")
    counts = totals(site.run("resource-based", held))
    for count, free in zip(counts, UNEQUAL, strict=True):
        assert abs(count - TOTAL * free / 7) <= 1, counts


def test_random(site: Site) -> None:
    is_near(totals(site.run("random", held)), UNEQUAL)


def test_power_of_two_choices(site: Site) -> None:
    """Of a pair the one with more never gets it. Each is in two of three pairs, which is the most it can get;
    who is slow gets little, a third by chance alone. How the fast ones share depends on how fast each is."""
    *fast, slow = totals(site.run("power-of-two-choices"))
    assert max(fast) <= 2 / 3 * TOTAL + 5 * sqrt(TOTAL * 2 / 9)
    assert 1 <= slow <= 0.15 * TOTAL
    assert min(fast) > 2 * slow
    assert site.slow.most()["/power-of-two-choices"] <= CLIENTS // 2


def test_least_time(site: Site) -> None:
    """The slow one is left alone, once it is known to be. The fast ones share as their answers' times say."""
    *fast, slow = totals(site.run("least-time"))
    assert 1 <= slow <= 0.05 * TOTAL
    assert min(fast) > 3 * slow


def homes(found: Sequence[Counter[str]]) -> dict[str, int]:
    """Which backend each path has gone to; each to one."""
    where: dict[str, int] = {}
    for number, paths in enumerate(found):
        for path in paths:
            assert path not in where, f"{path} went to backends {where[path]} and {number}"
            where[path] = number
    return where


def test_ip_hash(site: Site) -> None:
    """One backend per client, whichever machine it comes by; when that is killed nobody else moves."""
    before = homes(site.run("ip-hash", "/{source}", sources=SOURCES))
    assert len(before) == len(SOURCES)
    assert set(before.values()) == {0, 1, 2}
    # The other machine for each client: it knows nothing but what is in the configuration.
    assert homes(site.run("ip-hash", "/{source}", sources=SOURCES[1:] + SOURCES[:1], total=480)) == before
    with site.load("ip-hash", "/{source}", sources=SOURCES).running() as load:
        eventually(lambda: load.done > 300, "the load")
        site.mortal[1].kill()
        killed_at = load.done
        eventually(lambda: load.done > killed_at + 1500, "the load to go on")
    assert load.failures == []
    site.balancers[0].idle("ip-hash")
    where: dict[str, set[int]] = {}
    for number in (0, 2):
        for path in site.mortal[number].counts():
            where.setdefault(path, set()).add(number)
    for path, home in before.items():
        assert where[path] == {home} if home != 1 else where[path] < {0, 1, 2}, path
    spread = {number for path, home in before.items() if home == 1 for number in where[path]}
    assert spread == {0, 2}
    assert all(len(where[path]) == 1 for path in before)


def test_consistent_hash(site: Site) -> None:
    """By a field; and a key that everybody asks for at once does not drown its backend."""
    key = "X-Key: {}".format
    quiet = site.run(
        "consistent-hash",
        lambda number: f"/{number % 40}",
        field=lambda number: key(number % 40),
        total=200,
        clients=1,
    )
    assert set(homes(quiet).values()) == {0, 1, 2}
    site.run("consistent-hash", "/hot?10", field=lambda _: key("hot"))
    most = site.most("/consistent-hash/hot")
    assert max(most) <= ceil(1.25 * CLIENTS / 3)
    assert min(most) > 0


# Switching.


class Watch:
    """What the workers of a site say of a pool; each question is a connection of its own, to any worker."""

    ANSWERS = 12
    """From each machine, one after the other: enough to have met both of its workers."""

    def __init__(self, site: Site, pool: str) -> None:
        self._site = site
        self._pool = pool

    def until(self, version: int) -> float:
        """Wait until every worker is at `version`; seconds until the last question an older one answered."""
        began = last = time.monotonic()
        for balancer in self._site.balancers:
            in_a_row = 0
            while in_a_row < self.ANSWERS:
                asked = time.monotonic()
                assert asked < began + 10, f"version {version} is not everywhere after 10 s"
                if self._version(balancer) >= version:
                    in_a_row += 1
                else:
                    in_a_row, last = 0, max(last, asked)
        return last - began

    def _version(self, balancer: Balancer) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{balancer.control}/v1/pools", timeout=5) as answer:
            return int(json.load(answer)["pools"][self._pool]["version"])


class Chat:
    """A WebSocket that is used all the time."""

    def __init__(self, port: int, path: str, host: str) -> None:
        self._url = f"ws://{host}{path}"
        self._port = port
        self._stopping = threading.Event()
        self._open = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.echoes = 0
        self.fault: BaseException | None = None

    def __enter__(self) -> Chat:
        self._thread.start()
        assert self._open.wait(20), self.fault
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            sock = socket.create_connection(("127.0.0.1", self._port))
            with connect(self._url, sock=sock, compression=None) as websocket:
                for number in cycle(range(1000)):
                    websocket.send(f"message {number}")
                    assert websocket.recv(10) == f"message {number}"
                    self.echoes += 1
                    self._open.set()
                    if self._stopping.wait(0.01):
                        return
        except BaseException as exc:
            self.fault = exc


def change(site: Site, pool: str, decider: decide.Decider) -> Snapshot:
    return site.view.registry.change(pool, decider)


def test_a_switch_through_all_of_them_under_load(site: Site) -> None:
    """No request fails, no WebSocket ends, no count is lost, and it takes less than a second."""
    lags = {}
    watch = Watch(site, "live")
    with Chat(site.ports[0], "/live/chat", "live.example") as chat:
        with site.load("live", "/{source}?5", sources=SOURCES).running() as load:
            eventually(lambda: load.done > 200, "the load")
            for name in (*ALGORITHMS[1:], ALGORITHMS[0]):
                done, echoes = load.done, chat.echoes
                lags[name] = watch.until(change(site, "live", decide.switch(name)).version)
                eventually(lambda d=done: load.done > d + 200, f"requests by {name}")  # type: ignore[misc]
                eventually(lambda e=echoes: chat.echoes > e, "the WebSocket")  # type: ignore[misc]
        assert load.failures == []
        assert set(load.statuses) == {200}
        eventually(lambda: site.view.in_flight("live") == 1, "the WebSocket to be all that is counted")
        echoes = chat.echoes
        eventually(lambda: chat.echoes > echoes, "the WebSocket to go on")
    assert chat.fault is None
    site.balancers[0].idle("live")
    assert max(lags.values()) < 1, lags
    assert sum(totals(site.received("live"))) == load.done + 1
    # And the last one is the one in use.
    counts = totals(site.run("live", total=900))
    assert max(counts) - min(counts) <= 1


def test_a_canary_gets_its_share_and_is_compared(site: Site) -> None:
    """By address all requests of this client go to one backend: that gets the canary's share more."""
    pool, total = "tried", 4000
    site.lb("algorithm", "set", "ip-hash", "--canary", "10%", "--pool", pool)
    Watch(site, pool).until(site.view.registry.version(pool))
    counts = sorted(totals(site.run(pool, held, total=total)))

    def trial() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(site.lb("status", "--json"))["pools"][pool]["trial"]
        return found

    eventually(lambda: sum(each["requests"] for each in trial()) == total, "all workers to have told")
    mine, its = trial()
    assert (mine["algorithm"], its["algorithm"]) == ("round-robin", "ip-hash")
    assert (mine["failures"], its["failures"]) == (0, 0)
    assert 0 < its["mean"] < 1
    # Each of the four workers is within one request of the share.
    assert abs(its["requests"] - total / 10) <= 4
    assert counts[1] - counts[0] <= 1
    assert abs(counts[2] - counts[1] - its["requests"]) <= 1
    site.lb("algorithm", "set", "ip-hash", "--canary", "0%", "--pool", pool)
    assert trial() == []


def test_an_installed_algorithm_is_chosen_while_the_balancer_runs(site: Site, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    path = os.pathsep.join(
        filter(None, (str(install(source, tmp_path / "installed")), os.getenv("PYTHONPATH")))
    )
    balancer = site.system.balancer(
        backends=",".join(backend.url for backend in site.backends), workers=2, env={"PYTHONPATH": path}
    )
    assert site.lb("algorithm", "set", "tenant", balancer=balancer) == "pool default: tenant\n"
    eventually(lambda: _shown(balancer, 12) == {"tenant"}, "both workers to have it")
    tenants = 30
    load = Load(
        [balancer.port],
        16,
        lambda number: f"/tenant/{number % tenants}",
        total=1200,
        field=lambda number: f"X-Tenant: {number % tenants}",
    ).run()
    assert load.failures == []
    balancer.idle()
    assert balancer.process.err.count("goes on by turns") == 0
    found = [{p for p in backend.counts() if p.startswith("/tenant/")} for backend in site.backends]
    used = [sum(f"/tenant/{tenant}" in paths for paths in found) for tenant in range(tenants)]
    assert set(used) == {1, 2}  # the last backend has no neighbour
    assert used.count(2) > tenants / 3
    assert all(found)


def _shown(balancer: Balancer, answers: int) -> set[str]:
    """The algorithms that so many answers of the control listener name."""
    found = set()
    for _ in range(answers):
        with urllib.request.urlopen(f"http://127.0.0.1:{balancer.control}/v1/pools", timeout=5) as answer:
            found.add(json.load(answer)["pools"]["default"]["algorithm"])
    return found
