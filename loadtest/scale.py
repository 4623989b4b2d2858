"""What choosing among many backends costs: each algorithm with 10, 1,000 and 10,000 of them, side by side.

    python -m loadtest.scale

For each number of backends a balancer with one worker and a store of its own, all of them on one core;
clients (wrk) and backends on another. The names of a pool share two addresses, so that what differs is the
choice, not how many connections are kept. Requests come from 1,000 addresses and ask for 1,000 paths.

Printed are requests per second and processor time per request, worker and store together, as medians over
interleaved rounds. Fails (exit 1) when 10,000 backends cost more than `--most` times what 10 do.
"""

from __future__ import annotations

import json
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import click
import psutil
import redis

from lb.algorithms import ALGORITHMS
from lb.state import decide
from lb.state.keys import PoolKeys
from lb.state.registry import Registry
from lb.state.store import connect
from loadtest import system
from loadtest.bench import wrk
from loadtest.bench.balancer import Store
from loadtest.bench.binaries import Programs
from loadtest.bench.measure import cores
from loadtest.bench.site import start_backends
from loadtest.procs import (
    Child,
    Children,
    NotReadyError,
    answers,
    free_ports,
    interrupted_by_signals,
    pin_tree,
    wait_until,
)

KEYS = 1000
"""Addresses that requests come from, and paths they ask for."""

POOL = "default"
WARM_UP_SECONDS = 1


@dataclass(frozen=True)
class Run:
    """One measurement: requests per second, processor time per request in microseconds, picks in one call."""

    algorithm: str
    backends: int
    rate: float
    worker: float
    store: float
    picks: float

    @property
    def cost(self) -> float:
        """Microseconds of worker and store per request."""
        return self.worker + self.store


class Balancer:
    """One worker and its store, for a pool of so many names. Raises NotReadyError."""

    def __init__(
        self, children: Children, count: int, backends: Sequence[int], python: Path, core: int
    ) -> None:
        self.count = count
        self.names = [f"b{number:05}" for number in range(count)]
        folder = children.folder / f"of{count}"
        folder.mkdir()
        config = folder / "lb.toml"
        config.write_text(_config(self.names, backends))
        self.port, self._control = free_ports(2)
        env = system.environment(
            backends=[], port=self.port, control=self._control, workers=1, runtime=folder / "run"
        )
        del env["LB_BACKENDS"]
        env |= {"LB_CONFIG": str(config), "LB_ACCESS_LOG": str(folder / "access.log")}
        self._log = folder / "access.log"
        where = system.Installed(python, system.ROOT if python == system.SOURCE_TREE.python else folder)
        self._child: Child = where.start_gunicorn(children, env, name=f"lb-{count}", core=core)
        self._child.require(lambda: answers(self.port), "an answer")
        client = connect(f"unix://{folder / 'run' / 'store.sock'}")
        self._registry = Registry(client)
        self.store = Store(redis.Redis(unix_socket_path=str(folder / "run" / "store.sock")))
        self._child.require(lambda: client.zcard(PoolKeys(POOL).workers) == 1, "a lease")
        store = self.store.pid
        (self._worker,) = (
            one
            for one in psutil.Process(self._child.pid).children()
            if one.pid != store and one.name().startswith(("python", "gunicorn"))
        )
        self._server = psutil.Process(store)
        for pid in (self._child.pid, self._worker.pid, store):
            pin_tree(pid, core)

    def report(self) -> None:
        """Let all backends say how much of them is free, some more than others."""
        for number, name in enumerate(self.names):
            free = 1 - number % 10 / 20
            self._registry.scripts.report(PoolKeys(POOL), name, free, lasts=86400.0, fade=1.0, blackout=0.0)

    def switch(self, algorithm: str) -> None:
        """Choose by `algorithm` from now on. Raises NotReadyError."""
        self._registry.change(POOL, decide.switch(algorithm))
        if not wait_until(lambda: self._chooses_by() == algorithm, 10):
            raise NotReadyError(f"{self.count} backends: not switched to {algorithm}\n{self._child.tail()}")

    def _chooses_by(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._control}/v1/pools", timeout=10) as answer:
            return str(json.load(answer)["pools"][POOL]["algorithm"])

    def measure(self, algorithm: str, load: Callable[[int, int], wrk.Sample], seconds: int) -> Run:
        """Warm up, then measure. Raises WrkError when a request failed."""
        load(self.port, WARM_UP_SECONDS)
        calls, worker, store = self.store.counts(), _cpu(self._worker), _cpu(self._server)
        sample = load(self.port, seconds)
        worker, store = _cpu(self._worker) - worker, _cpu(self._server) - store
        calls = self.store.counts().since(calls)
        with self._log.open("r+b") as file:
            file.truncate(0)
        if sample.failed:
            raise wrk.WrkError(f"{algorithm}, {self.count} backends: {sample.errors}\n{self._child.tail()}")
        return Run(
            algorithm,
            self.count,
            sample.rate,
            1e6 * worker / sample.requests,
            1e6 * store / sample.requests,
            sample.requests / max(1, calls.scripts),
        )


