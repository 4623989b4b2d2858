"""What an algorithm is: who should get a request, best first.

Rules of this package: no I/O, no clock, no Redis; time and chance arrive as arguments. An algorithm is made
anew from each snapshot of its pool and is never changed. It returns an order of candidates, not one backend:
a retry asks for the next. It sees eligible backends only (`lb.algorithms.eligible`); counts and caps of the
whole fleet are known to the shared state alone, which takes the first candidate that has a free slot, or the
one with the least of what `rule` says, in one atomic step (`redis/claim.lua`).

An algorithm without a `rule` leaves the choice to the order that the shared state keeps for the pool
(`order`). For the others that order says who is next when none of the candidates may take the request.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import ClassVar, Literal, Protocol

from lb.algorithms.eligible import Eligible, eligible
from lb.model import Backend, PoolSettings, Snapshot

Order = Literal["turns", "weighted-turns", "reported-turns", "load", "weighted-load"]
"""How the shared state keeps the order of a pool: by turns (round robin), by turns over weights, over weights
that follow from what backends report, by connections under way, by those over weights."""

Rule = Literal["first", "least-load", "least-time", "bounded"]
"""Which candidate is taken, of those that have a free slot; of equal ones the first that was named.

"first": the first. "least-load": the one with the fewest connections over its weight. "least-time": the one
with the least peak EWMA of its latency times its connections, the new one included; one that was never
measured counts as 0 while it has no connections, and as the worst once it has. "bounded": the first that with
the new connection holds at most `hash.balance` times its share of all connections, rounded up; its share goes
by weight."""

Chance = Callable[[], float]
"""A number in [0, 1), another one at each call."""

CANDIDATES = 3
"""How many candidates are worth naming where the first will nearly always do."""


class Request(Protocol):
    """What an algorithm may look at. Names of fields are matched as HTTP matches them, those of cookies
    exactly.
    """

    @property
    def client(self) -> str:
        """The client's address, without port; "" for a unix socket."""
        ...

    @property
    def target(self) -> str:
        """The request target as it came: path and query."""
        ...

    def header(self, name: str) -> str:
        """The value of a field, repeated ones joined by ", "; "" if there is none."""
        ...

    def cookie(self, name: str) -> str:
        """The value of a cookie; "" if there is none."""
        ...


class Algorithm(ABC):
    """Base of all algorithms. A subclass sets `name`, and either `order` alone, or `rule` and
    `candidates`.
    """

    #: What it is called in settings and on the command line.
    name: ClassVar[str]
    order: Order = "turns"
    rule: Rule | None = None
    #: Does it look at the request? `candidates` gets None otherwise: making one costs time.
    asks: bool = False

    def __init__(self, snapshot: Snapshot) -> None:
        """`snapshot`: the pool as it is from now on, with its settings."""
        self.snapshot = snapshot
        self.settings = snapshot.settings

    @cached_property
    def available(self) -> Sequence[Backend]:
        """The backends that may receive traffic, in the order of their ids; each has a weight above 0."""
        return [self.snapshot.backends[name] for name in sorted(self.eligible.names)]

    @cached_property
    def eligible(self) -> Eligible:
        """Who gets requests, worked out once for the snapshot."""
        return eligible(self.snapshot)

    @classmethod
    def order_for(cls, settings: PoolSettings) -> Order:  # noqa: ARG003 - for those it depends on
        """The order that the shared state keeps for a pool with these settings."""
        return cls.order

    def goes_by(self, request: Request) -> str:
        """What of the request the choice goes by, in words for people who ask why; "" nothing."""
        return ""

    def candidates(self, request: Request | None, chance: Chance) -> Sequence[str]:
        """Ids of backends, best first, each at most once; may be empty."""
        return ()
