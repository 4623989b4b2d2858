"""`lb algorithm …`: how a pool chooses, switched live for the whole fleet."""

from __future__ import annotations

import click
import msgspec

from lb.algorithms import ALGORITHMS, DEFAULT_ALGORITHM
from lb.cli.output import json_option, print_json
from lb.cli.store import known_pool, pool_option
from lb.model import Snapshot
from lb.state.decide import Change


@click.group()
def algorithm() -> None:
    """Show or switch how a pool chooses backends."""


@algorithm.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the algorithms there are."""
    if as_json:
        print_json({"algorithms": ALGORITHMS, "default": DEFAULT_ALGORITHM})
        return
    for name in ALGORITHMS:
        click.echo(f"{name} (default)" if name == DEFAULT_ALGORITHM else name)


@algorithm.command()
@pool_option
@json_option
def get(pool: str, as_json: bool) -> None:
    """Show the algorithm of a pool."""
    with known_pool(pool) as found:
        name = found.load(pool).settings.algorithm
    if as_json:
        print_json({"pool": pool, "algorithm": name})
    else:
        click.echo(name)


@algorithm.command("set")
@click.argument("name", type=click.Choice(ALGORITHMS))
@pool_option
def set_(name: str, pool: str) -> None:
    """Switch a pool to the algorithm NAME, without losing a request.

    A start or a reload of a balancer publishes the configured one again.
    """

    def decider(snapshot: Snapshot) -> Change:
        return Change(settings=msgspec.structs.replace(snapshot.settings, algorithm=name))

    with known_pool(pool) as found:
        found.change(pool, decider)
    click.echo(f"pool {pool}: {name}")
