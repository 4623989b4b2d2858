"""A worker's part in ejecting backends and taking them back: what its guards tell is committed for the fleet.

Off the request path: the worker's `Fleet` calls this from its loop, at once when there is something to say.
While the store is away the same decisions are made on the worker's own snapshots.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from random import sample
from time import time

from lb.model import Backend, OutlierPolicy, Snapshot
from lb.state import decide, outlier
from lb.state.claims import Claims
from lb.state.decide import NOTHING, Change, Decider
from lb.state.guard import GONE, LOST, Event
from lb.state.knock import Knock, Knocks, hold
from lb.state.registry import Registry

_LOG = logging.getLogger("lb")

MOST = 1000
"""Events that are held at most: of more, the last."""


class Ejections:
    """The events of all pools of one worker. `take` sets up a new snapshot, `wake` makes the loop look,
    `knocks` finds out who is there again.
    """

    def __init__(
        self, take: Callable[[Claims, Snapshot], None], wake: Callable[[], None], knocks: Knocks
    ) -> None:
        self._take = take
        self._wake = wake
        self._knocks = knocks
        #: Appending and taking from the left are safe among threads.
        self._events: deque[tuple[str, Event]] = deque(maxlen=MOST)

    def tell(self, pool: str, event: Event) -> None:
        """An event, from the request path."""
        self._events.append((pool, event))
        self._wake()

    def look_after(self, claims: Mapping[str, Claims], registry: Registry | None) -> None:
        """Commit what was told, and see who may be probed by now. Without a registry the store is away.

        Raises StoreError; the event that met with it is lost: failures go on, and a probe is tried again.
        """
        while self._events:
            pool, event = self._events.popleft()
            self._commit(claims[pool], event, registry)
        for one in claims.values():
            names: tuple[str, ...] = ()
            if any(backend.breaker.open for backend in one.snapshot.backends.values()):
                names = outlier.due(one.snapshot, _now(registry), one.zone)
            one.guard.arm(names)

    def stop(self) -> None:
        """The worker ends."""
        self._knocks.stop()

    def _commit(self, claims: Claims, event: Event, registry: Registry | None) -> None:
        made = NOTHING
        decider = _decider(event, _now(registry))
        if event.what == "outlier" and not _another_does_better(claims, event.name, registry):
            return

        def decision(snapshot: Snapshot) -> Change:
            nonlocal made
            made = decider(snapshot)
            return made

        if registry is not None:
            after = registry.change(claims.keys.pool, decision)
        else:
            before = claims.snapshot
            after = decide.applied(before, decision(before), before.version)
        if not made.empty:
            self._take(claims, after)
            _say(claims.keys.pool, event, after, alone=registry is None)
            if event.what in ("outlier", "failed") and event.outcome >= LOST:
                self._knock(claims, after.backends[event.name], after.settings.outlier, event.outcome == GONE)

    def _knock(self, claims: Claims, known: Backend, policy: OutlierPolicy, gone: bool) -> None:
        pool, name, breaker = claims.keys.pool, known.id, known.breaker

        def lasts() -> bool:
            now = claims.snapshot.backends.get(name)
            return now is not None and now.breaker == breaker

        def mended() -> None:
            self.tell(pool, Event(name, "mended", breaker.until))

        out = breaker.until - breaker.since
        self._knocks.begin(Knock(pool, known.url, gone, out, hold(policy, breaker.times), lasts, mended))


def _another_does_better(claims: Claims, name: str, registry: Registry | None) -> bool:
    """Is somebody there whose last request went well? Who has had none counts as well."""
    found = outlier.others(claims.snapshot, name)
    found = sample(found, min(len(found), outlier.OTHERS))
    if registry is None:
        failing = claims.guard.failing(found, time())
    else:
        within = outlier.LATELY * claims.snapshot.settings.outlier.window
        failing = registry.failing(claims.keys.pool, found, within)
    return len(failing) < len(found)


def _now(registry: Registry | None) -> float:
    return time() if registry is None else registry.now()


def _decider(event: Event, now: float) -> Decider:
    match event.what:
        case "outlier":
            return outlier.eject(event.name, event.reason, now)
        case "succeeded":
            return outlier.probe_succeeded(event.name, event.until, now)
        case "failed":
            return outlier.probe_failed(event.name, event.until, event.reason, now)
        case "mended":
            return outlier.mended(event.name, event.until, now)
    return outlier.probe_again(event.name, event.until, now)


def _say(pool: str, event: Event, after: Snapshot, alone: bool) -> None:
    breaker = after.backends[event.name].breaker
    where = " (on this worker's own view)" if alone else ""
    if event.what == "mended":
        text = "pool %s: %s accepts connections again after %.3g s: one request may probe it%s"
        _LOG.info(text, pool, event.name, breaker.until - breaker.since, where)
    elif breaker.open and event.what != "void":
        text = "pool %s: %s is ejected for %.3g s: %s%s"
        _LOG.warning(text, pool, event.name, breaker.until - breaker.since, breaker.reason, where)
    elif not breaker.open:
        _LOG.info("pool %s: %s is back: a request that probed it succeeded%s", pool, event.name, where)
