"""Who serves when backends go away, in a running fleet: backups, and everybody in a panic."""

from __future__ import annotations

import time

import pytest

from tests.support.clients import Load, get
from tests.support.processes import System
from tests.support.run import eventually


@pytest.mark.parametrize("worker", ["gevent", "gthread"])
def test_backups_take_over_from_the_last_primary_and_give_back(system: System, worker: str) -> None:
    """Killed under load, found down, started again: nobody notices."""
    first, second, backup = (system.plain_backend() for _ in range(3))
    urls = f"{first.url},{second.url},{backup.url};backup=true"
    env = {"LB_HEALTH_PATH": "/", "LB_HEALTH_FALL": "3", "LB_HEALTH_RISE": "1"}
    balancer = system.balancer(backends=urls, workers=2, worker=worker, env=env)
    system.health(balancer, 0.2)
    eventually(lambda: set(balancer.view.states().values()) == {"up"}, "all to be up")
    waiting = balancer.view.counts()[backup.id]
    with Load([balancer.port], 8, "/x").running() as load:
        eventually(lambda: load.done > 50, "some requests")
        assert balancer.view.counts()[backup.id] == waiting == 0
        first.kill()
        second.kill()
        eventually(lambda: balancer.view.registry.pool_status("default").mode == "backup", "backups to serve")
        done = load.done
        eventually(lambda: load.done > done + 50, "requests served by the backup")
        again = system.plain_backend(first.port)
        eventually(
            lambda: balancer.view.registry.pool_status("default").mode == "normal", "the first to be up"
        )
        eventually(lambda: again.counts().get("/x", 0) > 50, "requests served by the first again")
        before = backup.counts()["/x"]
        done = load.done
        eventually(lambda: load.done > done + 100, "more requests")
        # Only what was claimed before the change may still arrive.
        assert backup.counts()["/x"] - before <= 8
    assert load.failures == []
    assert set(load.statuses) == {200}
    log = balancer.process.err
    assert "pool default: backups serve: 1 of 3 backends get requests" in log
    assert "pool default: backends serve as usual again: 1 of 3 backends get requests" in log
    balancer.idle()


def test_in_a_panic_all_serve_whatever_their_health(system: System) -> None:
    """Probes fail for most, though the backends work: the prober is wrong, and nobody is run over."""
    backends = [system.plain_backend() for _ in range(3)]
    env = {
        "LB_HEALTH_STATUS": "201",
        "LB_HEALTH_FALL": "1",
        "LB_PANIC_THRESHOLD": "0.5",
        "LB_HEALTH_RISE": "1",
    }
    balancer = system.balancer(backends=",".join(each.url for each in backends), env=env)
    with Load([balancer.port], 4, "/x").running() as load:
        eventually(lambda: load.done > 20, "some requests")
        system.health(balancer, 0.2)
        eventually(lambda: set(balancer.view.states().values()) == {"down"}, "all to be down")
        eventually(lambda: "panic: fewer than 0.5 of the backends" in balancer.process.err, "a log line")
        done = load.done
        eventually(lambda: load.done > done + 60, "requests in a panic")
    assert load.failures == []
    assert balancer.view.registry.pool_status("default").mode == "panic"
    before = [each.counts().get("/x", 0) for each in backends]
    for _ in range(9):
        assert get(balancer.port, "/x").status == 200
    assert [each.counts().get("/x", 0) - count for each, count in zip(backends, before, strict=True)] == [
        3
    ] * 3


def test_a_backend_that_comes_back_starts_slowly(system: System) -> None:
    """Its share of what all get in the first part of the slow start, and its full one afterwards."""
    first, second = (system.plain_backend() for _ in range(2))
    seconds = 4.0
    env = {"LB_HEALTH_FALL": "1", "LB_HEALTH_RISE": "1", "LB_SLOW_START": f"{seconds}"}
    balancer = system.balancer(backends=f"{first.url},{second.url}", env=env)
    system.health(balancer, 0.2)
    began = time.monotonic()
    eventually(lambda: set(balancer.view.states().values()) == {"up"}, "both to be up")
    with Load([balancer.port], 4, "/x").running() as load:
        eventually(lambda: load.done > 100, "some requests")
        counts = balancer.view.counts()
        assert abs(counts[first.id] - counts[second.id]) <= 4  # nobody starts slowly with the balancer

        eventually(lambda: time.monotonic() > began + seconds, "the pool's own start to be over")
        second.kill()
        eventually(lambda: balancer.view.states()[second.id] == "down", "it to be down")
        before = balancer.view.counts()
        second = system.plain_backend(second.port)
        eventually(lambda: balancer.view.states()[second.id] == "up", "it to be up")
        back = time.monotonic()
        joined = balancer.view.counts()
        eventually(lambda: time.monotonic() > back + seconds / 4, "a quarter of the slow start")
        quarter = balancer.view.counts()
        # After a quarter 0.325 of its weight counts, 0.21 on average, to the other's 1: a share of 0.18. This
        # machine may have been slow, and the start seen late.
        passed = (time.monotonic() - back + 0.5) / seconds
        most = 0.1 + 0.9 * passed / 2
        gained = quarter[second.id] - before[second.id]
        assert 0 < gained < most / (1 + most) * (gained + quarter[first.id] - joined[first.id]) + 4
        assert passed < 1

        eventually(lambda: time.monotonic() > back + seconds + 0.5, "the slow start to be over")
        done = balancer.view.counts()
        eventually(lambda: balancer.view.counts()[first.id] > done[first.id] + 200, "more requests")
        after = balancer.view.counts()
        shares = [after[each.id] - done[each.id] for each in (first, second)]
        assert abs(shares[0] - shares[1]) <= 4
    assert load.failures == []
