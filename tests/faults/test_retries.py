"""Every backend of a pool fails: retries do not multiply the load, and one that works is found all the same.

What is promised is counted at the backends, over two balancers that share one store.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.faults.test_reload import KINDS
from tests.support.backends import answer_of, close_unanswered, ok, serve, several
from tests.support.clients import Client, Load
from tests.support.processes import Balancer, Store, System
from tests.support.run import eventually

RETRY = {"LB_RETRY_BUDGET_MIN": "0", "LB_RETRY_BACKOFF": "0.005"}
TOTAL = 600


def pair(system: System, store: Store, backends: str, worker: str, **env: str) -> list[Balancer]:
    """Two balancers, each with two workers, on one store."""
    more = RETRY | env
    return [
        system.balancer(store=store.url, backends=backends, workers=2, worker=worker, env=more)
        for _ in range(2)
    ]


def codes(balancers: list[Balancer], total: int) -> Counter[str]:
    """The codes of the access logs, once all `total` entries are there."""
    eventually(lambda: sum(len(one.log) for one in balancers) >= total, "the access logs")
    return Counter(entry.get("code", "") for one in balancers for entry in one.log)


@pytest.mark.parametrize("worker", KINDS)
def test_a_pool_that_fails_whole_gets_no_more_than_the_budget(system: System, worker: str) -> None:
    store = system.store()
    with several(*[close_unanswered] * 3) as backends:
        balancers = pair(system, store, ",".join(one.url for one in backends), worker)
        load = Load([one.port for one in balancers], 16, total=TOTAL, wanted=502).run()
        assert load.failures == []
        sent = sum(len(one.requests) for one in backends)
        # With three tries each it would be three times as many. The share holds for every ten seconds, so it
        # holds for the whole.
        assert TOTAL < sent <= 1.2 * TOTAL
        found = codes(balancers, TOTAL)
        assert found["retry_budget"] >= 0.8 * TOTAL
        assert found["retry_budget"] + found["upstream_closed"] == TOTAL
        for one in balancers:
            one.idle()


@pytest.mark.parametrize("worker", KINDS)
def test_busy_answers_are_passed_on_when_the_budget_is_used_up(system: System, worker: str) -> None:
    store = system.store()
    with several(*[serve(answer_of(503, b"busy"))] * 3) as backends:
        balancers = pair(
            system, store, ",".join(one.url for one in backends), worker, LB_RETRY_ON="503,connect-failure"
        )
        load = Load([one.port for one in balancers], 16, total=TOTAL, wanted=503).run()
        assert load.failures == []
        sent = sum(len(one.requests) for one in backends)
        assert TOTAL < sent <= 1.2 * TOTAL
        assert codes(balancers, TOTAL)["retry_budget"] >= 0.8 * TOTAL


@pytest.mark.parametrize("worker", KINDS)
def test_without_the_store_each_worker_has_its_own_budget(system: System, worker: str) -> None:
    store = system.store()
    with several(*[close_unanswered] * 2) as backends:
        balancers = pair(system, store, ",".join(one.url for one in backends), worker)
        store.stop()
        for one in balancers:
            eventually(lambda one=one: one.readyz()["status"] == "degraded", "it to be noticed")  # type: ignore[misc]
        Load([one.port for one in balancers], 16, total=TOTAL, wanted=502).run()
        sent = sum(len(one.requests) for one in backends)
        assert TOTAL < sent <= 1.2 * TOTAL


@pytest.mark.parametrize("worker", KINDS)
def test_one_backend_of_three_is_busy(system: System, worker: str) -> None:
    """Its answers are dropped, and those who asked get another backend's."""
    busy = serve(answer_of(503, b"busy"))
    with several(busy, serve(ok(b"fine")), serve(ok(b"fine"))) as backends:
        balancer = system.balancer(
            backends=",".join(one.url for one in backends),
            worker=worker,
            env={"LB_RETRY_ON": "503", "LB_RETRY_BUDGET": "1", "LB_OUTLIER_ENABLED": "false"},
        )
        with Client(balancer.port) as client:
            for turn in range(30):
                answer = client.get(f"/{turn}")
                assert (answer.status, answer.body) == (200, b"fine")
            posted = [client.call("POST", "/p", b"x").status for _ in range(6)]
        assert posted.count(503) == 2  # never sent twice
        assert [one.method for one in backends[0].requests].count("POST") == 2
        balancer.idle()
