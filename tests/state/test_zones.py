"""Zones in the shared state and in the books of a worker: an order for each, and one truth for all counts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
import redis

from lb.algorithms import ALGORITHMS
from lb.algorithms.reports import Report
from lb.algorithms.request import HeadRequest
from lb.errors import ConfigError
from lb.model import Backend
from lb.settings import BackendSpec, PoolConfig
from lb.state import decide
from lb.state.keys import MAX_ZONES, PoolKeys
from lb.state.queue import Queue, Ticket
from lb.state.registry import Registry
from lb.state.scripts import CLAIM_SOURCE, EXPLAIN_SOURCE, Put, Scripts
from lb.state.wishes import CANARY, PLAIN, WIDE, marked
from tests.state.pool import EPOCH, Pool, put
from tests.state.test_claims import Desk, Waits

REQUEST = HeadRequest(b"GET / HTTP/1.1\r\nHost: h\r\n", "192.0.2.7", "/")
HOMES = {"e1": "east", "e2": "east", "e3": "east", "w1": "west", "w2": "west", "n": ""}


def make(pool: Pool, algorithm: str = "round-robin", cap: int = 0, canary: str = "") -> None:
    puts = [put(name, cap=cap, zone=zone) for name, zone in HOMES.items()]
    pool.commit(puts, algorithm=algorithm, canary=canary, zones=["east", "west"])
    pool.scripts.lease(pool.keys, "w", EPOCH, {})


def picked(pool: Pool, count: int, zone: str = "", **how: Any) -> list[str | None]:
    return pool.call(count, zone=zone, **how)[1]


@pytest.fixture(autouse=True)
def _scripts(client: redis.Redis) -> None:
    client.script_load(CLAIM_SOURCE)  # as a link does when it connects


class Asks:
    """Who waits for a pick, and turns the link until it has one."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._picks: list[Backend | None] = []

    def switch(self, pick: Backend | None, /) -> None:
        self._picks.append(pick)

    def wait(self) -> Backend | None:
        while not self._picks:
            self._desk.turn()
        return self._picks.pop()

    def get(self, *exclude: str, **how: Any) -> str | None:
        """One claim."""
        pick = self._desk.claims.claim(self, self.wait, exclude, **how)
        return pick.id if pick else None


# the script


def test_each_zone_and_the_pool_have_turns_of_their_own(pool: Pool) -> None:
    make(pool)
    assert picked(pool, 4, "east") == ["e1", "e2", "e3", "e1"]
    assert picked(pool, 7) == ["e1", "e2", "e3", "n", "w1", "w2", "e1"]
    assert picked(pool, 3, "west") == ["w1", "w2", "w1"]
    assert picked(pool, 3, "east") == ["e2", "e3", "e1"]
    assert pool.in_flight() == pool.held() == {"e1": 5, "e2": 3, "e3": 3, "n": 1, "w1": 3, "w2": 2}


def test_the_least_is_the_least_whoever_caused_the_load(pool: Pool) -> None:
    make(pool, "least-connections")
    picked(pool, 6, "east")
    assert sorted(map(str, picked(pool, 3))) == ["n", "w1", "w2"]
    assert sorted(map(str, picked(pool, 3))) == ["n", "w1", "w2"]
    picked(pool, 6)
    pool.release("e2", "w1", "w1")
    assert picked(pool, 1, "east") == ["e2"]
    assert picked(pool, 2, "west") == ["w1", "w1"]


@pytest.mark.parametrize("algorithm", ["round-robin", "weighted-round-robin", "least-connections"])
def test_a_cap_is_one_cap_over_all_orders(pool: Pool, algorithm: str) -> None:
    make(pool, algorithm, cap=2)
    picked(pool, 7)
    picked(pool, 6, "east")
    assert {name: n for name, n in pool.in_flight().items() if name[0] == "e"} == {"e1": 2, "e2": 2, "e3": 2}
    assert picked(pool, 2, "east") == [None, None]
    assert set(pool.order()) == {name for name in ("w1", "w2", "n") if pool.in_flight().get(name, 0) < 2}
    while picked(pool, 1, "west") != [None]:
        pass
    while picked(pool, 1) != [None]:
        pass
    assert pool.in_flight() == pool.held() == dict.fromkeys(HOMES, 2)
    pool.call(0, [("e1", 1), ("w1", 1), ("n", 1)], zone="west")
    assert set(pool.order("east")) == {"e1"}
    assert set(pool.order("west")) == {"w1"}
    assert set(pool.order()) == {"e1", "w1", "n"}


