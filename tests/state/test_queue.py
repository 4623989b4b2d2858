"""The tickets of one worker: what they ask the store for, and what becomes of each, on real servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import monotonic

import pytest
import redis

from lb.errors import ClientGone, QueueFull, QueueTimeout
from lb.model import QueuePolicy
from lb.settings import BackendSpec, PoolConfig
from lb.state import decide
from lb.state.queue import Queue, Ticket, retry_after
from lb.state.registry import Registry
from lb.state.scripts import CLAIM_SOURCE
from tests.state.pool import Pool
from tests.state.test_claims import NAMES, URLS, Desk

Step = Callable[[Ticket], None]


@dataclass
class Seen:
    """What the access log is told."""

    queued: float = 0.0


class Window(Desk):
    """A worker whose requests wait one within the other: each does something while it waits."""

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry)
        self.line = Queue(self.claims)
        self.roused: list[str] = []

    def wait(self, step: Step, exclude: tuple[str, ...] = (), seen: Seen | None = None) -> str | None:
        """What a request gets that finds its pool full, when `step` happens meanwhile."""

        def block(ticket: Ticket) -> None:
            step(ticket)
            assert ticket.over, "nobody would wake it"

        def rouse(ticket: Ticket) -> None:
            self.roused.append(ticket.number)

        pick = self.line.wait(exclude, None, False, "", seen or Seen(), block, rouse)
        return pick.id if pick else None

    def told(self) -> int:
        """How many wait, as the store has it."""
        return self.registry.pool_status("p").queued

    def declare(self, policy: QueuePolicy = QueuePolicy(), cap: int = 1, count: int = 1) -> None:  # noqa: B008
        specs = tuple(BackendSpec(url, max_connections=cap) for url in URLS[:count])
        self.registry.change("p", decide.declare(PoolConfig(backends=specs, queue=policy)))
        self.refresh()


@pytest.fixture
def window(client: redis.Redis, registry: Registry) -> Iterator[Window]:
    """One backend with one slot, which is taken."""
    client.script_load(CLAIM_SOURCE)
    made = Window(registry)
    made.declare()
    assert made.get() == NAMES[0]
    yield made
    assert len(made.line) == 0
    assert not made.claims.crowded
    made.turn()
    assert made.told() == 0


def test_a_release_and_who_gets_the_slot_are_one_call(window: Window, pool: Pool) -> None:
    seen = Seen()

    def step(ticket: Ticket) -> None:
        assert window.turn() == 1
        assert (window.told(), ticket.over) == (1, False)
        assert window.claims.crowded
        calls = window.claims.calls
        window.claims.release(NAMES[0])
        assert window.turn() == 1
        assert window.claims.calls == calls + 1

    assert window.wait(step, seen=seen) == NAMES[0]
    assert window.roused == ["1"]
    assert seen.queued > 0
    assert pool.in_flight() == window.claims.held.counts == {NAMES[0]: 1}


def test_a_call_that_overtakes_an_answer(window: Window) -> None:
    """The answer is from before there was room; the call, on another connection, from after that."""

    def step(ticket: Ticket) -> None:
        command = window.claims.batch()
        assert command is not None
        answer = window.client.execute_command(*command)  # type: ignore[no-untyped-call]
        window.registry.change("p", decide.update(NAMES[0], max_connections=2))
        window.line.called_up(1)
        window.claims.settle(answer)
        window.turn()

    assert window.wait(step) == NAMES[0]


def test_who_comes_while_others_wait_asks_nobody(window: Window) -> None:
    def step(ticket: Ticket) -> None:
        window.turn()
        scheduled = window.scheduled
        assert window.claims.claim(ticket, lambda: None) is None
        assert window.scheduled == scheduled
        window.claims.release(NAMES[0])
        window.turn()

    assert window.wait(step) == NAMES[0]


def test_the_oldest_is_first(window: Window) -> None:
    order = []

    def second(ticket: Ticket) -> None:
        window.turn()
        window.claims.release(NAMES[0])
        window.turn()
        assert not ticket.over
        window.claims.release(NAMES[0])
        window.turn()

    def first(ticket: Ticket) -> None:
        window.turn()
        order.append(window.wait(second))

    assert window.wait(first) == NAMES[0]
    assert order == [NAMES[0]]
    assert window.roused == ["1", "2"]


def test_a_slot_that_comes_too_late_is_given_back(window: Window, pool: Pool) -> None:
    def step(ticket: Ticket) -> None:
        window.turn()
        window.claims.release(NAMES[0])
        raise ClientGone("the client went away")

    with pytest.raises(ClientGone):
        window.wait(step)
    assert window.turn() == 2  # it asked, and leaves
    assert window.told() == 0
    window.turn()
    assert pool.in_flight() == {}
    assert window.roused == []


def test_one_that_was_given_a_slot_just_before_it_left(window: Window, pool: Pool) -> None:
    def step(ticket: Ticket) -> None:
        window.turn()
        window.claims.release(NAMES[0])
        command = window.claims.batch()
        assert command is not None
        answers.append(window.client.execute_command(*command))  # type: ignore[no-untyped-call]
        raise ClientGone("the client went away")

    answers: list[list[object]] = []
    with pytest.raises(ClientGone):
        window.wait(step)
    window.claims.settle(answers[0])
    assert window.turn() == 1
    assert pool.in_flight() == window.claims.held.counts == {}


def test_a_full_queue_refuses(window: Window) -> None:
    window.declare(QueuePolicy(size=1, timeout=2.5))

    def second(ticket: Ticket) -> None:
        window.turn()

    def first(ticket: Ticket) -> None:
        window.turn()
        with pytest.raises(QueueFull) as raised:
            window.wait(second)
        assert raised.value.retry_after == 3
        window.claims.release(NAMES[0])
        window.turn()

    assert window.wait(first) == NAMES[0]


def test_time_is_over(window: Window) -> None:
    window.declare(QueuePolicy(timeout=0.001))

    def step(ticket: Ticket) -> None:
        window.turn()
        while not ticket.over:
            ticket.expire()

    with pytest.raises(QueueTimeout) as raised:
        window.wait(step)
    assert raised.value.retry_after == 1
    assert window.told() == 1
    window.turn()
    assert window.told() == 0


def test_without_a_queue_or_anybody_to_wait_for_none_waits(window: Window) -> None:
    def never(ticket: Ticket) -> None:
        pytest.fail("it waits")

    assert window.wait(never, exclude=(NAMES[0],)) is None
    window.declare(QueuePolicy(size=0))
    assert window.wait(never) is None
    window.declare()
    window.registry.change("p", decide.update(NAMES[0], admin="drain"))
    window.refresh()
    assert window.wait(never) is None


def test_the_last_backend_goes_while_somebody_waits(window: Window) -> None:
    def step(ticket: Ticket) -> None:
        window.turn()
        window.registry.change("p", decide.update(NAMES[0], admin="drain"))
        window.refresh()
        window.turn()

    assert window.wait(step) is None


def test_room_that_a_change_makes_is_asked_for(window: Window) -> None:
    def step(ticket: Ticket) -> None:
        window.turn()
        window.declare(count=2)
        window.turn()

    assert window.wait(step) == NAMES[1]


def test_a_lease_that_was_lost_costs_no_ticket(window: Window) -> None:
    def step(ticket: Ticket) -> None:
        window.turn()
        window.registry.scripts.reap(window.claims.keys, "w", 0)
        assert window.told() == 0
        window.line.poll(ticket)
        window.turn()  # lost
        window.open()
        window.turn()
        assert (window.told(), ticket.over) == (1, False)
        window.claims.release(NAMES[0])
        window.turn()

    assert window.wait(step) == NAMES[0]


def test_while_the_store_is_away_they_are_served_in_turn(window: Window) -> None:
    window.declare(QueuePolicy(size=2))
    got: list[object] = []

    def third(ticket: Ticket) -> None:
        pytest.fail("there is no room")

    def second(ticket: Ticket) -> None:
        with pytest.raises(QueueFull):
            window.wait(third)
        assert window.claims.claim(ticket, lambda: None) is None
        window.claims.release(NAMES[0])
        assert window.roused == ["1"]
        window.claims.release(NAMES[0])

    def first(ticket: Ticket) -> None:
        window.turn()
        window.claims.fail()
        got.append(window.wait(second))

    assert window.wait(first) == NAMES[0]
    assert got == [NAMES[0]]
    assert window.roused == ["1", "2"]
    window.open()


def test_the_last_backend_goes_while_the_store_is_away(window: Window) -> None:
    def step(ticket: Ticket) -> None:
        window.turn()
        window.registry.change("p", decide.update(NAMES[0], admin="drain"))
        window.claims.fail()
        assert not ticket.over
        window.refresh()

    assert window.wait(step) is None
    window.open()


def test_the_end_of_the_worker_is_the_end_of_waiting(window: Window) -> None:
    def step(ticket: Ticket) -> None:
        window.turn()
        window.line.close()

    with pytest.raises(QueueFull):
        window.wait(step)
    window.lease.close()


def test_what_a_client_is_told_to_wait() -> None:
    assert [retry_after(timeout) for timeout in (0.001, 1, 1.2, 5)] == [1, 1, 2, 5]


# More than can be served.


def overdue(ticket: Ticket, seconds: float) -> bool:
    """Would its time be over in so many seconds?"""
    return ticket._until <= monotonic() + seconds


def test_when_one_waits_in_vain_the_others_wait_for_less(window: Window) -> None:
    window.declare(QueuePolicy(timeout=50, target=2))
    late: list[bool] = []
    oldest: list[Ticket] = []

    def last(ticket: Ticket) -> None:
        """It comes when all is known."""
        late.append(overdue(ticket, 2))
        window.claims.release(NAMES[0])
        window.turn()
        ticket.hurry(0.0)
        ticket.expire()

    def second(ticket: Ticket) -> None:
        late.append(overdue(ticket, 2))
        oldest[0].hurry(0.0)
        oldest[0].expire()
        late.append(overdue(ticket, 2))
        with pytest.raises(QueueTimeout):
            window.wait(last)
        window.turn()
        assert ticket.over

    def first(ticket: Ticket) -> None:
        oldest.append(ticket)
        window.turn()
        assert window.wait(second) == NAMES[0]

    with pytest.raises(QueueTimeout):
        window.wait(first)
    assert late == [False, True, True]


def test_who_finds_the_queue_full_tells_of_it(window: Window) -> None:
    window.declare(QueuePolicy(size=1, timeout=50, target=2))

    def second(ticket: Ticket) -> None:
        window.turn()

    def first(ticket: Ticket) -> None:
        window.turn()
        assert not overdue(ticket, 2)
        with pytest.raises(QueueFull):
            window.wait(second)
        assert overdue(ticket, 2)
        window.claims.release(NAMES[0])
        window.turn()

    assert window.wait(first) == NAMES[0]


def test_it_is_over_when_one_is_served_soon_and_nobody_is_left(window: Window) -> None:
    window.declare(QueuePolicy(timeout=50, target=20))
    until: list[bool] = []

    def step(ticket: Ticket) -> None:
        until.append(overdue(ticket, 20))
        window.turn()
        window.claims.release(NAMES[0])
        window.turn()

    window.line.in_vain(monotonic() - 39)
    assert window.wait(step) == window.wait(step) == NAMES[0]
    window.line.in_vain(monotonic() - 41)
    assert window.wait(step) == window.wait(step) == NAMES[0]
    assert until == [True, True, True, False]


def test_it_is_over_by_itself_after_the_usual_time(window: Window) -> None:
    window.declare(QueuePolicy(timeout=50, target=2))
    window.line.in_vain(monotonic() - 51)

    def step(ticket: Ticket) -> None:
        assert not overdue(ticket, 2)
        window.turn()
        window.claims.release(NAMES[0])
        window.turn()

    assert window.wait(step) == NAMES[0]


def test_the_target_is_a_tenth_unless_it_is_said() -> None:
    assert QueuePolicy(timeout=7).patience == pytest.approx(0.7)
    assert QueuePolicy(timeout=7, target=3).patience == 3
    assert QueuePolicy(timeout=2, target=3).patience == 2
