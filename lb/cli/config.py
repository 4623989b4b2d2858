"""`lb config check` and `lb config show`."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from lb import certificates
from lb.cli.output import json_option, print_json, print_table
from lb.config import read
from lb.config_checks import mask
from lb.config_lines import KeyPath, show_path
from lb.config_rows import NAME, SECRET
from lb.config_table import toml_value
from lb.errors import ConfigError


@click.group()
def config() -> None:
    """Check the configuration, or show what is in force."""


@config.command()
@click.argument("file", required=False)
@json_option
def check(file: str | None, as_json: bool) -> None:
    """Say what is wrong with the configuration, and where.

    Looks at FILE, else at the file that `lb serve` would read, and at the LB_… variables.
    """
    loaded = read(file)
    found = list(loaded.problems)
    if loaded.settings is not None:
        found += certificates.problems(loaded.settings)
    if as_json:
        report = {"ok": not found, "file": loaded.file}
        print_json(report | {"problems": found, "notes": loaded.notes})
    else:
        for problem in found:
            click.echo(problem, err=True)
        for note in loaded.notes:
            click.echo(f"note: {note}", err=True)
        if loaded.settings is not None and not found:
            pools = loaded.settings.pools
            backends = sum(len(pool.backends) for pool in pools.values())
            words = f"{_count(len(pools), 'pool')}, {_count(backends, 'backend')}"
            click.echo(f"{loaded.file or 'no file, environment only'}: ok ({words})")
    if found:
        click.get_current_context().exit(1)


@config.command()
@json_option
def show(as_json: bool) -> None:
    """Show every setting in force and where it came from; secrets are not shown."""
    loaded = read()
    if loaded.settings is None:
        raise ConfigError(loaded.problems[0])
    values = _flat(msgspec.to_builtins(loaded.settings), ())
    if as_json:
        shown = {
            show_path(path): {"value": _hidden(path, v), "from": loaded.origin(path)} for path, v in values
        }
        print_json({"file": loaded.file, "settings": shown})
        return
    rows = [
        (show_path(path), toml_value(_hidden(path, value)), loaded.origin(path)) for path, value in values
    ]
    print_table("", ("setting", "value", "from"), rows)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _flat(value: Any, path: KeyPath) -> list[tuple[KeyPath, object]]:
    """All plain values with their paths, and empty lists as they are."""
    if isinstance(value, dict):
        return [pair for key, item in value.items() for pair in _flat(item, (*path, key))]
    if isinstance(value, list | tuple) and value:
        return [pair for i, item in enumerate(value) for pair in _flat(item, (*path, i))]
    return [(path, tuple(value) if isinstance(value, list) else value)]


def _hidden(path: KeyPath, value: object) -> object:
    """The value without secrets."""
    key = ("pools", NAME, *path[2:]) if path[0] == "pools" else path
    if show_path(key) in SECRET:
        return "***" if value else ""
    return mask(value) if isinstance(value, str) else value