@pytest.mark.parametrize("algorithm", ["round-robin", "weighted-round-robin"])
@pytest.mark.parametrize("canary", [False, True])
def test_the_turns_of_one_order_say_nothing_in_another(pool: Pool, algorithm: str, canary: bool) -> None:
    """The pool's order is a hundred rounds ahead when a backend leaves both at its cap, and comes back."""
    make(pool, algorithm, canary="round-robin" if canary else "")
    far = [(name, 100) for name in HOMES]
    pool.call(600)
    pool.call(0, far)
    pool.commit([put("e2", cap=1, zone="east")])
    while "e2" not in picked(pool, 1):
        pass
    assert "e2" not in pool.order() | pool.order("east")
    lane: dict[str, Any] = {"canary": True} if canary else {"zone": "east"}
    pool.call(0, [("e2", 1)], **lane)
    pool.commit([put("e2", zone="east")])
    counts = Counter(picked(pool, 60, **lane))
    wanted = [10] * 6 if canary else [20] * 3
    assert all(abs(counts[name] - share) <= 1 for name, share in zip(sorted(HOMES), wanted, strict=False))


def test_a_backend_that_was_full_gets_no_second_turn_in_its_zone(pool: Pool) -> None:
    make(pool)
    pool.commit([put("e1", cap=1, zone="east")])
    assert picked(pool, 1, "east") == ["e1"]
    pool.call(0, [("e1", 1)], zone="east")
    assert picked(pool, 2, "east") == ["e2", "e3"]
    assert picked(pool, 1, "east") == ["e1"]


def test_nor_when_another_order_fills_it_all_the_time(pool: Pool) -> None:
    make(pool, "weighted-round-robin")
    pool.commit([put("e1", cap=2, zone="east")])
    counts: Counter[str | None] = Counter()
    for _ in range(30):
        (name,) = picked(pool, 1, "east")
        counts[name] += 1
        pool.call(0, [(str(name), 1)])
        while "e1" in pool.order("east"):
            pool.call(1)
        pool.call(0, [("e1", 2)])
    assert max(counts.values()) - min(counts.values()) <= 1, counts


def test_a_lease_is_counted_in_all_orders_by_whoever_knows_of_no_zone_yet(pool: Pool) -> None:
    make(pool, "least-connections")

    def loads() -> tuple[int, int, Any]:
        key = pool.keys.state
        held = pool.client.hget(key, "_o:east:t")
        return int(pool.order()["e1"]), int(pool.order("east")["e1"]), held

    Scripts(pool.client).lease(pool.keys, "another", EPOCH, {"e1": 3})
    assert loads() == (3, 3, b"3")
    assert Scripts(pool.client).reap(pool.keys, "another", 0) == 3
    assert loads() == (0, 0, b"0")


def test_a_client_of_another_zone_takes_nobodys_turn_and_stays_out_of_the_order(pool: Pool) -> None:
    for algorithm in ("round-robin", "least-connections"):
        make(pool, algorithm)
        before = pool.order("east")
        assert picked(pool, 2, "east", rules=[("o", ["w2"], []), ("of", ["w2", "e1"], [])]) == ["w2", "w2"]
        assert pool.order("east") == before
        assert set(pool.order("west")) == {"w1", "w2"}
        pool.call(0, [("w2", 1)], zone="east")
        assert pool.order("east") == before
        # A load is known where it is at home.
        if algorithm == "least-connections":
            assert picked(pool, 1, "west") == ["w1"]
        pool.commit(delete=list(HOMES), zones=[])


def test_bounded_loads_are_shares_of_the_zone(pool: Pool) -> None:
    """With 30 connections in the west a bound over the pool would let one of the east have 19."""
    make(pool, "consistent-hash")
    picked(pool, 30, "west")
    bound = f"b{1.25 / 3}"
    counts = Counter(picked(pool, 12, "east", rules=[(bound, ["e1", "e2", "e3"], [])] * 12))
    assert counts == {"e1": 5, "e2": 5, "e3": 2}


def test_who_does_not_serve_its_zone_serves_the_pool_alone(pool: Pool) -> None:
    """As in a panic, or as a backup."""
    make(pool)
    pool.commit([at_home("e2", "-east")])
    assert set(pool.order()) == set(HOMES)
    assert picked(pool, 4, "east") == ["e1", "e3", "e1", "e3"]
    pool.commit([at_home("e2", "east")])
    assert Counter(picked(pool, 6, "east")) == {"e1": 2, "e2": 2, "e3": 2}


def at_home(name: str, home: str) -> Put:
    return put(name)._replace(home=home)


