"""What a worker tells of the outcomes of its requests."""

from __future__ import annotations

import msgspec
import pytest

from lb.errors import (
    BadResponse,
    ClientGone,
    ConnectFailed,
    ConnectTimeout,
    ProxyError,
    RequestDeadline,
    RequestTimeout,
    ResponseTimeout,
    TlsFailed,
    UpstreamClosed,
)
from lb.model import Backend, Breaker, OutlierPolicy, PoolSettings, Snapshot
from lb.state import guard as module
from lb.state.guard import FAILED, FINE, GONE, LOST, VOID, Event, Guard, call_keys, outcome_of, statuses
from lb.state.keys import PoolKeys
from lb.state.scripts import OUTLIER_SHA, PROBE_SHA

KEYS = call_keys(PoolKeys("p"), "w")


def snapshot(**policy: object) -> Snapshot:
    members = {name: Backend(name, f"http://{name}:80") for name in "ab"}
    return Snapshot("p", 7, PoolSettings(outlier=OutlierPolicy(**{"enabled": True, **policy})), members)  # type: ignore[arg-type]


def with_ejected(name: str = "a", until: float = 30.0) -> Snapshot:
    found = snapshot()
    out = msgspec.structs.replace(found.backends[name], breaker=Breaker(open=True, until=until))
    return msgspec.structs.replace(found, backends={**found.backends, name: out})


class Told(Guard):
    """A guard, and what it tells."""

    def __init__(self, pool: Snapshot, away: bool = False) -> None:
        self.events: list[Event] = []
        super().__init__(pool, self.events.append)
        self.store_is(away=away)


@pytest.mark.parametrize(
    ("text", "codes"), [("", set()), ("503", {503}), ("502-504,599", {502, 503, 504, 599})]
)
def test_statuses(text: str, codes: set[int]) -> None:
    assert statuses(text) == codes


@pytest.mark.parametrize(
    ("status", "code", "took", "outcome"),
    [
        (200, "", 9.0, FINE),
        (404, "", -1.0, FINE),
        (429, "", -1.0, FINE),
        (500, "", -1.0, FINE),
        (503, "", -1.0, FAILED),
        # What it began it has to finish; that clients do not wait for it is not its fault.
        (200, UpstreamClosed.code, -1.0, LOST),
        (200, ResponseTimeout.code, -1.0, LOST),
        (200, BadResponse.code, -1.0, FAILED),
        (200, ClientGone.code, -1.0, FINE),
        (200, RequestTimeout.code, -1.0, FINE),
        (200, RequestDeadline.code, -1.0, FINE),
        (504, ClientGone.code, -1.0, FAILED),
    ],
)
def test_judging(status: int, code: str, took: float, outcome: int) -> None:
    assert Told(snapshot()).judge(status, code, took) == outcome


def test_judging_by_time() -> None:
    slow = Told(snapshot(unhealthy_latency=0.5))
    assert (slow.timed, slow.watching) == (True, True)
    assert [slow.judge(200, "", took) for took in (0.5, 0.6, -1.0)] == [FINE, FAILED, FINE]
    assert not Told(snapshot(unhealthy_latency=0.5, enabled=False)).timed


def test_what_is_told_to_the_store() -> None:
    guard = Told(snapshot(success_rate=0.25))
    assert not guard.watching
    for name, outcome in (("a", FAILED), ("a", VOID), ("b", VOID), ("a", FAILED), ("b", FINE)):
        guard.note(name, outcome)
    assert guard.report(KEYS, "e", 2) == [
        *("EVALSHA", OUTLIER_SHA, "5", *KEYS, "5", "0.25", "20", "10.0", "2"),
        *("a", "2", "1", "b", "0", "1"),
        *("e", "0", "2", ""),
    ]
    assert not guard.pending
    guard.told([7, b"a", 5, 0, b"b", 12, 20, b"gone", 5, 0])
    assert guard.events == [
        Event("a", "outlier", reason="5 failures in a row"),
        Event("b", "outlier", reason="12 of 20 requests failed"),
    ]


def test_what_could_not_be_is_not_told() -> None:
    guard = Told(with_ejected("a"))
    guard.told([7, b"a", 5, 0, b"b", 5, 0])  # one is out already, the other is the last
    assert guard.events == []


