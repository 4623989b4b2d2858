"""The daemon's dealings with the shared state: the lease, what to probe, what to write.

One loop does one thing after the other: renew the lease; look for changes; publish verdicts; reap. Only
the holder of the lease does anything but ask for it. A daemon trusts its lease by its own clock, counted
from before it asked; and asks who has it once more in the moment it writes verdicts, because it may
have been stopped in between.

While the store is away the last holder goes on probing, and publishes what it learned when the store is back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from functools import partial
from time import monotonic, time
from typing import TypeVar

from gevent import sleep
from gevent.event import Event

from lb.errors import StoreError, StoreUnavailable
from lb.health.engine import Engine
from lb.health.policy import Overrides, effective
from lb.health.report import Log, printable
from lb.health.roster import Roster, Verdict, still_true
from lb.model import HealthPolicy, Snapshot
from lb.state import decide
from lb.state.lease import reap_dead
from lb.state.registry import Registry

#: A daemon that stands by asks for the lease this often, seconds.
STANDBY = 0.2
#: The holder looks for changed pools this often, seconds.
LOOK = 0.5
#: The holder gives back what dead workers held this often, seconds.
REAP = 1.0
#: Everything is read anew this often, seconds: a store that lost its data may have reached the number of
#: a version we know.
REREAD = 60.0
#: Verdicts of this time, seconds, go into one commit; of more time, up to LOOK, when commits are slow.
GATHER = 0.02
#: How long a daemon that leaves waits for another one to take over, seconds: longer than STANDBY.
PATIENCE = 0.5
#: First and longest pause after a failure, seconds.
BACKOFF = (0.1, 1.0)

R = TypeVar("R")


class NotHolderError(StoreError):
    """The health lease is not surely ours: nothing was written."""


def lease_seconds(interval: float) -> float:
    """Return how long the lease lasts without renewal.

    With STANDBY it stays below two intervals, if an interval is a second or more; 1.5 s are the least that
    a busy machine can be trusted to renew in, and 15 s are long enough for any interval.
    """
    return min(max(1.5 * interval, 1.5), 15.0)


class Keeper:
    """`connect` opens the shared state; it is called again after each failure of the store.

    `engine` must be set before `run`.
    """

    engine: Engine

    def __init__(self, connect: Callable[[], Registry], owner: str, overrides: Overrides, log: Log) -> None:
        #: Steps that failed, other than for the store being away.
        self.failures = 0
        self._connect = connect
        self._owner = owner
        self._overrides = overrides
        self._log = log
        self._seconds = lease_seconds(overrides.interval)
        self._registry: Registry | None = None
        self._wake = Event()
        self._stopping = False
        self._holding = False
        self._said_standby = False
        self._away_since: float | None = None
        self._pause = BACKOFF[0]
        self._pending = False
        self._complaints: dict[str, str] = {}
        # When, by the monotonic clock, the lease ends, and what is due next.
        self._until = 0.0
        self._renew_at = 0.0
        self._look_at = 0.0
        self._reread_at = 0.0
        self._publish_at = 0.0
        self._reap_at = 0.0

    def may_probe(self, now: float) -> bool:
        """May probes be started? Yes while the lease is surely ours, and while nobody can ask for it.

        (One that alone is cut off from the store thus probes on beside its successor, without writing.)
        """
        return self._holding and (now < self._until or self._away_since is not None)

    def notice(self) -> None:
        """There are verdicts to write."""
        if not self._pending:
            self._pending = True
            self._publish_at = max(self._publish_at, monotonic() + GATHER)
            if self._away_since is None:
                self._wake.set()

    def stop(self) -> None:
        """Let `run` give up the lease and return."""
        self._stopping = True
        self._wake.set()

    def run(self) -> None:
        """Look after the shared state until told to stop. Never raises: a fault is logged and it goes on."""
        while not self._stopping:
            pause = self._guarded("shared state", self._turn)
            if pause is None:
                pause, self._pause = self._pause, min(self._pause * 2, BACKOFF[1])
            else:
                self._pause = BACKOFF[0]
            self._wake.wait(pause)
            self._wake.clear()
        self._guarded("leaving", self._leave)

    def _guarded(self, about: str, step: Callable[[], R]) -> R | None:
        """Take a step; when it fails, say so (once, until it is mended) and return None."""
        try:
            answer = step()
        except StoreUnavailable as exc:
            self._gone(str(exc))
        except NotHolderError:
            self._renew_at = 0.0
        except Exception as exc:  # noqa: BLE001 - logged and counted; nobody else would go on
            self._say(about, f"{about}: failed, trying on: {exc!r}")
        else:
            self._complaints.pop(about, None)
            return answer
        return None

    def _for_pool(self, pool: str, step: Callable[[], R]) -> R | None:
        """Take a step for one pool; what is wrong with it alone must not hold up the others."""
        try:
            answer = step()
        except (StoreUnavailable, NotHolderError):
            raise
        except Exception as exc:  # noqa: BLE001 - logged and counted; the other pools go on
            self._say(pool, f"pool {pool}: failed, trying on: {exc!r}")
            return None
        self._complaints.pop(pool, None)
        return answer

    def _turn(self) -> float:
        """Do what is due; return the seconds until something will be."""
        if self._registry is None:
            self._registry = self._connect()
        registry = self._registry
        now = monotonic()
        if now >= self._renew_at or (self._holding and now >= self._until):
            self._renew(registry)
        if self._away_since is not None:
            self._log("store-back", f"the store is back after {now - self._away_since:.1f} s")
            self._away_since, self._reread_at = None, 0.0
        soon = self._renew_at
        if self._holding:
            now = monotonic()
            if now >= min(self._look_at, self._reread_at):
                self._look(registry)
                self._look_at = now + LOOK
            if self._pending and now >= self._publish_at:
                self._publish(registry)
            if now >= self._reap_at:
                for pool in list(self.engine.rosters):
                    self._for_pool(pool, partial(reap_dead, registry, pool))
                self._reap_at = now + REAP
            soon = min(soon, self._look_at, self._reap_at)
            if self._pending:
                soon = min(soon, self._publish_at)
        return max(soon - monotonic(), 0.0)

    def _renew(self, registry: Registry) -> None:
        """Ask for the lease, and change over when the answer is another than before."""
        asked = monotonic()
        if registry.hold_health(self._owner, self._seconds):
            if asked >= self._until:
                # New, or it had lapsed: somebody else may have had it in between, and written.
                self._reread_at = 0.0
            self._until = asked + self._seconds
            self._renew_at = asked + self._seconds / 3
            if not self._holding:
                self._holding = True
                self._log("holder", "probing for the fleet", owner=self._owner)
            return
        self._renew_at = asked + STANDBY
        if self._holding:
            self._holding, self._pending = False, False
            self.engine.clear()
            self._log("standby", "another daemon has taken over, standing by", owner=self._owner)
        elif not self._said_standby:
            self._log("standby", "another daemon probes for the fleet, standing by", owner=self._owner)
        self._said_standby = True

    def _look(self, registry: Registry) -> None:
        """Read the pools that changed, all of them when it is time to."""
        now = monotonic()
        everything = now >= self._reread_at
        rosters, pools = self.engine.rosters, set(registry.pools())
        for pool in set(rosters) - pools:
            self.engine.forget(pool)
        for pool in sorted(pools):
            roster = rosters.get(pool)
            if everything or roster is None or registry.version(pool) != roster.version:
                snapshot = self._for_pool(pool, partial(registry.load, pool))
                if snapshot:
                    self._adopt(snapshot)
        if everything:
            self._reread_at = now + REREAD

    def _publish(self, registry: Registry) -> None:
        """Write all verdicts that the shared state does not have, one commit for each pool."""
        started = monotonic()
        missed = False
        for pool, roster in list(self.engine.rosters.items()):
            verdicts = roster.pending()
            if not verdicts:
                continue
            snapshot = self._for_pool(pool, partial(registry.change, pool, self._decider(verdicts)))
            if snapshot is None:
                missed = True
                continue
            self._adopt(snapshot)
            for verdict in verdicts:
                backend = snapshot.backends.get(verdict.id)
                if backend and backend.health == verdict.new:
                    self._announce(pool, verdict)
        now = monotonic()
        # What was learned while the commits ran is still pending, and so is what could not be written.
        self._pending = any(roster.pending() for roster in self.engine.rosters.values())
        self._publish_at = now + (LOOK if missed else min(max(GATHER, 3 * (now - started)), LOOK))

    def _decider(self, verdicts: Iterable[Verdict]) -> decide.Decider:
        """What decides on a pool, right before the commit, which of `verdicts` to write.

        It raises NotHolderError unless the lease is ours at that moment.
        """

        def decision(snapshot: Snapshot) -> decide.Change:
            registry = self._registry
            if registry is None or monotonic() >= self._until or registry.health_owner() != self._owner:
                raise NotHolderError("the health lease has gone to another daemon")
            found = [(one.id, one.new) for one in verdicts if still_true(one, snapshot)]
            return decide.verdicts(found)(snapshot)

        return decision

    def _adopt(self, snapshot: Snapshot) -> None:
        roster = self.engine.rosters.get(snapshot.pool) or Roster(snapshot.pool)
        self.engine.adopt(roster, roster.reconcile(snapshot, self._policy(snapshot)))
        if roster.pending():
            self.notice()

    def _policy(self, snapshot: Snapshot) -> HealthPolicy | None:
        """The policy to probe a pool by; None when it is not to be probed, or nobody knows how."""
        policy, about = snapshot.settings.health, f"policy of {snapshot.pool}"
        if not policy.enabled:
            return None
        try:
            found = effective(policy, self._overrides)
        except ValueError as exc:
            self._say(about, f"pool {snapshot.pool} is not probed: health.{exc}")
            return None
        self._complaints.pop(about, None)
        return found

    def _leave(self) -> None:
        """Give up the lease. If nobody takes it within PATIENCE, backends that wait for a first probe get
        traffic without one. Does nothing while the store is away.
        """
        registry = self._registry
        if not self._holding or registry is None or self._away_since is not None:
            return
        self._holding = False
        registry.release_health(self._owner)
        waiting = [
            pool
            for pool, roster in self.engine.rosters.items()
            if any(member.backend.health == "checking" for member in roster.members.values())
        ]
        deadline = monotonic() + PATIENCE
        while waiting and registry.health_owner() is None:
            if monotonic() >= deadline:
                for pool in waiting:
                    registry.promote_checking(pool)
                return
            sleep(PATIENCE / 10)

    def _announce(self, pool: str, verdict: Verdict) -> None:
        """Log a change of health that has been written."""
        lasted = max(time() - verdict.since, 0.0) if verdict.since else None
        after = "" if lasted is None else f" after {lasted:.1f} s"
        known = {} if lasted is None else {"lasted": round(lasted, 3)}
        self._log(
            "change",
            f"{pool} {verdict.id}: {verdict.old} -> {verdict.new}{after} ({printable(verdict.reason)})",
            "warning" if verdict.new == "down" else "info",
            pool=pool,
            backend=verdict.id,
            old=verdict.old,
            new=verdict.new,
            reason=verdict.reason,
            **known,
        )

    def _gone(self, why: str) -> None:
        """The store does not answer: say so once, and begin anew with it from the lease on."""
        if self._away_since is None:
            self._away_since = monotonic()
            self._log("store-away", f"{why}; probing on, trying again", "warning", reason=why)
        self._renew_at = 0.0
        registry, self._registry = self._registry, None
        if registry is not None:
            with contextlib.suppress(Exception):
                registry.client.close()

    def _say(self, about: str, text: str) -> None:
        """Count a failure, and log it once, until it changes or is mended."""
        self.failures += 1
        if self._complaints.get(about) != text:
            self._complaints[about] = text
            self._log("failure", text, "error")
