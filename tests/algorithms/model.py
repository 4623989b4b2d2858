"""The shared state's part in a few plain lines: what a claim takes, and what a release gives back.

O(n) and without a store; the scripts in `redis/` must pick what this picks. Time is `now`, in seconds, and
moves only when a test moves it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from math import ceil, exp, inf
from typing import NamedTuple

from lb.algorithms import algorithm
from lb.algorithms.base import Algorithm, Chance, Request
from lb.algorithms.reports import effective
from lb.model import Backend, HashPolicy, PoolSettings, Snapshot

DECAY = 10.0
"""Seconds in which a measured latency loses all but 1/e of what it counts (least-time)."""

_GOLDEN = (5**0.5 - 1) / 2


@dataclass
class Latency:
    """Peak EWMA, as Finagle has it: a longer time counts at once, a shorter one by how long ago the last was;
    and without new ones it fades, so that a backend which was slow once gets another chance.
    """

    value: float
    at: float

    def faded(self, now: float) -> float:
        """What it is worth now."""
        return self.value * exp(-(now - self.at) / DECAY)

    def add(self, sample: float, now: float) -> None:
        """Another time was measured."""
        if sample > self.value:
            self.value = sample
        else:
            old = exp(-(now - self.at) / DECAY)
            self.value = self.value * old + sample * (1 - old)
        self.at = now


class Seen(NamedTuple):
    """What of a backend the order can see; the weight is 0 while it is not available."""

    weight: int
    cap: int


def _seen(snapshot: Snapshot, name: str) -> Seen:
    each = snapshot.backends[name]
    return Seen(each.weight if each.available else 0, each.max_connections)


class Model:
    """One pool. `shares` are the free shares of backends that have reported (resource-based)."""

    def __init__(self, snapshot: Snapshot, chance: Chance) -> None:
        self.now = 0.0
        self.in_flight: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.latency: dict[str, Latency] = {}
        self.shares: dict[str, float] = {}
        self._chance = chance
        self._begin()
        self.update(snapshot)

    def _begin(self) -> None:
        self._score: dict[str, float] = {}  # who stands in the order
        self._left: dict[str, float] = {}  # the score with which others have left it
        self._turn = dict[str, int]()  # ties: who was moved longest ago
        self._turns = 0
        self._floor, self._last = 0.0, ""
        self._entered = 0
        self._seen: dict[str, Seen] = {}  # what the order knows of each backend

    # The pool.

    def update(self, snapshot: Snapshot) -> None:
        """The pool is another from here on. Another algorithm, or order, begins anew; counts stay."""
        before, former = getattr(self, "snapshot", None), getattr(self, "chosen", None)
        self.snapshot = snapshot
        self.chosen: Algorithm = algorithm(snapshot.settings.algorithm)(snapshot)
        if (
            before is None
            or former is None
            or (former.name, former.order) != (self.chosen.name, self.chosen.order)
        ):
            self._begin()
        else:
            for name in before.backends:
                if name not in snapshot.backends:
                    self._left.pop(name, None)
                    if name in self._score:
                        self._left[name] = self._score.pop(name)
                    self._forget(name)
        for name in sorted(snapshot.backends):
            known, seen, stood = self._seen.get(name), _seen(snapshot, name), name in self._score
            if known != seen:
                self._place(name)
            if known and stood and name in self._score:
                self._stretch(name, known.weight, seen.weight)
        self._seen = {name: _seen(snapshot, name) for name in snapshot.backends}

    def _stretch(self, name: str, before: float, after: float) -> None:
        """What is left of its step grows or shrinks with the weight, so that a new weight acts at once."""
        if self._by_turns and self._weighted and before and after and self._score[name] > self._floor:
            self._score[name] = self._floor + (self._score[name] - self._floor) * before / after

    def _forget(self, name: str) -> None:
        """One that was removed keeps its count and its turn until its last connection is given back."""
        for book in (self.latency, self.shares, self.requests):
            book.pop(name, None)
        if not self.in_flight[name]:
            self._left.pop(name, None)

    @property
    def _by_turns(self) -> bool:
        return self.chosen.order.endswith("turns")

    @property
    def _weighted(self) -> bool:
        return self.chosen.order in ("weighted-turns", "reported-turns", "weighted-load")

    def _weight(self, name: str) -> float:
        weight = self.snapshot.backends[name].weight
        if self.chosen.order == "reported-turns" and name in self.shares:
            return effective(weight, self.shares[name])
        return weight if self._weighted else 1

    def open(self, exclude: Collection[str] = ()) -> list[Backend]:
        """Who may take a connection: available, below its cap, and not in `exclude`."""
        return [
            backend
            for name, backend in sorted(self.snapshot.backends.items())
            if backend.available
            and name not in exclude
            and not 0 < backend.max_connections <= self.in_flight[name]
        ]

    # The order.

    def _place(self, name: str) -> None:
        """Put a backend where it belongs in the order, or take it out."""
        backend = self.snapshot.backends[name]
        full = 0 < backend.max_connections <= self.in_flight[name]
        if not backend.available or full:
            if name in self._score:
                self._left[name] = self._score.pop(name)
        elif not self._by_turns:
            self._score[name] = self.in_flight[name] / self._weight(name)
            self._moved(name)
        elif name not in self._score:
            self._score[name] = self._entry(name)
            self._moved(name)

    def _entry(self, name: str) -> float:
        """Neither does it catch up on turns it has missed, nor get a second one for coming back at once."""
        left = self._left.pop(name, None)
        if not self._weighted:
            return max(-1 if left is None else left, self._floor + (name <= self._last))
        step = 1 / self._weight(name)
        if left is None:
            self._entered += 1
            return self._floor + self._entered * _GOLDEN % 1 * step
        if left >= self._floor:
            return min(left, self._floor + step)
        return left + ceil((self._floor - left) / step) * step

    def _moved(self, name: str) -> None:
        self._turns += 1
        self._turn[name] = self._turns

    def _tie(self, name: str) -> object:
        # Turns keep one sequence, that of the names; of equal loads whoever waits longest is first.
        return name if self._by_turns else self._turn[name]

    # Claims and releases.

    def claim(self, request: Request | None = None, exclude: Collection[str] = ()) -> str | None:
        """Take a connection to a backend; None when none may take it."""
        names = self._score.keys() - set(exclude)
        found = None
        if self.chosen.rule is not None and (request is not None or not self.chosen.asks):
            named = [name for name in self.chosen.candidates(request, self._chance) if name in names]
            found = self._by_rule(named)
        if found is None:
            found = min(names, key=lambda name: (self._score[name], self._tie(name)), default=None)
            if found is None:
                return None
            if self._by_turns:
                if not exclude:
                    self._floor, self._last = self._score[found], found
                self._score[found] += 1 / self._weight(found)
                self._moved(found)
        self.in_flight[found] += 1
        self.requests[found] += 1
        self._place(found)
        return found

    def _by_rule(self, names: list[str]) -> str | None:
        """The candidate that is taken; `min` takes the first of equals."""
        match self.chosen.rule:
            case "first":
                return next(iter(names), None)
            case "least-load":
                return min(names, key=self.load, default=None)
            case "least-time":
                return min(names, key=self.cost, default=None)
            case "bounded":
                return next((name for name in names if self.in_flight[name] < self.bound(name)), None)
        raise AssertionError(self.chosen.rule)

    def load(self, name: str) -> float:
        """Connections over the weight."""
        return self.in_flight[name] / self.snapshot.backends[name].weight

    def cost(self, name: str) -> float:
        """The time that a new connection may take there, in seconds."""
        latency = self.latency.get(name)
        if latency is None:
            return inf if self.in_flight[name] else 0.0
        return latency.faded(self.now) * (self.in_flight[name] + 1)

    def bound(self, name: str) -> int:
        """How many connections a backend may hold when there is one more (consistent-hash)."""
        backends = {backend.id: backend for backend in self.snapshot.backends.values() if backend.available}
        total = sum(self.in_flight.values()) + 1  # at those, too, that get no more
        share = total * backends[name].weight / sum(backend.weight for backend in backends.values())
        return ceil(self.snapshot.settings.hash.balance * share)

    def release(self, name: str, latency: float | None = None) -> None:
        """Give a connection back; `latency` is how long its answer took, None if there was none."""
        assert self.in_flight[name] > 0
        self.in_flight[name] -= 1
        if name not in self.snapshot.backends:
            self._forget(name)
            return
        if latency is not None:
            known = self.latency.get(name)
            if known is None:
                self.latency[name] = Latency(latency, self.now)
            else:
                known.add(latency, self.now)
        self._place(name)

    def report(self, name: str, share: float) -> None:
        """A backend's smoothed free share is another from here on."""
        before = self._weight(name)
        self.shares[name] = share
        if name in self._score:
            self._stretch(name, before, self._weight(name))


