"""One backend is slow: with hedges nobody waits for it, and backends get no more than the retry budget."""

from __future__ import annotations

import pytest

from tests.faults.test_reload import KINDS
from tests.support.clients import Load, get
from tests.support.processes import System
from tests.support.run import eventually

TOTAL = 200


def test_nobody_waits_for_a_slow_backend(system: System) -> None:
    store = system.store()
    slow = system.plain_backend(delay=10)
    others = [system.plain_backend() for _ in range(4)]
    env = {"LB_HEDGE_ENABLED": "true", "LB_HEDGE_AFTER": "0.2", "LB_RETRY_BUDGET": "1"}
    urls = ",".join(one.url for one in (slow, *others))
    balancers = [system.balancer(store=store.url, backends=urls, workers=2, env=env) for _ in range(2)]
    load = Load([one.port for one in balancers], 8, total=TOTAL, checked=True).run()
    assert load.failures == []
    eventually(lambda: sum(len(one.log) for one in balancers) == TOTAL, "the access logs")
    asked, answered = slow.counts()["/"], [entry["backend"] for one in balancers for entry in one.log]
    # Round robin has sent it a fifth, and hedges a few more; each was answered by another one.
    assert asked >= TOTAL / 5
    assert slow.id not in answered
    sent = asked + sum(one.counts()["/"] for one in others)
    assert TOTAL + TOTAL / 5 <= sent <= 2 * TOTAL
    for one in balancers:
        one.idle()  # also of those that were outrun


def test_hedges_never_exceed_the_budget(system: System) -> None:
    store = system.store()
    env = {
        "LB_HEDGE_ENABLED": "true",
        "LB_HEDGE_AFTER": "0.005",
        "LB_RETRY_BUDGET": "0.1",
        "LB_RETRY_BUDGET_MIN": "0",
    }
    backends = [system.plain_backend(delay=0.05) for _ in range(3)]
    urls = ",".join(one.url for one in backends)
    balancers = [system.balancer(store=store.url, backends=urls, workers=2, env=env) for _ in range(2)]
    load = Load([one.port for one in balancers], 16, total=3 * TOTAL, checked=True).run()
    assert load.failures == []
    sent = sum(one.counts()["/"] for one in backends)
    assert 3 * TOTAL < sent <= 1.1 * 3 * TOTAL


@pytest.mark.parametrize("worker", KINDS)
def test_the_slowest_twentieth_is_known(system: System, worker: str) -> None:
    """Without `hedge.after` the requests before say what slow is. Under gthread there are no hedges."""
    backends = [system.plain_backend(delay=0.01) for _ in range(2)]
    balancer = system.balancer(
        backends=",".join(one.url for one in backends),
        worker=worker,
        env={"LB_HEDGE_ENABLED": "true", "LB_RETRY_BUDGET": "1"},
    )
    load = Load([balancer.port], 4, total=150, checked=True).run()
    assert load.failures == []
    before = sum(one.counts().get("/slow", 0) for one in backends)
    assert get(balancer.port, "/slow?2000").body == b"ok"
    after = sum(one.counts().get("/slow", 0) for one in backends)
    assert after - before == (2 if worker == "gevent" else 1)
    assert ("there are no hedges under gthread" in balancer.process.err) == (worker == "gthread")
