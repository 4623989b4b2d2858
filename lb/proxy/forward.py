"""One request to one pool: claim a backend, send, try another one where that is safe, settle.

`Forwarder.forward` is the loop; what it decides on (is this error worth a retry, on which request) is said by
the errors themselves (`lb.errors`) and by `Attempt`. The claim is given back exactly once: at once when an
attempt failed or the answer came whole, else when the body's iterable is closed.
"""

from __future__ import annotations

import errno
import re
import ssl
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import Protocol
from urllib.parse import urlsplit

import requests

from lb.accesslog import AccessLog, Entry
from lb.algorithms.request import HeadRequest
from lb.dates import http_date
from lb.errors import (
    ClientError,
    ClientGone,
    NoBackend,
    ProxyError,
    RequestTimeout,
)
from lb.model import Backend
from lb.proxy.body import BodyReader
from lb.proxy.conn import Conn, Reactor, Stream
from lb.proxy.messages import ProxyRequest, ProxyResponse
from lb.proxy.transport import IDEMPOTENT, Transport
from lb.proxy.tunnel import Tunnel
from lb.proxy.upstream import Upstream
from lb.settings import PoolConfig

FAILED = 1.0
"""Seconds that a failed attempt counts at least: a backend that refuses at once is not a fast one."""

_HOST_LINE = re.compile(rb"\r\nhost:[^\r]*", re.IGNORECASE)


class ClaimSource(Protocol):
    """Where backends come from; see `lb.state.fleet`."""

    @property
    def special(self) -> bool: ...
    @property
    def asks(self) -> bool: ...
    def canary_is_next(self) -> bool: ...
    def claim(
        self,
        exclude: Sequence[str] = (),
        request: HeadRequest | None = None,
        canary: bool = False,
        own: str = "",
    ) -> Backend | None: ...
    def wait(
        self, exclude: Sequence[str], request: HeadRequest | None, canary: bool, own: str, entry: Entry
    ) -> Backend | None: ...
    def release(self, name: str, took: float = -1.0) -> None: ...
    def tally(self, canary: bool, ok: bool, took: float) -> None: ...


