"""From single runs to medians, ratios and verdicts, and their form on screen, in Markdown, in JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.table import Table

from loadtest.bench.balancer import NAME
from loadtest.bench.measure import Run
from loadtest.bench.wrk import Scenario

SATURATED = 0.9
"""A proxy that used less of its core than this (0 to 1) was held back by something else."""


@dataclass(frozen=True)
class Target:
    """The balancer's rate must be at least `factor` times that of `peer` in `scenario`."""

    scenario: str
    peer: str
    factor: float


TARGETS = (
    Target("get-64", "envoy", 1.2),
    Target("get-64", "caddy", 1.8),
    Target("get-64", "nginx", 0.35),
    Target("get-64", "nginx-distro", 0.35),
    Target("download", "nginx", 0.9),
    Target("download", "nginx-distro", 0.9),
    Target("upload", "nginx", 0.9),
    Target("upload", "nginx-distro", 0.9),
)
MAX_STORE_CALLS = 0.25
"""Redis commands per request at 64 connections, at most."""


MAX_OTHERS = 0.1
"""Share of the proxies' core that other programs may use before a run says nothing about targets."""


@dataclass(frozen=True)
class Line:
    """Medians over the rounds of one proxy in one scenario.

    `rate`: requests/s; latencies in ms; `cpu`: share of its core that the proxy used, 0 to 1;
    `others`: the share that other programs used; `per_cpu`: requests per second of the
    proxy's processor time, which a busy machine disturbs less than the rate; `errors`: their
    sum over all rounds; `ratio` and `ratio_per_cpu`: the balancer's figure over this one's;
    `store_calls` and `store_commands`: per request, of the balancer only.
    """

    scenario: str
    proxy: str
    rate: float
    p50_ms: float
    p99_ms: float
    cpu: float
    per_cpu: float
    others: float
    errors: int
    ratio: float | None = None
    ratio_per_cpu: float | None = None
    store_calls: float | None = None
    store_commands: float | None = None


def _line(scenario: str, proxy: str, runs: Sequence[Run]) -> Line:
    samples = [run.sample for run in runs]
    counted = [(run.store, run.sample.requests) for run in runs if run.store and run.sample.requests]
    return Line(
        scenario,
        proxy,
        rate=median(sample.rate for sample in samples),
        p50_ms=median(sample.p50_ms for sample in samples),
        p99_ms=median(sample.p99_ms for sample in samples),
        cpu=median(run.cpu for run in runs),
        per_cpu=median(run.sample.rate / run.cpu if run.cpu else 0.0 for run in runs),
        others=median(run.others for run in runs),
        errors=sum(sample.failed for sample in samples),
        store_calls=median(store.scripts / n for store, n in counted) if counted else None,
        store_commands=median(store.commands / n for store, n in counted) if counted else None,
    )


def summarize(runs: Sequence[Run]) -> list[Line]:
    """Return one line per scenario and proxy, in the order in which they first appear."""
    grouped: dict[tuple[str, str], list[Run]] = {}
    proxies = list(dict.fromkeys(run.proxy for run in sorted(runs, key=lambda run: run.round)))
    for scenario in dict.fromkeys(run.scenario for run in runs):
        for proxy in proxies:
            grouped[scenario, proxy] = []
    for run in runs:
        grouped[run.scenario, run.proxy].append(run)
    lines = [_line(*key, group) for key, group in grouped.items() if group]
    own = {line.scenario: line for line in lines if line.proxy == NAME}
    return [_with_ratio(line, own.get(line.scenario)) for line in lines]


def _with_ratio(line: Line, own: Line | None) -> Line:
    if own is None or not line.rate or not line.per_cpu:
        return line
    return dataclasses.replace(line, ratio=own.rate / line.rate, ratio_per_cpu=own.per_cpu / line.per_cpu)


def failures(lines: Sequence[Line]) -> list[str]:
    """What makes the run invalid: requests that failed. Empty when nothing did."""
    return [
        f"{line.proxy}, {line.scenario}: {line.errors} errors or non-2xx answers"
        for line in lines
        if line.errors
    ]


def disturbance(lines: Sequence[Line]) -> str | None:
    """One line that says how busy the machine was with other things, if it was."""
    most = max((line.others for line in lines), default=0.0)
    if most <= MAX_OTHERS:
        return None
    return f"other programs used up to {most:.0%} of the proxies' core"


