"""`python -m loadtest.bench`: this balancer beside nginx, HAProxy, Envoy and Caddy.

See the package's docstring for the rules of the comparison.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from rich.console import Console

from loadtest.bench import report, wrk
from loadtest.bench.balancer import NAME, PURE
from loadtest.bench.binaries import Programs
from loadtest.bench.measure import Plan, machine, perform
from loadtest.bench.peers import PEERS
from loadtest.bench.site import WrongAnswerError
from loadtest.procs import NotReadyError, interrupted_by_signals

ALL = (NAME, PURE, *(peer.name for peer in PEERS))


def _words(
    known: Sequence[str],
) -> Callable[[click.Context, click.Parameter, str], tuple[str, ...]]:
    """A click callback that splits a comma-separated list of known words."""

    def split(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[str, ...]:
        words = tuple(word.strip() for word in value.split(",") if word.strip())
        if unknown := [word for word in words if word not in known]:
            raise click.BadParameter(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
        if not words:
            raise click.BadParameter("empty")
        return words

    return split


def _counts(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """A click callback for a comma-separated list of numbers of connections."""
    try:
        counts = tuple(int(word) for word in value.split(","))
    except ValueError:
        raise click.BadParameter("numbers, separated by commas") from None
    if any(not 1 <= count <= 4096 for count in counts):
        raise click.BadParameter("each must be from 1 to 4096")
    return counts


def _pairs(_context: click.Context, _parameter: click.Parameter, value: tuple[str, ...]) -> dict[str, str]:
    """A click callback for repeated `KEY=VALUE` options."""
    for pair in value:
        if "=" not in pair:
            raise click.BadParameter(f"{pair}: must be KEY=VALUE")
    return {key: rest for key, _, rest in (pair.partition("=") for pair in value)}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--rounds", type=click.IntRange(1, 50), default=5, show_default=True, help="Interleaved rounds."
)
@click.option(
    "--seconds",
    type=click.IntRange(1, 60),
    default=3,
    show_default=True,
    help="Length of one measurement, in seconds, after one second of warm-up.",
)
@click.option(
    "--peers",
    default=",".join(ALL),
    show_default=True,
    callback=_words(ALL),
    help="Who is measured.",
)
@click.option(
    "--scenarios",
    default=",".join(wrk.KINDS),
    show_default=True,
    callback=_words(wrk.KINDS),
    help="Small GETs, 1 MiB responses, 1 MiB uploads.",
)
@click.option(
    "--connections",
    default="1,64,512",
    show_default=True,
    callback=_counts,
    help="Numbers of connections for the small GETs.",
)
@click.option(
    "--balancer-env",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_pairs,
    help="A setting of the balancer under test; may be repeated.",
)
@click.option(
    "--program",
    "given",
    multiple=True,
    metavar="NAME=PATH",
    callback=_pairs,
    help="Another program for one of the peers, or for wrk; may be repeated.",
)
@click.option(
    "--python",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Measure the balancer of this interpreter's environment, not this source tree's.",
)
@click.option(
    "--plain-python",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The interpreter for lb-pure: an environment with the balancer, its hot path not compiled.",
)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write results here."
)
@click.option("--markdown", is_flag=True, help="Print the table in Markdown instead.")
@click.option("--assert-targets", is_flag=True, help="Exit 1 when a target of the project is missed.")
def main(
    rounds: int,
    seconds: int,
    peers: tuple[str, ...],
    scenarios: tuple[str, ...],
    connections: tuple[int, ...],
    settings: dict[str, str],
    given: dict[str, str],
    python: Path | None,
    plain_python: Path | None,
    json_file: Path | None,
    markdown: bool,
    assert_targets: bool,
) -> None:
    """Measure this balancer beside nginx, HAProxy, Envoy and Caddy, each on one core.

    Exits 1 when a request failed, a proxy did not start, or (asked to) a target was missed.
    """
    progress = Console(stderr=True, highlight=False, soft_wrap=True)
    plan = Plan(
        peers,
        wrk.scenarios(scenarios, connections),
        rounds,
        seconds,
        Programs({name: Path(path) for name, path in given.items()}),
        settings,
        python.absolute() if python else None,
        plain_python.absolute() if plain_python else None,
    )
    try:
        with interrupted_by_signals():
            outcome = perform(plan, progress)
    except (FileNotFoundError, NotReadyError, WrongAnswerError, wrk.WrkError) as error:
        raise click.ClickException(str(error)) from error
    lines = report.summarize(outcome.runs)
    failed = report.failures(lines)
    missed = report.misses(lines) if assert_targets else []
    if markdown:
        click.echo(report.markdown(lines, plan.scenarios, outcome.versions))
    else:
        screen = Console(highlight=False)
        for table in report.tables(lines, plan.scenarios):
            screen.print("\n", table, sep="", end="")
    click.echo("\n" + "\n".join(report.notes(lines, outcome.versions, outcome.pinning)))
    if json_file is not None:
        told = {
            "machine": machine(),
            "options": {"rounds": rounds, "seconds": seconds, "balancer_env": settings},
            "versions": outcome.versions,
            "pinning": outcome.pinning,
            "failures": failed,
            "missed": missed,
            **report.as_json(outcome.runs, lines),
        }
        json_file.write_text(json.dumps(told, indent=2) + "\n")
    for line in [*failed, *missed]:
        click.echo(f"FAILED: {line}", err=True)
    if failed or missed:
        sys.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m loadtest.bench")
