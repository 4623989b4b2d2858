"""The rows of the table of settings that are for one pool, its backends, and the routes."""

from __future__ import annotations

from lb.algorithms import ALGORITHMS
from lb.config_fault_rows import OUTLIER_ROWS, RETRY_ROWS
from lb.config_row import DAY, Setting

POOL_ROWS: tuple[Setting, ...] = (
    Setting(
        "pools.NAME.algorithm",
        "LB_ALGORITHM",
        "how a backend is chosen: docs/algorithms.md; or one that an installed package brings",
        choices=ALGORITHMS,
    ),
    Setting(
        "pools.NAME.hash.key",
        "LB_HASH_KEY",
        "what `consistent-hash` goes by: `ip`, `path`, `header:NAME` or `cookie:NAME`; without it, `ip`",
    ),
    Setting(
        "pools.NAME.hash.balance",
        "LB_HASH_BALANCE",
        "how many times its share of all connections a backend may hold before `consistent-hash` goes on to "
        "another; 0: any number",
        "",
        0,
        100,
    ),
    Setting(
        "pools.NAME.report.period",
        "LB_REPORT_PERIOD",
        "how often backends report for `resource-based`; a report counts for three times that",
        "s",
        0.1,
        DAY,
    ),
    Setting(
        "pools.NAME.report.blackout",
        "LB_REPORT_BLACKOUT",
        "how long the reports of a backend do not count that has just begun to report",
        "s",
        0,
        DAY,
    ),
    Setting(
        "pools.NAME.panic_threshold",
        "LB_PANIC_THRESHOLD",
        "share of the backends: when fewer are healthy and no backup is, all get requests, whatever their "
        "health; 0: never",
        "",
        0,
        1,
    ),
    Setting(
        "pools.NAME.slow_start",
        "LB_SLOW_START",
        "how long a backend that comes (back) to a serving pool takes to get its full share; 0: it has that "
        "at once",
        "s",
        0,
        DAY,
    ),
    Setting(
        "pools.NAME.queue.size",
        "LB_QUEUE_SIZE",
        "requests that may wait, in the whole fleet, while every backend is at its `max_connections`; beyond "
        "that they are answered 503 at once",
        high=100_000,
    ),
    Setting(
        "pools.NAME.queue.timeout",
        "LB_QUEUE_TIMEOUT",
        "how long a request may wait so before it is answered 503",
        "s",
        0.001,
        DAY,
    ),
    Setting(
        "pools.NAME.queue.target",
        "LB_QUEUE_TARGET",
        "how long it may while more requests come than can be served, that is since one has waited in vain; "
        "0: a tenth of `queue.timeout`",
        "s",
        0,
        DAY,
    ),
    Setting(
        "pools.NAME.zone_threshold",
        "LB_ZONE_THRESHOLD",
        "share of the backends of a zone: while fewer are available, balancers of that zone use all zones",
        "",
        0,
        1,
    ),
    *OUTLIER_ROWS,
    Setting(
        "pools.NAME.sticky.cookie",
        "LB_STICKY_COOKIE",
        "the name of a cookie that keeps a client at its backend: docs/algorithms.md; empty: none",
    ),
    Setting(
        "pools.NAME.sticky.ttl",
        "LB_STICKY_TTL",
        "how long it counts, prolonged while the client comes back; 0: until the browser ends",
        "s",
        high=400 * DAY,
    ),
    Setting(
        "pools.NAME.sticky.same_site",
        "LB_STICKY_SAME_SITE",
        "its `SameSite`; empty: not said",
        choices=("lax", "strict", "none", ""),
    ),
    Setting(
        "pools.NAME.sticky.secure",
        "LB_STICKY_SECURE",
        "is it `Secure`; `auto`: for clients that come by https",
        choices=("auto", "always", "never"),
    ),
    Setting("pools.NAME.sticky.http_only", "LB_STICKY_HTTP_ONLY", "is it `HttpOnly`: kept from scripts"),
    Setting("pools.NAME.sticky.path", "LB_STICKY_PATH", "its `Path`: below which paths browsers send it"),
    Setting(
        "pools.NAME.sticky.secret",
        "LB_STICKY_SECRET",
        "what it is signed with, the same for all balancers; empty: made once, and kept in the shared state",
    ),
    Setting(
        "pools.NAME.backends",
        "LB_BACKENDS",
        "the servers; in the environment `URL[;weight=N][;max_connections=N][;backup=true][;zone=ZONE]`, "
        "separated by commas, in place of those of the file",
    ),
    Setting(
        "pools.NAME.backends[].url", "", "`http://host:port`, `https://host:port` or `http+unix://%2Fpath`"
    ),
    Setting("pools.NAME.backends[].weight", "", "its share of the traffic; 0: no new traffic", high=1000),
    Setting(
        "pools.NAME.backends[].max_connections",
        "",
        "connections at a time from the whole fleet; 0: no cap",
        high=1_000_000,
    ),
    Setting("pools.NAME.backends[].id", "", "its name; empty: `host:port` of its URL"),
    Setting("pools.NAME.backends[].backup", "", "does it get requests only when the others cannot take them"),
    Setting("pools.NAME.backends[].zone", "", "where it stands; empty: in no zone"),
    Setting("pools.NAME.timeouts.connect", "LB_CONNECT_TIMEOUT", "to connect to a backend", "s", 0.001, DAY),
    Setting(
        "pools.NAME.timeouts.response",
        "LB_RESPONSE_TIMEOUT",
        "from the end of the request to the first byte of the answer",
        "s",
        0.001,
        DAY,
    ),
    Setting(
        "pools.NAME.timeouts.idle",
        "LB_IDLE_TIMEOUT",
        "between two bytes of a body to or from a backend",
        "s",
        0.001,
        DAY,
    ),
    Setting(
        "pools.NAME.timeouts.tunnel",
        "LB_TUNNEL_TIMEOUT",
        "between two bytes, in either direction, of a WebSocket or another upgraded connection",
        "s",
        0.001,
        30 * DAY,
    ),
    *RETRY_ROWS,
    Setting(
        "pools.NAME.upstream.max_idle",
        "LB_UPSTREAM_MAX_IDLE",
        "kept-alive connections to each backend that may idle in each worker; 0: none is kept",
        high=100_000,
    ),
    Setting(
        "pools.NAME.upstream.idle_timeout",
        "LB_UPSTREAM_IDLE_TIMEOUT",
        "how long such a connection may idle",
        "s",
        0.1,
        DAY,
    ),
    Setting(
        "pools.NAME.host",
        "LB_UPSTREAM_HOST",
        "the `Host` that backends are sent: empty for the client's own, `backend` for that of the backend's "
        "URL, else this one",
    ),
    Setting(
        "pools.NAME.tls.verify",
        "LB_UPSTREAM_TLS_VERIFY",
        "are the certificates of `https://` backends checked",
    ),
    Setting(
        "pools.NAME.tls.ca",
        "LB_UPSTREAM_TLS_CA",
        "PEM file with the authorities for that; empty: the system's, or those that `REQUESTS_CA_BUNDLE` or "
        "`SSL_CERT_FILE` names",
    ),
    Setting(
        "pools.NAME.tls.certificate",
        "LB_UPSTREAM_TLS_CERTIFICATE",
        "PEM file with the certificate shown to backends",
    ),
    Setting("pools.NAME.tls.key", "LB_UPSTREAM_TLS_KEY", "PEM file with its private key"),
    Setting(
        "pools.NAME.tls.server_name",
        "LB_UPSTREAM_TLS_SERVER_NAME",
        "the name that backends are asked for (SNI) and whose certificate they must have; empty: the host of "
        "each one's URL",
    ),
    Setting("pools.NAME.health.enabled", "LB_HEALTH_ENABLED", "are the backends probed"),
    Setting(
        "pools.NAME.health.type", "LB_HEALTH_TYPE", "ask over HTTP, or only connect", choices=("http", "tcp")
    ),
    Setting("pools.NAME.health.path", "LB_HEALTH_PATH", "what an HTTP probe asks for"),
    Setting(
        "pools.NAME.health.status", "LB_HEALTH_STATUS", "the answers that are a success: codes and ranges"
    ),
    Setting(
        "pools.NAME.health.interval",
        "LB_HEALTH_INTERVAL",
        "time between two probes of a backend; 0: what `lb-health --interval` says",
        "s",
        0,
        DAY,
    ),
    Setting("pools.NAME.health.timeout", "LB_HEALTH_TIMEOUT", "of one probe", "s", 0.001, DAY),
    Setting(
        "pools.NAME.health.jitter",
        "LB_HEALTH_JITTER",
        "by how much a probe may be early or late",
        "share of the interval",
        0,
        1,
    ),
    Setting(
        "pools.NAME.health.rise", "LB_HEALTH_RISE", "successes in a row that make it up", low=1, high=1000
    ),
    Setting(
        "pools.NAME.health.fall", "LB_HEALTH_FALL", "failures in a row that make it down", low=1, high=1000
    ),
    Setting("routes[].pool", "", "the pool that gets the requests; left out for a redirect"),
    Setting("routes[].host", "", "`www.example.com`, `*.example.com` for all names under it; empty: any"),
    Setting("routes[].path", "", "what the path must start with, in whole segments"),
    Setting("routes[].strip_prefix", "", "is `path` taken off before the request goes on"),
    Setting(
        "routes[].redirect",
        "",
        "`https`: requests over plain HTTP are sent there (308)",
        choices=("", "https"),
    ),
    Setting("routes[].request.set", "", "fields of the request that replace all of their name"),
    Setting("routes[].request.add", "", "fields that are added to the request"),
    Setting("routes[].request.remove", "", "names of fields that are taken out of the request"),
    Setting("routes[].response.set", "", "fields of the answer that replace all of their name"),
    Setting("routes[].response.add", "", "fields that are added to the answer"),
    Setting("routes[].response.remove", "", "names of fields that are taken out of the answer"),
)
