"""`lb backends …`: the members of a pool, changed for the whole fleet at once."""

from __future__ import annotations

import time
from typing import Any

import click
import msgspec

from lb.algorithms.reports import Report, check
from lb.cli.output import json_option, print_json
from lb.cli.status import as_object, pools_to_show, show_pool
from lb.cli.store import NotThere, PoolName, find, known_pool, pool_option, registry
from lb.config_checks import check_id, did_you_mean, mask
from lb.errors import LbError
from lb.model import CLOSED, MAX_WEIGHT, Backend, Health, Snapshot, backend_id, check_url
from lb.state import decide
from lb.state.decide import NOTHING, Change
from lb.state.keys import check_zone
from lb.state.registry import Registry

MAX_CONNECTIONS = 1_000_000


MAX_WAIT = 30 * 86_400.0
"""Seconds that a drain is waited for when nobody says less."""
LOOK = 0.2
"""Seconds between two looks at a backend that drains."""


class NotEmpty(LbError):
    """A backend serves requests that were expected to be over."""


class AlreadyThere(LbError):
    """Another backend has that name."""


_CHECKS = {"url": check_url, "id": check_id, "zone": check_zone}


class Checked(click.ParamType[str]):
    """A URL, an id or a zone; a bad one is a usage error."""

    def __init__(self, name: str) -> None:
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The value in its normal form."""
        try:
            return _CHECKS[self.name](str(value))
        except ValueError as exc:
            self.fail(mask(str(exc)), param, ctx)


@click.group()
def backends() -> None:
    """List, add, remove, drain and weigh backends. Workers see a change within a second."""


@backends.command("list")
@click.option("--pool", type=PoolName(), help="Only this pool.")
@json_option
def list_(pool: str | None, as_json: bool) -> None:
    """List the backends of all pools, or of one."""
    with registry() as (found, settings):
        pools = pools_to_show(found, pool)
        if pool is not None and not pools and pool not in settings.pools:
            raise NotThere(f"there is no pool {pool!r}{did_you_mean(pool, found.pools())}")
    if as_json:
        print_json({"pools": {each.pool: as_object(each) for each in pools}})
        return
    for number, each in enumerate(pools):
        if number:
            click.echo()
        show_pool(each)


@backends.command()
@click.argument("url", type=Checked("url"))
@click.option("--weight", type=click.IntRange(0, MAX_WEIGHT), default=1, show_default=True)
@click.option(
    "--max-connections",
    type=click.IntRange(0, MAX_CONNECTIONS),
    default=0,
    help="At most so many at a time from the whole fleet; 0: no cap.",
)
@click.option(
    "--id", "name", type=Checked("id"), default="", help="Its name. [default: host:port of the URL]"
)
@click.option("--backup", is_flag=True, help="It gets requests only when the others cannot take them.")
@click.option("--zone", type=Checked("zone"), default="", help="Where it stands. [default: in no zone]")
@pool_option
def add(url: str, weight: int, max_connections: int, name: str, backup: bool, zone: str, pool: str) -> None:
    """Add the backend at URL. When a health daemon runs it gets traffic after its first successful probe."""
    backend = Backend(name or backend_id(url), url, weight, max_connections, backup=backup, zone=zone)

    def decider(snapshot: Snapshot) -> Change:
        known = snapshot.backends.get(backend.id)
        if known is None:
            return decide.add(backend)(snapshot)
        if _settings(known) != _settings(backend):
            raise AlreadyThere(
                f"pool {pool!r} has a backend {backend.id!r} already, with other settings "
                f"({_settings(known)}): remove it first, or give this one another --id"
            )
        return NOTHING

    with known_pool(pool) as found:
        after = found.change(pool, decider)
    click.echo(f"{backend.id} is in pool {pool}: {_state(after.backends[backend.id])}")


@backends.command()
@click.argument("backend")
@pool_option
def remove(backend: str, pool: str) -> None:
    """Remove BACKEND (its id or URL). Requests it is serving are finished."""
    gone = ""

    def decider(snapshot: Snapshot) -> Change:
        nonlocal gone
        known = find(snapshot, backend)
        gone = f"{known.id} is no longer in pool {pool}{_note(known)}"
        return decide.remove(known.id)(snapshot)

    with known_pool(pool) as found:
        found.change(pool, decider)
    click.echo(gone)


@backends.command()
@click.argument("backend")
@click.option("--wait", is_flag=True, help="Until it serves none any more.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, MAX_WAIT),
    help="Wait so many seconds at most; the exit code is 1 if some are left then. [default: any time]",
)
@pool_option
def drain(backend: str, wait: bool, timeout: float | None, pool: str) -> None:
    """Give BACKEND (its id or URL) no new requests; those it is serving are finished.

    WebSockets, and other connections that have changed their protocol, are closed after stream_close_delay.
    """
    if timeout is not None and not wait:
        raise click.UsageError("--timeout says nothing without --wait")
    with known_pool(pool) as found:
        after = found.change(
            pool, lambda snapshot: decide.update(find(snapshot, backend).id, admin="drain")(snapshot)
        )
        known = find(after, backend)
        seconds = MAX_WAIT if timeout is None else timeout
        deadline = time.monotonic() + seconds
        while (left := _in_flight(found, pool, known.id)) and wait:
            if time.monotonic() >= deadline:
                raise NotEmpty(f"{known.id} gets no new requests, but serves {left} after {seconds:g} s")
            time.sleep(LOOK)
    click.echo(f"{known.id} gets no new requests; in flight now: {left}")


def _in_flight(found: Registry, pool: str, name: str) -> int:
    return next((one.in_flight for one in found.status(pool) if one.id == name), 0)


@backends.command()
@click.argument("backend")
@pool_option
def ready(backend: str, pool: str) -> None:
    """Let BACKEND (its id or URL) have requests again: ends a drain and an ejection, and forgets that it was
    found down.
    """
    with known_pool(pool) as found:
        fresh: Health = "unknown" if found.health_owner() is None else "checking"

        def decider(snapshot: Snapshot) -> Change:
            known = find(snapshot, backend)
            health = fresh if known.health == "down" else known.health
            return Change(put=(msgspec.structs.replace(known, admin="ready", health=health, breaker=CLOSED),))

        known = find(found.change(pool, decider), backend)
    click.echo(f"{known.id}: {_state(known)}")


@backends.command()
@click.argument("backend")
@click.argument("weight", type=click.IntRange(0, MAX_WEIGHT))
@pool_option
def weight(backend: str, weight: int, pool: str) -> None:
    """Set the WEIGHT of BACKEND (its id or URL), 0 to 1000; 0: no new requests."""
    with known_pool(pool) as found:
        after = found.change(
            pool, lambda snapshot: decide.update(find(snapshot, backend).id, weight=weight)(snapshot)
        )
        known = find(after, backend)
    click.echo(f"{known.id}: weight {known.weight}{_note(known)}")


@backends.command()
@click.argument("backend")
@click.option("--cpu", type=float, help="Share of the processors in use, 0 to 1.")
@click.option("--memory", type=float, help="Share of the memory in use, 0 to 1.")
@click.option("--load", type=float, help="A measure of its own, 0 (idle) to 1 (all it can do).")
@click.option("--running", type=int, help="Requests that it is working on.")
@click.option("--capacity", type=int, help="Requests that it can work on.")
@pool_option
def report(
    backend: str,
    cpu: float | None,
    memory: float | None,
    load: float | None,
    running: int | None,
    capacity: int | None,
    pool: str,
) -> None:
    """Say how busy BACKEND (its id or URL) is, for `resource-based`."""
    try:
        told = check(Report(time.time(), cpu, memory, load, running, capacity))
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    with known_pool(pool) as found:
        known = find(found.load(pool), backend)
        share = found.report(pool, known.id, told)
    click.echo(f"{known.id}: {share:.3g} of its weight counts, once its reports do")


def _settings(backend: Backend) -> str:
    kind = (", backup" if backend.backup else "") + (f", zone {backend.zone}" if backend.zone else "")
    return f"{backend.url}, weight {backend.weight}, max_connections {backend.max_connections}{kind}"


def _state(backend: Backend) -> str:
    """What its state means for its traffic."""
    if backend.state == "checking":
        return "checking, gets requests after its first successful probe"
    if backend.available:
        return f"{backend.state}, gets requests" + (" when the others cannot" if backend.backup else "")
    return f"{backend.state}, gets no requests" + ("" if backend.weight else " (its weight is 0)")


def _note(backend: Backend) -> str:
    if backend.source != "file":
        return ""
    return " (it is in the configuration, which a start or a reload of the balancer publishes again)"
