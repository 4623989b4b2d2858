"""The way to backends: an adapter for `requests`, on this project's connections.

`Transport` is mounted on a `requests.Session` like any adapter and speaks its types: a `PreparedRequest`
goes in, a `Response` whose body streams comes out. It keeps connections alive per backend, reads
strictly, and raises the errors of `lb.errors`, which say who is to blame and whether anything was sent.
"""

from __future__ import annotations

import errno
import ssl
from typing import Any
from urllib.parse import urlsplit

from gunicorn_h1c import IncompleteError, ParseError, parse_response
from requests import PreparedRequest
from requests.adapters import BaseAdapter

from lb.errors import BadResponse, ResponseTimeout, UpstreamClosed
from lb.proxy.body import BodyReader, client_fault
from lb.proxy.conn import NEVER, Conn, Reactor
from lb.proxy.dial import ThreadConn
from lb.proxy.fields import ResponseHead, interim_head, may_switch
from lb.proxy.http1 import UNTIL_CLOSE
from lb.proxy.messages import Pieces, ProxyRequest, ProxyResponse
from lb.proxy.upstream import Upstream, went_away

MAX_HEAD = 65536
"""Bytes: the largest response head that is read."""

ANSWER = 32768
"""Bytes: the most that is read at once where an answer begins; many are here whole then. See `conn.HEAD`."""

MAX_KNOWN = 4096
"""Bytes: the largest response head that is kept to be known again."""

EARLY_ANSWER = 1.0
"""Seconds to wait for the answer of a backend that stopped reading the request."""

MAX_INTERIM = 100
"""Interim answers (1xx) to one request at most: a flood of them goes on for ever, and times out never."""

IDEMPOTENT = frozenset(("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"))
"""RFC 9110, section 9.2.2."""

Timeout = float | tuple[float | None, float | None] | None


