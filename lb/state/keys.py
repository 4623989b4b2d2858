"""The names of all keys, in one place.

Every key of a pool carries the hash tag `{pool}`, which keeps it in one slot of a cluster.
Pool names are checked against `POOL_NAME` wherever they enter, so a name can neither
close the tag nor reach into another pool's keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

POOL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
POOLS = "lb:pools"
HEALTH_LEASE = "lb:health"

MAX_ZONES = 32
"""Zones of one pool at most: each claim names two keys for each."""


def check_zone(text: str) -> str:
    """The name of a zone, which is part of keys as that of a pool is; "" for none. Raises ValueError."""
    if text and not POOL_NAME.match(text):
        raise ValueError(
            f"{text!r} is no name of a zone: letters, digits, '.', '_' and '-', at most 63, "
            "starting with a letter or digit"
        )
    return text


class PoolKeys:
    """The keys of one pool. Raises ValueError for a name that is no pool name."""

    __slots__ = (
        "canary",
        "changes",
        "decided",
        "decisions",
        "members",
        "once",
        "once_until",
        "order",
        "pool",
        "queue",
        "retries",
        "secret",
        "state",
        "trial",
        "workers",
    )

    def __init__(self, pool: str) -> None:
        if not POOL_NAME.match(pool):
            raise ValueError(
                f"{pool!r} is no pool name: letters, digits, '.', '_' and '-', at most 63, "
                "starting with a letter or digit"
            )
        self.pool = pool
        prefix = f"lb:{{{pool}}}:"
        self.members = prefix + "members"
        self.state = prefix + "state"
        self.order = prefix + "order"
        self.canary = prefix + "canary"
        self.queue = prefix + "queue"
        self.once = prefix + "once"
        self.once_until = prefix + "once_until"
        self.retries = prefix + "retries"
        self.secret = prefix + "secret"
        self.trial = prefix + "trial"
        self.workers = prefix + "workers"
        self.changes = prefix + "changes"
        self.decisions = prefix + "decisions"
        self.decided = prefix + "decided"

    def zones(self, names: Iterable[str]) -> tuple[str, ...]:
        """The keys of the orders of zones: for each its own, and that for a canary."""
        return tuple(f"{order}:{name}" for name in names for order in (self.order, self.canary))

    def lease(self, worker: str) -> str:
        """The key of what `worker` holds."""
        return f"lb:{{{self.pool}}}:lease:{worker}"

    def calls(self, worker: str) -> str:
        """The channel on which `worker` is told that whom it has in the queue may have a slot."""
        return f"{self.queue}:{worker}"
