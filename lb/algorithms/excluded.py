"""Why backends get no requests, for people who ask. Pure; `lb.algorithms.eligible` says who does get some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from lb.algorithms.eligible import Eligible
from lb.model import Backend, Snapshot

Why = Literal["down", "checking", "draining", "weight 0", "backup", "ejected", "other zone"]


def excluded(snapshot: Snapshot, found: Eligible, near: Snapshot | None = None) -> Mapping[str, Why]:
    """Backend → why it is not eligible, by name; `found` is `eligible(snapshot)`, or of `near`, what a worker
    that keeps to its zone sees of it. O(number of backends).
    """
    return {
        name: _why(backend) if near is None or name in near.backends else "other zone"
        for name, backend in sorted(snapshot.backends.items())
        if name not in found.names
    }


def _why(backend: Backend) -> Why:
    if backend.admin == "drain":
        return "draining"
    if backend.weight <= 0:
        return "weight 0"
    if backend.health in ("down", "checking"):
        return "down" if backend.health == "down" else "checking"
    return "ejected" if backend.breaker.open else "backup"
