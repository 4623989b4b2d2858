from __future__ import annotations

import pytest

from lb.model import Backend, Canary, HashPolicy, HealthPolicy, PoolSettings, Snapshot
from lb.settings import BackendSpec, PoolConfig
from lb.state import decide
from lb.state.decide import Change, Decider


def backend(name: str, **rest: object) -> Backend:
    return Backend(name, f"http://{name}:80", **rest)  # type: ignore[arg-type]


def snapshot(*backends: Backend, version: int = 1, settings: PoolSettings | None = None) -> Snapshot:
    return Snapshot("p", version, settings or PoolSettings(), {each.id: each for each in backends})


def after(before: Snapshot, decider: Decider, *, probed: bool = False, now: float = 50.0) -> Snapshot:
    """The pool as the decision leaves it."""
    change = decide.settle(before, decider(before), probed, now)
    return decide.applied(before, change, before.version + 1)


UP = backend("a", health="up", since=7.0)
DRAINED = backend("b", admin="drain", health="down", since=8.0, weight=3)


def test_add_puts_a_backend() -> None:
    new = backend("c", weight=2)
    assert after(snapshot(UP), decide.add(new)).backends["c"] == backend("c", weight=2, since=50.0)


def test_adding_a_known_address_again_keeps_its_health_and_admin_state() -> None:
    again = after(snapshot(UP, DRAINED), decide.add(backend("b", weight=9, max_connections=4)))
    assert again.backends["b"] == backend(
        "b", weight=9, max_connections=4, admin="drain", health="down", since=8.0
    )


def test_a_name_at_a_new_address_starts_anew() -> None:
    moved = Backend("b", "http://elsewhere:80")
    for probed, health in ((True, "checking"), (False, "unknown")):
        found = after(snapshot(DRAINED), decide.add(moved), probed=probed).backends["b"]
        assert (found.url, found.admin, found.health, found.since) == (moved.url, "ready", health, 50.0)


def test_remove_passes_over_the_unknown() -> None:
    assert decide.remove("a", "x")(snapshot(UP)) == Change(delete=("a",))
    assert decide.remove("x")(snapshot(UP)).empty


def test_update_changes_what_is_given() -> None:
    found = after(snapshot(UP), decide.update("a", admin="drain", weight=0)).backends["a"]
    assert found == backend("a", admin="drain", weight=0, health="up", since=7.0)
    assert after(snapshot(UP), decide.update("a", max_connections=3)).backends["a"].max_connections == 3
    with pytest.raises(KeyError):
        decide.update("x", weight=1)(snapshot(UP))


def test_verdicts_change_health_and_its_time() -> None:
    found = after(snapshot(UP, DRAINED), decide.verdicts([("a", "down"), ("b", "down"), ("gone", "up")]))
    assert found.backends == {"a": backend("a", health="down", since=50.0), "b": DRAINED}


def test_those_who_wait_for_a_probe_are_promoted() -> None:
    before = snapshot(UP, backend("c", health="checking"), DRAINED)
    found = after(before, decide.promote_checking)
    assert found.backends["c"].health == "unknown"
    assert (found.backends["a"], found.backends["b"]) == (UP, DRAINED)
    assert decide.promote_checking(snapshot(UP)).empty


# the configuration

FILE = PoolConfig(
    backends=(BackendSpec("http://a:80", 5), BackendSpec("http://c:80", id="see", max_connections=2))
)


def test_configured_names_backends_after_their_address() -> None:
    found = decide.configured("p", PoolSettings("least-connections"), FILE.backends)
    assert (found.version, found.settings.algorithm) == (0, "least-connections")
    assert {name: (b.id, b.weight, b.max_connections, b.source) for name, b in found.backends.items()} == {
        "a:80": ("a:80", 5, 0, "file"),
        "see": ("see", 1, 2, "file"),
    }


def test_declare_replaces_only_what_came_from_the_file() -> None:
    kept = Backend("api", "http://x:80", source="api")
    old = Backend("old:80", "http://old:80", source="file")
    found = after(snapshot(kept, old), decide.declare(FILE))
    assert set(found.backends) == {"api", "a:80", "see"}
    assert found.backends["api"] == kept


def test_declare_leaves_a_name_to_whom_has_it() -> None:
    mine = Backend("a:80", "http://a:80", weight=9, source="api")
    found = after(snapshot(mine), decide.declare(FILE))
    assert found.backends["a:80"] == mine
    # And the next reload does not remove it either.
    assert after(found, decide.declare(PoolConfig())).backends == {"a:80": mine}