class Line:
    """What is going to happen, in the order of time: runs a model on virtual time."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._events: list[tuple[float, int, str, float]] = []
        self._count = 0

    def answer_after(self, name: str, seconds: float) -> None:
        """The connection just claimed is given back by then."""
        self._count += 1
        heappush(self._events, (self.model.now + seconds, self._count, name, seconds))

    def step(self) -> str | None:
        """Go on to the next answer and give its connection back; whose it was, None if there is none."""
        if not self._events:
            return None
        self.model.now, _, name, seconds = heappop(self._events)
        self.model.release(name, seconds)
        return name

    def until(self, now: float) -> None:
        """Go on to a time."""
        while self._events and self._events[0][0] <= now:
            self.step()
        self.model.now = now


def backend(name: str, weight: int = 1, max_connections: int = 0, **more: str) -> Backend:
    """A backend for tests."""
    return Backend(name, f"http://{name}:80", weight, max_connections, **more)  # type: ignore[arg-type]


def pool(
    name: str,
    *backends: Backend,
    version: int = 1,
    key: str = "ip",
    balance: float = 1.25,
    pool: str = "p",
) -> Snapshot:
    """A pool that balances by the algorithm `name`."""
    settings = PoolSettings(name, hash=HashPolicy(key, balance))
    return Snapshot(pool, version, settings, {each.id: each for each in backends})


def weights(snapshot: Snapshot) -> Mapping[str, int]:
    """The weights of the available backends."""
    return {each.id: each.weight for each in snapshot.backends.values() if each.available}
