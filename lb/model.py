"""What the fleet looks like: backends, pools, and one immutable snapshot of each pool.

Rules of this module: no I/O, no clock, no Redis. Values arrive as arguments, and every
type here is frozen; a change makes a new value, it never edits one that others hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit

import msgspec

Admin = Literal["ready", "drain"]
Health = Literal["unknown", "checking", "up", "down"]
Source = Literal["file", "api", "agent"]

#: What `lb status` shows, derived by `Backend.state`.
State = Literal["up", "down", "checking", "drain", "unknown", "ejected"]

MAX_WEIGHT = 1000
DEFAULT_PORTS = {"http": 80, "https": 443}


class Breaker(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the requests themselves have shown of a backend: its circuit breaker.

    Closed: it gets requests. Open: it is ejected, until `until`; from then on half-open: one request of the
    whole fleet probes it, which closes or opens it again. `since` is when it was opened or closed last,
    `times` how often it was opened in a row, `reason` why. Times in seconds since the epoch, by the store's
    clock.
    """

    open: bool = False
    since: float = 0.0
    until: float = 0.0
    times: int = 0
    reason: str = ""


CLOSED = Breaker()


class Backend(msgspec.Struct, frozen=True, omit_defaults=False):
    """One server of a pool, as kept in the shared state.

    `weight` 0…1000 (0: no new traffic); `max_connections` 0 means no cap; a `backup` serves when the
    others cannot; `since` is the time of the last change of `health`, in seconds since the epoch; `zone`:
    where it stands, "" for nowhere in particular.
    """

    id: str
    url: str
    weight: int = 1
    max_connections: int = 0
    source: Source = "api"
    admin: Admin = "ready"
    health: Health = "unknown"
    since: float = 0.0
    backup: bool = False
    zone: str = ""
    breaker: Breaker = CLOSED

    @property
    def available(self) -> bool:
        """May this backend receive new traffic, as far as it depends on itself alone?

        `unknown` counts as available: nobody probes it. `checking` does not: a health
        daemon runs and has not seen a first success yet. Nor does one that is ejected. What the other
        backends of the pool make of it is for `lb.algorithms.eligible` to say, and free slots only for the
        claiming step.
        """
        return self.admin == "ready" and self.weight > 0 and self.keeps_sessions

    @property
    def ejected(self) -> bool:
        """Does it get nothing only because requests have failed on it?"""
        healthy = self.health in ("unknown", "up")
        return self.breaker.open and healthy and self.admin == "ready" and self.weight > 0

    @property
    def keeps_sessions(self) -> bool:
        """May this backend serve clients that belong to it? Drained, or at weight 0, it goes on with them."""
        return self.health in ("unknown", "up") and not self.breaker.open

    @property
    def state(self) -> State:
        """One word for people: draining first, then what the probes say, then what requests have shown."""
        if self.admin == "drain":
            return "drain"
        return "ejected" if self.breaker.open and self.health in ("unknown", "up") else self.health


class HealthPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the backends of a pool are probed.

    `interval`, `timeout` in seconds (`interval` 0: the daemon's `--interval`); `jitter` is the
    share of the interval by which a probe may be early or late; `status` is a list of codes
    and ranges, such as "200-399,401".
    """

    type: Literal["http", "tcp"] = "http"
    path: str = "/"
    interval: float = 0.0
    timeout: float = 2.0
    rise: int = 2
    fall: int = 3
    status: str = "200-399"
    jitter: float = 0.1
    enabled: bool = True


class HashPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `consistent-hash` hashes: `key` is "ip", "path", "header:NAME" or "cookie:NAME"; a request without
    it is hashed by its address. `balance`: a backend may hold that many times its share of all connections
    before requests go on to the next one on the ring; 0: any number.
    """

    key: str = "ip"
    balance: float = 1.25


class ReportPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How `resource-based` takes what backends report. Times in seconds.

    A backend reports every `period`; what is older than three periods does not count, and its own weight
    does. A new backend's reports count after `blackout`.
    """

    period: float = 5.0
    blackout: float = 10.0


class QueuePolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Requests that wait while every backend is at its `max_connections`: how many in the whole fleet at most
    (0: none), for how many seconds, and for how many when not all can be served (0: a tenth of that).
    """

    size: int = 1024
    timeout: float = 5.0
    target: float = 0.0

    @property
    def patience(self) -> float:
        """Seconds that a request may wait when more come than can be served."""
        return min(self.target or self.timeout / 10, self.timeout)


class OutlierPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a backend is ejected for what became of the requests it was given, in the whole fleet. Times in
    seconds.

    Failures are attempts that were refused, reset, timed out or not HTTP, answers with an
    `unhealthy_status` (codes and ranges), and those whose head took longer than `unhealthy_latency` (0: any
    time). It takes `consecutive_failures` in a row (0: any number), or, among at least `min_requests` of a
    `window`, a share of successes below `success_rate` (0: never). The n-th ejection in a row lasts n times
    `base_ejection_time`, at most `max_ejection_time`; at most `max_ejected`, a share of the pool, are
    ejected, and nobody while no other one does better.
    """

    enabled: bool = True
    consecutive_failures: int = 5
    success_rate: float = 0.5
    min_requests: int = 20
    window: float = 10.0
    unhealthy_status: str = "502-504"
    unhealthy_latency: float = 0.0
    base_ejection_time: float = 30.0
    max_ejection_time: float = 300.0
    max_ejected: float = 0.5


class Canary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A second algorithm that is tried out: `share` of the picks (0 to 1) are its."""

    algorithm: str
    share: float


class PoolSettings(msgspec.Struct, frozen=True):
    """What the whole fleet must agree on for one pool; published with the membership.

    `configured` is the algorithm that a configuration last asked for: one that was switched live stays until
    a configuration asks for another. `panic_threshold`: share of the backends, 0 to 1, below which health
    does not count (see `lb.algorithms.eligible`). `slow_start`: seconds in which a backend that begins to
    serve gets up to its share; 0: it has it at once. `zone_threshold`: share of the backends of a zone,
    0 to 1, that must be available for its workers to keep to it.
    """

    algorithm: str = "round-robin"
    health: HealthPolicy = HealthPolicy()
    hash: HashPolicy = HashPolicy()
    report: ReportPolicy = ReportPolicy()
    canary: Canary | None = None
    configured: str = ""
    panic_threshold: float = 0.0
    slow_start: float = 0.0
    queue: QueuePolicy = QueuePolicy()
    zone_threshold: float = 0.7
    outlier: OutlierPolicy = OutlierPolicy()


class Snapshot(msgspec.Struct, frozen=True):
    """One version of a pool, replaced whole, never edited.

    `version` grows by one with each change; 0 stands for a pool nobody has written yet.
    """

    pool: str
    version: int
    settings: PoolSettings
    backends: Mapping[str, Backend]


def backend_id(url: str) -> str:
    """The name of a backend that was given none: its host and port, `host:port`.

    The same address always gets the same name, so two hosts that read the same
    configuration agree without asking each other. `https` backends end in `+tls`.
    """
    parts = urlsplit(url)
    if parts.scheme == "http+unix":
        return parts.netloc
    host = parts.hostname or ""
    if ":" in host:
        host = f"[{host}]"
    name = f"{host}:{parts.port or DEFAULT_PORTS[parts.scheme]}"
    return f"{name}+tls" if parts.scheme == "https" else name


def check_url(url: str) -> str:
    """Return `url` in its normal form, `scheme://host:port`, or raise ValueError saying why not."""
    if "@" in url:  # before any message that would repeat it
        raise ValueError("a backend URL must not carry a user name or a password")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise ValueError(f"{url!r} is not a URL: {exc}") from None
    if parts.scheme not in ("http", "https", "http+unix"):
        raise ValueError(f"{url!r} must start with http://, https:// or http+unix://")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"{url!r} must end after the host and port")
    if not parts.hostname or any(c.isspace() or ord(c) < 33 for c in url):
        raise ValueError(f"{url!r} has no host, or white space in it")
    if parts.scheme == "http+unix":
        return f"http+unix://{parts.netloc}"
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    if port == 0:
        raise ValueError(f"{url!r}: port 0 is no address to connect to")
    return f"{parts.scheme}://{host}:{port or DEFAULT_PORTS[parts.scheme]}"
