"""Who gets the requests of a pool: which of its backends, and why those.

`Backend.available` is what one backend says of itself. Here, and nowhere else, follows from all of them
together who is eligible: backups wait until they are needed, and when hardly anybody is healthy, health is
not believed any more. The shared state keeps the eligible in its order, workers choose candidates among them.

A worker that stands in a zone sees the backends of that zone alone while enough of them are available
(`seen_from`): to its algorithm they are the whole pool. For each zone the shared state keeps an order of
those that serve it (`home`).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from lb.model import Backend, Snapshot

Mode = Literal["normal", "backup", "panic", "ejected"]
"""Who serves: the primaries that are available; backups (too); all, whatever their health; or, because nobody
else is left, those that were ejected.
"""


class Eligible(NamedTuple):
    """The names of the backends that get requests; of those that get one when all others have failed it
    (backups that stand by); and why.
    """

    names: frozenset[str]
    standby: frozenset[str]
    mode: Mode


def eligible(snapshot: Snapshot) -> Eligible:
    """Who gets requests: primaries that are available; backups when none is; in a panic everybody.

    Fewer primaries are available than `panic_threshold` says, as a share of those that are meant to serve
    (ready, with a weight, and not waiting for a first probe: nobody has ever seen those work): then backups
    that are available help out beside them. Where no backup can, it is a panic: so many failing at once is
    more likely the prober's or the network's fault than theirs, and the few that are left would be run
    over. Who is ejected counts as one that is not healthy. Without a panic the ejected serve when nobody else
    can: requests have failed on them, but not necessarily all. O(number of backends).
    """
    primaries: list[str] = []
    backups: list[str] = []
    down: list[str] = []
    down_backups: list[str] = []
    ejected: list[str] = []
    ejected_backups: list[str] = []
    for name, backend in snapshot.backends.items():
        if backend.available:
            (backups if backend.backup else primaries).append(name)
        elif _is_down(backend):
            (down_backups if backend.backup else down).append(name)
        elif backend.ejected:
            (ejected_backups if backend.backup else ejected).append(name)
    out = down + ejected
    few = len(primaries) < snapshot.settings.panic_threshold * (len(primaries) + len(out))
    if primaries and not few:
        return Eligible(frozenset(primaries), frozenset(backups), "normal")
    if backups:
        return Eligible(frozenset(primaries + backups), frozenset(), "backup")
    if few:
        return Eligible(frozenset(primaries + out), frozenset(), "panic")
    if snapshot.settings.panic_threshold > 0 and (down_backups or ejected_backups):
        return Eligible(frozenset(down_backups + ejected_backups), frozenset(), "panic")
    if ejected or ejected_backups:
        return Eligible(frozenset(ejected or ejected_backups), frozenset(), "ejected")
    return Eligible(frozenset(), frozenset(), "normal")


def _is_down(backend: Backend) -> bool:
    return backend.health == "down" and backend.admin == "ready" and backend.weight > 0


def zones(snapshot: Snapshot) -> tuple[str, ...]:
    """The zones that backends of the pool are in, sorted."""
    return tuple(sorted({backend.zone for backend in snapshot.backends.values() if backend.zone}))


def home(backend: Backend) -> str:
    """The zone that a backend serves; after a "-" when it is in that zone but does not; "" when in none.

    Backups serve no zone: they are the whole pool's.
    """
    if not backend.zone:
        return ""
    return backend.zone if backend.available and not backend.backup else f"-{backend.zone}"


class Zone(NamedTuple):
    """How a zone of a pool stands: how many of its backends are available, of how many that count, and are
    these enough for the workers of the zone to keep to it?
    """

    available: int
    members: int
    suffices: bool


def zone_of(snapshot: Snapshot, zone: str) -> Zone:
    """How `zone` stands in a pool. O(number of backends).

    What counts is whether the zone can bear what it did: all of its primaries are its members, also those
    that are down, drained or have no weight. Not those that wait for a first probe: nobody has ever seen them
    work, and with them added the zone can bear no less than before.
    """
    members = [
        backend
        for backend in snapshot.backends.values()
        if backend.zone == zone and not backend.backup and backend.health != "checking"
    ]
    available = sum(backend.available for backend in members)
    enough = available >= snapshot.settings.zone_threshold * len(members)
    return Zone(available, len(members), available > 0 and enough)


def seen_from(snapshot: Snapshot, zone: str) -> Snapshot:
    """The pool as a worker in `zone` is to see it: the primaries of its zone as if there were no others,
    while enough of them are available (`zone_of`); else the whole pool, `snapshot` itself.

    A zone that suffices does so whatever the rest of the pool is like: backups and panic are for those who
    have no such zone.
    """
    if not zone or not zone_of(snapshot, zone).suffices:
        return snapshot
    return Snapshot(
        snapshot.pool,
        snapshot.version,
        msgspec.structs.replace(snapshot.settings, panic_threshold=0.0),
        {name: b for name, b in snapshot.backends.items() if b.zone == zone and not b.backup},
    )
