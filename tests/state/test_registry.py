from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

import msgspec
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from lb.algorithms.eligible import eligible
from lb.algorithms.reports import Report
from lb.errors import StoreConflict, StoreError
from lb.model import Backend, Health, HealthPolicy, PoolSettings, ReportPolicy, Snapshot
from lb.settings import BackendSpec, PoolConfig
from lb.state import changes, decide
from lb.state.decide import Change
from lb.state.keys import HEALTH_LEASE, POOLS, PoolKeys
from lb.state.pieces import PIECE
from lb.state.registry import TRIES, BackendStatus, Registry, Trial
from tests.state.pool import Pool
from tests.state.servers import Server

A = Backend("a", "http://a:80", since=5.0)
B = Backend("b", "http://b:80", weight=3, max_connections=2, since=5.0)


def test_a_pool_nobody_wrote_is_empty(registry: Registry) -> None:
    assert registry.load("p") == Snapshot("p", 0, PoolSettings(), {})
    assert registry.version("p") == 0
    assert registry.status("p") == []
    assert registry.pools() == []


def test_what_is_written_is_read(registry: Registry) -> None:
    settings = PoolSettings("least-connections", HealthPolicy(path="/up"))
    written = registry.change("p", lambda _: Change(put=(A, B), settings=settings))
    assert written == registry.load("p") == Snapshot("p", 1, settings, {"a": A, "b": B})
    assert registry.version("p") == 1
    assert registry.pools() == ["p"]
    again = registry.change("p", decide.remove("a"))
    assert again == registry.load("p") == Snapshot("p", 2, settings, {"b": B})


def test_a_new_pool_has_an_algorithm_even_if_nobody_said_which(registry: Registry, pool: Pool) -> None:
    registry.change("p", decide.add(A))
    assert pool.client.hget(pool.keys.state, "_a") == b"turns"
    assert registry.load("p").settings == PoolSettings()


def test_a_snapshot_is_of_one_instant(registry: Registry) -> None:
    """Version and members are read in one transaction: a commit may fall between two commands."""
    for read in (registry.load, registry.pool_status):
        registry.client.config_resetstat()
        read("p")
        assert registry.client.info("commandstats")["cmdstat_exec"]["calls"] == 1


def test_what_changes_nothing_is_not_written(registry: Registry) -> None:
    first = registry.change("p", decide.declare(PoolConfig(backends=(BackendSpec("http://a:80"),))))
    assert registry.change("p", lambda _: Change()) == first
    assert registry.change("p", decide.declare(PoolConfig(backends=(BackendSpec("http://a:80"),)))) == first
    assert registry.change("p", decide.remove("x")) == first
    assert registry.version("p") == 1


def test_availability_weight_and_cap_reach_the_order(registry: Registry, pool: Pool) -> None:
    registry.change("p", lambda _: Change(put=(A, B)))
    assert pool.records()["b"][:4] == (0, 0, 3, 2)
    registry.change("p", decide.update("b", admin="drain"))
    assert list(pool.order()) == ["a"]
    registry.change("p", decide.verdicts([("a", "down")]))
    assert list(pool.order()) == []
    registry.change("p", decide.update("b", admin="ready"))
    assert list(pool.order()) == ["b"]


def test_each_commit_is_told_in_a_message_that_leads_to_the_same(registry: Registry) -> None:
    pubsub: Any = registry.client.pubsub()  # type: ignore[no-untyped-call]
    pubsub.subscribe(PoolKeys("p").changes)
    pubsub.get_message(timeout=5)
    snapshot = registry.load("p")
    for change in (
        lambda _: Change(put=(A, B)),
        decide.update("a", weight=7),
        lambda s: Change(delete=("b",), settings=PoolSettings("weighted-round-robin")),
    ):
        written = registry.change("p", change)
        message = pubsub.get_message(timeout=5)["data"]
        assert message is not None
        found = changes.apply(snapshot, message)
        assert found == written
        snapshot = written
    pubsub.close()


def test_a_name_the_scripts_cannot_use_is_refused(registry: Registry) -> None:
    for name in ("", "_", "_v", "a b", "a\nb", "x" * 256):
        with pytest.raises(ValueError, match="is no name for a backend"):
            registry.change("p", decide.add(Backend(name, "http://a:80")))
    assert registry.version("p") == 0
    # One letter is fine: the scripts' own fields have names that no backend can have.
    registry.change("p", lambda _: Change(put=tuple(Backend(name, "http://x:80") for name in "vaqfplc")))
    assert registry.load("p").version == 1
    assert len(registry.status("p")) == 7


