"""What a claim asks for, as text, and the marks that say in which call it can go.

A wish is what `redis/claim.lua` takes for one claim: a rule, candidates and who is excluded, with tabs
between, names with line ends between. The empty one asks for whoever is next in the pool's order. Until it is
sent, a mark may stand before it: claims of one call must have the same. With a number it knows its ticket of
the queue, or where what an explained claim saw is kept; one that probes has the backend's name in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from lb.model import Backend

PLAIN = ""
"""The wish for who is next."""

CANARY, WIDE, QUEUED, EXPLAINED, PROBING = 1, 2, 4, 8, 16
"""What a mark says, added up: by the canary's algorithm; from all zones; with a ticket of the queue; with
what there was to choose from; it may probe an ejected backend."""

LEAVES = "-"
"""What stands before a ticket's number when its owner waits no more; its claim's rule, which finds nobody."""

_MARKS = 0xE000
"""A mark is the character of this number and what it says; wishes without one are below it as text."""
_FIRST = chr(_MARKS)


def marked(what: int, wish: str, number: str = "") -> str:
    """`wish` with a mark that says `what` besides what its mark says; `number` is that of its ticket, or the
    one by which it is explained.
    """
    mark = chr(_MARKS + (what | mark_of(wish)))
    return f"{mark}{number}{mark}{bare(wish)}"


def mark_of(wish: str) -> int:
    """What the mark of a wish says; 0: it has none."""
    return ord(wish[0]) - _MARKS if wish >= _FIRST else 0


def number_of(wish: str) -> str:
    """The number of a wish that has a mark."""
    return wish.split(wish[0], 2)[1]


def bare(wish: str) -> str:
    """A wish as the store takes it, and the picker. One with a ticket says something in any case."""
    if wish < _FIRST:
        return wish
    text = wish.split(wish[0], 2)[2]
    return text or ("\t\t" if mark_of(wish) & QUEUED else PLAIN)


def leaving(wish: str) -> str:
    """What a claim says whose `wish` named a ticket, when that is given up."""
    mark = wish[0]
    return f"{mark}{LEAVES}{number_of(wish)}{mark}{LEAVES}\t\t"


class Waiter(Protocol):
    """Who waits for a pick: a greenlet, or what stands in for one."""

    def switch(self, pick: Backend | None, /) -> Any: ...


class Line(Protocol):
    """Those of this worker who wait in the queue; see `lb.state.queue`."""

    def ask(self, most: int | None = None) -> None: ...
    def called_up(self, most: int) -> None: ...
    def refuse(self, numbers: str) -> None: ...
    def says(self, wishes: Sequence[str]) -> str: ...
    def close(self) -> None: ...
