"""One request to one pool: claim a backend, send, try another one where that is safe, settle.

`Forwarder.forward` is the loop; what it decides on (is this error worth a retry, on which request) is said by
the errors themselves (`lb.errors`) and by `Attempt`. The claim is given back exactly once: at once when an
attempt failed or the answer came whole, else when the body's iterable is closed.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Protocol
from urllib.parse import urlsplit

import requests

from lb.accesslog import AccessLog, Entry
from lb.algorithms.request import HeadRequest
from lb.errors import (
    ClientError,
    ClientGone,
    NoBackend,
    ProxyError,
)
from lb.model import Backend, Snapshot
from lb.proxy.answer import Answer, Settles
from lb.proxy.body import BodyReader
from lb.proxy.conn import NEVER, Reactor
from lb.proxy.messages import ProxyRequest
from lb.proxy.reveal import Reveal
from lb.proxy.trace import Explains, Recorder, Trace, Tracer
from lb.proxy.transport import IDEMPOTENT, Transport
from lb.proxy.tunnel import Tunnels
from lb.proxy.upstream import Upstream
from lb.settings import PoolConfig
from lb.state.guard import FAILED as AT_FAULT
from lb.state.guard import VOID, Guard

FAILED = 1.0
"""Seconds that a failed attempt counts at least: a backend that refuses at once is not a fast one."""

_HOST_LINE = re.compile(rb"\r\nhost:[^\r]*", re.IGNORECASE)


class ClaimSource(Explains, Protocol):
    """Where backends come from; see `lb.state.fleet`."""

    @property
    def special(self) -> bool: ...
    @property
    def asks(self) -> bool: ...
    @property
    def guard(self) -> Guard: ...
    def probe(self, name: str, request: HeadRequest | None, canary: bool, own: str) -> Backend | None: ...
    def blame(self, name: str, took: float, outcome: int) -> None: ...
    def canary_is_next(self) -> bool: ...
    def wait(
        self, exclude: Sequence[str], request: HeadRequest | None, canary: bool, own: str, entry: Entry
    ) -> Backend | None: ...
    def release(self, name: str, took: float = -1.0) -> None: ...
    def tally(self, canary: bool, ok: bool, took: float) -> None: ...


class Forwarder(Settles):
    """Sends requests to the backends of one pool."""

    def __init__(
        self,
        pool: str,
        config: PoolConfig,
        claims: ClaimSource,
        reactor: Reactor | None,
        log: AccessLog,
        tls: ssl.SSLContext,
        recorder: Recorder,
        reveal: Reveal | None = None,
        stream_close_delay: float = NEVER,
    ) -> None:
        """`tls`: how its `https://` backends are spoken to, as `config.tls` says. `reveal`: a field of
        answers that says who gave them. `stream_close_delay`: see `lb.proxy.tunnel.Tunnels`.
        """
        self.pool = pool
        self.claims = claims
        self._reveal = reveal
        self._tracer = Tracer(recorder, claims)
        #: Requests until the next one that is drawn.
        self._until = self._tracer.gap()
        self._claim = claims.claim
        self._release = claims.release
        self._guard = claims.guard
        self._special = claims.special or reveal is not None or self._guard.timed
        self.log = log
        self._config = config
        self._reactor = reactor
        self._tls = tls
        self._attempts = max(config.retry.attempts, 1)
        self._max_body = config.retry.max_body
        self._timeout = (config.timeouts.connect, config.timeouts.response)
        self._guard.permit = sum(self._timeout) + 1.0
        self._host = config.host
        self.tunnels = Tunnels(config.timeouts.tunnel, stream_close_delay)
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
        home: str = "",
    ) -> Answer:
        """The first answer a backend gives to the request with this `head` (whole) and `body`.

        `entry` says what it is, and is filled in on the way. `interim` takes the heads of interim answers;
        `upgrade`: the request asks for another protocol. `own`: the backend that the client belongs to, which
        gets the request if it can; `home`: the one that it belongs to, whatever its state. Raises ProxyError
        when there is no answer.
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
        trace: Trace | None = None
        self._until -= 1
        if self._until <= 0:
            self._until = self._tracer.gap()
            trace = self._tracer.sampled(entry, started, home)
        # Nothing of this is known, or wanted, by algorithms that look at no request and at no time.
        special = self._special or own != "" or trace is not None
        asked: HeadRequest | None = None
        canary = False
        began, took = started, -1.0
        if special:
            asked = HeadRequest(head, entry.client, entry.target) if self.claims.asks else None
            canary = self.claims.canary_is_next()
        while len(tried) < self._attempts:
            probing = ""
            if self._guard.due and not tried:
                # Rather one that can be repeated, of a client that belongs nowhere else.
                probing = self._guard.next(idempotent and not own and not isinstance(body, BodyReader))
            if probing:
                backend = self.claims.probe(probing, asked, canary, own)
                probing = probing if backend is not None and backend.id == probing else ""
            elif trace is not None:
                backend = trace.claim(tried, asked, canary, own)
            else:
                backend = self._claim(tried, asked, canary, own) if special else self._claim(tried)
            if backend is None:
                try:
                    backend = self.claims.wait(tried, asked, canary, own, entry)
                except ProxyError as exc:
                    failure = exc
                if backend is None:
                    trace = trace or self._tracer.late(entry, started, home)
                    trace.nobody(tried, canary, own, failure)
                    break
                if trace is not None:
                    trace.waited()
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
                if special:
                    took = answered - began
                answer = Answer(self, backend, entry, started, response, took, canary)
                if probing:
                    self._guard.probed(
                        probing, self._guard.judge(answer.status, "", took), f"{answer.status}"
                    )
                plain = trace is None and self._reveal is None
                return answer if plain else self._told(answer, trace, tried, own)
            except ProxyError as exc:
                failure = exc
            except BaseException:
                self._blame(backend.id, probing, -1.0, None)
                raise
            if special and failure.source == "upstream":
                took = max(perf_counter() - began, FAILED)
                self.claims.tally(canary, False, took)
            self._blame(backend.id, probing, took, failure)
            if trace is None and failure.source != "downstream":
                trace = self._tracer.late(entry, started, home)
            if trace is not None:
                trace.failed(backend.id, tried, canary, own, failure)
            tried = entry.tried = (*tried, backend.id)
            # An upload that was begun is gone; one that was not can still be sent whole.
            begun = isinstance(body, BodyReader) and failure.sent
            if isinstance(failure, ClientError) or begun or not failure.safe_to_retry(idempotent):
                break
        failure = failure or NoBackend(f"no backend of pool {self.pool} may receive traffic")
        if trace is not None:
            trace.end(failure.status, failure.code, "")
        raise failure

    def _blame(self, backend: str, probing: str, took: float, failure: ProxyError | None) -> None:
        """The attempt failed, or (None) was given up. Whose fault it was is said by the error."""
        outcome = VOID if failure is None or failure.source != "upstream" or failure.local else AT_FAULT
        if probing:
            self._guard.probed(probing, outcome, "" if failure is None else failure.code)
        self.claims.blame(backend, took, outcome)

    def _told(self, answer: Answer, trace: Trace | None, tried: Sequence[str], own: str) -> Answer:
        """`answer`, written down and with what is revealed of it."""
        backend = answer.backend.id
        if trace is not None:
            trace.answered(backend, tried, answer.canary, own, answer.status)
            answer.trace = trace
        if self._reveal is not None:
            algorithm, version = self.claims.algorithm(answer.canary)
            answer.lines += self._reveal.line(answer.entry, backend, algorithm, version)
        return answer

    def _with_host(self, head: bytes, backend: Backend) -> bytes:
        """`head` with the Host that this pool's backends are to see."""
        host = self._host
        if host == "backend":
            host = urlsplit(backend.url).netloc if backend.url.startswith("http") else "localhost"
        return _HOST_LINE.sub(b"\r\nHost: " + host.encode(), head, count=1)

    def settle(self, answer: Answer, code: str) -> None:
        """The answer is over, or given up: the backend is free again; the log has its entry."""
        backend = answer.backend.id
        bad = code != "" or answer.status >= 500
        if answer.took >= 0.0:
            ok = answer.status < 500 and code in ("", ClientGone.code)
            self.claims.tally(answer.canary, ok, answer.took)
        if bad or self._guard.watching:
            outcome = self._guard.judge(answer.status, code, answer.took)
            self.claims.blame(backend, answer.took, outcome)
        else:
            self._release(backend, answer.took)
        entry = answer.entry
        entry.status = answer.status
        entry.bytes = answer.sent
        entry.backend = backend
        entry.duration = answer.duration()
        entry.code = code
        self.log.add(entry)
        if bad or answer.trace is not None:
            self._tracer.settled(answer.trace, entry, answer.started, answer.canary)

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

    def update(self, snapshot: Snapshot) -> None:
        """The pool has changed."""
        # Its algorithms may want to know more than who is excluded, or not any more.
        self._special = self.claims.special or self._reveal is not None or self._guard.timed
        self.tunnels.update(snapshot)
        self.keep_only({backend.url for backend in snapshot.backends.values()})

    def keep_only(self, urls: set[str]) -> None:
        """Forget the connections to backends that are no longer in the pool."""
        for url in self._upstreams.keys() - urls:
            self._upstreams.pop(url).close()

    def close(self) -> None:
        """Close all idle connections."""
        self.keep_only(set())
        self._session.close()
