"""One client's connection: reads requests, calls the application, writes the answers.

Between requests a connection has no greenlet, only its watcher: ten thousand idle ones cost their
sockets and little more. When the first bytes of a request arrive, a greenlet is taken from a pool for
as long as that request (and whatever was pipelined behind it) lasts.
"""

from __future__ import annotations

import io
import socket
import struct
from collections.abc import Callable, Iterable
from time import monotonic, perf_counter, time
from typing import Any, Protocol

from gunicorn_h1c import (
    InvalidRequestMethod,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseError,
    parse_request_fast,
)
from gunicorn_h1c._parser_fast import IncompleteError
from gunicorn_h1c._parser_fast import ParseError as FastParseError

from lb.accesslog import Entry
from lb.environ import KEYS, fill
from lb.errors import BadRequest, ClientError, HeaderTooLarge, ProxyError, UnsupportedCoding, UriTooLong
from lb.proxy.body import BodyReader, client_fault
from lb.proxy.conn import Conn
from lb.proxy.forward import Answer
from lb.proxy.http1 import LAST_CHUNK, UnsupportedTransferCoding, chunk, request_body
from lb.wsgi import problem

MAX_HEAD = 65536
"""Bytes: the largest request head that is read."""
MAX_LINES = 200
"""Lines of a head that is refused because of its size, whatever else is wrong with it."""
# A request line or a field of more than 8190 bytes, or more than 100 fields, are refused by the parser.
LINGER = 2.0
"""Seconds for which what a client still sends is read and dropped after an early answer."""

_NO_BODY = io.BytesIO()
_RESET = struct.pack("ii", 1, 0)

# The fast parser has two exceptions of its own beside those that the package exports.
_MALFORMED = (ParseError, FastParseError)

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def _refusal(exc: Exception, data: bytes) -> ClientError:
    """What it means that the parser does not take the head in `data`."""
    if isinstance(exc, LimitRequestLine):
        return UriTooLong(str(exc))
    # Far more fields than allowed are just an error to it.
    if isinstance(exc, LimitRequestHeaders) or data.count(b"\n") > MAX_LINES:
        return HeaderTooLarge(str(exc))
    return BadRequest(str(exc))


class Host(Protocol):
    """What a connection needs of the worker that accepted it."""

    app: WsgiApp
    draining: bool
    keepalive: float
    header_timeout: float
    body_timeout: float

    def run(self, client: Client, data: bytes) -> None: ...
    def gone(self, client: Client) -> None: ...
    def log_refused(self, entry: Entry) -> None: ...
    def crashed(self, environ: dict[str, Any]) -> None: ...
    def next_id(self) -> str: ...


