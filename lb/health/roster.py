"""What the daemon knows of the backends of one pool, and what is to be written about them.

Rules of this module: no I/O, no clock, no Redis. Two sources meet here: snapshots of the shared state
(`reconcile`) and outcomes of probes (`record`). What the probes say and the shared state does not have
yet is `pending`; it stays so until a snapshot shows it, however often the store was away in between.
"""

from __future__ import annotations

from typing import NamedTuple

from lb.health.thresholds import Track, judge
from lb.model import Backend, Health, HealthPolicy, Snapshot


class Member:
    """One backend: its record as last published, and what the probes say.

    A backend that starts anew (another address, registered again) becomes a new member, so the outcome
    of a probe that was under way is known to be out of date.
    """

    __slots__ = ("backend", "probed", "reason", "track")

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.track = Track(backend.health)
        self.probed = False
        self.reason = ""


class Verdict(NamedTuple):
    """A change of a backend's health that the shared state is to hear of."""

    id: str
    url: str
    old: Health
    new: Health
    reason: str
    since: float


class Changes(NamedTuple):
    """What a snapshot changed for the prober: ids to probe at once, and ids that are gone."""

    fresh: list[str]
    gone: list[str]


class Roster:
    """The members of one pool. `policy` None: this pool is not probed."""

    def __init__(self, pool: str) -> None:
        self.pool = pool
        self.version = -1
        self.policy: HealthPolicy | None = None
        self.members: dict[str, Member] = {}
        self._changed: set[str] = set()

    def reconcile(self, snapshot: Snapshot, policy: HealthPolicy | None) -> Changes:
        """Take in what the shared state says; return whom to probe at once and whom no more.

        `policy` is the one to probe by from now on; another than before makes everybody fresh.
        """
        gone = [backend for backend in self.members if backend not in snapshot.backends]
        for backend in gone:
            del self.members[backend]
        everybody = policy != self.policy
        fresh = [one.id for one in snapshot.backends.values() if self._take(one) or everybody]
        self.version, self.policy = snapshot.version, policy
        if policy is None:
            self._leave_alone()
            gone, fresh = list(self.members), []
        self._changed = {
            name for name, member in self.members.items() if member.track.health != member.backend.health
        }
        return Changes(fresh, gone)

    def _take(self, backend: Backend) -> bool:
        """Take in one record; return whether the backend should be probed at once."""
        member = self.members.get(backend.id)
        if member is None or member.backend.url != backend.url:
            self.members[backend.id] = Member(backend)
            return True
        before, member.backend = member.backend.health, backend
        if backend.health in (before, member.track.health):
            # Nobody else judged it: what the probes say holds, written or not.
            return False
        if backend.health in ("unknown", "checking") and member.track.health == "down":
            # Registered anew, or the store came back empty; but it was dead a moment ago.
            return True
        self.members[backend.id] = Member(backend)
        return True

    def _leave_alone(self) -> None:
        """Nobody probes this pool: nobody can be down or waiting for a probe."""
        for member in self.members.values():
            if member.backend.health in ("down", "checking"):
                member.track = Track("unknown")
                member.reason = "not probed any more"

    def record(self, name: str, member: Member, ok: bool, reason: str) -> bool:
        """Take in the outcome of a probe of `member`; return whether there is something new to write.

        Nothing happens when `member` is not the one of that name any more.
        """
        if self.members.get(name) is not member or self.policy is None:
            return False
        before = member.track.health
        member.track = judge(member.track, ok, self.policy.rise, self.policy.fall)
        if member.track.health == before:
            return False
        member.reason = reason
        if member.track.health == member.backend.health:
            self._changed.discard(name)
            return False
        self._changed.add(name)
        return True

    def pending(self) -> list[Verdict]:
        """Return what the shared state does not have yet."""
        verdicts = []
        for name in self._changed:
            member = self.members[name]
            backend, new = member.backend, member.track.health
            verdicts.append(Verdict(name, backend.url, backend.health, new, member.reason, backend.since))
        return verdicts


def still_true(verdict: Verdict, snapshot: Snapshot) -> bool:
    """Is the backend in `snapshot` still the one that was judged, and nobody has judged it meanwhile?"""
    known = snapshot.backends.get(verdict.id)
    return known is not None and known.url == verdict.url and known.health == verdict.old
