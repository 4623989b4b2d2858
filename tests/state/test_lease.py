from __future__ import annotations

import pytest

from lb.state.lease import BEAT, LEASE, WorkerLease, reap_dead
from lb.state.registry import Registry
from lb.state.scripts import LeaseLost
from tests.state.pool import LostError, Pool


def make_old(pool: Pool, *workers: str, seconds: float = LEASE + 1) -> None:
    """Let it be so long since these workers showed a sign of life."""
    now = Registry(pool.client).now()
    pool.client.zadd(pool.keys.workers, dict.fromkeys(workers, now - seconds))


def test_two_beats_may_be_lost() -> None:
    assert LEASE > 2 * BEAT


def test_a_lease_lives_and_ends(pool: Pool) -> None:
    pool.make("round-robin", "ab")
    lease = WorkerLease(pool.scripts, "p", "me")
    with pytest.raises(LeaseLost):
        lease.beat()
    assert lease.open({"a": 2}) == 1
    assert lease.beat() == 1
    pool.claim(2, "me", lease.epoch)
    assert pool.held("me") == pool.in_flight() == {"a": 3, "b": 1}
    lease.close()
    assert pool.in_flight() == {}
    with pytest.raises(LeaseLost):
        lease.beat()


def test_each_opening_has_an_epoch_of_its_own(pool: Pool) -> None:
    """A call that was delayed past a new opening must not count twice."""
    pool.make("round-robin", "ab")
    lease = WorkerLease(pool.scripts, "p", "me")
    lease.open({})
    old = lease.epoch
    lease.open({"a": 1})
    assert lease.epoch != old
    with pytest.raises(LostError):
        pool.call(1, worker="me", epoch=old)
    assert pool.in_flight() == {"a": 1}


def test_the_dead_are_reaped_and_the_living_are_not(pool: Pool, registry: Registry) -> None:
    pool.make("least-connections", "ab", cap=4)
    leases = {name: WorkerLease(pool.scripts, "p", name) for name in ("dead1", "dead2", "alive", "woken")}
    for name, lease in leases.items():
        lease.open({})
        pool.claim(2, name, lease.epoch)
    assert pool.in_flight() == {"a": 4, "b": 4}
    make_old(pool, "dead1", "dead2", "woken")
    make_old(pool, "alive", seconds=LEASE - 2)
    leases["woken"].beat()
    assert reap_dead(registry, "p") == 4
    assert pool.in_flight() == {"a": 2, "b": 2}
    assert reap_dead(registry, "p") == 0
    assert leases["alive"].beat() == 1
    with pytest.raises(LeaseLost):
        leases["dead1"].beat()


def test_a_sign_of_life_from_the_future_is_not_believed_for_long(pool: Pool, registry: Registry) -> None:
    """The server's clock was put back: who died before that would hold what it has until it has caught up."""
    pool.make("round-robin", "a")
    lease = WorkerLease(pool.scripts, "p", "me")
    lease.open({})
    pool.claim(1, "me", lease.epoch)
    make_old(pool, "me", seconds=-3600)
    assert reap_dead(registry, "p") == 0
    seen = pool.client.zscore(pool.keys.workers, "me")
    assert seen is not None
    assert registry.now() - 60 < seen <= registry.now()
    make_old(pool, "me")
    assert reap_dead(registry, "p") == 1
    assert pool.in_flight() == {}


def test_a_worker_that_was_only_stopped_goes_on_with_what_it_holds(pool: Pool, registry: Registry) -> None:
    pool.make("round-robin", "ab")
    lease = WorkerLease(pool.scripts, "p", "stopped")
    lease.open({})
    pool.claim(4, "stopped", lease.epoch)
    make_old(pool, "stopped")
    assert reap_dead(registry, "p") == 4
    with pytest.raises(LostError):  # what it sends when it wakes up
        pool.call(1, {"a": 1}, worker="stopped", epoch=lease.epoch)
    assert pool.in_flight() == {}
    lease.open({"a": 1, "b": 2})
    assert pool.in_flight() == pool.held("stopped") == {"a": 1, "b": 2}
