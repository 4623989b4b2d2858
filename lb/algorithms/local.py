"""Picks without the shared state: what a worker does while the store is away.

No I/O, no clock. The same rules as `redis/order.lua` (lowest score first, ties by turn), over what this
one process knows: exact for it, approximate for the fleet. Where an algorithm names candidates, the choice
among them is by this process's own connections, for what the others hold and how fast the backends answer is
not known; without reports turns go by the weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from heapq import heapify, heappop, heappush

from lb.algorithms import BrokenAlgorithm, UnknownAlgorithm, algorithm
from lb.algorithms.base import Order
from lb.algorithms.eligible import eligible
from lb.model import Backend, Snapshot


class LocalOrder:
    """The eligible backends of a snapshot in the order in which they are next; O(log n) a pick.

    `held` is the number of connections per backend name that this process holds. It is read at each call;
    who gives one back says so with `released`. `order` is that of the pool's algorithm, unless another is
    given; by turns where this host does not have the algorithm.
    """

    def __init__(self, snapshot: Snapshot, held: Mapping[str, int], order: Order | None = None) -> None:
        order = order or _order(snapshot.settings.algorithm)
        self._held = held
        found = eligible(snapshot)
        self._backends = {name: b for name, b in snapshot.backends.items() if name in found.names}
        self._standby = [snapshot.backends[name] for name in sorted(found.standby)]
        self._least = order in ("load", "weighted-load")
        self._weighted = order in ("weighted-turns", "reported-turns", "weighted-load")
        self._turn = 0
        self._floor = 0.0  # the score of the last pick
        self._heap: list[tuple[float, int, str]] = []  # score, turn, name
        self._newest: dict[str, int] = {}  # the turn of each backend's entry that counts
        self._full: dict[str, float] = {}  # the score with which a backend left at its cap
        for name, backend in self._backends.items():
            self._enter(name, self._load(backend, self._held.get(name, 0)) if self._least else 0.0)

    def _load(self, backend: Backend, held: int) -> float:
        return held / (backend.weight if self._weighted else 1)

    def _enter(self, name: str, score: float) -> None:
        self._turn += 1
        self._newest[name] = self._turn
        heappush(self._heap, (score, self._turn, name))
        if len(self._heap) > 4 * len(self._backends) + 64:
            self._heap = [entry for entry in self._heap if self._newest.get(entry[2]) == entry[1]]
            heapify(self._heap)

    def released(self, name: str) -> None:
        """A connection to `name` was given back."""
        backend = self._backends.get(name)
        if backend is None:
            return
        held = self._held.get(name, 0)
        if self._least:
            self._enter(name, self._load(backend, held))
        elif name in self._full and held < backend.max_connections:
            # It does not catch up on the turns it has missed.
            self._enter(name, max(self._full.pop(name), self._floor))

    def pick(
        self, exclude: Collection[str] = (), candidates: Collection[str] = (), *, first: bool = True
    ) -> Backend | None:
        """A backend that is not in `exclude` and below its cap; None if there is none.

        Of `candidates` the first, or else (not `first`) the one with the fewest connections over its weight;
        when none of them may be taken, the next of the order. The caller counts it in `held` before the next
        call.
        """
        found = self._best(candidates, exclude, first) if candidates else None
        if found is None:
            return self._next(exclude)
        if self._least:
            self._enter(found.id, self._load(found, self._held.get(found.id, 0) + 1))
        return found

    def last_resort(self, exclude: Collection[str]) -> Backend | None:
        """Of the backups that stand by, the one with the fewest connections over its weight; None if there
        is none that is below its cap and not in `exclude`.
        """
        return min(
            (b for b in self._standby if b.id not in exclude and not self._is_full(b)),
            key=lambda b: self._held.get(b.id, 0) / b.weight,
            default=None,
        )

    def _is_full(self, backend: Backend) -> bool:
        return 0 < backend.max_connections <= self._held.get(backend.id, 0)

    def _best(self, names: Collection[str], exclude: Collection[str], first: bool) -> Backend | None:
        best, least = None, 0.0
        for name in names:
            backend = self._backends.get(name)
            held = self._held.get(name, 0)
            if backend is None or name in exclude or 0 < backend.max_connections <= held:
                continue
            if first:
                return backend
            load = held / backend.weight
            if best is None or load < least:
                best, least = backend, load
        return best

    def _next(self, exclude: Collection[str]) -> Backend | None:
        aside = []
        found = None
        while self._heap:
            entry = heappop(self._heap)
            score, turn, name = entry
            if self._newest.get(name) != turn:
                continue  # a newer entry of this backend stands elsewhere
            backend = self._backends[name]
            held = self._held.get(name, 0)
            if 0 < backend.max_connections <= held:
                self._full[name] = score
                del self._newest[name]
                continue
            if name in exclude:
                aside.append(entry)
                continue
            found = backend
            if not exclude:
                self._floor = score
            step = 1 / (backend.weight if self._weighted else 1)
            self._enter(name, self._load(backend, held + 1) if self._least else score + step)
            break
        for entry in aside:
            heappush(self._heap, entry)
        return found


def _order(name: str) -> Order:
    try:
        return algorithm(name).order
    except (UnknownAlgorithm, BrokenAlgorithm):
        return "turns"
