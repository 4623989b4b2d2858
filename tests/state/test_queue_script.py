"""`redis/queue.lua`, as `claim`, `lease` and `reap` use it: who waits is served in turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytest
import redis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lb.state.scripts import CLAIM_SHA
from tests.state.pool import EPOCH, Pool, put
from tests.state.test_claim_script import commands
from tests.support.machines import run_on
from tests.support.run import eventually

MINUTE = 60_000_000


class Hall:
    """The queue of a pool, and an ear at the channel of each worker that lives."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.client = pool.client
        self.ears: dict[str, Any] = {}

    def join(self, worker: str) -> None:
        self.pool.scripts.lease(self.pool.keys, worker, EPOCH, {})
        if worker not in self.ears:
            ear = self.client.pubsub()  # type: ignore[no-untyped-call]
            ear.subscribe(self.pool.keys.calls(worker))
            assert ear.get_message(timeout=5)["type"] == "subscribe"
            self.ears[worker] = ear

    def kill(self, worker: str) -> None:
        """Its connections close; its lease stays for now."""
        self.ears.pop(worker).close()
        channel = self.pool.keys.calls(worker)
        eventually(
            lambda: dict(self.client.pubsub_numsub(channel))[channel.encode()] == 0, "it to be noticed"
        )

    def heard(self, worker: str) -> list[int]:
        """For how many this worker was told to ask, at each time."""
        found: list[int] = []
        self.client.publish(self.pool.keys.calls(worker), 0)  # all that came before it has arrived with it
        while message := self.ears[worker].get_message(timeout=5):
            if int(message["data"]) == 0:
                return found
            found.append(int(message["data"]))
        raise AssertionError("nothing was heard")

    def ask(
        self,
        numbers: Sequence[str],
        worker: str = "w",
        releases: Sequence[str] = (),
        size: int = 100,
        oldest: int = MINUTE,
        exclude: Sequence[str] = (),
    ) -> tuple[list[str | None], list[str]]:
        """A call with a ticket for each claim: picks, and the tickets that were refused."""
        keys = self.pool.keys
        spec = "\t\t" + "\n".join(exclude)
        version, *rest = cast(
            "list[Any]",
            self.client.evalsha(
                CLAIM_SHA,
                5,
                *(keys.state, keys.order, keys.lease(worker), keys.canary, keys.queue),
                *(EPOCH, len(numbers), len(releases)),
                f"\t\t\t{worker}\t{size}\t{oldest}\t{' '.join(numbers)}",
                *(part for name in releases for part in (name, 1)),
                *(spec for _ in numbers),
            ),
        )
        assert version == self.pool.version()
        refused = rest.pop().decode().split(" ") if len(rest) > len(numbers) else []
        assert len(rest) == len(numbers)
        return [pick.decode() if pick else None for pick in rest], refused

    def waiting(self) -> list[str]:
        """The tickets, from the front."""
        found = cast("list[bytes]", self.client.zrange(self.pool.keys.queue, 0, -1))
        noted = cast("bytes | None", self.client.hget(self.pool.keys.state, "_w"))
        assert (noted is None) == (not found)
        assert int(noted or 0) == len(found)
        return [each.decode() for each in found]

    def close(self) -> None:
        for ear in self.ears.values():
            ear.close()


@pytest.fixture
def hall(pool: Pool) -> Iterator[Hall]:
    """One backend with one slot, which is taken."""
    pool.make("round-robin", "a", cap=1)
    made = Hall(pool)
    made.join("w")
    made.join("v")
    pool.claim(1)
    yield made
    made.close()


def test_tickets_are_served_in_turn(hall: Hall) -> None:
    assert hall.ask(["1", "2"]) == ([None, None], [])
    assert hall.ask(["1"], "v") == ([None], [])
    assert hall.waiting() == ["w 1", "w 2", "v 1"]
    # Who asks before it is its turn gets nothing, though there is a slot.
    hall.pool.release("a")
    assert (hall.heard("w"), hall.heard("v")) == ([1], [])
    assert hall.ask(["1"], "v")[0] == [None]
    assert hall.ask(["2", "1"])[0] == [None, "a"]
    assert hall.waiting() == ["w 2", "v 1"]
    assert hall.ask(["2"], releases=["a"])[0] == ["a"]
    assert hall.ask(["1"], "v")[0] == [None]
    hall.pool.release("a")
    assert hall.heard("v") == [1]
    assert hall.ask(["1"], "v")[0] == ["a"]
    assert hall.waiting() == []


