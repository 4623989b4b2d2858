"""One client's connection: reads requests, calls the application, writes the answers.

Between requests a connection has no greenlet, only its watcher: ten thousand idle ones cost their
sockets and little more. When the first bytes of a request arrive, a greenlet is taken from a pool for
as long as that request (and whatever was pipelined behind it) lasts.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from time import monotonic, perf_counter, time
from typing import Any, Protocol

from greenlet import greenlet
from gunicorn_h1c._parser_fast import IncompleteError

from lb.accesslog import Entry
from lb.environ import KEYS, fill
from lb.errors import (
    BadRequest,
    ClientError,
    ClientGone,
    ProxyError,
    RequestTimeout,
    UnsupportedCoding,
)
from lb.limits import LONGEST_KNOWN, Limits
from lb.proxy.body import BodyReader, client_fault
from lb.proxy.conn import HEAD, Conn
from lb.proxy.http1 import UnsupportedTransferCoding, request_body
from lb.proxy.tls import TlsConn
from lb.proxyprotocol import parse as parse_proxy
from lb.reply import Reply
from lb.wsgi import problem

_NO_BODY = io.BytesIO()
_HEAD = re.compile(rb"(?:\r\n)*HEAD ")

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Served(Protocol):
    """What a greenlet of the worker's can serve: a connection, or one stream of it (HTTP/2)."""

    greenlet: Any

    def serve(self, data: bytes, fault: ProxyError | None = None) -> None: ...
    def close(self) -> None: ...


class Host(Protocol):
    """What a connection needs of the worker that accepted it."""

    app: WsgiApp
    limits: Limits
    draining: bool
    keepalive: float
    header_timeout: float
    body_timeout: float
    half_close: float

    def run(self, client: Served, data: bytes) -> None: ...
    def gone(self, client: Any) -> None: ...
    def speak_http2(self, client: Client, data: bytes) -> None: ...
    def log_refused(self, entry: Entry) -> None: ...
    def crashed(self, environ: dict[str, Any]) -> None: ...
    def next_id(self) -> str: ...


