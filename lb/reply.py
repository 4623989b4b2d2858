"""How an answer is written to a client of HTTP/1: framed by a length, by chunks, or by the connection's end.

`Reply` is the writing half of a `lb.client.Client`. All of it runs in the greenlet that serves the request.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

from lb.errors import ClientGone
from lb.proxy.answer import Answer
from lb.proxy.conn import Conn
from lb.proxy.http1 import LAST_CHUNK, chunk

LINGER = 2.0
"""Seconds for which what a client still sends is read and dropped after an early answer."""

_ACKED = 120
"""Where the eight bytes of `tcpi_bytes_acked` are in Linux's `struct tcp_info`."""


def field_lines(headers: list[tuple[str, str]]) -> tuple[bytes, bool]:
    """What WSGI's `headers` are as lines; and do they say how long the body is?"""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
    return lines.encode("latin-1"), any(name.lower() == "content-length" for name, _ in headers)


class Reply:
    """The writing half of a client's connection."""

    __slots__ = ("conn", "head_sent", "lines", "measured", "reason", "status", "upgraded", "version")

    def __init__(self, conn: Conn) -> None:
        self.conn = conn
        #: The minor version of the request.
        self.version = 1
        self.status = 0
        self.reason = ""
        #: The answer's fields as lines; do they say how long its body is?
        self.lines = b""
        self.measured = False
        self.head_sent = False
        #: Does the connection carry another protocol by now?
        self.upgraded = False

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        """As in PEP 3333."""
        if exc_info is not None and self.head_sent:
            raise exc_info[1].with_traceback(exc_info[2])
        code, _, reason = status.partition(" ")
        self.start_raw(int(code), reason, *field_lines(headers))
        return self._write_now

    def start_raw(self, status: int, reason: str, lines: bytes, measured: bool) -> None:
        """The same for those who have the fields as `lines`; `measured`: they say how long the body is."""
        self.status, self.reason, self.lines, self.measured = status, reason, lines, measured

    def interim(self, raw: bytes) -> None:
        """Pass on an interim answer (1xx), a whole head; HTTP/1.0 has none (RFC 9110, section 15.2)."""
        if self.version and not self.head_sent:
            try:
                self.conn.sendall(raw)
            except OSError:
                # The caller would take it for the backend's.
                raise ClientGone("the client went away before its answer") from None

    def go_on(self) -> None:
        """Tell a client that waits for it to send its body."""
        self.interim(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _write_now(self, data: bytes) -> None:
        if not self.head_sent:
            self.conn.sendall(self.head(b"Connection: close\r\n"))
        self.conn.sendall(data)

    def head(self, extra: bytes) -> bytes:
        """The answer's head, with `extra` lines."""
        self.head_sent = True
        return b"HTTP/1.1 %d %b\r\n%b%b\r\n" % (self.status, self.reason.encode("latin-1"), self.lines, extra)

    def write(self, environ: dict[str, Any], result: Any, keep: bool) -> bool:
        """Write head and body; returns whether the connection can go on."""
        conn = self.conn
        if self.head_sent:  # somebody used write()
            for piece in result:
                conn.sendall(piece)
            return False
        status = self.status
        if not status:
            raise RuntimeError("the application answered without calling start_response")
        if status == 101 and type(result) is Answer:
            self.upgraded = True
            result.tunnel(conn, self.head(b""), environ["lb.rest"])
            return False
        bodiless = environ["REQUEST_METHOD"] == "HEAD" or status == 204 or status == 304
        chunked = False
        extra = b""
        if not (self.measured or bodiless):
            if type(result) is tuple:
                extra = b"Content-Length: %d\r\n" % sum(map(len, result))
            elif self.version == 1:
                chunked = True
                extra = b"Transfer-Encoding: chunked\r\n"
            else:
                keep = False
        if not keep:
            extra += b"Connection: close\r\n"
        elif self.version == 0:
            extra += b"Connection: keep-alive\r\n"
        head = self.head(extra)
        if type(result) is tuple:
            conn.sendall(head if bodiless else head + b"".join(result))
        elif type(result) is Answer:
            result.relay(conn, chunked=chunked, head=head)
        else:
            self._write_pieces(head, result, chunked, bodiless)
        return keep

    def _write_pieces(self, head: bytes, result: Iterable[bytes], chunked: bool, bodiless: bool) -> None:
        conn = self.conn
        for piece in result:
            if piece and not bodiless:
                conn.sendall(head + (chunk(piece) if chunked else piece))
                head = b""
        if chunked:
            head += LAST_CHUNK
        if head:
            conn.sendall(head)

    def unless_taken(self, patience: float, give_up: Callable[[], None]) -> None:
        """Call `give_up` when the client has taken nothing more for `patience` seconds; 0: at once."""
        if patience <= 0:
            give_up()
            return
        before = self._acked()
        timer = self.conn.reactor.loop.timer(patience)

        def look() -> None:
            timer.close()
            if self.conn.closed or self.upgraded:
                return
            self.unless_taken(patience if self._acked() != before else 0, give_up)

        timer.start(look)

    def _acked(self) -> int:
        """Bytes that the client's system has acknowledged; 0 where nobody knows (unix sockets)."""
        try:
            found = self.conn.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKED + 8)
        except OSError:
            return 0
        return int.from_bytes(found[_ACKED:], sys.byteorder)

    def linger(self) -> None:
        """Read and drop for a moment what the client still sends: a reset would destroy the answer."""
        conn = self.conn
        if conn.closed:
            return
        until = monotonic() + LINGER
        try:
            conn.end()
            while (left := until - monotonic()) > 0:
                conn.timeout = left
                if not conn.recv(65536):
                    break
        except OSError:
            pass
