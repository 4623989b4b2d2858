"""The daemon's loops in this process, on a real store, with real backends."""

from __future__ import annotations

import time

import gevent
import msgspec
import pytest

from lb.health.keeper import STANDBY, NotHolderError, lease_seconds
from lb.model import Backend
from lb.state import decide
from lb.state.keys import POOLS, PoolKeys
from tests.health.backends import OK, answer, eventually, free_port
from tests.health.conftest import MakeBackend, StartKeeper
from tests.health.system import Store, owner_of


@pytest.mark.parametrize("interval", [1.0, 1.5, 2.0, 5.0, 10.0, 30.0, 3600.0])
def test_another_daemon_takes_over_in_less_than_two_intervals(interval: float) -> None:
    assert lease_seconds(interval) + STANDBY < 2 * interval


@pytest.mark.parametrize("interval", [0.1, 1.0, 3600.0])
def test_a_lease_is_long_enough_to_be_renewed_and_short_enough_to_be_missed(interval: float) -> None:
    assert 1.5 <= lease_seconds(interval) <= 15


def test_a_new_backend_waits_for_its_first_success(
    store: Store, start_keeper: StartKeeper, make_backend: MakeBackend
) -> None:
    store.declare(make_backend(), fall=1000)
    start_keeper()
    eventually(lambda: store.healths() == ["up"])
    late = make_backend(answer(b"HTTP/1.1 503 Starting\r\n\r\n"))
    snapshot = store.add(late)
    assert snapshot.backends[late.id].health == "checking"
    assert not snapshot.backends[late.id].available
    eventually(lambda: late.requests >= 2)
    assert store.health(late) == "checking"
    late.act = answer(OK)
    store.wait(late, "up")


def test_a_new_backend_that_never_answers_is_down(
    store: Store, start_keeper: StartKeeper, make_backend: MakeBackend
) -> None:
    store.declare(make_backend())
    start_keeper()
    eventually(lambda: store.healths() == ["up"])
    dead = f"127.0.0.1:{free_port()}"
    store.add(f"http://{dead}")
    store.wait(dead, "down")


def test_pools_come_and_go(store: Store, start_keeper: StartKeeper, make_backend: MakeBackend) -> None:
    store.declare(make_backend())
    start_keeper()
    eventually(lambda: store.healths() == ["up"])
    other = make_backend()
    store.declare(other, pool="other")
    store.wait(other, "up", pool="other")
    store.registry.change("other", decide.remove(other.id))
    eventually(lambda: not any(0 < time.monotonic() - at < 0.8 for at in other.times))


def test_a_drained_backend_is_probed_too(
    store: Store, start_keeper: StartKeeper, make_backend: MakeBackend
) -> None:
    backend = make_backend()
    store.declare(backend)
    store.registry.change("default", decide.update(backend.id, admin="drain"))
    start_keeper()
    store.wait(backend, "up")
    backend.kill()
    store.wait(backend, "down")


def test_a_steady_state_writes_nothing_but_the_lease(
    store: Store, start_keeper: StartKeeper, make_backend: MakeBackend
) -> None:
    backends = [make_backend(), make_backend()]
    store.declare(*backends, f"http://127.0.0.1:{free_port()}")
    start_keeper(interval=0.1)
    eventually(lambda: store.healths() == ["down", "up", "up"])

    def writes() -> dict[str, int]:
        stats = store.client.info("commandstats")
        names = ("hset", "hdel", "zadd", "zrem", "publish", "sadd", "hincrby", "del")
        return {name: stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in names}

    before, version = writes(), store.registry.version("default")
    probed = [one.requests for one in backends]
    eventually(lambda: all(one.requests > n + 8 for one, n in zip(backends, probed, strict=True)))
    assert writes() == before
    assert store.registry.version("default") == version


def test_verdicts_of_one_moment_are_one_commit(
    store: Store, start_keeper: StartKeeper, make_backend: MakeBackend
) -> None:
    backends = [make_backend() for _ in range(20)]
    store.declare(*backends)
    local = start_keeper(interval=10)
    eventually(lambda: store.healths() == ["up"] * 20)
    for loop in local.loops:
        loop.kill()
    roster = local.engine.rosters["default"]
    for _ in range(2):
        for name, member in roster.members.items():
            roster.record(name, member, False, "all at once")
    version = store.registry.version("default")
    local.keeper._publish(store.registry)
    assert store.healths() == ["down"] * 20
    assert store.registry.version("default") == version + 1
    assert len(local.lines("up -> down")) == 20


