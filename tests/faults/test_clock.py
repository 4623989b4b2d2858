"""Clocks that jump: nothing is decided by the time of day, and the store's clock may do what it likes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lb.state.keys import PoolKeys
from lb.state.lease import LEASE
from tests.support.backends import Backend, stall
from tests.support.clients import Client, Load, get, request
from tests.support.need import need_binary
from tests.support.processes import Balancer, System
from tests.support.run import eventually

HOUR = 3600
JUMPS = pytest.mark.parametrize("jump", [HOUR, -HOUR], ids=["forward", "back"])


class Clock:
    """The time of day as some processes see it; other clocks run on."""

    def __init__(self, folder: Path) -> None:
        library, self._file = folder / "clock.so", folder / "clock"
        source = Path(__file__).with_name("clock.c")
        compiler = need_binary("cc", "gcc")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
        self._file.write_bytes(bytes(8))
        self.env: Mapping[str, str] = {"LD_PRELOAD": str(library), "CLOCK_FILE": str(self._file)}

    def jump(self, seconds: int) -> None:
        """Let it be so much before or behind the true time."""
        with self._file.open("r+b") as file:
            file.write(seconds.to_bytes(8, sys.byteorder, signed=True))


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


def ages(balancer: Balancer) -> list[float]:
    """How long ago each worker gave a sign of life, by the store's clock."""
    client, now = balancer.view.client, balancer.view.registry.now()
    found: Any = client.zrange(PoolKeys("default").workers, 0, -1, withscores=True)
    return [now - score for _, score in found]


@JUMPS
def test_the_clock_of_the_store(system: System, clock: Clock, jump: int) -> None:
    store = system.store(env=clock.env)
    one, two = system.plain_backend(), system.plain_backend()
    balancer = system.balancer(backends=f"{one.url},{two.url}", store=store.url, workers=2)
    load = Load([balancer.port], 8)
    with load.running():
        eventually(lambda: load.done > 100, "some requests")
        clock.jump(jump)
        eventually(lambda: abs(balancer.view.registry.now() - time.time() - jump) < HOUR / 2, "the jump")
        eventually(lambda: [-2 < age < LEASE for age in ages(balancer)] == [True, True], "signs of life")
        done = load.done
        eventually(lambda: load.done > done + 500, "more requests")
    assert not load.failures
    balancer.idle()
    counts = balancer.view.counts()
    assert max(counts.values()) - min(counts.values()) <= 1
    assert sum(counts.values()) == load.done == one.counts()["/"] + two.counts()["/"]
    assert "Traceback" not in balancer.process.err


def test_who_died_before_the_clock_was_put_back(system: System, clock: Clock) -> None:
    """Its last sign of life lies in the future for an hour; what it held is not kept for as long."""
    store = system.store(env=clock.env)
    with Backend(stall) as backend:
        balancer = system.balancer(backends=backend.url, store=store.url)
        balancer.ended_badly = True
        with Client(balancer.port) as client:
            client.send(request("GET", "/held"))
            eventually(lambda: backend.requests, "the request")
            assert balancer.view.in_flight() == 1
            (worker,) = balancer.worker_pids
            os.kill(worker, signal.SIGKILL)
            clock.jump(-HOUR)
            eventually(lambda: balancer.view.in_flight() == 0, "what it held to be given back")
        eventually(lambda: balancer.view.workers() == 1, "the new worker to be alone")


@JUMPS
def test_the_clock_of_a_whole_host(system: System, clock: Clock, jump: int) -> None:
    """Master, workers, the embedded store and the health daemon."""
    backend, other = system.plain_backend(), system.plain_backend()
    balancer = system.balancer(backends=f"{backend.url},{other.url}", workers=2, env=clock.env)
    system.health(balancer)
    up = {backend.id: "up", other.id: "up"}
    eventually(lambda: balancer.view.states() == up, "the backends to be up")
    load = Load([balancer.port], 8)
    with load.running():
        eventually(lambda: load.done > 100, "some requests")
        clock.jump(jump)
        eventually(
            lambda: any(abs(entry["time"] - time.time() - jump) < HOUR / 2 for entry in balancer.log),
            "the jump",
        )
        eventually(lambda: [-2 < age < LEASE for age in ages(balancer)] == [True, True], "signs of life")
        assert balancer.view.states() == up
        other.kill()
        eventually(lambda: balancer.view.states()[other.id] == "down", "probes to go on")
    assert not load.failures
    assert get(balancer.port).status == 200
    balancer.idle()
