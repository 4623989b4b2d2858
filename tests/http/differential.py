"""Every case of the corpus against nginx, HAProxy, Envoy and Caddy, too: where this balancer and they differ.

    python -m tests.http.differential [--write] [--only NAME …]

needs the programs of the extra `bench`. What is compared is `holds`, which any proxy has to keep to, never
`ours`. It prints the cases in which the outcomes differ, and how many each has passed; `--write` puts that
into docs/http.md. A difference that no case explains is an error, and so is a case that this balancer fails.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from loadtest.bench.binaries import Programs, version
from loadtest.bench.peers import PEERS, Peer
from loadtest.bench.site import Site
from loadtest.procs import Children
from tests.http.case import Case
from tests.http.corpus import CASES, WHY
from tests.http.stage import Stage
from tests.http.table import PAGE, Difference, with_differences
from tests.support.processes import own_system

OWN = "lb"
NAMES = ("nginx", "haproxy", "envoy", "caddy")
TITLES = {"nginx": "nginx", "haproxy": "HAProxy", "envoy": "Envoy", "caddy": "Caddy", OWN: "lb"}
PATIENCE = 1.0
"""Seconds that a client waits; enough for what is all on this machine."""


@dataclass(frozen=True)
class Result:
    """What came of a case: what is not as it should be, "" when all is well, and what happened in short."""

    wrong: str
    summary: str


Results = Mapping[str, Mapping[str, Result]]


def play_all(cases: Sequence[Case], stage: Stage, port: int, own: bool) -> dict[str, Result]:
    """The result of each case, by name.

    What goes wrong with another proxy is tried again, once: it may reuse a connection to the backend that
    the end of the case before has closed.
    """
    results = {}
    for case in cases:
        for _ in range(1 if own else 2):
            outcome = stage.play(case, port)
            wrong = "; ".join(case.wrong(outcome, ours=False))
            results[case.name] = Result(wrong, outcome.summary())
            if not wrong or outcome.ended == "open":
                break
    return results


def run(cases: Sequence[Case], peers: Sequence[Peer], folder: Path) -> Results:
    """The results of all proxies, by their names."""
    with ExitStack() as stack:
        stages = {peer.name: stack.enter_context(Stage(PATIENCE)) for peer in peers}
        stages[OWN] = stack.enter_context(Stage())  # nothing of its own is tried again
        children = stack.enter_context(Children(folder))
        system = stack.enter_context(own_system(folder))
        core = min(os.sched_getaffinity(0))
        ports = {OWN: system.balancer(backends=stages[OWN].backend.url).port}
        for peer in peers:
            backend = stages[peer.name].backend.port
            site = Site(children, Programs(), (backend, backend), core, core)
            ports[peer.name] = peer.start(site).port
        with ThreadPoolExecutor(len(stages)) as pool:
            futures = {
                name: pool.submit(play_all, cases, stage, ports[name], name == OWN)
                for name, stage in stages.items()
            }
            return {name: futures[name].result() for name in (OWN, *NAMES) if name in futures}


def differences(cases: Sequence[Case], results: Results) -> list[Difference]:
    """The cases in which not all proxies do what is right."""
    found = []
    for case in cases:
        mine = {name: results[name][case.name] for name in results}
        if any(result.wrong for result in mine.values()):
            outcomes = {
                name: ("✓ " if not result.wrong else "✗ ") + result.summary for name, result in mine.items()
            }
            found.append(Difference(case, outcomes))
    return found


def totals(results: Results) -> dict[str, int]:
    """How many cases each proxy has passed."""
    return {name: sum(not result.wrong for result in found.values()) for name, found in results.items()}


def unexplained(found: Sequence[Difference]) -> list[str]:
    """The names of the cases whose differences nothing explains."""
    return [difference.case.name for difference in found if not WHY[difference.case.name]]


def main(arguments: Sequence[str]) -> int:
    """Run, print, perhaps write; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.http.differential")
    parser.add_argument("--write", action="store_true", help=f"put the result into {PAGE.name}")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these cases only, with all that is wrong")
    chosen = parser.parse_args(arguments)
    cases = [case for case in CASES if not chosen.only or case.name in chosen.only]
    programs = Programs()
    peers = [peer for peer in PEERS if peer.name in NAMES]
    missing = [line for peer in peers if (line := peer.missing(programs))]
    if missing:
        print(*missing, sep="\n", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="lb-differential-") as folder:
        results = run(cases, peers, Path(folder))
    found = differences(cases, results)
    for difference in found:
        print(f"{difference.case.name}: {difference.case.rule} (RFC {difference.case.rfc})")
        for name, outcome in difference.outcomes.items():
            wrong = results[name][difference.case.name].wrong
            print(f"    {TITLES[name]:8} {outcome}" + (f"   [{wrong}]" if wrong and chosen.only else ""))
        print(f"    {WHY[difference.case.name] or 'not explained'}")
    count = totals(results)
    print(", ".join(f"{TITLES[name]} {number}" for name, number in count.items()), f"of {len(cases)}")
    if chosen.only:
        return 0
    failed = [name for name, result in results[OWN].items() if result.wrong]
    open_ones = unexplained(found)
    for name in open_ones:
        print(f"{name}: no sentence says why they differ", file=sys.stderr)
    for name in failed:
        print(f"{name}: this balancer fails it: {results[OWN][name].wrong}", file=sys.stderr)
    if chosen.write and not failed:
        versions = {peer.name: version(programs.require(peer.name)) for peer in peers}
        columns = {name: f"{TITLES[name]} {versions.get(name, '')}".strip() for name in results}
        PAGE.write_text(with_differences(PAGE.read_text(), columns, count, len(cases), found))
    return 1 if failed or open_ones else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
