"""What workers share: sums over all of them that never fall, and no present of those that are gone."""

from __future__ import annotations

import os
import subprocess
import sys
from math import isnan

import pytest

from lb.scoreboard import STALE, VARIABLE, Figures, Place, Scoreboard, alone, inherited
from tests.support.run import ROOT

NOW = 1000.0


def seat(board: Scoreboard, now: float = NOW) -> tuple[int, Place]:
    """A new worker's place, and its number."""
    number = board.take(now)
    assert number is not None
    return number, Place(board, number)


def test_nobody_is_there_yet() -> None:
    found = Scoreboard().read(NOW)
    assert (found.workers, found.degraded, found.losses, found.retries) == (0, 0, 0, {})
    assert isnan(found.connections)
    assert isnan(found.delay)


def test_figures_are_added_up() -> None:
    board = Scoreboard()
    board.name_pools(["a", "b"])
    _, one = seat(board)
    _, two = seat(board)
    one.write(Figures(True, 1, 2, 3, {"a": 4, "b": 5}, 6, 7, 8, 0.25), NOW)
    two.write(Figures(False, 10, 20, 30, {"a": 40}, 60, 70, 80, 0.125), NOW)
    found = board.read(NOW)
    assert (found.workers, found.degraded) == (2, 1)
    assert (found.losses, found.refused, found.lost_lines) == (11, 22, 33)
    assert found.retries == {"a": 44, "b": 5}
    assert (found.connections, found.in_flight, found.resident) == (66, 77, 88)
    assert found.delay == 0.25


def test_what_one_worker_does_not_know_the_others_tell() -> None:
    board = Scoreboard()
    _, one = seat(board)
    _, two = seat(board)
    one.write(Figures(True), NOW)
    found = board.read(NOW)
    assert isnan(found.in_flight)
    two.write(Figures(True, in_flight=3, delay=0.5), NOW)
    found = board.read(NOW)
    assert (found.in_flight, found.delay) == (3, 0.5)


def test_counts_of_the_dead_stay_and_nothing_else() -> None:
    board = Scoreboard()
    board.name_pools(["a"])
    number, place = seat(board)
    place.write(Figures(False, 1, 2, 3, {"a": 4}, 5, 6, 7, 8), NOW)
    board.give_up(number)
    found = board.read(NOW)
    assert (found.workers, found.degraded) == (0, 0)
    assert isnan(found.connections)
    assert (found.losses, found.refused, found.lost_lines, found.retries) == (1, 2, 3, {"a": 4})

    again, next_one = seat(board)
    assert again == number
    before = board.read(NOW)
    next_one.write(Figures(True), NOW)  # which has counted nothing yet
    found = board.read(NOW)
    assert (found.losses, found.refused, found.lost_lines, found.retries) == (1, 2, 3, {"a": 4})
    assert (before.workers, found.workers, found.degraded) == (0, 1, 0)
    next_one.write(Figures(True, 10, 20, 30, {"a": 40}), NOW)
    found = board.read(NOW)
    assert (found.losses, found.refused, found.lost_lines, found.retries) == (11, 22, 33, {"a": 44})


def test_who_shows_no_sign_of_life_is_not_counted_as_there() -> None:
    board = Scoreboard()
    _, place = seat(board)
    place.write(Figures(False, 1), NOW)
    assert board.read(NOW + STALE - 0.1).degraded == 1
    found = board.read(NOW + STALE)
    assert (found.workers, found.degraded, found.losses) == (0, 0, 1)
    place.write(Figures(False, 1), NOW + STALE)
    assert board.read(NOW + STALE).workers == 1


def test_who_leaves_by_itself() -> None:
    board = Scoreboard()
    _, place = seat(board)
    place.write(Figures(True, 1), NOW)
    place.leave()
    found = board.read(NOW)
    assert (found.workers, found.losses) == (0, 1)


def test_a_reload_takes_new_places_and_gives_the_old_ones_back() -> None:
    """Ten times over, there are never more than old and new ones together."""
    board = Scoreboard(places=4)
    old: list[tuple[int, Place]] = []
    told = 0
    for turn in range(10):
        new = [seat(board) for _ in range(2)]
        assert len({number for number, _ in (*old, *new)}) == len(old) + len(new)
        for _, place in new:
            place.write(Figures(True, 1), NOW)
        told += 2
        assert board.read(NOW).workers == len(old) + 2
        for number, place in old:
            place.leave()
            board.give_up(number)
        found = board.read(NOW)
        assert (found.workers, found.losses) == (2, told), turn
        old = new


