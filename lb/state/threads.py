"""The shared state for worker classes whose requests run in threads: the same claims and the same queue.

Correct rather than fast: who claims calls the store and waits, see `lb.state.threadlink`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from time import monotonic

from lb.algorithms.base import Request
from lb.model import Backend
from lb.state.claims import Claims
from lb.state.link import STALL
from lb.state.queue import Queue, Ticket, Waits
from lb.state.seen import Seen
from lb.state.threadlink import ThreadLink, wake_thread


class _Box:
    """Stands in for a greenlet: takes the pick, and wakes the one thread that waits for it."""

    __slots__ = ("called", "pick", "taken")

    def __init__(self, books: threading.RLock) -> None:
        self.pick: Backend | None = None
        self.taken = False
        self.called = threading.Condition(books)

    def switch(self, pick: Backend | None, /) -> None:
        self.pick = pick
        self.taken = True
        self.called.notify()


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
        with self._link.books:
            return self._claims.choice.canary_is_next()

    def tally(self, canary: bool, ok: bool, took: float) -> None:
        """What became of a request."""
        with self._link.books:
            self._claims.choice.tally(canary, ok, took)

    def claim(
        self,
        exclude: Sequence[str] = (),
        request: Request | None = None,
        canary: bool = False,
        own: str = "",
    ) -> Backend | None:
        """A backend that is not in `exclude`, `own` if it can; None when none may take a request."""
        box = _Box(self._link.books)
        with self._link.books:
            return self._claims.claim(box, self._waiting(box), exclude, request, canary, own)

    def probe(self, name: str, request: Request | None, canary: bool, own: str) -> Backend | None:
        """`name`, which is ejected, if this request may probe it; else as `claim`."""
        box = _Box(self._link.books)
        with self._link.books:
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
        box = _Box(self._link.books)
        with self._link.books:
            explain = self._claims.explainer.explain
            return explain(box, self._waiting(box), exclude, request, canary, own)

    def seen(self, pick: str, exclude: Sequence[str], canary: bool, own: str) -> Seen:
        """What can be said afterwards of a claim that got `pick`."""
        with self._link.books:
            return self._claims.explainer.seen(pick, exclude, canary, own)

    def algorithm(self, canary: bool) -> tuple[str, int]:
        """By which algorithm, and version of the pool, claims are made here."""
        return self._claims.explainer.algorithm(canary)

    def _waiting(self, box: _Box) -> Callable[[], Backend | None]:
        claims, link = self._claims, self._link

        def wait() -> Backend | None:
            until = monotonic() + STALL
            while not box.taken:
                if claims.queued:
                    if not link.flush_within():
                        box.called.wait(STALL)
                    until = monotonic() + STALL
                elif (left := until - monotonic()) > 0:
                    # until the lease is opened anew, or the snapshot has the backend that was picked
                    box.called.wait(left)
                else:
                    self._give_up(box)
            box.taken = False  # a claim may have to ask twice
            return box.pick

        return wait

    def _give_up(self, box: _Box) -> None:
        """Nothing came: do without the store. Not during a call, nor while it has something to say."""
        self._link.books.release()
        try:
            with self._link.lock:
                if not (box.taken or self._claims.queued):
                    self._claims.fail()
        finally:
            self._link.books.acquire()

    def wait(
        self,
        exclude: Sequence[str],
        request: Request | None,
        canary: bool,
        own: str,
        entry: Waits,
    ) -> Backend | None:
        """Wait for a backend when `claim` found none, see `Queue.wait`; `entry` is told how long."""
        try:
            with self._link.books:
                return self._queue.wait(exclude, request, canary, own, entry, self._block, wake_thread)
        finally:
            self._link.flush()  # who gave up says so

    def _block(self, ticket: Ticket) -> None:
        ticket.called = called = threading.Condition(self._link.books)
        while not ticket.over:
            if self._claims.queued and self._link.flush_within():
                continue
            if (left := ticket.deadline - monotonic()) > 0:
                called.wait(left)
            else:
                ticket.expire()

    def release(self, name: str, took: float = -1.0) -> None:
        """Give back what a claim took; `took`: seconds until the answer."""
        with self._link.books:
            self._claims.release(name, took)
        self._link.flush()

    def blame(self, name: str, took: float, outcome: int) -> None:
        """The same, and what became of the request."""
        with self._link.books:
            self._claims.blame(name, took, outcome)
        self._link.flush()


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
