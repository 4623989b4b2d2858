"""Changes of a pool, decided: what is known in, a `Change` out.

No I/O, no clock. A decider takes a snapshot and says what to write; `lb.state.registry` commits it under the
version of that snapshot, or asks again with a newer one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from lb.model import CLOSED, Admin, Backend, Canary, Health, PoolSettings, Snapshot, backend_id
from lb.settings import BackendSpec, PoolConfig


class Change(msgspec.Struct, frozen=True):
    """What to write: backends as they shall be, names to remove, and settings if they change."""

    put: tuple[Backend, ...] = ()
    delete: tuple[str, ...] = ()
    settings: PoolSettings | None = None

    @property
    def empty(self) -> bool:
        """Is there nothing to write?"""
        return not (self.put or self.delete or self.settings)


Decider = Callable[[Snapshot], Change]

#: Nothing to write.
NOTHING = Change()


def add(backend: Backend) -> Decider:
    """Add `backend`, or replace the one of its name. Admin state and health of a known address stay."""

    def decide(snapshot: Snapshot) -> Change:
        known = snapshot.backends.get(backend.id)
        return Change(put=(_keep_health(known, backend),))

    return decide


def remove(*names: str) -> Decider:
    """Remove backends; unknown names are passed over."""
    return lambda snapshot: Change(delete=tuple(name for name in names if name in snapshot.backends))


def update(
    name: str,
    *,
    admin: Admin | None = None,
    weight: int | None = None,
    max_connections: int | None = None,
) -> Decider:
    """Change what is given of one backend. Deciding raises KeyError when there is none of that name."""

    def decide(snapshot: Snapshot) -> Change:
        known = snapshot.backends[name]
        return Change(
            put=(
                msgspec.structs.replace(
                    known,
                    admin=known.admin if admin is None else admin,
                    weight=known.weight if weight is None else weight,
                    max_connections=known.max_connections if max_connections is None else max_connections,
                ),
            )
        )

    return decide


def verdicts(found: Iterable[tuple[str, Health]]) -> Decider:
    """Write what probes have found, by name; backends that are gone meanwhile are passed over.

    Who is up again is ejected no more: it was seen to be mended. Probes that succeed all along say nothing
    of what requests have met with, and end no ejection.
    """
    pairs = tuple(found)

    def decide(snapshot: Snapshot) -> Change:
        put = {}
        for name, health in pairs:
            known = snapshot.backends.get(name)
            if known is not None:
                breaker = CLOSED if health == "up" and known.health == "down" else known.breaker
                put[name] = msgspec.structs.replace(known, health=health, breaker=breaker)
        return Change(put=tuple(put.values()))

    return decide


def promote_checking(snapshot: Snapshot) -> Change:
    """Let backends that wait for a first probe have traffic: nobody probes."""
    return Change(
        put=tuple(
            msgspec.structs.replace(backend, health="unknown")
            for backend in snapshot.backends.values()
            if backend.health == "checking"
        )
    )


def configured(pool: str, settings: PoolSettings, specs: Iterable[BackendSpec]) -> Snapshot:
    """A pool as a configuration has it, at version 0: all there is before anybody has written it."""
    backends = {}
    for spec in specs:
        name = spec.id or backend_id(spec.url)
        backends[name] = Backend(
            id=name,
            url=spec.url,
            weight=spec.weight,
            max_connections=spec.max_connections,
            source="file",
            backup=spec.backup,
            zone=spec.zone,
        )
    return Snapshot(pool, 0, settings, backends)


def settings_of(config: PoolConfig) -> PoolSettings:
    """What the fleet must agree on, as a configuration has it."""
    return PoolSettings(
        config.algorithm,
        config.health,
        config.hash,
        config.report,
        configured=config.algorithm,
        panic_threshold=config.panic_threshold,
        slow_start=config.slow_start,
        queue=config.queue,
        zone_threshold=config.zone_threshold,
        outlier=config.outlier,
    )


def declare(config: PoolConfig) -> Decider:
    """Make a pool what the configuration says, as far as it is the configuration's: its settings and the
    backends that came from it. Those of the API and of agents stay, also when the file names one of
    them. A backend whose address is unchanged keeps its health and its admin state, not its weight
    and its cap. An algorithm that was switched live stays until the configuration asks for another one
    than before, and so does what is tried out beside it.
    """
    wanted = configured("", settings_of(config), config.backends)

    def decide(snapshot: Snapshot) -> Change:
        known = snapshot.backends
        put = [
            _keep_health(known.get(name), backend)
            for name, backend in wanted.backends.items()
            if name not in known or known[name].source == "file"
        ]
        delete = [
            name
            for name, backend in known.items()
            if backend.source == "file" and name not in wanted.backends
        ]
        settings, live = wanted.settings, snapshot.settings
        if snapshot.version and live.configured == settings.configured:
            settings = msgspec.structs.replace(settings, algorithm=live.algorithm, canary=live.canary)
        return Change(tuple(put), tuple(delete), settings)

    return decide


def switch(algorithm: str, share: float = 1.0) -> Decider:
    """Let `algorithm` choose: always, or for `share` of the picks beside the one there is; 0: no more."""

    def decide(snapshot: Snapshot) -> Change:
        settings = snapshot.settings
        if share >= 1:
            return Change(settings=msgspec.structs.replace(settings, algorithm=algorithm, canary=None))
        canary = Canary(algorithm, share) if share > 0 else None
        return Change(settings=msgspec.structs.replace(settings, canary=canary))

    return decide


def restore(remembered: Snapshot) -> Decider:
    """Give a store that has lost a pool (version 0) what `remembered` knows of it; leave any other alone."""

    def decide(snapshot: Snapshot) -> Change:
        if snapshot.version:
            return NOTHING
        return Change(put=tuple(remembered.backends.values()), settings=remembered.settings)

    return decide


def _keep_health(known: Backend | None, backend: Backend) -> Backend:
    if known is None or known.url != backend.url:
        return backend
    return msgspec.structs.replace(
        backend, admin=known.admin, health=known.health, since=known.since, breaker=known.breaker
    )


def settle(snapshot: Snapshot, change: Change, probed: bool, now: float) -> Change:
    """What of `change` is left to write on top of `snapshot`, with the health that follows from it.

    A backend at a new address of which nothing is known starts "checking" when somebody probes (`probed`);
    where probing is switched off in the pool, all are "unknown"; where ejecting is, nobody is ejected.
    `since` follows `health`; `now` is in seconds since the epoch. What changes nothing is left out.
    """
    settings = change.settings or snapshot.settings
    put: dict[str, Backend] = {}
    for backend in change.put:
        known = snapshot.backends.get(backend.id)
        if known is None or known.url != backend.url:
            first: Health = "checking" if probed and backend.health == "unknown" else backend.health
            put[backend.id] = msgspec.structs.replace(backend, health=first, since=backend.since or now)
        else:
            put[backend.id] = backend
    if not settings.health.enabled:
        for name, backend in [*snapshot.backends.items(), *put.items()]:
            if backend.health != "unknown":
                put[name] = msgspec.structs.replace(put.get(name, backend), health="unknown")
    if not settings.outlier.enabled:
        for name, backend in [*snapshot.backends.items(), *put.items()]:
            if backend.breaker.open:
                put[name] = msgspec.structs.replace(put.get(name, backend), breaker=CLOSED)
    kept: list[Backend] = []
    gone = tuple(name for name in change.delete if name in snapshot.backends)
    for name, backend in put.items():
        known = snapshot.backends.get(name)
        if name in gone:
            continue
        if known is not None and known.url == backend.url:
            since = known.since if known.health == backend.health else now
            settled = msgspec.structs.replace(backend, since=since)
            if settled != known:
                kept.append(settled)
        else:
            kept.append(backend)
    new = snapshot.version == 0 or settings != snapshot.settings
    return Change(tuple(kept), gone, settings if change.settings and new else None)


def applied(snapshot: Snapshot, change: Change, version: int) -> Snapshot:
    """Return `snapshot` after `change`, at `version`."""
    gone = set(change.delete)
    backends = {name: backend for name, backend in snapshot.backends.items() if name not in gone}
    backends.update((backend.id, backend) for backend in change.put)
    return Snapshot(snapshot.pool, version, change.settings or snapshot.settings, backends)
