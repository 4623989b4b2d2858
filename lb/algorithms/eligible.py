"""Who gets the requests of a pool: which of its backends, and why those.

`Backend.available` is what one backend says of itself. Here, and nowhere else, follows from all of them
together who is eligible: backups wait until they are needed, and when hardly anybody is healthy, health is
not believed any more. The shared state keeps the eligible in its order, workers choose candidates among them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from lb.model import Backend, Snapshot

Mode = Literal["normal", "backup", "panic"]
"""Who serves: the primaries that are available; backups (too); or all, whatever their health."""


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
    over. O(number of backends).
    """
    primaries: list[str] = []
    backups: list[str] = []
    down: list[str] = []
    down_backups: list[str] = []
    for name, backend in snapshot.backends.items():
        if backend.available:
            (backups if backend.backup else primaries).append(name)
        elif _is_down(backend):
            (down_backups if backend.backup else down).append(name)
    few = len(primaries) < snapshot.settings.panic_threshold * (len(primaries) + len(down))
    if primaries and not few:
        return Eligible(frozenset(primaries), frozenset(backups), "normal")
    if backups:
        return Eligible(frozenset(primaries + backups), frozenset(), "backup")
    if few:
        return Eligible(frozenset(primaries + down), frozenset(), "panic")
    if snapshot.settings.panic_threshold > 0 and down_backups:
        return Eligible(frozenset(down_backups), frozenset(), "panic")
    return Eligible(frozenset(), frozenset(), "normal")


def _is_down(backend: Backend) -> bool:
    return backend.health == "down" and backend.admin == "ready" and backend.weight > 0
