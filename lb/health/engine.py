"""Runs the probes that are due, a bounded number at a time, and keeps the plan of the next ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from time import monotonic

from gevent.event import Event
from gevent.pool import Pool

from lb.health import schedule
from lb.health.probe import Outcome, Prober, Target, Tls, target
from lb.health.report import Log
from lb.health.roster import Changes, Member, Roster

#: Probes that are due within this time, seconds, are started together.
TICK = 0.01
#: Longest sleep of the loop, seconds.
IDLE = 0.5
#: A complaint about the daemon's own state is repeated after this time, seconds.
REPEAT = 60.0

Key = tuple[str, str]


class Engine:
    """Probes the members of `rosters` (pool → roster).

    `allowed(now)` is asked before probes are started: may this daemon probe at this moment?
    `on_verdict()` is called when an outcome left something to write. Both must not wait.
    `tls` has, for each pool with TLS settings, how its backends are spoken to.
    """

    def __init__(
        self,
        allowed: Callable[[float], bool],
        on_verdict: Callable[[], None],
        log: Log,
        concurrency: int,
        tls: Mapping[str, Tls],
        chance: random.Random | None = None,
    ) -> None:
        self.rosters: dict[str, Roster] = {}
        #: Probes finished, and those of them that failed by the daemon's own fault.
        self.done = 0
        self.own_faults = 0
        self._allowed = allowed
        self._on_verdict = on_verdict
        self._log = log
        self._chance = (chance or random.Random()).random
        self._prober = Prober()
        self._tls = tls
        self._plan: schedule.Schedule[Key] = schedule.Schedule()
        self._targets: dict[Key, tuple[Member, Target]] = {}
        self._running = Pool(concurrency)
        self._wake = Event()
        self._awake_at = 0.0
        self._complained: dict[str, float] = {}

    def adopt(self, roster: Roster, changes: Changes) -> None:
        """Plan the first probes of who is fresh, forget who is gone. Call after each `reconcile`."""
        self.rosters[roster.pool] = roster
        for name in (*changes.gone, *changes.fresh):
            self._plan.drop((roster.pool, name))
            self._targets.pop((roster.pool, name), None)
        if roster.policy is None or not changes.fresh:
            return
        now, total = monotonic(), len(changes.fresh)
        for number, name in enumerate(changes.fresh):
            first = schedule.first(number, total, roster.policy.interval)
            self._plan.plan((roster.pool, name), now + first)
        self._wake.set()

    def forget(self, pool: str) -> None:
        """Forget a pool that is gone."""
        roster = self.rosters.pop(pool, None)
        for name in roster.members if roster else ():
            self._plan.drop((pool, name))
            self._targets.pop((pool, name), None)

    def clear(self) -> None:
        """Forget everything and cut short what runs: another daemon probes now."""
        self.rosters.clear()
        self._plan.clear()
        self._targets.clear()
        self._running.kill(block=False)

    def run(self) -> None:
        """Start what is due, for ever. Never raises: a fault is logged and the loop goes on."""
        while True:
            pause = IDLE
            try:
                pause = self._turn()
            except Exception as exc:  # noqa: BLE001 - logged; a loop that died would leave the fleet unwatched
                self.complain("planning", f"planning probes failed, going on: {exc!r}")
            self._awake_at = monotonic() + pause
            self._wake.wait(pause)
            self._wake.clear()

    def _turn(self) -> float:
        """Start what is due; return how many seconds to sleep, unless woken."""
        now = monotonic()
        if not self._allowed(now):
            return IDLE
        late = 0.0
        for key, due in self._plan.take(now + TICK / 2, self._running.free_count()):
            roster = self.rosters.get(key[0])
            member = roster.members.get(key[1]) if roster else None
            if roster and member:
                late = max(late, now - due if member.probed else 0.0)
                self._running.spawn(self._probe, key, roster, member)
        if late > 1.0:
            self.complain(
                "late", f"probes start {late:.1f} s late: allow more --concurrency or a longer --interval"
            )
        soon = self._plan.next()
        return IDLE if soon is None else min(max(soon - monotonic(), TICK), IDLE)

    def _probe(self, key: Key, roster: Roster, member: Member) -> None:
        """Probe one backend once and plan its next time. Runs in a greenlet of its own."""
        started = monotonic()
        try:
            outcome = self._ask(key, roster, member)
        except Exception as exc:  # noqa: BLE001 - our own mistake must not look like the backend's
            outcome = Outcome(False, f"a probe broke: {exc!r}", 0.0, own_fault=True)
        self.done += 1
        policy = roster.policy
        if (
            self.rosters.get(roster.pool) is not roster
            or roster.members.get(key[1]) is not member
            or not policy
        ):
            return
        if outcome.own_fault:
            self.own_faults += 1
            self.complain("own-fault", f"cannot probe, no backend is blamed: {outcome.reason}")
        elif roster.record(key[1], member, outcome.ok, outcome.reason):
            self._on_verdict()
        settled = member.track.settled
        if settled and not member.probed:
            pause = schedule.phase(policy.interval, self._chance())
        else:
            pause = schedule.delay(policy.interval, policy.jitter, settled, self._chance())
        member.probed = True
        # From start to start, so that slow answers do not stretch the interval; but never without a pause.
        due = max(started + pause, monotonic() + min(pause, schedule.SHORTEST))
        self._plan.plan(key, due)
        if due < self._awake_at:
            self._wake.set()

    def _ask(self, key: Key, roster: Roster, member: Member) -> Outcome:
        try:
            to = self._target(key, roster, member)
        except ValueError as exc:
            return Outcome(False, str(exc), 0.0)
        return self._prober.probe(to)

    def _target(self, key: Key, roster: Roster, member: Member) -> Target:
        cached = self._targets.get(key)
        if cached and cached[0] is member:
            return cached[1]
        assert roster.policy is not None
        made = target(member.backend, roster.policy, self._tls.get(roster.pool))
        self._targets[key] = (member, made)
        return made

    def complain(self, about: str, text: str) -> None:
        """Log a fault of the daemon's own, each kind once a minute at most."""
        now = monotonic()
        if now - self._complained.get(about, -REPEAT) >= REPEAT:
            self._complained[about] = now
            self._log(about, text, "warning")
