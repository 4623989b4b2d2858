"""Numbers of all workers of one gunicorn, in memory that they share.

The master makes it before it forks, and gives each worker a place on it. Only the worker whose place it is
writes there, so nothing is locked; anybody reads. What is counted at a place only grows: whoever gets it
after another one goes on from there, so a sum over all places never falls, however a worker has ended.

At an upgrade (USR2) the new master gets the same memory, for its workers and the old ones answer in turn.
There are two masters at a time at most, one begun by the other: what they give out, places and columns for
pools, is divided between those of even and of odd generations.

Rules of this module: no clock; times are those of `monotonic`, which all processes of a host share. A number
is a word of eight bytes, written whole; a place as a whole is not, so its numbers may be of two moments.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from math import isnan, nan

import msgspec

PLACES = 512
"""Workers of one master that have a place at most, those that are leaving included."""
POOLS = 256
"""Pools for which something is counted at most, over the life of a master."""
STALE = 10.0
"""Seconds without a sign of life after which what a worker tells of the present does not count."""
VARIABLE = "GUNICORN_LB_SCOREBOARD"
"""What tells a new master of an upgrade where the memory is: its descriptor, and the generation."""

_LAYOUT = 1  # what is written below, and by `Place`; another one is not read
_WORD = 8
# The layout, how many places were ever used, and how many names by even and by odd masters.
_USED, _NAMED, _HEAD = 1, 2, 4
_NAME = 8  # words of a name
# At a place: when it was written last (0: nobody sits there), then the present, what was counted, and what
# was counted by pool.
_GAUGES = ("shared", "connections", "in_flight", "resident", "delay")
_COUNTERS = ("losses", "refused", "lost_lines")
_FIRST_COUNTER = 1 + len(_GAUGES)
_FIRST_POOL = _FIRST_COUNTER + len(_COUNTERS)


class Figures(msgspec.Struct, frozen=True):
    """What one worker knows of itself; NaN where it does not.

    `shared`: does it use the shared state? `losses`: how often it had to do without; `refused`: requests, for
    overload; `lost_lines`: of the access log; `retries`: by pool, those that the retry budget refused.
    `connections` and requests `in_flight` of its clients; `resident` memory in bytes; `delay` of its event
    loop in seconds.
    """

    shared: bool
    losses: int = 0
    refused: int = 0
    lost_lines: int = 0
    retries: Mapping[str, int] = {}
    connections: float = nan
    in_flight: float = nan
    resident: float = nan
    delay: float = nan


class Totals(msgspec.Struct):
    """Those of all workers: sums, and the largest `delay`. Counts are of all that there have been, the rest
    is of the `workers` that show signs of life; `degraded` of these do without the shared state.
    """

    workers: int = 0
    degraded: int = 0
    losses: int = 0
    refused: int = 0
    lost_lines: int = 0
    retries: dict[str, int] = {}
    connections: float = nan
    in_flight: float = nan
    resident: float = nan
    delay: float = nan


class Scoreboard:
    """Room for so many `places` and `pools` of each of two masters, in the file `fd`; this one is of that
    `generation`. Raises ValueError for a file that is no such thing.
    """

    def __init__(
        self, places: int = PLACES, pools: int = POOLS, fd: int | None = None, generation: int = 0
    ) -> None:
        self._places, self._most_pools = places, pools
        self._width = _FIRST_POOL + 2 * pools
        self._first = _HEAD + 2 * pools * _NAME
        size = (self._first + 2 * places * self._width) * _WORD
        new = fd is None
        if fd is None:
            fd = os.memfd_create("lb-scoreboard")
            os.ftruncate(fd, size)
        elif os.fstat(fd).st_size != size:
            raise ValueError("of another size")
        self._fd, self._generation = fd, generation
        weakref.finalize(self, os.close, fd).atexit = False
        self._odd = generation % 2
        self._memory = mmap.mmap(fd, size)
        #: The same words as whole numbers and as fractions.
        self.counts = memoryview(self._memory).cast("q")
        self.values = memoryview(self._memory).cast("d")
        if new:
            self.counts[0] = _LAYOUT
        elif self.counts[0] != _LAYOUT:
            raise ValueError("of another layout")
        #: By name, in which column workers of this master count.
        self.pools = {name: column for name, column in self._columns() if column % 2 == self._odd}
        self._taken: set[int] = set()

    # The master's part.

    def pass_on(self, env: MutableMapping[str, str]) -> None:
        """In the process that becomes the new master of an upgrade: let it find this memory."""
        os.set_inheritable(self._fd, True)
        env[VARIABLE] = f"{self._fd}:{self._generation + 1}"

    def name_pools(self, names: Iterable[str]) -> list[str]:
        """Let something be counted for these pools, too, by workers that are forked from now on.

        Returns those for which there is no room.
        """
        left = []
        for name in names:
            known = len(self.pools)
            if name in self.pools:
                continue
            if known == self._most_pools:
                left.append(name)
                continue
            column = 2 * known + self._odd
            at = (_HEAD + column * _NAME) * _WORD
            self._memory[at : at + _NAME * _WORD] = name.encode().ljust(_NAME * _WORD, b"\0")
            self.counts[_NAMED + self._odd] = known + 1
            self.pools[name] = column
        return left

    def take(self, now: float) -> int | None:
        """A place for a worker that will be forked, by its number; None when all are taken."""
        for number in range(self._odd, 2 * self._places, 2):
            # Who writes there is left of a master that was killed, two generations ago.
            if number not in self._taken and not self._is_used(number, now):
                self._taken.add(number)
                self.counts[_USED] = max(self.counts[_USED], number + 1)
                return number
        return None

    def give_up(self, number: int) -> None:
        """Whose place it was has ended."""
        self.values[self.start(number)] = 0.0
        self._taken.discard(number)

    # Everybody's.

    def start(self, number: int) -> int:
        """Which word a place begins at."""
        return self._first + number * self._width

    def _is_used(self, number: int, now: float) -> bool:
        written = self.values[self.start(number)]
        return written != 0.0 and now - written < STALE

    def _columns(self) -> Iterator[tuple[str, int]]:
        """The names that masters have given, and which column each has; one name may have two."""
        for odd in (0, 1):
            for column in range(odd, 2 * self.counts[_NAMED + odd], 2):
                at = (_HEAD + column * _NAME) * _WORD
                yield self._memory[at : at + _NAME * _WORD].rstrip(b"\0").decode(), column

    def read(self, now: float) -> Totals:
        """What all workers have written."""
        found = Totals()
        columns = list(self._columns())
        found.retries = dict.fromkeys((name for name, _ in columns), 0)
        for number in range(self.counts[_USED]):
            at = self.start(number)
            for place, name in enumerate(_COUNTERS, at + _FIRST_COUNTER):
                setattr(found, name, getattr(found, name) + self.counts[place])
            for name, column in columns:
                found.retries[name] += self.counts[at + _FIRST_POOL + column]
            if self._is_used(number, now):
                self._add_present(found, list(self.values[at + 1 : at + _FIRST_COUNTER]))
        return found

    def _add_present(self, found: Totals, gauges: list[float]) -> None:
        shared, connections, in_flight, resident, delay = gauges
        found.workers += 1
        found.degraded += not shared
        found.connections = _sum(found.connections, connections)
        found.in_flight = _sum(found.in_flight, in_flight)
        found.resident = _sum(found.resident, resident)
        if isnan(found.delay) or delay > found.delay:
            found.delay = delay


class Place:
    """A worker's place on `board`, made after the fork; `number` None: there was none left, it only reads."""

    def __init__(self, board: Scoreboard, number: int | None) -> None:
        self.board = board
        self._at = None if number is None else board.start(number)
        # What those had counted who sat here before.
        self._before: list[int] = []
        self._before_of: dict[str, int] = {}
        if self._at is not None:
            first = self._at + _FIRST_POOL
            self._before = list(board.counts[self._at + _FIRST_COUNTER : first])
            self._before_of = {name: board.counts[first + column] for name, column in board.pools.items()}

    def write(self, figures: Figures, now: float) -> None:
        """Show how things are. One at a time in a process."""
        if self._at is None:
            return
        board, at = self.board, self._at
        for place, name in enumerate(_GAUGES, at + 1):
            board.values[place] = float(getattr(figures, name))
        for index, name in enumerate(_COUNTERS):
            board.counts[at + _FIRST_COUNTER + index] = self._before[index] + getattr(figures, name)
        for name, before in self._before_of.items():
            place = at + _FIRST_POOL + board.pools[name]
            board.counts[place] = before + figures.retries.get(name, 0)
        board.values[at] = now

    def leave(self) -> None:
        """Whose place it is serves no more; what it has counted stays."""
        if self._at is not None:
            self.board.values[self._at] = 0.0


def inherited(env: MutableMapping[str, str]) -> Scoreboard:
    """The scoreboard of the master that has begun this one (see `Scoreboard.pass_on`); else a new one."""
    fd, _, generation = env.pop(VARIABLE, "").partition(":")
    with suppress(OSError, ValueError):
        made = Scoreboard(fd=int(fd), generation=int(generation))
        os.set_inheritable(int(fd), False)
        return made
    return Scoreboard()


def alone(pools: Iterable[str]) -> Place:
    """The place of a worker that shares with nobody."""
    names = list(pools)
    board = Scoreboard(1, len(names))
    board.name_pools(names)
    return Place(board, board.take(0.0))


def _sum(one: float, other: float) -> float:
    """What is not known adds nothing."""
    if isnan(one) or isnan(other):
        return other if isnan(one) else one
    return one + other
