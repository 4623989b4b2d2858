from __future__ import annotations

from lb.health.roster import Roster
from lb.model import Backend, Health, HealthPolicy, PoolSettings, Snapshot

POLICY = HealthPolicy(interval=1.0, rise=2, fall=2)


def snapshot(version: int, **healths: Health) -> Snapshot:
    backends = {name: Backend(name, f"http://{name}:80", health=health) for name, health in healths.items()}
    return Snapshot("p", version, PoolSettings(), backends)


def probe(roster: Roster, name: str, outcomes: str) -> bool:
    """Record all `outcomes`; is there something to write after one of them?"""
    written = [roster.record(name, roster.members[name], one == "+", one) for one in outcomes]
    return any(written)


def verdicts(roster: Roster) -> dict[str, tuple[str, str]]:
    return {one.id: (one.old, one.new) for one in roster.pending()}


def known(**healths: Health) -> Roster:
    roster = Roster("p")
    roster.reconcile(snapshot(1, **healths), POLICY)
    return roster


def test_everybody_is_fresh_at_first_and_nobody_when_nothing_changed() -> None:
    roster = Roster("p")
    assert roster.reconcile(snapshot(1, a="unknown", b="up"), POLICY) == (["a", "b"], [])
    assert roster.reconcile(snapshot(1, a="unknown", b="up"), POLICY) == ([], [])
    assert roster.version == 1


def test_comings_and_goings() -> None:
    roster = known(a="up", b="up")
    assert roster.reconcile(snapshot(2, b="up", c="checking"), POLICY) == (["c"], ["a"])


def test_verdicts_are_pending_until_a_snapshot_shows_them() -> None:
    roster = known(a="up", b="down", c="checking")
    assert probe(roster, "a", "--")
    assert probe(roster, "b", "++")
    assert probe(roster, "c", "+")
    expected = {"a": ("up", "down"), "b": ("down", "up"), "c": ("checking", "up")}
    assert verdicts(roster) == expected
    # A version that somebody else made in between.
    roster.reconcile(snapshot(2, a="up", b="down", c="checking", d="up"), POLICY)
    assert verdicts(roster) == expected
    roster.reconcile(snapshot(3, a="down", b="up", c="up", d="up"), POLICY)
    assert verdicts(roster) == {}


def test_a_steady_state_has_nothing_to_write() -> None:
    roster = known(a="up", b="down")
    assert not probe(roster, "a", "+++-+")
    assert not probe(roster, "b", "---+-")
    assert verdicts(roster) == {}


def test_a_verdict_taken_back_before_it_was_written_is_not_written() -> None:
    roster = known(a="up")
    assert probe(roster, "a", "--")
    assert not probe(roster, "a", "++")
    assert verdicts(roster) == {}


def test_the_outcome_of_a_probe_of_one_who_is_gone_is_ignored() -> None:
    roster = known(a="checking")
    old = roster.members["a"]
    moved = Snapshot("p", 2, PoolSettings(), {"a": Backend("a", "http://elsewhere:80", health="checking")})
    assert roster.reconcile(moved, POLICY).fresh == ["a"]
    assert not roster.record("a", old, True, "")
    assert roster.members["a"].track.health == "checking"
    roster.reconcile(snapshot(3), POLICY)
    assert not roster.record("a", old, True, "")


def test_one_who_registers_again_is_probed_before_it_counts_as_up() -> None:
    roster = known(a="up")
    probe(roster, "a", "+++")
    assert roster.reconcile(snapshot(2, a="checking"), POLICY).fresh == ["a"]
    assert verdicts(roster) == {}
    assert probe(roster, "a", "+")
    assert verdicts(roster) == {"a": ("checking", "up")}


def test_a_store_that_came_back_empty_hears_at_once_who_is_down() -> None:
    roster = known(a="up", b="up")
    probe(roster, "b", "--")
    roster.reconcile(snapshot(2, a="up", b="down"), POLICY)
    assert roster.reconcile(snapshot(1, a="unknown", b="unknown"), POLICY).fresh == ["a", "b"]
    assert verdicts(roster) == {"b": ("unknown", "down")}


def test_what_another_daemon_judged_meanwhile_holds() -> None:
    roster = known(a="up")
    roster.reconcile(snapshot(2, a="down"), POLICY)
    assert verdicts(roster) == {}
    assert not probe(roster, "a", "+")
    assert probe(roster, "a", "+")


def test_what_was_learned_while_the_store_was_away_wins_over_what_it_had() -> None:
    roster = known(a="up")
    probe(roster, "a", "--")
    roster.reconcile(snapshot(7, a="up"), POLICY)
    assert verdicts(roster) == {"a": ("up", "down")}


def test_a_pool_that_is_not_probed_keeps_nobody_out() -> None:
    roster = known(a="up", b="down", c="checking", d="unknown")
    changes = roster.reconcile(snapshot(2, a="up", b="down", c="checking", d="unknown"), None)
    assert changes == ([], ["a", "b", "c", "d"])
    assert verdicts(roster) == {"b": ("down", "unknown"), "c": ("checking", "unknown")}
    assert not probe(roster, "a", "---")
    roster.reconcile(snapshot(3, a="up", b="unknown", c="unknown", d="unknown"), None)
    assert verdicts(roster) == {}
    assert roster.reconcile(snapshot(3, a="up", b="unknown", c="unknown", d="unknown"), POLICY).fresh


def test_another_policy_makes_everybody_fresh() -> None:
    roster = known(a="up", b="up")
    assert roster.reconcile(snapshot(2, a="up", b="up"), HealthPolicy(interval=9.0)).fresh == ["a", "b"]
