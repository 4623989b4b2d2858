"""Every setting in one table: its name in the file, in the environment and as a flag of `lb serve`.

Types and defaults stand in `lb.settings` only; the ranges, the names and the words for people stand
here only. `python -m lb.config_table` prints the table of the documentation, `docs/settings.md`.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

import msgspec

from lb.algorithms import ALGORITHMS
from lb.settings import Settings

#: Keys that are never shown, and have no flag: the arguments of a process are public.
SECRET = frozenset({"control_token"})

#: Stands for the name of a pool in a key; an environment variable sets the pool `default`.
NAME = "NAME"

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")


class Setting(msgspec.Struct, frozen=True):
    """One row. `env` "" means: in the file only. `low` and `high` are inclusive, of numbers only."""

    key: str
    env: str
    text: str
    unit: str = ""
    low: float = 0
    high: float = 0
    choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        """The flag of `lb serve`, "" if it has none."""
        if not self.env or self.key in SECRET:
            return ""
        return "--" + self.env.removeprefix("LB_").lower().replace("_", "-")

    @property
    def path(self) -> tuple[str, ...]:
        """Where the environment variable writes: the key with `default` for the pool's name."""
        return tuple("default" if part == NAME else part for part in self.key.split("."))

    @property
    def limits(self) -> bool:
        """Is it a number with a range?"""
        return self.high > self.low


DAY = 86400
MIB = 1 << 20

