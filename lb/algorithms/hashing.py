"""The algorithms that send equal keys to the same backend: `ip-hash` and `consistent-hash`.

Members with a weight above 0 stand on the ring (`lb.algorithms.ring`) also while they are not eligible, and
are passed over when a key is looked up: that gives the same backends as a ring without them, so one that
flaps rebuilds nothing. When most of a track are away, the walk would grow long; then those of
that track that are away are left out.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from weakref import WeakValueDictionary

from lb.algorithms.base import CANDIDATES, Algorithm, Chance, Order, Request, Rule
from lb.algorithms.ring import Ring, place, track_of
from lb.model import PoolSettings, Snapshot

BOUNDED_CANDIDATES = 8
"""How many backends are named where the first ones may have more than their share."""

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

# The ring of each pool, for as long as an algorithm holds it: the next snapshot's is made from it.
_rings: WeakValueDictionary[str, Ring] = WeakValueDictionary()


def check_key(text: str) -> str:
    """What `hash.key` may be: "ip", "path", "header:NAME" or "cookie:NAME"; else ValueError says how to mend
    it.
    """
    kind, colon, name = text.partition(":")
    if text not in ("ip", "path") and not (kind in ("header", "cookie") and colon and _NAME.fullmatch(name)):
        raise ValueError(f"{text!r} is nothing to hash by; write ip, path, header:NAME or cookie:NAME")
    return text


def normal_address(client: str) -> str:
    """One text for each client: an IPv4 address in an IPv6 one (RFC 4291, section 2.5.5.2) is that IPv4
    address.

    IPv6 addresses are taken whole, as IPv4 ones are: a network behind one prefix would be one client.
    """
    return _normal(client) if ":" in client else client


@lru_cache(maxsize=4096)
def _normal(client: str) -> str:
    try:
        address = ipaddress.IPv6Address(client.partition("%")[0])
    except ValueError:
        return client
    return str(address.ipv4_mapped or address)


def path_of(target: str) -> str:
    """The path of a request target (RFC 9112, section 3.2), without the query."""
    path = target.partition("?")[0]
    if not path.startswith("/"):
        _, scheme, rest = path.partition("://")
        if scheme:
            return "/" + rest.partition("/")[2]
    return path


class Hashed(Algorithm):
    """Names the backends of a key, nearest on the ring first. A subclass says what the key is."""

    order: Order = "weighted-turns"
    rule: Rule | None = "first"
    asks = True

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__(snapshot)
        members = {name: backend for name, backend in snapshot.backends.items() if backend.weight > 0}
        serving = self.eligible.names
        away = [name for name in members if name not in serving]
        there: dict[int, int] = {}
        for backend in members.values():
            track = track_of(backend.weight)
            there[track] = there.get(track, 0) + 1
        gone: dict[int, int] = {}
        for name in away:
            track = track_of(members[name].weight)
            gone[track] = gone.get(track, 0) + 1
        crowded = {track for track, count in gone.items() if 2 * count > there[track]}
        weights = {name: backend.weight for name, backend in members.items()}
        for name in away:
            if track_of(weights[name]) in crowded:
                del weights[name]
        before = _rings.get(snapshot.pool)
        self._ring = _rings[snapshot.pool] = Ring(weights) if before is None else before.changed(weights)
        numbers = self._ring.numbers
        self._away = frozenset(numbers[name] for name in away if name in weights)
        left = {track: count - gone.get(track, 0) for track, count in there.items()}
        self._there = {track: count for track, count in left.items() if count}
        self._wanted = CANDIDATES

    def key(self, request: Request) -> str:
        """What is hashed: the client's address."""
        return normal_address(request.client)

    def goes_by(self, request: Request) -> str:
        """The address that is hashed."""
        return f"ip {normal_address(request.client)}"

    def candidates(self, request: Request | None, chance: Chance) -> Sequence[str]:
        """The backends of the request's key."""
        if request is None or not self._there:
            return ()
        key = self.key(request).encode("utf-8", "surrogateescape")
        return self._ring.owners(place(key), self._wanted, self._away, self._there)


class IpHash(Hashed):
    """The same client, the same backend, while it is available and not full."""

    name = "ip-hash"


class ConsistentHash(Hashed):
    """The same key, the same backend, unless that holds more than its share of the connections.

    Bounded loads (Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2016): no
    backend gets more than `hash.balance` times its share of all connections, rounded up; what does not fit
    goes to the next one on the ring. When that holds for none of the candidates either, the least loaded
    backend is next (`order`), which is never above its share.
    """

    name = "consistent-hash"

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__(snapshot)
        self._kind, _, self._name = check_key(self.settings.hash.key).partition(":")
        if self.settings.hash.balance > 0:
            self.rule = "bounded"
            self._wanted = BOUNDED_CANDIDATES
        self.order = self.order_for(self.settings)

    @classmethod
    def order_for(cls, settings: PoolSettings) -> Order:
        """Where loads are bounded, who is at his bound gives way to the least loaded."""
        return "weighted-load" if settings.hash.balance > 0 else cls.order

    def key(self, request: Request) -> str:
        """What `hash.key` says; without it the client's address."""
        return self._own_key(request) or normal_address(request.client)

    def _own_key(self, request: Request) -> str:
        match self._kind:
            case "path":
                return path_of(request.target)
            case "header":
                return request.header(self._name)
            case "cookie":
                return request.cookie(self._name)
        return ""

    def goes_by(self, request: Request) -> str:
        """What is hashed. Fields and cookies may be secret: of those, a digest."""
        found = self._own_key(request)
        if not found:
            return super().goes_by(request)
        if self._kind == "path":
            return f"path {found[:256]}"
        digest = sha256(found.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        return f"{self._kind}:{self._name} #{digest}"
