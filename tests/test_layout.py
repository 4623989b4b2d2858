"""The shape of the source tree: which way imports point, a test per module, sizes, names that would hurt."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_LINES = 400

#: Group of modules → the groups it may import from, besides itself. Imports point down only.
ALLOWED: dict[str, set[str]] = {
    "model": set(),  # what everything else is made of, and nothing of its own
    "routing": {"model"},
    "algorithms": {"model"},
    "config": {"model", "algorithms"},
    "state": {"model", "algorithms", "config"},
    "proxy": {"model", "algorithms", "state"},
    "health": {"model", "config", "state"},
    "app": {"model", "algorithms", "config", "routing", "state", "proxy"},
    "control": {"model", "algorithms", "config", "routing", "state", "proxy", "app"},
    "worker": {"model", "algorithms", "config", "routing", "state", "proxy", "app", "control"},
    "cli": {"model", "algorithms", "config", "routing", "state"},
    "demo": set(),
}

#: Module or package of `lb` → its group; the longest match counts.
GROUPS = {
    "__init__": "model",
    "model": "model",
    "errors": "model",
    "settings": "model",
    "process": "model",
    "decision": "model",
    "state.keys": "model",
    "accesslog": "model",
    "scoreboard": "model",
    "networks": "model",
    "dates": "model",
    "routing": "routing",
    "edits": "routing",
    "proxyprotocol": "model",
    "certificates": "config",
    "forwarded": "app",
    "algorithms": "algorithms",
    "config": "config",
    "config_checks": "config",
    "config_env": "config",
    "config_lines": "config",
    "config_rows": "config",
    "config_retry": "config",
    "config_row": "config",
    "config_pool_rows": "config",
    "config_fault_rows": "config",
    "config_sticky": "config",
    "config_table": "config",
    "state": "state",
    "proxy": "proxy",
    "health": "health",
    "app": "app",
    "service": "app",
    "vitals": "app",
    "idempotency": "app",
    "once": "app",
    "sticky": "app",
    "wsgi": "app",
    "environ": "app",
    "client": "app",
    "http2": "app",
    "http2_head": "app",
    "http2_outbox": "app",
    "http2_protocol": "app",
    "http2_stream": "app",
    "limits": "app",
    "reply": "app",
    "control": "control",
    "server": "worker",
    "overload": "worker",
    "admission": "worker",
    "worker": "worker",
    "boot": "worker",
    "master": "worker",
    "gunicorn_conf": "worker",
    "cli": "cli",
    "demo": "demo",
}

#: Modules without a test of their own, and why.
NO_TWIN = {
    "config_rows": "rows only; tests/config/test_config_table.py reads them",
    "config_fault_rows": "rows only; tests/config/test_config_table.py reads them",
    "config_pool_rows": "rows only; tests/config/test_config_table.py reads them",
    "config_row": "what a row is; tests/config/test_config_table.py looks at each",
    "settings": "types and defaults only; tests/config reads into them",
    "cli.__main__": "one call",
    "gunicorn_conf": "hooks only, run by every test that starts gunicorn",
}


def modules() -> dict[str, Path]:
    """Every module of the package by its name below `lb`; a package stands for its `__init__`."""
    found = {}
    for path in sorted((ROOT / "lb").rglob("*.py")):
        parts = list(path.relative_to(ROOT / "lb").with_suffix("").parts)
        if parts[-1] == "__init__" and len(parts) > 1:
            parts.pop()
        found[".".join(parts)] = path
    return found


MODULES = modules()


def group(name: str) -> str:
    """The group of a module."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        if found := GROUPS.get(".".join(parts[:length])):
            return found
    pytest.fail(f"lb.{name} belongs to no group: give it one in tests/test_layout.py")


def imports(path: Path) -> Iterator[str]:
    """The modules of `lb` that a file imports when it is imported itself, or later."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            top, _, rest = name.partition(".")
            while top == "lb" and rest and rest not in MODULES:
                rest = rest.rpartition(".")[0]
            if top == "lb":
                yield rest or "__init__"


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down_only(name: str) -> None:
    own = group(name)
    wrong = {
        other
        for other in imports(MODULES[name])
        if other != name and group(other) not in ALLOWED[own] | {own}
    }
    # The package itself holds the version, which anybody may ask for.
    assert wrong <= {"__init__"}, f"lb.{name} ({own}) must not import {sorted(wrong)}"


def test_no_import_goes_round_in_a_circle() -> None:
    graph = {name: set(imports(path)) - {name} for name, path in MODULES.items()}
    # A package's `__main__` and command groups import what is in the package, not the other way round.
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_a_test(name: str) -> None:
    path = MODULES[name]
    if path.name == "__init__.py" or name in NO_TWIN:
        return
    *packages, last = name.split(".")
    wanted = f"test_{last.strip('_')}.py"
    folder = ROOT / "tests" / Path(*packages)
    found = list(folder.glob(wanted)) if packages else list(folder.glob(f"**/{wanted}"))
    assert found, f"lb.{name} has no {folder.relative_to(ROOT)}/{wanted}"


@pytest.mark.parametrize("name", MODULES)
def test_no_module_grows_too_long(name: str) -> None:
    lines = len(MODULES[name].read_text().splitlines())
    assert lines <= MOST_LINES, f"lb.{name} has {lines} lines: split it by decision, not by size"


def test_nothing_shadows_the_redis_library() -> None:
    assert not list((ROOT / "redis").rglob("*.py"))


def test_every_script_tells_its_contract() -> None:
    for path in (ROOT / "redis").glob("*.lua"):
        assert path.read_text().startswith("--"), f"{path.name} has no header"
