from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lb.state.spawn import ended, running, spawn
from tests.support.run import eventually


def shell(text: str, log: Path) -> int:
    return spawn(["/bin/sh", "-c", text], log)


def test_it_runs_apart_with_its_output_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("what was there before is gone")
    with socket.socket() as inherited:
        inherited.set_inheritable(True)
        pid = shell("ls -l /proc/$$/fd; echo $LC_ALL; read x; echo read $?; echo oops >&2; sleep 60", log)
        eventually(lambda: "oops" in log.read_text(), "its output")
    text = log.read_text()
    assert "socket:" not in text
    assert text.splitlines()[-3:] == ["C", "read 1", "oops"]
    assert os.getsid(pid) == pid
    assert running(pid)
    assert not ended(pid, 0.05)
    os.kill(pid, signal.SIGTERM)
    assert ended(pid, 30)


def test_it_ignores_no_signal_and_blocks_none(tmp_path: Path) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        # The shell's own mask is no measure: it blocks signals while it starts a command.
        pid = shell("exec grep -E 'Sig(Blk|Ign)' /proc/self/status", tmp_path / "log")
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    assert ended(pid, 30)
    blocked, ignored = (int(line.split()[1], 16) for line in (tmp_path / "log").read_text().splitlines())
    assert not blocked & 1 << (signal.SIGUSR1 - 1)
    assert not ignored & (1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1))


def test_a_child_is_collected_when_it_is_looked_at(tmp_path: Path) -> None:
    pid = shell("exit 3", tmp_path / "log")
    eventually(lambda: not running(pid), "its end")
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    assert not running(pid)


def test_a_zombie_of_another_parent_does_not_run() -> None:
    code = "import os, sys; print(os.posix_spawn('/bin/true', ['true'], {}), flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        zombie = int(parent.stdout.readline())
        eventually(lambda: not running(zombie), "its end")
        assert Path(f"/proc/{zombie}").exists()
        assert running(parent.pid)
        parent.communicate()


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        spawn(["/no/such/program"], tmp_path / "log")
