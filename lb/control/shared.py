"""The shared state as the control side of one worker reads and changes it.

A request has a client of its own, opened when it needs one: there are few, and none is left that a store
that went away and came back has broken. Its timeouts are short, for somebody waits. Reads go on without the
store, on what the worker knows; writes do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from lb.config_checks import did_you_mean
from lb.control.answers import (
    AlgorithmInfo,
    BackendInfo,
    PoolInfo,
    exact_backend,
    exact_pool,
    known_backend,
    known_pool,
)
from lb.control.problems import Problem, away
from lb.errors import StoreError, StoreUnavailable
from lb.model import Snapshot
from lb.service import Service
from lb.settings import Settings
from lb.state.pieces import pause
from lb.state.registry import Registry
from lb.state.store import connect, store_url
from lb.state.survey import Survey, ask, known

T = TypeVar("T")

TIMEOUT = 0.5
"""Seconds for the store to answer one command."""


class Shared:
    """`service` gives the worker's parts, None before it has them."""

    def __init__(self, settings: Settings, service: Callable[[], Service | None]) -> None:
        self._url = store_url(settings.redis_url, settings.runtime_dir)
        self._configured = settings.pools
        self._service = service

    @contextmanager
    def registry(self) -> Iterator[Registry]:
        """The store. What is done with it raises StoreError."""
        client = connect(self._url, socket_timeout=TIMEOUT, connect_timeout=TIMEOUT, client_name="lb-control")
        try:
            yield Registry(client)
        finally:
            client.close()

    @contextmanager
    def pool_in(self, pool: str) -> Iterator[Registry]:
        """The store, in which there is such a pool, or will be: it is configured. Raises Problem."""
        with self.registry() as found:
            self._must_be(pool, found)
            yield found

    def _must_be(self, pool: str, found: Registry) -> None:
        names = {*found.pools(), *self._configured}
        if pool not in names:
            raise no_pool(pool, names)

    def pools(self) -> dict[str, PoolInfo]:
        """All pools, by name."""
        if self._in_use():
            try:
                with self.registry() as found:
                    return {name: exact_pool(found.pool_status(name, pause)) for name in found.pools()}
            except StoreUnavailable:
                pass
        return self._known()

    def pool(self, name: str) -> PoolInfo:
        """One pool. Raises Problem."""
        exact = self._exact(name, lambda found: exact_pool(found.pool_status(name, pause)))
        return exact or known_pool(self._snapshot(name))

    def backend(self, pool: str, name: str) -> BackendInfo:
        """One backend. Raises Problem."""
        exact = self._exact(pool, lambda found: one_backend(found, pool, name))
        if exact is not None:
            return exact
        known = self._snapshot(pool).backends.get(name)
        if known is None:
            raise no_backend(name, pool)
        return known_backend(known)

    def algorithm(self, pool: str) -> AlgorithmInfo:
        """How a pool chooses. Raises Problem."""
        exact = self._exact(pool, lambda found: found.load_settings(pool))
        settings = exact or self._snapshot(pool).settings
        return AlgorithmInfo(settings.algorithm, settings.canary, exact is not None)

    def _exact(self, pool: str, ask: Callable[[Registry], T]) -> T | None:
        """What the store says of `pool`; None while it is away. Raises Problem."""
        if self._in_use():
            try:
                with self.pool_in(pool) as found:
                    return ask(found)
            except StoreUnavailable:
                pass
        return None

    def survey(self) -> tuple[list[Survey], bool]:
        """All pools in short, and whether that is exact, as the shared state has it."""
        if self._in_use():
            try:
                with self.registry() as found:
                    return ask(found, pause), True
            except StoreError:
                pass
        return known(self._snapshots(), pause), False

    def _in_use(self) -> bool:
        service = self._service()
        return service is not None and not service.fleet.degraded

    def _known(self) -> dict[str, PoolInfo]:
        return {one.pool: known_pool(one) for one in self._snapshots()}

    def _snapshot(self, pool: str) -> Snapshot:
        for one in self._snapshots():
            if one.pool == pool:
                return one
        # Somebody else's pool may be there, in the store.
        raise away(StoreUnavailable("the shared state is away, and this balancer has no pool of that name"))

    def _snapshots(self) -> list[Snapshot]:
        service = self._service()
        if service is None:
            raise away(StoreUnavailable("this worker is starting"))
        return [claims.snapshot for _, claims in sorted(service.fleet.claims.items())]


def one_backend(found: Registry, pool: str, name: str) -> BackendInfo:
    """A backend as the store has it. Raises Problem, besides what the store does."""
    status = found.backend_status(pool, name)
    if status is None:
        raise no_backend(name, pool)
    return exact_backend(status)


def no_pool(pool: str, names: set[str]) -> Problem:
    """There is no such pool."""
    return Problem(404, f"there is no pool {pool[:64]!r}{did_you_mean(pool[:64], names)}")


def no_backend(backend: str, pool: str) -> Problem:
    """There is no such backend."""
    return Problem(404, f"there is no backend {backend[:300]!r} in pool {pool!r}")
