"""Requests that are carried out once: who has begun which, and what was answered, in the shared state.

An entry runs as long as its worker shows signs of life: when that dies, whoever comes next with the same key
may try again (`redis/once.lua`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum
from itertools import count

from lb.errors import StoreError, StoreUnavailable
from lb.settings import IdempotencySettings
from lb.state.keys import PoolKeys
from lb.state.lease import LEASE
from lb.state.registry import Registry

_LOG = logging.getLogger("lb")

UNTOLD = 256
"""Outcomes that a worker holds with their answers while the shared state does not take them. None can be
begun meanwhile, so there are never many."""


class Begun(Enum):
    """What `redis/once.lua` says to one who begins; an answer that was kept is told by its bytes."""

    YOURS = 0
    RUNNING = 1
    OTHER = 2
    NOT_KEPT = 4
    FULL = 5


class Entries:
    """The entries of one pool, for one worker. `registry`: the shared state; None while it is away."""

    def __init__(
        self,
        pool: str,
        worker: str,
        settings: IdempotencySettings,
        registry: Callable[[], Registry | None],
    ) -> None:
        self._keys = PoolKeys(pool)
        self._worker = worker
        self._settings = settings
        self._registry = registry
        self._numbers = count(1)
        #: What could not be told yet: key → fingerprint, number, answer; see `end`.
        self._untold: dict[str, tuple[bytes, str, bytes | None]] = {}

    def begin(self, key: str, print_: bytes) -> tuple[Begun | bytes, str]:
        """Begin the request `key`, or learn why not; and the number under which it is ended.

        Raises StoreUnavailable.
        """
        registry = self._registry()
        if registry is None:
            raise StoreUnavailable("the shared state is away")
        number, known = str(next(self._numbers)), self._settings
        found = registry.scripts.once(
            *(self._keys, "begin", key, print_, self._worker, number, LEASE),
            *(known.ttl, known.memory),
        )
        return (found if isinstance(found, bytes) else Begun(found)), number

    def end(self, key: str, print_: bytes, number: str, answer: bytes | None) -> None:
        """It was answered so (b"": too large to be kept); None: it was not, and may be tried again.

        Raises nothing: what cannot be told is told with one of the next beats.
        """
        registry = self._registry()
        try:
            if registry is None:
                raise StoreUnavailable("the shared state is away")
            self._end(registry, key, print_, number, answer)
        except StoreError as exc:
            _LOG.warning("the outcome of a request with an Idempotency-Key is told later: %s", exc)
            if answer and len(self._untold) >= UNTOLD:
                answer = b""  # that it was carried out is remembered in any case
            self._untold[key] = (print_, number, answer)

    def beat(self, registry: Registry) -> None:
        """Tell what could not be told. Called once a second; raises nothing."""
        for key, (print_, number, answer) in list(self._untold.items()):
            try:
                self._end(registry, key, print_, number, answer)
            except StoreError:
                return
            self._untold.pop(key, None)

    def _end(self, registry: Registry, key: str, print_: bytes, number: str, answer: bytes | None) -> None:
        what = "release" if answer is None else "finish"
        known = self._settings
        registry.scripts.once(
            *(self._keys, what, key, print_, self._worker, number, LEASE),
            *(known.ttl, known.memory, answer or b""),
        )
