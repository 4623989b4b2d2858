"""Reading a pool's `HealthPolicy`: defaults of the command line, and whether it can be used at all.

Rules of this module: no I/O, no clock, no Redis.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache

import msgspec

from lb.model import HealthPolicy

#: Shortest interval, seconds; a pool that asks for a shorter one gets this.
MIN_INTERVAL = 0.1
#: Shortest timeout, seconds: below it a probe measures the prober.
MIN_TIMEOUT = 0.001
#: Longest times that are taken for meant, seconds.
MAX_TIME = 86400.0

_DEFAULT = HealthPolicy()
_PATH = re.compile(r"/[!-~]*\Z")


@lru_cache(maxsize=256)
def parse_status(text: str) -> frozenset[int]:
    """Return the status codes that `text` means, a list of codes and ranges such as "200-399,401".

    Raises ValueError for what is no such list.
    """
    codes: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([1-9]\d\d)(?:\s*-\s*([1-9]\d\d))?\s*", part, re.ASCII)
        if not match:
            raise ValueError(f"status {text!r} is no list of codes and ranges like 200-399,401")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 100 <= first <= last <= 599:
            raise ValueError(f"status {text!r}: {part.strip()} is not within 100 to 599, lowest first")
        codes.update(range(first, last + 1))
    return frozenset(codes)


def check(policy: HealthPolicy) -> HealthPolicy:
    """Return `policy` if it can be used; raises ValueError naming the field and the mend."""
    parse_status(policy.status)
    if policy.type not in ("http", "tcp"):
        raise ValueError(f"type {policy.type!r} is neither http nor tcp")
    if not _PATH.match(policy.path):
        raise ValueError(
            f"path {policy.path!r} must start with / and have no white space or control characters"
        )
    if not 0 <= policy.interval <= MAX_TIME:
        raise ValueError(f"interval {policy.interval} must be 0 to {MAX_TIME:.0f} seconds")
    if not MIN_TIMEOUT <= policy.timeout <= MAX_TIME:
        raise ValueError(f"timeout {policy.timeout} must be {MIN_TIMEOUT} to {MAX_TIME:.0f} seconds")
    if not 0 <= policy.jitter <= 1:
        raise ValueError(f"jitter {policy.jitter} must be 0 to 1")
    if policy.rise < 1 or policy.fall < 1:
        raise ValueError(f"rise {policy.rise} and fall {policy.fall} must be at least 1")
    return policy


class Overrides(msgspec.Struct, frozen=True):
    """What the command line says for pools that do not say it themselves; None: nothing."""

    interval: float = 10.0
    type: str | None = None
    path: str | None = None
    timeout: float | None = None
    rise: int | None = None
    fall: int | None = None
    status: str | None = None


def effective(policy: HealthPolicy, overrides: Overrides) -> HealthPolicy:
    """Return the policy a pool is probed by; its interval is never 0. Raises ValueError as `check` does.

    A field that has its built-in default counts as not set: what the fleet shares carries values, not
    who wrote them.
    """
    changes: dict[str, object] = {}
    for name in ("type", "path", "timeout", "rise", "fall", "status"):
        override = getattr(overrides, name)
        if override is not None and getattr(policy, name) == getattr(_DEFAULT, name):
            changes[name] = override
    check(policy)
    changes["interval"] = max(policy.interval or overrides.interval, MIN_INTERVAL)
    return check(msgspec.structs.replace(policy, **changes))


def seconds(text: str, least: float) -> float:
    """Return `text` as a finite number of seconds, at least `least`. Raises ValueError."""
    value = float(text)
    if not math.isfinite(value) or not least <= value <= MAX_TIME:
        raise ValueError(f"{text} is not within {least} and {MAX_TIME:.0f} seconds")
    return value