def test_a_worker_that_has_not_heard_of_a_zone_asks_anew(registry: Registry) -> None:
    declare(registry, "round-robin", "east", "east")
    desk = Desk(registry, zone="east")
    asks = Asks(desk)
    assert asks.get() is not None
    registry.change("p", decide.add(Backend("x", "http://x:1", zone="north")))
    gaps = desk.gaps
    desk.claims.waiting.append((waiter := Waits(), PLAIN))
    assert desk.turn() == 0
    assert not waiter.picks
    assert desk.gaps == gaps + 1
    desk.refresh()
    desk.open()
    desk.turn()
    assert waiter.got in ("b0", "b1")


def test_calls_without_zones_cost_what_they_did(pool: Pool) -> None:
    """And with them a fixed number more, whatever the batch."""

    def commands(count: int, zone: str) -> int:
        pool.client.config_resetstat()
        pool.call(count, {"e1": 1}, zone=zone)
        stats: Any = pool.client.info("commandstats")
        inside = "hmget|hset|zrange|zadd|zrem|hincrby|hget|hexists|time|zmscore|lindex|rpush"
        return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in inside.split("|"))

    pool.make("round-robin", ["e1", "e2"])
    assert commands(5, "") == 6
    pool.commit([put("e1", zone="east"), put("e2", zone="east")], zones=["east"])
    assert commands(5, "east") == commands(50, "east") == 8


# the registry


def declare(registry: Registry, algorithm: str, *homes: str, cap: int = 0, **settings: Any) -> None:
    specs = tuple(
        BackendSpec(f"http://127.0.0.1:{9000 + n}", id=f"b{n}", zone=zone, max_connections=cap)
        for n, zone in enumerate(homes)
    )
    registry.change("p", decide.declare(PoolConfig(algorithm, specs, **settings)))


def test_a_zone_leaves_nothing_behind(registry: Registry, client: redis.Redis) -> None:
    declare(registry, "round-robin", "east", "west")
    desk = Desk(registry, zone="east")
    assert Asks(desk).get() == "b0"
    assert client.exists(*PoolKeys("p").zones(["east", "west"])) == 2
    declare(registry, "round-robin", "west", "west")
    assert client.exists(*PoolKeys("p").zones(["east"])) == 0
    state: Any = client.hgetall(PoolKeys("p").state)
    assert not [name for name in state if b"east" in name]
    assert {name for name in state if name.startswith(b"_z")} == {b"_z", b"_zb0", b"_zb1"}
    assert state[b"_o:west:t"] == b"1"
    assert [one.zone for one in registry.status("p")] == ["west", "west"]


def test_so_many_zones_and_no_more(registry: Registry) -> None:
    homes = [f"z{n}" for n in range(MAX_ZONES)]
    declare(registry, "round-robin", *homes)
    with pytest.raises(ConfigError, match="would have 33 zones; 32 are the most"):
        registry.change("p", decide.add(Backend("x", "http://x:1", zone="another")))
    with pytest.raises(ValueError, match="is no name of a zone"):
        registry.change("p", decide.add(Backend("x", "http://x:1", zone="z}:")))
    assert len(registry.load("p").backends) == MAX_ZONES


def test_reports_act_in_the_order_of_the_zone(registry: Registry) -> None:
    declare(registry, "resource-based", "east", "east", "west")
    policy = msgspec.structs.replace(registry.load_settings("p").report, blackout=0)
    settings = msgspec.structs.replace(registry.load_settings("p"), report=policy)
    registry.change("p", lambda snapshot: decide.Change(settings=settings))
    key = PoolKeys("p").zones(["east"])[0]
    before: Any = registry.client.zscore(key, "b0")
    registry.report("p", "b0", Report(1.0, load=0.75))
    assert before > 0
    assert registry.client.zscore(key, "b0") == pytest.approx(4 * before)
    asks = Asks(Desk(registry, zone="east"))
    assert Counter(asks.get() for _ in range(10))["b0"] == 2


# the worker


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("shared", [True, False])
def test_every_algorithm_keeps_to_the_zone_and_comes_back_to_it(
    registry: Registry, algorithm: str, shared: bool
) -> None:
    declare(registry, algorithm, "east", "east", "west", "west", "")
    desk = Desk(registry, zone="east", connect=shared)
    everybody, east = {"b0", "b1", "b2", "b3", "b4"}, {"b0", "b1"}

    def served() -> set[str | None]:
        asks = (HeadRequest(b"GET / HTTP/1.1\r\nHost: h\r\n", f"192.0.2.{n}", "/") for n in range(60))
        found: set[str | None] = set()
        for request in asks:
            found.add(name := Asks(desk).get(request=request))
            desk.claims.release(name or "")
        return found

    assert served() == east
    registry.change("p", decide.verdicts([("b0", "down")]))
    desk.refresh()
    assert desk.claims.choice.zone == ""
    assert served() == everybody - {"b0"}
    registry.change("p", decide.verdicts([("b0", "up")]))
    desk.refresh()
    assert served() == east


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("algorithm", ["round-robin", "random"])
def test_a_full_zone_and_a_failed_one_lose_no_request(
    registry: Registry, algorithm: str, shared: bool
) -> None:
    declare(registry, algorithm, "east", "west", cap=2)
    desk = Desk(registry, zone="east", connect=shared)

    asks = Asks(desk)
    assert [asks.get() for _ in range(5)] == ["b0", "b0", "b1", "b1", None]
    desk.claims.release("b0")
    desk.claims.release("b1")
    assert asks.get("b0") == "b1"
    assert asks.get("b1") == "b0"


