"""The shared state under gevent: how a worker of greenlets waits, starts greenlets, and claims."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gevent
from gevent.event import Event
from greenlet import getcurrent, greenlet

from lb.algorithms.base import Request
from lb.model import Backend
from lb.state.claims import Claims
from lb.state.link import Link
from lb.state.queue import Queue, Ticket, Waits
from lb.state.seen import Seen


class GreenClaims:
    """The claims of one pool, for greenlets."""

    __slots__ = (
        "_claims",
        "_queue",
        "_switch",
        "_waits",
        "algorithm",
        "blame",
        "guard",
        "release",
        "seen",
        "tally",
    )

    def __init__(self, claims: Claims, hub: Any, waits: set[Any]) -> None:
        self._claims = claims
        # greenlet's own switch: the hub's method only adds a hook that plain greenlets have no use for.
        self._switch = greenlet.switch.__get__(hub)
        self.release = claims.release
        self.blame = claims.blame
        self.guard = claims.guard
        self.tally = claims.choice.tally
        self._queue = Queue(claims)
        self._waits = waits
        self.seen = claims.explainer.seen
        self.algorithm = claims.explainer.algorithm

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
        return self._claims.choice.canary_is_next()

    def claim(
        self,
        exclude: Sequence[str] = (),
        request: Request | None = None,
        canary: bool = False,
        own: str = "",
    ) -> Backend | None:
        """A backend that is not in `exclude`, `own` if it can; None when none may take a request."""
        return self._claims.claim(getcurrent(), self._switch, exclude, request, canary, own)

    def probe(self, name: str, request: Request | None, canary: bool, own: str) -> Backend | None:
        """`name`, which is ejected, if this request may probe it; else as `claim`."""
        wish = self._claims.choice.wish((), request, canary, own)
        return self._claims.probe(getcurrent(), self._switch, name, wish)

    def wait(
        self,
        exclude: Sequence[str],
        request: Request | None,
        canary: bool,
        own: str,
        entry: Waits,
    ) -> Backend | None:
        """Wait for a backend when `claim` found none, see `Queue.wait`; `entry` is told how long."""
        return self._queue.wait(exclude, request, canary, own, entry, self._block, _rouse)

    def _block(self, ticket: Ticket) -> None:
        ticket.reader = getcurrent()
        self._waits.add(ticket)
        try:
            while not ticket.over:
                self._switch()
        finally:
            self._waits.discard(ticket)

    def explain(
        self,
        exclude: Sequence[str] = (),
        request: Request | None = None,
        canary: bool = False,
        own: str = "",
    ) -> tuple[Backend | None, Seen]:
        """The same, with what it was decided on."""
        return self._claims.explainer.explain(getcurrent(), self._switch, exclude, request, canary, own)


def _rouse(ticket: Ticket) -> None:
    waiting, ticket.reader = ticket.reader, None
    if waiting is not None:
        waiting.switch()


class GreenRuntime:
    """See `lb.state.fleet.Runtime`. `waits`: what greenlets wait for besides connections, looked after by the
    reactor (`lb.proxy.conn.Reactor.streams`).
    """

    def __init__(self, hub: Any, waits: set[Any] | None = None) -> None:
        self._hub = hub
        self._waits: set[Any] = set() if waits is None else waits

    def event(self) -> Any:
        """An event whose `set` may be called in the hub."""
        return Event()

    def spawn(self, function: Callable[[], None]) -> Any:
        """Run `function` beside the caller."""
        return gevent.spawn(function)

    def link(self, on_down: Callable[[str], None]) -> Link:
        """The connection for claims."""
        return Link(self._hub.loop, on_down)

    def source(self, claims: Claims) -> GreenClaims:
        """What the request path calls."""
        return GreenClaims(claims, self._hub, self._waits)
