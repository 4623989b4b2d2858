"""Real processes for tests: started, waited for by a condition, always ended by their id."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

PATIENCE = 30.0
"""How long a condition may take on a busy machine, in seconds."""

UNDER_TEST = str(Path(os.environ.get("PYTHON_UNDER_TEST") or sys.executable).absolute())
"""The interpreter of balancers and other programs that tests start: where the variable names one, that of an
installation, as of one whose hot path is compiled."""

ROOT = Path(__file__).parents[2]


def program(module: str, *arguments: str) -> tuple[str, ...]:
    """The command that runs a module of the project; see `place`."""
    return (UNDER_TEST, "-m", module, *arguments)


def place(folder: Path) -> Path:
    """Where it is started. Python looks for modules there first: in this source tree, or else not in any."""
    return ROOT if sys.executable == UNDER_TEST else folder


def eventually(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Wait until `condition` holds; fail saying `what` was waited for when it did not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain for {what}"
        time.sleep(0.02)


def clean_env(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without anything that configures `lb`, plus `extra`."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("LB_")}
    return env | {"NO_COLOR": "1"} | dict(extra or {})


@contextlib.contextmanager
def free_port() -> Iterator[int]:
    """A port of 127.0.0.1 that stays bound, so that nobody else takes it, but may be bound again."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        yield int(sock.getsockname()[1])


class Process:
    """A child with its output in files; `end` is what every test does at its end.

    `stdout`: where its standard output goes instead, a descriptor.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *arguments: str,
        env: Mapping[str, str],
        cwd: Path,
        stdout: int | None = None,
    ) -> None:
        self.out_path, self.err_path = folder / f"{name}.out", folder / f"{name}.err"
        with self.out_path.open("wb") as out, self.err_path.open("wb") as err:
            self.process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=out if stdout is None else stdout,
                stderr=err,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def out(self) -> str:
        """What it has printed so far."""
        return self.out_path.read_text(errors="replace")

    @property
    def err(self) -> str:
        """What it has printed on stderr so far."""
        return self.err_path.read_text(errors="replace")

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for a condition, but not beyond the end of the process."""

        def check() -> object:
            if found := condition():
                return found
            assert self.process.poll() is None, f"ended with {self.process.poll()}: {self.out}\n{self.err}"
            return False

        eventually(check, what)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self, seconds: float = PATIENCE) -> int:
        """Its exit status, once it has ended."""
        return self.process.wait(seconds)

    def end(self) -> int:
        """TERM, and if that is not enough KILL for it and all its descendants."""
        if self.process.poll() is None:
            family = descendants(self.pid)
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                for pid in [self.pid, *family, *descendants(self.pid)]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        return self.process.wait(PATIENCE)


def python(folder: Path, name: str, *arguments: str, env: Mapping[str, str] | None = None) -> Process:
    """Start this Python with `arguments` in `folder`, with nothing else that configures `lb`."""
    return Process(folder, name, sys.executable, *arguments, env=env or clean_env(), cwd=folder)


def alive(pid: int) -> bool:
    """Is there such a process, and is it more than a zombie?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def descendants(pid: int) -> set[int]:
    """The process ids of all children, their children, and so on, that live now."""
    found: set[int] = set()
    todo = [pid]
    while todo:
        for path in Path(f"/proc/{todo.pop()}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                new = {int(word) for word in path.read_text().split()} - found
                found |= new
                todo += new
    return found