def test_claims_for_the_zone_for_all_and_of_a_canary_go_in_calls_of_their_own(registry: Registry) -> None:
    declare(registry, "round-robin", "east", "west")
    registry.change("p", decide.switch("random", 0.5))
    desk = Desk(registry, zone="east")
    wishes = [
        PLAIN,
        marked(CANARY, PLAIN),
        marked(WIDE, PLAIN),
        marked(CANARY | WIDE, PLAIN),
        marked(CANARY, "\t\tb0"),
        "\t\tb1",
        marked(WIDE, "\t\tb0"),
    ]
    waiting = [Waits() for _ in wishes]
    desk.claims.waiting.extend(zip(waiting, wishes, strict=True))
    assert desk.sent() == ["2", "0", "\teast\teast\nwest", "\t\tb1"]
    assert desk.sent() == ["2", "0", "c\teast\teast\nwest", "\t\tb0"]
    assert desk.sent() == ["2", "0", "\t\teast\nwest", "\t\tb0"]
    assert desk.sent() == ["1", "0", "c\t\teast\nwest"]
    assert [waiter.got for waiter in waiting][:2] == ["b0", "b0"]
    assert [waiter.got for waiter in waiting][4:] == [None, "b0", "b1"]


def test_a_home_in_another_zone_stays_home(registry: Registry) -> None:
    for shared in (True, False):
        declare(registry, "least-connections", "east", "east", "west")
        desk = Desk(registry, zone="east", connect=shared)
        asks = Asks(desk)
        for _ in range(3):
            assert asks.get() in ("b0", "b1")
            assert asks.get(own="b2") == "b2"


def test_a_backup_that_stands_by_comes_after_the_other_zones(registry: Registry) -> None:
    for shared in (True, False):
        declare(registry, "round-robin", "east", "west")
        backup = Backend("x", "http://x:1", zone="east", backup=True)
        registry.change("p", decide.add(backup))
        desk = Desk(registry, zone="east", connect=shared)
        asks = Asks(desk)
        assert [asks.get(), asks.get("b0"), asks.get("b0", "b1")] == ["b0", "b1", "x"]


def test_what_a_claim_of_a_zone_tells(registry: Registry) -> None:
    """Who stands elsewhere is left out, until the zone has nobody: then all are looked at."""
    declare(registry, "least-connections", "east", "west", cap=1)
    registry.client.script_load(EXPLAIN_SOURCE)
    desk = Desk(registry, zone="east")

    def explained() -> tuple[str | None, dict[str, Any], list[str]]:
        waits = Waits()

        def switch() -> Backend | None:
            while not waits.picks and desk.turn():
                pass
            return waits.picks.pop()

        pick, seen = desk.claims.explainer.explain(waits, switch)
        assert seen.basis == "shared"
        why: dict[str, Any] = {one.id: one.reason for one in seen.excluded}
        return pick.id if pick else None, why, [one.id for one in seen.candidates]

    assert explained() == ("b0", {"b1": "other zone"}, ["b0"])
    assert explained() == ("b1", {"b0": "full"}, ["b1"])
    assert explained() == (None, {"b0": "full", "b1": "full"}, [])


@pytest.mark.parametrize("shared", [True, False])
def test_who_waits_takes_the_next_slot_of_any_zone(registry: Registry, shared: bool) -> None:
    declare(registry, "random", "east", "west", cap=1)
    desk = Desk(registry, zone="east", connect=shared)
    asks = Asks(desk)
    assert [asks.get(), asks.get(), asks.get()] == ["b0", "b1", None]

    def block(ticket: Ticket) -> None:
        while desk.turn():
            pass
        assert not ticket.over
        desk.claims.release("b1")
        while desk.turn():
            pass
        assert ticket.over

    line = Queue(desk.claims)
    pick = line.wait((), None, False, "", Waited(), block, lambda ticket: None)
    assert pick is not None
    assert pick.id == "b1"


class Waited:
    """What the access log is told."""

    queued = 0.0
