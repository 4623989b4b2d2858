"""`lb explain`: how a request got its backend, or why it got none."""

from __future__ import annotations

import time

import click

from lb.cli.output import json_option, print_json, print_table
from lb.cli.store import NotThere, PoolName, registry
from lb.config_checks import did_you_mean
from lb.decision import Attempt, Decision
from lb.state.decisions import MOST_LISTED, find, recent

_BASIS = {
    "shared": "the shared state at the instant of the pick",
    "worker": "what the worker knew by itself, afterwards or while the shared state was away",
}


@click.command()
@click.argument("request_id", required=False)
@click.option("--pool", type=PoolName(), help="List those of this pool only.")
@click.option("--failed", is_flag=True, help="List those that failed only.")
@click.option(
    "--limit", type=click.IntRange(1, MOST_LISTED), default=20, show_default=True, help="List so many."
)
@json_option
def explain(request_id: str | None, pool: str | None, failed: bool, limit: int, as_json: bool) -> None:
    """Tell how the request REQUEST_ID got its backend: who could take it, who could not and why, each
    attempt.

    The id is X-Request-Id, `id` in the access log. Kept are failed requests, and a share of all
    (decisions.sample). Without an id, list the last ones.
    """
    if request_id is None:
        _list(pool, failed, limit, as_json)
        return
    if pool is not None or failed:
        raise click.UsageError("--pool and --failed are for lists; leave out the id, or them")
    with registry() as (found, settings):
        one = find(found, request_id)
    if one is None:
        kept = settings.decisions
        drawn = f"a share of {kept.sample:g} of all" if kept.sample else "no others"
        raise NotThere(
            f"nothing is known of request {request_id[:128]!r}: kept are failed requests and {drawn}, for "
            f"{kept.keep:g} s, the last {kept.size} of each pool; they are written about once a second"
        )
    if as_json:
        print_json(one)
    else:
        _show(one)


def _list(pool: str | None, failed: bool, limit: int, as_json: bool) -> None:
    with registry() as (found, settings):
        pools = found.pools()
        if pool is not None and pool not in {*pools, *settings.pools}:
            raise NotThere(f"there is no pool {pool!r}{did_you_mean(pool, pools)}")
        names = pools if pool is None else [pool]
        decisions = recent(found, names, failed=True if failed else None, most=limit)
    if as_json:
        print_json({"decisions": decisions})
        return
    if not decisions:
        click.echo("nothing is kept (any more)")
        return
    columns = ("request", "time", "pool", "status", "backend", "attempts", "ms", "why kept")
    rows = [
        (
            *(one.id, _clock(one.time), one.pool, one.status, one.backend or "–", len(one.attempts)),
            *(_ms(one.duration), "sampled" if one.sampled else one.code or "failed"),
        )
        for one in decisions
    ]
    print_table("", columns, rows, numbers=("status", "attempts", "ms"))


def _show(one: Decision) -> None:
    click.echo(f"request  {one.id}  {one.method} {one.host}{one.path}")
    click.echo(f"came     {_clock(one.time)} to {one.worker}")
    click.echo(f"answer   {one.status}{f' {one.code}' if one.code else ''} after {_ms(one.duration)} ms")
    click.echo(f"pool     {one.pool}")
    click.echo(f"backend  {one.backend or 'none'}")
    if one.home:
        kept = "kept" if one.kept else "replaced"
        click.echo(f"session  belongs to {one.home}: {kept}")
    click.echo(f"kept     {'sampled' if one.sampled else 'because it failed'}")
    for number, attempt in enumerate(one.attempts, 1):
        click.echo()
        _show_attempt(number, attempt)


def _show_attempt(number: int, one: Attempt) -> None:
    whom = one.backend or "nobody"
    outcome = f"answered {one.status}" if one.outcome == "answered" else one.outcome
    waited = "" if one.waited is None else f", {_ms(one.waited)} ms for the pick"
    click.echo(
        f"attempt {number}: {whom}, {outcome} after {_ms(one.seconds)} ms{waited}, at {_ms(one.at)} ms"
    )
    if one.hedge:
        click.echo("  a hedge: the attempt before was slow, and went on")
    if one.detail:
        click.echo(f"  {one.detail}")
    canary = " (tried out)" if one.canary else ""
    words = [f"{one.algorithm}{canary}, version {one.version}"]
    words += [f"rule {one.rule}"] if one.rule else []
    words += [f"by {one.key}"] if one.key else []
    words += [one.mode] if one.mode != "normal" else []
    click.echo(f"  {'; '.join(words)}")
    click.echo(f"  numbers: {_BASIS[one.basis]}")
    if one.candidates:
        _show_candidates(one)
    if one.excluded:
        print_table(
            "",
            ("  excluded", "why", "in flight"),
            [(f"  {e.id}", e.reason, _or(e.in_flight)) for e in one.excluded],
            numbers=("in flight",),
        )
    if one.omitted:
        click.echo(f"  and {one.omitted} others of the pool")


def _show_candidates(one: Attempt) -> None:
    """A table of them, without the columns of which nothing is known."""
    columns: dict[str, list[str]] = {
        "  candidate": [f"{'→' if c.id == one.backend else ' '} {c.id}" for c in one.candidates],
        "named": [_or(c.named) for c in one.candidates],
        "in flight": [_or(c.in_flight) for c in one.candidates],
        "held": [_or(c.held) for c in one.candidates],
        "weight": [str(c.weight) for c in one.candidates],
        "cap": [_or(c.max_connections or None) for c in one.candidates],
        "turn": [_or(c.turn, ".6g") for c in one.candidates],
        "latency ms": ["–" if c.latency is None else _ms(c.latency) for c in one.candidates],
        "share": [_or(c.share, ".3g") for c in one.candidates],
    }
    known = {name: cells for name, cells in columns.items() if any(cell != "–" for cell in cells)}
    names = list(known)
    print_table("", names, list(zip(*known.values(), strict=True)), numbers=names[1:])


def _or(value: float | None, form: str = "") -> str:
    return "–" if value is None else format(value, form)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f}"


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