def test_what_the_pool_says_goes_before_the_command_line(
    store: Store, start_keeper: StartKeeper, make_backend: MakeBackend
) -> None:
    own, open_ = make_backend(), make_backend()
    for one in (own, open_):
        one.act = answer(b"HTTP/1.1 418 Teapot\r\n\r\n")
    store.declare(own, pool="own", interval=0.1, status="400-499")
    store.declare(open_, pool="open")
    start_keeper(interval=3600, status="418")
    store.wait(own, "up", pool="own")
    store.wait(open_, "up", pool="open")
    eventually(lambda: own.requests >= 10)
    assert open_.requests == 1


def test_a_changed_policy_is_taken_up(
    store: Store, start_keeper: StartKeeper, make_backend: MakeBackend
) -> None:
    backend = make_backend(answer(b"HTTP/1.1 500 Broken\r\n\r\n"))
    store.declare(backend)
    daemon = start_keeper()
    store.wait(backend, "down")
    store.settings(type="tcp")
    store.wait(backend, "up")
    store.settings(path="no path")
    daemon.says("error: pool default is not probed", "health.path 'no path'")
    store.wait(backend, "up")


def test_switching_probes_off_keeps_nobody_out(
    store: Store, start_keeper: StartKeeper, make_backend: MakeBackend
) -> None:
    backend = make_backend()
    dead = f"127.0.0.1:{free_port()}"
    store.declare(backend, f"http://{dead}")
    start_keeper()
    store.wait(dead, "down")
    store.settings(enabled=False)
    store.wait(dead, "unknown")
    probed = backend.requests
    other = store.add(make_backend())
    assert "checking" not in {one.health for one in other.backends.values()}
    store.settings()
    store.wait(dead, "down")
    assert backend.requests > probed


def test_the_last_to_leave_keeps_nobody_waiting(
    store: Store, start_keeper: StartKeeper, make_backend: MakeBackend
) -> None:
    store.declare(make_backend(), fall=1000)
    first = start_keeper()
    eventually(lambda: store.healths() == ["up"])
    late = make_backend(answer(b"HTTP/1.1 503 Starting\r\n\r\n"))
    store.add(late)
    eventually(lambda: late.requests)
    second = start_keeper()
    second.says("standing by")
    first.end()
    second.says("probing for the fleet")
    assert store.health(late) == "checking"
    second.end()
    assert store.health(late) == "unknown"


def test_two_daemons_probe_once(store: Store, start_keeper: StartKeeper, make_backend: MakeBackend) -> None:
    backend = make_backend()
    store.declare(backend, jitter=0.0)
    start_keeper(interval=0.2)
    store.wait(backend, "up")
    start_keeper(interval=0.2).says("standing by")
    start_keeper(interval=0.2).says("standing by")
    first = backend.requests
    eventually(lambda: backend.requests >= first + 9)
    gaps = [b - a for a, b in zip(backend.times[first:], backend.times[first + 1 :], strict=False)]
    # Start to start is 0.2 s; with a second prober half of the gaps would be shorter.
    assert sum(gap < 0.1 for gap in gaps) <= 2


def test_it_reaps_what_dead_workers_left(
    store: Store, start_keeper: StartKeeper, make_backend: MakeBackend
) -> None:
    backend = make_backend()
    store.declare(backend)
    keys = PoolKeys("default")
    store.registry.scripts.lease(keys, "w1", "e", {backend.id: 3})
    assert store.registry.status("default")[0].in_flight == 3
    # As if its last sign of life were long ago.
    store.client.zadd(keys.workers, {"w1": 1.0})
    start_keeper()
    eventually(lambda: store.registry.status("default")[0].in_flight == 0)


def test_a_pool_that_cannot_be_read_does_not_hold_up_the_others(
    store: Store, start_keeper: StartKeeper, make_backend: MakeBackend
) -> None:
    backend = make_backend()
    store.client.hset(PoolKeys("broken").members, "x", "not a record")
    store.client.sadd(POOLS, "broken", "no pool name!")
    store.declare(backend)
    daemon = start_keeper()
    store.wait(backend, "up")
    daemon.says("error: pool broken: failed")
    assert len(daemon.lines("error: pool broken")) == 1
    backend.kill()
    store.wait(backend, "down")


