"""Pools in the store: reading snapshots, and committing changes under the version they were decided on."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import msgspec
import redis

from lb.algorithms import algorithm
from lb.algorithms.eligible import Eligible, Mode, eligible, home, zones
from lb.algorithms.reports import SMOOTHING, Report, free_share
from lb.errors import ConfigError, StoreConflict, StoreError
from lb.model import Admin, Backend, Health, PoolSettings, Snapshot, Source, State
from lb.state import decide
from lb.state.changes import encode
from lb.state.decide import Change
from lb.state.keys import HEALTH_LEASE, MAX_ZONES, POOLS, PoolKeys, check_zone
from lb.state.pieces import in_pieces
from lb.state.scripts import Put, Scripts

TRIES = 50
"""Attempts at a commit. Of those who write at the same time one succeeds each time, so with n
writers n attempts are enough."""

BACKEND_NAME = re.compile(r"[^\s_][^\s]{0,254}\Z")
"""What a backend may be called: scripts keep names apart by white space, and begin their own with "_"."""

_RECORD = struct.Struct("<ddddd")  # see redis/order.lua
_OUTLIER = struct.Struct("<dddddddddd")
_SETTINGS = msgspec.json.Decoder(PoolSettings)

backend_in = msgspec.json.Decoder(Backend).decode
"""The backend of a record among a pool's members. Raises msgspec.DecodeError."""


class BackendStatus(msgspec.Struct, frozen=True):
    """A backend with its counts over the whole fleet: connections now, requests ever.

    `ejected_until`: in seconds since the epoch, 0 if it is not ejected; when that is over, it waits for the
    request that probes it. `ejections`: how many in a row there were.
    """

    id: str
    url: str
    weight: int
    state: State
    in_flight: int
    requests: int
    max_connections: int
    source: Source
    admin: Admin
    health: Health
    backup: bool = False
    zone: str = ""
    ejected_until: float = 0.0
    ejections: int = 0
    ejection_reason: str = ""


class Trial(msgspec.Struct, frozen=True):
    """What became of the requests of one of two algorithms that are compared. `seconds`: the sum of the times
    until their answers; a failure is an attempt that failed, or an answer of 500 or above.
    """

    algorithm: str
    requests: int
    failures: int
    seconds: float

    @property
    def mean(self) -> float:
        """Seconds until an answer, on average."""
        return self.seconds / self.requests if self.requests else 0.0


class PoolStatus(msgspec.Struct, frozen=True):
    """A pool as it was at one instant: version, settings, and each backend, by name.

    `trial`: while a canary is tried out, what became of the requests of the pool's own algorithm, and of its.
    `mode`: do backups serve, or is it a panic (see `lb.algorithms.eligible`)? `queued`: requests that
    wait while every backend is full.
    """

    pool: str
    version: int
    settings: PoolSettings
    backends: tuple[BackendStatus, ...]
    trial: tuple[Trial, ...] = ()
    mode: Mode = "normal"
    queued: int = 0


