"""Who is an outlier, and what becomes of it: the circuit breaker of each backend, decided.

No I/O, no clock. One state machine for what other balancers have two of: ejecting an outlier opens a breaker,
its end makes it half-open, one probing request closes it or opens it for longer. Failures are counted by
`redis/outlier.lua` for the fleet, by `Counts` for one worker while the store is away; the deciders here are
committed as any change of a pool, under the version they were decided on, so each is made once.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from lb.model import Backend, Breaker, OutlierPolicy, Snapshot
from lb.state.decide import NOTHING, Change, Decider

LATELY = 2.0
"""Windows for which it counts that a backend's last request failed: the next window begins with a failure."""

PATIENCE = 10.0
"""Seconds for which a backend waits for a probing request that does least harm: one of its own zone, one that
can be repeated; then any will do.
"""

OTHERS = 16
"""So many others are looked at, drawn by chance, for one that does better."""


class Counts:
    """What became of the requests to one backend, as one worker saw it; the rules are those of
    `redis/outlier.lua`.
    """

    __slots__ = ("_all", "_began", "_failed", "_last", "_row")

    def __init__(self) -> None:
        self._row = self._all = self._failed = 0
        self._began = 0.0
        #: When the last request failed; 0: it did not.
        self._last = 0.0

    def add(self, failed: bool, policy: OutlierPolicy, now: float) -> str:
        """Count one request; returns why it makes the backend an outlier, "" if it does not."""
        self._row = self._row + 1 if failed else 0
        self._last = now if failed else 0.0
        if self._all and not 0 <= now - self._began < policy.window:
            self._all = self._failed = 0
        if failed or self._all:
            # A window begins with a failure.
            self._began = self._began if self._all else now
            self._all += 1
            self._failed += failed
        if not failed:
            return ""
        row, failures, among = self._row, self._failed, self._all
        in_row = 0 < policy.consecutive_failures <= row
        if not in_row and (among < policy.min_requests or (among - failures) / among >= policy.success_rate):
            return ""
        self._row = self._all = self._failed = 0
        return why(row, 0) if in_row else why(failures, among)

    def failing(self, now: float, within: float) -> bool:
        """Did the last request fail, and less than `within` seconds ago?"""
        return self._last > 0.0 and 0 <= now - self._last < within


def why(failures: int, among: int) -> str:
    """Why a backend is an outlier, for people; `among` 0: the failures came in a row."""
    if among:
        return f"{failures} of {among} requests failed"
    return f"{failures} failures in a row" if failures != 1 else "a failure"


def seconds_out(policy: OutlierPolicy, times: int) -> float:
    """How long the `times`-th ejection in a row lasts."""
    return min(policy.base_ejection_time * times, policy.max_ejection_time)


def may_eject(snapshot: Snapshot, name: str) -> bool:
    """May this backend be ejected? Not if it is already, nor beyond `max_ejected` of those that are meant to
    serve (rounded down: of two one, of one none), nor if nobody else is available.
    """
    policy, known = snapshot.settings.outlier, snapshot.backends.get(name)
    if not policy.enabled or known is None or known.breaker.open:
        return False
    meant = [one for one in snapshot.backends.values() if one.admin == "ready" and one.weight > 0]
    out = sum(one.breaker.open for one in meant)
    # Shares such as 0.29 of 100 are no exact numbers.
    if out + 1 > policy.max_ejected * len(meant) + 1e-9:
        return False
    return any(one.available and one.id != name for one in meant)


def others(snapshot: Snapshot, name: str) -> list[str]:
    """Who would serve what `name` does not. It is ejected only if one of them does better, or all would fail
    with less to serve them: nobody is better than a maintenance page that all of them answer with.
    """
    return [one.id for one in snapshot.backends.values() if one.available and one.id != name]


def eject(name: str, reason: str, now: float) -> Decider:
    """Open the breaker of an outlier, if that may be (`may_eject`). It is one ejection more in a row if the
    last one ended less than `max_ejection_time` ago.
    """

    def decide(snapshot: Snapshot) -> Change:
        if not may_eject(snapshot, name):
            return NOTHING
        known, policy = snapshot.backends[name], snapshot.settings.outlier
        recent = now - known.breaker.since < policy.max_ejection_time
        times = known.breaker.times + 1 if recent else 1
        return _with(known, _opened(policy, times, reason, now))

    return decide


def probe_failed(name: str, until: float, reason: str, now: float) -> Decider:
    """The probing request of the ejection that ended at `until` has failed: another one, longer."""
    return _probed(
        name,
        until,
        lambda known, policy: _opened(policy, known.breaker.times + 1, f"{reason} when probed", now),
    )


def probe_succeeded(name: str, until: float, now: float) -> Decider:
    """It has succeeded: the backend is back."""
    return _probed(name, until, lambda known, policy: Breaker(since=now, times=known.breaker.times))


def probe_again(name: str, until: float, now: float) -> Decider:
    """It says nothing, its client has left: another request may probe."""
    # Another number, so that the permit of the one that was lost does not count.
    later = max(now, until + 0.001)
    return _probed(name, until, lambda known, policy: msgspec.structs.replace(known.breaker, until=later))


def mended(name: str, until: float, now: float) -> Decider:
    """It was gone, and accepts connections again: the ejection that was to end at `until` is over now, and a
    request may probe.
    """
    if now >= until:
        return lambda _: NOTHING  # it is over, and maybe a probe under way
    return _probed(name, until, lambda known, policy: msgspec.structs.replace(known.breaker, until=now))


def _probed(name: str, until: float, then: Callable[[Backend, OutlierPolicy], Breaker]) -> Decider:
    """Set the breaker that `then` gives, if the backend is still at the ejection that ended at `until`."""

    def decide(snapshot: Snapshot) -> Change:
        known = snapshot.backends.get(name)
        if known is None or not (known.breaker.open and known.breaker.until == until):
            return NOTHING
        return _with(known, then(known, snapshot.settings.outlier))

    return decide


def due(snapshot: Snapshot, now: float, zone: str = "") -> tuple[str, ...]:
    """The backends that wait for a probing request from `zone` ("": from none): half-open, and nothing else
    is in the way. Who is in another zone is probed from there, unless nobody does.
    """
    return tuple(
        name
        for name, one in snapshot.backends.items()
        if one.ejected and now >= one.breaker.until + (PATIENCE if zone and one.zone not in ("", zone) else 0)
    )


def _opened(policy: OutlierPolicy, times: int, reason: str, now: float) -> Breaker:
    return Breaker(True, now, now + seconds_out(policy, times), times, reason)


def _with(known: Backend, breaker: Breaker) -> Change:
    return Change(put=(msgspec.structs.replace(known, breaker=breaker),))