def test_nobody_without_a_ticket_passes_those_who_wait(hall: Hall) -> None:
    hall.ask(["1"])
    assert hall.pool.call(1, {"a": 1})[1] == [None]
    assert hall.pool.call(1, exclude=[["b"]])[1] == ["a"]  # a retry may: it has had its turn
    hall.pool.release("a")
    # With more slots than waiters there is one for who comes, and its ticket is not kept.
    hall.pool.commit([put("a", cap=3)])
    assert hall.ask(["9"], "v")[0] == ["a"]
    assert hall.ask(["1"])[0] == ["a"]
    assert hall.pool.call(2)[1] == ["a", None]


def test_a_retry_holds_nobody_up(hall: Hall) -> None:
    assert hall.ask(["1"]) == ([None], [])
    assert hall.ask(["2"], "v", exclude=["a"]) == ([None], [])
    assert hall.waiting() == ["v 2", "w 1"]
    hall.pool.release("a")
    assert (hall.heard("w"), hall.heard("v")) == ([1], [1])
    assert hall.ask(["2"], "v", exclude=["a"])[0] == [None]
    assert hall.ask(["1"])[0] == ["a"]


def test_the_queue_has_a_size_for_all_workers(hall: Hall) -> None:
    assert hall.ask(["1", "2"], size=3) == ([None, None], [])
    assert hall.ask(["1", "2", "3"], "v", size=3) == ([None] * 3, ["2", "3"])
    assert hall.waiting() == ["w 1", "w 2", "v 1"]
    # A ticket that is there already is not refused.
    assert hall.ask(["1", "2"], size=1) == ([None, None], [])
    # Nor is who need not wait.
    hall.ask(["-1", "-2", "-1"])
    hall.ask(["-1"], "v")
    hall.pool.release("a")
    assert hall.ask(["7"], size=1) == (["a"], [])


def test_who_leaves_is_gone_whatever_else_the_call_says(hall: Hall) -> None:
    hall.ask(["1"])
    hall.ask(["1"], "v")
    assert hall.ask(["1", "-1", "5", "-5"]) == ([None] * 4, [])
    assert hall.waiting() == ["v 1"]
    hall.pool.release("a")
    assert hall.heard("v") == [1]
    assert hall.ask(["-1"], "v")[0] == [None]
    assert hall.waiting() == []
    assert hall.pool.claim(1) == ["a"]


def test_a_ticket_that_outlives_its_time_goes(hall: Hall) -> None:
    hall.ask(["1"])
    hall.ask(["2"], exclude=["a"])
    assert hall.ask(["3"], "v", oldest=0) == ([None], [])
    assert hall.waiting() == ["v 3"]


def test_a_worker_that_nobody_hears_keeps_nobody_waiting(hall: Hall) -> None:
    hall.join("x")
    hall.ask(["1", "2"])
    hall.ask(["1"], "x")
    hall.ask(["1"], "v")
    hall.kill("w")
    hall.kill("x")
    hall.pool.call(0, {"a": 1})
    assert hall.heard("v") == [1]
    assert hall.waiting() == ["v 1"]


def test_a_dead_worker_s_tickets_go_with_its_lease(hall: Hall) -> None:
    hall.pool.scripts.lease(hall.pool.keys, "w10", EPOCH, {})
    hall.join("w1")
    hall.join("w10")
    hall.ask(["1", "2"], "w1")
    hall.ask(["1"], "w10")
    assert hall.pool.scripts.reap(hall.pool.keys, "w1", 0) == 0
    assert hall.waiting() == ["w10 1"]
    # What the dead held is free for who waits.
    assert hall.pool.scripts.reap(hall.pool.keys, "w", 0) == 1
    assert hall.heard("w10") == [1]
    hall.pool.scripts.close(hall.pool.keys, "w10")
    assert hall.waiting() == []


def test_a_lease_that_is_opened_anew_has_no_tickets(hall: Hall) -> None:
    hall.ask(["1"])
    hall.ask(["1"], "v")
    hall.pool.scripts.lease(hall.pool.keys, "w", EPOCH, {})
    assert hall.waiting() == ["v 1"]
    assert hall.heard("v") == [1]  # its connection ended meanwhile


def test_the_canary_s_claims_wait_in_the_same_queue(hall: Hall) -> None:
    hall.pool.commit(canary="least-connections")
    hall.ask(["1"])
    assert hall.pool.call(1, {"a": 1}, canary=True)[1] == [None]
    assert hall.ask(["1"])[0] == ["a"]


def test_claims_cost_nothing_more_while_nobody_waits(hall: Hall) -> None:
    hall.pool.commit([put(name, cap=100) for name in "abc"])
    hall.pool.client.config_resetstat()
    hall.pool.call(20, {"a": 1})
    wanted = {"evalsha": 1, "zrange": 1, "lindex": 1, "hmget": 1, "hset": 1, "zadd": 1, "rpush": 1}
    assert {name: n for name, n in commands(hall.pool.client).items() if name in wanted} == wanted
    assert set(commands(hall.pool.client)) <= {*wanted, "config|resetstat", "config", "info"}


