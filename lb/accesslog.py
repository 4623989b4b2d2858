"""The access log: one JSON object a line, written in batches.

A request costs the making of one `Entry`; encoding and writing are done for many at once, a few times a
second. JSON escapes whatever a client puts into a target or a header, so no request can forge a line.
When the destination cannot be written (disk full, a pipe nobody reads) serving goes on: entries are
dropped and counted, and the error log says so once.
"""

from __future__ import annotations

import logging
import os
import select
import stat
import sys
import threading
from time import monotonic, sleep
from typing import Any

import msgspec

_LOG = logging.getLogger("lb")


class Entry(msgspec.Struct, omit_defaults=True, gc=False):
    """One request. Times in seconds: `time` of its coming, since the epoch; `duration` till the answer's end.

    `code` says in one stable word why the balancer answered itself (see `lb.errors`); `tried` lists backends
    that failed before `backend` answered; `upstream` is the time until the head of its answer, `queued` what
    of that the request waited in the pool's queue.
    """

    time: float
    id: str
    client: str
    method: str
    host: str
    target: str
    status: int = 0
    bytes: int = 0
    duration: float = 0.0
    pool: str = ""
    backend: str = ""
    upstream: float = 0.0
    tried: tuple[str, ...] = ()
    code: str = ""
    queued: float = 0.0


class AccessLog:
    """Entries on their way to `destination`: "-" standard output, "" nowhere, else a path.

    `add` is cheap; `flush` must be called every now and then, and before the process ends.
    """

    MAX_PENDING = 50_000
    """Entries kept at most while the destination does not take them."""

    def __init__(self, destination: str) -> None:
        self.destination = destination
        self.dropped = 0
        self._pending: list[Entry] = []
        self._rest = b""
        self._failing = False
        #: Does what was written last end within a line, whose rest is lost?
        self._torn = False
        self._encoder = msgspec.json.Encoder()
        self._fd = -1
        # Under threads the last flush, at the end of the process, waits for one that is under way.
        self._writing = threading.Lock()
        #: Bytes in one write at most; 0: any number.
        self._at_once = 0
        #: Takes an entry; a bound method of a list, so that a request pays for no frame.
        self.add = self._pending.append
        if not destination:
            self.add = _ignore
        else:
            self.reopen()

    def reopen(self) -> None:
        """Open the file anew, after it was rotated. Raises OSError."""
        if not self.destination:
            return
        if self.destination == "-":
            if self._fd < 0:
                self._fd = _own_stdout()
                self._at_once = 0 if stat.S_ISREG(os.fstat(self._fd).st_mode) else select.PIPE_BUF
            return
        fd = os.open(self.destination, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._torn = False

    def flush(self) -> None:
        """Write what has gathered. Never raises for the destination's faults."""
        with self._writing:
            self._flush()

    def _flush(self) -> None:
        if not self._pending and not self._rest:
            return
        # The list stays the same object: `add` is bound to it. Other threads may add to it meanwhile.
        entries = self._pending[:]
        del self._pending[: len(entries)]
        data = (b"\n" if self._torn else b"") + self._rest + self._encoder.encode_lines(entries)
        self._rest = b""
        torn = self._torn
        try:
            while data:
                size = os.write(self._fd, self._next(data))
                torn, data = data[size - 1 : size] != b"\n", data[size:]
        except BlockingIOError:
            self._torn = False
            self._keep(data)
            return
        except OSError as exc:
            self._torn = torn  # a disk that is nearly full takes a part
            self._lose(data, str(exc))
            return
        self._torn = False
        if self._failing:
            _LOG.warning("access log %s works again; %d lines were lost", self.destination, self.dropped)
            self._failing = False

    def finish(self, seconds: float = 1.0) -> None:
        """Write the rest before the process ends, waiting so long at most for whoever reads a pipe."""
        until = monotonic() + seconds
        self.flush()
        while self._rest and monotonic() < until:
            sleep(0.01)
            self.flush()

    def _next(self, data: bytes) -> bytes:
        """What of `data` to write at once.

        Workers share standard output: what is longer than PIPE_BUF would be torn apart by what others write
        into the same pipe. So many bytes at most, in whole lines; a longer line goes alone, at that risk.
        """
        most = self._at_once
        if not most or len(data) <= most:
            return data
        return data[: data.rfind(b"\n", 0, most) + 1 or data.find(b"\n") + 1]

    def _keep(self, data: bytes) -> None:
        """A pipe that is full: keep what is left for the next time, up to a bound."""
        if data.count(b"\n") > self.MAX_PENDING:
            self._lose(data, "nobody reads it")
            data = b""
        self._rest = data

    def _lose(self, data: bytes, why: str) -> None:
        self.dropped += data.count(b"\n") - data.startswith(b"\n")
        if not self._failing:
            _LOG.error("access log %s: %s; lines are lost until it takes them again", self.destination, why)
        self._failing = True


def _own_stdout() -> int:
    """Standard output, opened anew so that writes do not block on a pipe that nobody reads.

    Setting the flag on the descriptor itself would set it for everybody who shares it. Where it cannot be
    opened anew (a socket, another user's terminal) it is used as it is.
    """
    fd = sys.stdout.fileno()
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return fd


def _ignore(entry: Any) -> None:
    """No access log is wanted."""
