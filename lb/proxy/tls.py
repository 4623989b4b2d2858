"""A connection of a greenlet that speaks TLS, on either side.

The records pass through two buffers in memory (`SSLContext.wrap_bio`), so a wait is the same as without TLS,
costs no further system calls, and works with contexts that were made before gevent patched `ssl`. The
handshake happens when somebody first reads: an accepted connection needs no greenlet for it.

TLS sends what is no data of ours (session tickets, new keys) whenever it likes. So what arrives while nobody
reads is decrypted first, and told of only when data, the end or an error was in it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import ssl
from time import monotonic
from typing import Any

from lb.proxy.conn import NEVER, WRITE, Conn, RawSocket, Reactor

_LOG = logging.getLogger("lb")

PIECE = 32768
"""Bytes that are read from the socket, or encrypted, at once: both buffers keep the largest size they had."""

MOST_UNSENT = 262144
"""Bytes that may wait for a peer that makes us answer (new keys) and does not read."""

_PLAIN_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 40\r\nConnection: close\r\n\r\n"
    b"plain HTTP was sent to a port for HTTPS\n"
)


class TlsConn(Conn):
    """A `Conn` with TLS. Its faults are OSErrors like others; those of the handshake are `ssl.SSLError`s.

    An end of the stream that was not announced (RFC 8446, section 6.1) is a ConnectionResetError: somebody
    else may have cut it (RFC 9112, section 9.8).
    """

    __slots__ = (
        "_ahead",
        "_ended",
        "_ending",
        "_fault",
        "_incoming",
        "_outgoing",
        "_plain",
        "_ready",
        "_server",
        "_silent",
        "_tls",
        "_told",
        "_unsent",
    )

    def __init__(
        self,
        reactor: Reactor,
        sock: RawSocket,
        context: ssl.SSLContext,
        name: str | None = None,
        session: Any = None,
        server: bool = True,
        plain: bool = False,
    ) -> None:
        """`name` is asked for (SNI) and verified, of a server. `plain`: no TLS until `start` is called."""
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls: Any = context.wrap_bio(self._incoming, self._outgoing, server, name, session)
        self._server = server
        self._plain = plain
        #: Is the handshake over?
        self._ready = False
        #: Decrypted before somebody asked for it: one read at most.
        self._ahead = b""
        #: Encrypted, and not taken by the socket yet; what is in `_outgoing` comes after it.
        self._unsent = b""
        #: Has the other side said that it sends no more?
        self._ended = False
        #: Do we end our sending half as soon as everything is sent?
        self._ending = False
        #: Is the end not to be announced?
        self._silent = False
        self._fault: OSError | None = None
        #: Will the hub be told of what is left here?
        self._told = False
        super().__init__(reactor, sock)

    @property
    def protocol(self) -> str:
        """The protocol that was agreed on (ALPN); "" until the handshake is over, too."""
        return (self._tls.selected_alpn_protocol() or "") if self._ready else ""

    @property
    def session(self) -> Any:
        """What a later connection to the same server may take up; None when there is nothing."""
        return self._tls.session if self._ready else None

    def start(self, data: bytes) -> None:
        """From here on it is TLS; `data` was read already and belongs to it."""
        self._plain = False
        if data:
            self._incoming.write(data)

    @property
    def resumed(self) -> bool:
        """Was the session of an earlier connection taken up?"""
        return bool(self._tls.session_reused)

    def handshake(self, until: float = NEVER) -> None:
        """Wait until the handshake is over, at most until then (by `monotonic`).

        Raises OSError; ssl.SSLError when it was the handshake that failed.
        """
        while not self._ready:
            try:
                self._shake()
            except BlockingIOError:
                self.timeout = max(until - monotonic(), 0.001)
                self.wait_readable()

    def _shake(self) -> None:
        """Go on with the handshake. Raises BlockingIOError while it needs more of the other side."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
                continue
            except ssl.SSLError as exc:
                self._refuse(exc)
                raise
            self._ready = True
            self._flush()
            return

    def _refuse(self, exc: ssl.SSLError) -> None:
        """The handshake failed: tell the other side why, as far as TLS has words for it."""
        self._fault = exc
        with contextlib.suppress(OSError):
            if self._server and exc.reason == "HTTP_REQUEST":
                self.sock.send(_PLAIN_HTTP)
            else:
                self._flush()
        if self._server:
            _LOG.debug("a TLS handshake failed: %s", exc.reason or exc)

    def _fill(self) -> None:
        """Read from the socket. Raises BlockingIOError when there is nothing."""
        if self._incoming.eof or len(self._unsent) + self._outgoing.pending > MOST_UNSENT:
            self._fault = ConnectionResetError(errno.ECONNRESET, "the TLS connection broke")
            raise self._fault
        try:
            data = self.sock.recv(PIECE)
        except BlockingIOError:
            raise
        except OSError as exc:
            self._fault = exc
            raise
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _flush(self) -> bool:
        """Send what was encrypted; is all of it sent? If not, it goes on when the socket takes more."""
        outgoing = self._outgoing
        while self._unsent or outgoing.pending:
            if not self._unsent:
                self._unsent = outgoing.read()
            try:
                sent = self.sock.send(self._unsent)
            except BlockingIOError:
                if self.writer is None and self._read_io is not None:
                    if self._write_io is None:
                        self._write_io = self.reactor.loop.io(self.sock.fileno(), WRITE)
                    self._write_io.start(self._on_writable)
                return False
            except OSError:
                self._unsent = b""
                raise
            self._unsent = self._unsent[sent:]
        if self._ending:
            self._ending = False
            self.sock.shutdown(socket.SHUT_WR)
        return True

    def _on_writable(self) -> None:
        if self.writer is not None:
            super()._on_writable()
            return
        done = True
        with contextlib.suppress(OSError):  # whoever sends or reads next is told
            done = self._flush()
        if done:
            self._write_io.stop()

    def _on_readable(self) -> None:
        if self.closed or (self.reader is None and not self.arrived()):
            return
        super()._on_readable()

    def arrived(self) -> bool:
        """Is there data, the end or an error for whoever reads next?"""
        if self._plain or self._ahead or self._ended or self._fault is not None:
            return True
        try:
            self._ahead = self._read(PIECE, None)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def _read(self, size: int, buffer: memoryview | None) -> Any:
        """Up to `size` bytes, or their number when they go into `buffer`; b"" or 0 is the end.

        Raises BlockingIOError when there is nothing.
        """
        if self._plain:
            return self.sock.recv(size) if buffer is None else self.sock.recv_into(buffer)
        got: Any = b"" if buffer is None else 0
        while True:
            fault = self._fault
            if fault is not None:
                raise fault
            if self._ended:
                return got
            try:
                if not self._ready:
                    self._shake()
                got = self._tls.read(size) if buffer is None else self._tls.read(size, buffer)
            except ssl.SSLWantReadError:
                self._answer()
                self._fill()
                continue
            except ssl.SSLZeroReturnError:  # we have ended our half before
                pass
            except ssl.SSLError as exc:
                fault = self._fault = self._fault or _reset(exc)
                self._answer()
                raise fault from None
            self._answer()
            if not got:
                self._ended = True
            return got

    def _answer(self) -> None:
        """Send what TLS has to say by itself."""
        if self._outgoing.pending:
            with contextlib.suppress(OSError):  # no reason not to read what has come
                self._flush()

    def take(self, size: int) -> bytes:
        """As of a `Conn`. Raises BlockingIOError also while the handshake is under way."""
        data = self._ahead
        if data:
            self._ahead = data[size:]
            data = data[:size]
        else:
            data = self._read(size, None)
        if not self._told and (self._ahead or self._incoming.pending):
            # The kernel would tell again of what it still had.
            self._told = True
            self.reactor.loop.run_callback(self._tell)
        return data

    def _tell(self) -> None:
        self._told = False
        if self.reader is None:
            self._on_readable()

    def readable(self) -> bool:
        """Has something arrived that nobody has read yet (the end of the stream counts)?"""
        if not self._armed or self._ended or self._fault is not None:
            return True
        return self.pending() and self.arrived()

    def arm(self) -> None:
        """As of a `Conn`; what is known here the kernel does not tell of again."""
        super().arm()
        if self._ended or self._fault is not None or self.pending():
            self.reactor.loop.run_callback(self._on_readable)

    def pending(self) -> bool:
        """Has this object read what nobody has taken yet?"""
        return bool(self._ahead) or self._incoming.pending > 0 or self._tls.pending() > 0

    def ended(self) -> bool:
        """Has the other side ended its stream? False while some of it waits to be read. Raises OSError."""
        if self._plain:
            return super().ended()
        if not self.arrived() or self._ahead:
            return False
        if self._fault is not None:
            raise self._fault
        return True

    def recv(self, size: int) -> bytes:
        """Wait for input, then read up to `size` bytes; b"" is the end of the stream."""
        if not (self.pending() or self._ended or self._fault is not None):
            self.wait_readable()
        elif not self._armed:
            super().arm()
        while True:
            try:
                return self.take(size)
            except BlockingIOError:
                self.wait_readable()

    def recv_into(self, buffer: memoryview) -> int:
        """Like `recv` into `buffer`; as much as was read from the socket already goes in."""
        if not self._armed:
            super().arm()
        ahead = self._ahead
        if ahead:
            self._ahead = b""
            count = min(len(ahead), len(buffer))
            buffer[:count] = ahead[:count]
            self._ahead = ahead[count:]
            return count
        while True:
            try:
                got: int = self._read(len(buffer), buffer)
                break
            except BlockingIOError:
                self.wait_readable()
        size = len(buffer)
        while 0 < got < size and self._incoming.pending:
            try:
                more: int = self._tls.read(size - got, buffer[got:])
            except ssl.SSLError:  # incomplete, or what the next call will meet again
                break
            if not more:
                break
            got += more
        return got

    def sendall(self, data: bytes | memoryview) -> bool:
        """As of a `Conn`. What is encrypted at a time is bounded."""
        waited = False
        rest = memoryview(data)
        while rest:
            try:
                taken: int = self._tls.write(rest[:PIECE])
            except ssl.SSLError as exc:
                raise _reset(exc) from None
            rest = rest[taken:]
            if not self._flush():
                if not waited:
                    # Copied, because `data` may be the scratch buffer, which others use while this one waits.
                    waited, rest = True, memoryview(bytes(rest))
                self.wait_writable()
                while not self._flush():
                    self.wait_writable()
        return waited

    def end(self) -> None:
        """Say that nothing more is sent, and end the sending half. Raises OSError."""
        self._say_end()
        self._ending = True
        self._flush()

    def _say_end(self) -> None:
        """Prepare the close_notify."""
        if not self._ready or self._fault is not None:
            return
        # OpenSSL looks for the other side's at once, and takes any data it finds for a fault.
        kept = [self._ahead]
        with contextlib.suppress(OSError):
            while self._incoming.pending and (data := self._tls.read(PIECE)):
                kept.append(data)
        self._ahead = b"".join(kept)
        with contextlib.suppress(OSError):
            self._tls.unwrap()

    def abort(self) -> None:
        """Close it with a reset, the end unannounced."""
        self._silent = True
        super().abort()

    def close(self) -> None:
        """As of a `Conn`. The end is announced if that takes no wait, and everything before it was sent."""
        if self._read_io is not None and not (self._silent or self._unsent or self._outgoing.pending):
            with contextlib.suppress(OSError):
                self._say_end()
                self._flush()
        super().close()


def _reset(exc: ssl.SSLError) -> ConnectionResetError:
    """What it means that a record could not be read or written."""
    early = isinstance(exc, ssl.SSLEOFError) or exc.reason == "UNEXPECTED_EOF_WHILE_READING"
    words = "the TLS connection was cut" if early else f"TLS: {exc.reason or exc}"
    return ConnectionResetError(errno.ECONNRESET, words)
