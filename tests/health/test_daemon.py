"""The daemon as users run it: a process, on a real store, with real backends."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.health.engine import TICK
from lb.health.schedule import fast_interval
from tests.health.backends import answer, eventually
from tests.health.conftest import MakeBackend, StartDaemon
from tests.health.system import Store, owner_of
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
    daemon = start_daemon(interval=0.4)
    for one in backends:
        store.wait(one, "up")
    victim = backends[1]
    victim.kill()
    # The probe that misses it first comes within an interval, the second (fall = 2) one fast interval later.
    most = 0.4 * 1.1 + fast_interval(0.4) + TICK
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
    eventually(lambda: lasting.requests > probed + 4)
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
    eventually(lambda: backend.requests >= served + 4)
    assert store.registry.version("default") == version
    assert store.health(backend) == "up"
    assert not first.lines("-> down")
    assert f":{second.process.pid}:" in owner_of(store)
    # And it is there when it is needed.
    second.kill()
    backend.kill()
    store.wait(backend, "down")
    first.says("up -> down")


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
