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


class GreenClaims:
    """The claims of one pool, for greenlets."""

    __slots__ = ("_claims", "_switch", "release", "tally")

    def __init__(self, claims: Claims, hub: Any) -> None:
        self._claims = claims
        # greenlet's own switch: the hub's method only adds a hook that plain greenlets have no use for.
        self._switch = greenlet.switch.__get__(hub)
        self.release = claims.release
        self.tally = claims.tally

    @property
    def special(self) -> bool:
        """Is there more to a claim than who is excluded?"""
        return self._claims.special

    @property
    def asks(self) -> bool:
        """Does a claim have to come with its request?"""
        return self._claims.asks

    def canary_is_next(self) -> bool:
        """Is the next request one for the algorithm that is tried out?"""
        return self._claims.canary_is_next()

    def claim(
        self,
        exclude: Sequence[str] = (),
        request: Request | None = None,
        canary: bool = False,
        own: str = "",
    ) -> Backend | None:
        """A backend that is not in `exclude`, `own` if it can; None when none may take a request."""
        return self._claims.claim(getcurrent(), self._switch, exclude, request, canary, own)


class GreenRuntime:
    """See `lb.state.fleet.Runtime`."""

    def __init__(self, hub: Any) -> None:
        self._hub = hub

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
        return GreenClaims(claims, self._hub)
