"""Why backends get no requests."""

from __future__ import annotations

from lb.algorithms.eligible import eligible
from lb.algorithms.excluded import excluded
from tests.algorithms.test_eligible import pool


def test_one_reason_each() -> None:
    snapshot = pool(
        "a up, b down, c checking, d drain, e none, f up backup, g down backup, h up out, i down out"
    )
    assert excluded(snapshot, eligible(snapshot)) == {
        "b": "down",
        "c": "checking",
        "d": "draining",
        "e": "weight 0",
        "f": "backup",
        "g": "down",
        "h": "ejected",
        "i": "down",
    }


def test_who_serves_is_not_excluded() -> None:
    """Backups that serve, and those that are down in a panic."""
    for text, threshold, left in (
        ("a down, b up backup", 0.0, {"a": "down"}),
        ("a up, b down, c down", 0.5, {}),
    ):
        snapshot = pool(text, threshold)
        assert excluded(snapshot, eligible(snapshot)) == left
