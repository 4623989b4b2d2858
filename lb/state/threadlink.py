"""The connection for the claims of threads: one call at a time, made by whoever has something to say.

What comes during a call goes together with the next one. Two locks, always taken in this order: `wire`, held
while a call is under way, and `books`, over the claims of all pools. Whoever puts something into the books
that the store has to know sends it, too, when he has let go of them (`flush`). During a call he leaves it to
who makes it, and who passes it on, when it is over, to one of those that wait for what is to be sent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import redis

from lb.errors import StoreUnavailable
from lb.model import Backend
from lb.state.claims import Claims
from lb.state.link import STALL
from lb.state.scripts import linked
from lb.state.wishes import Waiter


def wake_thread(waiter: Any) -> None:
    """Wake the thread that waits as `waiter`, if there is one; it sends what there is to be sent."""
    called: threading.Condition | None = waiter.called
    if called is not None:
        called.notify()


class _Whole:
    """Both locks: no call is under way meanwhile. What has to be sent afterwards is."""

    def __init__(self, link: ThreadLink) -> None:
        self._link = link

    def __enter__(self) -> None:
        self._link.enter()
        self._link.books.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._link.books.release()
        self._link.leave()


class _Books:
    """The books alone: a call may be under way. What has to be sent is, by one of those it is about."""

    def __init__(self, link: ThreadLink) -> None:
        self._link = link

    def __enter__(self) -> None:
        self._link.books.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        alone = not self._link.call_senders()
        self._link.books.release()
        if alone:
            self._link.flush()


class ThreadLink:
    """Carries one batch at a time; whoever has something to say does the waiting."""

    def __init__(self, on_down: Callable[[str], None]) -> None:
        self.books = threading.RLock()
        self.lock: AbstractContextManager[None] = _Whole(self)
        self.calls: AbstractContextManager[None] = _Books(self)
        self._wire = threading.RLock()
        #: How often its holder has taken the wire; how many wait for it.
        self._depth = 0
        self._coming = 0
        self._dirty: list[Claims] = []
        self._on_down = on_down
        self._connection: Any = None

    @property
    def up(self) -> bool:
        """Is there a connection?"""
        return self._connection is not None

    def connect(self, client: redis.Redis) -> None:
        """Open the connection. Raises StoreUnavailable."""
        self.close()
        connection = linked(client, socket_timeout=STALL)
        with self.lock:
            self._connection = connection

    def close(self) -> None:
        """Drop the connection, if there is one."""
        with self.lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.disconnect()

    # What Claims calls, with the books.

    def schedule(self, claims: Claims) -> None:
        """`claims` has something to say: whoever has the books sends it when he has let go of them."""
        if not claims.queued:
            claims.queued = True
            self._dirty.append(claims)

    def release_soon(self, claims: Claims) -> None:
        """The same: there may be no claim for long that it could travel with."""
        self.schedule(claims)

    def wake(self, waiter: Waiter, pick: Backend | None) -> None:
        """Give `waiter` its pick."""
        waiter.switch(pick)

    def call_senders(self) -> bool:
        """Wake, for each pool that has something to say, one whom that is about. Is there one for each?"""
        found = True
        for claims in self._dirty:
            waiter = next((each for each, _ in claims.waiting if getattr(each, "called", None)), None)
            if waiter is None:
                found = False
            else:
                wake_thread(waiter)
        return found

    # The wire. Who has the books alone does not wait for it.

    def flush(self) -> None:
        """Send what is to be sent, and take the answers, unless whoever has the wire is going to."""
        with self.books:
            if not self._take():
                return
        self._carry()

    def flush_within(self) -> bool:
        """The same for who has the books, once, and lets go of them meanwhile. Has it been sent?"""
        if not self._take():
            return False
        self.books.release()
        try:
            self._carry()
        finally:
            self.books.acquire()
        return True

    def _take(self) -> bool:
        if not self._dirty or self._coming or not self._wire.acquire(blocking=False):
            return False
        self._depth += 1
        return True

    def _carry(self) -> None:
        try:
            self._send()
        finally:
            self.leave()

    def enter(self) -> None:
        """Wait until no call is under way."""
        with self.books:
            self._coming += 1
        self._wire.acquire()
        with self.books:
            self._coming -= 1
            self._depth += 1

    def leave(self) -> None:
        """Let somebody else have the wire: of those who wait, one who sends what is to be sent by now."""
        while True:
            with self.books:
                if self._depth > 1 or not self._dirty or self._coming or self.call_senders():
                    self._depth -= 1
                    self._wire.release()
                    return
            try:
                self._send()
            except BaseException:
                self._depth -= 1
                self._wire.release()
                raise

    def _send(self) -> None:
        """Make one call for one pool and take its answer."""
        with self.books:
            claims = self._dirty.pop(0)
            command = claims.batch()
            if claims.waiting and claims.ready:
                self.schedule(claims)
        if command is None:
            return
        self._depth += 1  # what is called from here has nothing to send
        try:
            if self._connection is None:
                raise StoreUnavailable("not connected")
            self._connection.send_command(*command)
            answer = self._connection.read_response()
        except (redis.RedisError, OSError, StoreUnavailable) as exc:
            with self.books:
                self.close()
                self._on_down(str(exc))
        else:
            with self.books:
                claims.settle(answer)
        finally:
            self._depth -= 1
