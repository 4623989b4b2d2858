"""The command `lb`. Exit codes: 0 done, 1 failed (one line on stderr), 2 usage."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from lb import __version__
from lb.errors import LbError

#: Command → where it is and what the list of commands says of it. They are imported only when asked for.
COMMANDS = {
    "algorithm": ("lb.cli.algorithm:algorithm", "Show or switch how a pool chooses backends."),
    "backends": ("lb.cli.backends:backends", "List, add, remove, drain and weigh backends."),
    "config": ("lb.cli.config:config", "Check the configuration, or show what is in force."),
    "demo": ("lb.cli.demo:demo", "Start a whole system to try, on this machine."),
    "explain": ("lb.cli.explain:explain", "Tell how a request got its backend."),
    "healthcheck": ("lb.cli.healthcheck:healthcheck", "Ask a running balancer whether it is ready."),
    "serve": ("lb.cli.serve:serve", "Start the balancer."),
    "status": ("lb.cli.status:status", "Show all pools and backends."),
}


class Commands(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, for `--help`."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command itself."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list for `lb --help`, without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in sorted(COMMANDS.items())])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lb", message="%(prog)s %(version)s")
@click.option("--config", metavar="FILE", help="The configuration [LB_CONFIG; default: lb.toml if present].")
def cli(config: str | None) -> None:
    """An HTTP load balancer whose workers share one exact view of the fleet."""
    if config is not None:
        # One place for the file's name, for this process and for all it starts.
        os.environ["LB_CONFIG"] = config


def run(argv: Sequence[str] | None = None) -> int:
    """Run a command line; return the exit code. Errors become one line on stderr."""
    try:
        code = cli.main(args=argv, prog_name="lb", standalone_mode=False)
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except click.Abort:
        return 130
    except LbError as exc:
        click.echo(f"lb: {exc}", err=True)
        return 1
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; keep Python from complaining about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code if isinstance(code, int) else 0


def main() -> NoReturn:
    """The console script."""
    try:
        code = run()
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
