from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.health.thresholds import Track, judge
from lb.model import Health


def run(health: Health, probes: str, rise: int = 2, fall: int = 3) -> list[Health]:
    """The healths after each of `probes`: "+" a success, "-" a failure."""
    track, seen = Track(health), list[Health]()
    for one in probes:
        track = judge(track, one == "+", rise, fall)
        seen.append(track.health)
    return seen


@pytest.mark.parametrize("newcomer", ["checking", "unknown"])
def test_a_newcomer_goes_up_on_its_first_success(newcomer: Health) -> None:
    assert run(newcomer, "+", rise=5) == ["up"]
    assert run(newcomer, "--+", rise=5, fall=3) == [newcomer, newcomer, "up"]


@pytest.mark.parametrize("newcomer", ["checking", "unknown"])
def test_a_newcomer_that_never_answers_goes_down_and_then_needs_rise(newcomer: Health) -> None:
    assert run(newcomer, "---++") == [newcomer, newcomer, "down", "down", "up"]


def test_up_falls_only_after_failures_in_a_row() -> None:
    assert run("up", "--+--+---") == ["up"] * 8 + ["down"]


def test_down_rises_only_after_successes_in_a_row() -> None:
    assert run("down", "+-+-++") == ["down"] * 5 + ["up"]


def test_thresholds_of_one_follow_each_probe() -> None:
    assert run("up", "-+-+", rise=1, fall=1) == ["down", "up", "down", "up"]
    assert run("up", "-+", rise=0, fall=0) == ["down", "up"]


def test_settled_is_a_verdict_nothing_speaks_against() -> None:
    assert Track("up").settled
    assert Track("down").settled
    assert not Track("unknown").settled
    assert not Track("checking").settled
    assert not judge(Track("up"), False, 2, 3).settled
    assert not judge(Track("down"), True, 2, 3).settled
    assert judge(judge(Track("up"), False, 2, 3), True, 2, 3).settled
    assert judge(judge(Track("down"), True, 2, 3), False, 2, 3).settled


@given(
    st.sampled_from(["unknown", "checking", "up", "down"]),
    st.lists(st.booleans(), max_size=40),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_a_verdict_is_what_the_tail_of_the_history_says(
    start: Health, probes: list[bool], rise: int, fall: int
) -> None:
    """Against a second, slower definition: look back over the probes since the last change."""
    track = Track(start)
    health, since = start, 0
    for number, ok in enumerate(probes, 1):
        track = judge(track, ok, rise, fall)
        tail = probes[since:number]
        if health == "down":
            changed = len(tail) >= rise and all(tail[-rise:])
            after: Health = "up"
        elif health == "up":
            changed = len(tail) >= fall and not any(tail[-fall:])
            after = "down"
        else:
            changed = ok or len(tail) >= fall
            after = "up" if ok else "down"
        if changed:
            health, since = after, number
        assert track.health == health
        assert track.against < max(rise, fall)
