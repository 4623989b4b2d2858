"""What a claim was decided on: the candidates with their numbers, who was left out, and why.

`names_to_tell` says which backends `redis/explain.lua` is to tell of, `from_answer` reads what it told.
Without it, `from_worker` makes do with what the worker knows: its snapshot and the connections it holds
itself. Either way at most `MOST` backends of each kind are told of, however many the pool has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec

from lb.algorithms.eligible import Eligible
from lb.decision import Basis, Candidate, Excluded
from lb.model import Snapshot

MOST = 24
"""Backends told of in one attempt: as candidates, and once more as excluded ones."""

FRONT = 8
"""Backends at the front of the order that are told of, where not all are."""

_NUMBERS = 9

LAST = "last resort"
"""The rule for a request that all others have failed."""

_RULES = {"f": "first", "l": "least-load", "t": "least-time", "s": LAST, "b": "bounded"}


class View(msgspec.Struct, frozen=True):
    """What a worker knows when it asks: the pool, who is eligible, and of the others why not."""

    snapshot: Snapshot
    eligible: Eligible
    #: The eligible, by name.
    names: Sequence[str]
    why: Mapping[str, Any]
    held: Mapping[str, int]


class Wish(msgspec.Struct, frozen=True):
    """What was asked for; see `lb.state.picker`."""

    algorithm: str
    canary: bool
    rule: str
    own: str
    named: tuple[str, ...]
    tried: tuple[str, ...]
    key: str = ""

    @classmethod
    def read(cls, text: str, algorithm: str, canary: bool, key: str) -> Wish:
        """From the text of a wish."""
        code, named, tried = text.split("\t") if text else ("", "", "")
        names = tuple(named.split("\n")) if named else ()
        own, code = (names[0], code[1:]) if code[:1] == "o" else ("", code)
        rule = _RULES.get(code[:1], "")
        return cls(algorithm, canary, rule, own, names, tuple(tried.split("\n")) if tried else (), key)


class Seen(msgspec.Struct, frozen=True):
    """What was decided on; see `lb.decision.Attempt` for the fields."""

    algorithm: str
    version: int
    basis: Basis
    canary: bool
    mode: str
    rule: str
    key: str
    candidates: tuple[Candidate, ...]
    excluded: tuple[Excluded, ...]
    omitted: int
    connections: int | None = None


def names_to_tell(text: str, view: View) -> str:
    """The names for `redis/explain.lua`, by the text of a wish."""
    wish = Wish.read(text, "", False, "")
    names = dict.fromkeys((*wish.named[:MOST], *wish.tried[:MOST]))
    for name in _all(view):
        if len(names) >= MOST:
            break
        names[name] = None
    return "\n".join(names)


def _all(view: View) -> Iterator[str]:
    yield from view.names
    yield from view.why


def from_answer(wish: Wish, view: View, answer: Sequence[Any]) -> Seen:
    """What `redis/explain.lua` told."""
    connections = answer[3]
    rows = [
        _Row([part.decode() for part in answer[at : at + _NUMBERS]]) for at in range(4, len(answer), _NUMBERS)
    ]
    pick = "" if answer[1] is None else answer[1].decode()
    if pick and all(row.id != pick for row in rows):  # of very many that were named
        rows.append(_Row([pick, *[""] * (_NUMBERS - 1)]))
    candidates, excluded = _sorted_out(wish, view, rows, pick)
    return _seen(wish, view, "shared", answer[0], candidates, excluded, int(connections))


def from_worker(wish: Wish, view: View, pick: str) -> Seen:
    """What this worker knows by itself of a claim that got it `pick`."""
    backends, held = view.snapshot.backends, view.held
    names = dict.fromkeys((*((pick,) if pick else ()), *wish.named, *wish.tried, *islice(_all(view), MOST)))
    rows = []
    for name in islice(names, MOST):
        if name in backends:
            row = _Row([name, *[""] * (_NUMBERS - 1)])
            row.weight = backends[name].weight if name in view.eligible.names else 0
            row.cap = backends[name].max_connections
            row.held = held.get(name, 0)
            rows.append(row)
    candidates, excluded = _sorted_out(wish, view, rows, pick)
    return _seen(wish, view, "worker", view.snapshot.version, candidates, excluded, None)


class _Row:
    """One backend that is told of; numbers that are not known are None."""

    __slots__ = ("cap", "held", "id", "in_flight", "latency", "requests", "share", "turn", "weight")

    def __init__(self, parts: Sequence[str]) -> None:
        name, in_flight, requests, weight, cap, turn, latency, report, ramp = parts
        self.id = name
        self.in_flight = int(float(in_flight)) if in_flight else None
        self.requests = int(float(requests)) if requests else None
        self.weight = int(float(weight)) if weight else 0
        self.cap = int(float(cap)) if cap else 0
        self.turn = float(turn) if turn else None
        self.latency = float(latency) if latency else None
        self.share = float(report or 1) * float(ramp or 1) if report or ramp else None
        self.held: int | None = None

    @property
    def full(self) -> bool:
        """Has it as many connections as it may, as far as that is known?"""
        return self.cap > 0 and self.in_flight is not None and self.in_flight >= self.cap


def _sorted_out(
    wish: Wish, view: View, rows: Sequence[_Row], pick: str
) -> tuple[list[Candidate], list[Excluded]]:
    backends, why = view.snapshot.backends, view.why
    place = {name: number for number, name in enumerate(wish.named, 1)}
    # Who is named but not free gives way to the order, and then everybody is a candidate.
    only_named = pick in place
    candidates, excluded = [], []
    for row in rows:
        name = row.id
        known = backends.get(name)
        reason: Any = ""
        if name in wish.tried:
            reason = "tried"
        elif why.get(name) == "other zone" and name != pick:  # free or not
            reason = "other zone"
        elif row.weight > 0 or name == pick or (wish.rule == LAST and name in place):
            reason = "full" if row.full and name != pick else ""
            if not reason and only_named and name not in place:
                reason = "not named"
        else:
            reason = why.get(name, "not eligible")
        if reason:
            excluded.append(Excluded(name, reason, row.in_flight, row.cap))
        else:
            weight = known.weight if known is not None else abs(row.weight)
            candidates.append(
                Candidate(
                    *(name, weight, row.cap, row.in_flight, row.requests, row.turn, row.latency),
                    *(row.share, row.held, place.get(name)),
                )
            )
    candidates.sort(key=lambda one: (one.named or len(place) + 1, one.turn or 0.0, one.id != pick, one.id))
    seen = {row.id for row in rows}
    excluded += [Excluded(name, why[name]) for name in islice(why, MOST) if name not in seen]
    return candidates[: MOST + FRONT], excluded[:MOST]


def _seen(
    wish: Wish,
    view: View,
    basis: Basis,
    version: int,
    candidates: list[Candidate],
    excluded: list[Excluded],
    connections: int | None,
) -> Seen:
    return Seen(
        *(wish.algorithm, version, basis, wish.canary, view.eligible.mode, wish.rule, wish.key),
        *(tuple(candidates), tuple(excluded)),
        max(0, len(view.snapshot.backends) - len(candidates) - len(excluded)),
        connections,
    )
