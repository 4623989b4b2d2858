"""Backends as a worker reaches them: where they are, and the connections it keeps to them."""

from __future__ import annotations

import errno
import ipaddress
import socket
import ssl
from collections.abc import Callable
from time import monotonic
from typing import Any
from urllib.parse import unquote, urlsplit

from lb.errors import ConnectFailed, ConnectTimeout, Overloaded, TlsFailed
from lb.proxy.conn import NEVER, OUT_OF, Conn, Reactor
from lb.proxy.dial import Address, ThreadConn, TlsThreadConn, connect
from lb.proxy.fields import ResponseHead
from lb.proxy.tls import TlsConn

_OURS = (errno.EADDRNOTAVAIL, errno.EADDRINUSE)
"""What a connection fails with for want of a port on this machine."""

RESOLVE_FOR = 10.0
"""Seconds for which a backend's host name is not looked up again."""


class Upstream:
    """One backend's address and its kept-alive connections in this worker.

    `max_idle` connections at most are kept, each for `idle_timeout` seconds; the one used last is used
    next, so that those a quieter time does not need run out.
    """

    def __init__(
        self,
        url: str,
        reactor: Reactor | None,
        max_idle: int = 256,
        idle_timeout: float = 30.0,
        tls: ssl.SSLContext | None = None,
        server_name: str = "",
    ) -> None:
        """`tls` is for `https://` URLs; `server_name` is asked for in place of the URL's host."""
        self.url = url
        #: `send` of the adapter that serves this backend.
        self.send: Callable[..., Any] = _no_adapter
        #: The head of its last answer. What is asked for often is answered by the same head for a second.
        self.known: ResponseHead | None = None
        self._reactor = reactor
        self._max_idle = max_idle
        self._idle_timeout = idle_timeout
        self._idle: list[Conn | ThreadConn] = []
        self._idle_since: dict[int, float] = {}
        self._addresses: list[Address] = []
        self._resolved_at = -RESOLVE_FOR
        parts = urlsplit(url)
        self._path = unquote(parts.netloc) if parts.scheme == "http+unix" else ""
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        if parts.scheme == "https" and tls is None:
            raise ValueError(f"{url}: there is no TLS to reach it with")
        self._tls = tls if parts.scheme == "https" else None
        self._name = (server_name or self._host).rstrip(".")
        #: Of an earlier connection, for the next one to take up.
        self._session: Any = None
        self._literal = bool(self._path) or _is_literal(self._host)

    @property
    def idle(self) -> int:
        """How many connections wait for use."""
        return len(self._idle)

    def checkout(self) -> Conn | ThreadConn | None:
        """An idle connection, or None."""
        idle = self._idle
        while idle:
            conn = idle.pop()
            if isinstance(conn, Conn):
                if conn.closed:
                    continue
                conn.idle = None
                conn.deadline = NEVER
                return conn
            if monotonic() - self._idle_since.pop(id(conn), 0.0) < self._idle_timeout and not conn.readable():
                return conn
            conn.close()
        return None

    def checkin(self, conn: Conn | ThreadConn) -> None:
        """Keep `conn` for the next request, or close it."""
        if self._tls is not None and self._session is None and isinstance(conn, TlsConn | TlsThreadConn):
            self._session = conn.session  # TLS 1.3 has one only after the handshake
        if len(self._idle) >= self._max_idle or self._idle_timeout <= 0:
            conn.close()
            return
        if isinstance(conn, Conn):
            if conn.readable():
                if went_away(conn):
                    conn.close()
                    return
                conn.arm()  # something had arrived while nobody waited, and was read without a wait
            conn.idle = conn.close
            conn.deadline = conn.reactor.now + self._idle_timeout
        else:
            self._idle_since[id(conn)] = monotonic()
        self._idle.append(conn)

    def accepts(self, timeout: float) -> bool | None:
        """Does it accept a connection within `timeout` seconds? That is closed at once, without a word, also
        where TLS would be spoken. None: for want of something here nobody can say.
        """
        try:
            self.connect(timeout, plain=True).close()
        except Overloaded:
            return None
        except ConnectFailed as exc:
            return None if exc.local else False
        return True

    def connect(self, timeout: float, plain: bool = False) -> Conn | ThreadConn:
        """A fresh connection, tried at each address of the host; a `plain` one without TLS.

        Raises ConnectFailed, and of its kinds ConnectTimeout and TlsFailed; and Overloaded when it is this
        process that has no room for a socket, for which no backend is to blame.
        """
        failure: Exception = OSError("the name has no address")
        try:
            addresses = self._resolve()
        except OSError as exc:
            raise ConnectFailed(f"{self.url}: cannot look up the name: {exc}") from None
        until = monotonic() + timeout
        for address in addresses:
            try:
                return self._open(address, max(until - monotonic(), 0.001), plain)
            except (OSError, ValueError) as exc:  # ValueError: the host can be no name on a certificate
                failure = exc
                if isinstance(exc, OSError) and exc.errno in OUT_OF:
                    if self._reactor is not None:
                        self._reactor.starved = True
                    raise Overloaded(f"no connection to {self.url}: {exc.strerror}") from None
                self._resolved_at = -RESOLVE_FOR
        if isinstance(failure, ssl.SSLError):
            raise TlsFailed(f"{self.url}: {_words(failure)}")
        if isinstance(failure, TimeoutError):
            raise ConnectTimeout(f"{self.url}: no connection within {timeout:g} s")
        words = failure.strerror if isinstance(failure, OSError) else failure
        failed = ConnectFailed(f"{self.url}: {words}")
        failed.local = isinstance(failure, OSError) and failure.errno in _OURS
        raise failed

    def _open(self, address: Address, timeout: float, plain: bool) -> Conn | ThreadConn:
        if self._tls is None or plain:
            return connect(self._reactor, address, timeout)
        conn = connect(self._reactor, address, timeout, self._tls, self._name, self._session)
        if isinstance(conn, TlsConn | TlsThreadConn) and not conn.resumed:
            self._session = None
        return conn

    def _resolve(self) -> list[Address]:
        now = monotonic()
        if self._addresses and (self._literal or now - self._resolved_at < RESOLVE_FOR):
            return self._addresses
        if self._path:
            self._addresses = [(socket.AF_UNIX, self._path)]
        else:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            self._addresses = [(int(family), target) for family, _, _, _, target in found]
        self._resolved_at = now
        return self._addresses

    def close(self) -> None:
        """Close the idle connections; those in use are closed when they come back."""
        self._max_idle = 0
        idle, self._idle = self._idle, []
        for conn in idle:
            conn.close()


def _no_adapter(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("this upstream was not mounted")


def _words(failure: ssl.SSLError) -> str:
    if isinstance(failure, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {failure.verify_message}"
    return f"no TLS: {failure.reason or failure}"


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def went_away(conn: Conn | ThreadConn) -> bool:
    """Has the other side closed this idle connection, or said what nobody asked for? A system call."""
    if isinstance(conn, ThreadConn):
        return conn.readable()
    if isinstance(conn, TlsConn):
        return conn.arrived()
    try:
        conn.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True  # the end of the stream, or an answer to nothing
