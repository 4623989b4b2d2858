"""Every setting, with its unit and default: the types that a configuration is read into.

Values only; how a file, the environment and flags become these is in `lb.config`.
Times are seconds, sizes are bytes, 0 switches a limit off where the table says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from lb.model import HashPolicy, HealthPolicy, OutlierPolicy, QueuePolicy, ReportPolicy


class BackendSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One backend as configured. `id` "" means: named after its address."""

    url: str
    weight: int = 1
    max_connections: int = 0
    id: str = ""
    backup: bool = False
    zone: str = ""


RETRY_ON = ("connect-failure", "reset", "timeout", "invalid-response")
"""The words of `retry.on` besides statuses; each error has its own (`lb.errors.UpstreamError.retry_on`)."""


class RetrySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether and how often a request is tried on another backend.

    `attempts` counts all tries, the first included; `max_body` is the largest request body
    that is kept for a second try. `on`: after what (see `lb.proxy.retry`). `budget`: tries after the first,
    of requests of which something was sent, as a share of the fleet's requests; `budget_min`: how many a
    second may be in any case. `backoff`, `backoff_max`: the longest pause before the second try, which
    doubles with each one, and the longest there is.
    """

    attempts: int = 3
    max_body: int = 65536
    on: tuple[str, ...] = RETRY_ON
    budget: float = 0.2
    budget_min: float = 3.0
    backoff: float = 0.025
    backoff_max: float = 0.25


class HedgeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Is a second backend asked when the first is slow? `after`: how slow, in seconds; 0: slower than 95 of
    100 requests of the pool have been.
    """

    enabled: bool = False
    after: float = 0.0


class IdempotencySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Requests with an `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header): are they carried out
    once only, of which methods, for how many seconds is the answer kept; the largest request body and answer,
    and how much all of a pool take in the shared state, in bytes. `scope`: what tells users apart
    ("header:NAME", "cookie:NAME", "ip"); `store_away`: what becomes of them while nobody can tell.
    """

    enabled: bool = False
    methods: tuple[str, ...] = ("POST", "PATCH")
    ttl: float = 86400.0
    max_body: int = 65536
    max_answer: int = 65536
    memory: int = 67108864
    scope: tuple[str, ...] = ("header:Authorization", "header:Cookie")
    store_away: Literal["refuse", "pass"] = "refuse"


class TimeoutSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Towards backends: to connect; to the first byte of the answer; between two bytes of a body; between two
    bytes, in either direction, of a connection that carries another protocol (a WebSocket).
    """

    connect: float = 5.0
    response: float = 60.0
    idle: float = 300.0
    tunnel: float = 3600.0


class UpstreamSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Kept-alive connections to each backend, per worker: how many may idle, and how long.

    nginx and Go's servers close idle connections after 60–75 s and more; staying below what
    backends use avoids most races with their close.
    """

    max_idle: int = 256
    idle_timeout: float = 30.0


class ClientSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Towards clients: how long a kept-alive connection may idle, how long a head may take,
    how long a body may pause, and how many connections one worker takes.
    """

    keepalive: float = 180.0
    header: float = 10.0
    idle: float = 60.0
    request: float = 0.0
    half_close: float = 5.0
    stream_close_delay: float = 30.0
    connections: int = 20000
    proxy_protocol: bool = False


class LimitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How large a request may be: bytes of its first line, of one field, of the whole head, of the body
    (0: any number), and how many fields. And how much one worker takes upon itself: requests under way, bytes
    of memory, seconds that its event loop, or whoever waits to be accepted, may be late (0: any number).
    """

    request_line: int = 8190
    fields: int = 100
    field_size: int = 8190
    head: int = 65536
    body: int = 0
    requests: int = 20000
    memory: int = 0
    delay: float = 5.0


class TlsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Towards clients, on the data listener: PEM files, "" for plain HTTP; which versions and protocols."""

    certificate: str = ""
    key: str = ""
    min_version: Literal["1.2", "1.3"] = "1.2"
    http2: bool = True


class UpstreamTls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Towards `https://` backends: whom to trust, who we are, whom to ask for ("": the host of the URL)."""

    verify: bool = True
    ca: str = ""
    certificate: str = ""
    key: str = ""
    server_name: str = ""