def test_a_reload_keeps_health_and_admin_and_takes_the_rest() -> None:
    first = after(snapshot(version=0), decide.declare(FILE))
    drained = after(first, decide.update("a:80", admin="drain", weight=50), now=60.0)
    judged = after(drained, decide.verdicts([("a:80", "up")]), now=70.0)
    found = after(judged, decide.declare(FILE), now=80.0).backends["a:80"]
    assert (found.admin, found.health, found.since, found.weight) == ("drain", "up", 70.0, 5)
    moved = PoolConfig(backends=(BackendSpec("http://new:80", id="a:80"),))
    found = after(judged, decide.declare(moved), probed=True, now=80.0).backends["a:80"]
    assert (found.admin, found.health, found.since) == ("ready", "checking", 80.0)


def test_an_unchanged_reload_writes_nothing() -> None:
    first = after(snapshot(version=0), decide.declare(FILE))
    assert decide.settle(first, decide.declare(FILE)(first), True, 99.0).empty


def test_declare_writes_settings_even_for_an_empty_pool() -> None:
    before = snapshot(version=0)
    written = decide.settle(before, decide.declare(PoolConfig())(before), False, 1.0).settings
    assert written == PoolSettings(configured="round-robin")
    found = after(snapshot(UP), decide.declare(PoolConfig(algorithm="least-connections")))
    assert found.settings.algorithm == "least-connections"


def test_what_was_switched_live_stays_until_the_configuration_asks_for_another() -> None:
    def loaded(before: Snapshot, algorithm: str, key: str = "ip") -> Snapshot:
        return after(before, decide.declare(PoolConfig(algorithm, hash=HashPolicy(key))))

    first = loaded(snapshot(version=0), "round-robin")
    switched = after(first, decide.switch("ip-hash"))
    tried = after(switched, decide.switch("random", 0.25))
    same = loaded(tried, "round-robin", key="path")
    assert (same.settings.algorithm, same.settings.canary) == ("ip-hash", Canary("random", 0.25))
    assert same.settings.hash.key == "path"  # the rest is the configuration's
    other = loaded(same, "least-connections")
    assert (other.settings.algorithm, other.settings.canary) == ("least-connections", None)
    # From now on that is what it asks for, and a live switch stays again.
    assert loaded(after(other, decide.switch("random")), "least-connections").settings.algorithm == "random"
    assert loaded(switched, "ip-hash").settings == PoolSettings("ip-hash", configured="ip-hash")


def test_a_pool_of_an_older_release_follows_its_configuration() -> None:
    before = snapshot(UP, settings=PoolSettings("random"))
    found = after(before, decide.declare(PoolConfig("least-connections"))).settings
    assert (found.algorithm, found.configured) == ("least-connections", "least-connections")


def test_switch_to_another_algorithm_or_try_one_out() -> None:
    policy = HealthPolicy(path="/up")
    before = snapshot(UP, settings=PoolSettings("random", policy, configured="random"))
    tried = after(before, decide.switch("ip-hash", 0.1)).settings
    assert tried == PoolSettings("random", policy, canary=Canary("ip-hash", 0.1), configured="random")
    trying = snapshot(UP, settings=tried)
    assert after(trying, decide.switch("least-time", 0.2)).settings.canary == Canary("least-time", 0.2)
    assert after(trying, decide.switch("ip-hash", 0.0)).settings == before.settings
    for share in (1.0, 2.0):
        done = after(trying, decide.switch("ip-hash", share)).settings
        assert done == PoolSettings("ip-hash", policy, configured="random")
    assert after(trying, decide.switch("ip-hash")).backends == before.backends
    same = decide.switch("random")(before)
    assert decide.settle(before, same, False, 1.0).empty


def test_restore_fills_a_store_that_has_lost_the_pool_and_no_other() -> None:
    remembered = snapshot(UP, DRAINED, version=9, settings=PoolSettings("least-connections"))
    found = after(snapshot(version=0), decide.restore(remembered), probed=True)
    assert (found.backends, found.settings) == (remembered.backends, remembered.settings)
    assert decide.restore(remembered)(snapshot(version=1)).empty


# settling


def test_what_changes_nothing_is_left_out() -> None:
    before = snapshot(UP, DRAINED)
    wanted = Change(put=(UP,), delete=("x",), settings=before.settings)
    assert decide.settle(before, wanted, True, 1.0).empty


def test_where_probing_is_off_all_are_unknown() -> None:
    off = PoolSettings(health=HealthPolicy(enabled=False))
    before = snapshot(UP, DRAINED)
    found = after(before, lambda _: Change(put=(backend("c"),), settings=off), probed=True)
    assert {each.health for each in found.backends.values()} == {"unknown"}
    assert found.backends["b"].admin == "drain"
    assert found.backends["a"].since == 50.0
    assert after(found, decide.verdicts([("a", "down")]), probed=True).backends["a"].health == "unknown"


def test_a_name_removed_and_put_at_once_is_removed() -> None:
    found = after(snapshot(UP), lambda _: Change(put=(backend("a", weight=7),), delete=("a",)))
    assert found.backends == {}