def test_who_lost_the_lease_writes_nothing(
    store: Store, start_keeper: StartKeeper, make_backend: MakeBackend
) -> None:
    backend = make_backend()
    store.declare(backend)
    local = start_keeper(interval=10)
    store.wait(backend, "up")
    # From here on only what this test calls happens: a process that was stopped with a verdict to write.
    for loop in local.loops:
        loop.kill()
    roster = local.engine.rosters["default"]
    for _ in range(2):
        roster.record(backend.id, roster.members[backend.id], False, "as seen before it was stopped")
    assert [one.new for one in roster.pending()] == ["down"]
    store.registry.release_health(local.owner)
    assert store.registry.hold_health("another", 60)
    version = store.registry.version("default")
    with pytest.raises(NotHolderError):
        local.keeper._publish(store.registry)
    assert store.registry.version("default") == version
    # Neither when its own clock says so, though nobody else has taken over.
    store.registry.release_health("another")
    assert store.registry.hold_health(local.owner, 60)
    local.keeper._until = time.monotonic()
    with pytest.raises(NotHolderError):
        local.keeper._publish(store.registry)
    assert store.registry.version("default") == version
    local.keeper._until = time.monotonic() + 60
    local.keeper._publish(store.registry)
    assert store.health(backend) == "down"


def test_a_verdict_about_one_who_registered_again_meanwhile_is_not_written(
    store: Store, start_keeper: StartKeeper, make_backend: MakeBackend
) -> None:
    backend = make_backend()
    store.declare(backend)
    local = start_keeper(interval=10)
    store.wait(backend, "up")
    for loop in local.loops:
        loop.kill()
    roster = local.engine.rosters["default"]
    for _ in range(2):
        roster.record(backend.id, roster.members[backend.id], False, "")
    moved = f"http://127.0.0.2:{backend.port}"
    store.registry.change("default", decide.add(Backend(backend.id, moved)))
    local.keeper._publish(store.registry)
    assert store.health(backend) == "checking"
    assert roster.pending() == []
    assert not local.lines("-> down")


def test_it_may_probe_while_the_lease_is_surely_its_own(store: Store, start_keeper: StartKeeper) -> None:
    first, second = start_keeper(interval=1), start_keeper(interval=1)
    first.says("probing for the fleet")
    second.says("standing by")
    now = time.monotonic()
    assert first.keeper.may_probe(now)
    assert not first.keeper.may_probe(now + lease_seconds(1))
    assert not second.keeper.may_probe(now)
    store.kill()
    first.says("is not available")
    # Nobody can take over now, and somebody should know who is well when the store comes back.
    assert first.keeper.may_probe(now + lease_seconds(1))
    assert not second.keeper.may_probe(now)


def test_what_was_pending_when_the_lease_was_lost_is_forgotten(
    store: Store, start_keeper: StartKeeper, make_backend: MakeBackend
) -> None:
    backend = make_backend()
    store.declare(backend)
    local = start_keeper(interval=10)
    store.wait(backend, "up")
    local.loops[1].kill()
    roster = local.engine.rosters["default"]
    for _ in range(2):
        roster.record(backend.id, roster.members[backend.id], False, "long ago")
    store.registry.release_health(local.owner)
    assert store.registry.hold_health("another", 1)
    local.keeper._renew_at = 0.0
    version = store.registry.version("default")
    local.loops[1] = gevent.spawn(local.keeper.run)
    local.says("another daemon has taken over")
    assert local.engine.rosters == {}
    eventually(lambda: owner_of(store) == local.owner)
    probed = backend.requests
    eventually(lambda: backend.requests > probed)
    assert store.registry.version("default") == version


def test_a_store_that_was_away_may_hold_anything(
    store: Store, start_keeper: StartKeeper, make_backend: MakeBackend
) -> None:
    backend, other = make_backend(), make_backend()
    store.declare(backend)
    local = start_keeper(interval=10)
    store.wait(backend, "up")
    local.loops[1].kill()
    local.keeper._gone("as if the store had gone away")
    # It came back with other members, and by chance at the same version.
    record = msgspec.json.encode(Backend("other", other.url, health="checking"))
    store.client.hset(PoolKeys("default").members, "other", record)
    local.loops[1] = gevent.spawn(local.keeper.run)
    store.wait("other", "up")
    local.loops[1].kill()
    local.keeper._gone("as if the store had gone away")
    # It came back with another holder, though our lease would have lasted for long.
    assert lease_seconds(10) > 10
    store.registry.release_health(local.owner)
    assert store.registry.hold_health("another", 60)
    local.loops[1] = gevent.spawn(local.keeper.run)
    local.says("another daemon has taken over", within=3)


def test_a_version_that_went_back_is_another_version(
    store: Store, start_keeper: StartKeeper, make_backend: MakeBackend
) -> None:
    backend, other = make_backend(), make_backend()
    store.declare(backend)
    start_keeper(interval=10)
    store.wait(backend, "up")
    keys = PoolKeys("default")
    store.client.hset(
        keys.members, "other", msgspec.json.encode(Backend("other", other.url, health="checking"))
    )
    store.client.hset(keys.state, "_v", 1)
    store.wait("other", "up")