class Transport(BaseAdapter):
    """The adapter. Without a reactor it works in threads.

    `tls` is for the `https://` backends it meets through plain `PreparedRequest`s; whom to trust is its
    matter, not that of `verify` and `cert`.
    """

    def __init__(
        self, reactor: Reactor | None, idle: float = 300.0, tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__()
        self._tls = tls
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
            response = self.send(self._adopt(request), stream, timeout)
            return response if stream else response.read_whole()
        if isinstance(timeout, tuple):
            connect_timeout, response_timeout = timeout[0] or 5.0, timeout[1] or NEVER
        else:
            connect_timeout, response_timeout = timeout or 5.0, timeout or NEVER
        upstream = request.upstream
        conn = upstream.checkout()
        replayable = request.method in IDEMPOTENT and not isinstance(request.payload, BodyReader)
        if conn is not None:
            if replayable or not went_away(conn):
                try:
                    return self._exchange(request, conn, response_timeout)
                except UpstreamClosed:
                    if not replayable:
                        raise
            else:
                conn.close()
        return self._exchange(request, upstream.connect(connect_timeout), response_timeout)

    def _exchange(
        self, request: ProxyRequest, conn: Conn | ThreadConn, response_timeout: float
    ) -> ProxyResponse:
        """One request and the head of its answer on one connection; closes it on any error."""
        try:
            if request.race is not None:
                request.race.runs_on(conn)
            conn.timeout = self.idle
            body = request.payload
            if body is None:
                conn.sendall(request.head)
                conn.timeout = response_timeout
                data = conn.recv(ANSWER)
            else:
                data, sent = self._send_with_body(request, body, conn)
                if not data:
                    conn.timeout = response_timeout
                    data = conn.recv(ANSWER)
            if not data:
                raise UpstreamClosed(f"{request.upstream.url}: closed without an answer")
            known, method = request.upstream.known, request.method or ""
            if known is not None and data.startswith(known.raw) and known.method == method:
                head = known
            else:
                head, data = self._read_head(request, method, conn, data)
            end = len(head.raw)
            keep = head.keep and (body is None or sent)
            if end + head.length == len(data) and head.length >= 0:
                response = ProxyResponse(head, request, data[end:])
                if keep and len(data) < ANSWER:  # a full buffer: there may be more than belongs to it
                    request.upstream.checkin(conn)
                else:
                    conn.close()
                return response
            response = ProxyResponse(head, request, None)
            response.stream_from(conn, data[end:], keep)
            conn.timeout = self.idle
        except TimeoutError:
            conn.close()
            url = request.upstream.url
            raise ResponseTimeout(f"{url}: no answer within {response_timeout:g} s") from None
        except OSError as exc:
            conn.close()
            raise UpstreamClosed(f"{request.upstream.url}: {exc.strerror or exc}") from None
        except ValueError as exc:  # ParseError is one
            conn.close()
            raise BadResponse(f"{request.upstream.url}: {exc}") from None
        except BaseException:
            conn.close()
            raise
        return response

    def _read_head(
        self, request: ProxyRequest, method: str, conn: Conn | ThreadConn, data: bytes
    ) -> tuple[ResponseHead, bytes]:
        """The head that `data` begins, and all bytes from its beginning. Raises as `_read_on`."""
        try:
            parsed = parse_response(data)
        except (IncompleteError, ParseError):
            parsed = {"status": 0}
        if parsed["status"] < 200:
            parsed, data = self._read_on(request, conn, data)
        status, minor = parsed["status"], parsed["minor_version"]
        raw = data[: parsed["consumed"]]
        head = ResponseHead(method, status, parsed["message"], minor, parsed["headers"], raw)
        if status != 101 and len(raw) <= MAX_KNOWN:
            request.upstream.known = head
        return head, data

    def _send_with_body(
        self, request: ProxyRequest, body: BodyReader | bytes, conn: Conn | ThreadConn
    ) -> tuple[bytes, bool]:
        """Send head and body. Returns what the backend had answered before all was sent; and was it sent?"""
        head = request.head
        if isinstance(body, bytes):
            conn.sendall(head + body)
            return b"", True
        try:
            body.relay(conn, chunked=body.length < 0, stop_on_answer=True, head=head)
            while not body.complete:
                data = self._answered(request, conn)
                if data:
                    return data, False
                body.relay(conn, chunked=body.length < 0, stop_on_answer=True)
        except OSError:
            # It refused the rest; its answer may say why (413, 401 …) and is worth more than a 502.
            conn.timeout = EARLY_ANSWER
            data = conn.recv(ANSWER)
            if not data:
                raise
            return data, False
        return b"", True

    def _answered(self, request: ProxyRequest, conn: Conn | ThreadConn) -> bytes:
        """Read what a backend says while it is still being sent a body; b"" if only interim answers (1xx)."""
        data = b""
        while True:
            more = conn.recv(ANSWER)
            if not more:
                raise ConnectionResetError(errno.ECONNRESET, "closed within the request")
            data += more
            try:
                while data and 100 <= (parsed := parse_response(data))["status"] < 200:
                    if parsed["status"] == 101:
                        return data
                    data = self._interim(request, parsed, data)
            except ParseError:
                return data
            except IncompleteError:
                if len(data) > MAX_HEAD:
                    return data
                continue
            return data

    def _read_on(
        self, request: ProxyRequest, conn: Conn | ThreadConn, data: bytes
    ) -> tuple[dict[str, Any], bytes]:
        """Read until the final head is there. Returns it parsed, and all bytes from its beginning.

        Raises ValueError for what is no answer, OSError, ClientGone.
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
                more = conn.recv(ANSWER)
                if not more:
                    raise ValueError("closed within the head") from None
                data += more
                continue
            status = parsed["status"]
            if status >= 200:
                return parsed, data
            if status == 101:
                if request.upgrade and may_switch(request.head, parsed["headers"]):
                    return parsed, data
                raise ValueError("101 without a request for it")
            if status < 100:
                raise ValueError(f"the status is {status}")
            data, seen = self._interim(request, parsed, data), 0

    def _interim(self, request: ProxyRequest, parsed: dict[str, Any], data: bytes) -> bytes:
        """Pass on the interim answer that `data` begins with; returns what follows it."""
        end, fields = parsed["consumed"], parsed["headers"]
        if data.count(b"\r\n", 0, end) != len(fields) + 2 or not all(name for name, _ in fields):
            raise ValueError("an interim answer that is not exactly one head")
        request.interims += 1
        if request.interims > MAX_INTERIM:
            raise ValueError(f"more than {MAX_INTERIM} interim answers")
        if request.interim is not None:
            request.interim(interim_head(parsed["status"], parsed["message"], fields))
        return data[end:]

    def _adopt(self, request: PreparedRequest) -> ProxyRequest:
        """A plain PreparedRequest, as `requests` makes them, in this transport's terms."""
        parts = urlsplit(request.url or "")
        base = f"{parts.scheme}://{parts.netloc}"
        upstream = self._met.get(base)
        if upstream is None:
            upstream = self._met[base] = Upstream(base, self._reactor, tls=self._tls)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [f"{request.method} {target} HTTP/1.1"]
        lines += [f"{name}: {_text(value)}" for name, value in request.headers.items()]
        if "Host" not in request.headers:
            lines.append(f"Host: {parts.netloc if parts.scheme != 'http+unix' else 'localhost'}")
        body: Any = request.body.encode() if isinstance(request.body, str) else request.body
        if body is not None and not isinstance(body, bytes | BodyReader):
            length = int(request.headers.get("Content-Length", UNTIL_CLOSE))
            stream: Any = Pieces(body)
            body = BodyReader(stream, length, b"", client_fault)
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        return ProxyRequest(request.method or "GET", upstream, target, head, body)

    def close(self) -> None:
        """Close the idle connections of the backends met through plain requests."""
        for upstream in self._met.values():
            upstream.close()
        self._met.clear()


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
