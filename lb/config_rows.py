"""The rows of the table of settings: names, ranges and words for people.

Types and defaults stand in `lb.settings` only; what is made of the two is in `lb.config_table`. The rows of
pools and routes are in `lb.config_pool_rows`.
"""

from __future__ import annotations

from lb.config_pool_rows import POOL_ROWS
from lb.config_row import DAY, LOG_LEVELS, MIB, NAME, SECRET, Setting

__all__ = ("NAME", "SECRET", "TABLE", "Setting")

TABLE: tuple[Setting, ...] = (
    Setting("bind", "LB_BIND", "where clients connect: `host:port`, `[v6]:port` or `unix:/path`"),
    Setting(
        "control_bind",
        "LB_CONTROL_BIND",
        "where the control side answers (API, metrics, `/healthz`, `/readyz`); "
        "anything but loopback or `unix:` needs `control_token`",
    ),
    Setting(
        "control_token",
        "LB_CONTROL_TOKEN",
        "the bearer token that the control API asks for; empty: none (no flag: arguments are public)",
    ),
    Setting(
        "allowed_backends",
        "LB_ALLOWED_BACKENDS",
        "networks (CIDR) in which backends that are added by the control API must lie; "
        "in the environment separated by commas",
    ),
    Setting(
        "redis_url",
        "LB_REDIS_URL",
        "the shared state; empty: the embedded store in `runtime_dir`",
    ),
    Setting(
        "runtime_dir",
        "LB_RUNTIME_DIR",
        "socket and data of the embedded store; empty: `$XDG_RUNTIME_DIR/lb`, "
        "else a private folder of the user's under the temporary directory",
    ),
    Setting("workers", "LB_WORKERS", "worker processes; 0: one per core", high=1024),
    Setting(
        "zone",
        "LB_ZONE",
        "where this balancer stands: backends of its zone are preferred (docs/algorithms.md); empty: none is",
    ),
    Setting(
        "graceful_timeout",
        "LB_GRACEFUL_TIMEOUT",
        "how long a worker that is asked to stop may finish what it serves",
        "s",
        0,
        DAY,
    ),
    Setting(
        "drain_delay",
        "LB_DRAIN_DELAY",
        "how long a balancer that is sent TERM goes on accepting while `/readyz` says 503 already, so that "
        "whoever sends it traffic can take it out first",
        "s",
        0,
        DAY,
    ),
    Setting(
        "client.keepalive",
        "LB_CLIENT_KEEPALIVE",
        "how long a client's connection may idle between requests",
        "s",
        0.1,
        DAY,
    ),
    Setting(
        "client.header",
        "LB_CLIENT_HEADER_TIMEOUT",
        "how long the head of a request may take; else 408",
        "s",
        0.1,
        DAY,
    ),
    Setting(
        "client.idle",
        "LB_CLIENT_IDLE_TIMEOUT",
        "how long a client may pause while it sends or receives a body",
        "s",
        0.1,
        DAY,
    ),
    Setting(
        "client.request",
        "LB_CLIENT_REQUEST_TIMEOUT",
        "how long a request and its answer may take together; 0: any time",
        "s",
        0,
        DAY,
    ),
    Setting(
        "client.half_close",
        "LB_CLIENT_HALF_CLOSE",
        "how long a client that has ended its sending side may wait for its answer, or for more of it; "
        "0: it counts as gone",
        "s",
        0,
        DAY,
    ),
    Setting(
        "client.stream_close_delay",
        "LB_CLIENT_STREAM_CLOSE_DELAY",
        "how long a worker that is asked to stop keeps WebSockets and other upgraded connections open",
        "s",
        0,
        DAY,
    ),
    Setting(
        "client.connections",
        "LB_CLIENT_CONNECTIONS",
        "connections that one worker takes",
        low=1,
        high=1_000_000,
    ),
    Setting(
        "client.proxy_protocol",
        "LB_PROXY_PROTOCOL",
        "does every connection to the data listener begin with a PROXY protocol header, version 1 or 2",
    ),
    Setting("limits.request_line", "LB_LIMIT_REQUEST_LINE", "longest first line; else 414", "bytes", 64, MIB),
    Setting("limits.fields", "LB_LIMIT_FIELDS", "most fields of a request; else 431", low=1, high=200),
    Setting(
        "limits.field_size", "LB_LIMIT_FIELD_SIZE", "longest field of a request; else 431", "bytes", 64, MIB
    ),
    Setting("limits.head", "LB_LIMIT_HEAD", "longest head of a request; else 431", "bytes", 256, 16 * MIB),
    Setting(
        "limits.body", "LB_LIMIT_BODY", "longest body of a request, else 413; 0: any", "bytes", 0, 1 << 50
    ),
    Setting(
        "limits.requests",
        "LB_LIMIT_REQUESTS",
        "requests that one worker has under way (under `gthread` those that have a thread); beyond that they "
        "are answered 503",
        low=1,
        high=1_000_000,
    ),
    Setting(
        "limits.memory",
        "LB_LIMIT_MEMORY",
        "resident memory of one worker beyond which requests are answered 503, and idle connections closed "
        "(not under `gthread`); 0: any",
        "bytes",
        0,
        1 << 50,
    ),
    Setting(
        "limits.delay",
        "LB_LIMIT_DELAY",
        "how late the event loop of a worker may be, or how long a connection may wait to be accepted (under "
        "`gthread` for a thread), for a second on end, before some requests are answered 503; 0: any",
        "s",
        0,
        DAY,
    ),
    Setting(
        "tls.certificate",
        "LB_TLS_CERTIFICATE",
        "PEM file with the certificate that clients are shown, and those between it and its authority; "
        "empty: the data listener speaks plain HTTP",
    ),
    Setting("tls.key", "LB_TLS_KEY", "PEM file with its private key, without a passphrase"),
    Setting(
        "tls.min_version", "LB_TLS_MIN_VERSION", "the oldest version of TLS taken", choices=("1.2", "1.3")
    ),
    Setting("tls.http2", "LB_HTTP2", "are clients offered HTTP/2 (within TLS only, and not under `gthread`)"),
    Setting(
        "trusted_proxies",
        "LB_TRUSTED_PROXIES",
        "networks (CIDR) of proxies in front, whose `X-Forwarded-…`, `Forwarded` and `X-Request-Id` are "
        "believed; in the environment separated by commas",
    ),
    Setting("forwarded", "LB_FORWARDED", "is `Forwarded` (RFC 7239) sent to backends, too"),
    Setting(
        "log.access",
        "LB_ACCESS_LOG",
        "the access log, one JSON object a line: `-` standard output, `off`, else the path of a file",
    ),
    Setting("log.level", "LB_LOG_LEVEL", "of the error log", choices=LOG_LEVELS),
    Setting(
        "decisions.sample",
        "LB_DECISION_SAMPLE",
        "share of the requests of which is kept how they got their backend, besides those that fail "
        "(`lb explain`); 0: only of these",
        "",
        0,
        1,
    ),
    Setting(
        "decisions.rate",
        "LB_DECISION_RATE",
        "of how many of this share a second at most, in each worker and pool; 0: any number",
        "1/s",
        0,
        1_000_000,
    ),
    Setting("decisions.keep", "LB_DECISION_KEEP", "how long it is kept", "s", 1, DAY),
    Setting(
        "decisions.size", "LB_DECISION_SIZE", "of how many requests of a pool, the last", low=1, high=100_000
    ),
    Setting(
        "decisions.header",
        "LB_DECISION_HEADER",
        "the name of a field of answers, such as `X-LB-Decision`, that names backend and algorithm; "
        "empty: none",
    ),
    Setting(
        "decisions.header_for",
        "LB_DECISION_HEADER_FOR",
        "networks (CIDR) of the clients that get it; in the environment separated by commas",
    ),
    *POOL_ROWS,
)
