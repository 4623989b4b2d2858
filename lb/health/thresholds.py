"""Rise and fall: from one backend's probes to its health.

Rules of this module: no I/O, no clock, no Redis. A `Track` is a value; `judge` makes the next one.

    unknown ──1 success──▶ up      unknown, checking ──`fall` failures──▶ down
    checking ──1 success──▶ up
    up ──`fall` failures in a row──▶ down ──`rise` successes in a row──▶ up

A newcomer needs one success, not `rise`: nothing speaks against it yet, and a pool that starts
should not wait longer than it must.
"""

from __future__ import annotations

import msgspec

from lb.model import Health


class Track(msgspec.Struct, frozen=True):
    """What the probes of one backend have said so far.

    `against` counts the probes in a row that speak against `health`: failures, except in `down`,
    where it counts successes.
    """

    health: Health
    against: int = 0

    @property
    def settled(self) -> bool:
        """False while a verdict is pending: a newcomer, or one whose last probe spoke against its health."""
        return self.against == 0 and self.health in ("up", "down")


def judge(track: Track, ok: bool, rise: int, fall: int) -> Track:
    """Return the track after one more probe that succeeded (`ok`) or failed.

    `rise` and `fall` are at least 1; smaller values count as 1.
    """
    if track.health == "down":
        if not ok:
            return track if track.against == 0 else Track("down")
        return Track("up") if track.against + 1 >= rise else Track("down", track.against + 1)
    if ok:
        return track if track.health == "up" and track.against == 0 else Track("up")
    return Track("down") if track.against + 1 >= fall else Track(track.health, track.against + 1)