def test_a_change_is_decided_anew_when_another_was_first(registry: Registry) -> None:
    registry.change("p", decide.add(A))
    seen: list[int] = []

    def slow(snapshot: Snapshot) -> Change:
        seen.append(snapshot.version)
        if len(seen) == 1:
            registry.change("p", decide.add(B))
        return Change(
            put=(msgspec.structs.replace(snapshot.backends["a"], weight=1 + len(snapshot.backends)),)
        )

    written = registry.change("p", slow)
    assert seen == [1, 2]
    assert (written.version, written.backends["a"].weight) == (3, 3)
    assert registry.load("p") == written


def test_a_change_is_given_up_in_the_end(registry: Registry) -> None:
    seen: list[int] = []

    def late(snapshot: Snapshot) -> Change:
        seen.append(snapshot.version)
        registry.scripts.commit(PoolKeys("p"), snapshot.version, b"{}")
        return Change(put=(A,))

    with pytest.raises(StoreConflict, match=f"changed by others {TRIES} times"):
        registry.change("p", late)
    assert len(seen) == TRIES


def test_many_writers_lose_nothing(shared_server: Server, registry: Registry) -> None:
    def write(name: str) -> None:
        with shared_server.client() as client:
            mine = Registry(client)
            for number in range(6):
                mine.change("p", decide.add(Backend(f"{name}{number}", "http://x:80")))

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = registry.load("p")
    assert (len(found.backends), found.version) == (36, 36)


def test_status_has_the_counts_of_the_whole_fleet(registry: Registry, pool: Pool) -> None:
    down = msgspec.structs.replace(A, health="down", source="file")
    registry.change("p", lambda _: Change(put=(down, B)))
    for worker in ("w1", "w2"):
        pool.scripts.lease(pool.keys, worker, "e", {})
        pool.claim(1, worker=worker)
    pool.release("b", worker="w1")
    assert registry.status("p") == [
        BackendStatus("a", "http://a:80", 1, "down", 0, 0, 0, "file", "ready", "down"),
        BackendStatus("b", "http://b:80", 3, "unknown", 1, 2, 2, "api", "ready", "unknown"),
    ]
    status = registry.pool_status("p")
    assert (status.pool, status.version, status.settings.algorithm) == ("p", 1, "round-robin")


def test_one_backend_is_told_without_reading_the_others(registry: Registry) -> None:
    registry.change("p", lambda _: Change(put=(A, B)))
    assert [registry.backend_status("p", name) for name in "ab"] == registry.status("p")
    registry.client.hset(PoolKeys("p").members, "a", b"nonsense")
    known = registry.backend_status("p", "b")
    assert known is not None
    assert known.id == "b"
    assert registry.backend_status("p", "c") is None
    assert registry.backend_status("q", "a") is None
    with pytest.raises(StoreError, match="pool p in the store cannot be read"):
        registry.backend_status("p", "a")


def test_a_large_pool_is_told_of_with_pauses(registry: Registry) -> None:
    many = tuple(Backend(f"b{n:05}", f"http://b:{n + 1}") for n in range(2 * PIECE))
    registry.change("p", lambda _: Change(put=many))
    pauses: list[None] = []
    status = registry.pool_status("p", lambda: pauses.append(None))
    assert [one.id for one in status.backends] == [one.id for one in many]
    assert len(pauses) == 4  # twice while it is read, and twice while it is told


def test_records_of_a_newer_release_are_read_as_far_as_they_are_known(registry: Registry) -> None:
    registry.change("p", decide.add(A))
    keys = PoolKeys("p")
    record = cast("bytes", registry.client.hget(keys.members, "a"))
    registry.client.hset(keys.members, "a", record[:-1] + b',"rack":"x"}')
    assert registry.load("p").backends["a"] == A


def test_what_cannot_be_read_is_an_error_of_the_store(registry: Registry) -> None:
    registry.change("p", decide.add(A))
    registry.client.hset(PoolKeys("p").members, "a", b"nonsense")
    with pytest.raises(StoreError, match="pool p in the store cannot be read"):
        registry.load("p")


def test_settings_that_cannot_be_read_are_one_too(registry: Registry) -> None:
    registry.change("p", decide.add(A))
    registry.client.hset(PoolKeys("p").state, "_settings", b"nonsense")
    with pytest.raises(StoreError, match="pool p in the store cannot be read"):
        registry.load_settings("p")


# comparing two algorithms


