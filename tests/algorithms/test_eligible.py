"""Who gets the requests of a pool, from what all its backends say of themselves."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.algorithms.eligible import Eligible, Mode, eligible
from lb.model import Backend, PoolSettings, Snapshot


def pool(states: str, threshold: float = 0.0) -> Snapshot:
    """`states`: "a up, b down backup, c drain, d none" and so on; "none" is a weight of 0."""
    backends = {}
    for part in states.split(", "):
        name, state, *more = part.split()
        backends[name] = Backend(
            name,
            f"http://{name}:80",
            weight=0 if state == "none" else 2,
            admin="drain" if state == "drain" else "ready",
            health=state if state in ("up", "down", "checking") else "unknown",  # type: ignore[arg-type]
            backup="backup" in more,
        )
    return Snapshot("p", 1, PoolSettings(panic_threshold=threshold), backends)


@pytest.mark.parametrize(
    ("states", "threshold", "names", "standby", "mode"),
    [
        ("a up, b unknown", 0.0, "ab", "", "normal"),
        ("a up, b down, c checking, d drain, e none", 0.0, "a", "", "normal"),
        ("a down, b down", 0.0, "", "", "normal"),
        # Backups wait, all of them serve when no primary does, and go back to waiting.
        ("a up, b up backup, c down backup", 0.0, "a", "b", "normal"),
        ("a down, b up backup, c unknown backup, d down backup", 0.0, "bc", "", "backup"),
        ("a drain, b up backup", 0.0, "b", "", "backup"),
        ("a none, b up backup", 0.0, "b", "", "backup"),
        ("b up backup", 0.0, "b", "", "backup"),
        # Panic: fewer than the share of those that are meant to serve.
        ("a up, b down", 0.5, "a", "", "normal"),
        ("a up, b down, c down", 0.5, "abc", "", "panic"),
        ("a up, b down, c drain, d none", 0.5, "a", "", "normal"),
        ("a down, b down", 0.5, "ab", "", "panic"),
        ("a down, b down", 0.01, "ab", "", "panic"),
        ("a up, b down", 1.0, "ab", "", "panic"),
        # Who has never been seen to work does not count, neither way.
        ("a checking, b checking", 0.5, "", "", "normal"),
        ("a up, b checking, c checking", 0.5, "a", "", "normal"),
        ("a down, b checking", 0.5, "a", "", "panic"),
        # Backups come before panic, beside the primaries that are left.
        ("a up, b down, c down, d up backup", 0.5, "ad", "", "backup"),
        ("a up, b down, c down, d down backup", 0.5, "abc", "", "panic"),
        ("a drain, d down backup", 0.5, "d", "", "panic"),
        ("a drain, d down backup", 0.0, "", "", "normal"),
    ],
)
def test_who_serves(states: str, threshold: float, names: str, standby: str, mode: Mode) -> None:
    assert eligible(pool(states, threshold)) == Eligible(frozenset(names), frozenset(standby), mode)


STATES = st.sampled_from(["up", "down", "unknown", "checking", "drain", "none"])


@given(st.lists(st.tuples(STATES, st.booleans()), min_size=1, max_size=12), st.floats(0, 1))
def test_what_always_holds(states: list[tuple[str, bool]], threshold: float) -> None:
    text = ", ".join(f"b{n} {state}{' backup' * backup}" for n, (state, backup) in enumerate(states))
    snapshot = pool(text, threshold)
    found = eligible(snapshot)
    available = {name for name, each in snapshot.backends.items() if each.available}
    assert not found.names & found.standby
    assert all(snapshot.backends[name].weight for name in found.names)
    assert all(snapshot.backends[name].admin == "ready" for name in found.names)
    assert bool(found.names) >= bool(available)  # whoever is available, somebody serves
    assert (found.mode == "panic") == bool(found.names - available)
    if not threshold and not any(backup for _, backup in states):
        assert found == Eligible(frozenset(available), frozenset(), "normal")
    # One more that is healthy never takes requests away from those that are.
    better = {name: msgspec.structs.replace(each, health="up") for name, each in snapshot.backends.items()}
    assert eligible(msgspec.structs.replace(snapshot, backends=better)).mode != "panic"
