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
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lb.state.lease import WorkerLease
from lb.state.scripts import LeaseLost
from tests.state.pool import LostError, Pool, put
from tests.support.machines import run_on

ALGORITHMS = ("round-robin", "weighted-round-robin", "least-connections", "weighted-least-connections")
NAMES = st.sampled_from(["a", "b", "c", "d:80", "e", "[::1]:80"])
WORKERS = st.sampled_from(["w1", "w2", "w3"])
ZONES = ("east", "west-1")
Lane = tuple[bool, str]
"""Whose order claims are served from: a canary's or not, and the zone's, "" for the whole pool's."""


@dataclass
class Member:
    """A backend as the model has it."""

    weight: int = 1
    cap: int = 0
    available: bool = True
    zone: str = ""

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

    @initialize(
        algorithm=st.sampled_from(ALGORITHMS),
        count=st.integers(1, 4),
        retries=st.booleans(),
        zoned=st.booleans(),
    )
    def begin(self, algorithm: str, count: int, retries: bool, zoned: bool) -> None:
        self.client.flushdb()
        self.pool = Pool(self.client)
        self.algorithm = algorithm
        self.retries = retries
        self.zoned = zoned
        self.skipped: Counter[Lane] = Counter()
        self.canary = ""
        self.members = {
            name: Member(zone=zone if zoned else "")
            for name, zone in [("a", "east"), ("b", "east"), ("c", "west-1"), ("d:80", "")][:count]
        }
        self.workers: dict[str, Worker] = {}
        self.requests: Counter[str] = Counter()
        #: Picks since the pool was last changed.
        self.window: dict[Lane, Counter[str]] = {
            (canary, zone): Counter() for canary in (True, False) for zone in ("", *ZONES)
        }
        puts = [put(name, zone=member.zone) for name, member in self.members.items()]
        self.pool.commit(puts, algorithm=algorithm, zones=self.zones())

    # What is true of the pool.

    def in_flight(self, name: str) -> int:
        return sum(worker.held[name] for worker in self.workers.values() if worker.registered)

    def used(self, canary: bool) -> str:
        """The algorithm that claims of this kind are decided by."""
        return self.canary if canary and self.canary else self.algorithm

    def load(self, name: str, algorithm: str) -> float:
        weighted = algorithm.startswith("weighted")
        return self.in_flight(name) / (self.members[name].weight if weighted else 1)

    def zones(self) -> set[str]:
        return {member.zone for member in self.members.values() if member.zone}

    def there(self, zone: str) -> list[str]:
        """Who may serve the claims of a zone, full or not."""
        return [name for name, one in self.members.items() if one.usable and zone in ("", one.zone)]

    def eligible(self, zone: str = "") -> set[str]:
        return {name for name in self.there(zone) if not 0 < self.members[name].cap <= self.in_flight(name)}

    def fresh(self) -> None:
        """From here on the shares are counted anew: the pool is not what it was."""
        for window in self.window.values():
            window.clear()

    def begin_anew(self, canary: bool) -> None:
        for zone in ("", *ZONES):
            self.skipped[canary, zone] = 0

    # Membership.

    @rule(
        name=NAMES,
        weight=st.sampled_from([0, 1, 1, 2, 3, 10]),
        cap=st.sampled_from([0, 0, 1, 2, 5]),
        available=st.booleans(),
        zone=st.sampled_from(("", *ZONES)),
    )
    def write(self, name: str, weight: int, cap: int, available: bool, zone: str) -> None:
        zone = zone if self.zoned else ""
        if name not in self.members:
            self.requests[name] = 0
        self.members[name] = Member(weight, cap, available, zone)
        self.pool.commit([put(name, weight, cap, available, zone)], zones=self.zones())
        self.fresh()

    @rule(name=NAMES)
    def plain(self, name: str) -> None:
        self.write(name, 1, 0, True, self.members[name].zone if name in self.members else "east")

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        if self.members.pop(name, None):
            self.pool.commit(delete=[name], zones=self.zones())
            self.requests.pop(name, None)
            self.fresh()

    @rule(algorithm=st.sampled_from(ALGORITHMS))
    def switch(self, algorithm: str) -> None:
        if algorithm != self.algorithm:
            self.begin_anew(False)
        self.algorithm = algorithm
        self.pool.commit(algorithm=algorithm)
        self.fresh()

    @rule(algorithm=st.sampled_from(("", *ALGORITHMS)))
    def try_out(self, algorithm: str) -> None:
        if algorithm != self.canary:
            self.begin_anew(True)
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
        zone=st.sampled_from(("", *ZONES)),
        data=st.data(),
    )
    def call(
        self,
        name: str,
        plain: int,
        exclude: list[set[str]],
        canary: bool,
        zone: str,
        data: st.DataObject,
    ) -> None:
        worker = self.workers.get(name)
        if not worker:
            return
        zone = zone if zone in self.pool.zones else ""
        back = {
            backend: data.draw(st.integers(0, count), backend)
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
        for backend, count in back.items():
            worker.held[backend] -= count
        whole = +worker.held if data.draw(st.booleans(), "all that is held") else None
        version, picks = self.pool.call(
            claims, back, exclude, name, worker.lease.epoch, canary=canary, zone=zone, whole=whole
        )
        canary = canary and self.canary != ""
        algorithm = self.used(canary)
        assert version == self.pool.version()
        excluded = [set[str]()] * plain + [set(each) for each in exclude]
        for pick, without in zip(picks, excluded, strict=True):
            choice = self.eligible(zone) - without
            if pick is None:
                assert not choice
                continue
            assert pick in choice
            if algorithm.endswith("least-connections"):
                assert self.load(pick, algorithm) == min(self.load(each, algorithm) for each in choice)
            worker.held[pick] += 1
            self.requests[pick] += 1
            self.window[canary, zone][pick] += 1
            self.skipped[canary, zone] += bool(without)
            self.judge_shares(canary, zone)

    @rule(name=WORKERS, count=st.integers(1, 40), canary=st.booleans(), zone=st.sampled_from(("", *ZONES)))
    def plenty(self, name: str, count: int, canary: bool, zone: str) -> None:
        """Many plain claims at once: what shows unfair shares."""
        worker = self.workers.get(name)
        zone = zone if zone in self.pool.zones else ""
        if worker and worker.registered:
            _, picks = self.pool.call(count, {}, (), name, worker.lease.epoch, canary=canary, zone=zone)
            canary = canary and self.canary != ""
            for pick in filter(None, picks):
                worker.held[pick] += 1
                self.requests[pick] += 1
                self.window[canary, zone][pick] += 1
                self.judge_shares(canary, zone)

    @rule(name=WORKERS, known=st.sets(st.sampled_from(ZONES)))
    def know_other_zones(self, name: str, known: set[str]) -> None:
        """A worker that has not heard of a change yet is told so, and nothing is done."""
        worker = self.workers.get(name)
        if worker and known != set(self.pool.zones):
            with pytest.raises(LostError):
                self.pool.call(1, {}, (), name, worker.lease.epoch, zones=sorted(known))

    def judge_shares(self, canary: bool, zone: str) -> None:
        """By turns, while the pool stays as it is: nobody is more than a turn ahead or behind."""
        usable = self.there(zone)
        algorithm = self.used(canary)
        if algorithm.endswith("least-connections") or any(self.members[name].cap for name in usable):
            return
        weighted = algorithm.startswith("weighted")
        # A turn of weight w takes 1/w of a cycle. Of two backends with weights either may be at its end of a
        # turn. A retry takes a turn out of the order, which is made up for later.
        turn = {name: 1 / (self.members[name].weight if weighted else 1) for name in usable}
        for one in usable:
            for other in usable:
                window = self.window[canary, zone]
                ahead = window[one] * turn[one] - window[other] * turn[other]
                limit = (turn[one] + turn[other] if weighted else 1) + self.skipped[canary, zone]
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
        for zone in ("", *ZONES):
            wanted = self.eligible(zone)
            assert set(self.pool.order(zone)) == wanted
            assert set(self.pool.order(zone, canary=True)) == (wanted if self.canary else set())

    @invariant()
    def the_total_is_the_sum(self) -> None:
        total: Any = self.pool.client.hget(self.pool.keys.state, "_t")
        assert int(total or 0) == sum(record.in_flight for record in self.pool.records().values())

    @invariant()
    def zones_know_what_they_hold_and_leave_nothing_behind(self) -> None:
        state: Any = self.pool.client.hgetall(self.pool.keys.state)
        homes = {name[2:]: home[8:] for name, home in state.items() if name[:2] == b"_z" and name[2:]}
        assert set(homes) == {name.encode() for name, member in self.members.items() if member.zone}
        for zone in ZONES:
            held = sum(self.in_flight(name) for name in self.there(zone))
            assert int(state.get(f"_o:{zone}:t".encode()) or 0) == held
        gone = set(ZONES) - self.zones()
        assert not [name for name in state if any(f":{zone}:".encode() in name for zone in gone)]

    def all_held(self) -> set[str]:
        return {backend for worker in self.workers.values() for backend in worker.held}


@pytest.mark.timeout(120)
def test_whatever_is_done(client: redis.Redis) -> None:
    run_on(client, Machine, examples=80)
