"""Circuit breakers, decided: who may be ejected, for how long, and how it comes back."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.model import CLOSED, Backend, Breaker, OutlierPolicy, PoolSettings, Snapshot
from lb.state import decide, outlier
from lb.state.decide import Decider
from lb.state.outlier import Counts, due, may_eject, why

POLICY = OutlierPolicy(enabled=True, min_requests=10, window=10.0)


def pool(count: int, share: float = 0.5, **policy: object) -> Snapshot:
    """Backends b0, b1 and so on."""
    how: dict[str, Any] = {"enabled": True, "max_ejected": share, **policy}
    settings = PoolSettings(outlier=OutlierPolicy(**how))
    return Snapshot("p", 1, settings, {f"b{n}": Backend(f"b{n}", f"http://b{n}:80") for n in range(count)})


def after(snapshot: Snapshot, *deciders: Decider) -> Snapshot:
    for decider in deciders:
        change = decide.settle(snapshot, decider(snapshot), False, 50.0)
        snapshot = decide.applied(snapshot, change, snapshot.version + 1)
    return snapshot


def changed(snapshot: Snapshot, name: str, **fields: object) -> Snapshot:
    backends = {**snapshot.backends, name: msgspec.structs.replace(snapshot.backends[name], **fields)}
    return msgspec.structs.replace(snapshot, backends=backends)


def ejected(snapshot: Snapshot) -> list[str]:
    return [name for name, one in snapshot.backends.items() if one.breaker.open]


# One worker's own counts.


def add(counts: Counts, outcomes: str, now: float = 0.0, policy: OutlierPolicy = POLICY) -> str:
    """`outcomes`: "x" for a failure, "." for a success; what the last one says."""
    said = ""
    for outcome in outcomes:
        said = counts.add(outcome == "x", policy, now)
    return said


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        ("xxxx", ""),
        ("xxxxx", "5 failures in a row"),
        ("xxxx.xxxx", ""),
        ("." * 50 + "xxxxx", "5 failures in a row"),
        ("x.x.x.x.x", ""),  # too few
        ("xx.xx.xx.x", "7 of 10 requests failed"),
        ("x..x..x..x..x..x", ""),
    ],
)
def test_counts(outcomes: str, said: str) -> None:
    assert add(Counts(), outcomes) == said


def test_counts_begin_anew_after_a_verdict_and_with_each_window() -> None:
    counts = Counts()
    assert add(counts, "xxxxx")
    assert add(counts, "xxxx") == ""
    assert add(counts, "x")
    assert add(counts, "x.x.x.x.", now=0.0) == ""
    assert add(counts, "xx", now=10.0) == ""
    assert add(counts, ".xxxx.x", now=19.9) == ""
    assert add(counts, "x", now=19.9) == "8 of 10 requests failed"


def test_who_failed_last_and_lately() -> None:
    counts = Counts()
    assert not counts.failing(1.0, 20.0)
    add(counts, "x", now=1.0)
    assert counts.failing(1.0, 20.0)
    add(counts, ".", now=2.0)
    assert not counts.failing(2.0, 20.0)
    assert add(counts, "xxxxx", now=3.0)  # its numbers begin anew, what it did last does not
    assert counts.failing(22.9, 20.0)
    assert not counts.failing(23.0, 20.0)


def test_triggers_can_be_switched_off() -> None:
    never = OutlierPolicy(enabled=True, consecutive_failures=0, success_rate=0.0)
    assert add(Counts(), "x" * 500, policy=never) == ""
    assert (why(1, 0), why(5, 0), why(12, 20)) == (
        "a failure",
        "5 failures in a row",
        "12 of 20 requests failed",
    )


# Ejecting.


@pytest.mark.parametrize(
    ("count", "share", "most"),
    [
        (1, 0.5, 0),
        (2, 0.5, 1),
        (3, 0.5, 1),
        (4, 0.5, 2),
        (2, 0.0, 0),
        (2, 1.0, 1),
        (10, 0.3, 3),
        (10, 1.0, 9),
    ],
)
def test_at_most_a_share_of_the_pool(count: int, share: float, most: int) -> None:
    found = after(pool(count, share), *(outlier.eject(f"b{n}", "why", 100.0) for n in range(count)))
    assert ejected(found) == [f"b{n}" for n in range(most)]


def test_who_is_not_meant_to_serve_does_not_count() -> None:
    snapshot = changed(changed(pool(4), "b2", admin="drain"), "b3", weight=0)
    assert ejected(after(snapshot, outlier.eject("b0", "", 1.0), outlier.eject("b1", "", 1.0))) == ["b0"]
    assert not may_eject(changed(pool(2), "b1", health="down"), "b0")  # nobody else is left
    assert may_eject(changed(pool(2), "b1", backup=True), "b0")
    assert not may_eject(pool(2), "b7")
    assert not may_eject(pool(2, enabled=False), "b0")


def test_it_lasts_longer_each_time_in_a_row() -> None:
    snapshot = after(pool(2), outlier.eject("b0", "5 failures in a row", 100.0))
    assert snapshot.backends["b0"].breaker == Breaker(True, 100.0, 130.0, 1, "5 failures in a row")
    assert not snapshot.backends["b0"].available
    assert not snapshot.backends["b0"].keeps_sessions
    assert snapshot.backends["b0"].state == "ejected"
    now = 130.0
    for times in range(2, 15):
        until = snapshot.backends["b0"].breaker.until
        snapshot = after(snapshot, outlier.probe_failed("b0", until, "503", now))
        breaker = snapshot.backends["b0"].breaker
        assert (breaker.times, breaker.until - now) == (times, min(30.0 * times, 300.0))
        assert breaker.reason == "503 when probed"
        now = breaker.until


def test_a_probe_brings_it_back_and_its_past_is_forgotten() -> None:
    snapshot = after(pool(2), outlier.eject("b0", "why", 100.0), outlier.probe_succeeded("b0", 130.0, 140.0))
    assert snapshot.backends["b0"].breaker == Breaker(since=140.0, times=1)
    assert snapshot.backends["b0"].available
    again = after(snapshot, outlier.eject("b0", "why", 439.0))
    assert again.backends["b0"].breaker.until == 439.0 + 60
    assert after(snapshot, outlier.eject("b0", "why", 440.0)).backends["b0"].breaker.times == 1


def test_a_result_is_of_its_own_ejection_only() -> None:
    snapshot = after(pool(2), outlier.eject("b0", "why", 100.0))
    for late in (
        outlier.probe_succeeded("b0", 99.0, 140.0),
        outlier.probe_failed("b0", 99.0, "503", 140.0),
        outlier.probe_again("b0", 99.0, 140.0),
        outlier.probe_succeeded("b1", 130.0, 140.0),
        outlier.probe_succeeded("gone", 130.0, 140.0),
    ):
        assert late(snapshot).empty
    again = after(snapshot, outlier.probe_again("b0", 130.0, 140.0)).backends["b0"].breaker
    assert (again.open, again.until, again.times) == (True, 140.0, 1)
    assert again.until != 130.0


def test_who_waits_for_a_probe() -> None:
    snapshot = after(pool(6), *(outlier.eject(f"b{n}", "", 100.0) for n in range(3)))
    snapshot = changed(changed(snapshot, "b1", health="down"), "b2", admin="drain")
    assert due(snapshot, 129.9) == ()
    assert due(snapshot, 130.0) == ("b0",)


def test_who_is_probed_from_another_zone() -> None:
    """Only if nobody of its own has done so for a while."""
    snapshot = after(changed(pool(2), "b0", zone="east"), outlier.eject("b0", "", 100.0))
    assert due(snapshot, 130.0, "east") == due(snapshot, 130.0) == ("b0",)
    assert due(snapshot, 130.0 + outlier.PATIENCE - 0.1, "west") == ()
    assert due(snapshot, 130.0 + outlier.PATIENCE, "west") == ("b0",)
    nowhere = after(pool(2), outlier.eject("b0", "", 100.0))
    assert due(nowhere, 130.0, "west") == ("b0",)


def test_who_is_mended_may_be_probed_at_once() -> None:
    snapshot = after(pool(2), outlier.eject("b0", "why", 100.0))
    for late in (
        outlier.mended("b0", 130.0, 130.0),  # it may be probed already
        outlier.mended("b0", 129.0, 110.0),
        outlier.mended("b1", 130.0, 110.0),
        outlier.mended("gone", 130.0, 110.0),
    ):
        assert late(snapshot).empty
    assert due(snapshot, 110.0) == ()
    again = after(snapshot, outlier.mended("b0", 130.0, 110.0))
    assert again.backends["b0"].breaker == Breaker(True, 100.0, 110.0, 1, "why")
    assert due(again, 110.0) == ("b0",)
    longer = after(again, outlier.probe_failed("b0", 110.0, "503", 111.0)).backends["b0"].breaker
    assert (longer.times, longer.until) == (2, 171.0)


def test_others_are_those_who_would_serve() -> None:
    snapshot = changed(changed(pool(5), "b1", admin="drain"), "b2", health="down")
    snapshot = after(snapshot, outlier.eject("b3", "", 1.0))
    assert outlier.others(snapshot, "b0") == ["b4"]


# And all the rest that is known of backends.


def test_probes_that_find_it_mended_end_it() -> None:
    snapshot = after(pool(2), outlier.eject("b0", "", 100.0), decide.verdicts([("b0", "down")]))
    assert snapshot.backends["b0"].state == "down"
    snapshot = after(snapshot, decide.verdicts([("b0", "up")]))
    assert snapshot.backends["b0"].breaker == CLOSED
    snapshot = after(snapshot, decide.verdicts([("b1", "checking")]), outlier.eject("b0", "", 100.0))
    assert ejected(snapshot) == []  # b1 has not been seen to work yet
    snapshot = after(snapshot, decide.verdicts([("b1", "up")]), outlier.eject("b0", "", 100.0))
    assert ejected(after(snapshot, decide.verdicts([("b0", "up")]))) == ["b0"]  # they have said so all along


def test_it_outlives_a_reload_but_not_a_new_address_or_being_switched_off() -> None:
    snapshot = after(pool(2), outlier.eject("b0", "", 100.0))
    assert ejected(after(snapshot, decide.add(Backend("b0", "http://b0:80", weight=4)))) == ["b0"]
    assert ejected(after(snapshot, decide.add(Backend("b0", "http://b9:80")))) == []
    off = decide.Change(settings=PoolSettings(outlier=OutlierPolicy(enabled=False)))
    assert ejected(after(snapshot, lambda _: off)) == []


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["eject", "failed", "succeeded", "again", "down", "up", "drain", "ready", "remove"]),
        st.integers(0, 5),
        st.floats(0.0, 200.0),
    ),
    max_size=40,
)


@given(st.integers(1, 6), st.sampled_from([0.0, 0.3, 0.5, 1.0]), EVENTS)
def test_what_always_holds(count: int, share: float, events: list[tuple[str, int, float]]) -> None:
    snapshot, now = pool(count, share), 0.0
    for what, number, pause in events:
        now += pause
        name = f"b{number}"
        known = snapshot.backends.get(name)
        if known is None:
            continue
        before = len(ejected(snapshot))
        until = known.breaker.until
        decider = {
            "eject": outlier.eject(name, "", now),
            "failed": outlier.probe_failed(name, until, "", now),
            "succeeded": outlier.probe_succeeded(name, until, now),
            "again": outlier.probe_again(name, until, now),
            "down": decide.verdicts([(name, "down")]),
            "up": decide.verdicts([(name, "up")]),
            "drain": decide.update(name, admin="drain"),
            "ready": decide.update(name, admin="ready"),
            "remove": decide.remove(name),
        }[what]
        snapshot = after(snapshot, decider)
        meant = [one for one in snapshot.backends.values() if one.admin == "ready" and one.weight > 0]
        if what == "eject" and len(ejected(snapshot)) > before:
            assert sum(one.breaker.open for one in meant) <= share * len(meant)
            assert any(one.available for one in meant)
        for one in snapshot.backends.values():
            if one.breaker.open:
                assert one.breaker.until - one.breaker.since <= max(300.0, now - one.breaker.since)
