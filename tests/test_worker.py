"""The worker class in a real gunicorn: its listeners, its signals, its end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.backends import PATIENCE, Backend, Peer, ok
from tests.support.clients import Client, get, request
from tests.support.run import Process, alive, clean_env, descendants, eventually, free_port, python

ROOT = Path(__file__).parents[1]


@dataclass
class Gunicorn:
    """One that runs, with one worker."""

    process: Process
    backend: Backend
    data: int
    control: int
    log: Path

    def worker(self) -> int:
        """The process id of its worker."""
        found = [
            pid
            for pid in descendants(self.process.pid)
            if b"gunicorn" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        assert len(found) == 1
        return found[0]

    def entries(self, path: Path | None = None) -> list[str]:
        """The targets in the access log."""
        file = path or self.log
        return [json.loads(line)["target"] for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def gunicorn(tmp_path: Path) -> Iterator[Gunicorn]:
    folder = Path(tempfile.mkdtemp(prefix="lb-t-"))
    log = tmp_path / "access"
    with Backend() as backend, free_port() as data, free_port() as control:
        env = clean_env(
            {
                "LB_BIND": f"127.0.0.1:{data}",
                "LB_CONTROL_BIND": f"127.0.0.1:{control}",
                "LB_RUNTIME_DIR": str(folder),
                "LB_BACKENDS": backend.url,
                "LB_WORKERS": "1",
                "LB_ACCESS_LOG": str(log),
                "PYTHONPATH": str(ROOT),
            }
        )
        process = python(
            tmp_path, "gunicorn", "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py"), "lb.app", env=env
        )
        try:
            process.until(lambda: status(control, "/readyz") == 200, "the worker")
            yield Gunicorn(process, backend, data, control, log)
        finally:
            process.end()
            shutil.rmtree(folder)


def status(port: int, target: str) -> int:
    """The status of one GET; 0 while nobody is there."""
    try:
        return get(port, target).status
    except ConnectionError:
        return 0


def refused(port: int) -> bool:
    """Does nobody accept connections there?"""
    try:
        Client(port).close()
    except ConnectionRefusedError:
        return True
    return False


def hold(peer: Peer) -> None:
    """Answer each request when the test says so."""
    while peer.read_request() is not None:
        assert peer.backend.may_go_on.acquire(timeout=PATIENCE)
        peer.send(ok(b"at last"))


def test_a_worker_serves_reopens_its_log_and_finishes_what_runs(gunicorn: Gunicorn, tmp_path: Path) -> None:
    backend = gunicorn.backend
    # The sockets say which application answers.
    assert get(gunicorn.data, "/healthz").body == b"ok"
    assert [r.target for r in backend.requests] == ["/healthz"]
    assert json.loads(get(gunicorn.control, "/readyz").body) == {"status": "ready", "shared_state": "ok"}
    with Client(gunicorn.control) as client:
        client.send(request("GET", "/x", host="localhost"))
        assert client.read_answer().status == 404
    # It is written without anybody asking.
    eventually(lambda: gunicorn.entries() == ["/healthz"], "the entry of the log")

    # USR1: the log was rotated.
    old = gunicorn.log.rename(tmp_path / "access.1")
    gunicorn.process.signal(signal.SIGUSR1)
    eventually(gunicorn.log.exists, "the new log")
    assert get(gunicorn.data, "/after").status == 200
    eventually(lambda: gunicorn.entries() == ["/after"], "the entry in the new log")
    assert gunicorn.entries(old) == ["/healthz"]

    # TERM: what runs is answered, nothing new is taken, and all of it ends.
    worker = gunicorn.worker()
    family = descendants(gunicorn.process.pid)
    backend.script = hold
    backend.hang_up()  # the idle connection knows the former script
    with Client(gunicorn.data) as busy, Client(gunicorn.data) as idle:
        busy.send(request("GET", "/held"))
        eventually(lambda: backend.requests[-1].target == "/held", "the request")
        gunicorn.process.signal(signal.SIGTERM)
        eventually(lambda: refused(gunicorn.data), "the listener to close")
        assert alive(worker)
        backend.may_go_on.release()
        answer = busy.read_answer()
        assert (answer.body, answer.values("Connection")) == (b"at last", ["close"])
        assert idle.at_end()
    assert gunicorn.process.wait() == 0
    eventually(lambda: not any(alive(pid) for pid in family), "the end of its processes")
    assert gunicorn.entries() == ["/after", "/held"]
    assert "Traceback" not in gunicorn.process.err


def test_a_worker_that_is_killed_is_replaced(gunicorn: Gunicorn) -> None:
    first = gunicorn.worker()
    os.kill(first, signal.SIGKILL)
    eventually(lambda: not alive(first), "its end")
    eventually(lambda: status(gunicorn.data, "/again") == 200, "another one")
    assert gunicorn.worker() != first