class FieldEdits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a route changes in a head: `set` replaces all fields of a name, `add` appends one, `remove` takes
    all out.
    """

    set: Mapping[str, str] = msgspec.field(default_factory=dict)
    add: Mapping[str, str] = msgspec.field(default_factory=dict)
    remove: tuple[str, ...] = ()


class StickySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The cookie that keeps a client at its backend: its name ("": there is none), its lifetime in whole
    seconds (0: until the browser ends), its attributes, and what signs it ("": what the fleet has agreed on).
    """

    cookie: str = ""
    ttl: int = 0
    same_site: Literal["", "lax", "strict", "none"] = "lax"
    secure: Literal["auto", "always", "never"] = "auto"
    http_only: bool = True
    path: str = "/"
    secret: str = ""


class PoolConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `[pools.NAME]`. Timeouts, retries, hedges, idempotency keys and the sticky cookie hold for this
    process; algorithm, backends, health, hash, report, panic_threshold, slow_start, zone_threshold, queue and
    outlier are published to the fleet.
    """

    algorithm: str = "round-robin"
    backends: tuple[BackendSpec, ...] = ()
    health: HealthPolicy = HealthPolicy()
    hash: HashPolicy = HashPolicy()
    report: ReportPolicy = ReportPolicy()
    panic_threshold: float = 0.0
    slow_start: float = 0.0
    queue: QueuePolicy = QueuePolicy()
    zone_threshold: float = 0.7
    outlier: OutlierPolicy = OutlierPolicy()
    sticky: StickySettings = StickySettings()
    retry: RetrySettings = RetrySettings()
    hedge: HedgeSettings = HedgeSettings()
    idempotency: IdempotencySettings = IdempotencySettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    upstream: UpstreamSettings = UpstreamSettings()
    tls: UpstreamTls = UpstreamTls()
    host: str = ""


class Route(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `[[routes]]`: requests for `host` ("" any, "*.example.com" a suffix) whose path starts with
    `path` go to `pool`.
    """

    pool: str = ""
    host: str = ""
    path: str = "/"
    strip_prefix: bool = False
    redirect: str = ""
    request: FieldEdits = FieldEdits()
    response: FieldEdits = FieldEdits()


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`access`: "-" standard output, "" off, else a file's path. `level`: of the error log."""

    access: str = "-"
    level: str = "info"


class DecisionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of how requests got their backends: of which share of all requests (besides those that
    fail), of how many of these a second at most in each worker and pool (0: any number), for how many
    seconds, and of how many in each pool; the field of answers that says who gave them ("": none), and the
    networks of the clients that get it.
    """

    sample: float = 0.01
    rate: float = 1.0
    keep: float = 600.0
    size: int = 2000
    header: str = ""
    header_for: tuple[str, ...] = ("127.0.0.0/8", "::1/128")


PRIVATE_NETWORKS = (
    "127.0.0.0/8",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
)
"""Loopback and private addresses (RFC 1918, RFC 4193), and the link-local ones of IPv6; not those of IPv4
(169.254.0.0/16), behind which clouds keep the credentials of their machines.
"""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole configuration of one process. `redis_url` "" means the embedded store in `runtime_dir`;
    `runtime_dir` "" means the user's own (see `lb.state.embedded`); `workers` 0 means one per core; `zone` ""
    means that backends of all zones are alike to it.
    """

    bind: str = "0.0.0.0:8000"
    control_bind: str = "127.0.0.1:8001"
    control_token: str = ""
    allowed_backends: tuple[str, ...] = PRIVATE_NETWORKS
    redis_url: str = ""
    runtime_dir: str = ""
    workers: int = 0
    zone: str = ""
    graceful_timeout: float = 30.0
    drain_delay: float = 0.0
    client: ClientSettings = ClientSettings()
    limits: LimitSettings = LimitSettings()
    tls: TlsSettings = TlsSettings()
    trusted_proxies: tuple[str, ...] = ()
    forwarded: bool = False
    log: LogSettings = LogSettings()
    decisions: DecisionSettings = DecisionSettings()
    pools: Mapping[str, PoolConfig] = msgspec.field(default_factory=dict)
    routes: tuple[Route, ...] = ()