def _config(names: Sequence[str], backends: Sequence[int]) -> str:
    rows = ",\n".join(
        f'{{url = "http://127.0.0.1:{backends[number % len(backends)]}", id = "{name}"}}'
        for number, name in enumerate(names)
    )
    return "\n".join(
        [
            'trusted_proxies = ["127.0.0.1"]',
            f"[pools.{POOL}]",
            'hash = {key = "path", balance = 1.25}',
            "report = {period = 86400, blackout = 0}",
            f"backends = [\n{rows}\n]\n",
        ]
    )


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def table(runs: Sequence[Run], counts: Sequence[int]) -> str:
    """Medians as a table in Markdown: rates, costs, and costs over those with the fewest backends."""
    names = list(dict.fromkeys(run.algorithm for run in runs))
    heads = ["algorithm"]
    heads += [f"{count:,}: requests/s" for count in counts]
    heads += [f"{count:,}: µs" for count in counts]
    heads += [f"{count:,} / {counts[0]:,}" for count in counts[1:]]
    lines = [f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"]
    for name in names:
        of = [_of(runs, name, count) for count in counts]
        rates = [f"{median(run.rate for run in each):,.0f}" for each in of]
        costs = [
            f"{median(run.cost for run in each):.1f} ({median(run.store for run in each):.1f})" for each in of
        ]
        ratios = [f"{ratio(runs, name, counts[0], count):.2f}" for count in counts[1:]]
        lines.append(f"| {' | '.join([f'`{name}`', *rates, *costs, *ratios])} |")
    return "\n".join(lines)


def ratio(runs: Sequence[Run], algorithm: str, few: int, many: int) -> float:
    """What a request costs with many backends over what it costs with few."""
    least, most = (median(run.cost for run in _of(runs, algorithm, count)) for count in (few, many))
    return most / least


def _of(runs: Sequence[Run], algorithm: str, count: int) -> list[Run]:
    return [run for run in runs if (run.algorithm, run.backends) == (algorithm, count)]


def _numbers(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        found = tuple(sorted({int(word) for word in value.split(",")}))
    except ValueError:
        raise click.BadParameter("numbers, separated by commas") from None
    if found[0] < 1 or found[-1] > 99_999:
        raise click.BadParameter("each must be from 1 to 99999")
    return found


def _names(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[str, ...]:
    found = tuple(word.strip() for word in value.split(","))
    if unknown := [name for name in found if name not in ALGORITHMS]:
        raise click.BadParameter(f"unknown: {', '.join(unknown)}; known: {', '.join(ALGORITHMS)}")
    return found


@click.command()
@click.option("--algorithms", default=",".join(ALGORITHMS), callback=_names, help="Which. [default: all]")
@click.option("--backends", "counts", default="10,1000,10000", show_default=True, callback=_numbers)
@click.option("--connections", default=64, show_default=True, type=click.IntRange(1, 4096))
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1, 50))
@click.option("--seconds", default=2, show_default=True, type=click.IntRange(1, 60))
@click.option(
    "--most", default=1.25, show_default=True, help="What the most may cost over what the fewest do."
)
@click.option(
    "--python",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=system.SOURCE_TREE.python,
    help="The interpreter of an environment with the balancer. [default: this source tree]",
)
def main(
    algorithms: tuple[str, ...],
    counts: tuple[int, ...],
    connections: int,
    rounds: int,
    seconds: int,
    most: float,
    python: Path,
) -> None:
    """Measure what each algorithm costs with few and with many backends."""
    try:
        # Not resolved: it is the link in an environment that makes it that environment's.
        runs = perform(algorithms, counts, connections, rounds, seconds, python.absolute())
    except (FileNotFoundError, NotReadyError, wrk.WrkError) as exc:
        raise click.ClickException(str(exc)) from None
    click.echo(table(runs, counts))
    click.echo(
        f"\nProcessor time per request: worker and store (the store's share), {connections} connections, "
        f"{median(run.picks for run in runs):.0f} picks a call."
    )
    over = [name for name in algorithms if ratio(runs, name, counts[0], counts[-1]) > most]
    if over:
        click.echo(f"above {most:g} times the cost of {counts[0]:,}: {', '.join(over)}", err=True)
        sys.exit(1)


def perform(
    algorithms: Sequence[str],
    counts: Sequence[int],
    connections: int,
    rounds: int,
    seconds: int,
    python: Path,
) -> list[Run]:
    """All rounds. Raises FileNotFoundError, NotReadyError or WrkError with a message for people."""
    programs = Programs()
    client = programs.require("wrk")
    core, load_core = cores()
    scenario = wrk.Scenario("scale", "many keys", "/", connections, keys=KEYS)

    def load(port: int, duration: int) -> wrk.Sample:
        return wrk.run(client, scenario, port, seconds=duration, core=load_core)

    runs: list[Run] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lb-scale-")))
        stack.enter_context(interrupted_by_signals())
        children = stack.enter_context(Children(folder))
        backends = start_backends(children, programs, load_core)
        balancers = [Balancer(children, count, backends, python, core) for count in counts]
        if "resource-based" in algorithms:
            for balancer in balancers:
                balancer.report()
        for number in range(rounds):
            for algorithm in algorithms:
                for balancer in balancers:
                    balancer.switch(algorithm)
                first = number % len(balancers)
                for balancer in balancers[first:] + balancers[:first]:
                    run = balancer.measure(algorithm, load, seconds)
                    runs.append(run)
                    click.echo(
                        f"round {number + 1}/{rounds}  {algorithm:27}{run.backends:6} backends"
                        f"{run.rate:9,.0f}/s  worker {run.worker:5.1f} µs  store {run.store:5.1f} µs",
                        err=True,
                    )
    return runs


if __name__ == "__main__":
    main()
