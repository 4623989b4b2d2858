"""The algorithms that draw lots: some distinct backends, each draw in proportion to the weights left.

Why also the two of `power-of-two-choices` are drawn by weight: were they drawn uniformly, a backend with 1000
of 1099 parts of the weight among a hundred would be looked at by 2 % of the requests, and could not get its
share however idle it was. A backend of weight w stands for w servers of weight 1, and to draw one of those
uniformly is to draw by weight; then the analysis for equal servers holds (Mitzenmacher, "The Power of Two
Choices in Randomized Load Balancing", 2001). While nothing is under way all are equal, the first that was
drawn is taken, and shares are those of the weights.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence
from itertools import accumulate
from typing import ClassVar

from lb.algorithms.base import CANDIDATES, Algorithm, Chance, Request
from lb.model import Snapshot


class Drawn(Algorithm):
    """Draws `wanted` distinct backends, or all there are. A subclass says what becomes of them (`rule`).

    The weights lie on a line, end to end. Each draw is a point on what is left of it: the parts already
    taken are jumped over, never drawn again and rejected, so no weights make it slow. O(log n) a draw, O(1)
    with equal weights.
    """

    order = "weighted-turns"
    wanted: ClassVar[int] = 2

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__(snapshot)
        self._ids = [backend.id for backend in self.available]
        weights = [backend.weight for backend in self.available]
        self._count = min(self.wanted, len(weights))
        #: Where each backend's part of the line ends; None: all parts are 1 long.
        self._ends = list(accumulate(weights)) if len(set(weights)) > 1 else None
        self._length = self._ends[-1] if self._ends else len(weights)

    def candidates(self, request: Request | None, chance: Chance) -> Sequence[str]:
        """Distinct backends in the order in which they were drawn."""
        ids, ends, left = self._ids, self._ends, self._length
        found: list[str] = []
        taken: list[tuple[int, int]] = []  # start and length, by start
        for _ in range(self._count):
            point = int(chance() * left)
            for start, length in taken:
                if point < start:
                    break
                point += length
            if ends is None:
                index, start, length = point, point, 1
            else:
                index = bisect_right(ends, point)
                start = ends[index - 1] if index else 0
                length = ends[index] - start
            found.append(ids[index])
            left -= length
            insort(taken, (start, length))
        return found


class Random(Drawn):
    """One at random, by weight; the others drawn stand in when it is full."""

    name = "random"
    rule = "first"
    wanted = CANDIDATES


class PowerOfTwoChoices(Drawn):
    """Of two at random the one with fewer connections over its weight."""

    name = "power-of-two-choices"
    rule = "least-load"


class LeastTime(Drawn):
    """Of two at random the one whose latency times connections is less (peak EWMA, as in Finagle).

    The weight counts in the draw alone: what a slower machine's weight would say, its latency says already.
    """

    name = "least-time"
    rule = "least-time"
