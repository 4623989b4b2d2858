"""Opening connections to backends; and connections for worker classes with threads.

`ThreadConn` does what a `Conn` does with a blocking socket and timeouts.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable
from typing import Any

from lb.proxy.conn import NEVER, Conn, RawSocket, Reactor

Address = tuple[int, Any]
"""(address family, what `connect` takes)."""


class ThreadConn:
    """A blocking socket with a timeout, for worker classes whose requests run in threads."""

    __slots__ = ("__weakref__", "_timeout", "idle", "idle_since", "sock")

    def __init__(self, sock: RawSocket) -> None:
        self.sock = sock
        self.idle: Callable[[], None] | None = None
        self._timeout = NEVER

    @property
    def timeout(self) -> float:
        """Seconds that each single call may block."""
        return self._timeout

    @timeout.setter
    def timeout(self, value: float) -> None:
        self._timeout = value
        self.sock.settimeout(None if value == NEVER else value)

    def recv(self, size: int) -> bytes:
        """Read up to `size` bytes; b"" is the end of the stream."""
        return self.sock.recv(size)

    def recv_into(self, buffer: memoryview) -> int:
        """Like `recv`, into `buffer`."""
        return self.sock.recv_into(buffer)

    def sendall(self, data: bytes | memoryview) -> bool:
        """Send everything. Whether it had to wait it cannot tell: False."""
        self.sock.sendall(data)
        return False

    def readable(self) -> bool:
        """Has something arrived that nobody has read yet (the end of the stream counts)?"""
        # Not recv with MSG_DONTWAIT: a socket with a timeout waits for that long before it calls recv.
        poll = select.poll()
        poll.register(self.sock.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()


def connect(reactor: Reactor | None, address: Address, timeout: float) -> Conn | ThreadConn:
    """Open a connection within `timeout` seconds. Raises OSError, TimeoutError included.

    With a reactor the calling greenlet waits, without one the calling thread does.
    """
    family, target = address
    sock = RawSocket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if reactor is None:
            sock.settimeout(timeout)
            sock.connect(target)
            return ThreadConn(sock)
        sock.setblocking(False)
        pending = sock.connect_ex(target)
        # EAGAIN is no such case: a unix socket's queue is full, and nothing goes on that could be waited for.
        if pending and pending != errno.EINPROGRESS:
            raise OSError(pending, os.strerror(pending))
    except BaseException:
        sock.close()
        raise
    conn = Conn(reactor, sock)
    if pending:
        try:
            conn.timeout = timeout
            conn.wait_writable()
            failed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if failed:
                raise OSError(failed, os.strerror(failed))
        except BaseException:
            conn.close()
            raise
    conn.deadline = NEVER
    return conn
