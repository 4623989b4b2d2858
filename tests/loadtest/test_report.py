"""From runs to medians, ratios and verdicts."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from loadtest.bench import report
from loadtest.bench.balancer import NAME, StoreCounts
from loadtest.bench.measure import Run
from loadtest.bench.report import Line, Target
from loadtest.bench.wrk import Sample, scenarios


def run(
    proxy: str,
    rate: int,
    *,
    turn: int = 0,
    scenario: str = "get-64",
    cpu: float = 1.0,
    others: float = 0.0,
    failed: int = 0,
    store: StoreCounts | None = None,
) -> Run:
    """One of ten seconds, with `rate` requests per second."""
    sample = Sample(rate * 10, 10.0, 2.0 + turn, 20.0 + turn, {"status": failed})
    return Run(turn, scenario, proxy, sample, cpu, others, store)


def by_proxy(lines: list[Line]) -> dict[str, Line]:
    """The lines of one scenario."""
    return {line.proxy: line for line in lines}


def test_a_line_is_the_median_of_the_rounds() -> None:
    runs = [run(NAME, rate, turn=turn) for turn, rate in enumerate((100, 900, 200))]
    (line,) = report.summarize(runs)
    assert (line.rate, line.p50_ms, line.p99_ms) == (200, 3.0, 21.0)


def test_errors_add_up() -> None:
    runs = [run(NAME, 100, turn=turn, failed=turn) for turn in range(4)]
    (line,) = report.summarize(runs)
    assert line.errors == 6
    assert report.failures([line]) == [f"{NAME}, get-64: 6 errors or non-2xx answers"]


def test_a_run_without_answers_is_an_error() -> None:
    (line,) = report.summarize([run("nginx", 0)])
    assert line.errors == 1
    assert line.ratio is None


def test_ratios_are_ours_over_theirs() -> None:
    lines = by_proxy(report.summarize([run(NAME, 300, cpu=0.5), run("envoy", 200, cpu=1.0)]))
    assert lines["envoy"].ratio == pytest.approx(1.5)
    assert lines["envoy"].per_cpu == pytest.approx(200)
    assert lines["envoy"].ratio_per_cpu == pytest.approx(3.0)
    assert lines[NAME].ratio == pytest.approx(1.0)


def test_without_our_own_there_is_no_ratio() -> None:
    (line,) = report.summarize([run("envoy", 200)])
    assert (line.ratio, line.ratio_per_cpu) == (None, None)


def test_lines_stand_in_the_order_of_the_first_round() -> None:
    """The rounds begin with another proxy each."""
    runs = [run("b", 1, turn=1), run("a", 1, turn=1), run("a", 1, turn=0), run("b", 1, turn=0)]
    assert [line.proxy for line in report.summarize(runs)] == ["a", "b"]
    runs.append(run("a", 1, scenario="download"))
    assert [(line.scenario, line.proxy) for line in report.summarize(runs)] == [
        ("get-64", "a"),
        ("get-64", "b"),
        ("download", "a"),
    ]


def test_the_stores_work_is_per_request() -> None:
    store = StoreCounts(scripts=100, commands=500)
    (line,) = report.summarize([run(NAME, 100, store=store)])
    assert (line.store_calls, line.store_commands) == (0.1, 0.5)
    (line,) = report.summarize([run("nginx", 100)])
    assert (line.store_calls, line.store_commands) == (None, None)


# Verdicts.


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "TARGETS", (Target("get-64", "envoy", 1.2), Target("download", "nginx", 0.9)))


@pytest.mark.usefixtures("targets")
@pytest.mark.parametrize(("rate", "missed"), [(120, 0), (119, 1), (500, 0)])
def test_a_target_is_met_or_missed(rate: int, missed: int) -> None:
    found = report.misses(report.summarize([run(NAME, rate), run("envoy", 100)]))
    assert len(found) == missed
    assert all("1.19 x envoy, wanted >= 1.2 x" in told for told in found)


@pytest.mark.usefixtures("targets")
def test_a_peer_that_was_not_measured_is_no_target() -> None:
    assert report.misses(report.summarize([run(NAME, 1)])) == []


@pytest.mark.usefixtures("targets")
def test_without_us_a_target_cannot_be_met() -> None:
    (told,) = report.misses(report.summarize([run("envoy", 100)]))
    assert "not measured" in told


@pytest.mark.usefixtures("targets")
def test_a_busy_machine_says_nothing_about_targets() -> None:
    lines = report.summarize([run(NAME, 1), run("envoy", 100, others=0.25)])
    assert report.disturbance(lines) == "other programs used up to 25% of the proxies' core"
    (told,) = report.misses(lines)
    assert "can't be judged" in told
    calm = report.summarize([run(NAME, 1, others=report.MAX_OTHERS)])
    assert report.disturbance(calm) is None
    assert report.disturbance([]) is None


def test_the_store_must_not_be_asked_for_every_request() -> None:
    often = StoreCounts(scripts=260, commands=260)
    (told,) = report.misses(report.summarize([run(NAME, 100, store=often)]))
    assert told == "get-64: 0.260 Redis calls per request, wanted <= 0.25"


# Forms.


LINES = report.summarize(
    [
        run(NAME, 12_345, cpu=0.95, store=StoreCounts(scripts=1000, commands=2000)),
        run("nginx", 50_000, cpu=0.5, failed=3),
    ]
)
SCENARIOS = scenarios(["get"], [64])


def test_on_screen() -> None:
    (table,) = report.tables(LINES, SCENARIOS)
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    file = console.file
    assert isinstance(file, io.StringIO)
    _title, headings, own, other = file.getvalue().splitlines()
    assert headings.split()[0] == "proxy"
    assert own.split() == [NAME, "12,345", "2.0", "20.0", "95%", "12,995", "1.00", "1.00", "0"]
    assert other.split() == ["nginx", "50,000", "2.0", "20.0", "50%*", "100,000", "0.25", "0.13", "3"]


def test_in_markdown() -> None:
    rows = report.markdown(LINES, SCENARIOS, {"nginx": "1.31"}).splitlines()
    assert len({row.count("|") for row in rows}) == 1
    assert f"| **{NAME}** |" in rows[2]
    assert rows[3].startswith("| small GETs, 64 connections | nginx 1.31 | 50,000 |")


def test_notes() -> None:
    told = report.notes(LINES, {NAME: "1", "nginx": "2"}, {"workers": 3})
    assert told[: len(report.LEGEND)] == list(report.LEGEND)
    assert told[-1] == "pinned: workers to core 3"
    assert told[-2] == f"versions: {NAME} 1, nginx 2"
    (store,) = [line for line in told if line.startswith("Redis")]
    assert store == "Redis, get-64: 0.008 calls per request (0.02 with what the scripts execute inside)"


def test_in_json() -> None:
    runs = [run(NAME, 100)]
    told = json.loads(json.dumps(report.as_json(runs, report.summarize(runs))))
    assert told["results"][0]["rate"] == told["runs"][0]["rate"] == 100
    assert told["runs"][0]["sample"]["requests"] == 1000
