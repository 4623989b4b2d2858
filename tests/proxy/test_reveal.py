"""Who is told by the field of an answer, and what."""

from __future__ import annotations

import pytest

from lb.accesslog import Entry
from lb.proxy.reveal import reveal
from lb.settings import DecisionSettings


def entry(client: str) -> Entry:
    return Entry(0.0, "r1", client, "GET", "h", "/", pool="web", tried=("a", "b"))


def test_nothing_unless_it_is_switched_on() -> None:
    assert reveal(DecisionSettings()) is None


@pytest.mark.parametrize(
    ("client", "seen"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("::ffff:127.0.0.9", True),
        ("192.0.2.1", False),
        ("::2", False),
        ("", False),
        ("nonsense", False),
    ],
)
def test_who_sees_it(client: str, seen: bool) -> None:
    shown = reveal(DecisionSettings(header="X-LB"))
    assert shown is not None
    line = shown.line(entry(client), "c", "random", 7)
    assert line == (
        b'X-LB: id="r1", pool="web", algorithm="random", version=7, backend="c", tried=("a" "b")\r\n'
        if seen
        else b""
    )


def test_an_answer_of_the_balancers_own() -> None:
    shown = reveal(DecisionSettings(header="X-LB", header_for=("192.0.2.0/24",)))
    assert shown is not None
    assert shown.value(entry("192.0.2.9")) == 'id="r1", pool="web", tried=("a" "b")'
    assert shown.value(entry("127.0.0.1")) == ""
