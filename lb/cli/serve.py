"""`lb serve`: turns its flags into the environment, then becomes gunicorn."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

import click

import lb
from lb.config import load
from lb.config_checks import check_value, mask
from lb.config_env import parse_text
from lb.config_rows import TABLE, Setting
from lb.config_table import default_text, range_text


def _program() -> tuple[str, ...]:
    """Where gunicorn is: its own script, if that is installed.

    Run as a module it could not start itself anew (USR2): Python would find gunicorn's modules for its own.
    """
    script = Path(sysconfig.get_path("scripts")) / "gunicorn"
    return (str(script),) if script.is_file() else ("-m", "gunicorn")


#: What Python is to run. A file, not a module: gunicorn runs a file again at each reload.
GUNICORN = (*_program(), "-c", str(Path(lb.__file__).with_name("gunicorn_conf.py")), "lb.app")


def _option(row: Setting) -> click.Option:
    """The flag of one setting. A value that cannot be is a usage error, before anything starts."""

    def check(ctx: click.Context, param: click.Parameter, text: str | None) -> str | None:
        if text is None:
            return None
        try:
            value = parse_text(row.key, text)
            if not isinstance(value, list):  # backends are checked whole, with the rest
                check_value(row.key, value)
        except ValueError as exc:
            raise click.BadParameter(mask(str(exc))) from None
        return text

    values = ", ".join(part for part in (row.unit, range_text(row).replace("`", "")) if part)
    default = f"default {default_text(row.key)}"
    words = row.text.replace("`", "")
    return click.Option(
        [row.flag],
        callback=check,
        expose_value=True,
        metavar="VALUE",
        help=f"{words} [{'; '.join(part for part in (values, row.env, default) if part)}]",
    )


@click.command(params=[_option(row) for row in TABLE if row.flag])
@click.option("--config", metavar="FILE", help="The configuration [LB_CONFIG; default: lb.toml if present].")
def serve(config: str | None, **flags: Any) -> None:
    """Start the balancer: gunicorn, its workers and, unless LB_REDIS_URL is set, the embedded store.

    Each flag is the same as its variable, and wins over it and over the file.
    """
    if config is not None:
        os.environ["LB_CONFIG"] = config
    for row in TABLE:
        text = flags.get(row.flag.removeprefix("--").replace("-", "_")) if row.flag else None
        if text is not None:
            os.environ[row.env] = text
    load()  # what is wrong is said here, before gunicorn has started
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *GUNICORN])  # noqa: S606 - no shell is wanted
