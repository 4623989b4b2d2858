"""`lb explain` on a real store."""

from __future__ import annotations

from lb.decision import Attempt, Candidate, Decision, Excluded
from lb.settings import PoolConfig
from lb.state import decide
from lb.state.decisions import write
from lb.state.registry import Registry
from tests.cli.conftest import Lb
from tests.test_decision import decision

FIRST = Attempt(
    *("b1", 0.0001, 0.0025, "connect_failed", "shared", "least-time", 7),
    waited=0.0005,
    detail="http://b1: Connection refused",
    canary=True,
    rule="least-time",
    candidates=(Candidate("b1", 3, 5, 1, 9, 2.5, 0.02, 0.5, None, 1), Candidate("b2", 1, 0, 4, named=2)),
    excluded=(Excluded("b3", "draining"), Excluded("b4", "full", 8, 8)),
    omitted=3,
)
SECOND = Attempt("b2", 0.003, 0.01, "answered", "worker", "least-time", 7, 0.0, 200, key="ip 192.0.2.1")
ONE = Decision(
    *("abc", 1.0, "web", "GET", "h.example", "/x", 200, 0.02, True, "host:1:ff"),
    backend="b2",
    home="b1",
    attempts=(FIRST, SECOND),
)


def test_one_for_people(lb: Lb, registry: Registry) -> None:
    registry.change("web", decide.declare(PoolConfig()))
    write(registry, [ONE], 60, 10)
    result = lb("explain", "abc")
    assert (result.code, result.err) == (0, "")
    text = " ".join(result.out.split())
    for words in (
        "request abc GET h.example/x",
        "answer 200 after 20.00 ms",
        "session belongs to b1: replaced",
        "attempt 1: b1, connect_failed after 2.50 ms, 0.50 ms for the pick, at 0.10 ms",
        "Connection refused",
        "least-time (tried out), version 7; rule least-time",
        "candidate named in flight weight cap turn latency ms share → b1 1 1 3 5 2.5 20.00 0.5",
        "b2 2 4 1 – – – –",
        "b3 draining –",
        "b4 full 8",
        "and 3 others of the pool",
        "attempt 2: b2, answered 200",
        "by ip 192.0.2.1",
        "what the worker knew by itself",
    ):
        assert words in text, words


def test_one_for_programs(lb: Lb, registry: Registry) -> None:
    registry.change("web", decide.declare(PoolConfig()))
    write(registry, [ONE], 60, 10)
    told = lb("explain", "abc", "--json").json
    assert (told["id"], [one["outcome"] for one in told["attempts"]]) == (
        "abc",
        ["connect_failed", "answered"],
    )


def test_nothing_is_known_of_it(lb: Lb, registry: Registry) -> None:
    for strange in ("abc", "x" * 1000, "a b", "{}", ""):
        result = lb("explain", strange)
        assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
        assert result.err.startswith("lb: nothing is known of request ")
        assert len(result.err) < 500


def test_the_list(lb: Lb, registry: Registry) -> None:
    assert lb("explain").out == "nothing is kept (any more)\n"
    for name in ("web", "p"):
        registry.change(name, decide.declare(PoolConfig()))
    write(registry, [ONE, decision("good"), decision("bad", status=503, code="no_backend")], 60, 10)
    shown = lb("explain").out
    assert all(word in shown for word in ("abc", "good", "bad", "no_backend", "sampled"))
    assert "good" not in lb("explain", "--failed").out
    assert [one["id"] for one in lb("explain", "--pool", "web", "--json").json["decisions"]] == ["abc"]
    assert len(lb("explain", "--limit", "1", "--json").json["decisions"]) == 1
    assert lb("explain", "--pool", "wob").code == 1
    assert lb("explain", "abc", "--failed").code == 2
    assert lb("explain", "--limit", "0").code == 2
