"""The books of what one worker holds."""

from __future__ import annotations

from lb.state.held import SAID_ANEW, Held


def test_what_is_not_held_is_not_given_back() -> None:
    held = Held()
    assert not held.drop("a")
    for name in "aab":
        held.take(name)
    assert held.counts == {"a": 2, "b": 1}
    assert [held.drop(name) for name in "abaab"] == [True, True, True, False, False]
    assert held.counts == {}


def test_it_is_said_anew_when_the_lease_is_long_and_most_of_it_is_over() -> None:
    held = Held()
    for number in range(SAID_ANEW):
        held.take(f"b{number}")
    held.told(4 * SAID_ANEW)
    assert not held.lengthy()
    held.told(1)
    assert held.lengthy()
    assert held.whole("e").split("\t")[:5] == ["e", "b0", "1", "b1", "1"]
    assert not held.lengthy()
    held.told(5 * SAID_ANEW)
    held.opened()
    assert not held.lengthy()


def test_nothing_is_something_to_say_too() -> None:
    held = Held()
    held.take("a")
    held.drop("a")
    assert held.whole("e") == "e\t"
    held.told(SAID_ANEW)
    assert not held.lengthy()
    held.told(1)
    assert held.lengthy()
