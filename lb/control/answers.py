"""What the control API tells: the shape of each answer, and how it is made of what the store says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from lb.model import (
    Admin,
    Canary,
    HashPolicy,
    Health,
    HealthPolicy,
    OutlierPolicy,
    PoolSettings,
    QueuePolicy,
    ReportPolicy,
    Snapshot,
    Source,
    State,
)
from lb.model import Backend as Member
from lb.state.pieces import in_pieces, pause
from lb.state.registry import BackendStatus, PoolStatus


class Liveness(msgspec.Struct, frozen=True):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(msgspec.Struct, frozen=True, omit_defaults=True):
    """May traffic be sent here? `degraded`: yes, though the shared state is away for the reason given."""

    status: Literal["ready", "degraded", "starting", "draining"]
    shared_state: str = ""


class BackendInfo(msgspec.Struct, frozen=True):
    """A backend. `in_flight`: requests it serves now, `requests`: those it was ever given, of the fleet;
    null while the shared state is away. `ejected_until`: seconds since the epoch, 0 if it is not ejected;
    once it is over, one request probes the backend. `ejections`: how many in a row there were;
    `ejection_reason`: why the last. `share`: in answer to a report, the smoothed share of its weight that it
    can bear.
    """

    id: str
    url: str
    weight: int
    state: State
    in_flight: int | None
    requests: int | None
    max_connections: int
    source: Source
    admin: Admin
    health: Health
    zone: str
    ejected_until: float
    ejections: int
    ejection_reason: str
    share: float | UnsetType = UNSET


class TrialInfo(msgspec.Struct, frozen=True):
    """What became of the requests of one of two algorithms that are compared. `seconds`: the sum of the times
    until their answers, `mean`: their average.
    """

    algorithm: str
    requests: int
    failures: int
    seconds: float
    mean: float


class Policies(msgspec.Struct, frozen=True):
    """What the fleet has agreed on for a pool, besides its algorithm. Times in seconds."""

    health: HealthPolicy
    hash: HashPolicy
    report: ReportPolicy
    queue: QueuePolicy
    outlier: OutlierPolicy


class PoolInfo(msgspec.Struct, frozen=True):
    """A pool as of one instant. `exact`: as the shared state has it; else it is what one worker knew last.
    `queued`: requests of the fleet that wait while every backend is at its `max_connections`; null while the
    shared state is away.
    """

    algorithm: str
    canary: Canary | None
    trial: tuple[TrialInfo, ...]
    version: int
    exact: bool
    settings: Policies
    queued: int | None
    backends: tuple[BackendInfo, ...]


class PoolList(msgspec.Struct, frozen=True):
    """All pools, by name."""

    pools: Mapping[str, PoolInfo]


class BackendList(msgspec.Struct, frozen=True):
    """The backends of a pool, by id."""

    version: int
    exact: bool
    backends: tuple[BackendInfo, ...]


class AlgorithmInfo(msgspec.Struct, frozen=True):
    """How a pool chooses."""

    algorithm: str
    canary: Canary | None
    exact: bool


def _policies(settings: PoolSettings) -> Policies:
    return Policies(settings.health, settings.hash, settings.report, settings.queue, settings.outlier)


def exact_pool(pool: PoolStatus) -> PoolInfo:
    """A pool as the store has it. With many a pause: it may be large."""
    settings = pool.settings
    return PoolInfo(
        settings.algorithm,
        settings.canary,
        tuple(TrialInfo(t.algorithm, t.requests, t.failures, t.seconds, t.mean) for t in pool.trial),
        pool.version,
        True,
        _policies(settings),
        pool.queued,
        tuple(exact_backend(backend) for backend in in_pieces(pool.backends, pause)),
    )


def known_pool(snapshot: Snapshot) -> PoolInfo:
    """A pool as a worker knows it without the store."""
    settings = snapshot.settings
    return PoolInfo(
        settings.algorithm,
        settings.canary,
        (),
        snapshot.version,
        False,
        _policies(settings),
        None,
        tuple(known_backend(backend) for _, backend in in_pieces(sorted(snapshot.backends.items()), pause)),
    )


def exact_backend(backend: BackendStatus) -> BackendInfo:
    """A backend as the store has it."""
    return msgspec.convert(backend, BackendInfo, from_attributes=True)


def known_backend(backend: Member) -> BackendInfo:
    """A backend as a worker knows it without the store."""
    return BackendInfo(
        backend.id,
        backend.url,
        backend.weight,
        backend.state,
        None,
        None,
        backend.max_connections,
        backend.source,
        backend.admin,
        backend.health,
        backend.zone,
        backend.breaker.until,
        backend.breaker.times,
        backend.breaker.reason,
    )
