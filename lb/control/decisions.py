"""How requests got their backends: `/v1/decisions`, and one of them by the id of its request.

Every balancer tells of the requests of the whole fleet. What this worker has not written yet, or cannot while
the shared state is away, it tells by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated

import msgspec
from falcon import Request, Response
from msgspec import Meta

from lb.config_checks import did_you_mean
from lb.control.problems import Problem, away
from lb.control.shared import Shared
from lb.decision import Decision
from lb.errors import StoreUnavailable
from lb.service import Service
from lb.state.decisions import MOST_LISTED, find, recent

LIMIT = 20
"""How many are listed unless more are asked for."""

_WORDS = {"true": True, "false": False}


class DecisionSummary(msgspec.Struct, frozen=True):
    """A decision in short. `backend` "": there was no answer; `attempts`: how many; `sampled`: kept because
    it was drawn.
    """

    id: str
    time: float
    pool: str
    method: str
    path: str
    status: Annotated[int, Meta(ge=0, le=999)]
    code: str
    backend: str
    attempts: int
    sampled: bool
    failed: bool


class DecisionList(msgspec.Struct, frozen=True):
    """The last decisions that are kept, newest first."""

    decisions: tuple[DecisionSummary, ...]


class Decisions:
    """`/v1/decisions`."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def on_get(self, req: Request, resp: Response) -> None:
        """The last ones; `pool`, `failed` and `limit` say which."""
        pool, failed, limit = _asked(req)
        with self._shared.registry() as registry:
            names = registry.pools()
            if pool is not None and pool not in names:
                raise Problem(422, f"pool: there is no pool {pool[:64]!r}{did_you_mean(pool[:64], names)}")
            found = recent(registry, names if pool is None else [pool], failed=failed, most=limit)
        tell(resp, DecisionList(tuple(map(summary, found))))

    on_head = on_get


class OneDecision:
    """`/v1/decisions/{request_id}`."""

    def __init__(self, shared: Shared, service: Callable[[], Service | None]) -> None:
        self._shared = shared
        self._service = service

    def on_get(self, req: Request, resp: Response, request_id: str) -> None:
        """One decision."""
        service = self._service()
        found = None if service is None else service.recorder.find(request_id)
        if found is None:
            if service is not None and service.fleet.degraded:
                raise away(StoreUnavailable("the shared state is away, and this worker knows nothing of it"))
            with self._shared.registry() as registry:
                found = find(registry, request_id)
        if found is None:
            raise Problem(404, f"nothing is known of request {request_id[:128]!r} (any more)")
        tell(resp, found)

    on_head = on_get


def tell(resp: Response, content: Decision | DecisionList) -> None:
    """Answer with `content`."""
    resp.content_type = "application/json"
    resp.data = msgspec.json.encode(content) + b"\n"


def summary(one: Decision) -> DecisionSummary:
    """One decision in short."""
    return DecisionSummary(
        *(one.id, one.time, one.pool, one.method, one.path, one.status, one.code, one.backend),
        *(len(one.attempts), one.sampled, one.failed),
    )


def _asked(req: Request) -> tuple[str | None, bool | None, int]:
    """`pool`, `failed`, `limit` of the query. Raises Problem."""
    for name in req.params:
        if name not in ("pool", "failed", "limit"):
            raise Problem(422, f"there is no parameter {name[:64]!r}; there are pool, failed and limit")
        if not isinstance(req.params[name], str):
            raise Problem(422, f"{name} is given twice")
    pool, failed, limit = (req.get_param(name) for name in ("pool", "failed", "limit"))
    if failed is not None and failed not in _WORDS:
        raise Problem(422, "failed: must be true or false")
    if limit is not None and not (re.fullmatch("[0-9]{1,3}", limit) and 1 <= int(limit) <= MOST_LISTED):
        raise Problem(422, f"limit: must be a number from 1 to {MOST_LISTED}")
    return pool, None if failed is None else _WORDS[failed], LIMIT if limit is None else int(limit)
