"""Opening connections to backends; and connections for worker classes with threads.

`ThreadConn` does what a `Conn` does with a blocking socket and timeouts.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
from collections.abc import Callable
from time import monotonic
from typing import Any

from lb.proxy.conn import NEVER, Conn, RawSocket, Reactor
from lb.proxy.tls import TlsConn

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


class TlsThreadConn(ThreadConn):
    """The same with TLS. An end that was not announced is an `ssl.SSLEOFError`, see `lb.proxy.tls`."""

    __slots__ = ("_ahead", "_tls")

    def __init__(self, sock: ssl.SSLSocket) -> None:
        super().__init__(sock)
        self._tls = sock
        #: Read to find out whether there is any.
        self._ahead = b""

    @property
    def session(self) -> Any:
        """What a later connection to the same server may take up."""
        return self._tls.session

    @property
    def resumed(self) -> bool:
        """Was the session of an earlier connection taken up?"""
        return bool(self._tls.session_reused)

    def recv(self, size: int) -> bytes:
        """Read up to `size` bytes; b"" is the end of the stream."""
        ahead, self._ahead = self._ahead, b""
        return ahead or self._tls.recv(size)

    def recv_into(self, buffer: memoryview) -> int:
        """Like `recv`, into `buffer`."""
        ahead, self._ahead = self._ahead, b""
        if ahead:
            buffer[:1] = ahead
            return 1
        return self._tls.recv_into(buffer)

    def readable(self) -> bool:
        """Has data, the end or an error arrived? What TLS itself has to say (tickets, new keys) is none."""
        if self._ahead or self._tls.pending():
            return True
        if not super().readable():
            return False
        self._tls.settimeout(0)
        try:
            self._ahead = self._tls.recv(1)
        except ssl.SSLWantReadError:
            return False
        except OSError:
            pass
        finally:
            self.timeout = self.timeout
        return True


def connect(
    reactor: Reactor | None,
    address: Address,
    timeout: float,
    tls: ssl.SSLContext | None = None,
    name: str = "",
    session: Any = None,
) -> Conn | ThreadConn:
    """Open a connection within `timeout` seconds. Raises OSError, TimeoutError included.

    With `tls` the handshake is a part of it: `name` is asked for (SNI) and verified, `session` taken up if
    the other side still knows it; an ssl.SSLError says that it was this that failed. With a reactor the
    calling greenlet waits, without one the calling thread does.
    """
    until = monotonic() + timeout
    family, target = address
    sock = RawSocket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if reactor is not None and sock.fileno() >= reactor.last_number:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if reactor is None:
            sock.settimeout(timeout)
            sock.connect(target)
            return ThreadConn(sock) if tls is None else _secure(sock, until, tls, name, session)
        sock.setblocking(False)
        pending = sock.connect_ex(target)
        # EAGAIN is no such case: a unix socket's queue is full, and nothing goes on that could be waited for.
        if pending and pending != errno.EINPROGRESS:
            raise OSError(pending, os.strerror(pending))
        if tls is None:
            conn = Conn(reactor, sock)
        else:
            # Plain at first: what the socket has to tell before it is connected is nothing for TLS.
            conn = TlsConn(reactor, sock, tls, name, session, server=False, plain=True)
    except BaseException:
        sock.close()
        raise
    try:
        if pending:
            conn.timeout = timeout
            conn.wait_writable()
            failed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if failed:
                raise OSError(failed, os.strerror(failed))
        if isinstance(conn, TlsConn):
            conn.start(b"")
            conn.handshake(until)
    except BaseException:
        conn.close()
        raise
    conn.deadline = NEVER
    return conn


def _secure(sock: RawSocket, until: float, tls: ssl.SSLContext, name: str, session: Any) -> TlsThreadConn:
    name.encode("idna")  # what `wrap_socket` would fail with only after it has taken the descriptor
    plain = socket.socket(fileno=sock.detach())
    try:
        secure = tls.wrap_socket(
            plain,
            server_hostname=name,
            session=session,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )
    except BaseException:
        plain.close()
        raise
    try:
        secure.settimeout(max(until - monotonic(), 0.001))
        secure.do_handshake()
    except BaseException:
        secure.close()
        raise
    return TlsThreadConn(secure)
