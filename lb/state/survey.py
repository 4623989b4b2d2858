"""All pools at a glance: what the metrics tell of each backend, made in pieces, for a pool may be large.

The store is asked once for each pool, so its counts are as of one instant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from lb.errors import StoreError
from lb.model import Backend, Snapshot, State
from lb.state.keys import PoolKeys
from lb.state.pieces import in_pieces
from lb.state.registry import Registry, backend_in, counts, settings_in


class Row(NamedTuple):
    """A backend; `in_flight` and `requests` are the fleet's, None where only a worker was asked."""

    id: str
    weight: int
    max_connections: int
    state: State
    ejections: int
    in_flight: int | None = None
    requests: int | None = None


class Survey(NamedTuple):
    """A pool; `queued` as `Row.requests`."""

    pool: str
    algorithm: str
    queued: int | None
    rows: list[Row]


def ask(registry: Registry, pause: Callable[[], None]) -> list[Survey]:
    """Every pool as the store has it. Raises StoreUnavailable, StoreError."""
    raw = []
    for pool in registry.pools():
        keys = PoolKeys(pool)
        with registry.client.pipeline(transaction=True) as pipe:
            pipe.hgetall(keys.state)
            pipe.hgetall(keys.members)
            raw.append((pool, *pipe.execute()))
        pause()
    try:
        return [_taken_apart(pool, state, members, pause) for pool, state, members in raw]
    except (msgspec.DecodeError, ValueError) as exc:
        raise StoreError(f"a pool in the store cannot be read: {exc}") from exc


def _taken_apart(
    pool: str, state: dict[bytes, bytes], members: dict[bytes, bytes], pause: Callable[[], None]
) -> Survey:
    rows = [
        _row(backend_in(record), *counts(state.get(name)))
        for name, record in in_pieces(sorted(members.items()), pause)
    ]
    algorithm = settings_in(state.get(b"_settings")).algorithm
    return Survey(pool, algorithm, int(state.get(b"_w", 0)), rows)


def known(snapshots: Iterable[Snapshot], pause: Callable[[], None]) -> list[Survey]:
    """The pools as a worker knows them without the store."""
    return [
        Survey(
            one.pool,
            one.settings.algorithm,
            None,
            [_row(backend) for _, backend in in_pieces(sorted(one.backends.items()), pause)],
        )
        for one in snapshots
    ]


def _row(backend: Backend, in_flight: int | None = None, requests: int | None = None) -> Row:
    return Row(
        backend.id,
        backend.weight,
        backend.max_connections,
        backend.state,
        backend.breaker.times,
        in_flight,
        requests,
    )