def test_nothing_at_all_where_it_is_switched_off() -> None:
    guard = Told(snapshot(enabled=False))
    guard.note("a", FAILED)
    assert not guard.pending
    guard.store_is(away=True)
    assert not guard.watching
    for _ in range(50):
        guard.note("a", FAILED)
    assert guard.events == []


def test_while_the_store_is_away_it_counts_for_itself() -> None:
    guard = Told(snapshot(), away=True)
    assert guard.watching
    for outcome in (FAILED,) * 4 + (FINE,) + (FAILED, VOID) * 4:
        guard.note("a", outcome)
    assert guard.events == []
    guard.note("a", FAILED)
    assert guard.events == [Event("a", "outlier", reason="5 failures in a row")]
    assert not guard.pending
    guard.note("gone", FAILED)
    # What was counted alone says nothing of what the fleet counts, nor the other way round.
    guard.note("b", FAILED)
    guard.store_is(away=False)
    guard.note("b", FAILED)
    assert guard.pending == {"b": (1, 0)}
    guard.store_is(away=True)
    assert not guard.pending


def test_who_may_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    guard = Told(with_ejected())
    assert guard.next(harmless=True) == ""
    guard.arm(("a",))
    assert guard.next(harmless=False) == ""  # rather one that can be repeated
    assert [guard.next(harmless=True) for _ in range(3)] == ["a", "", ""]
    now += 9
    guard.arm(("a",))
    assert guard.next(harmless=False) == ""
    now += 1
    assert guard.next(harmless=False) == "a"  # none has come
    guard.arm(("a",))
    guard.update(snapshot())
    assert guard.next(harmless=True) == ""  # it is back already


def test_how_it_asks_for_the_probe() -> None:
    guard = Told(with_ejected("a", 30.5))
    guard.permit = 66.0
    assert guard.probing(KEYS, "e", "a", "f\tb\t") == (
        *("EVALSHA", PROBE_SHA, "5", *KEYS),
        *("a", "30.5", "7", "66.0", "f\tb\t", "e"),
    )
    assert float(guard.probing(KEYS, "e", "b", "")[9]) > 1e100  # it is not ejected (any more)


def test_what_became_of_a_probe() -> None:
    guard = Told(with_ejected("a", 30.5))
    guard.probed("a", FINE, "200")
    guard.probed("a", FAILED, "503")
    guard.probed("a", VOID, "client_gone")
    guard.probed("b", FAILED, "503")
    guard.probed("a", GONE, "connect_failed")
    assert guard.events == [
        Event("a", "succeeded", 30.5, "200", FINE),
        Event("a", "failed", 30.5, "503", FAILED),
        Event("a", "void", 30.5, "client_gone", VOID),
        Event("a", "failed", 30.5, "connect_failed", GONE),
    ]


class _NoRoom(ConnectFailed):
    local = True


@pytest.mark.parametrize(
    ("failure", "outcome"),
    [
        (None, VOID),
        (ClientGone(), VOID),
        (_NoRoom(), VOID),
        (BadResponse(), FAILED),
        (UpstreamClosed(), LOST),
        (ResponseTimeout(), LOST),
        (TlsFailed(), LOST),
        (ConnectFailed(), GONE),
        (ConnectTimeout(), GONE),
    ],
)
def test_what_an_attempt_says_of_its_backend(failure: ProxyError | None, outcome: int) -> None:
    assert outcome_of(failure) == outcome


@pytest.mark.parametrize("away", [False, True])
def test_an_outlier_is_told_with_its_last_failure(away: bool) -> None:
    guard = Told(snapshot(), away=away)
    for outcome in (LOST, LOST, LOST, FAILED, GONE):
        guard.note("a", outcome)
        guard.note("a", VOID)
    if not away:
        assert guard.pending == {"a": (5, 5)}
        guard.told([7, b"a", 5, 0])
    assert guard.events == [Event("a", "outlier", 0.0, "5 failures in a row", GONE)]
    guard.update(msgspec.structs.replace(snapshot(), backends={}))
    assert not guard._last
