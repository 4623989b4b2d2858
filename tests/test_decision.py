"""The shape of what is told, and what may be asked for."""

from __future__ import annotations

import pytest

from lb.decision import DECODE, ENCODE, REQUEST_ID, Attempt, Candidate, Decision, Excluded


def attempt(backend: str = "a", outcome: str = "answered") -> Attempt:
    return Attempt(backend, 0.0, 0.01, outcome, "shared", "random", 3)


def decision(
    request_id: str = "r", *, status: int = 200, code: str = "", pool: str = "p", time: float = 1.0
) -> Decision:
    failed = code in ("connect_failed", "no_backend")
    attempts = (attempt("a", "connect_failed"),) if failed else (attempt("a"),)
    return Decision(
        *(request_id, time, pool, "GET", "h", "/x", status, 0.02),
        sampled=not failed,
        worker="w",
        backend="" if failed else "a",
        code=code,
        attempts=attempts,
    )


def test_what_is_written_is_read() -> None:
    one = decision()
    full = Attempt(
        *("a", 0.0, 0.01, "answered", "shared", "random", 3),
        candidates=(Candidate("a", 2, 0, 1, 5, 1.5, 0.1, 0.5, 1, 1),),
        excluded=(Excluded("b", "full", 3, 3),),
    )
    whole = Decision("r", 1.0, "p", "GET", "h", "/", 200, 0.1, True, "w", attempts=(full,))
    for each in (one, whole):
        assert DECODE(ENCODE(each)) == each
    assert b"null" not in ENCODE(whole)


@pytest.mark.parametrize(
    ("one", "failed"),
    [
        (decision(), False),
        (decision(status=404), False),
        (decision(status=500), True),
        (decision(code="upstream_closed"), True),
        (decision(status=503, code="no_backend"), True),
        (Decision("r", 1.0, "p", "GET", "h", "/", 200, 1.0, False, "w", attempts=(attempt("a", "x"),)), True),
    ],
)
def test_what_failed(one: Decision, failed: bool) -> None:
    assert one.failed is failed


def test_ids() -> None:
    for good in ("5f3a", "a/b+c=~", "x" * 128):
        assert REQUEST_ID.match(good)
    for bad in ("", "x" * 129, "a b", "a\n", "{p}", "*", "é"):
        assert not REQUEST_ID.match(bad)
