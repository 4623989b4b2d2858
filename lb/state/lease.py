"""Leases: what each worker holds is written under its name, and given back when it shows no sign of life."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import cast

from lb.state.keys import PoolKeys
from lb.state.registry import Registry
from lb.state.scripts import Scripts

BEAT = 1.0
"""Seconds between two signs of life of a worker."""

LEASE = 5.0
"""Seconds without a sign of life after which a worker counts as dead."""


class WorkerLease:
    """One worker's lease in one pool. Methods raise StoreUnavailable as the client does."""

    def __init__(self, scripts: Scripts, pool: str, worker: str) -> None:
        self.keys = PoolKeys(pool)
        self.worker = worker
        #: What a claim must carry; changes each time the lease is opened.
        self.epoch = ""
        self._scripts = scripts

    def open(self, held: Mapping[str, int]) -> int:
        """Make the lease hold exactly `held` (backend → connections); return the version of the pool.

        A call that is still under way from before carries the former epoch, and will do nothing.
        """
        self.epoch = secrets.token_hex(8)
        return self._scripts.lease(self.keys, self.worker, self.epoch, held)

    def beat(self) -> int:
        """Show a sign of life; return the version of the pool. Raises LeaseLost: open it again."""
        return self._scripts.beat(self.keys, self.worker, self.epoch)

    def close(self) -> None:
        """Give back everything that is held, and leave."""
        self._scripts.close(self.keys, self.worker)
        self.epoch = ""


def reap_dead(registry: Registry, pool: str, lease: float = LEASE) -> int:
    """Give back what workers held that showed no sign of life for `lease` seconds of the server's time.

    Returns how many connections that were. Any number of processes may do so at the same time.
    """
    keys, now = PoolKeys(pool), registry.now()
    found = cast("list[bytes]", registry.client.zrangebyscore(keys.workers, "-inf", now - lease))
    # So far ahead is only what was written before the server's clock was put back.
    found += cast("list[bytes]", registry.client.zrangebyscore(keys.workers, now + lease, "+inf"))
    total = 0
    for worker in found:
        total += registry.scripts.reap(keys, worker.decode(), lease) or 0
    return total
