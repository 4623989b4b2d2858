"""The daemon as users run it: a process, on a real store, with real backends."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.health.engine import TICK
from lb.health.schedule import fast_interval
from lb.state import decide
from tests.health.backends import OK, answer, eventually, free_port
from tests.health.conftest import MakeBackend, StartDaemon
from tests.health.system import Store
from tests.support.need import need_binary

#: What a busy machine may add to any time, seconds.
SLACK = 1.5


@pytest.fixture(params=["embedded", "redis-server"])
def either_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    binary = "" if request.param == "embedded" else need_binary("redis-server", "redis-server")
    made = Store(tmp_path, binary)
    made.start()
    yield made
    made.kill()


def test_a_killed_backend_leaves_and_a_revived_one_returns(
    either_store: Store, start_daemon: StartDaemon, make_backend: MakeBackend
) -> None:
    store = either_store
    backends = [make_backend() for _ in range(3)]
    store.declare(*backends)
    assert store.healths() == ["unknown"] * 3
    daemon = start_daemon(interval=0.6)
    for one in backends:
        store.wait(one, "up")
    victim = backends[1]
    victim.kill()
    # The probe that misses it first comes within an interval, the second (fall = 2) one fast interval later.
    most = 0.6 * 1.1 + fast_interval(0.6) + TICK
    assert store.wait(victim, "down") < most + SLACK
    line = daemon.says(victim.id, "up -> down")
    assert "warning: default " in line
    assert "connection refused" in line
    assert " after " in line
    victim.revive()
    store.wait(victim, "up")
    daemon.says(victim.id, "down -> up", "status 200")
    assert store.health(backends[0]) == store.health(backends[2]) == "up"
    assert daemon.end() == 0


def test_a_new_backend_waits_for_its_first_success(
    store: Store, start_daemon: StartDaemon, make_backend: MakeBackend
) -> None:
    store.declare(make_backend(), fall=1000)
    start_daemon()
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
    store: Store, start_daemon: StartDaemon, make_backend: MakeBackend
) -> None:
    store.declare(make_backend())
    start_daemon()
    eventually(lambda: store.healths() == ["up"])
    dead = f"127.0.0.1:{free_port()}"
    store.add(f"http://{dead}")
    store.wait(dead, "down")


def test_pools_come_and_go(store: Store, start_daemon: StartDaemon, make_backend: MakeBackend) -> None:
    store.declare(make_backend())
    start_daemon()
    eventually(lambda: store.healths() == ["up"])
    other = make_backend()
    store.declare(other, pool="other")
    store.wait(other, "up", pool="other")
    store.registry.change("other", decide.remove(other.id))
    eventually(lambda: not any(0 < time.monotonic() - at < 0.8 for at in other.times))


def test_a_drained_backend_is_probed_too(
    store: Store, start_daemon: StartDaemon, make_backend: MakeBackend
) -> None:
    backend = make_backend()
    store.declare(backend)
    store.registry.change("default", decide.update(backend.id, admin="drain"))
    start_daemon()
    store.wait(backend, "up")
    backend.kill()
    store.wait(backend, "down")


def test_a_steady_state_writes_nothing_but_the_lease(
    store: Store, start_daemon: StartDaemon, make_backend: MakeBackend
) -> None:
    backends = [make_backend(), make_backend()]
    store.declare(*backends, f"http://127.0.0.1:{free_port()}")
    start_daemon(interval=0.1)
    eventually(lambda: store.healths() == ["down", "up", "up"])

    def writes() -> dict[str, int]:
        stats = store.client.info("commandstats")
        names = ("hset", "hdel", "zadd", "zrem", "publish", "sadd", "hincrby", "del")
        return {name: stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in names}

    before, version = writes(), store.registry.version("default")
    probed = [one.requests for one in backends]
    eventually(lambda: all(one.requests > n + 20 for one, n in zip(backends, probed, strict=True)))
    assert writes() == before
    assert store.registry.version("default") == version


def test_verdicts_of_one_moment_are_one_commit(
    store: Store, start_daemon: StartDaemon, make_backend: MakeBackend
) -> None:
    backends = [make_backend() for _ in range(20)]
    before = store.declare(*backends).version
    start_daemon(interval=5)
    eventually(lambda: store.healths() == ["up"] * 20)
    # Their first probes are spread over 20 ms, and one commit gathers 20 ms.
    assert store.registry.version("default") - before <= 5


def test_what_the_pool_says_goes_before_the_command_line(
    store: Store, start_daemon: StartDaemon, make_backend: MakeBackend
) -> None:
    own, open_ = make_backend(), make_backend()
    for one in (own, open_):
        one.act = answer(b"HTTP/1.1 418 Teapot\r\n\r\n")
    store.declare(own, pool="own", interval=0.1, status="400-499")
    store.declare(open_, pool="open")
    start_daemon("--status", "418", "--type", "http", interval=30)
    store.wait(own, "up", pool="own")
    store.wait(open_, "up", pool="open")
    eventually(lambda: own.requests >= 10)
    assert open_.requests == 1


def test_a_changed_policy_is_taken_up(
    store: Store, start_daemon: StartDaemon, make_backend: MakeBackend
) -> None:
    backend = make_backend(answer(b"HTTP/1.1 500 Broken\r\n\r\n"))
    store.declare(backend)
    daemon = start_daemon()
    store.wait(backend, "down")
    store.settings(type="tcp")
    store.wait(backend, "up")
    store.settings(path="no path")
    daemon.says("error: pool default is not probed", "health.path 'no path'")
    store.wait(backend, "up")


def test_switching_probes_off_keeps_nobody_out(
    store: Store, start_daemon: StartDaemon, make_backend: MakeBackend
) -> None:
    backend = make_backend()
    dead = f"127.0.0.1:{free_port()}"
    store.declare(backend, f"http://{dead}")
    start_daemon()
    store.wait(dead, "down")
    store.settings(enabled=False)
    store.wait(dead, "unknown")
    probed = backend.requests
    other = store.add(make_backend())
    assert "checking" not in {one.health for one in other.backends.values()}
    store.settings()
    store.wait(dead, "down")
    assert backend.requests > probed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_leaves_at_once_and_gives_up_the_lease(
    store: Store, start_daemon: StartDaemon, make_backend: MakeBackend, number: int
) -> None:
    store.declare(make_backend())
    daemon = start_daemon(interval=10)
    eventually(lambda: store.healths() == ["up"])
    logged = len(daemon.lines())
    started = time.monotonic()
    assert daemon.end(number) == 0
    assert time.monotonic() - started < 1 + SLACK
    assert store.registry.health_owner() is None
    assert len(daemon.lines()) == logged


def test_the_last_to_leave_keeps_nobody_waiting(
    store: Store, start_daemon: StartDaemon, make_backend: MakeBackend
) -> None:
    store.declare(make_backend(), fall=1000)
    first = start_daemon()
    eventually(lambda: store.healths() == ["up"])
    late = make_backend(answer(b"HTTP/1.1 503 Starting\r\n\r\n"))
    store.add(late)
    eventually(lambda: late.requests)
    second = start_daemon()
    second.says("standing by")
    assert first.end() == 0
    second.says("probing for the fleet")
    assert store.health(late) == "checking"
    assert second.end() == 0
    assert store.health(late) == "unknown"


def test_started_before_the_store(
    cold_store: Store, start_daemon: StartDaemon, make_backend: MakeBackend
) -> None:
    daemon = start_daemon()
    daemon.says("waiting for the embedded store at", str(cold_store.socket))
    cold_store.start()
    backend = make_backend()
    cold_store.declare(backend)
    cold_store.wait(backend, "up")
    assert len(daemon.lines("waiting")) == 1
    assert daemon.end() == 0


def test_ended_while_it_waits(cold_store: Store, start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    daemon.says("waiting for", str(cold_store.socket))
    assert daemon.end() == 0
    assert len(daemon.lines()) == 1


def test_the_store_goes_away_and_comes_back_empty(
    store: Store, start_daemon: StartDaemon, make_backend: MakeBackend
) -> None:
    lasting, dying = make_backend(), make_backend()
    store.declare(lasting, dying)
    daemon = start_daemon(interval=0.3)
    eventually(lambda: store.healths() == ["up", "up"])
    store.kill()
    daemon.says("warning: the store at", "is not available")
    dying.kill()
    # It probes on: two failures are enough for a verdict.
    probed = lasting.requests
    eventually(lambda: lasting.requests > probed + 5)
    store.start()
    # Workers bring back what they know, in which both are well.
    store.declare(lasting, dying)
    assert store.wait(dying, "down") < 1 + SLACK
    daemon.says("the store is back")
    store.wait(lasting, "up")
    assert len(daemon.lines("is not available")) == 1
    assert len(daemon.lines("the store is back")) == 1
    # And it is as watchful as before, though the versions have begun anew.
    dying.revive()
    store.wait(dying, "up")
    late = make_backend()
    store.add(late)
    store.wait(late, "up")


def test_ended_while_the_store_is_away(
    store: Store, start_daemon: StartDaemon, make_backend: MakeBackend
) -> None:
    store.declare(make_backend())
    daemon = start_daemon()
    eventually(lambda: store.healths() == ["up"])
    store.kill()
    daemon.says("is not available")
    assert daemon.end() == 0


def owner_of(store: Store) -> str:
    return store.registry.health_owner() or ""


def test_kill_9_of_the_holder_is_taken_over_within_two_intervals(
    store: Store, start_daemon: StartDaemon, make_backend: MakeBackend
) -> None:
    interval = 1.0
    backend = make_backend()
    store.declare(backend)
    first = start_daemon(interval=interval)
    store.wait(backend, "up")
    second = start_daemon(interval=interval)
    second.says("standing by")
    former = owner_of(store)
    assert f":{first.process.pid}:" in former
    first.kill()
    started = time.monotonic()
    eventually(lambda: owner_of(store) not in ("", former), 2 * interval)
    taken_after = time.monotonic() - started
    assert taken_after < 2 * interval
    assert f":{second.process.pid}:" in owner_of(store)
    backend.kill()
    store.wait(backend, "down")


def test_two_daemons_probe_once(store: Store, start_daemon: StartDaemon, make_backend: MakeBackend) -> None:
    backend = make_backend()
    store.declare(backend, jitter=0.0)
    start_daemon(interval=0.2)
    store.wait(backend, "up")
    start_daemon(interval=0.2).says("standing by")
    start_daemon(interval=0.2).says("standing by")
    first = backend.requests
    eventually(lambda: backend.requests >= first + 15)
    gaps = [b - a for a, b in zip(backend.times[first:], backend.times[first + 1 :], strict=False)]
    # Start to start is 0.2 s; with a second prober half of the gaps would be shorter.
    assert sum(gap < 0.1 for gap in gaps) <= 2


def test_a_holder_that_was_stopped_comes_back_as_a_stand_by(
    store: Store, start_daemon: StartDaemon, make_backend: MakeBackend
) -> None:
    backend = make_backend()
    store.declare(backend)
    first = start_daemon(interval=0.3)
    store.wait(backend, "up")
    second = start_daemon(interval=0.3)
    second.says("standing by")
    # Stopped with one failed probe counted, and the second one under way or due.
    backend.kill()
    first.send(signal.SIGSTOP)
    second.says("probing for the fleet")
    backend.revive()
    store.wait(backend, "up")
    eventually(
        lambda: second.process.poll() is None and owner_of(store).split(":")[1] == str(second.process.pid)
    )
    version = store.registry.version("default")
    first.send(signal.SIGCONT)
    first.says("another daemon has taken over")
    served = backend.requests
    eventually(lambda: backend.requests >= served + 10)
    assert store.registry.version("default") == version
    assert store.health(backend) == "up"
    assert not first.lines("-> down")
    assert f":{second.process.pid}:" in owner_of(store)
    # And it is there when it is needed.
    second.kill()
    backend.kill()
    store.wait(backend, "down")
    first.says("up -> down")


def test_it_reaps_what_dead_workers_left(
    store: Store, start_daemon: StartDaemon, make_backend: MakeBackend
) -> None:
    from lb.state.keys import PoolKeys

    backend = make_backend()
    store.declare(backend)
    keys = PoolKeys("default")
    store.registry.scripts.lease(keys, "w1", "e", {backend.id: 3})
    assert store.registry.status("default")[0].in_flight == 3
    # As if its last sign of life were long ago.
    store.client.zadd(keys.workers, {"w1": 1.0})
    start_daemon()
    eventually(lambda: store.registry.status("default")[0].in_flight == 0)


def test_logs_for_machines(store: Store, start_daemon: StartDaemon, make_backend: MakeBackend) -> None:
    evil = make_backend(answer(b"\x1b[31mred\r\nlb-health: all is well\r\n"))
    store.declare(evil)
    daemon = start_daemon("--json")
    store.wait(evil, "down")
    change = eventually(lambda: [one for one in daemon.events() if one["event"] == "change"])[0]
    assert change["pool"] == "default"
    assert change["backend"] == evil.id
    assert (change["old"], change["new"]) == ("unknown", "down")
    assert change["reason"].startswith("the answer is not HTTP/1: ")
    assert "\x1b" not in daemon.log.read_text()
    assert change["lasted"] >= 0


def test_a_pool_that_cannot_be_read_does_not_hold_up_the_others(
    store: Store, start_daemon: StartDaemon, make_backend: MakeBackend
) -> None:
    from lb.state.keys import POOLS, PoolKeys

    backend = make_backend()
    store.client.hset(PoolKeys("broken").members, "x", "not a record")
    store.client.sadd(POOLS, "broken", "no pool name!")
    store.declare(backend)
    daemon = start_daemon()
    store.wait(backend, "up")
    daemon.says("error: pool broken: failed")
    assert len(daemon.lines("error: pool broken")) == 1
    backend.kill()
    store.wait(backend, "down")
