"""The command line as a whole: exit codes, one line for what goes wrong, help that tells of everything."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import lb as package
from lb.cli import COMMANDS
from tests.cli.conftest import Lb
from tests.support.run import clean_env


def test_version(lb: Lb) -> None:
    assert lb("--version") == (0, f"lb {package.__version__}\n", "")


def test_help_lists_every_command_with_its_own_words(lb: Lb) -> None:
    result = lb("--help")
    assert result.code == 0
    for name, (where, words) in COMMANDS.items():
        assert f"  {name}" in result.out
        assert words in result.out
        module, _, attribute = where.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert (command.name, command.short_help or command.help) != (name, None)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(lb: Lb, name: str) -> None:
    result = lb(name, "--help")
    assert result.code == 0
    assert f"Usage: lb {name}" in result.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["stauts"],
        ["status", "--jsno"],
        ["status", "extra"],
        ["backends", "add"],
        ["backends", "add", "ftp://x"],
        ["backends", "add", "http://x", "--weight", "1001"],
        ["backends", "add", "http://x", "--id", "_"],
        ["backends", "list", "--pool", "a b"],
        ["backends", "weight", "x"],
        ["backends", "weight", "x", "-1"],
        ["algorithm", "set", "leastconn"],
        ["serve", "--workers", "many"],
        ["demo", "--port", "0"],
        ["healthcheck", "--timeout", "0"],
    ],
)
def test_usage_errors_are_2(lb: Lb, arguments: list[str]) -> None:
    result = lb(*arguments)
    assert (result.code, result.out) == (2, "")
    assert "Usage: lb" in result.err
    assert "Error: " in result.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["backends", "list"],
        ["backends", "add", "http://127.0.0.1:1"],
        ["algorithm", "get"],
        ["--config", "missing.toml", "status"],
        ["config", "show"],
        ["serve"],
        ["healthcheck"],
    ],
)
def test_what_fails_is_one_line_and_1(lb: Lb, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    if "--config" not in arguments:
        monkeypatch.setenv("LB_BIND", "nonsense")
    result = lb(*arguments)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("lb: ")
    assert result.err.count("\n") == 1


def test_no_store_is_said(lb: Lb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LB_RUNTIME_DIR", "/nonexistent")
    result = lb("status")
    assert result.code == 1
    assert result.err.startswith("lb: there is no embedded store at /nonexistent/")
    monkeypatch.setenv("LB_REDIS_URL", "redis://:hunter@127.0.0.1:1/0")
    result = lb("status")
    assert result.code == 1
    assert "127.0.0.1:1" in result.err
    assert "hunter" not in result.err
    assert result.err.count("\n") == 1


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{sys.executable} -m lb.cli config show | head -n 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=clean_env(), check=True)
    assert done.stdout.startswith("setting")
    assert done.stderr == ""
