"""Hashing: keys, stability under change, and loads that stay bounded."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Mapping
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.algorithms import algorithm, hashing
from lb.algorithms.base import CANDIDATES
from lb.algorithms.hashing import BOUNDED_CANDIDATES, check_key, normal_address, path_of
from lb.algorithms.request import HeadRequest
from lb.algorithms.ring import Ring
from lb.model import Health, Snapshot
from tests.algorithms.model import Model, backend, pool


def request(client: str = "192.0.2.1", target: str = "/", *fields: str) -> HeadRequest:
    head = "".join([f"GET {target} HTTP/1.1\r\n", *[f"{field}\r\n" for field in fields]])
    return HeadRequest(head.encode("latin-1"), client, target)


CLIENTS = [request(f"198.51.{n >> 8}.{n & 255}") for n in range(300)]


def picks(snapshot: Snapshot) -> list[str]:
    chosen = algorithm(snapshot.settings.algorithm)(snapshot)
    return [next(iter(chosen.candidates(client, Random(1).random)), "") for client in CLIENTS]


def health(snapshot: Snapshot, states: Mapping[str, Health]) -> Snapshot:
    changed = {
        name: msgspec.structs.replace(each, health=states.get(name, each.health))
        for name, each in snapshot.backends.items()
    }
    return msgspec.structs.replace(snapshot, backends=changed)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::FFFF:C000:0201", "192.0.2.1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("", ""),
        ("no:address", "no:address"),
    ],
)
def test_one_text_for_each_client(text: str, normal: str) -> None:
    assert normal_address(text) == normal


def test_an_ipv6_address_counts_whole() -> None:
    assert normal_address("2001:db8::1") != normal_address("2001:db8::2")


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/a/b?c=d", "/a/b"),
        ("/", "/"),
        ("http://host/a?b", "/a"),
        ("http://host", "/"),
        ("*", "*"),
        ("host:443", "host:443"),
        ("/a?b=http://c/d", "/a"),
    ],
)
def test_the_path_of_a_target(target: str, path: str) -> None:
    assert path_of(target) == path


@pytest.mark.parametrize("text", ["ip", "path", "header:X-Tenant", "cookie:session"])
def test_keys_there_are(text: str) -> None:
    assert check_key(text) == text


@pytest.mark.parametrize(
    "text", ["", "IP", "header", "header:", "header:a b", "cookie:a=b", "ip:x", "query:a"]
)
def test_keys_there_are_not(text: str) -> None:
    with pytest.raises(ValueError, match="write ip, path, header:NAME or cookie:NAME"):
        check_key(text)


@pytest.mark.parametrize(
    ("key", "same", "others"),
    [
        ("ip", [request("192.0.2.1"), request("::ffff:192.0.2.1", "/b")], []),
        ("path", [request("192.0.2.1", "/a?1"), request("192.0.2.9", "/a?2")], []),
        (
            "header:X-Tenant",
            [request("192.0.2.1", "/", "x-tenant: t"), request("192.0.2.9", "/b", "X-TENANT:  t ")],
            [request("192.0.2.1"), request("192.0.2.1", "/other")],
        ),
        (
            "cookie:s",
            [request("192.0.2.1", "/", "Cookie: a=b; s=1"), request("192.0.2.9", "/", "Cookie: s=1")],
            [request("192.0.2.1"), request("192.0.2.1", "/", "Cookie: S=1")],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_equal_keys_go_the_same_way_and_without_one_the_address_counts(
    key: str, same: list[HeadRequest], others: list[HeadRequest]
) -> None:
    snapshot = pool("consistent-hash", *[backend(f"b{n}") for n in range(50)], key=key)
    chosen = algorithm("consistent-hash")(snapshot)
    for group in (same, others):
        assert len({tuple(chosen.candidates(each, Random(1).random)) for each in group}) <= 1
    by_address = algorithm("ip-hash")(snapshot)
    for each in others:
        assert list(chosen.candidates(each, Random(1).random))[:CANDIDATES] == list(
            by_address.candidates(each, Random(1).random)
        )


def test_how_many_are_named_and_by_which_rule() -> None:
    backends = [backend(f"b{n}") for n in range(20)]
    for name, balance, rule, order, count in (
        ("ip-hash", 1.25, "first", "weighted-turns", CANDIDATES),
        ("consistent-hash", 0, "first", "weighted-turns", CANDIDATES),
        ("consistent-hash", 1.25, "bounded", "weighted-load", BOUNDED_CANDIDATES),
    ):
        chosen = algorithm(name)(pool(name, *backends, balance=balance))
        assert (chosen.rule, chosen.order, chosen.asks) == (rule, order, True)
        assert len(set(chosen.candidates(CLIENTS[0], Random(1).random))) == count


@pytest.mark.parametrize("name", ["ip-hash", "consistent-hash"])
def test_nobody_to_name(name: str) -> None:
    assert picks(pool(name)) == [""] * len(CLIENTS)
    assert picks(pool(name, backend("a", health="down"), backend("b", 0))) == [""] * len(CLIENTS)
    assert picks(pool(name, backend("a"), backend("b", admin="drain"))) == ["a"] * len(CLIENTS)
    chosen = algorithm(name)(pool(name, backend("a")))
    assert list(chosen.candidates(None, Random(1).random)) == []


@settings(deadline=None, max_examples=60)
@given(
    weights=st.dictionaries(
        st.sampled_from("abcdefgh"), st.sampled_from([1, 1, 2, 3, 50]), min_size=2, max_size=8
    ),
    down=st.sets(st.sampled_from("abcdefgh")),
    data=st.data(),
)
def test_only_the_share_of_what_changed_moves(
    weights: dict[str, int], down: set[str], data: st.DataObject
) -> None:
    """Whether it goes down, is drained or removed; and when it comes back all is as it was."""
    members = [
        backend(name, weight, health="down" if name in down else "up") for name, weight in weights.items()
    ]
    snapshot = pool("ip-hash", *members)
    changed = data.draw(st.sampled_from(sorted(weights)))
    before = picks(snapshot)
    gone = {
        "down": health(snapshot, {changed: "down"}),
        "removed": pool("ip-hash", *[each for each in members if each.id != changed]),
        "drained": pool(
            "ip-hash",
            *[
                msgspec.structs.replace(each, admin="drain") if each.id == changed else each
                for each in members
            ],
        ),
        "weight 0": pool(
            "ip-hash",
            *[msgspec.structs.replace(each, weight=0) if each.id == changed else each for each in members],
        ),
    }
    after = {how: picks(each) for how, each in gone.items()}
    assert len(set(map(tuple, after.values()))) == 1
    for old, new in zip(before, after["down"], strict=True):
        assert new == old if old != changed else new != changed
    assert picks(snapshot) == before


def test_a_backend_that_flaps_rebuilds_nothing() -> None:
    snapshot = pool("ip-hash", *[backend(f"b{n}") for n in range(10)], pool="flap")
    first = algorithm("ip-hash")(snapshot)
    ring = hashing._rings["flap"]
    second = algorithm("ip-hash")(health(snapshot, {"b3": "down", "b4": "down"}))
    assert hashing._rings["flap"] is ring
    third = algorithm("consistent-hash")(health(snapshot, {"b3": "up"}))
    assert hashing._rings["flap"] is ring
    assert first.name == second.name != third.name


def test_a_ring_is_kept_no_longer_than_it_is_used() -> None:
    chosen = algorithm("ip-hash")(pool("ip-hash", backend("a"), pool="brief"))
    assert isinstance(hashing._rings["brief"], Ring)
    del chosen
    gc.collect()
    assert "brief" not in hashing._rings


def test_most_of_a_pool_down() -> None:
    """Then the ring is one of those that are left, and names the same ones."""
    members = [backend(f"b{n}", health="up" if n < 3 else "down") for n in range(500)]
    members += [backend(f"heavy{n}", 8, health="up" if n == 0 else "down") for n in range(100)]
    left = [each for each in members if each.available]
    assert picks(pool("ip-hash", *members)) == picks(pool("ip-hash", *left, pool="left"))
    chosen = algorithm("ip-hash")(pool("ip-hash", *members, pool="few"))
    assert len(hashing._rings["few"].weights) == 4
    for client in CLIENTS:
        assert len(set(chosen.candidates(client, Random(1).random))) == CANDIDATES


@pytest.mark.parametrize("weights", [[1] * 20, [1, 1, 2, 4, 4, 8], [3], [1000, 1, 1, 1]], ids=str)
@pytest.mark.parametrize("balance", [1.0, 1.25, 2.0])
def test_loads_are_bounded(weights: list[int], balance: float) -> None:
    """Always, without tolerance: at each claim whoever got it holds at most balance times its share, rounded
    up. Half of the requests come from one client, connections come and go.
    """
    members = [backend(f"b{n}", weight) for n, weight in enumerate(weights)]
    chance = Random(13)
    model = Model(pool("consistent-hash", *members, balance=balance), chance.random)
    held: list[str] = []
    for _ in range(1500):
        if len(held) > 60 or (held and chance.random() < 0.45):
            model.release(held.pop(chance.randrange(len(held))))
            continue
        client = CLIENTS[0] if chance.random() < 0.5 else chance.choice(CLIENTS)
        bounds = {each.id: model.bound(each.id) for each in members}
        taken = model.claim(client)
        assert taken
        assert model.in_flight[taken] <= bounds[taken]
        held.append(taken)


def test_a_bound_costs_few_hits() -> None:
    """With 1.25 times the share and many keys most requests still go to the first of their key."""
    members = [backend(f"b{n}") for n in range(20)]
    snapshot = pool("consistent-hash", *members)
    chance = Random(14)
    model = Model(snapshot, chance.random)
    held: list[str] = []
    hits = 0
    for _ in range(4000):
        if len(held) > 200:
            model.release(held.pop(chance.randrange(len(held))))
        client = chance.choice(CLIENTS)
        taken = model.claim(client)
        assert taken
        hits += taken == model.chosen.candidates(client, chance.random)[0]
        held.append(taken)
    assert hits > 0.75 * 4000


def test_a_full_backend_hands_on_to_the_next_of_the_key() -> None:
    members = [backend(f"b{n}", 1, 1) for n in range(10)]
    model = Model(pool("ip-hash", *members), Random(1).random)
    named = list(model.chosen.candidates(CLIENTS[0], Random(1).random))
    assert [model.claim(CLIENTS[0]) for _ in range(CANDIDATES)] == named
    rest = {model.claim(CLIENTS[0]) for _ in range(10 - CANDIDATES)}
    assert rest == {each.id for each in members} - set(named)
    assert model.claim(CLIENTS[0]) is None


def test_clients_are_spread_by_weight() -> None:
    """9 % of a share where the points fall, at 300 clients 10 % more by chance: three times both together."""
    members = [backend("a", 2), backend("b", 1), backend("c", 1)]
    seen = Counter(picks(pool("ip-hash", *members)))
    assert seen["a"] == pytest.approx(150, rel=0.35)
    assert seen["b"] == pytest.approx(75, rel=0.45)


def test_what_is_not_text_is_hashed_all_the_same() -> None:
    chosen = algorithm("consistent-hash")(pool("consistent-hash", backend("a"), key="header:X"))
    assert list(chosen.candidates(request("", "/", "X: \xff\xfe"), Random(1).random)) == ["a"]
