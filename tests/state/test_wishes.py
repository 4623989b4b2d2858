"""What a claim asks for, and its marks."""

from __future__ import annotations

import pytest

from lb.state.wishes import (
    CANARY,
    EXPLAINED,
    LEAVES,
    PLAIN,
    QUEUED,
    bare,
    leaving,
    mark_of,
    marked,
    number_of,
)

WISHES = [PLAIN, "\t\ta", "l\ta\nb\tc", "b1.25\ta\t"]


@pytest.mark.parametrize("wish", WISHES)
def test_a_wish_without_a_mark(wish: str) -> None:
    assert mark_of(wish) == 0
    assert bare(wish) == wish


@pytest.mark.parametrize("wish", WISHES)
def test_what_marks_say_adds_up(wish: str) -> None:
    canary = marked(CANARY, wish)
    assert (mark_of(canary), bare(canary)) == (CANARY, wish)
    told = marked(EXPLAINED, canary, "7")
    assert (mark_of(told), number_of(told), bare(told)) == (CANARY | EXPLAINED, "7", wish)


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("before", [0, CANARY])
def test_a_wish_with_a_ticket(wish: str, before: int) -> None:
    """Each of a call's claims that have tickets says something, so that all stand in the order of these."""
    queued = marked(QUEUED, marked(before, wish) if before else wish, "17")
    assert (mark_of(queued), number_of(queued), bare(queued)) == (QUEUED | before, "17", wish or "\t\t")
    gone = leaving(queued)
    assert (mark_of(gone), number_of(gone), bare(gone)) == (QUEUED | before, "-17", f"{LEAVES}\t\t")
