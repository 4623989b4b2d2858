"""Passive health in the scripts: what the fleet counts, and its one probing request.

Time is moved by writing the counts as if they were of earlier: the scripts know the server's clock only.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import redis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lb.state.registry import Registry
from lb.state.scripts import OUTLIER_SHA, OUTLIER_SOURCE, PROBE_SHA, PROBE_SOURCE
from tests.state.pool import EPOCH, Pool, put
from tests.support.machines import run_on

FIELDS = 10
FROM, TOLD, PERMIT = 4, 7, 9
"""Places in the record: when its window began, when it was last told of, until when a permit counts."""

Blame = Mapping[str, tuple[int, int]]


class Fleet:
    """A pool, and calls that tell of failures."""

    def __init__(
        self, client: redis.Redis, names: str = "ab", policy: Sequence[float] = (5, 0.5, 20, 10)
    ) -> None:
        self.pool = Pool(client)
        self.policy = policy
        client.script_load(OUTLIER_SOURCE)
        client.script_load(PROBE_SOURCE)
        self.pool.make("round-robin", names)
        for worker in ("w1", "w2"):
            self.pool.scripts.lease(self.pool.keys, worker, EPOCH, {})

    def keys(self, worker: str) -> tuple[str, ...]:
        keys = self.pool.keys
        return keys.state, keys.order, keys.lease(worker), keys.canary, keys.queue

    def claim(self, name: str, count: int = 1, worker: str = "w") -> None:
        """That many requests to one backend."""
        assert self.pool.call(count, worker=worker, rules=[("f", [name], [])] * count)[1] == [name] * count

    def blame(self, blame: Blame, released: Mapping[str, int] | None = None, worker: str = "w") -> Any:
        """Give back all that is blamed (failed, void), or what is said; returns the outliers."""
        released = released or {name: sum(counts) for name, counts in blame.items()}
        answer = self.pool.client.evalsha(
            OUTLIER_SHA,
            5,
            *self.keys(worker),
            *map(str, self.policy),
            len(blame),
            *(part for name, counts in blame.items() for part in (name, *counts)),
            *(EPOCH, 0, len(released), ""),
            *(part for pair in released.items() for part in pair),
        )
        version, *rest = cast("list[Any]", answer)
        assert version == self.pool.version()
        return [(rest[at].decode(), rest[at + 1], rest[at + 2]) for at in range(0, len(rest), 3)]

    def requests(self, name: str, outcomes: str, worker: str = "w") -> Any:
        """One request after the other: "x" fails, "." succeeds, "o" is given up by its client. What is said
        of the last failure.
        """
        said = []
        for outcome in outcomes:
            self.claim(name, worker=worker)
            if outcome == ".":
                self.pool.release(name, worker=worker)
            else:
                said = self.blame({name: (int(outcome == "x"), int(outcome == "o"))}, worker=worker)
        return said

    def probe(
        self, name: str, until: float, version: int | None = None, wish: str = "", worker: str = "w"
    ) -> str:
        """Who gets a request that may be the one to probe `name`."""
        answer = self.pool.client.evalsha(
            PROBE_SHA,
            5,
            *self.keys(worker),
            *(name, repr(until), self.pool.version() if version is None else version, "60.0", wish),
            *(EPOCH, 1, 0, ""),
        )
        return cast("list[bytes | None]", answer)[1].decode()  # type: ignore[union-attr]

    def record(self, name: str) -> list[float]:
        found = self.pool.client.hget(self.pool.keys.state, f"_o{name}")
        return list(struct.unpack(f"<{FIELDS}d", cast("bytes", found)))

    def earlier(self, name: str, seconds: float, *places: int) -> None:
        """Let some of what is known of a backend be of that many seconds before."""
        record = self.record(name)
        for place in places or (FROM, TOLD):
            record[place] -= seconds
        self.pool.client.hset(self.pool.keys.state, f"_o{name}", struct.pack(f"<{FIELDS}d", *record))


@pytest.fixture
def fleet(client: redis.Redis) -> Fleet:
    return Fleet(client)


def test_failures_in_a_row_are_the_fleets(fleet: Fleet) -> None:
    assert fleet.requests("a", "...xx", "w1") == []
    assert fleet.requests("a", "xx", "w2") == []
    assert fleet.requests("b", "xxxx") == []
    assert fleet.requests("a", "x", "w1") == [("a", 5, 0)]


def test_a_success_anywhere_ends_a_row(fleet: Fleet) -> None:
    assert fleet.requests("a", "xxxx", "w1") == []
    assert fleet.requests("a", ".", "w2") == []
    assert fleet.requests("a", "xxxx", "w1") == []
    assert fleet.requests("a", "x", "w2") == [("a", 5, 0)]


def test_whose_last_request_failed(fleet: Fleet, registry: Registry) -> None:
    """As is asked before another one is ejected."""

    def failing() -> set[str]:
        return registry.failing("p", ["a", "b", "unknown"], 20.0)

    assert failing() == registry.failing("p", [], 20.0) == set()
    fleet.requests("a", "..x")
    assert failing() == {"a"}
    fleet.claim("a")  # one that is under way says nothing yet
    assert failing() == {"a"}
    fleet.pool.release("a")
    assert failing() == set()
    assert fleet.requests("a", "xxxxx")  # its counts begin anew with that
    assert failing() == {"a"}
    fleet.requests("a", "o")
    fleet.requests("b", "x")
    assert "b" in failing()
    fleet.earlier("b", 20.0)
    assert "b" not in failing()
    fleet.requests("a", "xx.o")
    assert failing() == set()


def test_who_leaves_neither_ends_a_row_nor_adds_to_it(fleet: Fleet) -> None:
    assert fleet.requests("a", "xx") == []
    assert fleet.requests("a", "oo" * 20, "w2") == []
    assert fleet.requests("a", "xx") == []
    assert fleet.requests("a", "o") == []
    assert fleet.requests("a", "x") == [("a", 5, 0)]


def test_what_is_under_way_says_nothing_yet(fleet: Fleet) -> None:
    for _ in range(4):
        fleet.claim("a", 3, "w2")
        assert fleet.requests("a", "x") == []
    assert fleet.requests("a", "x") == [("a", 5, 0)]


def test_a_whole_batch_at_once(fleet: Fleet) -> None:
    fleet.claim("a", 9)
    assert fleet.blame({"a": (4, 0)}, {"a": 9}) == []  # its successes came first
    fleet.claim("a", 1)
    fleet.claim("b", 6)
    assert fleet.blame({"a": (1, 0), "b": (6, 0)}) == [("a", 5, 0), ("b", 6, 0)]
    assert fleet.pool.in_flight() == {}
    assert fleet.pool.held() == {}


def test_a_share_of_a_window(fleet: Fleet) -> None:
    for _ in range(4):
        assert fleet.requests("a", "xx.x") == []  # three in four: too few requests yet
    assert fleet.requests("a", "xx.") == []
    assert fleet.requests("a", "x") == [("a", 15, 20)]


def test_half_is_enough(fleet: Fleet) -> None:
    assert fleet.requests("a", "x." * 60) == []


def test_a_window_ends(fleet: Fleet) -> None:
    assert fleet.requests("a", "xx." * 5) == []
    fleet.earlier("a", 10)
    assert fleet.requests("a", "xx." * 5) == []
    fleet.earlier("a", 9)
    assert fleet.requests("a", "xx.x.") == []
    assert fleet.requests("a", "x") == [("a", 14, 21)]


def test_successes_of_a_window_cost_no_call(fleet: Fleet) -> None:
    assert fleet.requests("a", "x") == []
    fleet.claim("a", 100)
    fleet.pool.call(0, {"a": 100})
    assert fleet.requests("a", "xx." * 30) == []


def test_an_outlier_is_told_of_once_a_second(fleet: Fleet) -> None:
    assert fleet.requests("a", "xxxxx") == [("a", 5, 0)]
    assert fleet.requests("a", "xxxxxxx") == []
    fleet.earlier("a", 1, TOLD)
    assert fleet.requests("a", "x") == [("a", 8, 0)]


def test_triggers_can_be_switched_off(client: redis.Redis) -> None:
    fleet = Fleet(client, policy=(0, 0.0, 1, 10))
    assert fleet.requests("a", "x" * 40) == []


def test_who_is_gone_is_not_counted_and_leaves_nothing(fleet: Fleet) -> None:
    fleet.requests("a", "xx")
    fleet.claim("a", 2)
    fleet.pool.commit(delete=["a"])
    assert fleet.blame({"a": (2, 0)}) == []
    assert not fleet.pool.client.hexists(fleet.pool.keys.state, "_oa")
    fleet.pool.commit([put("a")])
    assert fleet.requests("a", "xxxx") == []
    fleet.requests("b", "x")
    fleet.pool.commit(delete=["b"])
    assert not fleet.pool.client.hexists(fleet.pool.keys.state, "_ob")


def test_a_lease_that_is_gone_counts_nothing(fleet: Fleet) -> None:
    fleet.claim("a", 5)
    fleet.pool.scripts.reap(fleet.pool.keys, "w", 0)
    with pytest.raises(AssertionError):
        fleet.blame({"a": (5, 0)})
    assert not fleet.pool.client.hexists(fleet.pool.keys.state, "_oa")


def test_a_claim_asks_no_more_of_the_store(fleet: Fleet) -> None:
    def commands() -> int:
        fleet.pool.client.config_resetstat()
        fleet.pool.call(5, {"a": 1})
        stats = fleet.pool.client.info("commandstats")
        return sum(each["calls"] for name, each in stats.items() if name.startswith("cmdstat_"))

    fleet.pool.call(4)
    before = commands()
    fleet.requests("a", "xx.xxxxx")
    assert commands() == before


# The probing request.


def out(fleet: Fleet, name: str = "a") -> float:
    """Take a backend out as if ejected; until when, which is a moment ago."""
    fleet.pool.commit([put(name, available=False)])
    return Registry(fleet.pool.client).now() - 0.001


def test_one_request_of_the_fleet_probes(fleet: Fleet) -> None:
    until = out(fleet)
    picks = [fleet.probe("a", until, worker=worker) for worker in ("w1", "w2", "w1", "w", "w2")]
    assert picks == ["a", "b", "b", "b", "b"]
    assert fleet.pool.held("w1")["a"] == 1


def test_not_before_its_time_nor_by_old_news(fleet: Fleet) -> None:
    until = out(fleet)
    assert fleet.probe("a", until + 60) == "b"
    assert fleet.probe("a", until, version=fleet.pool.version() - 1) == "b"
    assert fleet.probe("a", 1e300) == "b"
    assert fleet.probe("a", until) == "a"


def test_the_next_ejection_has_its_own(fleet: Fleet) -> None:
    until = out(fleet)
    assert fleet.probe("a", until) == "a"
    assert fleet.probe("a", until - 1) == "a"


def test_a_permit_of_which_nothing_is_heard_lapses(fleet: Fleet) -> None:
    until = out(fleet)
    assert fleet.probe("a", until) == "a"
    fleet.earlier("a", 59, PERMIT)
    assert fleet.probe("a", until) == "b"
    fleet.earlier("a", 2, PERMIT)
    assert [fleet.probe("a", until) for _ in range(3)] == ["a", "b", "b"]


def test_who_is_full_is_not_probed_now(fleet: Fleet) -> None:
    fleet.pool.commit([put("a", cap=1)])
    fleet.claim("a")
    fleet.pool.commit([put("a", cap=1, available=False)])
    until = Registry(fleet.pool.client).now()
    assert fleet.probe("a", until) == "b"
    fleet.pool.release("a")
    assert fleet.probe("a", until) == "a"


def test_those_in_the_queue_do_not_keep_it_out(fleet: Fleet) -> None:
    fleet.pool.commit([put("b", cap=1)])
    until = out(fleet)
    fleet.claim("b")
    fleet.pool.client.hset(fleet.pool.keys.state, "_w", 3)
    assert fleet.probe("a", until) == "a"


def test_who_may_not_probe_gets_what_it_asked_for(client: redis.Redis) -> None:
    fleet = Fleet(client, "abcd")
    until = out(fleet)
    assert fleet.probe("a", until) == "a"
    assert fleet.probe("a", until, wish="f\td\t") == "d"
    assert fleet.probe("a", until, wish="\t\tb\nc") == "d"


def test_failures_and_permit_share_a_record(fleet: Fleet) -> None:
    fleet.requests("a", "xxx")
    until = out(fleet)
    assert fleet.probe("a", until) == "a"
    fleet.blame({"a": (1, 0)})
    assert fleet.record("a")[0] == 4
    assert fleet.probe("a", until) == "b"


# A model beside it.


@dataclass
class Known:
    """What the model has counted of a backend."""

    under_way: dict[str, int] = field(default_factory=lambda: {"w1": 0, "w2": 0})
    row: int = 0
    clean: bool = True  # since the last success
    window: list[int] | None = None
    age: float = 0.0
    told: float = 1e9


class Machine(RuleBasedStateMachine):
    """Requests of two workers end in any order and in any batches; the script says what the model says."""

    client: redis.Redis
    POLICY = (4, 0.5, 8, 1000)

    @initialize()
    def begin(self) -> None:
        self.client.flushdb()
        self.fleet = Fleet(self.client, policy=self.POLICY)
        self.known = {"a": Known(), "b": Known()}

    @rule(worker=st.sampled_from(["w1", "w2"]), name=st.sampled_from("ab"), count=st.integers(1, 6))
    def claim(self, worker: str, name: str, count: int) -> None:
        self.fleet.claim(name, count, worker)
        self.known[name].under_way[worker] += count

    @rule(worker=st.sampled_from(["w1", "w2"]), name=st.sampled_from("ab"), count=st.integers(1, 6))
    def succeed(self, worker: str, name: str, count: int) -> None:
        known = self.known[name]
        count = min(count, known.under_way[worker])
        if count:
            self.fleet.pool.call(0, {name: count}, worker=worker)
            known.under_way[worker] -= count
            self.good(known, count)

    def good(self, known: Known, count: int) -> None:
        known.clean = known.clean and not count
        if known.window:
            known.window[0] += count

    @rule(
        worker=st.sampled_from(["w1", "w2"]),
        name=st.sampled_from("ab"),
        good=st.integers(0, 3),
        bad=st.integers(0, 4),
        void=st.integers(0, 2),
    )
    def fail(self, worker: str, name: str, good: int, bad: int, void: int) -> None:
        known = self.known[name]
        total = good + bad + void
        if not bad + void or total > known.under_way[worker]:
            return
        said = self.fleet.blame({name: (bad, void)}, {name: total}, worker)
        known.under_way[worker] -= total
        self.good(known, good)
        known.row = (known.row if known.clean else 0) + bad
        known.clean = True
        if known.window is None or known.age >= self.POLICY[3]:
            known.window, known.age = [0, 0], 0.0
        known.window[1] += bad
        fine, failed = known.window
        wanted = []
        if bad and known.told >= 1:
            if known.row >= self.POLICY[0]:
                wanted = [(name, known.row, 0)]
            elif fine + failed >= self.POLICY[2] and fine / (fine + failed) < self.POLICY[1]:
                wanted = [(name, failed, fine + failed)]
        assert said == wanted
        if wanted:
            known.row, known.window, known.told = 0, None, 0.0

    @rule(name=st.sampled_from("ab"), seconds=st.sampled_from([2.0, 600.0, 1200.0]))
    def wait(self, name: str, seconds: float) -> None:
        if self.fleet.pool.client.hexists(self.fleet.pool.keys.state, f"_o{name}"):
            known, record = self.known[name], self.fleet.record(name)
            self.fleet.earlier(name, seconds, *((FROM, TOLD) if record[FROM] >= 0 else (TOLD,)))
            known.age += seconds
            known.told += seconds

    @invariant()
    def nothing_is_lost(self) -> None:
        for name, known in self.known.items():
            assert self.fleet.pool.in_flight().get(name, 0) == sum(known.under_way.values())


@pytest.mark.timeout(120)
def test_whatever_fails(client: redis.Redis) -> None:
    run_on(client, Machine, examples=60, steps=40)
