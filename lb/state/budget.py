"""The retry budget of a pool: how many retries the whole fleet may have, as a share of its recent requests.

When every backend fails, retries multiply the load just when it is least welcome, and a bound on each request
does not help, for all of them fail. So retries are counted over the fleet, in the shared state: workers tell
how many requests they had with their beat, and ask for each retry, which is rare. While the shared state is
away each worker goes by its own numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from lb.errors import StoreError
from lb.settings import RetrySettings
from lb.state.keys import PoolKeys
from lb.state.registry import Registry

WINDOW = 10
"""Seconds whose requests and retries count."""

REFUSED = 0.05
"""Seconds for which a refusal holds, without asking again: when everything fails, that is asked most."""

AWAY = 1.0
"""Seconds for which the shared state is not asked after it has failed to answer."""


class Window:
    """Requests and retries of the last `WINDOW` seconds. Pure: time comes as an argument, by any clock."""

    def __init__(self, share: float, least: float) -> None:
        self._share, self._least = share, least
        self._slots: dict[int, list[int]] = {}

    def _slot(self, now: float) -> list[int]:
        second = int(now)
        slot = self._slots.get(second)
        if slot is None:
            # Threads may be here at the same time: each of these steps is one of the interpreter's.
            for old in [known for known in list(self._slots) if known <= second - WINDOW]:
                self._slots.pop(old, None)
            slot = self._slots.setdefault(second, [0, 0])
        return slot

    def count(self, now: float, requests: int = 0, retries: int = 0) -> None:
        """There were some more."""
        slot = self._slot(now)
        slot[0] += requests
        slot[1] += retries

    def take(self, now: float) -> bool:
        """Take a retry, if there is one left."""
        slot = self._slot(now)
        slots = list(self._slots.values())
        requests, retries = sum(one[0] for one in slots), sum(one[1] for one in slots)
        if retries + 1 > max(self._share * requests, self._least * WINDOW):
            return False
        slot[1] += 1
        return True


class Budget:
    """One worker's part in the budget of one pool. `registry`: the shared state; None while it is away.

    `requests` is each time how many this worker has had so far.
    """

    def __init__(self, pool: str, settings: RetrySettings, registry: Callable[[], Registry | None]) -> None:
        #: Retries that were refused.
        self.refused = 0
        self._keys = PoolKeys(pool)
        self._share, self._least = settings.budget, settings.budget_min
        self._registry = registry
        self._own = Window(self._share, self._least)
        self._counted = self._told = 0
        self._refused_until = self._away_until = 0.0

    def take(self, requests: int) -> bool:
        """Take one retry, if there is one left. Waits for the shared state; its faults are no errors here."""
        now = monotonic()
        self._own.count(now, requests - self._counted)
        self._counted = requests
        if now < self._refused_until:
            self.refused += 1
            return False
        registry = self._registry() if now >= self._away_until else None
        if registry is None:
            may = self._own.take(now)
        else:
            try:
                may = self._tell(registry, requests, wanted=True)
            except StoreError:
                self._away_until = monotonic() + AWAY
                may = self._own.take(now)
            else:
                self._own.count(now, retries=int(may))
        if not may:
            self.refused += 1
            self._refused_until = monotonic() + REFUSED
        return may

    def tell(self, registry: Registry, requests: int) -> None:
        """Tell how many requests there were since the last time, if any were."""
        if requests > self._told:
            try:
                self._tell(registry, requests, wanted=False)
            except StoreError:  # whoever sees to the shared state finds out by itself
                self._away_until = monotonic() + AWAY

    def _tell(self, registry: Registry, requests: int, wanted: bool) -> bool:
        more = max(requests - self._told, 0)
        self._told += more
        return registry.scripts.retry(self._keys, more, self._share, self._least, WINDOW, wanted)
