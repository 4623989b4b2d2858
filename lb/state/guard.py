"""What became of requests, as one worker has to tell it: passive health of the backends of one pool.

A success costs nothing: nobody tells of it. What has failed goes to the store with the connection that it
gives back, in a call of its own (`redis/outlier.lua`), which counts for the fleet; while the store is away
this worker counts for itself. Outliers, and what became of probing requests, are told to the worker's `Fleet`
(`lb.state.ejections`), which commits what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic, time
from typing import Any, Literal, NamedTuple

from lb.errors import (
    BadResponse,
    ConnectFailed,
    ConnectTimeout,
    ProxyError,
    ResponseTimeout,
    UpstreamClosed,
    UpstreamError,
)
from lb.model import Snapshot
from lb.state.keys import PoolKeys
from lb.state.outlier import LATELY, PATIENCE, Counts, may_eject, why
from lb.state.scripts import OUTLIER_SHA, PROBE_SHA

FINE, VOID, FAILED, LOST, GONE = range(5)
"""What became of a request, as far as its backend is concerned: VOID says nothing of it. The last three are
failures: it answered, and badly; its connection broke or it kept silent; there was no connection to be had.
"""

Argument = str | int | float | bytes | memoryview

NEVER = 1e300

_FAULTS = frozenset(one.code for one in (UpstreamError, UpstreamClosed, ResponseTimeout, BadResponse))
"""What may end an answer by its backend's fault. Others are the client's, or, as a deadline, our own."""

_KINDS = {BadResponse.code: FAILED, ConnectFailed.code: GONE, ConnectTimeout.code: GONE}
"""Which failure an error is, where it is not LOST."""


class Event(NamedTuple):
    """Something that follows from requests: an outlier was found, or a probing request has ended; or from
    knocking (`lb.state.knock`): it is "mended". `until`: of the ejection that it was to end. `outcome`: the
    last failure that this worker has met with there.
    """

    name: str
    what: Literal["outlier", "succeeded", "failed", "void", "mended"]
    until: float = 0.0
    reason: str = ""
    outcome: int = FAILED


class Guard:
    """The outcomes of the requests of one pool in one worker. Not thread-safe, as `lb.state.claims.Claims`,
    save `judge`, `next` and `probed`.
    """

    def __init__(self, snapshot: Snapshot, tell: Callable[[Event], None]) -> None:
        self._tell = tell
        #: Backends that a request may probe.
        self.due: tuple[str, ...] = ()
        #: Do successes matter? Else only what is a failure by its status or its error is judged.
        self.watching = False
        #: Does it matter how long answers take?
        self.timed = False
        #: Seconds for which a probing request may be under way.
        self.permit = 60.0
        #: Failures, and requests that say nothing, by backend since the last call.
        self.pending: dict[str, tuple[int, int]] = {}
        self._since: dict[str, float] = {}
        self._counts: dict[str, Counts] = {}
        #: The last failure of each backend, as this worker has met with it.
        self._last: dict[str, int] = {}
        self._away = True
        self.update(snapshot)

    def update(self, snapshot: Snapshot) -> None:
        """Take a newer view of the pool."""
        self._snapshot = snapshot
        policy = self._policy = snapshot.settings.outlier
        self._unhealthy = statuses(policy.unhealthy_status)
        self._latency = policy.unhealthy_latency
        self.timed = policy.enabled and policy.unhealthy_latency > 0
        self.watching = policy.enabled and (self._away or self.timed)
        if self.due:
            self.due = tuple(name for name in self.due if self._may_be_probed(name))
        if self._last:
            self._last = {name: kind for name, kind in self._last.items() if name in snapshot.backends}

    def store_is(self, away: bool) -> None:
        """Outcomes are counted by this worker from now on, or by the store."""
        self._away = away
        self._counts.clear()
        self.pending.clear()
        self.watching = self._policy.enabled and (away or self.timed)

    # What the request path calls.

    def judge(self, status: int, code: str, took: float) -> int:
        """What an answer says of its backend: its `status`, the `code` of what ended it, "" if nothing did,
        and the seconds until its head, below 0 if nobody knows. What clients do says nothing against it.
        """
        if status in self._unhealthy:
            return FAILED
        if code in _FAULTS:
            return _KINDS.get(code, LOST)
        return FAILED if self.timed and took > self._latency else FINE

    def next(self, harmless: bool) -> str:
        """The backend that this request is to probe, "" if there is none. Rather one to which it does no harm
        if the probe fails.
        """
        waiting = self.due
        if not waiting:
            return ""
        name = waiting[0]
        if not harmless and monotonic() - self._since.get(name, 0.0) < PATIENCE:
            return ""
        self.due = waiting[1:]
        return name

    def probed(self, name: str, outcome: int, reason: str) -> None:
        """What became of a request that was to probe `name` and got it."""
        known = self._snapshot.backends.get(name)
        if known is not None and known.breaker.open:
            what: Any = ("succeeded", "void", "failed", "failed", "failed")[outcome]
            self._tell(Event(name, what, known.breaker.until, reason, outcome))

    # What the claims call.

    def note(self, name: str, outcome: int) -> None:
        """What became of a request whose connection is given back next."""
        if not self._policy.enabled:
            return
        if outcome >= FAILED:
            self._last[name] = outcome
        if not self._away:
            if outcome:
                failed, void = self.pending.get(name, (0, 0))
                self.pending[name] = (failed + (outcome >= FAILED), void + (outcome == VOID))
        elif outcome != VOID and name in self._snapshot.backends:
            counts = self._counts.get(name)
            if counts is None:
                if outcome == FINE:
                    return
                counts = self._counts[name] = Counts()
            self._found(name, counts.add(outcome >= FAILED, self._policy, time()))

    def report(self, keys: tuple[str, ...], epoch: str, releases: int, served: str = "") -> list[Argument]:
        """A call of `redis/outlier.lua` that tells what is pending, up to the `releases` themselves; `served`
        is what it says of zones.
        """
        policy, pending = self._policy, self.pending
        self.pending = {}
        command: list[Argument] = ["EVALSHA", OUTLIER_SHA, str(len(keys)), *keys]
        command += [str(policy.consecutive_failures), str(policy.success_rate)]
        command += [str(policy.min_requests), str(policy.window), str(len(pending))]
        for name, (failed, void) in pending.items():
            command += [name, str(failed), str(void)]
        command += [epoch, "0", str(releases), served]
        return command

    def told(self, answer: list[Any]) -> None:
        """What such a call has answered: outliers."""
        for at in range(1, len(answer), 3):
            self._found(answer[at].decode(), why(answer[at + 1], answer[at + 2]))

    def probing(self, keys: tuple[str, ...], epoch: str, name: str, wish: str) -> tuple[str, ...]:
        """How a call of `redis/probe.lua` begins, for a claim with that `wish` that is to probe `name`."""
        known = self._snapshot.backends.get(name)
        until = known.breaker.until if known is not None and known.breaker.open else NEVER
        version = str(self._snapshot.version)
        head = ("EVALSHA", PROBE_SHA, str(len(keys)), *keys)
        return (*head, name, repr(until), version, str(self.permit), wish, epoch)

    # What the fleet calls.

    def failing(self, names: Iterable[str], now: float) -> set[str]:
        """Of `names` those whose last request failed lately, by what this worker counts while alone."""
        counts, within = self._counts, LATELY * self._policy.window
        return {name for name in names if name in counts and counts[name].failing(now, within)}

    def arm(self, names: tuple[str, ...]) -> None:
        """These wait for their probing request."""
        if names or self._since:
            now = monotonic()
            self._since = {name: self._since.get(name, now) for name in names}
            self.due = names

    def _found(self, name: str, reason: str) -> None:
        if reason and may_eject(self._snapshot, name):
            self._tell(Event(name, "outlier", 0.0, reason, self._last.get(name, FAILED)))

    def _may_be_probed(self, name: str) -> bool:
        known = self._snapshot.backends.get(name)
        return known is not None and known.ejected


def outcome_of(failure: ProxyError | None) -> int:
    """What an attempt that ended so, or (None) was given up, says of its backend."""
    if failure is None or failure.source != "upstream" or failure.local:
        return VOID
    return _KINDS.get(failure.code, LOST)


def statuses(text: str) -> frozenset[int]:
    """The codes of a list of codes and ranges such as "502-504,529", which was checked where it came in."""
    codes: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        codes.update(range(int(first), int(last or first) + 1))
    return frozenset(codes)


def call_keys(keys: PoolKeys, worker: str, zones: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The keys of a call of `redis/claim.lua` in a pool that has these `zones`."""
    return keys.state, keys.order, keys.lease(worker), keys.canary, keys.queue, *keys.zones(zones)
