"""A process that outlives the one that starts it, and is nobody's in particular.

The master that starts the store, gunicorn's code in that master, a later master and init may each find
themselves its parent, so nothing here relies on being that.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any

PAUSE = 0.02
"""Seconds between two looks at what is waited for."""

# Python ignores these in itself, and a child would go on ignoring them.
_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)


def spawn(command: list[str], log: Path) -> int:
    """Start `command` (its first word is a path) with its output in `log`; return its process id.

    It gets a session of its own, so that Ctrl-C does not reach it, and no descriptor of ours: gunicorn's
    listeners are inheritable. Not by `subprocess`, which gevent replaces by one that needs its loop to run
    and would collect the process. Raises OSError.
    """
    actions: list[tuple[Any, ...]] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    for entry in list(Path("/dev/fd").iterdir()):
        fd = int(entry.name)
        if fd > 2 and _inheritable(fd):
            actions.append((os.POSIX_SPAWN_CLOSE, fd))
    # LC_ALL: scripts compare names, and shall do so as the sorted sets do, by bytes.
    environ = {**os.environ, "LC_ALL": "C"}
    pid: int = _original("posix_spawn")(
        command[0],
        command,
        environ,
        file_actions=actions,
        setsid=True,
        setsigmask=(),
        setsigdef=_IGNORED,
    )
    return pid


def running(pid: int) -> bool:
    """Is the process there, and more than a zombie?"""
    _collect(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return not Path("/proc/self").exists()
    if state == b"Z":  # it may have ended since it was last looked at
        _collect(pid)
    return state not in (b"Z", b"X")


def _collect(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        _original("waitpid")(pid, os.WNOHANG)


def ended(pid: int, timeout: float) -> bool:
    """Wait up to `timeout` seconds for the process to end; did it?"""
    deadline = monotonic() + timeout
    while running(pid):
        if monotonic() > deadline:
            return False
        sleep(PAUSE)
    return True


def _inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:  # closed meanwhile: the one by which the directory was read
        return False


def _original(name: str) -> Callable[..., Any]:
    """A function of `os` as it is without gevent."""
    monkey: Any = sys.modules.get("gevent.monkey")
    found: Callable[..., Any] = monkey.get_original("os", name) if monkey else getattr(os, name)
    return found
