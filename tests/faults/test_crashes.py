"""Processes are killed (-9) or stopped under load: nothing they held stays, and the turn is exact."""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import ExitStack

import pytest

from tests.faults.crowd import Crowd, exact
from tests.faults.pools import two_pools
from tests.support.backends import Backend, in_steps, ok, stall
from tests.support.clients import Client, request
from tests.support.processes import Balancer, System, refuses
from tests.support.run import alive, descendants, eventually

KINDS = ["gevent", "gthread"]

# What this project's own workers say, and gunicorn's.
_GONE = re.compile("the master is gone|Parent changed")


def pair(system: System, held: Backend, worker: str = "gevent", workers: int = 2) -> list[Balancer]:
    """Two gunicorns on one store: a pool of two backends, and one whose backend does not answer."""
    store = system.store()
    config = two_pools([system.plain_backend().url for _ in range(2)], "held", held.url)
    made = [
        system.balancer(store=store.url, config=config, worker=worker, workers=workers, wait=False)
        for _ in range(2)
    ]
    for one in made:
        one.start()
    eventually(lambda: made[0].view.workers() == 2 * workers, "all workers to join")
    return made


def hold(stack: ExitStack, balancer: Balancer, count: int) -> list[Client]:
    """Clients whose requests are under way."""
    before = balancer.view.in_flight("held")
    clients = [stack.enter_context(Client(balancer.port)) for _ in range(count)]
    for client in clients:
        client.send(request("GET", "/", host="held.example"))
    eventually(lambda: balancer.view.in_flight("held") == before + count, "requests that last")
    return clients


def counts_are_even(balancer: Balancer) -> None:
    """The shared cursor has never jumped: every claim that there ever was counts."""
    counts = balancer.view.counts().values()
    assert max(counts) - min(counts) <= 1, counts


@pytest.mark.slow
@pytest.mark.parametrize("worker", KINDS)
def test_workers_are_killed(system: System, worker: str) -> None:
    """Each takes its own requests with it, and no other's."""
    backends = [system.plain_backend() for _ in range(2)]
    balancer = system.balancer(backends=",".join(one.url for one in backends), workers=2, worker=worker)
    balancer.tracebacks = worker == "gthread"
    with Crowd([balancer.port]).running() as crowd:
        crowd.more(100)
        for turn in range(1, 4):
            killed = balancer.worker_pids[0]
            os.kill(killed, signal.SIGKILL)
            eventually(lambda killed=killed: not alive(killed), "it to die")  # type: ignore[misc]
            eventually(lambda: len(balancer.worker_pids) == 2, "another worker")
            crowd.more(100)
            # Whoever had no connection to it has noticed nothing.
            assert crowd.only_cut() <= turn * crowd.clients
    ended = time.monotonic()
    balancer.idle()
    print(f"{crowd.figures()}, counts right after {time.monotonic() - ended:.1f} s")
    counts_are_even(balancer)
    exact([balancer.port], backends, balancer)


@pytest.mark.parametrize("worker", KINDS)
def test_a_master_is_killed(system: System, worker: str) -> None:
    """Its workers finish what runs, and go; the other balancer notices nothing."""
    with Backend(in_steps(ok())) as held, ExitStack() as stack:
        killed, other = pair(system, held, worker)
        clients = hold(stack, killed, 4)
        family = descendants(killed.pid)
        with Crowd([other.port]).running() as crowd:
            crowd.more(100)
            killed.ended_badly = True
            killed.send(signal.SIGKILL)
            began = time.monotonic()
            eventually(lambda: len(_GONE.findall(killed.process.err)) == 2, "its workers to notice")
            noticed = time.monotonic() - began
            assert any(map(alive, family)), "what ran was not finished"
            held.may_go_on.release(4)
            assert [client.read_answer().status for client in clients] == [200] * 4
            eventually(lambda: not any(map(alive, family)), "its workers to end")
            assert refuses(killed.port)
            crowd.more(100)
        assert crowd.failures == []
        print(f"{crowd.figures()} at the other, noticed after {noticed:.1f} s")
        assert other.view.workers() == 2  # they have left, and not been reaped
        other.idle("held")
        other.idle()
        counts_are_even(other)
        # And the next one starts as if nothing had been.
        killed.launch()
        killed.start()
        eventually(lambda: other.view.workers() == 4, "its workers to join")