class Client:
    """A connection, from accept to close."""

    __slots__ = (
        "base",
        "conn",
        "greenlet",
        "head_sent",
        "host",
        "idle_since",
        "lines",
        "measured",
        "pending",
        "reason",
        "status",
        "version",
    )

    def __init__(self, host: Host, conn: Conn, base: dict[str, Any]) -> None:
        self.host = host
        self.conn = conn
        #: The environ of each request before its head is filled in.
        self.base = base
        base["lb.start"] = self.start_raw
        # All keys are there from the beginning, so that filling in a copy never makes it grow.
        base.update(dict.fromkeys(KEYS))
        #: What has arrived of a head that is not whole yet.
        self.pending = b""
        self.version = 1
        self.status = 0
        self.reason = ""
        #: The answer's fields as lines; do they say how long its body is?
        self.lines = b""
        self.measured = False
        self.head_sent = False
        self.idle_since = monotonic()
        #: Who serves it while it is not idle.
        self.greenlet: Any = None
        conn.idle = self._on_readable
        conn.expired = self.close
        conn.noticed = self._on_early
        conn.deadline = self.idle_since + host.header_timeout

    # In the hub.

    def _on_readable(self) -> None:
        conn = self.conn
        try:
            data = conn.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not data:
            self.close()
            return
        if self.pending:
            data = self.pending + data
        conn.idle = None
        self.host.run(self, data)

    def _on_early(self) -> None:
        """Something came while a request is served: the next one, or the end, after which nobody is there."""
        conn = self.conn
        try:
            gone = not conn.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            gone = True
        if gone and self.greenlet is not None:
            conn.reactor.abandoned[self.greenlet] = conn

    def close(self) -> None:
        """Close the connection. May be called again."""
        if not self.conn.closed:
            self.conn.close()
        self.host.gone(self)

    @property
    def idle(self) -> bool:
        """Is it between two requests?"""
        return self.conn.idle is not None

    # In a greenlet.

    def serve(self, data: bytes) -> None:
        """Handle `data`, which begins with a request's head, until the connection is idle or closed."""
        seen = len(self.pending)
        while True:
            try:
                head = parse_request_fast(data, seen) if seen else parse_request_fast(data)
            except IncompleteError:
                if len(data) > MAX_HEAD:
                    self._refuse(HeaderTooLarge("the head is too large"))
                    return
                self._await_head(data)
                return
            except _MALFORMED as exc:
                if not isinstance(exc, InvalidRequestMethod):
                    self._refuse(_refusal(exc, data))
                    return
                # Any token is a method (RFC 9110, section 9.1). Not said at once: options cost every request.
                try:
                    head = parse_request_fast(data, permit_unconventional_http_method=True)
                except _MALFORMED as again:
                    self._refuse(_refusal(again, data))
                    return
            try:
                environ = self._environ(head, data)
            except ClientError as exc:
                if data.startswith(b"\r\n"):  # an empty line before the request (RFC 9112, section 2.2)
                    data, seen = data[2:], 0
                    continue
                self._refuse(exc)
                return
            rest = self._handle(environ)
            if rest is None:
                return
            self.pending = b""
            if not rest:
                self._await_next()
                return
            data, seen = rest, 0

    def _await_next(self) -> None:
        conn = self.conn
        now = self.idle_since = monotonic()
        conn.deadline = now + self.host.keepalive
        conn.idle = self._on_readable
        if conn.readable():
            conn.arm()

    def _await_head(self, data: bytes) -> None:
        conn = self.conn
        if not self.pending:  # the first part of it: its time starts now, and does not start again
            conn.deadline = monotonic() + self.host.header_timeout
        self.pending = data
        conn.idle = self._on_readable
        if conn.readable():
            conn.arm()

    def _environ(self, head: Any, data: bytes) -> dict[str, Any]:
        """The environ of a request. Raises ClientError when it cannot be read in exactly one way."""
        environ = self.base.copy()
        self.version = head.minor_version
        if fill(environ, head, data):
            self._body(environ, data[head.consumed :])
        else:
            environ["wsgi.input"] = _NO_BODY
            environ["lb.rest"] = data[head.consumed :]
        return environ

    def _body(self, environ: dict[str, Any], buffered: bytes) -> None:
        try:
            length = request_body(environ["lb.fields"], self.version)
        except ValueError as exc:
            raise BadRequest(str(exc)) from None
        except UnsupportedTransferCoding as exc:
            raise UnsupportedCoding(f"transfer coding {exc}") from None
        expected = (environ["lb.expect"] or b"").lower() == b"100-continue" and self.version == 1
        self.conn.timeout = self.host.body_timeout
        before = self._send_continue if expected else None
        body = BodyReader(self.conn, length, buffered, client_fault, before)
        environ["lb.body"] = environ["wsgi.input"] = body
        if length < 0:
            environ["wsgi.input_terminated"] = True

    def _send_continue(self) -> None:
        self.conn.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _handle(self, environ: dict[str, Any]) -> bytes | None:
        """Call the application and write its answer. Returns what follows the request, None: closed."""
        conn = self.conn
        self.status = 0
        self.head_sent = False
        result: Any = None
        try:
            result = self.host.app(environ, self.start_response)
            body: BodyReader | None = environ["lb.body"]
            keep: bool = environ["lb.keep"] and not self.host.draining and (body is None or body.complete)
            keep = self._write(environ, result, keep)
        except OSError:
            self.close()  # the client went away
            return None
        except ProxyError:
            # The backend broke in the middle: the client must not take what it has for the whole.
            self._reset()
            return None
        except Exception:  # noqa: BLE001 - an application's, and any WSGI server's last resort
            self.host.crashed(environ)
            if not self.head_sent:
                self._refuse(ProxyError("the application failed"))
            else:
                self._reset()
            return None
        finally:
            if type(result) is not tuple and (close := getattr(result, "close", None)) is not None:
                close()
        if not keep:
            if body is not None and not body.complete:
                self._linger()
            self.close()
            return None
        if conn.closed:
            return None
        return environ["lb.rest"] if body is None else body.rest

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        """As in PEP 3333."""
        if exc_info is not None and self.head_sent:
            raise exc_info[1].with_traceback(exc_info[2])
        code, _, reason = status.partition(" ")
        measured = any(name.lower() == "content-length" for name, _ in headers)
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
        self.start_raw(int(code), reason, lines.encode("latin-1"), measured)
        return self._write_now

    def start_raw(self, status: int, reason: str, lines: bytes, measured: bool) -> None:
        """The same for those who have the fields as `lines`; `measured`: they say how long the body is."""
        self.status, self.reason, self.lines, self.measured = status, reason, lines, measured

    def _write_now(self, data: bytes) -> None:
        if not self.head_sent:
            self.conn.sendall(self._head(b"Connection: close\r\n"))
        self.conn.sendall(data)

    def _head(self, extra: bytes) -> bytes:
        """The answer's head, with `extra` lines."""
        self.head_sent = True
        return b"HTTP/1.1 %d %b\r\n%b%b\r\n" % (self.status, self.reason.encode("latin-1"), self.lines, extra)

    def _write(self, environ: dict[str, Any], result: Any, keep: bool) -> bool:
        """Write head and body; returns whether the connection can go on."""
        conn = self.conn
        conn.timeout = self.host.body_timeout
        if self.head_sent:  # somebody used write()
            for piece in result:
                conn.sendall(piece)
            return False
        status = self.status
        if not status:
            raise RuntimeError("the application answered without calling start_response")
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
        head = self._head(extra)
        if type(result) is tuple:
            conn.sendall(head if bodiless else head + b"".join(result))
        elif type(result) is Answer and result.streams:
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

    def _refuse(self, exc: ProxyError) -> None:
        """Answer a message that cannot be served, and close."""
        request_id = self.host.next_id()
        environ = {"REQUEST_METHOD": "GET"}
        client = self.base["REMOTE_ADDR"]
        entry = Entry(time(), request_id, client, "", "", "", status=exc.status, code=exc.code)
        started = perf_counter()
        try:
            body = b"".join(problem(exc, environ, self.start_response, request_id))
            self.conn.sendall(self._head(b"Connection: close\r\n") + body)
            entry.bytes, entry.duration = len(body), perf_counter() - started
            self._linger()
        except OSError:
            pass
        self.host.log_refused(entry)
        self.close()

    def _linger(self) -> None:
        """Read and drop for a moment what the client still sends: a reset would destroy the answer."""
        conn = self.conn
        if conn.closed:
            return
        until = monotonic() + LINGER
        try:
            conn.sock.shutdown(socket.SHUT_WR)
            while (left := until - monotonic()) > 0:
                conn.timeout = left
                if not conn.recv(65536):
                    break
        except OSError:
            pass

    def _reset(self) -> None:
        if not self.conn.closed:
            # Without this a body that ends with the connection would look whole.
            self.conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.close()
