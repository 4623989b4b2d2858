"""One request to one pool: claim a backend, send, try another one where that is safe, settle.

`Forwarder.forward` is the loop; what it decides on (is this error worth a retry, on which request) is said by
the errors themselves (`lb.errors`) and by `lb.proxy.retry`. The claim is given back exactly once: at once
when an attempt failed or the answer came whole, else when the body's iterable is closed.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from random import random
from time import perf_counter, sleep
from typing import Protocol

from lb.accesslog import AccessLog, Entry
from lb.algorithms.request import HeadRequest
from lb.errors import (
    ClientGone,
    NoBackend,
    ProxyError,
    RetryBudgetSpent,
)
from lb.model import Backend, Snapshot
from lb.proxy.answer import Answer, Settles
from lb.proxy.body import BodyReader
from lb.proxy.conn import NEVER, Reactor
from lb.proxy.hedge import Hedges
from lb.proxy.messages import ProxyRequest, ProxyResponse
from lb.proxy.retry import Policy, spent
from lb.proxy.reveal import Reveal
from lb.proxy.trace import Explains, Recorder, Trace, Tracer
from lb.proxy.transport import IDEMPOTENT
from lb.proxy.tunnel import Tunnels
from lb.proxy.upstreams import Upstreams
from lb.settings import PoolConfig
from lb.state.budget import Budget
from lb.state.guard import VOID, Guard, outcome_of
from lb.state.registry import Registry

FAILED = 1.0
"""Seconds that a failed attempt counts at least: a backend that refuses at once is not a fast one."""


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
        budget: Budget,
        reveal: Reveal | None = None,
        stream_close_delay: float = NEVER,
        deadline: float = 0.0,
    ) -> None:
        """`tls`: how its `https://` backends are spoken to, as `config.tls` says. `reveal`: a field of
        answers that says who gave them. `stream_close_delay`: see `lb.proxy.tunnel.Tunnels`. `deadline`:
        seconds that a request may take in all; 0: any time.
        """
        self.pool = pool
        self.claims = claims
        self._reveal = reveal
        self._tracer = Tracer(recorder, claims)
        #: Requests until the next one that is drawn.
        self._until = self._drawn = self._tracer.gap()
        self._claim = claims.claim
        self._release = claims.release
        self._guard = claims.guard
        self._special = claims.special or reveal is not None or self._guard.timed
        self.log = log
        self._reactor = reactor
        self._policy = Policy(config.retry, deadline)
        self._attempts = self._policy.attempts
        self._statuses = self._policy.statuses
        self._budget = budget
        #: How many backends the pool has, as far as that is known.
        self._members = 1 << 30
        self._max_body = config.retry.max_body
        self._timeout = (config.timeouts.connect, config.timeouts.response)
        self._guard.permit = sum(self._timeout) + 1.0
        self.tunnels = Tunnels(config.timeouts.tunnel, stream_close_delay)
        self._hedges: Hedges | None = None
        if config.hedge.enabled and reactor is not None:
            may = lambda: self._members > 1 and budget.take(self.requests)  # noqa: E731 - it is one line
            self._hedges = Hedges(reactor, config.hedge.after, may, self._outrun)
        self._upstreams = Upstreams(config, reactor, tls)

    @property
    def requests(self) -> int:
        """How many there have been so far."""
        return self._drawn - self._until

    def beat(self, registry: Registry) -> None:
        """Tell the fleet what it wants to know once a second."""
        self._budget.tell(registry, self.requests)

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
        keyed: bool = False,
    ) -> Answer:
        """The first answer a backend gives to the request with this `head` (whole) and `body`.

        `entry` says what it is, and is filled in on the way. `interim` takes the heads of interim answers;
        `upgrade`: the request asks for another protocol. `own`: the backend that the client belongs to, which
        gets the request if it can; `home`: the one that it belongs to, whatever its state. `keyed`: whatever
        its method, it may be sent twice (see `lb.idempotency`). Raises ProxyError when there is no answer.
        """
        method = entry.method
        idempotent = keyed or method in IDEMPOTENT
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
            self._drawn += self._until
            trace = self._tracer.sampled(entry, started, home)
        # Nothing of this is known, or wanted, by algorithms that look at no request and at no time.
        special = self._special or own != "" or trace is not None
        asked: HeadRequest | None = None
        canary = False
        began, took = started, -1.0
        if special:
            asked = HeadRequest(head, entry.client, entry.target) if self.claims.asks else None
            canary = self.claims.canary_is_next()
        held: Answer | None = None  # one after which another backend is tried
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
                if held is None:
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
            if held is not None:
                entry.tried = tried
                self._discard(held)
                held = None
            if special:
                took, began = -1.0, perf_counter()
            try:
                hedges = self._hedges
                if (
                    hedges is not None
                    and body is None
                    and method in IDEMPOTENT
                    and not (upgrade or own or probing)
                ):
                    backend, response, began = self._race(
                        hedges, backend, entry, head, tried, asked, canary, trace, interim
                    )
                else:
                    request = self._upstreams.request(backend, method, entry.target, head, body)
                    request.interim = interim
                    request.upgrade = upgrade
                    response = request.upstream.send(request, stream=True, timeout=self._timeout)
                answered = perf_counter()
                entry.upstream = answered - started
                if special:
                    took = answered - began
                answer = Answer(self, backend, entry, started, response, took, canary)
                if probing:
                    outcome = self._guard.judge(answer.status, "", took)
                    self._guard.probed(probing, outcome, f"{answer.status}")
                if not self._statuses or answer.status not in self._statuses:
                    plain = trace is None and self._reveal is None
                    return answer if plain else self._told(answer, trace, tried, own)
            except ProxyError as exc:
                failure = exc
            except BaseException:
                self._blame(backend.id, probing, -1.0, None)
                raise
            else:
                if not idempotent or isinstance(body, BodyReader) or not self._drop(answer, len(tried) + 1):
                    return self._told(answer, trace, tried, own)
                held = answer
                trace = trace or self._tracer.late(entry, started, home)
                after = took if took >= 0.0 else entry.upstream
                trace.discarded(backend.id, tried, canary, own, answer.status, after)
                tried = (*tried, backend.id)
                continue
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
            if begun or not self._policy.worth(failure, idempotent):
                break
            if failure.sent and (why := self._wait_for_try(started, len(tried))):
                failure = spent(failure) if why == RetryBudgetSpent.code else failure
                break
        if held is not None:  # there is no other backend: it is the best that can be said
            return self._told(held, trace, tried, own, told=True)
        failure = failure or NoBackend(f"no backend of pool {self.pool} may receive traffic")
        if trace is not None:
            trace.end(failure.status, failure.code, "")
        raise failure

    def _race(
        self,
        hedges: Hedges,
        backend: Backend,
        entry: Entry,
        head: bytes,
        tried: tuple[str, ...],
        asked: HeadRequest | None,
        canary: bool,
        trace: Trace | None,
        interim: Callable[[bytes], None] | None,
    ) -> tuple[Backend, ProxyResponse, float]:
        """Send it to `backend`, and to another one when that is slow; see `lb.proxy.hedge`."""

        def make(whom: Backend) -> ProxyRequest:
            request = self._upstreams.request(whom, entry.method, entry.target, head, None)
            request.interim = interim if whom is backend else None
            return request

        def claim(named: tuple[str, ...]) -> Backend | None:
            return self._claim(named, asked, canary, "") if self._special else self._claim(named)

        def tell(whose: str, began: float, hedge: bool, failure: ProxyError | None) -> None:
            if trace is not None:
                trace.outrun(whose, tried, canary, began, hedge, failure)

        return hedges.send(backend, make, claim, self._timeout, tried, tell)

    def _outrun(self, backend: str) -> None:
        """It was asked besides, and is not needed any more: that says nothing against it."""
        self.claims.blame(backend, -1.0, VOID)

    def _blame(self, backend: str, probing: str, took: float, failure: ProxyError | None) -> None:
        """The attempt failed, or (None) was given up. Whose fault it was is said by the error."""
        outcome = outcome_of(failure)
        if probing:
            self._guard.probed(probing, outcome, "" if failure is None else failure.code)
        self.claims.blame(backend, took, outcome)

    def _wait_for_try(self, started: float, tries: int) -> str:
        """Wait until something that was sent to `tries` backends may be sent to another one, and return "";
        else, at once, why it may not.
        """
        pause = self._policy.pause(tries, random())
        if tries >= min(self._attempts, self._members):
            return "last_try"
        if not self._policy.in_time(perf_counter() - started, pause):
            return "no_time"
        if not self._budget.take(self.requests):
            return RetryBudgetSpent.code
        if pause > 0.0:
            (sleep if self._reactor is None else self._reactor.sleep)(pause)
        return ""

    def _drop(self, answer: Answer, tries: int) -> bool:
        """May another backend be tried after `answer`, which `retry.on` names? Waits until then."""
        try:
            why = self._wait_for_try(answer.started, tries)
        except BaseException:
            self._discard(answer)
            raise
        if why == RetryBudgetSpent.code:
            answer.code = why
        return not why

    def _discard(self, answer: Answer) -> None:
        """Another backend is tried: this one's answer counts as a failure."""
        answer.discard()
        if answer.took >= 0.0:
            self.claims.tally(answer.canary, False, answer.took)
        outcome = self._guard.judge(answer.status, "", answer.took)
        self.claims.blame(answer.backend.id, answer.took, outcome)

    def _told(
        self, answer: Answer, trace: Trace | None, tried: Sequence[str], own: str, told: bool = False
    ) -> Answer:
        """`answer`, written down (unless the trace has it already) and with what is revealed of it."""
        backend = answer.backend.id
        if trace is not None:
            if not told:
                trace.answered(backend, tried, answer.canary, own, answer.status)
            answer.trace = trace
        if self._reveal is not None:
            algorithm, version = self.claims.algorithm(answer.canary)
            answer.lines += self._reveal.line(answer.entry, backend, algorithm, version)
        return answer

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

    def update(self, snapshot: Snapshot) -> None:
        """The pool has changed."""
        # Its algorithms may want to know more than who is excluded, or not any more.
        self._special = self.claims.special or self._reveal is not None or self._guard.timed
        self._members = len(snapshot.backends)
        self.tunnels.update(snapshot)
        self._upstreams.keep_only({backend.url for backend in snapshot.backends.values()})

    def accepts(self, url: str, timeout: float) -> bool | None:
        """Does the backend at `url` accept connections? See `Upstream.accepts`."""
        return self._upstreams.accepts(url, timeout)

    def close(self) -> None:
        """Close all idle connections."""
        self._upstreams.close()
