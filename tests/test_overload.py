"""What a worker refuses when it has too much to do: decisions over a made-up time."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from lb.overload import (
    FEWER,
    INTERVAL,
    LEAST,
    LOOK,
    LOOKS,
    MORE,
    QUIET,
    STUCK,
    TIDY,
    Overload,
    Resident,
    give_back,
)
from lb.settings import LimitSettings

MIB = 1 << 20


class Watched:
    """An `Overload` that is looked at again and again."""

    def __init__(self, **limits: Any) -> None:
        self.overload = Overload(LimitSettings(**limits))
        self.now = 1000.0
        self.overload.look(self.now, 0)

    def look(self, late: float = 0.0, resident: int = 0, waiting: float = 0.0) -> None:
        """Look once, so many seconds late."""
        self.now += LOOK + late
        self.overload.look(self.now, resident, waiting)

    def pass_by(self, seconds: float, resident: int = 0) -> None:
        """Look for so long, never late."""
        for _ in range(round(seconds / LOOK)):
            self.look(0.0, resident)


def test_requests_are_taken_up_to_the_ceiling() -> None:
    overload = Overload(LimitSettings(requests=3))
    assert [overload.refuses(n, 0.0) for n in (0, 2)] == ["", ""]
    assert overload.refuses(3, 0.0) == "3 requests under way"
    assert overload.refused == 1


def test_nothing_is_strict_without_a_cause() -> None:
    watched = Watched(memory=MIB, delay=0.5)
    watched.pass_by(10, MIB - 1)
    assert not watched.overload.strict
    assert watched.overload.refuses(100, 0.999999) == ""


def test_memory_refuses_until_there_is_some_room() -> None:
    watched = Watched(memory=100 * MIB)
    watched.look(resident=100 * MIB + 1)
    assert watched.overload.strict
    assert watched.overload.refuses(1, 0.0) == "more than 100 MiB of memory"
    watched.look(resident=99 * MIB)  # or it would go on and off all the time
    assert watched.overload.refuses(1, 0.0)
    watched.look(resident=90 * MIB)
    assert watched.overload.refuses(1, 0.0) == ""


def test_memory_does_not_refuse_who_is_alone() -> None:
    watched = Watched(memory=MIB)
    watched.look(resident=2 * MIB)
    assert watched.overload.refuses(0, 0.0) == ""


def test_without_a_ceiling_memory_does_not_count() -> None:
    watched = Watched()
    watched.look(resident=1 << 50)
    assert not watched.overload.tight


def test_it_is_stuck_when_memory_does_not_come_back() -> None:
    watched = Watched(memory=MIB)
    watched.pass_by(STUCK, 2 * MIB)
    assert not watched.overload.stuck(watched.now)
    watched.pass_by(1, 2 * MIB)
    assert watched.overload.stuck(watched.now)
    watched.look(resident=0)
    assert not watched.overload.stuck(watched.now)


def test_memory_is_given_back_now_and_then() -> None:
    overload = Overload(LimitSettings())
    assert [overload.tidy(now) for now in (10.0, 10.0 + TIDY / 2, 10.0 + TIDY, 10.5 + TIDY)] == [
        True,
        False,
        True,
        False,
    ]


def test_one_long_turn_is_no_overload() -> None:
    watched = Watched(delay=0.1)
    for _ in range(20):
        watched.look(late=30.0)
        watched.look()
        assert watched.overload.share == 1.0


def test_it_must_be_late_for_an_interval() -> None:
    watched = Watched(delay=0.1)
    late, passed = 0.2, 0.0
    while passed + LOOK + late < INTERVAL:
        watched.look(late)
        passed += LOOK + late
        assert watched.overload.share == 1.0
    watched.look(late)
    assert watched.overload.share == FEWER
    assert watched.overload.strict


def test_and_at_some_looks() -> None:
    watched = Watched(delay=0.1)
    for _ in range(LOOKS - 1):
        watched.look(late=2 * INTERVAL)
        assert watched.overload.share == 1.0
    watched.look(late=2 * INTERVAL)
    assert watched.overload.share == FEWER


def test_fewer_are_taken_until_it_is_in_time_and_never_none() -> None:
    watched = Watched(delay=0.1)
    for _ in range(100):
        watched.look(late=1.0)
    assert watched.overload.share == LEAST
    watched.look()
    assert watched.overload.share == pytest.approx(LEAST + MORE)
    watched.pass_by(LOOK * 60)
    assert watched.overload.share == 1.0
    assert not watched.overload.strict


def test_who_waits_to_be_accepted_counts_as_much() -> None:
    watched = Watched(delay=0.5)
    for _ in range(round(INTERVAL / LOOK) // 2):
        watched.look(waiting=0.6)
    assert watched.overload.share == 1.0
    for _ in range(round(INTERVAL / LOOK) // 2 + 2):
        watched.look(waiting=0.6)
    assert watched.overload.share <= FEWER
    assert watched.overload.refuses(1, 0.99) == "more than 0.5 s late"


def test_chance_decides_who_is_taken() -> None:
    watched = Watched(delay=0.1)
    for _ in range(3):
        watched.look(late=1.0)
    share, chance = watched.overload.share, random.Random(7)
    taken = sum(not watched.overload.refuses(5, chance.random()) for _ in range(10_000))
    assert taken / 10_000 == pytest.approx(share, abs=0.02)  # four standard deviations


def test_without_a_bound_the_loop_may_be_late() -> None:
    watched = Watched(delay=0.0)
    for _ in range(10):
        watched.look(late=100.0)
    assert watched.overload.share == 1.0


def test_it_holds_when_refusals_keep_the_loop_in_time() -> None:
    """Three times as much as can be done: the loop is late whenever more than a third is taken."""
    watched = Watched(delay=0.1)
    for _ in range(20):
        watched.look(late=0.5)
    shares = []
    for _ in range(300):
        watched.look(late=0.5 if watched.overload.share > 1 / 3 else 0.0)
        shares.append(watched.overload.share)
    assert max(shares[50:]) < 1 / 3 + 15 * MORE  # it takes `INTERVAL` to be sure each time
    assert sum(min(share, 1 / 3) for share in shares[50:]) / 250 > 0.8 / 3


def test_the_log_is_told_once_in_an_episode(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lb")
    watched = Watched(requests=1)
    for _ in range(50):
        assert watched.overload.refuses(1, 0.0)
        watched.look()
    assert [record.getMessage() for record in caplog.records] == [
        "overloaded: 1 requests under way; requests are refused"
    ]
    watched.pass_by(QUIET + 1)
    assert [record.getMessage() for record in caplog.records][1:] == [
        "no longer overloaded; 50 requests were refused"
    ]
    assert watched.overload.refuses(1, 0.0)
    watched.look()
    watched.pass_by(QUIET + 1)
    assert caplog.records[-1].getMessage() == "no longer overloaded; 1 requests were refused"
    assert len(caplog.records) == 4


def test_resident_is_what_the_system_says() -> None:
    resident = Resident()
    before = resident.read()
    block = bytearray(os.urandom(1)) * (64 * MIB)
    after = resident.read()
    assert 60 * MIB < after - before < 80 * MIB
    del block
    give_back()
    assert resident.read() < after - 30 * MIB
    os.close(resident._fd)


def test_the_delay_is_the_worst_of_the_last_second() -> None:
    watched = Watched(delay=0.0)
    watched.pass_by(2)
    assert watched.overload.delay == pytest.approx(0.0, abs=1e-9)
    watched.look(late=0.3)
    watched.look(late=0.1)
    watched.pass_by(1)
    assert watched.overload.delay == pytest.approx(0.3)
    watched.pass_by(2)
    assert watched.overload.delay == pytest.approx(0.0, abs=1e-9)
    watched.look(waiting=5.0)  # others, not the loop
    watched.pass_by(1)
    assert watched.overload.delay == pytest.approx(0.0, abs=1e-9)
