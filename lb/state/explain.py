"""Claims that are explained: the same pick, and what there was to choose from in that instant.

Such a claim waits in its pool's queue as any other (`lb.state.claims`), under a mark with a number, and goes
out in a call of its own, of `redis/explain.lua`. What that told is kept by the number until the claim takes
it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from lb.algorithms.base import Request
from lb.model import Backend
from lb.state.choice import Choice
from lb.state.picker import Picker
from lb.state.scripts import EXPLAIN_SHA
from lb.state.seen import FRONT, Seen, View, Wish, from_answer, from_worker, names_to_tell
from lb.state.wishes import CANARY, EXPLAINED, WIDE, bare, mark_of, marked, number_of

MAX_TOLD = 64
"""Answers that nobody has taken yet at most: who waited for one may be gone."""


class ClaimsLike(Protocol):
    """What is needed of `lb.state.claims.Claims`."""

    choice: Choice

    def take(self, waiter: Any, switch: Callable[[], Any], wish: str) -> Backend | None: ...


class Explainer:
    """The explained claims of one pool in one worker; as `Claims`, not thread-safe."""

    def __init__(self, claims: ClaimsLike) -> None:
        self._claims = claims
        self._count = 0
        self._told: dict[str, Sequence[Any]] = {}
        self._view: View | None = None
        self._about = ("", False)

    def explain(
        self,
        waiter: Any,
        switch: Callable[[], Any],
        exclude: Sequence[str] = (),
        request: Request | None = None,
        canary: bool = False,
        own: str = "",
    ) -> tuple[Backend | None, Seen]:
        """`Claims.claim`, with what it was decided on."""
        picker, mark = self._claims.choice.picker(canary)
        key = picker.goes_by(request)
        pick, seen = self._take(waiter, switch, picker, mark, picker.wish(exclude, request, own), key)
        if pick is None and picker.zone:
            pick, seen = self._take(waiter, switch, picker, mark | WIDE, picker.wide(exclude), key)
        if pick is None and exclude:
            first, _ = self._claims.choice.picker(False)
            last = first.last_resort(exclude)
            if last:
                return self._take(waiter, switch, first, WIDE if first.zone else 0, last, key)
        return pick, seen

    def seen(self, pick: str, exclude: Sequence[str], canary: bool, own: str) -> Seen:
        """What can be said afterwards of a claim that got `pick` ("": nobody) and was not explained."""
        picker, mark = self._claims.choice.picker(canary)
        text = f"{'o' if own else ''}\t{own}\t{chr(10).join(exclude)}"
        return from_worker(Wish.read(text, picker.name, mark & CANARY != 0, ""), self._known(picker), pick)

    def algorithm(self, canary: bool) -> tuple[str, int]:
        """By which algorithm, and version of the pool, claims are made here."""
        picker = self._claims.choice.picker(canary)[0]
        return picker.name, picker.snapshot.version

    def _take(
        self, waiter: Any, switch: Callable[[], Any], picker: Picker, mark: int, text: str, key: str
    ) -> tuple[Backend | None, Seen]:
        self._count += 1
        number = str(self._count)
        pick = self._claims.take(waiter, switch, marked(EXPLAINED | mark, text, number))
        answer = self._told.pop(number, None)
        wish = Wish.read(text, picker.name, mark & CANARY != 0, key)
        known = self._known(picker, mark & WIDE != 0)
        if answer is None:
            return pick, from_worker(wish, known, "" if pick is None else pick.id)
        return pick, from_answer(wish, known, answer)

    def _known(self, picker: Picker, wide: bool = False) -> View:
        """What the worker knows; worked out once for each snapshot that is asked about."""
        if (
            self._about != (picker.name, wide)
            or self._view is None
            or self._view.snapshot is not picker.snapshot
        ):
            self._about, self._view = (picker.name, wide), picker.view(wide)
        return self._view

    # What Claims calls.

    def head(self, head: Sequence[str], wish: str) -> tuple[str, ...]:
        """How the call for such a claim begins; `head` is how a call of `redis/claim.lua` begins."""
        _, _, *keys, epoch = head
        mark = mark_of(wish)
        picker = self._claims.choice.picker(mark & CANARY != 0)[0]
        names = names_to_tell(bare(wish), self._known(picker, mark & WIDE != 0))
        return ("EVALSHA", EXPLAIN_SHA, *keys, names, str(FRONT), epoch)

    def told(self, wish: str, answer: Sequence[Any]) -> None:
        """The answer to such a call."""
        if len(self._told) >= MAX_TOLD:
            self._told.clear()
        self._told[number_of(wish)] = answer