def misses(lines: Sequence[Line]) -> list[str]:
    """Which targets were missed, or could not be judged: we were not measured, or the machine was busy."""
    if busy := disturbance(lines):
        return [f"{busy}; the targets can't be judged"]
    by_key = {(line.scenario, line.proxy): line for line in lines}
    missed: list[str] = []
    for target in TARGETS:
        line = by_key.get((target.scenario, target.peer))
        if line is not None and (line.ratio is None or line.ratio < target.factor):
            told = "not measured" if line.ratio is None else f"{line.ratio:.2f}"
            missed.append(f"{target.scenario}: {told} x {target.peer}, wanted >= {target.factor} x")
    own = by_key.get(("get-64", NAME))
    if own and own.store_calls is not None and own.store_calls > MAX_STORE_CALLS:
        missed.append(f"get-64: {own.store_calls:.3f} Redis calls per request, wanted <= {MAX_STORE_CALLS}")
    return missed


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _milliseconds(value: float) -> str:
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


HEADINGS = ("requests/s", "p50 ms", "p99 ms", "core", "req/CPU s", "lb / it", "per CPU", "errors")
LEGEND = (
    f"lb / it: {NAME}'s requests/s over the other's. core: how much of its core the proxy used.",
    f"* Less than {SATURATED:.0%}: clients, backends or others on the machine held it back. Then the ratio",
    "  per CPU says more: that of requests per second of processor time.",
)


def _cells(line: Line) -> tuple[str, ...]:
    return (
        _number(line.rate),
        _milliseconds(line.p50_ms),
        _milliseconds(line.p99_ms),
        f"{line.cpu:.0%}{'*' if line.cpu < SATURATED else ''}",
        _number(line.per_cpu),
        _ratio(line.ratio),
        _ratio(line.ratio_per_cpu),
        str(line.errors),
    )


def tables(lines: Sequence[Line], scenarios: Sequence[Scenario]) -> list[Table]:
    """Return the result for the terminal, one table per scenario."""
    made: list[Table] = []
    for scenario in scenarios:
        table = Table(title=scenario.title, title_justify="left", box=None, padding=(0, 1, 0, 0))
        table.add_column("proxy", no_wrap=True)
        for heading in HEADINGS:
            table.add_column(heading, justify="right", no_wrap=True)
        for line in lines:
            if line.scenario == scenario.name:
                style = "bold" if line.proxy == NAME else ("red" if line.errors else None)
                table.add_row(line.proxy, *_cells(line), style=style)
        made.append(table)
    return made


def markdown(lines: Sequence[Line], scenarios: Sequence[Scenario], versions: Mapping[str, str]) -> str:
    """Return the table of the documentation."""
    rows = [
        "| scenario | proxy | " + " | ".join(HEADINGS) + " |",
        "| --- | --- |" + " ---: |" * len(HEADINGS),
    ]
    titles = {scenario.name: scenario.title for scenario in scenarios}
    for line in lines:
        name = f"{line.proxy} {versions.get(line.proxy, '')}".strip()
        name = f"**{name}**" if line.proxy == NAME else name
        rows.append(f"| {titles[line.scenario]} | {name} | " + " | ".join(_cells(line)) + " |")
    return "\n".join(rows)


def notes(lines: Sequence[Line], versions: Mapping[str, str], pinning: Mapping[str, int]) -> list[str]:
    """What the tables do not say: how to read them, the store's work, and the pinning."""
    told = [*LEGEND]
    if busy := disturbance(lines):
        told.append(f"{busy}: repeat this on an idle machine")
    told += [
        f"Redis, {line.scenario}: {line.store_calls:.3f} calls per request "
        f"({line.store_commands:.2f} with what the scripts execute inside)"
        for line in lines
        if line.store_calls is not None and line.store_commands is not None
    ]
    told.append("versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    if pinning:
        told.append("pinned: " + ", ".join(f"{role} to core {core}" for role, core in pinning.items()))
    return told


def as_json(runs: Sequence[Run], lines: Sequence[Line]) -> dict[str, Any]:
    """Return medians and every single run as plain data."""
    return {
        "results": [dataclasses.asdict(line) for line in lines],
        "runs": [{**dataclasses.asdict(run), "rate": run.sample.rate} for run in runs],
    }
