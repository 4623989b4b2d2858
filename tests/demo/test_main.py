"""`python -m lb.demo` as a process."""

from __future__ import annotations

import http.client
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.run import Process, free_port, python

BIG = 3_000_000


def start(folder: Path, port: int = 0, *more: str) -> Process:
    """A backend that listens."""
    process = python(folder, f"demo{port}", "-m", "lb.demo", "--port", str(port), "--name", "b1", *more)
    process.until(lambda: process.out.endswith("\n"), "its first line")
    return process


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Process]:
    """One that is ended afterwards."""
    process = start(tmp_path)
    yield process
    process.end()


def connect(process: Process) -> http.client.HTTPConnection:
    """A connection to the address that it has printed."""
    name, url = process.out.strip().split(": ")
    assert name == "b1"
    return http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)


def test_many_requests_over_one_connection(backend: Process) -> None:
    connection = connect(backend)
    for count in range(1, 4):
        connection.request("GET", "/x?y=1", headers={"X-Name": "value"})
        answer = json.loads(connection.getresponse().read())
        assert (answer["backend"], answer["count"], answer["path"]) == ("b1", count, "/x")
        assert ["X-Name", "value"] in answer["headers"]
        if count == 1:
            first = connection.sock
        assert connection.sock is first
    connection.request(
        "POST", "/up", iter([b"a" * BIG, b"b"]), {"Transfer-Encoding": "chunked"}, encode_chunked=True
    )
    assert json.loads(connection.getresponse().read())["length"] == BIG + 1
    connection.request("GET", f"/bytes?n={BIG}")
    assert len(connection.getresponse().read()) == BIG
    connection.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("busy", [False, True])
def test_signals_end_it_silently(backend: Process, number: signal.Signals, busy: bool) -> None:
    line = backend.out
    connection = connect(backend)
    connection.request("GET", "/")
    connection.getresponse().read()
    if busy:
        connection.request("GET", "/slow?seconds=600")
    backend.signal(number)
    assert backend.wait() == 0
    assert (backend.out, backend.err) == (line, "")
    connection.close()


def test_a_port_in_use(backend: Process, tmp_path: Path) -> None:
    port = backend.out.strip().rpartition(":")[2]
    second = python(tmp_path, "second", "-m", "lb.demo", "--port", port, "--name", "b2")
    assert second.wait() == 1
    assert second.out == ""
    assert second.err == f"lb.demo: cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_a_given_port_and_ipv6(tmp_path: Path) -> None:
    with free_port() as port:
        process = start(tmp_path, port)
        assert process.out == f"b1: http://127.0.0.1:{port}\n"
        assert process.end() == 0
    process = start(tmp_path, 0, "--host", "::1")
    assert process.out.startswith("b1: http://[::1]:")
    assert process.end() == 0


def test_usage(tmp_path: Path) -> None:
    process = python(tmp_path, "usage", "-m", "lb.demo", "--port", "99999", "--name", "x")
    assert process.wait() == 2
    assert "Traceback" not in process.err