class Registry:
    """The pools in one store. Methods raise StoreUnavailable and StoreError as the client does."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.scripts = Scripts(client)

    def pools(self) -> list[str]:
        """The names of all pools."""
        members = cast("set[bytes]", self.client.smembers(POOLS))
        return sorted(name.decode() for name in members)

    def version(self, pool: str) -> int:
        """The version `pool` is at, 0 when nobody has written it."""
        return int(cast("bytes | None", self.client.hget(PoolKeys(pool).state, "_v")) or 0)

    def load(self, pool: str) -> Snapshot:
        """Read `pool`: version 0 and empty when nobody has written it."""
        keys = PoolKeys(pool)
        with self.client.pipeline(transaction=True) as pipe:
            pipe.hmget(keys.state, "_v", "_settings")
            pipe.hgetall(keys.members)
            (version, settings), members = pipe.execute()
        return _snapshot(pool, version, settings, members)

    def status(self, pool: str) -> list[BackendStatus]:
        """Each backend of `pool` with its counts, by name, all as of one instant."""
        return list(self.pool_status(pool).backends)

    def pool_status(self, pool: str, pause: Callable[[], None] | None = None) -> PoolStatus:
        """`pool` with the counts of its backends, all as of one instant; taken apart with many a `pause`."""
        keys = PoolKeys(pool)
        with self.client.pipeline(transaction=True) as pipe:
            pipe.hgetall(keys.state)
            pipe.hgetall(keys.members)
            pipe.hgetall(keys.trial)
            state, members, trial = pipe.execute()
        snapshot = _snapshot(pool, state.get(b"_v"), state.get(b"_settings"), members, pause)
        found = [
            _status(backend, state.get(name.encode()))
            for name, backend in in_pieces(sorted(snapshot.backends.items()), pause)
        ]
        settings = snapshot.settings
        trials, mode = _trials(settings, trial), eligible(snapshot).mode
        queued = int(state.get(b"_w", 0))
        return PoolStatus(pool, snapshot.version, settings, tuple(found), trials, mode, queued)

    def backend_status(self, pool: str, name: str) -> BackendStatus | None:
        """One backend of `pool` with its counts, however many there are; None if there is none."""
        keys = PoolKeys(pool)
        with self.client.pipeline(transaction=True) as pipe:
            pipe.hget(keys.state, name)
            pipe.hget(keys.members, name)
            record, member = pipe.execute()
        if member is None:
            return None
        return _status(_snapshot(pool, None, None, {name.encode(): member}).backends[name], record)

    def failing(self, pool: str, names: Sequence[str], within: float) -> set[str]:
        """Of `names` those whose last request failed, at most about `within` seconds ago."""
        fields = [name.encode() for name in names] + [b"_o" + name.encode() for name in names]
        if not fields:
            return set()
        with self.client.pipeline(transaction=True) as pipe:
            pipe.time()
            pipe.hmget(PoolKeys(pool).state, fields)
            (seconds, microseconds), found = pipe.execute()
        now, failing = seconds + microseconds / 1e6, set()
        for name, record, seen in zip(names, found, found[len(names) :], strict=False):
            if record and seen:
                in_flight, requests = counts(record)
                row, bad, voids, good, began, _, _, told, *_ = _OUTLIER.unpack(seen)
                # Counts begin anew when somebody is told of an outlier: that says no less.
                recent = 0 <= now - max(began, told) < within
                if recent and requests - in_flight - bad - voids == good and (row or told >= began):
                    failing.add(name)
        return failing

    def report(self, pool: str, backend: str, report: Report) -> float:
        """Take what a backend reports of itself; returns the smoothed share of its weight that it can bear.

        Raises KeyError when there is no such backend.
        """
        policy = self.load_settings(pool).report
        found = self.scripts.report(
            PoolKeys(pool),
            backend,
            free_share(report),
            lasts=3 * policy.period,
            fade=SMOOTHING * policy.period,
            blackout=policy.blackout,
        )
        if found is None:
            raise KeyError(backend)
        return found

    def load_settings(self, pool: str) -> PoolSettings:
        """What the fleet has agreed on for `pool`, without reading its backends."""
        found = cast("bytes | None", self.client.hget(PoolKeys(pool).state, "_settings"))
        return _snapshot(pool, None, found, {}).settings

    def secret(self, pool: str, proposed: bytes) -> bytes:
        """What the fleet signs with in `pool`: `proposed`, unless there is something already."""
        key = PoolKeys(pool).secret
        with self.client.pipeline(transaction=True) as pipe:
            pipe.set(key, proposed, nx=True)
            pipe.get(key)
            _, found = pipe.execute()
        return cast("bytes", found)

    def add_trial(self, pool: str, tallies: Mapping[bool, tuple[int, int, float]]) -> None:
        """Add what became of requests, of the canary (True) and of the others, to what is known of them."""
        key = PoolKeys(pool).trial
        with self.client.pipeline(transaction=True) as pipe:
            for canary, (requests, failures, seconds) in tallies.items():
                half = _HALVES[canary]
                pipe.hincrby(key, f"{half}requests", requests)
                pipe.hincrby(key, f"{half}failures", failures)
                pipe.hincrbyfloat(key, f"{half}seconds", seconds)
            pipe.execute()

    def change(self, pool: str, decider: Callable[[Snapshot], Change]) -> Snapshot:
        """Let `decider` decide on the pool as it is, commit that, and return the pool as it is then.

        Decided anew when another writer was first; nothing is written when nothing changes. Raises what
        `decider` raises, ValueError for names that cannot be used, ConfigError for more zones than
        `MAX_ZONES`, and StoreConflict after `TRIES` attempts.
        """
        keys = PoolKeys(pool)
        for _ in range(TRIES):
            snapshot = self.load(pool)
            change = decider(snapshot)
            if change.empty:
                return snapshot
            for backend in change.put:
                if not BACKEND_NAME.match(backend.id):
                    raise ValueError(
                        f"{backend.id!r} is no name for a backend: at most 255 characters, "
                        "no white space, not starting with '_'"
                    )
                check_zone(backend.zone)
            change = decide.settle(snapshot, change, self.health_owner() is not None, self.now())
            if change.empty:
                return snapshot
            try:
                return self._commit(keys, snapshot, change)
            except StoreConflict:
                continue
        raise StoreConflict(f"pool {pool} was changed by others {TRIES} times in a row")

    def _commit(self, keys: PoolKeys, snapshot: Snapshot, change: Change) -> Snapshot:
        if snapshot.version == 0:
            # Before the pool itself: a name without a pool does no harm, a pool without a name is lost.
            self.client.sadd(POOLS, keys.pool)
        # A pool that is new has no order, so its settings are written even if they are the default.
        settings = change.settings or (snapshot.settings if snapshot.version == 0 else None)
        after = decide.applied(snapshot, change, snapshot.version + 1)
        was, now, there = eligible(snapshot), eligible(after), zones(after)
        if len(there) > MAX_ZONES:
            raise ConfigError(f"pool {keys.pool} would have {len(there)} zones; {MAX_ZONES} are the most")
        version = self.scripts.commit(
            keys,
            snapshot.version,
            encode(snapshot.version, change),
            _puts(after, change, was, now),
            change.delete,
            settings=b"" if settings is None else msgspec.json.encode(settings),
            order="" if settings is None else algorithm(settings.algorithm).order_for(settings),
            canary="" if settings is None else canary_order(settings),
            # Backups that step in, and everybody in a panic, are needed at once.
            slow_start=after.settings.slow_start if now.mode == "normal" or not was.names else 0.0,
            begins=not was.names,
            was=zones(snapshot),
            zones=there,
        )
        if change.settings is not None and change.settings.canary != snapshot.settings.canary:
            self.client.delete(keys.trial)  # another comparison begins
        return msgspec.structs.replace(after, version=version)

    def promote_checking(self, pool: str) -> Snapshot:
        """Let backends that wait for a first probe have traffic, if no health daemon is there (any more)."""
        if self.health_owner() is not None:
            return self.load(pool)
        return self.change(pool, decide.promote_checking)

    # Who probes.

    def hold_health(self, owner: str, seconds: float) -> bool:
        """Take or renew the lease of the health daemon; False when another one has it."""
        return self.scripts.hold(HEALTH_LEASE, owner, max(1, round(seconds * 1000)))

    def release_health(self, owner: str) -> None:
        """Give the lease of the health daemon up, if it is `owner`'s."""
        self.scripts.hold(HEALTH_LEASE, owner, 0)

    def health_owner(self) -> str | None:
        """Which health daemon has the lease; None when there is none."""
        owner = cast("bytes | None", self.client.get(HEALTH_LEASE))
        return None if owner is None else owner.decode()

    def now(self) -> float:
        """The server's time, seconds since the epoch."""
        seconds, microseconds = self.client.time()
        return seconds + microseconds / 1e6


