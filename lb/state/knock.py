"""Was a backend that is ejected restarted? Found out by trying a connection to it, beside the requests.

A backend that is killed has failed some requests, is ejected for them, and serves again long before its time
is over. So whoever has ejected one whose connections have failed knocks there: a connection that is closed at
once, without a word, about once a second until the ejection is over. Where there was none to be had, and then
there is, the backend was restarted, or the way to it mended: a request may probe it now. One that accepts all
along, and resets or keeps silent, has not changed, and stays out for its time.

`Watch`, `hold` and `pause` decide; sockets, greenlets and threads are given.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from random import random
from time import monotonic
from typing import Any, NamedTuple, Protocol

from lb.model import OutlierPolicy

_LOG = logging.getLogger("lb")

Accepts = Callable[[str, str, float], bool | None]
"""Does the backend of a pool at this URL accept a connection within so many seconds? None: nobody can say."""

EVERY = 1.0
"""Seconds between two knocks at a backend, about."""
SOONER = 4
"""So many come sooner, each after twice the pause of the one before."""
PATIENCE = 1.0
"""Seconds that one may take."""
AT_ONCE = 32
"""Connections that are tried at a time; where there are more backends, each waits for its turn."""
SHARE = 0.1
"""Of `base_ejection_time`: what each ejection in a row before adds to the least time that one lasts."""


class Watch:
    """What knocking at one backend has shown: is it `gone`, or was it?"""

    __slots__ = ("gone",)

    def __init__(self, gone: bool) -> None:
        self.gone = gone

    def mended(self, accepts: bool | None) -> bool:
        """Is it there again? `accepts`: what came of a knock, None for nothing."""
        self.gone = self.gone or accepts is False
        return self.gone and accepts is True


def hold(policy: OutlierPolicy, times: int) -> float:
    """How long the `times`-th ejection in a row lasts at least, in seconds: nothing the first time, then more
    and more, so that one that dies again and again does not get requests as often.
    """
    return policy.base_ejection_time * SHARE * (times - 1)


def pause(number: int, chance: float) -> float:
    """Seconds from the `number`-th knock, from 0 on, until the next one; `chance` is 0 to 1. The first ones
    follow each other sooner, so that who is gone for a moment is out for little longer.
    """
    return EVERY * (0.9 + 0.2 * chance) * 2.0 ** min(number - SOONER, 0)


class Knock(NamedTuple):
    """Where to knock, and why. `gone`: there was no connection to be had already. For `seconds` at most,
    and as long as `lasts` says that the ejection does; `mended` is called once it has lasted for `hold`
    seconds, again if nothing follows.
    """

    pool: str
    url: str
    gone: bool
    seconds: float
    hold: float
    lasts: Callable[[], bool]
    mended: Callable[[], None]


class Runtime(Protocol):
    """Greenlets or threads, see `lb.state.fleet.Runtime`."""

    def event(self) -> Any: ...
    def spawn(self, function: Callable[[], None]) -> Any: ...


class _Visit:
    """A knock, what it has shown so far, and when it is due."""

    __slots__ = ("began", "due", "knock", "number", "watch")

    def __init__(self, knock: Knock, now: float) -> None:
        self.knock = knock
        self.began = self.due = now
        self.number = 0
        self.watch = Watch(knock.gone)


class Knocks:
    """The knocks of one worker."""

    def __init__(self, runtime: Runtime, accepts: Accepts) -> None:
        self._runtime = runtime
        self._accepts = accepts
        self._ends = runtime.event()
        self._lock = threading.Lock()
        #: Visits by when they are due; a number keeps those apart that are due at once.
        self._waiting: list[tuple[float, int, _Visit]] = []
        self._count = count()
        self._running = 0

    def begin(self, knock: Knock) -> None:
        """Knock there from now on; returns at once."""
        self._put(_Visit(knock, monotonic()))
        with self._lock:
            spawn = self._running < AT_ONCE
            self._running += spawn
        if spawn:
            self._runtime.spawn(self._run)

    def stop(self) -> None:
        """No more of it."""
        self._ends.set()

    def _run(self) -> None:
        while (visit := self._next()) is not None:
            self._ends.wait(max(visit.due - monotonic(), 0.0))
            try:
                again = self._visit(visit)
            except Exception:  # noqa: BLE001 - others are to be knocked at
                again = False
                if not self._ends.is_set():  # else what it was at was closed beneath it
                    text = "pool %s: knocking at %s failed; it stays out for its time"
                    _LOG.exception(text, visit.knock.pool, visit.knock.url)
            if again:
                self._put(visit)

    def _put(self, visit: _Visit) -> None:
        with self._lock:
            heappush(self._waiting, (visit.due, next(self._count), visit))

    def _next(self) -> _Visit | None:
        with self._lock:
            if self._waiting:
                return heappop(self._waiting)[2]
            self._running -= 1
            return None

    def _visit(self, visit: _Visit) -> bool:
        """Knock once, and say what follows from it. Is it to be done again?"""
        knock = visit.knock
        if self._ends.is_set() or not knock.lasts() or monotonic() - visit.began >= knock.seconds:
            return False
        there = visit.watch.mended(self._accepts(knock.pool, knock.url, PATIENCE))
        if there and monotonic() - visit.began >= knock.hold:
            knock.mended()
        visit.due = monotonic() + pause(visit.number, random())
        visit.number += 1
        return True
