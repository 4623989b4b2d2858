"""`lb algorithm …`: how a pool chooses, switched live for the whole fleet."""

from __future__ import annotations

import click
import msgspec

from lb.algorithms import DEFAULT_ALGORITHM, faults, names
from lb.cli.output import json_option, print_json
from lb.cli.store import known_pool, pool_option
from lb.config_checks import check_algorithm
from lb.model import Snapshot
from lb.state.decide import Change


class AlgorithmName(click.ParamType[str]):
    """The name of an algorithm, built in or installed; what is installed is looked up only when it is
    needed.
    """

    name = "name"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """See click."""
        try:
            return check_algorithm(value)
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


@click.group()
def algorithm() -> None:
    """Show or switch how a pool chooses backends."""


@algorithm.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the algorithms there are, built in and installed."""
    for fault in faults():
        click.echo(f"lb: {fault}", err=True)
    if as_json:
        print_json({"algorithms": names(), "default": DEFAULT_ALGORITHM})
        return
    for name in names():
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
@click.argument("name", type=AlgorithmName())
@pool_option
def set_(name: str, pool: str) -> None:
    """Switch a pool to the algorithm NAME (`lb algorithm list`), without losing a request.

    A start or a reload of a balancer publishes the configured one again.
    """

    def decider(snapshot: Snapshot) -> Change:
        return Change(settings=msgspec.structs.replace(snapshot.settings, algorithm=name))

    with known_pool(pool) as found:
        found.change(pool, decider)
    click.echo(f"pool {pool}: {name}")