class Answer:
    """A backend's answer on its way to the client: an iterable of its body that settles when it is closed.

    A worker that knows it may take `relay` instead of iterating: the same bytes, without a copy of each.
    """

    __slots__ = (
        "_code",
        "_done",
        "_forwarder",
        "_response",
        "_started",
        "backend",
        "canary",
        "entry",
        "lines",
        "measured",
        "reason",
        "sent",
        "status",
        "took",
    )

    def __init__(
        self,
        forwarder: Forwarder,
        backend: Backend,
        entry: Entry,
        started: float,
        response: ProxyResponse,
        took: float = -1.0,
        canary: bool = False,
    ) -> None:
        self._forwarder = forwarder
        self._response = response
        self._started = started
        self._done = False
        self._code = ""
        self.backend = backend
        self.entry = entry
        #: Seconds until its head came, below 0 where nobody wants to know; was a canary's algorithm used?
        self.took = took
        self.canary = canary
        #: Content bytes handed over so far.
        self.sent = 0
        self.status: int = response.status_code
        self.reason: str = response.reason or ""
        #: The end-to-end fields as lines, and whether they say how long the body is.
        self.lines: bytes = response.head.lines
        self.measured: bool = response.head.measured
        # Who has a clock says when an answer without a Date came (RFC 9110, section 6.6.1).
        if not response.head.dated:
            self.lines += f"Date: {http_date()}\r\n".encode()

    def headers(self) -> list[tuple[str, str]]:
        """The end-to-end fields, as WSGI wants them."""
        lines = self.lines.decode("latin-1").split("\r\n")[:-1]
        return [(name, value.strip(" \t")) for name, _, value in (line.partition(":") for line in lines)]

    def whole(self) -> bytes | None:
        """The body, if all of it is here; the answer is settled then, and needs no closing."""
        if self._response.whole is None:
            return None
        body: bytes = self._response.whole
        self._done = True
        self.sent = len(body)
        self._forwarder.settle(self, "")
        return body

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            piece: bytes = self._response.raw.next_piece()
        except ProxyError as exc:
            self._code = exc.code
            raise
        if not piece:
            raise StopIteration
        self.sent += len(piece)
        return bytes(piece)

    def relay(self, to: Stream, *, chunked: bool, head: bytes) -> None:
        """Send `head` and the whole body to `to`. Raises OSError for its faults, UpstreamError for others."""
        raw = self._response.raw
        try:
            raw.relay(to, chunked=chunked, head=head)
        except ProxyError as exc:
            self._code = exc.code
            raise
        except TimeoutError:
            self._code = RequestTimeout.code
            raise
        finally:
            self.sent += raw.passed

    @property
    def trailers(self) -> bytes:
        """The trailer fields, as lines, once the body is over."""
        return self._response.raw.trailers

    def tunnel(self, client: Conn, head: bytes, ahead: bytes) -> None:
        """Send `head` (101), then join the two connections until both have ended; `ahead` is for the backend.

        Raises OSError when either failed: nothing can be said about that any more, but it was no end.
        """
        conn, first = self._response.hand_over()
        try:
            client.sendall(head + first)
            if ahead:
                conn.sendall(ahead)
            tunnel = Tunnel(client, conn, self._forwarder.tunnel_idle)
            try:
                tunnel.run()
            finally:
                self.sent += len(first) + tunnel.to_client
            if tunnel.failed:
                raise ConnectionResetError(errno.ECONNRESET, "a side of the tunnel failed")
        finally:
            conn.close()

    def close(self) -> None:
        """Give back the connection and the claim, and write the log's entry; later calls do nothing."""
        if self._done:
            return
        self._done = True
        cut = not self._response.raw.complete and self.status != 101
        self._response.close()
        # What nobody but us could have cut short, the client has.
        self._forwarder.settle(self, self._code or (ClientGone.code if cut else ""))

    def duration(self) -> float:
        """Seconds since the request came."""
        return perf_counter() - self._started


