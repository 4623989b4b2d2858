"""The rows of the table of settings that say what a pool makes of failures."""

from __future__ import annotations

from lb.config_row import DAY, MIB, Setting

OUTLIER_ROWS: tuple[Setting, ...] = (
    Setting(
        "pools.NAME.outlier.enabled",
        "LB_OUTLIER_ENABLED",
        "are backends ejected on which requests fail: docs/reliability.md",
    ),
    Setting(
        "pools.NAME.outlier.consecutive_failures",
        "LB_OUTLIER_CONSECUTIVE_FAILURES",
        "failures in a row, in the whole fleet, after which a backend is ejected; 0: any number",
        high=1_000_000,
    ),
    Setting(
        "pools.NAME.outlier.success_rate",
        "LB_OUTLIER_SUCCESS_RATE",
        "share of its requests of a `window` that have succeeded, below which it is ejected; 0: never",
        "",
        0,
        1,
    ),
    Setting(
        "pools.NAME.outlier.min_requests",
        "LB_OUTLIER_MIN_REQUESTS",
        "requests of a `window` below which that share says nothing",
        low=1,
        high=1_000_000,
    ),
    Setting("pools.NAME.outlier.window", "LB_OUTLIER_WINDOW", "over how long it is counted", "s", 0.1, DAY),
    Setting(
        "pools.NAME.outlier.unhealthy_status",
        "LB_OUTLIER_UNHEALTHY_STATUS",
        "answers that are failures, beside attempts without one: codes and ranges of 500 to 599; empty: none",
    ),
    Setting(
        "pools.NAME.outlier.unhealthy_latency",
        "LB_OUTLIER_UNHEALTHY_LATENCY",
        "answers are failures, too, whose first byte takes longer; 0: none",
        "s",
        0,
        DAY,
    ),
    Setting(
        "pools.NAME.outlier.base_ejection_time",
        "LB_OUTLIER_BASE_EJECTION_TIME",
        "how long the first ejection lasts, before one request may probe the backend; the n-th in a row n "
        "times that",
        "s",
        0.1,
        DAY,
    ),
    Setting(
        "pools.NAME.outlier.max_ejection_time",
        "LB_OUTLIER_MAX_EJECTION_TIME",
        "how long one lasts at most; as long after its return a backend's ejections are forgotten",
        "s",
        0.1,
        DAY,
    ),
    Setting(
        "pools.NAME.outlier.max_ejected",
        "LB_OUTLIER_MAX_EJECTED",
        "share of the pool that may be ejected at a time, rounded down: of two backends one, of one none",
        "",
        0,
        1,
    ),
)

RETRY_ROWS: tuple[Setting, ...] = (
    Setting(
        "pools.NAME.retry.attempts",
        "LB_RETRY_ATTEMPTS",
        "backends tried for one request, the first included; 1: no retry",
        low=1,
        high=100,
    ),
    Setting(
        "pools.NAME.retry.max_body",
        "LB_RETRY_MAX_BODY",
        "the largest request body that is kept for another try",
        "bytes",
        0,
        64 * MIB,
    ),
    Setting(
        "pools.NAME.retry.on",
        "LB_RETRY_ON",
        "after what another backend is tried: `connect-failure`, `reset` (closed before an answer), "
        "`timeout` (no answer within `timeouts.response`), `invalid-response`, and statuses from 400 to 599, "
        "such as `503`; in the environment separated by commas",
    ),
    Setting(
        "pools.NAME.retry.budget",
        "LB_RETRY_BUDGET",
        "tries after the first at most, of what was sent before, as a share of the requests that the whole "
        "fleet had in the last ten seconds",
        "",
        0,
        100,
    ),
    Setting(
        "pools.NAME.retry.budget_min",
        "LB_RETRY_BUDGET_MIN",
        "how many of these may be in any case, a second on average over ten seconds",
        "1/s",
        0,
        1_000_000,
    ),
    Setting(
        "pools.NAME.retry.backoff",
        "LB_RETRY_BACKOFF",
        "the longest pause before the second try of what was sent before; it doubles with each try, and is "
        "drawn between 0 and that; 0: none",
        "s",
        0,
        60,
    ),
    Setting(
        "pools.NAME.retry.backoff_max",
        "LB_RETRY_BACKOFF_MAX",
        "the longest pause before any try",
        "s",
        0,
        60,
    ),
    Setting(
        "pools.NAME.hedge.enabled",
        "LB_HEDGE_ENABLED",
        "is a second backend asked for what is idempotent and has no body when the first is slow to answer, "
        "within the retry budget; the first answer wins (not under `gthread`)",
    ),
    Setting(
        "pools.NAME.hedge.after",
        "LB_HEDGE_AFTER",
        "how slow; 0: slower than 95 of 100 requests to the pool have been",
        "s",
        0,
        3600,
    ),
    Setting(
        "pools.NAME.idempotency.enabled",
        "LB_IDEMPOTENCY_ENABLED",
        "are requests with an `Idempotency-Key` carried out once only, and their answers kept to be repeated",
    ),
    Setting(
        "pools.NAME.idempotency.methods",
        "LB_IDEMPOTENCY_METHODS",
        "of which methods; in the environment separated by commas",
    ),
    Setting(
        "pools.NAME.idempotency.ttl", "LB_IDEMPOTENCY_TTL", "how long an answer is kept", "s", 1, 30 * DAY
    ),
    Setting(
        "pools.NAME.idempotency.max_body",
        "LB_IDEMPOTENCY_MAX_BODY",
        "the largest body of such a request; else 413",
        "bytes",
        0,
        64 * MIB,
    ),
    Setting(
        "pools.NAME.idempotency.max_answer",
        "LB_IDEMPOTENCY_MAX_ANSWER",
        "the largest answer that is kept, head and body; after a larger one repetitions are answered 409",
        "bytes",
        0,
        16 * MIB,
    ),
    Setting(
        "pools.NAME.idempotency.memory",
        "LB_IDEMPOTENCY_MEMORY",
        "how much all that is kept for the pool takes in the shared state; when that is full, requests with "
        "a new key are answered 503",
        "bytes",
        1024,
        1 << 40,
    ),
    Setting(
        "pools.NAME.idempotency.scope",
        "LB_IDEMPOTENCY_SCOPE",
        "what tells users apart, whose keys have nothing to do with each other: `header:NAME`, "
        "`cookie:NAME`, `ip`; a request that has none of it is told by its address; in the environment "
        "separated by commas",
    ),
    Setting(
        "pools.NAME.idempotency.store_away",
        "LB_IDEMPOTENCY_STORE_AWAY",
        "while the shared state is away: answer such requests 503, or pass them on without any guarantee",
        choices=("refuse", "pass"),
    ),
)