def settings_in(found: bytes | None) -> PoolSettings:
    """What a pool's state has under `_settings`. Raises msgspec.DecodeError."""
    return _SETTINGS.decode(found) if found else PoolSettings()


def counts(record: bytes | None) -> tuple[int, int]:
    """Connections of a backend now, and requests ever; `record` stands under its name in its pool's state."""
    if not record:
        return 0, 0
    in_flight, requests, *_ = _RECORD.unpack_from(record)
    return int(in_flight), int(requests)


def _puts(after: Snapshot, change: Change, was: Eligible, now: Eligible) -> list[Put]:
    """What to write of backends: those that change, and those that serve or do so no more because of them."""
    flipped = (was.names ^ now.names) | (was.standby ^ now.standby)
    names = {backend.id: None for backend in change.put}
    names.update((name, None) for name in sorted(flipped) if name in after.backends)
    return [
        Put(
            name,
            msgspec.json.encode(one),
            name in now.names,
            one.weight,
            one.max_connections,
            name in now.standby,
            home(one),
        )
        for name, one in ((name, after.backends[name]) for name in names)
    ]


_HALVES = {False: "", True: "c"}


def _trials(settings: PoolSettings, found: Mapping[bytes, bytes]) -> tuple[Trial, ...]:
    if settings.canary is None:
        return ()
    return tuple(
        Trial(
            name,
            int(found.get(f"{half}requests".encode(), 0)),
            int(found.get(f"{half}failures".encode(), 0)),
            float(found.get(f"{half}seconds".encode(), 0)),
        )
        for half, name in (("", settings.algorithm), ("c", settings.canary.algorithm))
    )


def canary_order(settings: PoolSettings) -> str:
    """The kind of order that a pool's canary wants; "-" when it has none."""
    return algorithm(settings.canary.algorithm).order_for(settings) if settings.canary else "-"


def _status(backend: Backend, record: bytes | None) -> BackendStatus:
    in_flight, requests = counts(record)
    return BackendStatus(
        id=backend.id,
        url=backend.url,
        weight=backend.weight,
        state=backend.state,
        in_flight=in_flight,
        requests=requests,
        max_connections=backend.max_connections,
        source=backend.source,
        admin=backend.admin,
        health=backend.health,
        backup=backend.backup,
        zone=backend.zone,
        ejected_until=backend.breaker.until,
        ejections=backend.breaker.times,
        ejection_reason=backend.breaker.reason,
    )


def _snapshot(
    pool: str,
    version: bytes | None,
    settings: bytes | None,
    members: Mapping[bytes, bytes],
    pause: Callable[[], None] | None = None,
) -> Snapshot:
    try:
        return Snapshot(
            pool,
            int(version or 0),
            settings_in(settings),
            {name.decode(): backend_in(record) for name, record in in_pieces(members.items(), pause)},
        )
    except (msgspec.DecodeError, ValueError) as exc:
        raise StoreError(f"pool {pool} in the store cannot be read: {exc}") from exc
