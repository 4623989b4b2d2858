"""`lb status`: all pools and backends, as the whole fleet sees them."""

from __future__ import annotations

from math import ceil
from time import time
from typing import Any

import click
import msgspec

from lb.cli.output import json_option, print_json, print_table
from lb.cli.store import registry
from lb.config_checks import mask
from lb.state.registry import BackendStatus, PoolStatus, Registry
from lb.state.store import address, store_url

COLUMNS = ("backend", "state", "weight", "in flight", "requests", "cap", "from", "url")
MODES = {
    "backup": "backups serve",
    "ejected": "EJECTED backends serve: nobody else can",
    "panic": "PANIC: too few are healthy, all get requests",
}
NUMBERS = ("weight", "in flight", "requests", "cap")


@click.command()
@json_option
def status(as_json: bool) -> None:
    """Show every pool with its algorithm and its backends: state, weight, connections now, requests ever."""
    with registry() as (found, settings):
        pools = [found.pool_status(name) for name in found.pools()]
        prober = found.health_owner()
        store = mask(address(store_url(settings.redis_url, settings.runtime_dir)))
    if as_json:
        print_json(
            {"store": store, "health_daemon": prober, "pools": {pool.pool: as_object(pool) for pool in pools}}
        )
        return
    click.echo(f"shared state   {store}")
    click.echo(f"health daemon  {prober or 'none: backends count as available until a request fails'}")
    if not pools:
        click.echo("no pools yet: no balancer has been started on this shared state")
    for pool in pools:
        click.echo()
        show_pool(pool)


def pools_to_show(found: Registry, only: str | None) -> list[PoolStatus]:
    """One pool or all of them."""
    return [found.pool_status(name) for name in found.pools() if only in (None, name)]


def show_pool(pool: PoolStatus) -> None:
    """Print one pool as a table."""
    zoned = any(backend.zone for backend in pool.backends)
    rows = [_row(backend, zoned) for backend in pool.backends]
    title = f"{pool.pool}  {pool.settings.algorithm}, version {pool.version}"
    if (canary := pool.settings.canary) is not None:
        title = f"{title}, {canary.algorithm} for {canary.share:.4g} of the picks"
    if pool.mode != "normal":
        title = f"{title}, {MODES[pool.mode]}"
    if pool.queued:
        title = f"{title}, {pool.queued} queued"
    if rows:
        print_table(title, (*COLUMNS[:1], "zone", *COLUMNS[1:]) if zoned else COLUMNS, rows, numbers=NUMBERS)
    else:
        click.echo(f"{title}\nno backends: add some with `lb backends add URL --pool {pool.pool}`")
    if pool.trial:
        names = ("algorithm", "requests", "failures", "mean ms")
        tried = [(t.algorithm, t.requests, t.failures, f"{1000 * t.mean:.2f}") for t in pool.trial]
        print_table(f"{pool.pool}  compared", names, tried, numbers=names[1:])


def as_object(pool: PoolStatus) -> dict[str, Any]:
    """One pool for programs."""
    return {
        "algorithm": pool.settings.algorithm,
        "canary": pool.settings.canary,
        "trial": [{**msgspec.to_builtins(trial), "mean": trial.mean} for trial in pool.trial],
        "version": pool.version,
        "mode": pool.mode,
        "queued": pool.queued,
        "backends": pool.backends,
    }


def _row(backend: BackendStatus, zoned: bool) -> tuple[object, ...]:
    cap = backend.max_connections or "–"
    counts = (backend.weight, backend.in_flight, backend.requests, cap)
    state = f"{backend.state}, backup" if backend.backup else str(backend.state)
    if backend.state == "ejected":
        left = ceil(backend.ejected_until - time())
        state += f" {left} s, {backend.ejections} in a row" if left > 0 else ", waits for a probing request"
    zone = (backend.zone or "–",) if zoned else ()
    return (backend.id, *zone, state, *counts, backend.source, backend.url)
