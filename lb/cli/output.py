"""How commands write: JSON for programs, tables for people."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

Function = TypeVar("Function", bound=Callable[..., Any])

STATE_STYLES = {"up": "green", "down": "bold red", "checking": "yellow", "drain": "yellow", "unknown": "dim"}
#: Width of a table that goes to a file or a pipe, where nothing should be cut or wrapped.
PIPE_WIDTH = 1000


def json_option(function: Function) -> Function:
    """Add `--json`, passed as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def print_json(value: object) -> None:
    """Write `value` as JSON, indented, with one line end."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, numbers: Sequence[str] = ()
) -> None:
    """Write a table; the columns in `numbers` are aligned right. Text is shown as it is, never as markup."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console = _console()
    if title:
        console.print(Text(title, style="bold"))
    console.print(table)


def _cell(value: object) -> Text:
    text = str(value)
    return Text(text, style=STATE_STYLES.get(text, ""))


def _console() -> Console:
    interactive = sys.stdout.isatty()
    return Console(
        file=sys.stdout, width=None if interactive else PIPE_WIDTH, highlight=False, soft_wrap=not interactive
    )