class Client(Reply):
    """A connection, from accept to close."""

    __slots__ = (
        "base",
        "busy_since",
        "fresh",
        "greenlet",
        "host",
        "idle_since",
        "mark",
        "pending",
        "unannounced",
    )

    def __init__(self, host: Host, conn: Conn, base: dict[str, Any], unannounced: bool = False) -> None:
        super().__init__(conn)
        self.host = host
        #: The environ of each request before its head is filled in.
        self.base = base
        base["lb.start"] = self.start_raw
        base["lb.interim"] = self.interim
        # All keys are there from the beginning, so that filling in a copy never makes it grow.
        base.update(dict.fromkeys(KEYS))
        #: What has arrived of a head that is not whole yet.
        self.pending = b""
        #: Has nothing come from it yet?
        self.fresh = True
        self.idle_since = monotonic()
        #: The hash of the last head, if it may be remembered.
        self.mark = 0
        #: When the request began that is served now; 0 between two.
        self.busy_since = 0.0
        #: Does a PROXY protocol header have to come first?
        self.unannounced = unannounced
        #: Who serves it while it is not idle.
        self.greenlet: Any = None
        conn.idle = self._on_readable
        conn.expired = self._on_late
        conn.noticed = self._on_early
        conn.deadline = self.idle_since + host.header_timeout

    # In the hub.

    def _on_readable(self) -> None:
        conn = self.conn
        try:
            data = conn.take(HEAD)
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
        if self.unannounced:
            data = self._announce(data)
            if not data:
                return
        if self.fresh:
            self.fresh = False
            if conn.protocol == "h2":
                self.host.speak_http2(self, data)
                return
        conn.idle = None
        self.host.run(self, data)

    def _announce(self, data: bytes) -> bytes:
        """Take the PROXY protocol header from the front of `data`; b"" when nothing follows it yet."""
        try:
            found = parse_proxy(data)
        except ValueError:
            self.close()
            return b""
        if found is None:
            self.pending = data
            return b""
        source, consumed = found
        if source is not None:
            self.base["REMOTE_ADDR"], self.base["REMOTE_PORT"] = source
        self.unannounced = False
        self.pending = b""
        rest = data[consumed:]
        conn = self.conn
        if not isinstance(conn, TlsConn):
            return rest
        conn.start(rest)
        try:
            return conn.take(65536)
        except BlockingIOError:
            pass
        except OSError:
            self.close()
        return b""

    def _on_late(self) -> None:
        """An idle connection's time is over. Who has begun a head is told so (RFC 9110, section 15.5.9)."""
        if self.unannounced or not self.pending:
            self.close()
            return
        self.conn.idle = self.greenlet = None
        greenlet(self._refuse, self.conn.reactor.hub).switch(
            RequestTimeout("the head took too long"), self.pending
        )

    def _on_early(self) -> None:
        """Something came while a request is served: the next one, or the end.

        Who has ended only its sending half still waits for its answer, and cannot be told from who is gone
        until something is sent to it, and taken.
        """
        conn = self.conn
        patience = self.host.half_close
        try:
            gone = conn.ended()
        except OSError:
            gone, patience = True, 0.0
        if gone and (who := self.greenlet) is not None:
            fault = ClientGone("the client closed its connection")
            self.unless_taken(patience, lambda: conn.reactor.doom(who, monotonic(), fault, conn))

    def close(self) -> None:
        """Close the connection. May be called again."""
        if not self.conn.closed:
            self.conn.close()
        self.host.gone(self)

    def cut(self) -> None:
        """End it in mid-stream."""
        if self.upgraded:
            self.conn.expire()
        elif self.head_sent:
            self._reset()
        else:
            self.close()

    def leave(self) -> None:
        """The worker is going: with HTTP/1 that is said with each answer."""

    def overdue(self, before: float) -> list[Any]:
        """Who serves a request that began before then (by `monotonic`)."""
        late = self.busy_since and self.busy_since < before and not self.upgraded
        return [self.greenlet] if late else []

    @property
    def idle(self) -> bool:
        """Is it between two requests?"""
        return self.conn.idle is not None and not self.upgraded

    # In a greenlet.

    def serve(self, data: bytes, fault: ProxyError | None = None) -> None:
        """Handle `data`, which begins with a request's head, until the connection is idle or closed; or
        answer `fault`, unread.
        """
        seen = len(self.pending)
        limits = self.host.limits
        if fault is not None:
            minor, meaning = limits.known.get(data) or (0, {})
            # Of a head that is known it is known, too, where the next one begins.
            keep = minor == 1 and meaning["lb.keep"] and not (self.conn.pending() or self.host.draining)
            self._refuse(fault, data, keep)
            return
        while True:
            known = limits.known.get(data)
            if known is not None:
                self.version, meaning = known
                environ = self.base.copy()
                environ.update(meaning)
            else:
                try:
                    head, data = limits.read(data, seen)
                except IncompleteError:
                    more = self._pending()
                    if not more:
                        self._await_head(data)
                        return
                    seen = len(data)
                    data += more
                    continue
                except ClientError as exc:
                    self._refuse(exc, data)
                    return
                try:
                    environ = self._environ(head, data)
                except ClientError as exc:
                    if data.startswith(b"\r\n"):  # an empty line before the request (RFC 9112, section 2.2)
                        data, seen = data[2:], 0
                        continue
                    self._refuse(exc, data)
                    return
                self._learn(data, head.consumed, environ)
            self.busy_since = self.conn.reactor.now
            rest = self._handle(environ)
            self.busy_since = 0.0
            if rest is None:
                return
            self.pending = b""
            data, seen = rest or self._pending(), 0
            if not data:
                self._await_next()
                return

    def _pending(self) -> bytes:
        """What the connection has read already and nobody has taken."""
        if not self.conn.pending():
            return b""
        try:
            return self.conn.take(HEAD)
        except OSError:  # BlockingIOError: it makes no whole record yet
            return b""

    def _await_next(self) -> None:
        conn = self.conn
        now = self.idle_since = conn.reactor.now
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

    def _learn(self, data: bytes, consumed: int, environ: dict[str, Any]) -> None:
        """Remember what this head means, if it is all there is and the client says it for the second time."""
        if len(data) != consumed or consumed > LONGEST_KNOWN or environ["lb.body"] is not None:
            return
        mark = hash(data)
        if mark == self.mark:
            self.host.limits.learn(data, self.version, environ, self.base)
        self.mark = mark

    def _body(self, environ: dict[str, Any], buffered: bytes) -> None:
        try:
            length = request_body(environ["lb.fields"], self.version)
        except ValueError as exc:
            raise BadRequest(str(exc)) from None
        except UnsupportedTransferCoding as exc:
            raise UnsupportedCoding(f"transfer coding {exc}") from None
        self.conn.timeout = self.host.body_timeout
        body = BodyReader(self.conn, length, buffered, client_fault)
        if environ["lb.expect"] is not None and not buffered:
            body.awaited, body.go_on = True, self.go_on
        environ["lb.body"] = environ["wsgi.input"] = body
        if length < 0:
            environ["wsgi.input_terminated"] = True

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
            conn.timeout = self.host.body_timeout
            keep = self.write(environ, result, keep)
        except (OSError, ProxyError):
            # The client went away or does not read, or its backend broke in the middle: it must not take what
            # it has for the whole.
            self._reset()
            return None
        except Exception:  # noqa: BLE001 - an application's, and any WSGI server's last resort
            self.host.crashed(environ)
            if not self.head_sent:
                self._refuse(ProxyError("the application failed"), environ["REQUEST_METHOD"].encode() + b" ")
            else:
                self._reset()
            return None
        finally:
            if type(result) is not tuple and (close := getattr(result, "close", None)) is not None:
                close()
        if not keep:
            if body is not None and not body.complete:
                self.linger()
            self.close()
            return None
        if conn.closed:
            return None
        return environ["lb.rest"] if body is None else body.rest

    def _refuse(self, exc: ProxyError, data: bytes, keep: bool = False) -> None:
        """Answer a message that cannot be served, which begins with `data`, and close, unless `keep`."""
        request_id = self.host.next_id()
        # Who asks with HEAD takes whatever follows the head for another answer (RFC 9110, section 9.3.2).
        environ = {"REQUEST_METHOD": "HEAD" if _HEAD.match(data) else "GET"}
        client = self.base["REMOTE_ADDR"]
        entry = Entry(time(), request_id, client, "", "", "", status=exc.status, code=exc.code)
        started = perf_counter()
        try:
            body = b"".join(problem(exc, environ, self.start_response, request_id))
            self.conn.sendall(self.head(b"" if keep else b"Connection: close\r\n") + body)
            entry.bytes, entry.duration = len(body), perf_counter() - started
            if not keep:
                self.linger()
        except OSError:
            keep = False
        self.host.log_refused(entry)
        if keep:
            self._await_next()
        else:
            self.close()

    def _reset(self) -> None:
        """End it so that what was sent cannot be taken for the whole: some bodies end with the connection."""
        self.conn.abort()
        self.close()