def test_more_workers_than_places() -> None:
    """One without reads what the others tell, and writes nothing."""
    board = Scoreboard(places=2)
    number, one = seat(board)
    seat(board)
    assert board.take(NOW) is None
    without = Place(board, None)
    without.write(Figures(False, 100), NOW)
    one.write(Figures(True, 1), NOW)
    without.leave()
    found = without.board.read(NOW)
    assert (found.workers, found.degraded, found.losses) == (1, 0, 1)
    board.give_up(number)
    assert board.take(NOW) == number


def test_pools_that_come_later() -> None:
    """A worker knows those there were when it was forked; what is read knows all."""
    board = Scoreboard(pools=2)
    assert board.name_pools(["a"]) == []
    _, old = seat(board)
    assert board.name_pools(["a", "b", "c"]) == ["c"]
    _, new = seat(board)
    old.write(Figures(True, retries={"a": 1}), NOW)
    new.write(Figures(True, retries={"a": 2, "b": 3, "c": 4}), NOW)
    assert old.board.read(NOW).retries == {"a": 3, "b": 3}


def test_the_longest_name_of_a_pool() -> None:
    board = Scoreboard()
    board.name_pools(["p" * 63, "q"])
    assert set(board.read(NOW).retries) == {"p" * 63, "q"}


def handed_on(board: Scoreboard, **room: int) -> Scoreboard:
    """The scoreboard of the next generation's master."""
    env: dict[str, str] = {}
    board.pass_on(env)
    fd, _, generation = env[VARIABLE].partition(":")
    assert os.get_inheritable(int(fd))
    return Scoreboard(fd=os.dup(int(fd)), generation=int(generation), **room)


def test_two_masters_share_one() -> None:
    old = Scoreboard(places=2, pools=2)
    old.name_pools(["a"])
    new = handed_on(old, places=2, pools=2)
    old.name_pools(["b"])  # a reload of the one,
    new.name_pools(["c", "a"])  # while the other begins with another configuration
    seats = [seat(board) for board in (old, old, new, new)]
    assert len({number for number, _ in seats}) == 4
    for _, place in seats:
        place.write(Figures(True, 1, retries={"a": 1, "b": 10, "c": 100}), NOW)
    for board in (old, new):
        found = board.read(NOW)
        assert (found.workers, found.losses) == (4, 4)
        assert found.retries == {"a": 4, "b": 20, "c": 200}


def test_a_third_generation_uses_what_the_first_had() -> None:
    first = Scoreboard(places=2, pools=1)
    first.name_pools(["a"])
    number, place = seat(first)
    place.write(Figures(True, 5, retries={"a": 7}), NOW)
    third = handed_on(handed_on(first, places=2, pools=1), places=2, pools=1)
    assert third.name_pools(["a"]) == []
    # The first master was killed, and this worker of its goes on for a while.
    other, _ = seat(third)
    assert other != number
    late, again = seat(third, NOW + STALE)
    assert late == number
    again.write(Figures(True, 1, retries={"a": 1}), NOW + STALE)
    found = third.read(NOW + STALE)
    assert (found.losses, found.retries) == (6, {"a": 8})


@pytest.mark.parametrize("value", ["", "x", "7", "-1:1", "9999:1", "0:1"])
def test_what_is_no_scoreboard_is_not_used(value: str) -> None:
    board = inherited({VARIABLE: value} if value else {})
    assert board.read(NOW).workers == 0
    assert board.take(NOW) == 0


def test_one_of_another_layout_is_not_used() -> None:
    board = Scoreboard()
    seat(board)[1].write(Figures(True, 1), NOW)
    env: dict[str, str] = {}
    for layout, losses in ((board.counts[0], 1), (board.counts[0] + 1, 0)):
        board.counts[0] = layout
        board.pass_on(env)
        fd = os.dup(int(env[VARIABLE].partition(":")[0]))
        assert inherited({VARIABLE: f"{fd}:1"}).read(NOW).losses == losses


FORKS = """
import os, signal
from lb.scoreboard import Figures, Place, Scoreboard

board = Scoreboard()
for told in (1, 2, 3):
    number = board.take(0.0)
    pid = os.fork()
    if not pid:
        place = Place(board, number)
        place.write(Figures(False, told), 5.0)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    found = board.read(5.0)
    print(found.degraded, found.losses, end=" ")
    board.give_up(number)
    found = board.read(5.0)
    print(found.degraded, found.losses)
"""


def test_it_is_shared_among_processes_and_survives_them() -> None:
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=30, cwd=ROOT)
    assert done.stdout.splitlines() == ["1 1 0 1", "1 3 0 3", "1 6 0 6"], done.stderr


def test_a_worker_alone() -> None:
    place = alone(["a"])
    place.write(Figures(True, 1, retries={"a": 2}), NOW)
    found = place.board.read(NOW)
    assert (found.workers, found.losses, found.retries) == (1, 1, {"a": 2})
