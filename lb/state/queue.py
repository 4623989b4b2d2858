"""The queue of a pool, as one worker sees it: requests that wait while every backend is at its cap.

The queue itself is in the shared state (`redis/queue.lua`): who is next there is next in the whole fleet. A
worker has a ticket in it for each of its requests, and asks when it is told that one is at the front, when it
frees a slot itself, when the pool changes, and every `POLL` seconds in case it was not told. To ask is to
claim: the same call takes the slot, and the ticket out of the queue.

When more come than can be served, all would wait for `queue.timeout`, and be answered when hardly any client
waits any more. So when one has waited in vain, or found the queue full, some are going to be refused in any
case, and those that have waited for `queue.target` are: as many are served, and those in time. It is over
when one is served soon and nobody is left (the controlled delay of RFC 8289, with a failure in place of an
interval, so that a queue that does serve everybody is left alone).

While the store is away the tickets of this worker are served in their order as its own connections end, and
they alone count against the bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import islice
from time import monotonic, perf_counter
from typing import Any, Protocol

from lb.algorithms.base import Request
from lb.errors import ProxyError, QueueFull, QueueTimeout
from lb.model import Backend
from lb.state.claims import Claims
from lb.state.wishes import QUEUED, leaving, marked, number_of

NEVER = float("-inf")

POLL = 0.5
"""Seconds after which a ticket asks without having been told to."""

GRACE = 2.0
"""Seconds that the store keeps a ticket beyond `queue.timeout`: its worker takes it out before that."""


class Waits(Protocol):
    """Who is told how long a request waited, in seconds."""

    queued: float


class _Nobody:
    """Claims in the name of a ticket that is given up: it gets nothing."""

    def switch(self, pick: Backend | None, /) -> None:
        """Nothing."""


_NOBODY = _Nobody()


class Ticket:
    """One request that waits. What `lb.proxy.conn.Reactor` knows of it is that a greenlet waits for it."""

    __slots__ = (
        "_rouse",
        "_until",
        "again",
        "asking",
        "called",
        "came",
        "deadline",
        "exclude",
        "fault",
        "hopeless",
        "line",
        "number",
        "over",
        "pick",
        "reader",
        "wish",
        "writer",
    )

    def __init__(
        self,
        line: Queue,
        number: str,
        wish: str,
        exclude: Sequence[str],
        until: float,
        rouse: Callable[[Ticket], None],
    ) -> None:
        """`until`: when its time is over, by `monotonic`; `rouse` wakes who waits."""
        self.line = line
        self.number = number
        self.wish = marked(QUEUED, wish, number)
        self.exclude = exclude
        #: Is a claim of it on its way? Was it told meanwhile to ask?
        self.asking = self.again = False
        #: Is there nobody left who could take it?
        self.hopeless = False
        self.over = False
        self.pick: Backend | None = None
        self.fault: ProxyError | None = None
        self.came = monotonic()
        self.deadline = min(until, self.came + POLL)
        #: What the thread waits on that waits for it, if it is one.
        self.called: Any = None
        self.reader: Any = None
        self.writer: Any = None
        self._until = until
        self._rouse = rouse

    def switch(self, pick: Backend | None, /) -> None:
        """The answer to a claim of it."""
        self.asking = False
        if self.over:
            if pick is not None:  # too late: nobody waits for it any more
                self.line.claims.release(pick.id)
        elif pick is not None or self.fault is not None or self.hopeless:
            self.pick = pick
            if pick is not None:
                self.fault = None
                self.line.serves(self)
            if pick is None and self.hopeless:
                self.line.leave(self)
            else:
                self.line.drop(self)
            self._rouse(self)
        elif self.again:  # what it was told may be news to the answer
            self.again = False
            self.line.poll(self)

    def expire(self) -> None:
        """Its time is over, or it is time to ask."""
        now = monotonic()
        if self.over:
            return
        if now < self._until:
            self.deadline = min(self._until, now + POLL)
            self.line.poll(self)
            return
        timeout = self.line.claims.snapshot.settings.queue.timeout
        self.fault = QueueTimeout(
            f"no backend of pool {self.line.claims.keys.pool} had room in time", retry_after(timeout)
        )
        self.line.leave(self)
        self.line.in_vain(now)
        self._rouse(self)

    def hurry(self, until: float) -> None:
        """Its time is over then, if it was not before that."""
        self._until = min(self._until, until)
        self.deadline = min(self.deadline, self._until)

    def interrupt(self, exc: Exception) -> bool:
        """Raise `exc` in the greenlet that waits."""
        waiting, self.reader = self.reader, None
        if waiting is not None:
            waiting.throw(exc)
        return waiting is not None


class Queue:
    """The tickets of one worker in one pool, oldest first. Its callers are those of `claims`, under the same
    lock.
    """

    def __init__(self, claims: Claims) -> None:
        self.claims = claims
        self._tickets: dict[str, Ticket] = {}
        self._retries = 0
        self._numbers = 0
        #: When a request has waited in vain, where that still counts.
        self._vain = NEVER
        claims.line = self

    def __len__(self) -> int:
        return len(self._tickets)

    def wait(
        self,
        exclude: Sequence[str],
        request: Request | None,
        canary: bool,
        own: str,
        entry: Waits,
        block: Callable[[Ticket], None],
        rouse: Callable[[Ticket], None],
    ) -> Backend | None:
        """Wait for a backend, as `Claims.claim` gives one; None when there is nobody to wait for.

        `block` returns when `rouse` has been called for the ticket. Raises QueueFull and QueueTimeout, and
        what `block` raises.
        """
        claims = self.claims
        policy = claims.snapshot.settings.queue
        if policy.size == 0 or not claims.choice.may_wait(exclude):
            return None
        self._numbers += 1
        wish = claims.choice.wait_for(exclude, request, canary, own)
        now = monotonic()
        until = now + (policy.patience if self._overloaded(now) else policy.timeout)
        ticket = Ticket(self, str(self._numbers), wish, exclude, until, rouse)
        began = perf_counter()
        try:
            self._enter(ticket, policy.size)
            if not ticket.over:
                block(ticket)
        finally:
            self.leave(ticket)
            entry.queued += perf_counter() - began
        if ticket.fault is not None:
            raise ticket.fault
        return ticket.pick

    def _enter(self, ticket: Ticket, size: int) -> None:
        if not self.claims.shared and len(self._tickets) >= size:
            ticket.over, ticket.fault = True, self._full()
            return
        self._tickets[ticket.number] = ticket
        self._retries += bool(ticket.exclude)
        self.claims.crowded = True
        if self.claims.shared:
            self.poll(ticket)
        else:
            self.ask()  # in turn

    def drop(self, ticket: Ticket) -> None:
        """It waits no more."""
        ticket.over = True
        if self._tickets.pop(ticket.number, None) is not None:
            self._retries -= bool(ticket.exclude)
            self.claims.crowded = bool(self._tickets)

    def leave(self, ticket: Ticket) -> None:
        """It waits no more, and the store is told so; nothing when that is known."""
        if not ticket.over:
            self.drop(ticket)
            if self.claims.shared:
                self.claims.ask(_NOBODY, leaving(ticket.wish))

    def poll(self, ticket: Ticket) -> None:
        """Let one ask; while the store is away all in turn."""
        if not self.claims.shared:
            self.ask()
        elif not ticket.asking:
            ticket.asking = True
            self.claims.ask(ticket, ticket.wish)

    def _overloaded(self, now: float) -> bool:
        """Do more come than can be served?"""
        return now - self._vain < self.claims.snapshot.settings.queue.timeout

    def in_vain(self, now: float) -> None:
        """Somebody was refused: from now on nobody waits for long."""
        began, self._vain = not self._overloaded(now), now
        if began:
            patience = self.claims.snapshot.settings.queue.patience
            for ticket in self._tickets.values():
                ticket.hurry(ticket.came + patience)

    def serves(self, ticket: Ticket) -> None:
        """One gets its slot. If that was soon, and nobody is left here, there is room for all again; unless
        somebody was refused just now: a worker that stood still has refused all of its own at once.
        """
        if self._vain != NEVER and len(self._tickets) <= 1:
            patience, now = self.claims.snapshot.settings.queue.patience, monotonic()
            if now - ticket.came < patience / 2 and now - self._vain > patience * 2:
                self._vain = NEVER

    # What the claims call.

    def called_up(self, most: int) -> None:
        """The store says that so many may have a slot. It may have answered one of them before that, in vain,
        and the answer is still on its way.
        """
        for ticket in islice(self._tickets.values(), most):
            ticket.again = ticket.asking
        self.ask(most)

    def ask(self, most: int | None = None) -> None:
        """Let the oldest ask, so many, and all that are retries; None: let all ask."""
        claims, left = self.claims, len(self._tickets) if most is None else most
        for ticket in list(self._tickets.values()):
            if ticket.over:
                continue
            if most is None and not claims.choice.may_wait(ticket.exclude):
                ticket.hopeless = True
            elif not ticket.exclude:
                if left <= 0:
                    if not self._retries:
                        return
                    continue
                left -= 1
            if not ticket.asking:
                ticket.asking = True
                if not claims.ask(ticket, ticket.wish):
                    ticket.asking = False
                    if ticket.hopeless:
                        claims.wake(ticket, None)
                    elif not ticket.exclude:
                        return  # nor will who came later get anything

    def refuse(self, numbers: str) -> None:
        """There was no room in the queue for these tickets."""
        for number in numbers.split(" "):
            ticket = self._tickets.get(number)
            if ticket is not None:
                ticket.fault = self._full()
                self.in_vain(monotonic())

    def says(self, wishes: Sequence[str]) -> str:
        """What a call says of the tickets of its claims; see `redis/claim.lua`."""
        policy = self.claims.snapshot.settings.queue
        oldest = round((policy.timeout + GRACE) * 1e6)
        numbers = " ".join(number_of(wish) for wish in wishes)
        return f"{self.claims.worker}\t{policy.size}\t{oldest}\t{numbers}"

    def close(self) -> None:
        """The worker ends: nobody waits any more."""
        for ticket in list(self._tickets.values()):
            ticket.fault = self._full()
            self.claims.wake(ticket, None)

    def _full(self) -> QueueFull:
        policy = self.claims.snapshot.settings.queue
        return QueueFull(
            f"every backend of pool {self.claims.keys.pool} is full, and so is its queue",
            retry_after(policy.timeout),
        )


def retry_after(timeout: float) -> int:
    """Whole seconds, at least 1, after which to try again: all who wait now have been served by then, or
    have given up.
    """
    return max(1, math.ceil(timeout))
