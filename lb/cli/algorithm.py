"""`lb algorithm …`: how a pool chooses, switched live for the whole fleet."""

from __future__ import annotations

import click

from lb.algorithms import DEFAULT_ALGORITHM, faults, names
from lb.cli.output import json_option, print_json
from lb.cli.store import known_pool, pool_option
from lb.config_checks import check_algorithm
from lb.state.decide import switch


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
        settings = found.load(pool).settings
    canary = settings.canary
    if as_json:
        print_json({"pool": pool, "algorithm": settings.algorithm, "canary": canary})
    elif canary is None:
        click.echo(settings.algorithm)
    else:
        click.echo(f"{settings.algorithm}, {canary.algorithm} for {canary.share:.4g} of the picks")


class Share(click.ParamType[float]):
    """A share of all: `10%` or `0.1`."""

    name = "share"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """See click."""
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            self.fail(f"{value!r} is no share; write 10% or 0.1", param, ctx)
        if not 0 <= share <= 1:
            self.fail(f"{value!r} is out of range; use 0% to 100%", param, ctx)
        return share


@algorithm.command("set")
@click.argument("name", type=AlgorithmName())
@click.option(
    "--canary",
    type=Share(),
    metavar="SHARE",
    help="Try NAME out: for this share of the picks, such as 10%; `lb status` compares. 0%: end the trial.",
)
@pool_option
def set_(name: str, canary: float | None, pool: str) -> None:
    """Switch a pool to the algorithm NAME (`lb algorithm list`), without losing a request.

    It stays until the next switch, or until a configuration asks for another algorithm than it did before.
    """
    share = 1.0 if canary is None else canary
    with known_pool(pool) as found:
        found.change(pool, switch(name, share))
    if 0 < share < 1:
        click.echo(f"pool {pool}: {name} for {share:.4g} of the picks")
    else:
        click.echo(f"pool {pool}: {name}" if share else f"pool {pool}: {name} is no longer tried out")
