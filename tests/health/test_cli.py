from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from lb import __version__
from lb.errors import ConfigError
from lb.health.cli import cli
from tests.health.backends import free_port
from tests.health.conftest import MakeBackend


def run(*options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a process to its end."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LB_")}
    return subprocess.run(
        [sys.executable, "-m", "lb.health.cli", *options],
        env={**clean, **environ}, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        ("--interval", "0"),
        ("--interval", "nan"),
        ("--interval", "ten"),
        ("--timeout", "-1"),
        ("--rise", "0"),
        ("--fall", "x"),
        ("--path", "a b"),
        ("--status", "abc"),
        ("--type", "icmp"),
        ("--redis-url", "http://x"),
        ("--concurrency", "0"),
        ("--nonsense",),
    ],
)
def test_bad_options_are_usage_errors(options: tuple[str, ...]) -> None:
    done = CliRunner().invoke(cli, list(options))
    assert done.exit_code == 2
    assert options[0] in done.stderr


def test_version_and_help() -> None:
    assert CliRunner().invoke(cli, ["--version"]).stdout == f"lb-health {__version__}\n"
    assert "--interval" in CliRunner().invoke(cli, ["-h"]).stdout


def test_a_bad_option_ends_the_process_with_2() -> None:
    done = run("--interval", "0")
    assert done.returncode == 2
    assert "--interval" in done.stderr


def test_a_bad_configuration_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "lb.toml"
    file.write_text("pools = 3\n")
    done = run("--config", str(file))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert str(file) in done.stderr
    missing = CliRunner().invoke(cli, ["--config", str(tmp_path / "none.toml")])
    assert isinstance(missing.exception, ConfigError)


def test_a_store_that_was_named_must_be_there() -> None:
    port = free_port()
    done = run(LB_REDIS_URL=f"redis://user:secret@127.0.0.1:{port}/0")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert "secret" not in done.stderr


def test_once_tells_by_its_exit_code(tmp_path: Path, make_backend: MakeBackend) -> None:
    backend = make_backend()
    done = run("--once", "--runtime-dir", str(tmp_path), LB_BACKENDS=backend.url)
    assert done.returncode == 0, done.stderr
    assert backend.id in done.stdout
    backend.kill()
    done = run("--once", "--json", "--runtime-dir", str(tmp_path), LB_BACKENDS=backend.url)
    assert done.returncode == 1
    assert '"ok": false' in done.stdout
