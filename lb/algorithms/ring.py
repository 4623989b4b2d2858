"""A hash ring: which backends a key belongs to, such that a change of membership moves the least there is to
move.

Consistent hashing (Karger et al., "Consistent Hashing and Random Trees", 1997): each backend has many points
on a circle, a key belongs to the next point. Whatever happens to one backend, keys move to it or from it,
never between two others, because *the points of a backend depend on its id and its own weight, and on nothing
else*.

Weights usually break that: if the number of points is relative to the largest weight, or to the sum, one
backend's change renumbers all. If it is absolute, a weight of 1000 takes a thousand times the memory. Here
the backends are put on tracks by the size of their weight, 2^k to 2^(k+1) - 1 on track k, with POINTS ·
weight / 2^k points each. A key looks for the next point on every track, distances on track k divided by 2^k,
and takes the nearest (the linear method of Schindelhauer and Schomaker, "Weighted Distributed Hash Tables",
2005, with one track per power of two instead of one distance per backend). A backend then owns keys in
proportion to points · 2^k, that is to its weight, with 1 to 2 times POINTS points whatever the weight; ten
tracks at most, and one where weights are equal.

A backend has a share of keys within 1/sqrt(points) of its own (standard deviation 9 % for 128 points).
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from hashlib import blake2b, shake_128
from heapq import heapify, heappop, heapreplace
from typing import TypeAlias

from lb.model import MAX_WEIGHT

POINTS = 128
"""Points of a backend of weight 1."""

# A point is one number: 44 bits of place, 20 bits of the number of its owner.
_OWNER_BITS = 20
_OWNER = (1 << _OWNER_BITS) - 1
_CIRCLE = 1 << 64
_PLACE = _CIRCLE - 1 - _OWNER
_MOST = 1 << _OWNER_BITS

# The points of a track, sorted, and every 256th of them as plain numbers, which are faster to search.
Track: TypeAlias = "tuple[array[int], list[int]]"
_STRIDE = 256
# Points are sorted an eighth of the circle at a time: as plain numbers they take several times the array's
# memory.
_PART_BITS = 3


def place(key: bytes) -> int:
    """Where a key stands on the circle."""
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "little") & _PLACE


def track_of(weight: int) -> int:
    """The track of a backend."""
    return weight.bit_length() - 1


def points_of(name: str, weight: int) -> Sequence[int]:
    """The places of a backend's points, unsorted. Those for a smaller weight of the track are the first of
    these.
    """
    count = POINTS * weight >> track_of(weight)
    # The output of SHAKE is as long as one asks for; a shorter one is its beginning (FIPS 202, section 6.2).
    digest = array("Q", shake_128(name.encode()).digest(8 * count))
    if sys.byteorder == "big":  # hosts of either kind must agree
        digest.byteswap()
    return [number & _PLACE for number in digest]


class Ring:
    """The points of backends. Never changed; `changed` makes another one of it, and says the same as a new
    one.

    About 11 KiB for ten backends, 12 MiB for 10,000 (of equal weight). Making one is O(n log n), changing one
    backend copies the array, finding owners is O(log n).
    """

    __slots__ = ("__weakref__", "_free", "_tracks", "names", "numbers", "weights")

    def __init__(self, weights: Mapping[str, int]) -> None:
        """`weights`: those of the backends by name, each above 0."""
        if len(weights) > _MOST:
            raise ValueError(f"a ring takes at most {_MOST} backends")
        self.weights = dict(weights)
        self.names = list(weights)
        self.numbers = {name: number for number, name in enumerate(weights)}
        self._free: list[int] = []
        members: dict[int, list[str]] = {}
        for name, weight in weights.items():
            members.setdefault(track_of(weight), []).append(name)
        self._tracks: dict[int, Track] = {
            size: _track(_sorted_points((name, weights[name], self.numbers[name]) for name in names))
            for size, names in sorted(members.items())
        }

    def changed(self, weights: Mapping[str, int]) -> Ring:
        """The ring of other backends, made from this one; this one itself when they are the same."""
        if weights == self.weights:
            return self
        gone = [(name, weight) for name, weight in self.weights.items() if weights.get(name) != weight]
        new = [(name, weight) for name, weight in weights.items() if self.weights.get(name) != weight]
        if 8 * (len(gone) + len(new)) > len(weights):
            return Ring(weights)
        ring: Ring = object.__new__(Ring)
        ring.weights = dict(weights)
        ring.names, ring.numbers, ring._free = self.names.copy(), self.numbers.copy(), self._free.copy()
        edits: dict[int, list[tuple[int, bool]]] = {}
        for name, weight in gone:
            number = ring.numbers.pop(name)
            ring.names[number] = ""
            ring._free.append(number)
            edits.setdefault(track_of(weight), []).extend(
                (spot | number, False) for spot in points_of(name, weight)
            )
        for name, weight in new:
            if ring._free:
                number = ring._free.pop()
                ring.names[number] = name
            else:
                number = len(ring.names)
                ring.names.append(name)
            ring.numbers[name] = number
            edits.setdefault(track_of(weight), []).extend(
                (spot | number, True) for spot in points_of(name, weight)
            )
        tracks = dict(self._tracks)
        for size, wanted in edits.items():
            points, _ = tracks.pop(size, (array("Q"), []))
            points = _edited(points, sorted(wanted))
            if points:
                tracks[size] = _track(points)
        ring._tracks = dict(sorted(tracks.items()))
        return ring

    def owners(
        self, spot: int, wanted: int, away: AbstractSet[int], there: Mapping[int, int]
    ) -> Sequence[str]:
        """The first `wanted` distinct backends from a place on, nearest first, or all there are.

        `away`: numbers of backends to pass over. `there`: how many are left on each track that is worth
        looking at; when they are found, the walk along that track ends.
        """
        if len(there) != 1:
            return self._merged(spot, wanted, away, there)
        ((size, most),) = there.items()
        points, fence = self._tracks[size]
        start = _after(points, fence, spot)
        names, left = self.names, min(wanted, most)
        found: list[str] = []
        # From here to the end, then from the beginning on: a negative index counts from the end.
        for index in range(start - len(points), start):
            owner = points[index] & _OWNER
            if owner not in away:
                name = names[owner]
                if name not in found:
                    found.append(name)
                    left -= 1
                    if not left:
                        break
        return found

    def _merged(
        self, spot: int, wanted: int, away: AbstractSet[int], there: Mapping[int, int]
    ) -> Sequence[str]:
        left = dict(there)
        heads: list[tuple[int, int, int]] = []  # scaled distance, track, index: the next point of each track
        for size in there:
            points, fence = self._tracks[size]
            index = _after(points, fence, spot) - len(points)
            heads.append((_distance(points[index], spot, size), size, index))
        heapify(heads)
        found: list[int] = []
        while heads and len(found) < wanted:
            _, size, index = heads[0]
            points = self._tracks[size][0]
            owner = points[index] & _OWNER
            if owner not in found and owner not in away:
                found.append(owner)
                left[size] -= 1
            if left[size]:
                heapreplace(heads, (_distance(points[index + 1], spot, size), size, index + 1))
            else:
                heappop(heads)
        return [self.names[owner] for owner in found]


def _distance(point: int, spot: int, size: int) -> int:
    """From a place on to a point, on a track's scale."""
    return ((point - spot) % _CIRCLE >> _OWNER_BITS) << (track_of(MAX_WEIGHT) - size)


def _after(points: array[int], fence: list[int], spot: int) -> int:
    """The index of the first point at `spot` or behind it; the number of points if there is none."""
    block = bisect_left(fence, spot)
    if not block:
        return 0
    return bisect_left(points, spot, (block - 1) * _STRIDE, min(block * _STRIDE, len(points)))


def _track(points: array[int]) -> Track:
    return points, points[::_STRIDE].tolist()


def _sorted_points(owners: Iterable[tuple[str, int, int]]) -> array[int]:
    """The points of backends (name, weight, number)."""
    parts = [array("Q") for _ in range(1 << _PART_BITS)]
    for name, weight, number in owners:
        for spot in points_of(name, weight):
            parts[spot >> 64 - _PART_BITS].append(spot | number)
    points = array("Q")
    while parts:
        points.extend(sorted(parts.pop(0)))
    return points


def _edited(points: array[int], edits: Iterable[tuple[int, bool]]) -> array[int]:
    """A copy with points added (True) and left out (False); `edits` are sorted."""
    edited = array("Q")
    at = 0
    for point, new in edits:
        index = bisect_left(points, point, at)
        edited.extend(points[at:index])
        if new:
            edited.append(point)
        at = index if new else index + 1
    edited.extend(points[at:])
    return edited
