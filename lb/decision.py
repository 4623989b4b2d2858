"""What is told of how a request got its backend: the shape of it, and of nothing else.

A decision is kept as JSON in the shared state (`lb.state.decisions`), where every balancer of the fleet finds
it by the request's id. What is left out of the JSON has its default. Times in seconds.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

REQUEST_ID = re.compile(r"[A-Za-z0-9._~+/=-]{1,128}\Z")
"""What a request's id may be: those that are made here, and those that trusted proxies may bring."""

Basis = Literal["shared", "worker"]
"""Where numbers come from: the shared state, in the same step as the pick; or what the worker knew by itself.
"""

Reason = Literal[
    "tried",
    "full",
    "down",
    "checking",
    "draining",
    "weight 0",
    "backup",
    "other zone",
    "ejected",
    "not named",
    "not eligible",
]
"""Why a backend could not be taken. "not named": the algorithm drew, or hashed to, others. "not eligible":
the shared state had taken it out, and the worker did not know yet why."""


class Candidate(msgspec.Struct, frozen=True, omit_defaults=True):
    """A backend that could have been taken. Of the fleet: connections `in_flight`, `requests` ever, its
    `turn` (its score in the order: the lowest is next), `latency` (peak EWMA), `share` of its weight that
    counts, by its reports and its slow start. `held`: connections of the worker that asked. `named`: the how
    manieth the algorithm named it, from 1.
    """

    id: str
    weight: int
    max_connections: int = 0
    in_flight: int | None = None
    requests: int | None = None
    turn: float | None = None
    latency: float | None = None
    share: float | None = None
    held: int | None = None
    named: int | None = None


class Excluded(msgspec.Struct, frozen=True, omit_defaults=True):
    """A backend that could not be taken, and why."""

    id: str
    reason: Reason
    in_flight: int | None = None
    max_connections: int = 0


class Attempt(msgspec.Struct, frozen=True, omit_defaults=True):
    """One try. `backend` "": nobody could take the request. `at`: since the request came; `waited` for the
    pick (None: it was not measured, and is part of `seconds`); `seconds` from then until the head of the
    answer, or the failure.

    `outcome` is "answered", with the answer's `status`; "outrun" when another one that ran at the same time
    was first (`hedge`: one that began because the first was slow); or the code of the error (see
    `lb.errors`), with its `detail`. `version` is that of the pool, `rule` how one of those that the algorithm
    named was taken, `key` what of the request it went by. `omitted`: members of the pool that are neither in
    `candidates` nor in `excluded`.
    """

    backend: str
    at: float
    seconds: float
    outcome: str
    basis: Basis
    algorithm: str
    version: int
    waited: float | None = None
    status: int = 0
    detail: str = ""
    canary: bool = False
    hedge: bool = False
    mode: str = "normal"
    rule: str = ""
    key: str = ""
    connections: int | None = None
    candidates: tuple[Candidate, ...] = ()
    excluded: tuple[Excluded, ...] = ()
    omitted: int = 0


class Decision(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one request got its backend, or why it got none. `time` of its coming, since the epoch; `duration`
    until the end of its answer.

    `sampled`: it is kept because it was drawn; else because something failed. `home`: the backend that the
    client's cookie names (sticky sessions); `kept`: did it answer? `code`, `status`: as in the access log;
    `path`: without the query, cut to 256 characters.
    """

    id: str
    time: float
    pool: str
    method: str
    host: str
    path: str
    status: int
    duration: float
    sampled: bool
    worker: str
    backend: str = ""
    code: str = ""
    home: str = ""
    kept: bool = False
    attempts: tuple[Attempt, ...] = ()

    @property
    def failed(self) -> bool:
        """Did anything go wrong: an attempt, or the answer?"""
        return (
            self.status >= 500
            or self.code != ""
            or any(attempt.outcome not in ("answered", "outrun") for attempt in self.attempts)
        )


ENCODE = msgspec.json.Encoder().encode
DECODE = msgspec.json.Decoder(Decision).decode
