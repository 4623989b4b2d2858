"""The command `lb-health`. Exit codes: 0 ended as asked, 1 failed (one line on stderr), 2 usage."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

from lb import __version__
from lb.config_checks import check_dir, check_path, check_redis_url, check_status, mask
from lb.errors import LbError
from lb.health.policy import MIN_INTERVAL, MIN_TIMEOUT, Overrides, seconds


class Checked(click.ParamType[Any]):
    """A value that a function reads and checks; it raises ValueError."""

    def __init__(self, name: str, check: Callable[[str], object]) -> None:
        self.name = name
        self._check = check

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return what the function makes of a text, or end in a usage error."""
        if not isinstance(value, str):
            return value
        try:
            return self._check(value)
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


def _time(least: float) -> Checked:
    return Checked("seconds", lambda text: seconds(text, least))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lb-health", message="%(prog)s %(version)s")
@click.option(
    "--interval",
    type=_time(MIN_INTERVAL),
    default="10",
    show_default=True,
    help="Seconds between two probes of a backend, for pools that set no interval.",
)
@click.option("--config", metavar="FILE", help="The configuration [LB_CONFIG; default: lb.toml if present].")
@click.option(
    "--redis-url",
    type=Checked("url", check_redis_url),
    help="The shared state [LB_REDIS_URL; default: the embedded store of the balancer on this machine].",
)
@click.option(
    "--runtime-dir", type=Checked("dir", check_dir), help="Where the embedded store is [LB_RUNTIME_DIR]."
)
@click.option("--timeout", type=_time(MIN_TIMEOUT), help="Seconds one probe may take.")
@click.option("--rise", type=click.IntRange(1, 1000), help="Successes in a row that make a backend up.")
@click.option("--fall", type=click.IntRange(1, 1000), help="Failures in a row that make a backend down.")
@click.option("--type", "kind", type=click.Choice(["http", "tcp"]), help="Ask over HTTP, or only connect.")
@click.option("--path", type=Checked("path", check_path), help="What an HTTP probe asks for.")
@click.option(
    "--status",
    type=Checked("codes", check_status),
    help="Answers that are a success: codes and ranges, such as 200-399,401.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 65536),
    default=512,
    show_default=True,
    help="Probes under way at a time, at most.",
)
@click.option("--once", is_flag=True, help="Probe every backend once, print the outcomes, change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Log JSON, one object a line; with --once, print JSON.")
def cli(
    interval: float,
    config: str | None,
    redis_url: str | None,
    runtime_dir: str | None,
    timeout: float | None,
    rise: int | None,
    fall: int | None,
    kind: str | None,
    path: str | None,
    status: str | None,
    concurrency: int,
    once: bool,
    as_json: bool,
) -> int:
    """Probe every backend of every pool and tell the fleet which may have traffic.

    One daemon probes for all balancers that share a state; others stand by and take over. --type, --path,
    --status, --timeout, --rise and --fall are for pools that leave them at their defaults. The
    certificates of https backends are verified for pools that have TLS settings in the configuration that
    the daemon reads. With --once the exit code is 0 if all passed, else 1.
    """
    import msgspec

    from lb import config as configuration
    from lb.health import daemon
    from lb.health import once as one_time
    from lb.health.report import Log
    from lb.state.store import store_url

    given = {"redis_url": redis_url, "runtime_dir": runtime_dir}
    settings = configuration.load(config)
    settings = msgspec.structs.replace(settings, **{k: v for k, v in given.items() if v is not None})
    url = store_url(settings.redis_url, settings.runtime_dir)
    overrides = Overrides(interval, kind, path, timeout, rise, fall, status)
    must_be_there = bool(settings.redis_url)
    if once:
        return one_time.run(url, must_be_there, settings, overrides, concurrency, as_json)
    return daemon.run(url, must_be_there, settings.pools, overrides, concurrency, Log(as_json))


def main() -> NoReturn:
    """The console script."""
    from gevent import monkey

    # Before redis and ssl are imported: their sockets must wait in greenlets.
    monkey.patch_all()
    try:
        code = cli.main(prog_name="lb-health", standalone_mode=False)
    except click.ClickException as exc:
        exc.show()
        code = exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except LbError as exc:
        click.echo(f"lb-health: {mask(str(exc))}", err=True)
        code = 1
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; keep Python from complaining about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
