"""A backend on which requests fail is ejected, once for the fleet, and comes back by one probing request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from lb.state.registry import BackendStatus
from tests.support.clients import Client, Load, get, request
from tests.support.processes import Balancer, PlainBackend, System
from tests.support.run import eventually, free_port

KINDS = ["gevent", "gthread"]
BRIEF = {
    "LB_OUTLIER_BASE_EJECTION_TIME": "1",
    "LB_OUTLIER_MAX_EJECTION_TIME": "4",
}
"""Ejections that a test can wait for."""
LONG = {"LB_OUTLIER_BASE_EJECTION_TIME": "300"}
"""Others, that are over only by what is to end them."""

SOON = 200
"""Requests that a backend may get from its first failure until it is ejected. It takes 5 in a row; the others
are under way by then, or claimed while a busy machine commits. Clients pause, so their speed does not matter.
"""


class Fleet:
    """Two balancers of two workers each on one store, and two backends, the first of which is to fail; it is
    at `port`.
    """

    def __init__(self, system: System, worker: str, env: Mapping[str, str] = BRIEF, port: int = 0) -> None:
        self.store = system.store()
        self.bad, self.good = system.plain_backend(port), system.plain_backend()
        backends = f"{self.bad.url},{self.good.url}"
        how: dict[str, Any] = {
            "store": self.store.url,
            "backends": backends,
            "workers": 2,
            "worker": worker,
            "env": env,
        }
        self.balancers = [system.balancer(**how) for _ in range(2)]

    def load(self) -> Load:
        return Load([one.port for one in self.balancers], 16, checked=True, pause=0.02)

    def said(self, text: str) -> int:
        """How often the log of any balancer says that."""
        return sum(one.process.err.count(text) for one in self.balancers)

    def status(self) -> BackendStatus:
        return status(self.balancers[0], self.bad)


def status(balancer: Balancer, backend: PlainBackend) -> BackendStatus:
    (found,) = (one for one in balancer.view.registry.status("default") if one.id == backend.id)
    return found


def served(backend: PlainBackend) -> int:
    return sum(backend.counts().values())


@pytest.mark.parametrize("worker", KINDS)
def test_who_says_503_is_ejected_once_and_probed_by_one_request(system: System, worker: str) -> None:
    fleet = Fleet(system, worker)
    with fleet.load().running() as load:
        load.more(100)
        assert (fleet.status().ejections, load.failures) == (0, [])
        version = fleet.balancers[0].view.registry.version("default")
        before = served(fleet.bad)
        fleet.bad.fault("503")
        eventually(lambda: fleet.status().state == "ejected", "it to be ejected")
        # Each ejection but the first was begun by one request of all that the two balancers are given.
        eventually(lambda: fleet.status().ejections == 3, "two probes to fail")
        changes = fleet.balancers[0].view.registry.version("default") - version
        failed = served(fleet.bad) - before
        assert changes == 3
        assert failed <= SOON + 2
        # What it answered was passed on, and nothing else has failed.
        assert load.statuses[503] == len(load.failures) <= failed
        fleet.bad.fault("")
        eventually(lambda: fleet.said("is back: a request that probed it succeeded") == 1, "its return")
        assert fleet.said("is ejected for") == 3
        back = served(fleet.bad)
        load.more(100)
        assert served(fleet.bad) > back
    assert load.statuses[503] == len(load.failures)
    for balancer in fleet.balancers:
        balancer.idle()


def test_a_half_open_backend_gets_one_request(system: System) -> None:
    fleet = Fleet(system, "gevent")
    with fleet.load().running() as load:
        fleet.bad.fault("503")
        eventually(lambda: fleet.status().state == "ejected", "it to be ejected")
        load.more(50)  # whatever was under way is over
        for _ in range(3):
            before, ejections = served(fleet.bad), fleet.status().ejections
            eventually(lambda: fleet.status().ejections > ejections, "a probe to fail")
            load.more(50)
            assert served(fleet.bad) - before == fleet.status().ejections - ejections


@pytest.mark.parametrize("worker", KINDS)
def test_no_request_fails_when_one_resets_its_connections(system: System, worker: str) -> None:
    fleet = Fleet(system, worker)
    with fleet.load().running() as load:
        load.more(100)
        before = served(fleet.bad)
        fleet.bad.fault("reset")
        eventually(lambda: fleet.status().state == "ejected", "it to be ejected")
        load.more(200)
        # A reused connection that is reset may have been an old one: each attempt may count twice.
        assert served(fleet.bad) - before <= 2 * SOON
        fleet.bad.fault("")
        eventually(lambda: fleet.said("is back: a request that probed it succeeded") == 1, "its return")
        load.more(100)
    assert load.failures == []


@pytest.mark.parametrize("worker", KINDS)
def test_while_the_store_is_away_each_worker_ejects_for_itself(system: System, worker: str) -> None:
    fleet = Fleet(system, worker)
    alone = "(on this worker's own view)"

    def each_said(text: str) -> bool:
        """Has each balancer said it? Not each worker need have been given requests."""
        return all(f"{text} {alone}" in one.process.err for one in fleet.balancers)

    with fleet.load().running() as load:
        load.more(100)
        fleet.store.stop()
        eventually(lambda: fleet.said("shared state away") == 4, "all workers to notice")
        fleet.bad.fault("reset")
        eventually(lambda: each_said("is ejected for 1 s: 5 failures in a row"), "its ejections")
        fleet.bad.fault("")
        eventually(lambda: each_said("is back: a request that probed it succeeded"), "its return")
        before = fleet.said("shared state in use")  # one may have lost it before it had it
        fleet.store.start()
        eventually(lambda: fleet.said("shared state in use") == before + 4, "the store to be used again")
        load.more(100)
    assert load.failures == []


@pytest.mark.parametrize("worker", KINDS)
def test_a_client_that_leaves_blames_nobody(system: System, worker: str) -> None:
    slow, other = system.plain_backend(), system.plain_backend()
    balancer = system.balancer(backends=f"{slow.url},{other.url}", workers=2, worker=worker)
    for turn in range(40):
        with Client(balancer.port) as client:
            client.send(request("GET", "/?300"))
            if turn % 2:
                client.reset()
    for _ in range(10):
        with Client(balancer.port) as client:
            client.send(request("POST", "/", "Content-Length: 100") + b"half")
    balancer.idle()
    assert [status(balancer, one).ejections for one in (slow, other)] == [0, 0]
    assert "is ejected" not in balancer.process.err


def test_the_last_one_is_never_ejected(system: System) -> None:
    only = system.plain_backend()
    balancer = system.balancer(backends=only.url, env=BRIEF)
    only.fault("503")
    assert [get(balancer.port).status for _ in range(30)] == [503] * 30
    assert served(only) == 30
    only.fault("")
    assert get(balancer.port).status == 200


@pytest.mark.parametrize("worker", KINDS)
def test_one_that_is_killed_and_restarted_is_found_by_knocking(system: System, worker: str) -> None:
    """No health daemon, and an ejection that would last far longer than this test."""
    with free_port() as port:
        fleet = Fleet(system, worker, LONG, port)
        with fleet.load().running() as load:
            load.more(100)
            fleet.bad.kill()
            eventually(lambda: fleet.status().state == "ejected", "it to be ejected")
            load.more(300)
            assert (fleet.status().state, fleet.said("accepts connections again")) == ("ejected", 0)
            fleet.bad = system.plain_backend(port)
            eventually(lambda: served(fleet.bad) > 50, "its share of the requests")
        assert load.failures == []
        assert (fleet.said("is ejected for 300 s"), fleet.said("accepts connections again")) == (1, 1)
        assert fleet.said("is back: a request that probed it succeeded") == 1
        assert fleet.status().state == "unknown"
        for balancer in fleet.balancers:
            balancer.idle()


@pytest.mark.parametrize("worker", KINDS)
def test_the_same_while_the_store_is_away(system: System, worker: str) -> None:
    alone = "(on this worker's own view)"
    with free_port() as port:
        fleet = Fleet(system, worker, LONG, port)
        with fleet.load().running() as load:
            load.more(100)
            fleet.store.stop()
            eventually(lambda: fleet.said("shared state away") == 4, "all workers to notice")
            fleet.bad.kill()
            eventually(lambda: fleet.said("is ejected for 300 s"), "its ejections")
            load.more(300)
            fleet.bad = system.plain_backend(port)
            eventually(lambda: served(fleet.bad) > 50, "its share of the requests")
            before = fleet.said("shared state in use")  # one may have lost it before it had it
            fleet.store.start()
            eventually(lambda: fleet.said("shared state in use") == before + 4, "the store to be used again")
            load.more(100)
        assert load.failures == []
        assert fleet.said(f": one request may probe it {alone}") > 0


@pytest.mark.parametrize("worker", KINDS)
def test_knocking_lets_nobody_back_who_accepts_and_resets(system: System, worker: str) -> None:
    fleet = Fleet(system, worker, LONG)
    with fleet.load().running() as load:
        load.more(100)
        fleet.bad.fault("reset")
        eventually(lambda: fleet.status().state == "ejected", "it to be ejected")
        load.more(100)  # whatever was under way is over
        asked, knocks = served(fleet.bad), fleet.bad.silent()
        eventually(lambda: fleet.bad.silent() >= knocks + 3, "three knocks")
        load.more(100)
        assert served(fleet.bad) == asked
    assert (fleet.status().state, fleet.status().ejections) == ("ejected", 1)
    assert fleet.said("accepts connections again") == 0
    assert load.failures == []


def test_nobody_knocks_at_one_that_answers(system: System) -> None:
    fleet = Fleet(system, "gevent", LONG)
    with fleet.load().running() as load:
        load.more(100)
        fleet.bad.fault("503")
        eventually(lambda: fleet.status().state == "ejected", "it to be ejected")
        load.more(500)
    assert fleet.bad.silent() == 0


@pytest.mark.parametrize("worker", KINDS)
def test_nobody_is_ejected_while_all_answer_503(system: System, worker: str) -> None:
    fleet = Fleet(system, worker, LONG)
    fleet.bad.fault("503")
    fleet.good.fault("503")
    ports = [one.port for one in fleet.balancers]
    # Who has had no request yet might do better: each has failed one before the crowd comes.
    assert [get(ports[0]).status for _ in range(4)] == [503] * 4
    with Load(ports, 16, wanted=503, pause=0.02).running() as load:
        load.more(600)
        assert fleet.said("is ejected") == 0
        assert min(served(fleet.bad), served(fleet.good)) > 200
        fleet.good.fault("")
        eventually(lambda: fleet.status().state == "ejected", "the other one to be ejected")
    assert fleet.said("is ejected") == 1


def test_it_can_be_switched_off_and_ended_by_hand(system: System) -> None:
    bad, good = system.plain_backend(), system.plain_backend()
    balancer = system.balancer(backends=f"{bad.url},{good.url}")
    bad.fault("503")
    with Load([balancer.port], 4, wanted=503).running():
        eventually(lambda: status(balancer, bad).state == "ejected", "it to be ejected")
    assert f"{bad.id}" in balancer.lb("status").stdout
    bad.fault("")
    assert balancer.lb("backends", "ready", bad.id).stdout == f"{bad.id}: unknown, gets requests\n"
    assert [get(balancer.port).status for _ in range(4)] == [200] * 4
    off = system.balancer(backends=f"{bad.url},{good.url}", env={"LB_OUTLIER_ENABLED": "false"})
    bad.fault("503")
    assert sorted(get(off.port).status for _ in range(40)) == [200] * 20 + [503] * 20
