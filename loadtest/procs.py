"""Child processes of a load test: pinned, logged to files, waited for, and always stopped.

Rules of this module:

* every child is the leader of a session of its own, so that a Ctrl-C reaches only the
  test, which then ends its children in order;
* a child is ended by its process id; what it started itself is looked up before, so that
  nothing outlives it;
* readiness is a condition that is polled until a deadline, never a sleep.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Self

import psutil

POLL_SECONDS = 0.02
"""Pause between two looks at a condition, in seconds."""

READY_SECONDS = 30.0
"""How long a server may take until it answers, in seconds."""

STOP_SECONDS = 15.0
"""How long a server may take to end after SIGTERM before it is killed, in seconds."""


class NotReadyError(RuntimeError):
    """A child ended, or did not answer, before it was ready. The message carries its output."""


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return `count` different TCP ports that were free on `host` a moment ago."""
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        for _ in range(count):
            sock = held.enter_context(socket.socket())
            sock.bind((host, 0))
            ports.append(int(sock.getsockname()[1]))
        return ports


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll `condition` for up to `seconds`; return whether it became true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


@contextlib.contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Pin this thread to `core` for the block: a child started in it inherits that.

    Cheaper and safer than a `preexec_fn`, and there is no moment in which the child runs
    unpinned and starts threads elsewhere.
    """
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def pin_tree(pid: int, core: int) -> None:
    """Pin every thread of process `pid` to `core`. A process that has ended is ignored."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), {core})


@dataclass(frozen=True)
class Child:
    """One started process and the file that takes its standard output and error."""

    name: str
    process: subprocess.Popen[bytes]
    output: Path

    @property
    def pid(self) -> int:
        """Process id, and that of its session."""
        return self.process.pid

    def family(self) -> list[psutil.Process]:
        """The process and everything below it or in its session, as of now."""
        found: dict[int, psutil.Process] = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.pid)
            found = {process.pid: process for process in [parent, *parent.children(recursive=True)]}
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(process.pid) == self.pid:
                    found.setdefault(process.pid, process)
        return list(found.values())

    def tail(self, lines: int = 15) -> str:
        """The last `lines` lines of what the process printed."""
        return "\n".join(self.output.read_text(errors="replace").splitlines()[-lines:])

    def require(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for `condition`; raise `NotReadyError` when the child ends or time is up."""

        def done() -> bool:
            return self.process.poll() is not None or condition()

        if not wait_until(done, READY_SECONDS):
            raise NotReadyError(f"{self.name}: no {what} within {READY_SECONDS:.0f} s\n{self.tail()}")
        if (code := self.process.poll()) is not None:
            raise NotReadyError(f"{self.name}: ended with code {code} before {what}\n{self.tail()}")

    def ended_within(self, seconds: float) -> bool:
        """Wait for the process to end by itself for up to `seconds`; return whether it did."""
        return wait_until(lambda: self.process.poll() is not None, seconds)

    def stop(self) -> bool:
        """End the process and what it started; return whether it went without being killed."""
        family = self.family()
        gracefully = True
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                gracefully = False
                self.process.kill()
                self.process.wait()
        _, left = psutil.wait_procs(family, timeout=2.0)
        for process in left:
            gracefully = False
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return gracefully


class Children:
    """Starts processes whose output goes to files in one folder; ends all of them on exit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        core: int | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Child:
        """Start `argv`, pinned to `core`. `env` is its whole environment, by default this process's."""
        output = self.folder / f"{name}.out"
        # Appending, because the file may be emptied while the process writes.
        with output.open("ab") as sink, on_core(core):
            process = subprocess.Popen(
                [str(arg) for arg in argv],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=cwd or self.folder,
                start_new_session=True,
            )
        child = Child(name, process, output)
        self._children.append(child)
        return child

    def stop(self) -> list[str]:
        """End all, the last started first; return the names of those that had to be killed."""
        killed: list[str] = []
        with _deaf():
            while self._children:
                child = self._children.pop()
                if not child.stop():
                    killed.append(child.name)
        return killed


def answers(port: int, path: str = "/", host: str = "127.0.0.1") -> bool:
    """Whether a GET of `path` on `port` is answered with a 2xx status."""
    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode()
    try:
        with socket.create_connection((host, port), timeout=2.0) as sock:
            sock.sendall(request)
            return sock.recv(64).startswith(b"HTTP/1.1 2")
    except OSError:
        return False


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _deaf() -> contextlib.AbstractContextManager[None]:
    """A second Ctrl-C, while the children are being ended, must not leave some of them running."""
    return _handled(signal.SIG_IGN)


def interrupted_by_signals() -> contextlib.AbstractContextManager[None]:
    """Within the block SIGTERM and SIGHUP are like Ctrl-C, so that the children are ended then too."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    return _handled(interrupt)
