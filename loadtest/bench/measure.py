"""The interleaved rounds: what is started, who is measured when, and what is noted about it."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from loadtest.bench import wrk
from loadtest.bench.balancer import NAME, PURE, Balancer, Store, StoreCounts
from loadtest.bench.binaries import Programs
from loadtest.bench.peers import PEERS
from loadtest.bench.site import Proxy, Running, Site, start_backends, verify
from loadtest.procs import Children, NotReadyError

WARM_UP_SECONDS = 1


@dataclass(frozen=True)
class Plan:
    """What to measure: proxies by name, `rounds` of `seconds` per scenario and proxy."""

    proxies: Sequence[str]
    scenarios: Sequence[wrk.Scenario]
    rounds: int
    seconds: int
    programs: Programs
    settings: Mapping[str, str]
    """Environment variables for the balancer."""
    python: Path | None = None
    """The interpreter of the environment that has the compiled balancer; None: this source tree's."""
    plain_python: Path | None = None
    """The same for the balancer that is not compiled; None: it is not measured."""


@dataclass(frozen=True)
class Run:
    """One measurement.

    `cpu` is the processor time of the proxy per second of the run: 1 means that it used its
    whole core, less, that something else was the limit. `others` is the same of all else
    that ran on its core, which on an idle machine is next to nothing.
    """

    round: int
    scenario: str
    proxy: str
    sample: wrk.Sample
    cpu: float
    others: float
    store: StoreCounts | None = None


@dataclass(frozen=True)
class Outcome:
    """All measurements, the version of each proxy, and the core of each of the balancer's processes."""

    runs: Sequence[Run]
    versions: Mapping[str, str]
    pinning: Mapping[str, int]


def rotated(proxies: Sequence[Running], by: int) -> list[Running]:
    """The same proxies, beginning with another one each round, so that none is always after the same."""
    by %= len(proxies)
    return [*proxies[by:], *proxies[:by]]


def cores() -> tuple[int, int]:
    """The proxies' core and the other one. Raises `NotReadyError` on a machine with one."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise NotReadyError("the bench needs two cores: one for the proxy, one for the load")
    return usable[0], usable[1]


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    told = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in told if line.startswith("model name")), "")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def start(proxies: Sequence[Proxy], site: Site, console: Console) -> list[Running]:
    """Start and check all; one that is missing is left out with a line that says so."""
    started: list[Running] = []
    for proxy in proxies:
        if reason := proxy.missing(site.programs):
            console.print(f"left out: {reason}", markup=False)
            continue
        running = proxy.start(site)
        verify(running, site)
        running.empty_log()
        started.append(running)
    if not started:
        raise NotReadyError("there is nothing to measure")
    return started


def core_seconds(core: int) -> float:
    """Processor time that all processes together have used on `core` so far, in seconds."""
    times = psutil.cpu_times(percpu=True)[core]
    return times.user + times.nice + times.system


def measure(
    proxy: Running, scenario: wrk.Scenario, site: Site, *, seconds: int, number: int, store: Store | None
) -> Run:
    """Warm one proxy up with a scenario, then measure it for `seconds`."""
    program = site.programs.require("wrk")

    def load(duration: int) -> wrk.Sample:
        try:
            return wrk.run(program, scenario, proxy.port, seconds=duration, core=site.load_core)
        except wrk.WrkError as error:
            told = f"{proxy.name}, {scenario.name}: {error}\n{proxy.name} said:\n{proxy.child.tail()}"
            raise wrk.WrkError(told) from error

    load(WARM_UP_SECONDS)
    counts = store.counts() if store else None
    clock, own, core = time.monotonic(), proxy.cpu_seconds(), core_seconds(site.proxy_core)
    sample = load(seconds)
    elapsed = time.monotonic() - clock
    cpu = (proxy.cpu_seconds() - own) / elapsed
    others = max(0.0, (core_seconds(site.proxy_core) - core) / elapsed - cpu)
    used = store.counts().since(counts) if store and counts else None
    proxy.empty_log()
    return Run(number, scenario.name, proxy.name, sample, cpu, others, used)


def perform(plan: Plan, console: Console) -> Outcome:
    """Start everything, measure round by round, stop everything.

    Raises `FileNotFoundError`, `NotReadyError`, `WrongAnswerError` or `WrkError` with a message
    for people when it can't be done.
    """
    plan.programs.require("wrk")
    proxy_core, load_core = cores()
    balancer = Balancer(plan.settings, python=plan.python)
    pure = (Balancer(plan.settings, PURE, plan.plain_python),) if plan.plain_python else ()
    everyone: tuple[Proxy, ...] = (balancer, *pure, *PEERS)
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="lb-bench-") as name, Children(Path(name)) as children:
        backends = start_backends(children, plan.programs, load_core)
        site = Site(children, plan.programs, backends, proxy_core, load_core)
        started = start([proxy for proxy in everyone if proxy.name in plan.proxies], site, console)
        for number in range(plan.rounds):
            for scenario in plan.scenarios:
                for proxy in rotated(started, number):
                    store = balancer.store if proxy.name == NAME else None
                    run = measure(proxy, scenario, site, seconds=plan.seconds, number=number, store=store)
                    runs.append(run)
                    console.print(
                        f"round {number + 1}/{plan.rounds}  {run.scenario:9} {run.proxy:13}"
                        f"{run.sample.rate:9.0f}/s  p99 {run.sample.p99_ms:7.2f} ms"
                        f"  core {run.cpu:4.0%}  errors {run.sample.failed}"
                    )
    return Outcome(runs, {running.name: running.version for running in started}, balancer.pinning)