# Whatever is done in whatever order.

WORKERS = st.sampled_from(["w1", "w2", "w3"])


class Machine(RuleBasedStateMachine):
    """Requests come, wait, are served or give up, workers die; beside that a list says who is next."""

    client: redis.Redis

    @initialize(
        cap=st.integers(1, 3),
        algorithm=st.sampled_from(["round-robin", "weighted-least-connections"]),
        size=st.integers(1, 6),
    )
    def begin(self, cap: int, algorithm: str, size: int) -> None:
        self.client.flushdb()
        self.hall = Hall(Pool(self.client))
        self.size = size
        self.caps = {"a": cap, "b": 1}
        self.hall.pool.commit([put(name, cap=n) for name, n in self.caps.items()], algorithm=algorithm)
        #: Who waits, first come first.
        self.line: list[tuple[str, str]] = []
        self.held: dict[str, Counter[str]] = {}
        self.number = 0
        for worker in ("w1", "w2", "w3"):
            self.join(worker)

    def join(self, worker: str) -> None:
        self.hall.join(worker)
        self.held[worker] = Counter()

    def teardown(self) -> None:
        self.hall.close()

    def free(self) -> int:
        used = sum((held for held in self.held.values()), Counter[str]())
        return sum(max(0, cap - used[name]) for name, cap in self.caps.items())

    def serve(self, worker: str, numbers: list[str]) -> None:
        """Ask, and look who was served: only those whose turn it was, and all of them."""
        free = self.free()
        line = list(self.line)
        for number in numbers:
            if (worker, number) not in line and (len(line) < free or len(line) < self.size):
                line.append((worker, number))
        turn = line[:free]
        picks, refused = self.hall.ask(numbers, worker, size=self.size)
        for number, pick in zip(numbers, picks, strict=True):
            ticket = (worker, number)
            assert (pick is not None) == (ticket in turn), (ticket, turn, pick)
            assert (number in refused) == (ticket not in line)
            if pick is not None:
                line.remove(ticket)
                self.held[worker][pick] += 1
        self.line = line

    @rule(worker=WORKERS, count=st.integers(1, 4))
    def come(self, worker: str, count: int) -> None:
        numbers = [str(self.number + n) for n in range(count)]
        self.number += count
        self.serve(worker, numbers)

    @rule(worker=WORKERS)
    def ask_all(self, worker: str) -> None:
        numbers = [number for who, number in self.line if who == worker]
        if numbers:
            self.serve(worker, numbers)

    @rule(worker=WORKERS, count=st.integers(1, 3))
    def pass_by(self, worker: str, count: int) -> None:
        """Without a ticket: nothing while anybody waits."""
        free = self.free()
        picks = [pick for pick in self.hall.pool.call(count, worker=worker)[1] if pick]
        assert len(picks) == (0 if self.line else min(count, free))
        self.held[worker].update(picks)

    @rule(worker=WORKERS, data=st.data())
    def end(self, worker: str, data: st.DataObject) -> None:
        """A connection ends, and those who may have its slot are told."""
        held = sorted((+self.held[worker]).elements())
        if not held:
            return
        name = data.draw(st.sampled_from(held))
        for each in self.hall.ears:
            self.hall.heard(each)
        self.hall.pool.release(name, worker=worker)
        self.held[worker][name] -= 1
        told = Counter(who for who, _ in self.line[: self.free()])
        for each in self.hall.ears:
            assert self.hall.heard(each) == ([told[each]] if told[each] else [])

    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        if self.line:
            worker, number = data.draw(st.sampled_from(self.line))
            self.line.remove((worker, number))
            assert self.hall.ask([f"-{number}"], worker) == ([None], [])

    @rule(worker=WORKERS)
    def die(self, worker: str) -> None:
        self.hall.pool.scripts.reap(self.hall.pool.keys, worker, 0)
        self.line = [ticket for ticket in self.line if ticket[0] != worker]
        self.join(worker)

    @rule(name=st.sampled_from(["a", "b"]), cap=st.integers(1, 3))
    def change(self, name: str, cap: int) -> None:
        self.caps[name] = cap
        self.hall.pool.commit([put(name, cap=cap)])

    @invariant()
    def the_queue_is_the_line(self) -> None:
        assert self.hall.waiting() == [f"{worker} {number}" for worker, number in self.line]

    @invariant()
    def counts_agree(self) -> None:
        used = sum((held for held in self.held.values()), Counter[str]())
        assert self.hall.pool.in_flight() == +used


@pytest.mark.timeout(120)
def test_whatever_is_done(client: redis.Redis) -> None:
    run_on(client, Machine, examples=60)
