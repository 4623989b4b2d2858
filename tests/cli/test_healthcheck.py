"""`lb healthcheck`, against a server that answers as told."""

from __future__ import annotations

import http.server
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.cli.conftest import Lb
from tests.support.run import free_port


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers what the server's `answer` says, to `/readyz` only."""

    def do_GET(self) -> None:
        """Answer."""
        status, body = getattr(self.server, "answer")  # noqa: B009
        self.send_response(status if self.path == "/readyz" else 404)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Say nothing."""

    def address_string(self) -> str:
        """A unix socket's client has none."""
        return "-"


class Server(socketserver.ThreadingTCPServer):
    """On TCP."""

    daemon_threads = True
    answer = (200, b"ok\n")


class UnixServer(socketserver.ThreadingUnixStreamServer):
    """On a unix socket."""

    daemon_threads = True
    answer = (200, b"ok\n")


Running = TypeVar("Running", bound=socketserver.BaseServer)


@pytest.fixture
def server() -> Iterator[Server]:
    """One that runs until the end of the test."""
    with Server(("127.0.0.1", 0), Handler) as found:
        yield from _run(found)


def _run(found: Running) -> Iterator[Running]:
    thread = threading.Thread(target=found.serve_forever, args=(0.01,))
    thread.start()
    yield found
    found.shutdown()
    thread.join()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_ready(lb: Lb, server: Server, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("LB_CONTROL_TOKEN", "x")
    monkeypatch.setenv("LB_CONTROL_BIND", f"{host}:{server.server_address[1]}")
    assert lb("healthcheck") == (0, "ready\n", "")


def test_not_ready(lb: Lb, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    bind = f"127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("LB_CONTROL_BIND", bind)
    server.answer = (503, b"draining\nmore\n")
    assert lb("healthcheck") == (1, "", f"lb: {bind} is not ready: 503 draining\n")


def test_nobody_there(lb: Lb, monkeypatch: pytest.MonkeyPatch) -> None:
    with free_port() as port:
        monkeypatch.setenv("LB_CONTROL_BIND", f"127.0.0.1:{port}")
        result = lb("healthcheck")
    assert result.code == 1
    assert f"127.0.0.1:{port} does not answer" in result.err


def test_somebody_who_says_nothing(lb: Lb, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("LB_CONTROL_BIND", f"127.0.0.1:{silent.getsockname()[1]}")
        result = lb("healthcheck", "--timeout", "0.05")
    assert result.code == 1
    assert "does not answer: timed out" in result.err


def test_a_unix_socket(lb: Lb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(f"/tmp/lb-t-{tmp_path.name}-{id(tmp_path)}.sock")
    monkeypatch.setenv("LB_CONTROL_BIND", f"unix:{path}")
    try:
        with UnixServer(str(path), Handler) as found:
            for _ in _run(found):
                assert lb("healthcheck") == (0, "ready\n", "")
    finally:
        path.unlink(missing_ok=True)
    assert lb("healthcheck").code == 1
