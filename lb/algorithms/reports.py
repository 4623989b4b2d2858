"""What backends report of themselves, and the weight that follows from it (`resource-based`).

No I/O, no clock. A backend's weight is its own weight times the share of it that is free, smoothed over
reports.

The smoothing is the same in both directions. That a peak should count at once, as it does for latencies,
looks prudent, but here the weight acts back on what is reported: traffic goes by 1 - u, so a backend that is
used to u answers a change of its weight with u/(1 - u) times that change in the other direction. Unsmoothed,
that swings ever wider above half use. Smoothed with a constant of two periods it settles up to about 80 %
use; with falls counted at once, up to about 70 % only. What must act at once is there: `max_connections`, and
the health checks.
"""

from __future__ import annotations

from math import exp, isfinite

import msgspec

LEAST_FREE = 0.01
"""The least share that counts as free: a backend that gets nothing could not show that it has recovered."""

SMOOTHING = 2.0
"""The time constant of the smoothing, in periods."""


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a backend says of itself at `time` (seconds since the epoch, its own clock).

    `cpu`, `memory` and `load`, a number of its own, are shares in use, 0 to 1. `running` is the requests it
    is working on, `capacity` how many it can work on.
    """

    time: float
    cpu: float | None = None
    memory: float | None = None
    load: float | None = None
    running: int | None = None
    capacity: int | None = None


def check(report: Report) -> Report:
    """The report itself. Raises ValueError where a number is out of range, or none says how busy the backend
    is.
    """
    if not isfinite(report.time) or report.time <= 0:
        raise ValueError(f"time: {report.time!r} is no time; write seconds since the epoch")
    for name in ("cpu", "memory", "load"):
        share = getattr(report, name)
        if share is not None and not 0 <= share <= 1:  # NaN is not in there either
            raise ValueError(f"{name}: {share!r} is no share in use; write 0 (idle) to 1 (all of it)")
    if report.running is not None and report.running < 0:
        raise ValueError(f"running: {report.running} requests cannot be; write 0 or more")
    if report.capacity is not None and report.capacity < 1:
        raise ValueError(f"capacity: {report.capacity} requests cannot be; write 1 or more")
    if report.capacity is not None and report.running is None:
        raise ValueError("capacity says nothing without running")
    if not _used(report):
        if report.running is not None:
            raise ValueError("running says nothing without capacity, cpu, memory or load")
        raise ValueError("says nothing; give one of cpu, memory, load, or running and capacity")
    return report


def free_share(report: Report) -> float:
    """How much of a backend is free by what it is shortest of: 1 less the most in use, `LEAST_FREE` to 1."""
    return max(LEAST_FREE, 1 - max(_used(report)))


def smooth(before: float | None, share: float, elapsed: float, period: float) -> float:
    """An exponentially weighted mean of free shares.

    `before`: the mean so far, None: this is the first report. `elapsed`: seconds since the report before; one
    that is not newer changes nothing. `period`: how often the backend reports, in seconds.
    """
    if before is None:
        return share
    return share + (before - share) * exp(-max(elapsed, 0.0) / (SMOOTHING * period))


def effective(weight: int, share: float) -> float:
    """The weight that a backend gets its turns by: 0 only where its own is 0."""
    return weight * max(LEAST_FREE, share)


def _used(report: Report) -> list[float]:
    used = [share for share in (report.cpu, report.memory, report.load) if share is not None]
    if report.running is not None and report.capacity is not None:
        used.append(min(1.0, report.running / report.capacity))
    return used
