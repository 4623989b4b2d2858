from __future__ import annotations

import io
import random
import socket
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import gevent
import pytest

from lb.health.engine import Engine
from lb.health.probe import Outcome, Prober, Target
from lb.health.report import Log
from lb.health.roster import Roster
from lb.model import Backend, HealthPolicy, PoolSettings, Snapshot
from tests.health.backends import Scripted, eventually, read_request


class Bench:
    """An engine without a store; `allowed` and `verdicts` are what the keeper would say and hear."""

    def __init__(self, concurrency: int = 16) -> None:
        self.allowed = True
        self.verdicts = 0
        self.out = io.StringIO()
        self.engine = Engine(
            lambda _: self.allowed, self.heard, Log(stream=self.out), concurrency, {}, random.Random(3)
        )
        self.loop = gevent.spawn(self.engine.run)

    def heard(self) -> None:
        self.verdicts += 1

    def watch(self, *urls: str, pool: str = "p", **policy: float) -> Roster:
        roster = Roster(pool)
        backends = {f"b{n}": Backend(f"b{n}", url) for n, url in enumerate(urls)}
        found = HealthPolicy(**{"interval": 0.1, "timeout": 1.0, "jitter": 0.0, **policy})  # type: ignore[arg-type]
        snapshot = Snapshot(pool, 1, PoolSettings(), backends)
        self.engine.adopt(roster, roster.reconcile(snapshot, found))
        return roster

    def end(self) -> None:
        self.loop.kill()
        self.engine.clear()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.end()


def test_probes_and_tells_of_verdicts(bench: Bench) -> None:
    with Scripted() as backend:
        roster = bench.watch(backend.url)
        eventually(lambda: bench.verdicts == 1)
        assert roster.members["b0"].track.health == "up"
        eventually(lambda: backend.requests >= 5)
        assert bench.verdicts == 1
        backend.kill()
        eventually(lambda: roster.members["b0"].track.health == "down")
        assert bench.engine.done >= 6


def test_nothing_starts_while_it_is_not_allowed(bench: Bench) -> None:
    bench.allowed = False
    with Scripted() as backend:
        bench.watch(backend.url)
        for _ in range(20):
            bench.engine._turn()
        gevent.sleep(0)
        assert backend.requests == 0
        bench.allowed = True
        eventually(lambda: backend.requests >= 2)


def test_no_more_at_a_time_than_allowed_and_all_in_turn() -> None:
    bench = Bench(concurrency=3)
    busy = most = 0

    def act(sock: socket.socket) -> None:
        nonlocal busy, most
        read_request(sock)
        busy += 1
        most = max(most, busy)
        time.sleep(0.01)
        busy -= 1
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

    with Scripted(act) as backend:
        roster = bench.watch(*[backend.url] * 30, interval=5.0)
        eventually(lambda: all(one.track.health == "up" for one in roster.members.values()))
    bench.end()
    assert most <= 3


def test_a_probe_that_hangs_does_not_hold_up_the_others(bench: Bench) -> None:
    with Scripted(lambda sock: time.sleep(3)) as stuck, Scripted() as quick:
        bench.watch(stuck.url, quick.url, timeout=30.0)
        eventually(lambda: quick.requests >= 5)
        assert stuck.requests == 1


def test_a_probe_that_breaks_is_not_the_backends_fault(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    faults: list[Callable[[], Outcome]] = []

    def probe(_self: Prober, _to: Target) -> Outcome:
        return faults[0]()

    monkeypatch.setattr(Prober, "probe", probe)
    faults.append(lambda: Outcome(False, "Too many open files", 0.0, own_fault=True))
    roster = bench.watch("http://127.0.0.1:1")
    eventually(lambda: bench.engine.own_faults > 5)
    faults.clear()  # from now on `probe` itself raises
    before = bench.engine.own_faults
    eventually(lambda: bench.engine.own_faults > before + 5)
    assert roster.members["b0"].track.health == "unknown"
    assert roster.members["b0"].track.against == 0
    # Said once, not at each probe.
    assert bench.out.getvalue().count("cannot probe, no backend is blamed: Too many open files") == 1
    faults.append(lambda: Outcome(True, "status 200", 0.0))
    eventually(lambda: bench.verdicts == 1)


def test_an_address_that_cannot_be_probed_is_down(bench: Bench) -> None:
    roster = bench.watch("gopher://x", fall=2)
    eventually(lambda: roster.members["b0"].track.health == "down")
    assert "no address to probe" in roster.members["b0"].reason


def test_who_is_gone_is_not_probed_any_more(bench: Bench) -> None:
    with Scripted() as one, Scripted() as other:
        bench.watch(one.url, pool="one")
        roster = bench.watch(other.url, pool="other")
        eventually(lambda: one.requests and other.requests)
        bench.engine.forget("one")
        empty = Snapshot("other", 2, PoolSettings(), {})
        bench.engine.adopt(roster, roster.reconcile(empty, roster.policy))
        assert len(bench.engine._plan) == 0
        eventually(lambda: bench.engine._running.free_count() == 16)
        assert len(bench.engine._plan) == 0
        assert not bench.engine._targets


def test_two_probes_of_one_backend_do_not_become_two_chains(bench: Bench) -> None:
    with Scripted() as backend:
        roster = bench.watch(backend.url)
        for version in range(2, 12):
            # Another policy each time makes everybody fresh, also who is being probed at the moment.
            policy = HealthPolicy(interval=0.1, timeout=1.0, fall=version)
            snapshot = Snapshot("p", version, PoolSettings(), {"b0": roster.members["b0"].backend})
            bench.engine.adopt(roster, roster.reconcile(snapshot, policy))
            gevent.sleep(0)
        assert len(bench.engine._plan) <= 1
        eventually(lambda: backend.requests > 20)
        late = backend.times[-8:]
        assert all(b - a > 0.05 for a, b in pairwise(late))


def test_clear_cuts_short_what_runs(bench: Bench) -> None:
    with Scripted(lambda sock: time.sleep(3)) as stuck:
        bench.watch(stuck.url, timeout=30.0)
        eventually(lambda: stuck.requests)
        bench.engine.clear()
        eventually(lambda: bench.engine._running.free_count() == 16)
        assert bench.engine.rosters == {}
        assert bench.verdicts == 0
