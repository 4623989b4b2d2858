"""`lb serve`: its flags, and that it becomes a gunicorn that serves."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.config_rows import TABLE
from tests.cli.conftest import Lb
from tests.support.run import Process, clean_env, descendants, eventually, free_port, python


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the command replaced itself with."""
    calls: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: calls.append(arguments))
    for row in TABLE:
        if row.env:
            monkeypatch.setenv(row.env, "")
    return calls


def test_flags_are_the_environment_of_gunicorn(lb: Lb, became: list[list[str]]) -> None:
    Path("lb.toml").write_text("workers = 7\n")
    os.environ["LB_BIND"] = "127.0.0.1:1"
    result = lb(
        "serve", "--bind", "127.0.0.1:2", "--backends", "http://a:1;weight=3", "--connect-timeout", "1.5"
    )
    assert (result.code, result.err) == (0, "")
    assert [Path(arguments[1]).name for arguments in became] == ["gunicorn"]
    assert became[0][-1] == "lb.app"
    assert os.environ["LB_BIND"] == "127.0.0.1:2"
    assert os.environ["LB_BACKENDS"] == "http://a:1;weight=3"
    assert os.environ["LB_CONNECT_TIMEOUT"] == "1.5"
    assert os.environ["LB_WORKERS"] == ""


def test_every_variable_but_secrets_has_a_flag(lb: Lb) -> None:
    words = lb("serve", "--help").out
    missing = [row.env for row in TABLE if row.env and not (row.flag and f"  {row.flag} " in words)]
    assert missing == ["LB_CONTROL_TOKEN", "LB_STICKY_SECRET"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--algorithm", "x"], 2, "'x' is no algorithm"),
        (["--redis-url", "http://u:hunter@x"], 2, "must start with"),
        (["--backends", "http://a:1;wait=3"], 2, "there is no option 'wait'"),
        (["--backends", "http://u:hunter@a"], 1, "LB_BACKENDS, entry 1"),
        (["--control-bind", "0.0.0.0:1"], 1, "can be reached from other machines"),
        (["--config", "missing.toml"], 1, "missing.toml"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    lb: Lb, became: list[list[str]], arguments: list[str], code: int, words: str
) -> None:
    result = lb("serve", *arguments)
    assert result.code == code
    assert words in result.err
    assert "hunter" not in result.err
    assert became == []


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder with a short name, for a socket in it."""
    path = Path(tempfile.mkdtemp(prefix="lb-t-"))
    yield path
    shutil.rmtree(path)


def get(port: int, path: str) -> tuple[int, bytes]:
    """One answer; status 0 when there is none yet."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except OSError:
        return 0, b""
    finally:
        connection.close()


def test_it_serves_from_an_empty_folder_and_ends(folder: Path, tmp_path: Path) -> None:
    backend = python(tmp_path, "backend", "-m", "lb.demo", "--port", "0", "--name", "b1")
    backend.until(lambda: backend.out.endswith("\n"), "the backend")
    with free_port() as data, free_port() as control:
        env = clean_env(
            {
                "LB_RUNTIME_DIR": str(folder),
                "LB_BACKENDS": backend.out.split()[1],
                "LB_CONTROL_BIND": f"127.0.0.1:{control}",
                "LB_WORKERS": "1",
            }
        )
        bind = f"127.0.0.1:{data}"
        server = python(tmp_path, "serve", "-m", "lb.cli", "serve", "--bind", bind, env=env)
        try:
            server.until(lambda: get(data, "/x")[0] == 200, "an answer")
            assert json.loads(get(data, "/y")[1])["path"] == "/y"
            assert python(tmp_path, "check", "-m", "lb.cli", "healthcheck", env=env).wait() == 0
            family = descendants(server.pid)
            assert server.end() == 0
        finally:
            server.end()
            backend.end()
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family), "the end of its processes")


FILE = """\
bind = "127.0.0.1:{data}"
control_bind = "127.0.0.1:{control}"
runtime_dir = "{folder}"
workers = 1
graceful_timeout = 5
[pools.web]
backends = [{{ url = "{url}" }}]
"""


def test_a_file_and_its_reload(folder: Path, tmp_path: Path) -> None:
    """HUP reads the file again: the new backend answers, without a request that fails in between."""
    backends = [python(tmp_path, n, "-m", "lb.demo", "--port", "0", "--name", n) for n in ("b1", "b2")]
    urls = []
    for backend in backends:
        backend.until(lambda backend=backend: backend.out.endswith("\n"), "the backend")  # type: ignore[misc]
        urls.append(backend.out.split()[1])
    file = tmp_path / "lb.toml"
    with free_port() as data, free_port() as control:
        file.write_text(FILE.format(data=data, control=control, folder=folder, url=urls[0]))
        server = python(tmp_path, "serve", "-m", "lb.cli", "serve")
        seen: list[tuple[int, str]] = []

        def who() -> str:
            status, body = get(data, "/")
            seen.append((status, str(json.loads(body)["backend"]) if status == 200 else ""))
            return seen[-1][1]

        try:
            server.until(lambda: get(data, "/")[0] == 200, "an answer")
            assert who() == "b1"
            file.write_text(FILE.format(data=data, control=control, folder=folder, url=urls[1]))
            server.signal(signal.SIGHUP)
            server.until(lambda: who() == "b2", "the new backend")
            file.write_text("nonsense = 1\n")
            server.signal(signal.SIGHUP)
            server.until(lambda: "there is no such key" in server.err, "the complaint")
            assert who() == "b2"
            assert {status for status, _ in seen} == {200}
            assert server.end() == 0
        finally:
            server.end()
            for backend in backends:
                backend.end()


def test_a_port_in_use_is_one_line(folder: Path, tmp_path: Path) -> None:
    with socket.socket() as taken, free_port() as control:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        env = clean_env({"LB_RUNTIME_DIR": str(folder), "LB_CONTROL_BIND": f"127.0.0.1:{control}"})
        server: Process = python(tmp_path, "serve", "-m", "lb.cli", "serve", "--bind", bind, env=env)
        assert server.wait() == 1
        wrong = [line for line in server.err.splitlines() if "in use" in line]
        assert len(wrong) == 1
        assert bind in wrong[0]
        assert "Traceback" not in server.err
