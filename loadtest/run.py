"""The load test: three demo backends, two workers and a health daemon under Locust's clients.

    python -m loadtest --seconds 30 --users 200

Fails (exit 1) when a request failed or when round robin was off by more than one: over
any number of requests and workers, no backend may have served two more than another.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from loadtest import system
from loadtest.procs import Children, NotReadyError, answers, free_ports, interrupted_by_signals

BACKENDS = 3
PROBE_SECONDS = 2.0
LET_FINISH_SECONDS = 30
"""How long Locust's clients may take to finish what they have begun, in seconds."""

LOCUST_START_SECONDS = 60


@dataclass(frozen=True)
class Backend:
    """A demo backend and how many requests it has served, probes not counted."""

    name: str
    port: int

    def requests(self) -> int:
        """Ask the backend itself; the question is not counted."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/__stats", timeout=10) as answer:
            return int(json.load(answer)["requests"])


@dataclass(frozen=True)
class Result:
    """Locust's summary (see `locustfile.summary`) and the requests per backend during the run."""

    summary: Mapping[str, Any]
    served: Mapping[str, int]
    counted: Mapping[str, int]
    """The same as the balancer's shared state has counted them."""

    @property
    def requests(self) -> int:
        """Requests that the clients sent."""
        return sum(int(kind["requests"]) for kind in self.summary["kinds"])

    def problems(self) -> list[str]:
        """Everything that makes the test fail; empty when it passed."""
        found = [f"{error['count']} x {error['kind']}: {error['error']}" for error in self.summary["errors"]]
        failed = sum(int(kind["failures"]) for kind in self.summary["kinds"])
        if failed and not found:
            found.append(f"{failed} requests failed")
        if not self.requests:
            found.append("the clients sent nothing")
        for who, counts in (("the backends", self.served), ("the shared state", self.counted)):
            if counts and max(counts.values()) - min(counts.values()) > 1:
                found.append(f"round robin is off by more than one, as counted by {who}: {dict(counts)}")
        if not found and sum(self.served.values()) != self.requests:
            found.append(f"{self.requests} requests were sent, {sum(self.served.values())} arrived")
        return found


def start_backends(children: Children) -> list[Backend]:
    """Start the demo backends and return them once they answer."""
    backends = [Backend(f"demo-{number + 1}", port) for number, port in enumerate(free_ports(BACKENDS))]
    started = [
        children.start(
            backend.name,
            [sys.executable, "-m", "lb.demo", "--port", str(backend.port), "--name", backend.name],
            cwd=system.ROOT,
        )
        for backend in backends
    ]
    ports = [backend.port for backend in backends]
    for child, port in zip(started, ports, strict=True):
        child.require(lambda port=port: answers(port, "/__stats"), f"an answer on port {port}")  # type: ignore[misc]
    return backends


def counted(told: Any) -> dict[str, int]:
    """Requests by backend's URL, from what `lb status --json` tells."""
    return {
        str(backend["url"]): int(backend["requests"])
        for pool in told["pools"].values()
        for backend in pool["backends"]
    }


