"""`lb-health --once`: probe every backend one time, show the outcomes, write nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import click
from gevent.pool import Pool

from lb.errors import ConfigError, StoreUnavailable
from lb.health.policy import Overrides, effective
from lb.health.probe import Outcome, Prober, Tls, pools_tls, target
from lb.health.report import printable
from lb.model import Backend, HealthPolicy, Snapshot
from lb.settings import Settings
from lb.state import decide
from lb.state.registry import Registry
from lb.state.store import check_server, connect


class Row(NamedTuple):
    """One backend and what came of its probe; `published` is its state in the fleet's eyes."""

    pool: str
    backend: Backend
    outcome: Outcome


def snapshots(url: str, must_be_there: bool, settings: Settings) -> tuple[list[Snapshot], bool]:
    """Return all pools and whether they come from the shared state.

    Where the store is not there and need not be, they come from the configuration. Raises
    StoreError and ConfigError.
    """
    client = connect(url)
    try:
        check_server(client)
        registry = Registry(client)
        return [registry.load(pool) for pool in registry.pools()], True
    except StoreUnavailable:
        if must_be_there:
            raise
    finally:
        client.close()
    configured = [
        decide.configured(name, decide.settings_of(config), config.backends)
        for name, config in sorted(settings.pools.items())
    ]
    return configured, False


def probe_all(
    pools: Iterable[Snapshot], overrides: Overrides, concurrency: int, tls: Mapping[str, Tls]
) -> list[Row]:
    """Probe every backend of `pools` once, also of those whose probes are switched off."""
    prober, running = Prober(), Pool(concurrency)

    def one(pool: str, backend: Backend, policy: HealthPolicy) -> Row:
        try:
            to = target(backend, effective(policy, overrides), tls.get(pool))
            return Row(pool, backend, prober.probe(to))
        except ValueError as exc:
            return Row(pool, backend, Outcome(False, str(exc), 0.0))

    jobs = [
        running.spawn(one, snapshot.pool, backend, snapshot.settings.health)
        for snapshot in pools
        for backend in snapshot.backends.values()
    ]
    running.join()
    rows = [job.get() for job in jobs]
    return sorted(rows, key=lambda row: (row.pool, row.backend.id))


def run(
    url: str,
    must_be_there: bool,
    settings: Settings,
    overrides: Overrides,
    concurrency: int,
    as_json: bool,
) -> int:
    """Probe, print, and return 0 if there are backends and all of them passed, else 1.

    Raises StoreError and ConfigError.
    """
    pools, shared = snapshots(url, must_be_there, settings)
    rows = probe_all(pools, overrides, concurrency, pools_tls(settings.pools))
    if not rows:
        raise ConfigError("there is no backend to probe: none in the shared state and none configured"
                          if not shared else "there is no backend to probe in the shared state")  # fmt: skip
    if as_json:
        print_json(rows, shared)
    else:
        print_table(rows, shared)
    return 0 if all(row.outcome.ok for row in rows) else 1


def print_json(rows: list[Row], shared: bool) -> None:
    """Print one object: `ok`, `shared` (did the backends come from the shared state), `backends`."""
    backends = [
        {
            "pool": row.pool,
            "id": row.backend.id,
            "url": row.backend.url,
            "state": row.backend.state,
            "ok": row.outcome.ok,
            "reason": printable(row.outcome.reason),
            "milliseconds": round(row.outcome.seconds * 1000, 1),
        }
        for row in rows
    ]
    ok = all(row.outcome.ok for row in rows)
    click.echo(json.dumps({"ok": ok, "shared": shared, "backends": backends}, indent=2, ensure_ascii=False))


def print_table(rows: list[Row], shared: bool) -> None:
    """Print a table for people."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("pool", "backend", "state", "probe", "ms", "reason"):
        table.add_column(column, justify="right" if column == "ms" else "left", overflow="fold")
    for row in rows:
        probe = Text("ok", "green") if row.outcome.ok else Text("failed", "bold red")
        state = row.backend.state if shared else "-"
        milliseconds = f"{row.outcome.seconds * 1000:.1f}"
        texts = (row.pool, row.backend.id, state, probe, milliseconds, printable(row.outcome.reason))
        table.add_row(*(one if isinstance(one, Text) else Text(one) for one in texts))
    interactive = sys.stdout.isatty()
    # To a file or a pipe nothing should be cut or wrapped.
    Console(width=None if interactive else 1000, highlight=False, soft_wrap=not interactive).print(table)
