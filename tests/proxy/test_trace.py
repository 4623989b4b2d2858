"""Which requests are drawn, and what is held of those that are kept."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from time import perf_counter

import pytest

from lb.accesslog import Entry
from lb.algorithms.request import HeadRequest
from lb.decision import Candidate, Excluded
from lb.errors import ConnectFailed
from lb.model import Backend
from lb.proxy.trace import DETAILED, PENDING, Recorder, Sampler, Tracer
from lb.settings import DecisionSettings
from lb.state.seen import MOST, Seen

CANDIDATES = tuple(Candidate(f"10.0.0.{n}:9000", 1, held=n) for n in range(MOST))


class Known:
    """Claims that always give the same backend, and tell much of it."""

    def claim(
        self,
        exclude: Sequence[str] = (),
        request: HeadRequest | None = None,
        canary: bool = False,
        own: str = "",
    ) -> Backend | None:
        return Backend("a", "http://a:1")

    def explain(
        self, exclude: Sequence[str], request: HeadRequest | None, canary: bool, own: str
    ) -> tuple[Backend | None, Seen]:
        return self.claim(), Seen("x", 3, "shared", canary, "normal", "", "", CANDIDATES, (), 0, 9)

    def seen(self, pick: str, exclude: Sequence[str], canary: bool, own: str) -> Seen:
        tried = tuple(Excluded(name, "tried") for name in exclude)
        return Seen("x", 2, "worker", canary, "normal", "", "", CANDIDATES, tried, 0)

    def algorithm(self, canary: bool) -> tuple[str, int]:
        return "x", 2


def entry(number: int = 0) -> Entry:
    return Entry(1.0, f"r{number}", "192.0.2.1", "GET", "h" * 500, "/x" * 500 + "?secret=1", pool="p")


def tracer(sample: float = 1.0) -> tuple[Tracer, Recorder]:
    recorder = Recorder(DecisionSettings(sample=sample), "w")
    return Tracer(recorder, Known()), recorder


def test_no_more_are_drawn_a_second_than_the_rate_says() -> None:
    traces = Tracer(Recorder(DecisionSettings(rate=2.0), "w"), Known())
    times = [100.0, 100.1, 100.4, 100.5, 100.9, 103.0, 103.4]
    drawn = [time for time in times if traces.sampled(entry(), time, "")]
    assert drawn == [100.0, 100.5, 103.0]
    every = Tracer(Recorder(DecisionSettings(rate=0.0), "w"), Known())
    assert all(every.sampled(entry(), 100.0, "") for _ in range(10))


@pytest.mark.parametrize("share", [1.0, 0.5, 0.3, 0.01, 0.001])
@pytest.mark.parametrize("first", [0.0, 0.5, 0.999])
def test_the_share_is_met_exactly(share: float, first: float) -> None:
    sampler = Sampler(share, first)
    left, drawn, requests = sampler.gap(), 0, 100_000
    for _ in range(requests):
        left -= 1
        if left <= 0:
            drawn += 1
            left = sampler.gap()
    assert abs(drawn - share * requests) <= 1


def test_none_is_drawn() -> None:
    assert Sampler(0.0, 0.5).gap() > 1 << 60


def test_a_drawn_request_tells_of_the_pick() -> None:
    traces, recorder = tracer()
    trace = traces.sampled(entry(), perf_counter(), "home")
    assert trace is not None
    assert trace.claim((), None, False, "") == Backend("a", "http://a:1")
    trace.answered("a", (), False, "", 200)
    trace.end(200, "", "a")
    (one,) = recorder.pending
    (attempt,) = one.attempts
    assert (one.sampled, one.failed, one.home, one.kept) == (True, False, "home", False)
    assert (attempt.basis, attempt.version, attempt.connections, attempt.outcome) == (
        "shared",
        3,
        9,
        "answered",
    )
    assert attempt.waited is not None
    # Nothing grows with what a client sends, and queries stay in the log.
    assert (len(one.host), len(one.path)) == (128, 256)
    assert "secret" not in one.path


def test_a_failed_one_tells_what_the_worker_knows() -> None:
    traces, recorder = tracer(0)
    trace = traces.late(entry(), perf_counter() - 1, "")
    trace.failed("a", (), False, "", ConnectFailed("refused"))
    trace.claim(("a",), None, False, "")
    trace.answered("b", ("a",), False, "", 200)
    trace.end(200, "", "b")
    (one,) = recorder.pending
    first, second = one.attempts
    assert (one.sampled, one.failed) == (False, True)
    # It was not known that it would fail: waiting for the pick is part of the first attempt's time.
    assert first.waited is None
    assert first.seconds >= 1
    assert (first.outcome, first.detail, first.basis) == ("connect_failed", "refused", "worker")
    assert second.waited is not None
    assert second.excluded == (Excluded("a", "tried"),)


@pytest.mark.parametrize(
    ("status", "code", "kept"),
    [
        *((200, "", False), (499, "", False), (500, "", True), (200, "upstream_closed", True)),
        *((200, "client_gone", False), (200, "client_timeout", False), (503, "client_gone", True)),
    ],
)
def test_what_is_worth_keeping_afterwards(status: int, code: str, kept: bool) -> None:
    traces, recorder = tracer(0)
    over = entry()
    over.status, over.code, over.backend = status, code, "a"
    traces.settled(None, over, perf_counter(), False)
    assert len(recorder.pending) == kept


def test_many_attempts_do_not_all_tell_everything() -> None:
    traces, recorder = tracer(0)
    trace = traces.late(entry(), perf_counter(), "")
    for _ in range(100):
        trace.failed("a", (), False, "", ConnectFailed("x" * 5000))
    trace.end(502, "connect_failed", "")
    attempts = recorder.pending[0].attempts
    assert [bool(attempt.candidates) for attempt in attempts] == [True] * DETAILED + [False] * (
        100 - DETAILED
    )
    assert max(len(attempt.detail) for attempt in attempts) == 200


def test_memory_of_failures_is_flat() -> None:
    """A hundred thousand of them take no more than the few that are held."""
    traces, recorder = tracer(0)

    def fail(first: int, last: int) -> None:
        for number in range(first, last):
            trace = traces.late(entry(number), 0.0, "")
            trace.nobody((), False, "", None)
            trace.end(503, "no_backend", "")

    tracemalloc.start()
    try:
        fail(0, 2 * PENDING)
        before, _ = tracemalloc.get_traced_memory()
        fail(2 * PENDING, 100_000)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 64 * 1024
    assert [one.id for one in recorder.pending] == [f"r{n}" for n in range(100_000 - PENDING, 100_000)]


def test_they_are_held_until_they_are_written() -> None:
    traces, recorder = tracer(0)

    def fail(first: int, last: int) -> None:
        for number in range(first, last):
            traces.late(entry(number), 0.0, "").end(503, "no_backend", "")

    fail(0, PENDING)
    found = list(recorder.pending)
    fail(PENDING, PENDING + 10)  # while those are written
    assert recorder.find("r9") is None
    assert recorder.find("r10") is not None
    recorder.written(found)
    assert [one.id for one in recorder.pending] == [f"r{n}" for n in range(PENDING, PENDING + 10)]
