"""Child processes that never outlive their parent: Linux's means for it, through libc.

Nothing here is needed for serving; `lb demo` uses it to leave nothing behind.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _prctl() -> Callable[[int, int], int] | None:
    """The `prctl` of libc, or None on a system without it."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if function is None:
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
    return lambda option, value: int(function(option, value, 0, 0, 0))


def child_setup(mask: AbstractSet[int], number: int = signal.SIGTERM) -> Callable[[], None]:
    """What a child does between fork and exec (`subprocess.Popen(preexec_fn=…)`).

    It restores the signal mask `mask` and asks the kernel for the signal `number` should its parent die,
    even by kill -9. The parent must start it from a thread that lives as long as itself.
    """
    prctl = _prctl()  # looked up here: a fork may do little that allocates
    parent = os.getpid()

    def setup() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, number)
            if os.getppid() != parent:  # it died before we could ask
                os._exit(1)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    return setup


def adopt_orphans() -> None:
    """Make this process the parent of every descendant that loses its own."""
    prctl = _prctl()
    if prctl is not None:
        prctl(_PR_SET_CHILD_SUBREAPER, 1)


def children() -> list[int]:
    """The process ids of this process's children, adopted ones and zombies included; [] without /proc."""
    found: list[int] = []
    for path in Path("/proc/self/task").glob("*/children"):
        try:
            found += map(int, path.read_text().split())
        except OSError:
            continue
    return found
