"""What stands at each path of the control side: one class each, one method per HTTP method.

HEAD is answered as GET is; the framework leaves the body out.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

import msgspec
from falcon import Request, Response
from msgspec import UNSET, UnsetType

from lb.config_checks import check_id
from lb.control.answers import (
    AlgorithmInfo,
    BackendList,
    Liveness,
    PoolList,
    Readiness,
)
from lb.control.bodies import AlgorithmChoice, BackendChange, NewBackend, invalid, read
from lb.control.networks import NotAllowed, NotFound, check
from lb.control.openapi import document
from lb.control.problems import Fault, Problem
from lb.control.shared import Shared, no_backend, one_backend
from lb.errors import ConfigError
from lb.model import CLOSED, Snapshot, backend_id
from lb.model import Backend as Member
from lb.model import Health as Verdict
from lb.service import Service
from lb.state import decide
from lb.state.decide import NOTHING, Change, Decider
from lb.state.registry import Registry


def _tell(resp: Response, content: object, status: int = 200) -> None:
    resp.status = status
    resp.content_type = "application/json"
    resp.data = msgspec.json.encode(content) + b"\n"


class Health:
    """`/healthz`: the process lives."""

    def on_get(self, req: Request, resp: Response) -> None:
        """Always 200."""
        _tell(resp, Liveness())

    on_head = on_get


class Ready:
    """`/readyz`: traffic may come here."""

    def __init__(self, service: Callable[[], Service | None]) -> None:
        self._service = service

    def on_get(self, req: Request, resp: Response) -> None:
        """200, or 503 before this worker serves, once a stop is announced and while it finishes what runs."""
        service = self._service()
        if service is None or service.draining or service.leaving():
            _tell(resp, Readiness("draining" if service else "starting"), 503)
            return
        # The store being away is no reason to take this balancer out: it goes on balancing.
        degraded = service.fleet.degraded
        _tell(resp, Readiness("degraded" if degraded else "ready", degraded or "ok"))

    on_head = on_get


class Document:
    """`/v1/openapi.json`: what all of this is."""

    def __init__(self, locked: bool) -> None:
        self._locked = locked

    def on_get(self, req: Request, resp: Response) -> None:
        """The document."""
        _tell(resp, document(self._locked))

    on_head = on_get


class Pools:
    """`/v1/pools`."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def on_get(self, req: Request, resp: Response) -> None:
        """All pools."""
        _tell(resp, PoolList(self._shared.pools()))

    on_head = on_get


class Pool:
    """`/v1/pools/{pool}`."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def on_get(self, req: Request, resp: Response, pool: str) -> None:
        """One pool."""
        _tell(resp, self._shared.pool(pool))

    on_head = on_get


class Backends:
    """`/v1/pools/{pool}/backends`. What is added must be in the networks `allowed`."""

    def __init__(self, shared: Shared, allowed: tuple[str, ...]) -> None:
        self._shared = shared
        self._allowed = allowed

    def on_get(self, req: Request, resp: Response, pool: str) -> None:
        """The backends of a pool."""
        found = self._shared.pool(pool)
        _tell(resp, BackendList(found.version, found.exact, found.backends))

    on_head = on_get

    def on_post(self, req: Request, resp: Response, pool: str) -> None:
        """Add a backend: 201, 200 when it is there already just so, 409 when its id is another's."""
        wanted = read(req, NewBackend)
        try:
            name = wanted.id or check_id(backend_id(wanted.url))
        except ValueError as exc:
            raise invalid(Fault("#/url", f"makes no id: {exc}; give one")) from None
        with self._shared.pool_in(pool) as found:
            self._check_address(wanted.url)
            member = Member(name, wanted.url, wanted.weight, wanted.max_connections, zone=wanted.zone)
            created = False

            def decider(snapshot: Snapshot) -> Change:
                nonlocal created
                known = snapshot.backends.get(name)
                created = known is None
                if known is None:
                    return decide.add(member)(snapshot)
                if known.url != member.url:
                    raise Problem(
                        409, f"{name} is a backend at {known.url} already; give this one another id"
                    )
                if _chosen(known) != _chosen(member):
                    raise Problem(409, f"{name} is there already, with other settings; change it with PATCH")
                return NOTHING

            _make(found, pool, decider)
            info = one_backend(found, pool, name)
        resp.set_header("Location", f"/v1/pools/{quote(pool, safe='')}/backends/{quote(name, safe='')}")
        _tell(resp, info, 201 if created else 200)

    def _check_address(self, url: str) -> None:
        try:
            check(url, self._allowed)
        except NotAllowed as exc:
            raise Problem(403, str(exc), (Fault("#/url", str(exc)),)) from None
        except NotFound as exc:
            raise invalid(Fault("#/url", str(exc))) from None