TABLE: tuple[Setting, ...] = (
    Setting("bind", "LB_BIND", "where clients connect: `host:port`, `[v6]:port` or `unix:/path`"),
    Setting(
        "control_bind",
        "LB_CONTROL_BIND",
        "where the control side answers (API, metrics, `/healthz`, `/readyz`); "
        "anything but loopback or `unix:` needs `control_token`",
    ),
    Setting(
        "control_token",
        "LB_CONTROL_TOKEN",
        "the bearer token that the control API asks for; empty: none (no flag: arguments are public)",
    ),
    Setting(
        "redis_url",
        "LB_REDIS_URL",
        "the shared state; empty: the embedded store in `runtime_dir`",
    ),
    Setting(
        "runtime_dir",
        "LB_RUNTIME_DIR",
        "socket and data of the embedded store; empty: `$XDG_RUNTIME_DIR/lb`, "
        "else a private folder of the user's under the temporary directory",
    ),
    Setting("workers", "LB_WORKERS", "worker processes; 0: one per core", high=1024),
    Setting(
        "graceful_timeout",
        "LB_GRACEFUL_TIMEOUT",
        "how long a worker that is asked to stop may finish what it serves",
        "s",
        0,
        DAY,
    ),
    Setting(
        "client.keepalive",
        "LB_CLIENT_KEEPALIVE",
        "how long a client's connection may idle between requests",
        "s",
        0.1,
        DAY,
    ),
    Setting(
        "client.header",
        "LB_CLIENT_HEADER_TIMEOUT",
        "how long the head of a request may take",
        "s",
        0.1,
        DAY,
    ),
    Setting(
        "client.idle",
        "LB_CLIENT_IDLE_TIMEOUT",
        "how long a client may pause while it sends or receives a body",
        "s",
        0.1,
        DAY,
    ),
    Setting(
        "client.connections",
        "LB_CLIENT_CONNECTIONS",
        "connections that one worker takes",
        low=1,
        high=1_000_000,
    ),
    Setting(
        "log.access",
        "LB_ACCESS_LOG",
        "the access log, one JSON object a line: `-` standard output, `off`, else the path of a file",
    ),
    Setting("log.level", "LB_LOG_LEVEL", "of the error log", choices=LOG_LEVELS),
    Setting(
        "pools.NAME.algorithm",
        "LB_ALGORITHM",
        "how a backend is chosen",
        choices=ALGORITHMS,
    ),
    Setting(
        "pools.NAME.backends",
        "LB_BACKENDS",
        "the servers; in the environment `URL[;weight=N][;max_connections=N]`, separated by commas, "
        "in place of those of the file",
    ),
    Setting(
        "pools.NAME.backends[].url", "", "`http://host:port`, `https://host:port` or `http+unix://%2Fpath`"
    ),
    Setting("pools.NAME.backends[].weight", "", "its share of the traffic; 0: no new traffic", high=1000),
    Setting(
        "pools.NAME.backends[].max_connections",
        "",
        "connections at a time from the whole fleet; 0: no cap",
        high=1_000_000,
    ),
    Setting("pools.NAME.backends[].id", "", "its name; empty: `host:port` of its URL"),
    Setting("pools.NAME.timeouts.connect", "LB_CONNECT_TIMEOUT", "to connect to a backend", "s", 0.001, DAY),
    Setting(
        "pools.NAME.timeouts.response",
        "LB_RESPONSE_TIMEOUT",
        "from the end of the request to the first byte of the answer",
        "s",
        0.001,
        DAY,
    ),
    Setting(
        "pools.NAME.timeouts.idle",
        "LB_IDLE_TIMEOUT",
        "between two bytes of a body to or from a backend",
        "s",
        0.001,
        DAY,
    ),
    Setting(
        "pools.NAME.retry.attempts",
        "LB_RETRY_ATTEMPTS",
        "backends tried for one request, the first included; 1: no retry",
        low=1,
        high=100,
    ),
    Setting(
        "pools.NAME.retry.max_body",
        "LB_RETRY_MAX_BODY",
        "the largest request body that is kept for another try",
        "bytes",
        0,
        64 * MIB,
    ),
    Setting(
        "pools.NAME.upstream.max_idle",
        "LB_UPSTREAM_MAX_IDLE",
        "kept-alive connections to each backend that may idle in each worker; 0: none is kept",
        high=100_000,
    ),
    Setting(
        "pools.NAME.upstream.idle_timeout",
        "LB_UPSTREAM_IDLE_TIMEOUT",
        "how long such a connection may idle",
        "s",
        0.1,
        DAY,
    ),
    Setting("pools.NAME.health.enabled", "LB_HEALTH_ENABLED", "are the backends probed"),
    Setting(
        "pools.NAME.health.type", "LB_HEALTH_TYPE", "ask over HTTP, or only connect", choices=("http", "tcp")
    ),
    Setting("pools.NAME.health.path", "LB_HEALTH_PATH", "what an HTTP probe asks for"),
    Setting(
        "pools.NAME.health.status", "LB_HEALTH_STATUS", "the answers that are a success: codes and ranges"
    ),
    Setting(
        "pools.NAME.health.interval",
        "LB_HEALTH_INTERVAL",
        "time between two probes of a backend; 0: what `lb-health --interval` says",
        "s",
        0,
        DAY,
    ),
    Setting("pools.NAME.health.timeout", "LB_HEALTH_TIMEOUT", "of one probe", "s", 0.001, DAY),
    Setting(
        "pools.NAME.health.jitter",
        "LB_HEALTH_JITTER",
        "by how much a probe may be early or late",
        "share of the interval",
        0,
        1,
    ),
    Setting(
        "pools.NAME.health.rise", "LB_HEALTH_RISE", "successes in a row that make it up", low=1, high=1000
    ),
    Setting(
        "pools.NAME.health.fall", "LB_HEALTH_FALL", "failures in a row that make it down", low=1, high=1000
    ),
    Setting("routes[].pool", "", "the pool that gets the requests"),
    Setting("routes[].host", "", "`www.example.com`, `*.example.com` for all names under it; empty: any"),
    Setting("routes[].path", "", "what the path must start with, in whole segments"),
)

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
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return "struct", kind
    arguments = get_args(kind)
    if get_origin(kind) is tuple:
        return "list", arguments[0]
    if get_origin(kind) in (Mapping, dict):
        return "map", arguments[1]
    return "leaf", kind


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
                yield key, Leaf(field.type, None if field.required else field.default, field.required)
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
longest path. `/api` stands for `/api` and all below `/api/`. A request that no route matches is answered 404.
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