class Forwarder:
    """Sends requests to the backends of one pool."""

    def __init__(
        self,
        pool: str,
        config: PoolConfig,
        claims: ClaimSource,
        reactor: Reactor | None,
        log: AccessLog,
        tls: ssl.SSLContext,
    ) -> None:
        """`tls`: how its `https://` backends are spoken to, as `config.tls` says."""
        self.pool = pool
        self.claims = claims
        self._claim = claims.claim
        self._release = claims.release
        self._special = claims.special
        self.log = log
        self._config = config
        self._reactor = reactor
        self._tls = tls
        self._attempts = max(config.retry.attempts, 1)
        self._max_body = config.retry.max_body
        self._timeout = (config.timeouts.connect, config.timeouts.response)
        self._host = config.host
        self.tunnel_idle = config.timeouts.tunnel
        self._upstreams: dict[str, Upstream] = {}
        # A session is where adapters are mounted, and no more: its cookies, redirects, proxies and netrc are
        # nothing a proxy may have.
        self._session = requests.Session()
        transport = Transport(reactor, config.timeouts.idle, tls)
        for scheme in ("http://", "https://", "http+unix://"):
            self._session.mount(scheme, transport)

    def forward(
        self,
        entry: Entry,
        head: bytes,
        body: BodyReader | bytes | None,
        started: float,
        interim: Callable[[bytes], None] | None = None,
        upgrade: bool = False,
        own: str = "",
    ) -> Answer:
        """The first answer a backend gives to the request with this `head` (whole) and `body`.

        `entry` says what it is, and is filled in on the way. `interim` takes the heads of interim answers;
        `upgrade`: the request asks for another protocol. `own`: the backend that the client belongs to, which
        gets the request if it can. Raises ProxyError when there is no answer.
        """
        method = entry.method
        idempotent = method in IDEMPOTENT
        if (
            isinstance(body, BodyReader)
            and idempotent
            and 0 <= body.length <= self._max_body
            and not body.awaited  # who waits for the backend's word has not sent it yet
        ):
            body = body.read()  # small enough to keep for another try
        tried: tuple[str, ...] = ()
        failure: ProxyError | None = None
        entry.pool = self.pool
        # Nothing of this is known, or wanted, by algorithms that look at no request and at no time.
        special = self._special or own != ""
        asked: HeadRequest | None = None
        canary = False
        began, took = started, -1.0
        if special:
            asked = HeadRequest(head, entry.client, entry.target) if self.claims.asks else None
            canary = self.claims.canary_is_next()
        while len(tried) < self._attempts:
            backend = self._claim(tried, asked, canary, own) if special else self._claim(tried)
            if backend is None:
                backend = self.claims.wait(tried, asked, canary, own, entry)
                if backend is None:
                    break
            if special:
                took, began = -1.0, perf_counter()
            upstream = self._upstreams.get(backend.url) or self._upstream(backend.url)
            named = head if not self._host else self._with_host(head, backend)
            request = ProxyRequest(method, upstream, entry.target, named, body)
            request.interim = interim
            request.upgrade = upgrade
            try:
                response = upstream.send(request, stream=True, timeout=self._timeout)
                answered = perf_counter()
                entry.upstream = answered - started
                if not special:
                    return Answer(self, backend, entry, started, response)
                return Answer(self, backend, entry, started, response, answered - began, canary)
            except ProxyError as exc:
                failure = exc
            except BaseException:
                self.claims.release(backend.id)
                raise
            if special and failure.source == "upstream":
                took = max(perf_counter() - began, FAILED)
                self.claims.tally(canary, False, took)
            self.claims.release(backend.id, took)
            tried = entry.tried = (*tried, backend.id)
            # An upload that was begun is gone; one that was not can still be sent whole.
            begun = isinstance(body, BodyReader) and failure.sent
            if isinstance(failure, ClientError) or begun or not failure.safe_to_retry(idempotent):
                break
        raise failure or NoBackend(f"no backend of pool {self.pool} may receive traffic")

    def _with_host(self, head: bytes, backend: Backend) -> bytes:
        """`head` with the Host that this pool's backends are to see."""
        host = self._host
        if host == "backend":
            host = urlsplit(backend.url).netloc if backend.url.startswith("http") else "localhost"
        return _HOST_LINE.sub(b"\r\nHost: " + host.encode(), head, count=1)

    def settle(self, answer: Answer, code: str) -> None:
        """The answer is over, or given up: the backend is free again; the log has its entry."""
        backend = answer.backend.id
        if answer.took < 0.0:
            self._release(backend)
        else:
            ok = answer.status < 500 and code in ("", ClientGone.code)
            self.claims.tally(answer.canary, ok, answer.took)
            self._release(backend, answer.took)
        entry = answer.entry
        entry.status = answer.status
        entry.bytes = answer.sent
        entry.backend = backend
        entry.duration = answer.duration()
        entry.code = code
        self.log.add(entry)

    def _upstream(self, url: str) -> Upstream:
        settings = self._config.upstream
        upstream = Upstream(
            url,
            self._reactor,
            settings.max_idle,
            settings.idle_timeout,
            self._tls,
            self._config.tls.server_name,
        )
        upstream.send = self._session.get_adapter(url).send
        self._upstreams[url] = upstream
        return upstream

    def refresh(self) -> None:
        """The pool has changed: look again whether its algorithms want to know more than who is excluded."""
        self._special = self.claims.special

    def keep_only(self, urls: set[str]) -> None:
        """Forget the connections to backends that are no longer in the pool."""
        for url in self._upstreams.keys() - urls:
            self._upstreams.pop(url).close()

    def close(self) -> None:
        """Close all idle connections."""
        self.keep_only(set())
        self._session.close()
