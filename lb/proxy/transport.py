"""The way to `http://` and `http+unix://` backends: an adapter for `requests`, on this project's connections.

`Transport` is mounted on a `requests.Session` like any adapter and speaks its types: a `PreparedRequest`
goes in, a `Response` whose body streams comes out. It keeps connections alive per backend, reads
strictly, and raises the errors of `lb.errors`, which say who is to blame and whether anything was sent.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable
from datetime import timedelta
from time import monotonic
from typing import Any
from urllib.parse import unquote, urlsplit

from gunicorn_h1c import IncompleteError, ParseError, parse_response
from requests import PreparedRequest, Response
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict

from lb.errors import (
    BadResponse,
    ConnectFailed,
    ConnectTimeout,
    ResponseTimeout,
    UpstreamClosed,
)
from lb.proxy.body import BodyReader, upstream_fault
from lb.proxy.conn import NEVER, Address, Conn, Reactor, ThreadConn, connect
from lb.proxy.fields import Fields, ResponseHead
from lb.proxy.http1 import UNTIL_CLOSE

MAX_HEAD = 65536
"""Bytes: the largest response head that is read."""

EARLY_ANSWER = 1.0
"""Seconds to wait for the answer of a backend that stopped reading the request."""

RESOLVE_FOR = 10.0
"""Seconds for which a backend's host name is not looked up again."""

IDEMPOTENT = frozenset(("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"))
"""RFC 9110, section 9.2.2."""

Timeout = float | tuple[float | None, float | None] | None


class _Nowhere:
    """The stream behind a body that is here already."""

    timeout = NEVER

    def recv(self, size: int) -> bytes:
        return b""


_NOWHERE: Any = _Nowhere()


class ProxyRequest(PreparedRequest):
    """A request on its way to a backend: the head as bytes, the body as bytes, a `BodyReader` or None.

    `url` and `headers` are worked out only when somebody reads them.
    """

    def __init__(
        self, method: str, upstream: Upstream, target: str, head: bytes, body: BodyReader | bytes | None
    ) -> None:
        # Not PreparedRequest.__init__: it sets up hooks and cookies that a proxy has no use for.
        self.method = method
        self.upstream = upstream
        self.target = target
        self.head = head
        self.payload = body

    @property
    def body(self) -> Any:  # type: ignore[override]
        """The body, under the name `requests` has for it."""
        return self.payload

    @property
    def url(self) -> str:  # type: ignore[override]
        """The whole URL at the backend."""
        return self.upstream.url + self.target

    @property
    def headers(self) -> CaseInsensitiveDict[str]:  # type: ignore[override]
        """The fields that are sent; repeated ones joined."""
        lines = self.head.decode("latin-1").split("\r\n")[1:-2]
        return _fields_dict(line.split(": ", 1) for line in lines)


class ProxyResponse(Response):
    """A backend's answer. `head` is what its head means, `fields` the fields as they came.

    `whole` is the body, when all of it came with the head: the connection is free again then. Otherwise `raw` is
    a `BodyReader`, and `close` gives the connection back.
    """

    # What Response.__init__ sets for each instance, once for all: most answers never read them.
    _content = False
    _content_consumed = False
    encoding = None
    elapsed = timedelta(0)
    history = []  # noqa: RUF012
    _next = None
    connection: Any = None
    request: Any
    _reader: BodyReader | None = None
    _conn: Any = None

    def __init__(
        self, status: int, reason: str, head: ResponseHead, fields: Fields, request: ProxyRequest, whole: bytes | None
    ) -> None:
        self.status_code = status
        self.reason = reason
        self.head = head
        self.fields = fields
        self.request = request
        self.whole = whole

    @property
    def raw(self) -> BodyReader:
        """The body, to be read piece by piece."""
        if self._reader is None:
            whole = self.whole or b""
            self._reader = BodyReader(_NOWHERE, len(whole), whole, upstream_fault)
        return self._reader

    def stream_from(self, conn: Conn | ThreadConn, rest: bytes, keep: bool) -> None:
        """The body comes from `conn`, `rest` of it is here; `keep` says whether the connection can stay."""
        self._reader = BodyReader(conn, self.head.length, rest, upstream_fault)
        self._conn = conn
        self._keep = keep

    @property
    def url(self) -> str:  # type: ignore[override]
        """Where it came from."""
        return str(self.request.url)

    @property
    def headers(self) -> CaseInsensitiveDict[str]:  # type: ignore[override]
        """The fields; repeated ones joined."""
        return _fields_dict((n.decode("latin-1"), v.decode("latin-1")) for n, v in self.fields)

    def close(self) -> None:
        """Give the connection back, or end it when the body was not read to its end."""
        conn, self._conn = self._conn, None
        if conn is None:
            return
        reader = self.raw
        if self._keep and reader.complete and not reader.rest and self.head.length != UNTIL_CLOSE:
            self.request.upstream.checkin(conn)
        else:
            conn.close()