def test_what_two_algorithms_did_adds_up_while_they_are_compared(registry: Registry) -> None:
    registry.change("p", decide.declare(PoolConfig("random")))
    assert registry.pool_status("p").trial == ()
    registry.change("p", decide.switch("least-time", 0.1))
    assert registry.pool_status("p").trial == (Trial("random", 0, 0, 0.0), Trial("least-time", 0, 0, 0.0))
    registry.add_trial("p", {False: (9, 1, 4.5), True: (1, 0, 0.25)})
    registry.add_trial("p", {False: (1, 0, 0.5)})
    mine, its = registry.pool_status("p").trial
    assert mine == Trial("random", 10, 1, 5.0)
    assert its == Trial("least-time", 1, 0, 0.25)
    assert (mine.mean, its.mean, Trial("random", 0, 0, 0.0).mean) == (0.5, 0.25, 0.0)


def test_another_comparison_begins_at_nothing(registry: Registry) -> None:
    registry.change("p", decide.declare(PoolConfig("random")))
    registry.change("p", decide.switch("least-time", 0.1))
    counted = {False: (9, 1, 4.5), True: (1, 0, 0.25)}
    registry.add_trial("p", counted)
    registry.change("p", decide.add(A))  # no other comparison
    assert [each.requests for each in registry.pool_status("p").trial] == [9, 1]
    registry.change("p", decide.switch("ip-hash", 0.1))
    assert registry.pool_status("p").trial == (Trial("random", 0, 0, 0.0), Trial("ip-hash", 0, 0, 0.0))
    registry.add_trial("p", counted)
    registry.change("p", decide.switch("ip-hash", 0))
    assert registry.pool_status("p").trial == ()
    assert not registry.client.exists(PoolKeys("p").trial)


# what backends report


def reported(registry: Registry, algorithm: str, blackout: float) -> None:
    backends = (BackendSpec("http://a:80", 4, id="a"), BackendSpec("http://b:80", 4, id="b"))
    policy = ReportPolicy(period=30.0, blackout=blackout)
    registry.change("p", decide.declare(PoolConfig(algorithm, backends, report=policy)))


def test_reports_are_smoothed_and_change_the_turns(registry: Registry, pool: Pool) -> None:
    reported(registry, "resource-based", blackout=0.0)
    assert registry.report("p", "b", Report(1.0, cpu=0.25, load=0.75)) == pytest.approx(0.25)
    pool.scripts.lease(pool.keys, "w", "e", {})
    assert abs(pool.claim(100).count("b") - 20) <= 1
    # Right after it another one hardly counts: it fades in over two periods.
    assert 0.25 <= registry.report("p", "b", Report(2.0, load=0.0)) < 0.3


def test_a_new_backend_keeps_its_weight_through_the_blackout(registry: Registry, pool: Pool) -> None:
    reported(registry, "resource-based", blackout=60.0)
    assert registry.report("p", "b", Report(1.0, load=0.75)) == pytest.approx(0.25)
    pool.scripts.lease(pool.keys, "w", "e", {})
    assert abs(pool.claim(100).count("b") - 50) <= 1


def test_a_report_of_nobody_is_refused(registry: Registry) -> None:
    with pytest.raises(KeyError):
        registry.report("p", "a", Report(1.0, load=0.5))
    reported(registry, "random", blackout=0.0)
    registry.change("p", decide.remove("a"))
    with pytest.raises(KeyError):
        registry.report("p", "a", Report(1.0, load=0.5))
    assert registry.report("p", "b", Report(1.0, load=0.5)) == pytest.approx(0.5)


# who probes


def test_a_new_backend_waits_for_its_probe_only_if_somebody_probes(registry: Registry, pool: Pool) -> None:
    assert registry.change("p", decide.add(A)).backends["a"].health == "unknown"
    assert registry.hold_health("daemon", 60)
    assert registry.change("p", decide.add(B)).backends["b"].health == "checking"
    assert list(pool.order()) == ["a"]
    assert registry.promote_checking("p").version == 2
    registry.release_health("daemon")
    assert registry.promote_checking("p").backends["b"].health == "unknown"
    assert set(pool.order()) == {"a", "b"}


def test_since_is_the_servers_time(registry: Registry) -> None:
    registry.change("p", decide.add(Backend("a", "http://a:80")))
    before = registry.now()
    found = registry.change("p", decide.verdicts([("a", "up")])).backends["a"]
    assert before <= found.since <= registry.now()


