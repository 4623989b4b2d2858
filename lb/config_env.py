"""Reads `LB_…` variables into the plain values that the same keys would have in the file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import get_origin

import msgspec

from lb.config_checks import did_you_mean
from lb.config_rows import TABLE
from lb.config_table import BY_ENV, CONFIG_ENV, LEAVES

#: Variables of the other programs of the package, which are no settings.
OTHER_NAMES = frozenset({CONFIG_ENV})
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})
_BACKEND_OPTIONS = ("weight", "max_connections", "id", "backup", "zone")


class EnvProblem(msgspec.Struct, frozen=True):
    """A variable that cannot be read; the text says why, and the mend."""

    text: str


def env_values(env: Mapping[str, str]) -> Iterator[tuple[tuple[str, ...], str, object]]:
    """The key path, the variable's name and the plain value (or the problem) of each that is set.

    A variable that is empty counts as not set.
    """
    for row in TABLE:
        text = env.get(row.env, "").strip() if row.env else ""
        if not text:
            continue
        try:
            value = parse_text(row.key, text)
        except ValueError as exc:
            yield row.path, row.env, EnvProblem(str(exc))
        else:
            yield row.path, row.env, value


def parse_text(key: str, text: str) -> object:
    """The plain value that `text` stands for, by the type of the key. Raises ValueError."""
    if key.endswith(".backends"):
        return parse_backends(text)
    kind = LEAVES[key].type
    if kind is bool:
        word = text.lower()
        if word not in _TRUE | _FALSE:
            raise ValueError(f"must be true or false, not {text!r}")
        return word in _TRUE
    if kind is int:
        if not re.fullmatch(r"[+-]?\d{1,18}", text, re.ASCII):
            raise ValueError(f"must be a whole number, not {text!r}")
        return int(text)
    if kind is float:
        if not re.fullmatch(r"[+-]?(\d{1,18}(\.\d*)?|\.\d+)", text, re.ASCII):
            raise ValueError(f"must be a number, not {text!r}")
        return float(text)
    if get_origin(kind) is tuple:
        return [part for item in text.split(",") if (part := item.strip())]
    return text


def parse_backends(text: str) -> list[dict[str, object]]:
    """`URL[;weight=N][;max_connections=N][;id=ID][;backup=true][;zone=ZONE]`, separated by commas. Raises
    ValueError.
    """
    backends = []
    for number, entry in enumerate((part.strip() for part in text.split(",")), start=1):
        if not entry:
            continue  # a comma too many, as generated lists have at the end
        url, *options = (part.strip() for part in entry.split(";"))
        backend: dict[str, object] = {"url": url}
        for option in options:
            name, equals, value = (part.strip() for part in option.partition("="))
            what = f"entry {number}, {option!r}"
            if not equals or not value:
                raise ValueError(f"{what}: write NAME=VALUE, such as weight=3")
            if name not in _BACKEND_OPTIONS:
                raise ValueError(f"{what}: there is no option {name!r}{did_you_mean(name, _BACKEND_OPTIONS)}")
            if name in backend:
                raise ValueError(f"{what}: {name} is given twice")
            backend[name] = _option(what, name, value)
        backends.append(backend)
    if not backends:
        raise ValueError("names no backend; write URL[;weight=N][;max_connections=N], separated by commas")
    return backends


def _option(what: str, name: str, value: str) -> object:
    if name in ("id", "zone"):
        return value
    if name == "backup":
        if value.lower() not in _TRUE | _FALSE:
            raise ValueError(f"{what}: {name} must be true or false")
        return value.lower() in _TRUE
    if not re.fullmatch(r"\d{1,18}", value, re.ASCII):
        raise ValueError(f"{what}: {name} must be a whole number")
    return int(value)


def unknown_names(env: Mapping[str, str]) -> list[str]:
    """Notes about `LB_…` variables that nobody reads but that look like one that is.

    They are no errors: in some places, such as Kubernetes, a service named `lb` puts its own
    `LB_SERVICE_HOST` and `LB_PORT` into every environment.
    """
    known = [*BY_ENV, *OTHER_NAMES]
    notes = []
    for name in sorted(env):
        if name.startswith("LB_") and name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            if close:
                notes.append(f"{name} is not read; did you mean {close[0]}?")
    return notes
