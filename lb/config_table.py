"""Every setting in one table: its name in the file, in the environment and as a flag of `lb serve`.

Types and defaults stand in `lb.settings` only; the ranges, the names and the words for people in
`lb.config_rows` only. `python -m lb.config_table` prints the table of the documentation, `docs/settings.md`.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

import msgspec

from lb.config_rows import NAME, TABLE, Setting
from lb.settings import Settings

BY_KEY: Mapping[str, Setting] = types.MappingProxyType({row.key: row for row in TABLE})
BY_ENV: Mapping[str, Setting] = types.MappingProxyType({row.env: row for row in TABLE if row.env})

#: Names of the environment that are no setting of the file.
CONFIG_ENV = "LB_CONFIG"


class Leaf(msgspec.Struct, frozen=True):
    """The type and default of a key, read off `lb.settings`; `required` has no default."""

    type: Any
    default: object
    required: bool


def struct_of(kind: Any) -> tuple[Literal["struct", "list", "map", "leaf"], Any]:
    """What a field's type is made of: itself a struct, a tuple or mapping of structs, or a plain value."""
    if _is_struct(kind):
        return "struct", kind
    arguments = get_args(kind)
    if get_origin(kind) is tuple and _is_struct(arguments[0]):
        return "list", arguments[0]
    if get_origin(kind) in (Mapping, dict) and _is_struct(arguments[1]):
        return "map", arguments[1]
    return "leaf", kind


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def leaves(kind: type[msgspec.Struct] = Settings, prefix: str = "") -> Iterator[tuple[str, Leaf]]:
    """Every key of a struct, the nested ones included, as the table writes it."""
    for field in msgspec.structs.fields(kind):
        key = prefix + field.encode_name
        shape, inner = struct_of(field.type)
        if shape == "struct":
            yield from leaves(inner, key + ".")
        elif shape == "map":
            yield from leaves(inner, f"{key}.{NAME}.")
        else:
            if shape == "leaf" or key.endswith(".backends"):
                default = field.default_factory() if callable(field.default_factory) else field.default
                yield key, Leaf(field.type, None if field.required else default, field.required)
            if shape == "list":
                yield from leaves(inner, key + "[].")


LEAVES: Mapping[str, Leaf] = types.MappingProxyType(dict(leaves()))


def default_text(key: str) -> str:
    """The default as it would stand in the file."""
    leaf = LEAVES[key]
    if leaf.required:
        return "required"
    return toml_value(leaf.default)


def toml_value(value: object) -> str:
    """Write a plain value as TOML does."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str):
        return msgspec.json.encode(value).decode()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name} = {toml_value(item)}" for name, item in value.items()) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    return str(value)


def range_text(row: Setting) -> str:
    """What may be written, in a few words; "" where only the text says it."""
    if row.choices:
        return ", ".join(f"`{choice}`" for choice in row.choices)
    if row.limits:
        return f"{row.low:g} to {row.high:,.10g}".replace(",", " ")
    return ""


HEAD = """\
# Settings

<!-- Made by `python -m lb.config_table > docs/settings.md`. Do not edit. -->

A setting is looked for in this order, and the later wins: its default, the file (`--config`,
`LB_CONFIG`, else `lb.toml` in the current folder if there is one), the environment, a flag of `lb serve`.
A variable that is set but empty counts as not set. The variables and flags of a pool's settings
are those of the pool `default`. `lb config check` says what is wrong and where, `lb config show` what is
in force and where each value came from.

| in the file | environment | flag of `lb serve` | default | unit, values | what it is |
| --- | --- | --- | --- | --- | --- |
"""

TAIL = """
Without any `[[routes]]` every request goes to the pool `default`, or to the only pool there is. Otherwise
the most specific route wins: an exact host before `*.`-hosts (the longest first) before any host, then the
longest path. `/api` stands for `/api` and all below `/api/`. Paths are compared decoded, with `.`, `..` and
empty segments taken out, and go on as they came. A request that no route matches is answered 404.
"""


def markdown() -> str:
    """The page of the documentation."""
    lines = [f"| – | `{CONFIG_ENV}` | `--config` | `lb.toml` if present | path | the file itself |"]
    for row in TABLE:
        values = ", ".join(part for part in (row.unit, range_text(row)) if part)
        env = f"`{row.env}`" if row.env else "–"
        flag = f"`{row.flag}`" if row.flag else "–"
        lines.append(f"| `{row.key}` | {env} | {flag} | `{default_text(row.key)}` | {values} | {row.text} |")
    return HEAD + "\n".join(lines) + "\n" + TAIL


if __name__ == "__main__":
    sys.stdout.write(markdown())
