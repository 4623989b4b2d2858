"""What a claim was decided on, sorted out: who could be taken, who could not, and why."""

from __future__ import annotations

from typing import Any

from lb.algorithms.eligible import eligible
from lb.algorithms.excluded import excluded
from lb.model import Backend, PoolSettings, Snapshot
from lb.state.picker import Picker
from lb.state.seen import FRONT, MOST, Seen, View, Wish, from_answer, from_worker, names_to_tell
from tests.algorithms.test_eligible import pool


def view(snapshot: Snapshot, **held: int) -> View:
    return Picker("round-robin", snapshot, held).view()


def row(name: str, in_flight: int, weight: int = 2, cap: int = 0, turn: str = "0") -> list[bytes]:
    return [str(part).encode() for part in (name, in_flight, 9, weight, cap, turn, "", "", "")]


def told(text: str, known: View, pick: str | None, *rows: list[bytes]) -> Seen:
    wish = Wish.read(text, "x", False, "")
    answer: list[Any] = [5, None if pick is None else pick.encode(), b"turns", 7]
    return from_answer(wish, known, answer + [part for one in rows for part in one])


def reasons(seen: Seen) -> dict[str, str]:
    return {one.id: one.reason for one in seen.excluded}


def test_the_view_of_a_worker() -> None:
    snapshot = pool("b up, a up, c down")
    known = view(snapshot)
    assert list(known.names) == ["a", "b"]
    assert known.why == excluded(snapshot, eligible(snapshot)) == {"c": "down"}


def test_by_turns_the_next_one_comes_first() -> None:
    seen = told("", view(pool("a up, b up")), "b", row("a", 3, turn="2.5"), row("b", 4, turn="1.5"))
    assert [(one.id, one.in_flight, one.turn) for one in seen.candidates] == [("b", 4, 1.5), ("a", 3, 2.5)]
    assert (seen.version, seen.basis, seen.connections, seen.omitted) == (5, "shared", 7, 0)


def test_reasons() -> None:
    known = view(pool("a up, b up, c up, d drain, e up backup"))
    rows = (row("a", 1), row("b", 3, cap=3, turn=""), row("c", 0), row("d", 2, 0), row("e", 0, -3))
    seen = told("\t\tc", known, "a", *rows)
    assert reasons(seen) == {"b": "full", "c": "tried", "d": "draining", "e": "backup"}
    assert [one.id for one in seen.candidates] == ["a"]
    assert next(one for one in seen.excluded if one.id == "b").in_flight == 3


def test_the_shared_state_knows_better() -> None:
    """A backend that the worker does not know to be out, and one that it does not know at all."""
    seen = told("", view(pool("a up, b up")), "new", row("a", 1), row("b", 0, 0), row("new", 0))
    assert reasons(seen) == {"b": "not eligible"}
    assert {one.id for one in seen.candidates} == {"a", "new"}


def test_named_ones() -> None:
    known = view(pool("a up, b up, c up"))
    rows = (row("a", 4), row("b", 2), row("c", 0))
    seen = told("l\ta\nb\t", known, "b", *rows)
    assert (seen.rule, reasons(seen)) == ("least-load", {"c": "not named"})
    assert [(one.id, one.named) for one in seen.candidates] == [("a", 1), ("b", 2)]
    # None of them was free: it went by the order, and everybody else was a candidate after all.
    full = (row("a", 4, cap=4), row("b", 2, cap=2), row("c", 0))
    seen = told("l\ta\nb\t", known, "c", *full)
    assert reasons(seen) == {"a": "full", "b": "full"}
    assert [one.id for one in seen.candidates] == ["c"]


def test_the_clients_own_backend() -> None:
    """It takes its client also when it takes nobody else."""
    known = view(pool("a drain, b up"))
    seen = told("o\ta\t", known, "a", row("a", 1, 0), row("b", 0))
    assert [one.id for one in seen.candidates] == ["a"]
    assert reasons(seen) == {"b": "not named"}
    full = told("o\ta\t", known, "b", row("a", 1, 0, 1), row("b", 0))
    assert reasons(full) == {"a": "draining"}
    assert [one.id for one in full.candidates] == ["b"]


def test_the_last_resort() -> None:
    known = view(pool("a up, b up backup, c up backup"))
    seen = told("s\tb\nc\ta", known, "c", row("b", 1, -3), row("c", 0, -3), row("a", 0))
    assert seen.rule == "last resort"
    assert reasons(seen) == {"a": "tried"}
    assert {one.id: one.weight for one in seen.candidates} == {"b": 2, "c": 2}


def test_nobody() -> None:
    seen = told("", view(pool("a up, b down")), None, row("a", 1, cap=1))
    assert (seen.candidates, reasons(seen)) == ((), {"a": "full", "b": "down"})


def test_what_the_worker_knows_by_itself() -> None:
    known = view(pool("a up, b up, c down"), a=2)
    seen = from_worker(Wish.read("\t\tb", "x", True, ""), known, "a")
    assert (seen.basis, seen.version, seen.canary, seen.connections) == ("worker", 1, True, None)
    (one,) = seen.candidates
    assert (one.id, one.held, one.in_flight, one.turn) == ("a", 2, None, None)
    assert reasons(seen) == {"b": "tried", "c": "down"}


def large(down: int = 0) -> Snapshot:
    members = {
        name: Backend(name, f"http://{name}:1", health="down" if n < down else "up")
        for n in range(10_000)
        for name in [f"b{n:05}"]
    }
    return Snapshot("p", 1, PoolSettings(), members)


def test_a_large_pool_is_told_of_in_part() -> None:
    known = view(large(5000))
    assert names_to_tell("", known).count("\n") == MOST - 1
    many = "l\t" + "\n".join(f"b{n:05}" for n in range(5000, 9000)) + "\t"
    assert len(names_to_tell(many, known).split("\n")) <= MOST
    for pick in ("b09999", ""):
        seen = from_worker(Wish.read("\t\tb07000", "x", False, ""), known, pick)
        assert len(seen.candidates) <= MOST + FRONT
        assert len(seen.excluded) <= MOST
        assert reasons(seen)["b07000"] == "tried"
        assert seen.omitted == 10_000 - len(seen.candidates) - len(seen.excluded)
        assert [one.id for one in seen.candidates][:1] == [pick or "b05000"]


def test_a_pick_that_was_not_told_of() -> None:
    """Of very many that were named, say."""
    seen = told("", view(pool("a up, b up")), "b", row("a", 1))
    assert {one.id for one in seen.candidates} == {"a", "b"}
