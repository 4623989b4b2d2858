"""What the commands that read and change the shared state have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, TypeVar

import click

from lb.config import DEFAULT_POOL, load
from lb.config_checks import check_pool_name, did_you_mean
from lb.errors import LbError
from lb.model import Backend, Snapshot, check_url
from lb.settings import Settings
from lb.state.registry import Registry
from lb.state.store import store_url, wait_for_store

Function = TypeVar("Function", bound=Callable[..., Any])


class NotThere(LbError):
    """What a command names is not there."""


class PoolName(click.ParamType[str]):
    """The name of a pool."""

    name = "pool"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check it; a bad one is a usage error."""
        try:
            return check_pool_name(str(value))
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


def pool_option(function: Function) -> Function:
    """Add `--pool`, `default` unless given."""
    return click.option("--pool", type=PoolName(), default=DEFAULT_POOL, show_default=True)(function)


@contextmanager
def registry() -> Iterator[tuple[Registry, Settings]]:
    """The shared state, as configured. Raises LbError when it is not to be had."""
    settings = load()
    url = store_url(settings.redis_url, settings.runtime_dir)
    client = wait_for_store(url, monotonic(), lambda reason: None)
    try:
        yield Registry(client), settings
    finally:
        client.close()


@contextmanager
def known_pool(pool: str) -> Iterator[Registry]:
    """The shared state, in which there is such a pool, or will be: it is configured. Raises NotThere."""
    with registry() as (found, settings):
        names = {*found.pools(), *settings.pools}
        if pool not in names:
            raise NotThere(f"there is no pool {pool!r}{did_you_mean(pool, names)}")
        yield found


def find(snapshot: Snapshot, name: str) -> Backend:
    """The backend with that id or URL. Raises NotThere."""
    if backend := snapshot.backends.get(name):
        return backend
    try:
        url = check_url(name)
    except ValueError:
        url = ""
    found = [backend for backend in snapshot.backends.values() if backend.url == url]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(sorted(backend.id for backend in found))
        raise NotThere(
            f"{name} is the URL of several backends of pool {snapshot.pool!r}: name one of {names}"
        )
    hint = did_you_mean(name, snapshot.backends) if len(snapshot.backends) <= 20 else ""
    raise NotThere(f"there is no backend {name!r} in pool {snapshot.pool!r}{hint}")
