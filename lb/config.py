"""Reads the configuration: defaults, then one TOML file, then `LB_…` variables, the later wins.

Flags are the environment of the process that `lb serve` starts. `load` raises `ConfigError` with one
line that names the place, the key, what is wrong and the mend; `read` gives all such lines, and where
each value came from. Nothing here repeats a secret.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_origin

import msgspec

from lb.config_checks import check_pool_name, check_value, did_you_mean, is_private, mask
from lb.config_env import EnvProblem, env_values, unknown_names
from lb.config_lines import KeyPath, find_lines, line_of, show_path
from lb.config_rows import NAME, SECRET
from lb.config_sticky import sticky_problems
from lb.config_table import CONFIG_ENV, struct_of
from lb.errors import ConfigError
from lb.model import backend_id
from lb.settings import PoolConfig, Route, Settings
from lb.state.keys import MAX_ZONES

DEFAULT_FILE = "lb.toml"
DEFAULT_POOL = "default"


class Loaded(msgspec.Struct, frozen=True):
    """What `read` found. `settings` is None when there are `problems`; `notes` are worth a look only.

    `file` is "" when there is none. `env` says which key paths came from which variable.
    """

    settings: Settings | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    file: str
    lines: Mapping[KeyPath, int]
    env: Mapping[KeyPath, str]

    def origin(self, path: KeyPath) -> str:
        """Where the value at `path` came from: a variable, `file:line`, or `default`."""
        for length in range(len(path), 0, -1):
            if name := self.env.get(path[:length]):
                return name
        return f"{self.file}:{self.lines[path]}" if path in self.lines else "default"


def load(path: str | None = None, env: Mapping[str, str] = os.environ) -> Settings:
    """The settings from the file `path` (else `LB_CONFIG`, else `lb.toml` if present) and `env`.

    There is at least one pool. Without routes every request goes to the pool `default`; where there is only
    one pool, of another name, it gets the one route that says so.
    Raises ConfigError, one line, when there is anything wrong with them.
    """
    loaded = read(path, env)
    if loaded.settings is None:
        more = len(loaded.problems) - 1
        tail = f" (and {more} more: `lb config check` lists them)" if more else ""
        raise ConfigError(loaded.problems[0] + tail)
    return loaded.settings


def read(path: str | None = None, env: Mapping[str, str] = os.environ) -> Loaded:
    """As `load`, but never raises ConfigError: the problems are in the answer, all of them."""
    try:
        file, text = _read_file(path, env)
        raw = _parse(file, text)
    except ConfigError as exc:
        return Loaded(None, (str(exc),), (), "", {}, {})
    reader = _Reader(file, find_lines(text))
    settings = reader.settings(raw, env)
    problems = tuple(dict.fromkeys(reader.problems))
    return Loaded(
        None if problems else settings, problems, tuple(reader.notes), file, reader.lines, reader.env
    )


def _read_file(path: str | None, env: Mapping[str, str]) -> tuple[str, str]:
    """The name and the text of the file, "" and "" if there is none and nobody asked for one."""
    named_by = ""
    if path is None and (path := env.get(CONFIG_ENV) or None):
        named_by = f" (named by {CONFIG_ENV})"
    name = path or DEFAULT_FILE
    try:
        return name, Path(name).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        if path is None:
            return "", ""
        raise ConfigError(f"{name}{named_by}: no such file") from None
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{name}{named_by}: is not UTF-8 text (byte {exc.start})") from None
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise ConfigError(f"{name}{named_by}: cannot be read: {reason}") from None


def _parse(file: str, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        # The text ends in "(at line 3, column 7)" or "(at end of document)".
        reason, _, place = str(exc).rpartition(" (at ")
        line = place.removeprefix("line ").split(",")[0].rstrip(")")
        if not line.isdigit():
            line, reason = str(text.rstrip().count("\n") + 1), f"{reason} at the end of the text"
        mend = ""
        if "key part" in reason and _ends_inside_braces(text, int(line)):
            mend = "; an inline table, { … }, must stand on one line"
        raise ConfigError(f"{file}:{line}: is not TOML: {mask(reason)}{mend}") from None
    except RecursionError:
        raise ConfigError(f"{file}: is nested too deeply") from None


def _ends_inside_braces(text: str, line: int) -> bool:
    row = text.split("\n")[line - 1]
    return row.count("{") > row.count("}")


_WORDS = {int: "a whole number", float: "a number", str: 'text in quotes, "…"', bool: "true or false"}


def _words(kind: Any) -> str:
    """What a value of this type is, for people."""
    if get_origin(kind) is tuple:
        return 'an array of texts, ["…", "…"]'
    if get_origin(kind) is not None and get_origin(kind) is not Literal:
        return 'a table of texts, { Name = "…" }'
    return _WORDS.get(kind, _WORDS[str])


class _Reader:
    """Turns plain values into `Settings`, collecting what is wrong instead of stopping at it."""

    def __init__(self, file: str, lines: Mapping[KeyPath, int]) -> None:
        self.file = file
        self.lines = lines
        self.env: dict[KeyPath, str] = {}
        self.problems: list[str] = []
        self.notes: list[str] = []

    def problem(self, path: KeyPath, what: str) -> None:
        self.problems.append(f"{self.place(path)}: {mask(what)}")

    def place(self, path: KeyPath) -> str:
        """`lb.toml:12: pools.default.algorithm`, or the variable and, of a list, the entry."""
        for length in range(len(path), 0, -1):
            if name := self.env.get(path[:length]):
                rest = path[length:]
                entry = f", entry {rest[0] + 1}" if rest and isinstance(rest[0], int) else ""
                field = f", {show_path(rest[1:])}" if rest[1:] else ""
                return name + entry + field
        line = line_of(self.lines, path)
        key = show_path(path)
        return f"{self.file}:{line}: {key}" if line else (f"{self.file}: {key}" if self.file else key)

    def settings(self, raw: dict[str, Any], env: Mapping[str, str]) -> Settings | None:
        """The whole configuration, or None when there are problems."""
        self.overlay(raw, env)
        settings = self.struct(Settings, raw, (), "")
        if self.problems or not isinstance(settings, Settings):
            return None
        settings = self.whole(settings)
        return None if self.problems else settings

    def overlay(self, raw: dict[str, Any], env: Mapping[str, str]) -> None:
        """Put what the environment says over what the file says."""
        self.notes += unknown_names(env)
        pools = raw.get("pools")
        stray = isinstance(pools, dict) and pools and DEFAULT_POOL not in pools and not env.get("LB_BACKENDS")
        for path, name, value in env_values(env):
            if stray and path[:2] == ("pools", DEFAULT_POOL):
                self.problems.append(
                    f"{name}: is for the pool {DEFAULT_POOL!r}, which {self.file} does not have; "
                    "set it there, in the tables of its pools"
                )
                continue
            if isinstance(value, EnvProblem):
                self.problems.append(f"{name}: {mask(value.text)}")
                continue
            self.env[path] = name
            table = raw
            for part in path[:-1]:
                table = table.setdefault(part, {})
                if not isinstance(table, dict):
                    break  # the file has something else there, which is a problem of its own
            else:
                table[path[-1]] = value

    def struct(self, kind: type[msgspec.Struct], raw: object, path: KeyPath, key: str) -> object:
        """One table of the file; `key` is its name in the table of settings."""
        if not isinstance(raw, dict):
            where = "an inline table, { … }" if path and isinstance(path[-1], int) else f"a table, [{key}]"
            self.problem(path, f"must be {where}")
            return None
        fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
        for name in raw:
            if name not in fields:
                self.problem((*path, name), f"there is no such key{did_you_mean(name, fields)}")
        values = {}
        for name, field in fields.items():
            at, row = (*path, name), f"{key}.{name}" if key else name
            if name in raw:
                values[name] = self.value(field.type, raw[name], at, row)
            elif field.required:
                self.problem(path, f"{name!r} is missing")
        return None if self.problems else kind(**values)

    def value(self, kind: Any, raw: object, path: KeyPath, key: str) -> object:
        """One value of any shape, checked; None stands for one that is wrong."""
        shape, inner = struct_of(kind)
        if shape == "struct":
            return self.struct(inner, raw, path, key)
        if shape == "list":
            if not isinstance(raw, list):
                self.problem(path, f"must be an array of tables: {path[-1]} = [{{ … }}, …]")
                return None
            return tuple(self.struct(inner, item, (*path, i), f"{key}[]") for i, item in enumerate(raw))
        if shape == "map":
            return self.mapping(inner, raw, path, key)
        return self.leaf(kind, raw, path, key)

    def mapping(self, kind: type[msgspec.Struct], raw: object, path: KeyPath, key: str) -> object:
        """`[pools.NAME]`."""
        if not isinstance(raw, dict):
            self.problem(path, f"must be tables: [{key}.{NAME}]")
            return None
        for name in raw:
            try:
                check_pool_name(name or "-")
            except ValueError as exc:
                self.problem((*path, name), str(exc))
        return {n: self.struct(kind, table, (*path, n), f"{key}.{NAME}") for n, table in raw.items()}

    def leaf(self, kind: Any, raw: object, path: KeyPath, key: str) -> object:
        try:
            value = msgspec.convert(raw, kind)
        except msgspec.ValidationError:
            if isinstance(raw, str):  # one of a few words
                try:
                    check_value(key, raw)
                except ValueError as exc:
                    self.problem(path, str(exc))
                    return None
            shown = "" if key in SECRET or not isinstance(raw, str | int | float) else f", not {_shown(raw)}"
            self.problem(path, f"must be {_words(kind)}{shown}")
            return None
        try:
            return check_value(key, value)
        except ValueError as exc:
            self.problem(path, str(exc))
            return None

    def whole(self, settings: Settings) -> Settings:
        """What can only be judged with all values at hand; also the pool and the route that go unsaid."""
        if not is_private(settings.control_bind) and not settings.control_token:
            self.problem(
                ("control_bind",),
                f"{settings.control_bind} can be reached from other machines: "
                "set LB_CONTROL_TOKEN, or bind to 127.0.0.1",
            )
        if settings.bind == settings.control_bind:
            path = ("bind",) if ("bind",) in {*self.env, *self.lines} else ("control_bind",)
            self.problem(path, f"{settings.bind} would be that of both `bind` and `control_bind`; change one")
        self.both(settings.tls.certificate, settings.tls.key, ("tls",))
        pools = dict(settings.pools) or {DEFAULT_POOL: PoolConfig()}
        for name, pool in pools.items():
            self.pool(name, pool)
            there = {spec.zone for spec in pool.backends if spec.zone}
            if settings.zone and there and settings.zone not in there:
                self.notes.append(
                    f"no backend of pool {name!r} is in the zone {settings.zone!r} of this balancer"
                    + did_you_mean(settings.zone, there)
                )
        routes = settings.routes
        if not routes and DEFAULT_POOL not in pools and len(pools) == 1:
            routes = (Route(pool=next(iter(pools))),)
        self.routes(routes, pools)
        return msgspec.structs.replace(settings, pools=pools, routes=routes)

    def both(self, certificate: str, key: str, path: KeyPath) -> None:
        if bool(certificate) != bool(key):
            part = "certificate" if certificate else "key"
            self.problem((*path, part), "certificate and key are set together, or neither is")

    def pool(self, name: str, pool: PoolConfig) -> None:
        self.both(pool.tls.certificate, pool.tls.key, ("pools", name, "tls"))
        for key, what in sticky_problems(pool.sticky):
            self.problem(("pools", name, "sticky", key), what)
        path: KeyPath = ("pools", name, "backends")
        seen: dict[str, int] = {}
        for index, spec in enumerate(pool.backends):
            ident = spec.id or backend_id(spec.url)
            if (first := seen.setdefault(ident, index)) != index:
                what = f"the id {ident!r} is already that of {self.place((*path, first))}"
                self.problem((*path, index), f"{what}; give one of them another `id`, or remove it")
        if len({spec.zone for spec in pool.backends if spec.zone}) > MAX_ZONES:
            self.problem(path, f"the backends are in more than {MAX_ZONES} zones; use fewer")
        if not pool.backends:
            self.notes.append(f"pool {name!r} has no backends here; it answers 503 until some are added")

    def routes(self, routes: tuple[Route, ...], pools: Mapping[str, PoolConfig]) -> None:
        seen: dict[tuple[str, str], int] = {}
        for index, route in enumerate(routes):
            path: KeyPath = ("routes", index)
            if not route.pool:
                if not route.redirect:
                    self.problem(path, "'pool' is missing")
            elif route.pool not in pools:
                self.problem(
                    (*path, "pool"), f"there is no pool {route.pool!r}{did_you_mean(route.pool, pools)}"
                )
            if route.strip_prefix and not route.path.strip("/"):
                self.problem((*path, "strip_prefix"), "there is no prefix to strip; give the route a `path`")
            if (first := seen.setdefault((route.host, route.path), index)) != index:
                other = self.place(("routes", first))
                self.problem(path, f"has the host and path of {other}; remove one of them")
        used = {route.pool for route in routes} or {DEFAULT_POOL}
        if not routes and DEFAULT_POOL not in pools:
            self.problem(
                ("pools",),
                f"there are {len(pools)} pools, none of them {DEFAULT_POOL!r}, and no [[routes]]; "
                "say which requests go to which",
            )
            return
        self.notes += [
            f"pool {name!r} gets no requests: no route leads to it" for name in pools if name not in used
        ]


def _shown(raw: object) -> str:
    return (
        f'"{raw}"'
        if isinstance(raw, str)
        else ("true" if raw is True else "false" if raw is False else str(raw))
    )
