"""When each backend is probed.

Rules of this module: no I/O, no clock, no Redis: the time (seconds, any steady clock) and chance
(a number in [0, 1)) come in as arguments.

A backend that is between two verdicts is probed faster (HAProxy's `fastinter`), so that one that was
killed leaves `(fall - 1) × fast` after the first probe that missed it.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

#: Shortest fast interval, seconds, unless the interval itself is shorter.
FAST_FLOOR = 0.5
#: Shortest pause between two probes of a backend, seconds, however large the jitter.
SHORTEST = 0.05
#: First probes of a whole fleet start at this rate, probes per second.
START_RATE = 1000.0

Key = TypeVar("Key", bound=Hashable)


def fast_interval(interval: float) -> float:
    """Return the interval, in seconds, between probes of a backend that is between two verdicts."""
    return min(interval, max(interval / 3, FAST_FLOOR))


def delay(interval: float, jitter: float, settled: bool, chance: float) -> float:
    """Return the seconds from the start of one probe to the next.

    `jitter` is the share of the interval by which a probe may be early or late; a fast one is only ever
    early, so that the time to a verdict has a bound.
    """
    if settled:
        return max(interval * (1 + jitter * (2 * chance - 1)), SHORTEST)
    return max(fast_interval(interval) * (1 - jitter * chance), SHORTEST)


def phase(interval: float, chance: float) -> float:
    """Return the seconds from the first probe of a settled backend to its second.

    Anywhere in the interval: it is what spreads a fleet evenly that was first probed in one go.
    """
    return interval * (1 - chance)


def first(number: int, total: int, interval: float) -> float:
    """Return the seconds until the first probe of newcomer `number` of `total` that came together.

    As soon as START_RATE allows, but all within one interval: a verdict is what a newcomer waits for.
    """
    return number / total * min(interval, total / START_RATE)


class Schedule(Generic[Key]):
    """Which key is due when: each key is planned at most once. All steps are O(log n)."""

    __slots__ = ("_due", "_heap", "_number")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Key]] = []
        self._due: dict[Key, int] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._due)

    def plan(self, key: Key, due: float) -> None:
        """Plan `key` for time `due`, in place of what was planned for it."""
        self._number += 1
        self._due[key] = self._number
        heapq.heappush(self._heap, (due, self._number, key))
        # Entries that were replaced stay in the heap until they surface; not more than there are live ones.
        if len(self._heap) > 2 * len(self._due) + 64:
            self._heap = [one for one in self._heap if self._due.get(one[2]) == one[1]]
            heapq.heapify(self._heap)

    def drop(self, key: Key) -> None:
        """Forget `key`; nothing happens when it is not planned."""
        self._due.pop(key, None)

    def clear(self) -> None:
        """Forget all keys."""
        self._heap.clear()
        self._due.clear()

    def next(self) -> float | None:
        """Return when the first key is due, None when none is planned."""
        heap = self._heap
        while heap and self._due.get(heap[0][2]) != heap[0][1]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def take(self, now: float, limit: int) -> list[tuple[Key, float]]:
        """Take out at most `limit` keys due at `now`, the longest waiting first, each with its time."""
        taken: list[tuple[Key, float]] = []
        while len(taken) < limit:
            due = self.next()
            if due is None or due > now:
                break
            key = heapq.heappop(self._heap)[2]
            del self._due[key]
            taken.append((key, due))
        return taken
