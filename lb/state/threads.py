"""The shared state for worker classes whose requests run in threads: the same claims, one at a time.

Correct rather than fast: a claim is one call to the store under a lock, which also carries what
was released since the last one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

import redis

from lb.algorithms.base import Request
from lb.errors import StoreUnavailable
from lb.model import Backend
from lb.state.claims import Claims
from lb.state.link import STALL
from lb.state.queue import POLL, Queue, Ticket, Waits
from lb.state.scripts import LINKED
from lb.state.seen import Seen
from lb.state.wishes import Waiter


class _Box:
    """Stands in for a greenlet: takes the pick."""

    __slots__ = ("_lock", "pick", "taken")

    def __init__(self, lock: threading.Condition) -> None:
        self.pick: Backend | None = None
        self.taken = False
        self._lock = lock

    def switch(self, pick: Backend | None, /) -> None:
        self.pick = pick
        self.taken = True
        self._lock.notify_all()


class ThreadLink:
    """Carries one batch at a time; whoever claims does the waiting."""

    def __init__(self, on_down: Callable[[str], None]) -> None:
        self.lock = threading.Condition(threading.RLock())
        self._on_down = on_down
        self._connection: Any = None

    @property
    def up(self) -> bool:
        """Is there a connection?"""
        return self._connection is not None

    def connect(self, client: redis.Redis) -> None:
        """Open the connection. Raises StoreUnavailable."""
        self.close()
        options = {**client.connection_pool.connection_kwargs, "socket_timeout": STALL}
        connection = client.connection_pool.connection_class(**options)
        try:
            connection.connect()
            for script in LINKED:
                connection.send_command("SCRIPT", "LOAD", script)
                connection.read_response()
        except (redis.RedisError, OSError) as exc:
            connection.disconnect()
            raise StoreUnavailable(str(exc)) from None
        with self.lock:
            self._connection = connection

    def close(self) -> None:
        """Drop the connection, if there is one."""
        with self.lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.disconnect()

    def schedule(self, claims: Claims) -> None:
        """Whoever claims sends the batch itself, or one of those who wait in the queue."""
        with self.lock:
            self.lock.notify()

    def release_soon(self, claims: Claims) -> None:
        """Send releases now: there may be no claim for long."""
        self.exchange(claims)

    def wake(self, waiter: Waiter, pick: Backend | None) -> None:
        """Give `waiter` its pick."""
        waiter.switch(pick)

    def exchange(self, claims: Claims) -> None:
        """Send one batch and take its answer."""
        command = claims.batch()
        if command is None:
            return
        try:
            if self._connection is None:
                raise StoreUnavailable("not connected")
            self._connection.send_command(*command)
            answer = self._connection.read_response()
        except (redis.RedisError, OSError, StoreUnavailable) as exc:
            self.close()
            self._on_down(str(exc))
            return
        claims.settle(answer)


class ThreadClaims:
    """The claims of one pool, for threads."""

    def __init__(self, claims: Claims, link: ThreadLink) -> None:
        self._claims = claims
        self._link = link
        self._queue = Queue(claims)
        self.guard = claims.guard

    @property
    def special(self) -> bool:
        """Is there more to a claim than who is excluded?"""
        return self._claims.choice.special

    @property
    def asks(self) -> bool:
        """Does a claim have to come with its request?"""
        return self._claims.choice.asks

    def canary_is_next(self) -> bool:
        """Is the next request one for the algorithm that is tried out?"""
        with self._link.lock:
            return self._claims.choice.canary_is_next()

    def tally(self, canary: bool, ok: bool, took: float) -> None:
        """What became of a request."""
        with self._link.lock:
            self._claims.choice.tally(canary, ok, took)

    def claim(
        self,
        exclude: Sequence[str] = (),
        request: Request | None = None,
        canary: bool = False,
        own: str = "",
    ) -> Backend | None:
        """A backend that is not in `exclude`, `own` if it can; None when none may take a request."""
        box = _Box(self._link.lock)
        with self._link.lock:
            return self._claims.claim(box, self._waiting(box), exclude, request, canary, own)

    def probe(self, name: str, request: Request | None, canary: bool, own: str) -> Backend | None:
        """`name`, which is ejected, if this request may probe it; else as `claim`."""
        box = _Box(self._link.lock)
        with self._link.lock:
            wish = self._claims.choice.wish((), request, canary, own)
            return self._claims.probe(box, self._waiting(box), name, wish)

    def explain(
        self,
        exclude: Sequence[str] = (),
        request: Request | None = None,
        canary: bool = False,
        own: str = "",
    ) -> tuple[Backend | None, Seen]:
        """The same, with what it was decided on."""
        box = _Box(self._link.lock)
        with self._link.lock:
            explain = self._claims.explainer.explain
            return explain(box, self._waiting(box), exclude, request, canary, own)

    def seen(self, pick: str, exclude: Sequence[str], canary: bool, own: str) -> Seen:
        """What can be said afterwards of a claim that got `pick`."""
        with self._link.lock:
            return self._claims.explainer.seen(pick, exclude, canary, own)

    def algorithm(self, canary: bool) -> tuple[str, int]:
        """By which algorithm, and version of the pool, claims are made here."""
        return self._claims.explainer.algorithm(canary)

    def _waiting(self, box: _Box) -> Callable[[], Backend | None]:
        claims, lock = self._claims, self._link.lock

        def wait() -> Backend | None:
            until = monotonic() + STALL
            while not box.taken:
                if claims.ready and claims.waiting:
                    self._link.exchange(claims)
                elif monotonic() >= until:
                    claims.fail()
                else:  # until the lease is opened anew, or the snapshot has the backend that was picked
                    lock.wait(STALL / 10)
            box.taken = False  # a claim may have to ask twice
            return box.pick

        return wait

    def wait(
        self,
        exclude: Sequence[str],
        request: Request | None,
        canary: bool,
        own: str,
        entry: Waits,
    ) -> Backend | None:
        """Wait for a backend when `claim` found none, see `Queue.wait`; `entry` is told how long."""
        with self._link.lock:
            try:
                return self._queue.wait(exclude, request, canary, own, entry, self._block, self._rouse)
            finally:
                self._link.exchange(self._claims)  # who gave up says so

    def _block(self, ticket: Ticket) -> None:
        claims, lock = self._claims, self._link.lock
        while not ticket.over:
            if claims.ready and claims.waiting:
                self._link.exchange(claims)
            elif ticket.deadline <= monotonic():
                ticket.expire()
            else:
                lock.wait(min(POLL, ticket.deadline - monotonic()))

    def _rouse(self, ticket: Ticket) -> None:
        self._link.lock.notify_all()

    def release(self, name: str, took: float = -1.0) -> None:
        """Give back what a claim took; `took`: seconds until the answer."""
        with self._link.lock:
            self._claims.release(name, took)

    def blame(self, name: str, took: float, outcome: int) -> None:
        """The same, and what became of the request."""
        with self._link.lock:
            self._claims.blame(name, took, outcome)


class ThreadRuntime:
    """See `lb.state.fleet.Runtime`."""

    def __init__(self) -> None:
        self._link: ThreadLink | None = None

    def event(self) -> threading.Event:
        """An event."""
        return threading.Event()

    def spawn(self, function: Callable[[], None]) -> threading.Thread:
        """Run `function` in a thread that does not keep the process alive."""
        thread = threading.Thread(target=function, daemon=True, name=function.__qualname__)
        thread.start()
        return thread

    def link(self, on_down: Callable[[str], None]) -> ThreadLink:
        """The connection for claims."""
        self._link = ThreadLink(on_down)
        return self._link

    def source(self, claims: Claims) -> ThreadClaims:
        """What the request path calls."""
        assert self._link is not None, "link() comes first"
        return ThreadClaims(claims, self._link)


def flush_log_forever(flush: Callable[[], None], every: float = 0.1) -> None:
    """Call `flush` every `every` seconds in a thread of its own."""

    def loop() -> None:
        pause = threading.Event()
        while not pause.wait(every):
            flush()

    threading.Thread(target=loop, daemon=True, name="access-log").start()
