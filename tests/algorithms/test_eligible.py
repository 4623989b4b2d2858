"""Who gets the requests of a pool, from what all its backends say of themselves."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.algorithms.eligible import Eligible, Mode, Zone, eligible, home, seen_from, zone_of, zones
from lb.model import Backend, Breaker, PoolSettings, Snapshot


def pool(states: str, threshold: float = 0.0, zone_threshold: float = 0.7) -> Snapshot:
    """`states`: "a up, b down backup, c drain @east, d none, e up out" and so on; "none" is a weight of 0,
    "out" is one that is ejected, "@" comes before a zone.
    """
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
            zone=next((word[1:] for word in more if word[0] == "@"), ""),
            breaker=Breaker(open="out" in more),
        )
    settings = PoolSettings(panic_threshold=threshold, zone_threshold=zone_threshold)
    return Snapshot("p", 1, settings, backends)


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
        # Who is ejected gets nothing while anybody else can serve, and counts as one that is not healthy.
        ("a up, b up out", 0.0, "a", "", "normal"),
        ("a up out, b up backup, c up backup out", 0.0, "b", "", "backup"),
        ("a up, b unknown out, c down", 0.5, "abc", "", "panic"),
        ("a down, b up backup out", 0.5, "a", "", "panic"),
        ("a drain, b up backup out", 0.5, "b", "", "panic"),
        # Nobody else is left; who is down, drained or not seen to work yet does not come back so.
        ("a down, b up out", 0.0, "b", "", "ejected"),
        ("a down, b up out, c up backup out", 0.0, "b", "", "ejected"),
        ("a drain, c up backup out", 0.0, "c", "", "ejected"),
        ("a down out, b drain out, c checking out, d none out", 0.0, "", "", "normal"),
    ],
)
def test_who_serves(states: str, threshold: float, names: str, standby: str, mode: Mode) -> None:
    assert eligible(pool(states, threshold)) == Eligible(frozenset(names), frozenset(standby), mode)


STATES = st.sampled_from(["up", "down", "unknown", "checking", "drain", "none", "up out", "down out"])


@given(st.lists(st.tuples(STATES, st.booleans()), min_size=1, max_size=12), st.floats(0, 1))
def test_what_always_holds(states: list[tuple[str, bool]], threshold: float) -> None:
    text = ", ".join(f"b{n} {state}{' backup' * backup}" for n, (state, backup) in enumerate(states))
    snapshot = pool(text, threshold)
    found = eligible(snapshot)
    available = {name for name, each in snapshot.backends.items() if each.available}
    out = {name for name, each in snapshot.backends.items() if each.ejected}
    assert not found.names & found.standby
    assert all(snapshot.backends[name].weight for name in found.names)
    assert all(snapshot.backends[name].admin == "ready" for name in found.names)
    assert bool(found.names) >= bool(available or out)  # whoever is available, somebody serves
    assert (found.mode in ("panic", "ejected")) == bool(found.names - available)
    assert found.mode != "ejected" or (found.names <= out and not available)
    if not threshold and not out and not any(backup for _, backup in states):
        assert found == Eligible(frozenset(available), frozenset(), "normal")
    # One more that is healthy never takes requests away from those that are.
    better = {
        name: msgspec.structs.replace(each, health="up", breaker=Breaker())
        for name, each in snapshot.backends.items()
    }
    assert eligible(msgspec.structs.replace(snapshot, backends=better)).mode != "panic"


def test_zones_and_who_is_at_home_there() -> None:
    snapshot = pool("a up @east, b down @east, c up backup @west, d up, e drain @west, f none @north")
    assert zones(snapshot) == ("east", "north", "west")
    homes = {name: home(backend) for name, backend in snapshot.backends.items()}
    assert homes == {"a": "east", "b": "-east", "c": "-west", "d": "", "e": "-west", "f": "-north"}
    assert zones(pool("a up, b down")) == ()


@pytest.mark.parametrize(
    ("states", "threshold", "found", "seen"),
    [
        ("a up @east, b unknown @east, c up @west, d up", 0.7, (2, 2, True), "ab"),
        # Down, drained, without a weight: what the zone has lost. Waiting for a first probe: not had yet.
        ("a up @east, b up @east, c up @east, d down @east, z up", 0.7, (3, 4, True), "abc"),
        ("a up @east, b up @east, c drain @east, z up", 0.7, (2, 3, False), "abz"),
        ("a up @east, b up @east, c none @east, z up", 0.7, (2, 3, False), "abz"),
        ("a up @east, b checking @east, c checking @east, z up", 0.7, (1, 1, True), "a"),
        ("a up @east, b down @east, z up @west", 0.5, (1, 2, True), "a"),
        # At 0 one is enough, at 1 all are needed; none is never enough.
        ("a up @east, b down @east, c down @east, z up", 0.0, (1, 3, True), "a"),
        ("a down @east, z up", 0.0, (0, 1, False), "z"),
        ("a up @east, b up @east, c down @east, z up", 1.0, (2, 3, False), "abz"),
        ("z up @west, y up", 0.0, (0, 0, False), "yz"),
        # Backups are the whole pool's: they neither count in a zone nor stand in for it.
        ("a up @east, b down backup @east, z up @west", 0.7, (1, 1, True), "a"),
        ("a down @east, b up backup @east, z up @west", 0.7, (0, 1, False), "z"),
        ("a down @east, b up backup @east, z down @west", 0.7, (0, 1, False), "b"),
    ],
)
def test_a_zone_is_kept_to_while_enough_of_it_is_available(
    states: str, threshold: float, found: tuple[int, int, bool], seen: str
) -> None:
    snapshot = pool(states, zone_threshold=threshold)
    assert zone_of(snapshot, "east") == Zone(*found)
    view = seen_from(snapshot, "east")
    assert eligible(view).names == frozenset(seen)
    assert (view is snapshot) is not found[2]
    assert seen_from(snapshot, "") is snapshot


def test_a_zone_that_suffices_has_no_part_in_the_panic_of_the_others() -> None:
    snapshot = pool(
        "a up @east, b up @east, c down @east, x down @west, y down @west, z down @west", 0.9, 0.6
    )
    assert eligible(snapshot) == Eligible(frozenset("abcxyz"), frozenset(), "panic")
    assert eligible(seen_from(snapshot, "east")) == Eligible(frozenset("ab"), frozenset(), "normal")
    assert seen_from(snapshot, "west") is snapshot


@given(
    st.lists(
        st.tuples(STATES, st.booleans(), st.sampled_from(["", "east", "west"])), min_size=1, max_size=12
    ),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_what_always_holds_of_zones(
    states: list[tuple[str, bool, str]], panic: float, threshold: float
) -> None:
    text = ", ".join(
        f"b{n} {state}{' backup' * backup}{f' @{zone}' * bool(zone)}"
        for n, (state, backup, zone) in enumerate(states)
    )
    snapshot = pool(text, panic, threshold)
    for zone in ("east", "west", "nowhere"):
        view, whole = seen_from(snapshot, zone), eligible(snapshot)
        at_home = {name for name, each in snapshot.backends.items() if home(each) == zone}
        assert at_home <= whole.names  # who stands in the order of a zone stands in that of the pool
        assert zone_of(snapshot, zone).available == len(at_home)
        # A worker has its zone or the whole pool, and nobody goes without because of its zone.
        assert eligible(view) == (
            whole if view is snapshot else Eligible(frozenset(at_home), frozenset(), "normal")
        )
        assert bool(eligible(view).names) == bool(whole.names)
