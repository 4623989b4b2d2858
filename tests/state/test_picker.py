"""What a claim asks for, by the algorithm of its pool."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import ClassVar

import msgspec
import pytest
from msgspec.structs import replace

from lb.algorithms.base import Algorithm, Chance, Request
from lb.algorithms.request import HeadRequest
from lb.model import Backend, HashPolicy, PoolSettings, Snapshot
from lb.state import picker as module
from lb.state.picker import Picker
from lb.state.wishes import PLAIN

REQUEST = HeadRequest(b"GET / HTTP/1.1\r\nHost: h\r\nX-Tenant: blue\r\n", "192.0.2.7", "/")


def made(name: str, held: dict[str, int] | None = None, **settings: object) -> Picker:
    backends = {n: Backend(id=n, url=f"http://{n}:1") for n in ("a", "b", "c")}
    snapshot = Snapshot("p", 1, PoolSettings(name, **settings), backends)  # type: ignore[arg-type]
    return Picker(name, snapshot, {} if held is None else held, lambda: 0.5)


@pytest.mark.parametrize("name", ["round-robin", "weighted-least-connections", "resource-based"])
def test_an_order_needs_no_words(name: str) -> None:
    picker = made(name)
    assert (picker.ruled, picker.asks, picker.timed) == (False, False, False)
    assert picker.wish((), None) == PLAIN
    assert picker.wish(("a", "b"), None) == "\t\ta\nb"


@pytest.mark.parametrize(
    ("name", "code", "asks", "timed"),
    [
        ("random", "f", False, False),
        ("power-of-two-choices", "l", False, False),
        ("least-time", "t", False, True),
        ("ip-hash", "f", True, False),
    ],
)
def test_candidates_and_their_rule(name: str, code: str, asks: bool, timed: bool) -> None:
    picker = made(name)
    assert (picker.ruled, picker.asks, picker.timed) == (True, asks, timed)
    kind, candidates, excluded = picker.wish((), REQUEST if asks else None).split("\t")
    assert (kind, excluded) == (code, "")
    names = candidates.split("\n")
    assert 2 <= len(names) == len(set(names)) <= 3
    # A retry asks for the next one.
    kind, later, excluded = picker.wish((names[0],), REQUEST if asks else None).split("\t")
    assert excluded == names[0]
    assert names[0] not in later.split("\n")


def test_the_bound_is_told_per_weight() -> None:
    assert made("consistent-hash").wish((), REQUEST).startswith(f"b{1.25 / 3:.9g}\t")
    assert made("consistent-hash", hash=HashPolicy(balance=0)).wish((), REQUEST).startswith("f\t")


def test_with_nobody_left_it_asks_for_who_is_next() -> None:
    assert made("random").wish(("a", "b", "c"), None) == "\t\ta\nb\nc"


def test_what_is_not_there_is_replaced_by_turns(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "lb"):
        picker = made("of-another-host")
    assert picker.wish((), None) == PLAIN
    assert "of-another-host" in caplog.text


class Odd(Algorithm):
    """Names whom there is not, and breaks."""

    name = "odd"
    rule = "first"
    answers: ClassVar[list[Sequence[str]]] = []

    def candidates(self, request: Request | None, chance: Chance) -> Sequence[str]:
        return self.answers.pop(0)


def test_an_algorithm_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "algorithm", lambda name: Odd)
    picker = made("odd")
    Odd.answers[:] = [["b", "x\tf\n", "nobody", "a"]]
    assert picker.wish((), None) == "f\tb\na\t"
    with caplog.at_level(logging.ERROR, "lb"):
        assert [picker.wish((), None), picker.wish((), None)] == [PLAIN, PLAIN]
    assert caplog.text.count("algorithm odd failed") == 1


def test_local_picks_follow_the_rule() -> None:
    held = {"a": 2, "b": 1}
    picker = made("power-of-two-choices", held)
    found = picker.pick("l\ta\nb\t")
    assert found is not None
    assert found.id == "b"
    found = made("ip-hash", held).pick("f\ta\nb\t")
    assert found is not None
    assert found.id == "a"
    found = picker.pick("l\ta\nb\ta\nb")
    assert found is not None
    assert found.id == "c"
    assert picker.pick("\t\ta\nb\nc") is None


@pytest.mark.parametrize(
    "name", ["random", "power-of-two-choices", "least-time", "ip-hash", "consistent-hash"]
)
def test_backups_are_named_only_when_they_serve(name: str) -> None:
    backup = Backend("c", "http://c:1", weight=3, backup=True)
    members = [Backend("a", "http://a:1", health="up"), Backend("b", "http://b:1", health="up"), backup]

    def candidates(*backends: Backend) -> tuple[str, set[str]]:
        snapshot = Snapshot("p", 1, PoolSettings(name), {each.id: each for each in backends})
        picker = Picker(name, snapshot, {}, lambda: 0.5)
        code, named, _ = picker.wish((), REQUEST).split("\t")
        assert picker.last_resort(("a",)) == ("s\tc\ta" if backup.id not in named else "")
        return code, set(named.split("\n"))

    code, named = candidates(*members)
    assert named == {"a", "b"}
    assert not code.startswith("b") or code == f"b{1.25 / 2:.9g}"
    down = [replace(each, health="down") for each in members[:2]]
    code, named = candidates(*down, backup)
    assert named == {"c"}
    assert not code.startswith("b") or code == f"b{1.25 / 3:.9g}"


def test_the_clients_own_backend_comes_first() -> None:
    assert made("round-robin").wish((), None, "b") == "o\tb\t"
    assert made("round-robin").wish(("a",), None, "b") == "o\tb\ta"
    assert made("round-robin").wish(("b",), None, "b") == "\t\tb"
    kind, candidates, excluded = made("ip-hash").wish(("c",), REQUEST, "b").split("\t")
    assert (kind, candidates.split("\n"), excluded) == ("of", ["b", "a"], "c")
    kind, candidates, _ = made("least-time").wish((), None, "b").split("\t")
    assert kind == "ot"
    assert candidates.startswith("b\n")
    assert candidates.count("b") == 1


def test_local_picks_know_the_clients_own_backend() -> None:
    held: dict[str, int] = {}
    picker = made("least-connections", held)
    backends = dict(picker.snapshot.backends)
    backends["b"] = Backend(id="b", url="http://b:1", admin="drain", max_connections=1)
    backends["c"] = Backend(id="c", url="http://c:1", health="down")
    picker = Picker("least-connections", msgspec.structs.replace(picker.snapshot, backends=backends), held)

    def pick(wish: str) -> str:
        found = picker.pick(wish)
        assert found is not None
        held[found.id] = held.get(found.id, 0) + 1
        return found.id

    assert [pick("o\ta\t"), pick("o\ta\t")] == ["a", "a"]
    # One that is drained goes on with its clients up to its cap; one that is down or gone has none.
    assert [pick("o\tb\t"), pick("o\tb\t")] == ["b", "a"]
    assert [pick("o\tc\t"), pick("of\tx\na\t"), pick("")] == ["a", "a", "a"]


def test_for_whom_it_is_worth_waiting() -> None:
    picker = made("round-robin")
    assert picker.may_wait(())
    assert picker.may_wait(("a", "b", "gone"))
    assert not picker.may_wait(("a", "b", "c"))