@pytest.mark.slow
def test_a_whole_gunicorn_is_killed(system: System) -> None:
    """What it held is given back by others, and they go on."""
    with Backend(stall) as held, ExitStack() as stack:
        killed, other = pair(system, held)
        hold(stack, killed, 6)
        hold(stack, other, 2)
        with Crowd([other.port]).running() as crowd, Crowd([killed.port]).running() as lost:
            crowd.more(100)
            lost.more(100)
            killed.ended_badly = True
            # The master first: it would start others.
            for pid in (killed.pid, *descendants(killed.pid)):
                os.kill(pid, signal.SIGKILL)
            began = time.monotonic()
            eventually(lambda: other.view.in_flight("held") == 2, "its claims to be given back", 12)
            reaped = time.monotonic() - began
            eventually(lambda: other.view.workers() == 2, "its workers to be forgotten")
            crowd.more(100)
            killed.launch()
            killed.start()
            done = lost.done
            eventually(lambda: lost.done > done + 100, "it to serve again")
        assert crowd.failures == []
        lost.only_cut()
        print(f"{crowd.figures()} at the other, counts right after {reaped:.1f} s")
        held.hang_up()
        other.idle("held")
        other.idle()
        counts_are_even(other)


@pytest.mark.slow
def test_a_whole_gunicorn_with_its_embedded_store_is_killed(system: System) -> None:
    """All but the store, which nobody is left to stop: the next one takes it over, with all it knew."""
    backends = [system.plain_backend() for _ in range(2)]
    balancer = system.balancer(backends=",".join(one.url for one in backends), workers=2)
    with Crowd([balancer.port]).running() as crowd:
        crowd.more(100)
        store = balancer.store_pid
        for pid in (balancer.pid, *balancer.worker_pids):
            os.kill(pid, signal.SIGKILL)
        balancer.launch()
        balancer.start()
        crowd.more(100)
    crowd.only_cut()
    assert balancer.store_pid == store
    balancer.idle()
    counts_are_even(balancer)
    exact([balancer.port], backends, balancer)
    assert balancer.stop() == 0
    assert not alive(store)


@pytest.mark.slow
def test_a_worker_stands_still_for_longer_than_its_lease(system: System) -> None:
    """Its claims are given back, and counted again when it goes on; its clients wait, and are answered."""
    with Backend(in_steps(ok())) as held, ExitStack() as stack:
        stopped, other = pair(system, held, workers=1)
        clients = hold(stack, stopped, 3)
        (pid,) = stopped.worker_pids
        with Crowd([other.port]).running() as crowd, Crowd([stopped.port]).running() as waiting:
            crowd.more(100)
            waiting.more(100)
            os.kill(pid, signal.SIGSTOP)
            try:
                eventually(lambda: other.view.workers() == 1, "its lease to be reaped", 15)
                # Each pool has a lease of its own.
                eventually(lambda: other.view.in_flight("held") == 0, "what it holds to be given back")
                crowd.more(50)
            finally:
                os.kill(pid, signal.SIGCONT)
            eventually(lambda: other.view.workers() == 2, "it to be back")
            eventually(lambda: other.view.in_flight("held") == 3, "what it holds to be counted again")
            waiting.more(100)
        assert crowd.failures == waiting.failures == []
        print(f"{crowd.figures()}; at the one that stood still {waiting.figures()}")
        held.may_go_on.release(3)
        assert [client.read_answer().status for client in clients] == [200] * 3
        other.idle("held")
        other.idle()
        counts_are_even(other)


@pytest.mark.slow
def test_the_health_daemon_that_probes_is_killed(system: System) -> None:
    """Another one goes on in less than two intervals, and one only; requests notice nothing."""
    interval = 1.0
    backends = [system.plain_backend() for _ in range(3)]
    urls = ", ".join(f'{{url = "{one.url}"}}' for one in backends)
    config = f'[pools.default]\nbackends = [{urls}]\nhealth = {{path = "/probe", jitter = 0.0}}\n'
    balancer = system.balancer(config=config, workers=2)
    first = system.health(balancer, interval)
    states = balancer.view.states
    eventually(lambda: set(states().values()) == {"up"}, "the backends to be found well")
    others = [system.health(balancer, interval) for _ in range(2)]
    for one in others:
        one.until(lambda one=one: "standing by" in one.err + one.out, "it to stand by")  # type: ignore[misc]

    holder = balancer.view.registry.health_owner
    former = holder()
    with Crowd([balancer.port]).running() as crowd:
        crowd.more(100)
        first.signal(signal.SIGKILL)
        first.wait()
        began = time.monotonic()
        backends[2].kill()  # in the gap
        eventually(lambda: holder() not in (None, former), "another one to take over")
        taken = time.monotonic() - began
        eventually(lambda: states()[backends[2].id] == "down", "it to find out who is dead")
        found = time.monotonic() - began
        # Each probe is an interval after the one before; two daemons would send twice as many.
        before, since = backends[0].counts()["/probe"], time.monotonic()
        eventually(lambda: backends[0].counts()["/probe"] >= before + 5, "five probes")
        assert time.monotonic() - since > 3 * interval
    assert crowd.failures == []
    print(f"{crowd.figures()}, taken over after {taken:.2f} s, verdict after {found:.2f} s")
    for one in others:
        assert one.end() == 0
    balancer.idle()
