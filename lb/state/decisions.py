"""Decisions in the store: how requests got their backends, kept for a while and up to a number in each pool.

Ids come from clients where proxies are trusted; they stand in fields of a hash, never in the name of a key,
and one that is none (`lb.decision.REQUEST_ID`) is not even asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import cast

import msgspec

from lb.decision import DECODE, ENCODE, REQUEST_ID, Decision
from lb.state.keys import PoolKeys
from lb.state.registry import Registry

_LOG = logging.getLogger("lb")

BATCH = 64
"""Decisions in one call: the store serves nobody else meanwhile."""

MOST_LISTED = 100
"""Decisions in one answer."""


def write(registry: Registry, found: Iterable[Decision], seconds: float, most: int) -> None:
    """Keep `found` for so many seconds, and of each pool the last `most`. Raises StoreError."""
    pools: dict[str, list[tuple[str, bytes]]] = {}
    for one in found:
        if REQUEST_ID.match(one.id):
            pools.setdefault(one.pool, []).append((one.id, ENCODE(one)))
    for pool, pairs in pools.items():
        for at in range(0, len(pairs), BATCH):
            registry.scripts.keep_decisions(PoolKeys(pool), pairs[at : at + BATCH], seconds, most)


def find(registry: Registry, request_id: str) -> Decision | None:
    """The decision for a request; None when nothing is known of it (any more). Raises StoreError."""
    if not REQUEST_ID.match(request_id):
        return None
    with registry.client.pipeline(transaction=False) as pipe:
        for pool in registry.pools():
            pipe.hget(PoolKeys(pool).decisions, request_id)
        found = [_decoded(raw) for raw in pipe.execute()]
    # The same id in two pools: somebody else's proxy gives ids twice. The later one counts.
    return max((one for one in found if one is not None), key=lambda one: one.time, default=None)


def recent(
    registry: Registry, pools: Iterable[str], *, failed: bool | None = None, most: int = MOST_LISTED
) -> list[Decision]:
    """The last decisions of some pools, newest first; `failed`: only those that failed (True), or that did
    not.

    Reads in batches until there are enough. Raises StoreError.
    """
    found: list[Decision] = []
    for pool in pools:
        keys, at, taken = PoolKeys(pool), 0, 0
        while taken < most:
            ids = cast("list[bytes]", registry.client.zrevrange(keys.decided, at, at + BATCH - 1))
            if not ids:
                break
            at += len(ids)
            for raw in cast("list[bytes | None]", registry.client.hmget(keys.decisions, ids)):
                one = _decoded(raw)
                if one is not None and failed in (None, one.failed) and taken < most:
                    found.append(one)
                    taken += 1
    found.sort(key=lambda one: one.time, reverse=True)
    return found[:most]


def _decoded(raw: bytes | None) -> Decision | None:
    if raw is None:
        return None
    try:
        return DECODE(raw)
    except msgspec.MsgspecError as exc:  # written by another version
        _LOG.warning("a decision in the store cannot be read: %s", exc)
        return None