class Backend:
    """`/v1/pools/{pool}/backends/{backend}`, by its id."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def on_get(self, req: Request, resp: Response, pool: str, backend: str) -> None:
        """One backend."""
        _tell(resp, self._shared.backend(pool, backend))

    on_head = on_get

    def on_patch(self, req: Request, resp: Response, pool: str, backend: str) -> None:
        """Change what is given, then take its report."""
        change = read(req, BackendChange)
        share: float | UnsetType = UNSET
        with self._shared.pool_in(pool) as found:
            if change != BackendChange(report=change.report):
                fresh: Verdict = "unknown" if found.health_owner() is None else "checking"
                _make(found, pool, _changed(pool, backend, change, fresh))
            if not isinstance(change.report, UnsetType):
                try:
                    share = found.report(pool, backend, change.report.checked())
                except KeyError:
                    raise no_backend(backend, pool) from None
            info = one_backend(found, pool, backend)
        _tell(resp, msgspec.structs.replace(info, share=share))

    def on_delete(self, req: Request, resp: Response, pool: str, backend: str) -> None:
        """Remove it; what it is serving is finished."""

        def decider(snapshot: Snapshot) -> Change:
            if backend not in snapshot.backends:
                raise no_backend(backend, pool)
            return decide.remove(backend)(snapshot)

        with self._shared.pool_in(pool) as found:
            found.change(pool, decider)
        resp.status = 204


def _make(found: Registry, pool: str, decider: Decider) -> None:
    """Make a change that can be one zone too many."""
    try:
        found.change(pool, decider)
    except ConfigError as exc:
        raise invalid(Fault("#/zone", str(exc))) from None


def _chosen(member: Member) -> tuple[int, int, str]:
    return member.weight, member.max_connections, member.zone


def _changed(pool: str, name: str, change: BackendChange, fresh: Verdict) -> Decider:
    """`change` made; a backend that was found down begins anew as `fresh` when it is said to be ready, and is
    ejected no more.
    """

    def decider(snapshot: Snapshot) -> Change:
        known = snapshot.backends.get(name)
        if known is None:
            raise no_backend(name, pool)
        begins_anew = change.admin == "ready" and known.health == "down"
        return Change(
            put=(
                msgspec.structs.replace(
                    known,
                    weight=known.weight if change.weight is UNSET else change.weight,
                    max_connections=(
                        known.max_connections if change.max_connections is UNSET else change.max_connections
                    ),
                    zone=known.zone if change.zone is UNSET else change.zone,
                    admin=known.admin if change.admin is UNSET else change.admin,
                    health=fresh if begins_anew else known.health,
                    breaker=CLOSED if change.admin == "ready" else known.breaker,
                ),
            )
        )

    return decider


class Algorithm:
    """`/v1/pools/{pool}/algorithm`."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def on_get(self, req: Request, resp: Response, pool: str) -> None:
        """How a pool chooses."""
        _tell(resp, self._shared.algorithm(pool))

    on_head = on_get

    def on_put(self, req: Request, resp: Response, pool: str) -> None:
        """Switch it, for the whole fleet. The body says it all: a trial that it does not name ends."""
        choice = read(req, AlgorithmChoice)

        def decider(snapshot: Snapshot) -> Change:
            change = decide.switch(choice.algorithm)(snapshot)
            if choice.canary is None:
                return change
            switched = decide.applied(snapshot, change, snapshot.version)
            return decide.switch(choice.canary.algorithm, choice.canary.share)(switched)

        with self._shared.pool_in(pool) as found:
            settings = found.change(pool, decider).settings
        _tell(resp, AlgorithmInfo(settings.algorithm, settings.canary, True))
