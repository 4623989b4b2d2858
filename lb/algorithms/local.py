"""Picks without the shared state: what a worker does while the store is away.

No I/O, no clock. The same rules as `redis/order.lua` (lowest score first, ties by turn), over what this
one process knows: exact for it, approximate for the fleet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush

from lb.model import Backend, Snapshot


class LocalOrder:
    """The available backends of a snapshot in the order in which they are next; O(log n) a pick.

    `held` is the number of connections per backend name that this process holds. It is read at each call;
    who gives one back says so with `released`.
    """

    def __init__(self, snapshot: Snapshot, held: Mapping[str, int]) -> None:
        self._least = "least" in snapshot.settings.algorithm
        self._weighted = snapshot.settings.algorithm.startswith("weighted")
        self._held = held
        self._backends = {name: b for name, b in snapshot.backends.items() if b.available}
        self._turn = 0
        self._refill()

    def _refill(self) -> None:
        self._heap: list[tuple[float, int, str]] = []
        for name, backend in self._backends.items():
            self._turn += 1
            self._heap.append((self._load(backend) if self._least else 0.0, self._turn, name))
        heapify(self._heap)

    def _load(self, backend: Backend) -> float:
        return self._held.get(backend.id, 0) / (backend.weight if self._weighted else 1)

    def released(self, name: str) -> None:
        """A connection to `name` was given back. Its former entry is stale from now on."""
        backend = self._backends.get(name)
        if backend is not None and self._least:
            self._turn += 1
            heappush(self._heap, (self._load(backend), self._turn, name))
            if len(self._heap) > 4 * len(self._backends) + 64:
                self._refill()

    def pick(self, exclude: Sequence[str] = ()) -> Backend | None:
        """The next backend that is not in `exclude` and below its cap; None if there is none.

        The caller counts it in `held` before the next call.
        """
        aside = []
        found = None
        while self._heap:
            entry = heappop(self._heap)
            score, _, name = entry
            backend = self._backends[name]
            load = self._held.get(name, 0)
            if self._least and score != self._load(backend):
                continue  # stale: a newer entry of this backend stands elsewhere
            if name in exclude or 0 < backend.max_connections <= load:
                aside.append(entry)
                continue
            found = backend
            self._turn += 1
            step = 1 / (backend.weight if self._weighted else 1)
            heappush(self._heap, (score + step, self._turn, name))
            break
        for entry in aside:
            heappush(self._heap, entry)
        return found