def _fields_dict(pairs: Iterable[Any]) -> CaseInsensitiveDict[str]:
    fields: CaseInsensitiveDict[str] = CaseInsensitiveDict()
    for name, value in pairs:
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


class Upstream:
    """One backend's address and its kept-alive connections in this worker.

    `max_idle` connections at most are kept, each for `idle_timeout` seconds; the one used last is used
    next, so that those a quieter time does not need run out.
    """

    def __init__(self, url: str, reactor: Reactor | None, max_idle: int = 256, idle_timeout: float = 30.0) -> None:
        self.url = url
        #: `send` of the adapter that serves this backend.
        self.send: Callable[..., Any] = _no_adapter
        self._reactor = reactor
        self._max_idle = max_idle
        self._idle_timeout = idle_timeout
        self._idle: list[Conn | ThreadConn] = []
        self._idle_since: dict[int, float] = {}
        self._addresses: list[Address] = []
        self._resolved_at = -RESOLVE_FOR
        parts = urlsplit(url)
        self._path = unquote(parts.netloc) if parts.scheme == "http+unix" else ""
        self._host, self._port = parts.hostname or "", parts.port or 80
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
        if len(self._idle) >= self._max_idle or self._idle_timeout <= 0:
            conn.close()
            return
        if isinstance(conn, Conn):
            if conn.readable():  # the end of the stream, or bytes nobody asked for
                conn.close()
                return
            conn.idle = conn.close
            conn.deadline = monotonic() + self._idle_timeout
        else:
            self._idle_since[id(conn)] = monotonic()
        self._idle.append(conn)

    def connect(self, timeout: float) -> Conn | ThreadConn:
        """A fresh connection, tried at each address of the host in turn. Raises ConnectFailed, ConnectTimeout."""
        failure: Exception = OSError("the name has no address")
        try:
            addresses = self._resolve()
        except OSError as exc:
            raise ConnectFailed(f"{self.url}: cannot look up the name: {exc}") from None
        until = monotonic() + timeout
        for address in addresses:
            try:
                return connect(self._reactor, address, max(until - monotonic(), 0.001))
            except OSError as exc:
                failure = exc
                self._resolved_at = -RESOLVE_FOR
        if isinstance(failure, TimeoutError):
            raise ConnectTimeout(f"{self.url}: no connection within {timeout:g} s")
        raise ConnectFailed(f"{self.url}: {failure.strerror if isinstance(failure, OSError) else failure}")

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


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Transport(BaseAdapter):
    """The adapter. Without a reactor it works in threads.

    `max_idle` and `idle_timeout` are for the backends it meets through plain `PreparedRequest`s.
    """

    def __init__(self, reactor: Reactor | None, idle: float = 300.0) -> None:
        super().__init__()
        self._reactor = reactor
        self._met: dict[str, Upstream] = {}
        #: Seconds that a body may pause, either way.
        self.idle = idle

    def send(
        self,
        request: PreparedRequest,
        stream: bool = False,
        timeout: Timeout = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> ProxyResponse:
        """Send `request`, return once the answer's head is there; its body waits in `raw`.

        `timeout` is (connect, response) in seconds. Raises UpstreamError, or ClientError when the request's
        body could not be read. A kept-alive connection that turns out closed is replaced by a fresh one
        once, if nothing is lost by sending again.
        """
        if not isinstance(request, ProxyRequest):
            request = self._adopt(request)
        if isinstance(timeout, tuple):
            connect_timeout, response_timeout = timeout[0] or 5.0, timeout[1] or NEVER
        else:
            connect_timeout, response_timeout = timeout or 5.0, timeout or NEVER
        upstream = request.upstream
        conn = upstream.checkout()
        replayable = request.method in IDEMPOTENT and not isinstance(request.payload, BodyReader)
        if conn is not None:
            if replayable or not _went_away(conn):
                try:
                    return self._exchange(request, conn, response_timeout)
                except UpstreamClosed:
                    if not replayable:
                        raise
            else:
                conn.close()
        return self._exchange(request, upstream.connect(connect_timeout), response_timeout)

    def _exchange(self, request: ProxyRequest, conn: Conn | ThreadConn, response_timeout: float) -> ProxyResponse:
        """One request and the head of its answer on one connection; closes it on any error."""
        try:
            conn.timeout = self.idle
            body = request.payload
            if body is None:
                conn.sendall(request.head)
                conn.timeout = response_timeout
                data = conn.recv(MAX_HEAD)
            else:
                data = self._send_with_body(request.head, body, conn)
                if not data:
                    conn.timeout = response_timeout
                    data = conn.recv(MAX_HEAD)
            if not data:
                raise UpstreamClosed(f"{request.upstream.url}: closed without an answer")
            try:
                parsed = parse_response(data)
            except (IncompleteError, ParseError):
                parsed = {"status": 0}
            if parsed["status"] < 200:
                parsed, data = self._read_on(conn, data)
            end = parsed["consumed"]
            fields = parsed["headers"]
            method, status, minor = request.method or "", parsed["status"], parsed["minor_version"]
            head = ResponseHead(method, status, minor, fields, data[:end])
        except TimeoutError:
            conn.close()
            raise ResponseTimeout(f"{request.upstream.url}: no answer within {response_timeout:g} s") from None
        except OSError as exc:
            conn.close()
            raise UpstreamClosed(f"{request.upstream.url}: {exc.strerror or exc}") from None
        except ValueError as exc:  # ParseError is one
            conn.close()
            raise BadResponse(f"{request.upstream.url}: {exc}") from None
        except BaseException:
            conn.close()
            raise
        reason = parsed["message"].decode("latin-1")
        keep = head.keep and (body is None or isinstance(body, bytes) or body.complete)
        if end + head.length == len(data) and head.length >= 0:
            response = ProxyResponse(status, reason, head, fields, request, data[end:])
            if keep:
                request.upstream.checkin(conn)
            else:
                conn.close()
            return response
        response = ProxyResponse(status, reason, head, fields, request, None)
        response.stream_from(conn, data[end:], keep)
        conn.timeout = self.idle
        return response

    def _send_with_body(self, head: bytes, body: BodyReader | bytes, conn: Conn | ThreadConn) -> bytes:
        """Send head and body. Returns what a backend that stopped reading had already answered."""
        if isinstance(body, bytes):
            conn.sendall(head + body)
            return b""
        try:
            body.relay(conn, chunked=body.length < 0, stop_on_answer=True, head=head)
        except OSError:
            # It refused the rest; its answer may say why (413, 401 …) and is worth more than a 502.
            conn.timeout = EARLY_ANSWER
            data = conn.recv(MAX_HEAD)
            if not data:
                raise
            return data
        return b""

    def _read_on(self, conn: Conn | ThreadConn, data: bytes) -> tuple[dict[str, Any], bytes]:
        """Read until the final head is there. Returns it parsed, and all bytes from its beginning.

        Raises ValueError for what is no answer, OSError. Interim answers (1xx) are dropped.
        """
        seen = 0
        while True:
            try:
                parsed: dict[str, Any] = parse_response(data, seen)
            except IncompleteError:
                if len(data) > MAX_HEAD:
                    raise ValueError(f"the head is larger than {MAX_HEAD} bytes") from None
                # picohttpparser takes up the search for the end where the last one stopped.
                seen = len(data)
                more = conn.recv(MAX_HEAD)
                if not more:
                    raise ValueError("closed within the head") from None
                data += more
                continue
            if parsed["status"] >= 200:
                return parsed, data
            if parsed["status"] == 101:
                raise ValueError("101 without a request for it")
            data, seen = data[parsed["consumed"] :], 0

    def _adopt(self, request: PreparedRequest) -> ProxyRequest:
        """A plain PreparedRequest, as `requests` makes them, in this transport's terms."""
        parts = urlsplit(request.url or "")
        base = f"{parts.scheme}://{parts.netloc}"
        upstream = self._met.get(base)
        if upstream is None:
            upstream = self._met[base] = Upstream(base, self._reactor)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [f"{request.method} {target} HTTP/1.1"]
        lines += [f"{name}: {_text(value)}" for name, value in request.headers.items()]
        if "Host" not in request.headers:
            lines.append(f"Host: {parts.netloc if parts.scheme == 'http' else 'localhost'}")
        body: Any = request.body.encode() if isinstance(request.body, str) else request.body
        if body is not None and not isinstance(body, bytes | BodyReader):
            body = b"".join(body)
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        return ProxyRequest(request.method or "GET", upstream, target, head, body)

    def close(self) -> None:
        """Close the idle connections of the backends met through plain requests."""
        for upstream in self._met.values():
            upstream.close()
        self._met.clear()


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _went_away(conn: Conn | ThreadConn) -> bool:
    """Has the other side closed this idle connection? One system call, for requests that cannot be sent twice."""
    try:
        conn.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True  # the end of the stream, or an answer to nothing