def differences(after: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    """`after - before` by key."""
    return {key: value - before.get(key, 0) for key, value in after.items()}


def run_locust(children: Children, port: int, users: int, seconds: int) -> Mapping[str, Any]:
    """Run Locust headless against `port` for `seconds` and return its summary."""
    target = children.folder / "summary.json"
    locust = children.start(
        "locust",
        [
            sys.executable,
            "-m",
            "locust",
            f"--locustfile={Path(__file__).parent / 'locustfile.py'}",
            "--headless",
            "--only-summary",
            f"--host=http://127.0.0.1:{port}",
            f"--users={users}",
            f"--spawn-rate={users}",
            f"--run-time={seconds}s",
            f"--stop-timeout={LET_FINISH_SECONDS}",
        ],
        env={**os.environ, "LB_LOADTEST_SUMMARY": str(target)},
    )
    limit = seconds + LET_FINISH_SECONDS + LOCUST_START_SECONDS
    if not locust.ended_within(limit) or not target.exists():
        raise NotReadyError(f"locust gave no result within {limit} s\n{locust.tail()}")
    result: Mapping[str, Any] = json.loads(target.read_text())
    return result


def run(children: Children, users: int, seconds: int, workers: int, console: Console) -> Result:
    """Start the whole system, load it, and return what came of it."""
    backends = start_backends(children)
    port, control = free_ports(2)
    env = system.environment(
        backends=[backend.port for backend in backends],
        port=port,
        control=control,
        workers=workers,
        runtime=children.folder / "run",
    )
    gunicorn = system.SOURCE_TREE.start_gunicorn(children, env)
    gunicorn.require(lambda: answers(port), f"an answer on port {port}")
    health = system.SOURCE_TREE.start_health(children, env, interval=PROBE_SECONDS)
    health.require(lambda: system.backends_up(control), "a good probe of every backend")
    # Membership is settled now; what is counted from here on must be exact.
    before = {backend.name: backend.requests() for backend in backends}
    told = counted(system.status(env))
    console.print(f"{users} users for {seconds} s on http://127.0.0.1:{port}, {workers} workers")
    summary = run_locust(children, port, users, seconds)
    served = differences({backend.name: backend.requests() for backend in backends}, before)
    return Result(summary, served, differences(counted(system.status(env)), told))


def _table(first: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(first, no_wrap=True)
    return table


def kinds_table(kinds: Sequence[Mapping[str, Any]]) -> Table:
    """Requests, failures and latencies by kind of request."""
    table = _table("kind of request")
    for heading in ("requests", "failed", "per s", "p50 ms", "p95 ms", "p99 ms", "max ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    for kind in kinds:
        times = [f"{kind[key]:.0f}" for key in ("p50", "p95", "p99", "max")]
        table.add_row(
            str(kind["name"]), str(kind["requests"]), str(kind["failures"]), f"{kind['rate']:.1f}", *times
        )
    return table


def shares_table(served: Mapping[str, int]) -> Table:
    """Requests and share by backend."""
    table = _table("backend")
    table.add_column("requests", justify="right")
    table.add_column("share", justify="right")
    total = sum(served.values()) or 1
    for name, count in served.items():
        table.add_row(name, str(count), f"{count / total:.2%}")
    return table


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--seconds", type=click.IntRange(1, 600), default=30, show_default=True, help="How long, in seconds."
)
@click.option(
    "--users", type=click.IntRange(1, 2000), default=200, show_default=True, help="Concurrent clients."
)
@click.option(
    "--workers", type=click.IntRange(1, 64), default=2, show_default=True, help="Workers of the balancer."
)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the result here."
)
def main(seconds: int, users: int, workers: int, json_file: Path | None) -> None:
    """Load the whole system with Locust; exit 1 if a request failed or round robin was not exact."""
    console = Console(highlight=False)
    began = time.monotonic()
    with interrupted_by_signals(), tempfile.TemporaryDirectory(prefix="lb-loadtest-") as folder:
        try:
            with Children(Path(folder)) as children:
                result = run(children, users, seconds, workers, console)
        except (NotReadyError, RuntimeError, OSError) as error:
            raise click.ClickException(str(error)) from error
    console.print("", kinds_table(result.summary["kinds"]), "", shares_table(result.served), "", sep="\n")
    problems = result.problems()
    if json_file is not None:
        told = {**result.summary, "served": result.served, "counted": result.counted, "problems": problems}
        json_file.write_text(json.dumps(told, indent=2) + "\n")
    for problem in problems:
        click.echo(f"FAILED: {problem}", err=True)
    if problems:
        sys.exit(1)
    console.print(
        f"{result.requests} requests, none failed, round robin exact; {time.monotonic() - began:.0f} s"
    )
