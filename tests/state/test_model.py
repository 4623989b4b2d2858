"""A model of a pool beside the real one: whatever is done in whatever order, both say the same.

Workers join, crash, wake up and leave, backends come, go, drain and change, the algorithm switches. After
each step the counts, leases and the order are compared; each claim is judged by what the pool was then.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from lb.state.lease import WorkerLease
from lb.state.scripts import LeaseLost
from tests.state.pool import LostError, Pool, put

ALGORITHMS = ("round-robin", "weighted-round-robin", "least-connections", "weighted-least-connections")
NAMES = st.sampled_from(["a", "b", "c", "d:80", "e", "[::1]:80"])
WORKERS = st.sampled_from(["w1", "w2", "w3"])


@dataclass
class Member:
    """A backend as the model has it."""

    weight: int = 1
    cap: int = 0
    available: bool = True

    @property
    def usable(self) -> bool:
        return self.available and self.weight > 0


@dataclass
class Worker:
    """What a worker knows it holds; `lease` is None before it opened one."""

    lease: WorkerLease
    held: Counter[str] = field(default_factory=Counter)
    registered: bool = True


class Machine(RuleBasedStateMachine):
    """Does things to a pool and its model. Subclassed with the client of a server."""

    client: redis.Redis

    @initialize(algorithm=st.sampled_from(ALGORITHMS), count=st.integers(1, 4), retries=st.booleans())
    def begin(self, algorithm: str, count: int, retries: bool) -> None:
        self.client.flushdb()
        self.pool = Pool(self.client)
        self.algorithm = algorithm
        self.retries = retries
        self.skipped: Counter[bool] = Counter()
        self.canary = ""
        self.members = {name: Member() for name in ["a", "b", "c", "d:80"][:count]}
        self.workers: dict[str, Worker] = {}
        self.requests: Counter[str] = Counter()
        #: Picks since the pool was last changed: of the canary (True), and of the others.
        self.window: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        self.pool.commit([put(name) for name in self.members], algorithm=algorithm)

    # What is true of the pool.

    def in_flight(self, name: str) -> int:
        return sum(worker.held[name] for worker in self.workers.values() if worker.registered)

    def used(self, canary: bool) -> str:
        """The algorithm that claims of this kind are decided by."""
        return self.canary if canary and self.canary else self.algorithm

    def load(self, name: str, algorithm: str) -> float:
        weighted = algorithm.startswith("weighted")
        return self.in_flight(name) / (self.members[name].weight if weighted else 1)

    def eligible(self) -> set[str]:
        return {
            name
            for name, member in self.members.items()
            if member.usable and not (0 < member.cap <= self.in_flight(name))
        }

    def fresh(self) -> None:
        """From here on the shares are counted anew: the pool is not what it was."""
        for window in self.window.values():
            window.clear()

    # Membership.

    @rule(
        name=NAMES,
        weight=st.sampled_from([0, 1, 1, 2, 3, 10]),
        cap=st.sampled_from([0, 0, 1, 2, 5]),
        available=st.booleans(),
    )
    def write(self, name: str, weight: int, cap: int, available: bool) -> None:
        if name not in self.members:
            self.requests[name] = 0
        self.members[name] = Member(weight, cap, available)
        self.pool.commit([put(name, weight, cap, available)])
        self.fresh()

    @rule(name=NAMES)
    def plain(self, name: str) -> None:
        self.write(name, 1, 0, True)

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        if self.members.pop(name, None):
            self.pool.commit(delete=[name])
            self.requests.pop(name, None)
            self.fresh()

    @rule(algorithm=st.sampled_from(ALGORITHMS))
    def switch(self, algorithm: str) -> None:
        if algorithm != self.algorithm:
            self.skipped[False] = 0  # everybody begins anew
        self.algorithm = algorithm
        self.pool.commit(algorithm=algorithm)
        self.fresh()

    @rule(algorithm=st.sampled_from(("", *ALGORITHMS)))
    def try_out(self, algorithm: str) -> None:
        if algorithm != self.canary:
            self.skipped[True] = 0
        self.canary = algorithm
        self.pool.commit(canary=algorithm or "-")
        self.fresh()

    # Workers.

    @rule(name=WORKERS)
    def join(self, name: str) -> None:
        """A new worker, or one that was reaped and wakes up with what it still holds."""
        worker = self.workers.setdefault(name, Worker(WorkerLease(self.pool.scripts, "p", name)))
        assert worker.lease.open(worker.held) == self.pool.version()
        worker.registered = True
        self.fresh()

    @rule(name=WORKERS, data=st.data())
    def come_back_with_less(self, name: str, data: st.DataObject) -> None:
        """Connections ended while the store was away."""
        worker = self.workers.get(name)
        if worker:
            for backend in list(worker.held):
                worker.held[backend] -= data.draw(st.integers(0, worker.held[backend]))
            self.join(name)

    @rule(name=WORKERS)
    def die(self, name: str) -> None:
        worker = self.workers.get(name)
        given = self.pool.scripts.reap(self.pool.keys, name, 0)
        assert given == (worker.held.total() if worker and worker.registered else 0)
        if worker:
            worker.registered = False
            with pytest.raises(LeaseLost):
                worker.lease.beat()

    @rule(name=WORKERS)
    def leave(self, name: str) -> None:
        worker = self.workers.pop(name, None)
        if worker:
            worker.lease.close()

    @rule(name=WORKERS)
    def live(self, name: str) -> None:
        worker = self.workers.get(name)
        if worker and worker.registered:
            assert worker.lease.beat() == self.pool.version()
            assert self.pool.scripts.reap(self.pool.keys, name, 1000) is None

    # Traffic.

    @rule(
        name=WORKERS,
        plain=st.integers(0, 12),
        exclude=st.lists(st.sets(NAMES, min_size=1, max_size=3), max_size=2),
        canary=st.booleans(),
        data=st.data(),
    )
    def call(self, name: str, plain: int, exclude: list[set[str]], canary: bool, data: st.DataObject) -> None:
        worker = self.workers.get(name)
        if not worker:
            return
        back = {
            backend: data.draw(st.integers(0, count + 1), backend)
            for backend, count in worker.held.items()
            if count
        }
        if not self.retries:
            exclude = []
        claims = plain + len(exclude)
        if not worker.registered:
            with pytest.raises(LostError):
                self.pool.call(claims, back, exclude, name, worker.lease.epoch)
            return
        version, picks = self.pool.call(claims, back, exclude, name, worker.lease.epoch, canary=canary)
        canary = canary and self.canary != ""
        algorithm = self.used(canary)
        assert version == self.pool.version()
        for backend, count in back.items():
            worker.held[backend] -= min(count, worker.held[backend])
        excluded = [set[str]()] * plain + [set(each) for each in exclude]
        for pick, without in zip(picks, excluded, strict=True):
            choice = self.eligible() - without
            if pick is None:
                assert not choice
                continue
            assert pick in choice
            if algorithm.endswith("least-connections"):
                assert self.load(pick, algorithm) == min(self.load(each, algorithm) for each in choice)
            worker.held[pick] += 1
            self.requests[pick] += 1
            self.window[canary][pick] += 1
            self.skipped[canary] += bool(without)
            self.judge_shares(canary)

    @rule(name=WORKERS, count=st.integers(1, 40), canary=st.booleans())
    def plenty(self, name: str, count: int, canary: bool) -> None:
        """Many plain claims at once: what shows unfair shares."""
        worker = self.workers.get(name)
        if worker and worker.registered:
            _, picks = self.pool.call(count, {}, (), name, worker.lease.epoch, canary=canary)
            canary = canary and self.canary != ""
            for pick in filter(None, picks):
                worker.held[pick] += 1
                self.requests[pick] += 1
                self.window[canary][pick] += 1
                self.judge_shares(canary)

    def judge_shares(self, canary: bool) -> None:
        """By turns, while the pool stays as it is: nobody is more than a turn ahead or behind."""
        usable = [name for name, member in self.members.items() if member.usable]
        algorithm = self.used(canary)
        if algorithm.endswith("least-connections") or any(self.members[name].cap for name in usable):
            return
        weighted = algorithm.startswith("weighted")
        # A turn of weight w takes 1/w of a cycle. Of two backends with weights either may be at its end of a
        # turn. A retry takes a turn out of the order, which is made up for later.
        turn = {name: 1 / (self.members[name].weight if weighted else 1) for name in usable}
        for one in usable:
            for other in usable:
                window = self.window[canary]
                ahead = window[one] * turn[one] - window[other] * turn[other]
                limit = (turn[one] + turn[other] if weighted else 1) + self.skipped[canary]
                assert ahead <= limit + 1e-9, (one, other, window)

    # After each step.

    @invariant()
    def counts_agree(self) -> None:
        records = self.pool.records()
        names = set(self.members) | {name for name in self.all_held() if self.in_flight(name)}
        assert set(records) == names
        for name, record in records.items():
            assert record.in_flight == self.in_flight(name), name
            assert record.requests == self.requests[name] or name not in self.members

    @invariant()
    def leases_agree(self) -> None:
        for name, worker in self.workers.items():
            wanted = +worker.held if worker.registered else {}
            assert self.pool.held(name) == wanted
        living = {name.encode() for name, worker in self.workers.items() if worker.registered}
        assert set(self.pool.client.zrange(self.pool.keys.workers, 0, -1)) == living

    @invariant()
    def the_order_has_whom_it_should(self) -> None:
        assert set(self.pool.order()) == self.eligible()
        wanted = {name.encode() for name in self.eligible()} if self.canary else set()
        assert set(self.pool.client.zrange(self.pool.keys.canary, 0, -1)) == wanted

    @invariant()
    def the_total_is_the_sum(self) -> None:
        total: Any = self.pool.client.hget(self.pool.keys.state, "_t")
        assert int(total or 0) == sum(record.in_flight for record in self.pool.records().values())

    def all_held(self) -> set[str]:
        return {backend for worker in self.workers.values() for backend in worker.held}


@pytest.mark.timeout(120)
def test_whatever_is_done(client: redis.Redis) -> None:
    machine = type("BoundMachine", (Machine,), {"client": client})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=80,
            stateful_step_count=35,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
