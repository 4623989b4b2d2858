"""Keys: one slot for each pool, and no name that reaches into another pool's."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.state.keys import HEALTH_LEASE, POOL_NAME, POOLS, PoolKeys, check_zone


def keys(pool: str) -> list[str]:
    """Every key of a pool, and a lease."""
    made = PoolKeys(pool)
    return [made.members, made.state, made.order, made.workers, made.changes, made.secret, made.lease("w")]


def hash_tag(key: str) -> str:
    """The part of a key that says its slot (Redis Cluster specification, hash tags)."""
    found = re.search(r"\{([^}]+)\}", key)
    assert found
    return found.group(1)


def test_the_keys_of_a_pool() -> None:
    assert keys("web") == [
        "lb:{web}:members",
        "lb:{web}:state",
        "lb:{web}:order",
        "lb:{web}:workers",
        "lb:{web}:changes",
        "lb:{web}:secret",
        "lb:{web}:lease:w",
    ]
    assert PoolKeys("web").pool == "web"


@pytest.mark.parametrize("name", ["a", "0", "a.b_c-D", "a" * 63])
def test_pool_names(name: str) -> None:
    assert {hash_tag(key) for key in keys(name)} == {name}


@pytest.mark.parametrize(
    "name", ["", "a" * 64, "-a", ".a", "_a", "a}", "{a", "a:b", "a b", "a\n", "\xe4", "a/b", "a*", "\u0660"]
)
def test_what_is_no_pool_name(name: str) -> None:
    with pytest.raises(ValueError, match="is no pool name"):
        PoolKeys(name)


@given(st.text(max_size=70), st.text(max_size=70))
def test_no_two_pools_share_a_key(one: str, other: str) -> None:
    names = {name for name in (one, other) if POOL_NAME.match(name)}
    made = [key for name in names for key in keys(name)]
    assert len(set(made)) == 7 * len(names)
    assert not {POOLS, HEALTH_LEASE} & set(made)


@given(
    st.from_regex(POOL_NAME, fullmatch=True), st.lists(st.from_regex(POOL_NAME, fullmatch=True), unique=True)
)
def test_orders_of_zones_are_keys_of_their_own_in_their_pools_slot(pool: str, zones: list[str]) -> None:
    made = PoolKeys(pool).zones(zones)
    assert len(set(made)) == len(made) == 2 * len(zones)
    assert {hash_tag(key) for key in made} <= {pool}
    assert not set(made) & {*keys(pool), PoolKeys(pool).canary}


@pytest.mark.parametrize("name", ["a", "eu-west_1.a", ""])
def test_names_of_zones(name: str) -> None:
    assert check_zone(name) == name


@pytest.mark.parametrize("name", ["-a", "a b", "a:b", "a\n", "}", "a" * 64, "a\tb"])
def test_what_is_no_name_of_a_zone(name: str) -> None:
    with pytest.raises(ValueError, match="is no name of a zone"):
        check_zone(name)


@given(st.from_regex(POOL_NAME, fullmatch=True), st.text(min_size=1))
def test_a_lease_stays_in_its_pools_slot(pool: str, worker: str) -> None:
    assert hash_tag(PoolKeys(pool).lease(worker)) == pool
