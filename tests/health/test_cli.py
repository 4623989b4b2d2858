from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lb import __version__
from tests.health.backends import answer, free_port
from tests.health.conftest import MakeBackend
from tests.health.system import Store


def run(*options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
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
        ("--path", "a b"),
        ("--status", "abc"),
        ("--type", "icmp"),
        ("--redis-url", "http://x"),
        ("--nonsense",),
    ],
)
def test_bad_options_are_usage_errors(options: tuple[str, ...]) -> None:
    done = run(*options)
    assert done.returncode == 2
    assert options[0] in done.stderr
    assert "Traceback" not in done.stderr


def test_version_and_help() -> None:
    assert run("--version").stdout == f"lb-health {__version__}\n"
    assert "--interval" in run("--help").stdout


@pytest.mark.parametrize("text", [None, "pools = 3\n", "no toml"])
def test_a_bad_configuration_is_one_line(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "lb.toml"
    if text is not None:
        file.write_text(text)
    done = run("--config", str(file))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert str(file) in done.stderr


def test_a_bad_url_in_the_environment_is_one_line() -> None:
    done = run(LB_BACKENDS="ftp://x")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "LB_BACKENDS" in done.stderr


@pytest.mark.parametrize("options", [(), ("--once",)])
def test_a_store_that_was_named_must_be_there(options: tuple[str, ...]) -> None:
    port = free_port()
    done = run(*options, LB_REDIS_URL=f"redis://user:secret@127.0.0.1:{port}/0")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


def test_once_shows_all_and_tells_by_its_exit_code(store: Store, make_backend: MakeBackend) -> None:
    good, bad = make_backend(), make_backend(answer(b"HTTP/1.1 500 \r\n\r\n"))
    store.declare(good)
    runtime = ("--runtime-dir", str(store.directory))
    done = run("--once", *runtime)
    assert done.returncode == 0, done.stderr
    assert good.id in done.stdout
    version = store.declare(good, bad).version
    done = run("--once", *runtime)
    assert done.returncode == 1
    assert "status 500, expected 200-399" in done.stdout
    done = run("--once", "--json", *runtime)
    found = json.loads(done.stdout)
    assert found["ok"] is False
    assert found["shared"] is True
    assert {one["id"]: one["ok"] for one in found["backends"]} == {good.id: True, bad.id: False}
    assert store.registry.version("default") == version
    assert store.healths() == ["unknown", "unknown"]
    assert run("--once", "--status", "200,500", *runtime).returncode == 0


def test_once_without_a_store_takes_the_configuration(tmp_path: Path, make_backend: MakeBackend) -> None:
    done = run("--once", "--json", "--runtime-dir", str(tmp_path), LB_BACKENDS=make_backend().url)
    assert done.returncode == 0
    assert json.loads(done.stdout)["shared"] is False


def test_once_without_anything_fails(tmp_path: Path) -> None:
    done = run("--once", "--runtime-dir", str(tmp_path))
    assert done.returncode == 1
    assert (
        done.stderr
        == "lb-health: there is no backend to probe: none in the shared state and none configured\n"
    )
