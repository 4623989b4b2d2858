"""The measurement of what choosing costs: its table, and one short run of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.scale import Run, ratio, table
from tests.support.need import need_binary
from tests.support.run import clean_env

ROOT = Path(__file__).parents[2]


def run(algorithm: str, backends: int, worker: float, store: float, rate: float = 1000.0) -> Run:
    return Run(algorithm, backends, rate, worker, store, 20.0)


RUNS = [
    *(run("random", 10, worker, 10.0) for worker in (40.0, 70.0, 30.0)),
    *(run("random", 500, worker, 15.0, 1234.5) for worker in (45.0, 45.0, 999.0)),
    run("ip-hash", 10, 50.0, 0.0),
    run("ip-hash", 500, 100.0, 0.0),
]


def test_costs_are_medians_of_worker_and_store() -> None:
    assert ratio(RUNS, "random", 10, 500) == pytest.approx(60 / 50)
    assert ratio(RUNS, "ip-hash", 10, 500) == 2


def test_the_table() -> None:
    assert table(RUNS, (10, 500)).splitlines() == [
        "| algorithm | 10: requests/s | 500: requests/s | 10: µs | 500: µs | 500 / 10 |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| `random` | 1,000 | 1,234 | 50.0 (10.0) | 60.0 (15.0) | 1.20 |",
        "| `ip-hash` | 1,000 | 1,000 | 50.0 (0.0) | 100.0 (0.0) | 2.00 |",
    ]


def scale(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loadtest.scale", *options],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=ROOT,
        env=clean_env(),
    )


@pytest.mark.peers
def test_it_measures() -> None:
    need_binary("wrk", "wrk")
    names = "consistent-hash,resource-based"
    short = ("--rounds", "1", "--seconds", "1", "--connections", "8", "--backends", "2,30")
    done = scale("--algorithms", names, *short, "--most", "1000")
    assert done.returncode == 0, done.stderr
    for name in names.split(","):
        row = re.search(rf"^\| `{name}` \| (.+) \|$", done.stdout, re.MULTILINE)
        assert row, done.stdout
        few, many, *_ = (float(cell.replace(",", "")) for cell in row[1].split(" | ")[:2])
        assert min(few, many) > 10
    assert done.stdout.count("picks a call") == 1
    assert scale("--algorithms", "random", *short, "--most", "0").returncode == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--algorithms", "leastconn"), "unknown: leastconn; known: round-robin"),
        (("--backends", "ten"), "numbers, separated by commas"),
        (("--backends", "0,10"), "each must be from 1 to 99999"),
    ],
)
def test_options_that_cannot_be(options: tuple[str, ...], text: str) -> None:
    done = scale(*options)
    assert done.returncode == 2
    assert text in " ".join(done.stderr.split())