def test_the_health_lease_has_one_owner_at_a_time(registry: Registry, client: redis.Redis) -> None:
    assert registry.health_owner() is None
    assert registry.hold_health("one", 0.2)
    assert not registry.hold_health("two", 60)
    assert registry.health_owner() == "one"
    registry.release_health("two")
    assert registry.health_owner() == "one"
    client.pexpire(HEALTH_LEASE, 0)
    assert registry.hold_health("two", 60)
    assert not registry.hold_health("one", 60)
    registry.release_health("two")
    assert registry.health_owner() is None


def test_pools_are_listed_by_name(registry: Registry, client: redis.Redis) -> None:
    for name in ("b", "a", "c"):
        registry.change(name, decide.add(A))
    assert registry.pools() == ["a", "b", "c"]
    assert client.type(POOLS) == b"set"
    with pytest.raises(ValueError, match="is no pool name"):
        registry.load("no pool")


# Who serves because of what became of others.


def health(name: str, found: Health) -> Callable[[Snapshot], Change]:
    return decide.verdicts([(name, found)])


def test_backups_enter_the_order_when_the_last_primary_goes_down(registry: Registry, pool: Pool) -> None:
    first = replace(A, id="x", url="http://x:80", backup=True)
    backups = (first, replace(first, id="y", url="http://y:80", max_connections=1))
    registry.change("p", lambda _: Change(put=(A, B, *backups)))
    pool.scripts.lease(pool.keys, "w", "e", {})
    assert set(pool.order()) == {"a", "b"}
    registry.change("p", health("a", "down"))
    assert (set(pool.order()), registry.pool_status("p").mode) == ({"b"}, "normal")
    told = registry.change("p", health("b", "down"))
    assert (set(pool.order()), registry.pool_status("p").mode) == ({"x", "y"}, "backup")
    assert sorted(pool.claim(2)) == ["x", "y"]
    assert set(pool.order()) == {"x"}  # with its cap
    assert told == registry.load("p")
    registry.change("p", decide.remove("x"))
    registry.change("p", health("b", "up"))
    assert (set(pool.order()), registry.pool_status("p").mode) == ({"b"}, "normal")
    pool.release("y")
    assert set(pool.order()) == {"b"}
    registry.change("p", decide.remove("b"))
    assert set(pool.order()) == {"y"}


def test_a_panic_lets_those_that_are_down_in_and_out_again(registry: Registry, pool: Pool) -> None:
    members = tuple(replace(A, id=name, url=f"http://{name}:80", health="up") for name in "abcd")
    drained = replace(A, id="e", url="http://e:80", admin="drain")
    half = PoolSettings(panic_threshold=0.5)
    registry.change("p", lambda _: Change(put=(*members, drained), settings=half))
    for name in "abc":
        assert registry.pool_status("p").mode == "normal"
        registry.change("p", health(name, "down"))
    assert (set(pool.order()), registry.pool_status("p").mode) == (set("abcd"), "panic")
    registry.change("p", health("a", "up"))
    assert (set(pool.order()), registry.pool_status("p").mode) == (set("ad"), "normal")
    # So does a change of the settings alone.
    more = PoolSettings(panic_threshold=0.6)
    registry.change("p", lambda _: Change(settings=more))
    assert (set(pool.order()), registry.pool_status("p").mode) == (set("abcd"), "panic")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_order_holds_exactly_the_eligible(registry: Registry, pool: Pool, data: st.DataObject) -> None:
    """After every change, whatever it was: workers and store must not disagree on who serves."""
    registry.client.flushall()
    registry.change("p", lambda _: Change(settings=PoolSettings(panic_threshold=data.draw(st.floats(0, 1)))))
    for _ in range(data.draw(st.integers(1, 12))):
        name = data.draw(st.sampled_from("abcdef"))
        if data.draw(st.booleans()) and name in registry.load("p").backends:
            registry.change("p", decide.remove(name))
        else:
            backend = Backend(
                name,
                f"http://{name}:80",
                weight=data.draw(st.integers(0, 2)),
                health=data.draw(st.sampled_from(["up", "down", "checking"])),
                admin=data.draw(st.sampled_from(["ready", "ready", "drain"])),
                backup=data.draw(st.booleans()),
            )
            registry.change("p", lambda _, backend=backend: Change(put=(backend,)))  # type: ignore[misc]
        found = eligible(registry.load("p"))
        assert set(pool.order()) == found.names
        standing_by = {name for name, record in pool.records().items() if record.weight < -1}
        assert standing_by == found.standby


def test_a_secret_is_the_first_that_was_proposed(registry: Registry, client: redis.Redis) -> None:
    assert registry.secret("p", b"one") == b"one"
    assert registry.secret("p", b"two") == b"one"
    assert registry.secret("q", b"two") == b"two"
    assert client.keys("*secret") != []
