"""One request to a pool: which errors are worth another backend, and every claim given back exactly once."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lb.accesslog import AccessLog, Entry
from lb.algorithms.request import HeadRequest
from lb.certificates import client_context
from lb.decision import Basis, Excluded
from lb.errors import (
    BadRequest,
    BadResponse,
    ClientGone,
    ConnectFailed,
    ConnectTimeout,
    NoBackend,
    ProxyError,
    ResponseTimeout,
    TlsFailed,
    UpstreamClosed,
    UpstreamError,
)
from lb.model import Backend as Member
from lb.model import Breaker, OutlierPolicy, PoolSettings, Snapshot
from lb.proxy.answer import Answer
from lb.proxy.body import BodyReader, client_fault
from lb.proxy.conn import Conn, Reactor
from lb.proxy.dial import ThreadConn
from lb.proxy.forward import Forwarder
from lb.proxy.http1 import CHUNKED
from lb.proxy.reveal import reveal
from lb.proxy.trace import Recorder
from lb.settings import (
    DecisionSettings,
    HedgeSettings,
    PoolConfig,
    RetrySettings,
    TimeoutSettings,
    UpstreamTls,
)
from lb.state.budget import Budget
from lb.state.guard import FAILED, FINE, GONE, VOID, Event, Guard
from lb.state.seen import Seen
from tests.support.backends import (
    Backend,
    Peer,
    Request,
    Script,
    answer_of,
    chunked,
    close_unanswered,
    cut,
    deaf,
    head_of,
    ok,
    once,
    refusing,
    reset_unanswered,
    serve,
    several,
    stall,
)
from tests.support.certificates import Authority, Pair
from tests.support.green import in_greenlet, raw_pair


class Turns:
    """Backends by turn, with a book of what was claimed and given back."""

    def __init__(self, *urls: str) -> None:
        self.members = [Member(id=url, url=url) for url in urls]
        self.claimed: list[str] = []
        self.released: list[str] = []
        #: As while an algorithm looks at requests and times, and another one is tried out.
        self.special = self.asks = False
        self.requests: list[HeadRequest | None] = []
        self.times: list[float] = []
        self.tallies: list[tuple[bool, bool]] = []
        self.explained = 0
        self.told: list[Event] = []
        self.guard = Guard(Snapshot("p", 1, PoolSettings(), {}), self.told.append)
        self.guard.store_is(away=False)
        #: Backend, and what became of a request to it, of those that said more than that it is free.
        self.blamed: list[tuple[str, int]] = []

    def canary_is_next(self) -> bool:
        return self.special

    def wait(self, *how: object) -> Member | None:
        """Nobody is ever full here."""
        return None

    def tally(self, canary: bool, ok: bool, took: float) -> None:
        assert took >= 0
        self.tallies.append((canary, ok))

    def claim(
        self,
        exclude: Sequence[str] = (),
        request: HeadRequest | None = None,
        canary: bool = False,
        own: str = "",
    ) -> Member | None:
        assert canary is self.special
        self.requests.append(request)
        for member in sorted(self.members, key=lambda member: member.id != own):
            if member.id not in exclude:
                self.members.remove(member)
                self.members.append(member)
                self.claimed.append(member.id)
                return member
        return None

    def explain(
        self, exclude: Sequence[str], request: HeadRequest | None, canary: bool, own: str
    ) -> tuple[Member | None, Seen]:
        pick = self.claim(exclude, request, canary, own)
        self.explained += 1
        return pick, self._seen("shared", exclude)

    def seen(self, pick: str, exclude: Sequence[str], canary: bool, own: str) -> Seen:
        return self._seen("worker", exclude)

    def _seen(self, basis: Basis, exclude: Sequence[str]) -> Seen:
        excluded = tuple(Excluded(name, "tried") for name in exclude)
        return Seen("turns", 7, basis, self.special, "normal", "", "", (), excluded, 0)

    def algorithm(self, canary: bool) -> tuple[str, int]:
        return "turns", 7

    def probe(self, name: str, request: HeadRequest | None, canary: bool, own: str) -> Member | None:
        return self.claim((), request, canary, name)

    def blame(self, name: str, took: float, outcome: int) -> None:
        self.blamed.append((name, outcome))
        self.release(name, took)

    def release(self, name: str, took: float = -1.0) -> None:
        self.released.append(name)
        self.times.append(took)


class Proxy:
    """A forwarder over given backends, its claims and its log."""

    def __init__(
        self,
        reactor: Reactor | None,
        folder: Path,
        *urls: str,
        config: PoolConfig,
        decisions: DecisionSettings | None = None,
        deadline: float = 0.0,
    ) -> None:
        self.reactor = reactor
        self.claims = Turns(*urls)
        self.log_path = folder / "access.log"
        self.log = AccessLog(str(self.log_path))
        tls = client_context(config.tls, "tls")
        self.recorder = Recorder(decisions or DecisionSettings(sample=0), "w")
        shown = reveal(self.recorder.settings)
        budget = Budget("p", config.retry, lambda: None)
        self.forwarder = Forwarder(
            "p", config, self.claims, reactor, self.log, tls, self.recorder, budget, shown, deadline=deadline
        )
        self.clients: list[Any] = []
        self.guard = self.claims.guard

    def client_body(self, length: int, data: bytes = b"", buffered: bytes = b"") -> BodyReader:
        raw, theirs = raw_pair(blocking=self.reactor is None)
        conn = ThreadConn(raw) if self.reactor is None else Conn(self.reactor, raw)
        conn.timeout = 5
        self.clients += [conn, theirs]
        theirs.sendall(data)
        return BodyReader(conn, length, buffered, client_fault)

    def forward(
        self, method: str = "GET", body: BodyReader | None = None, target: str = "/x", own: str = ""
    ) -> Answer:
        framing = "" if body is None else f"Content-Length: {body.length}\r\n"
        if body is not None and body.length == CHUNKED:
            framing = "Transfer-Encoding: chunked\r\n"
        head = f"{method} {target} HTTP/1.1\r\nHost: h\r\n{framing}\r\n".encode()
        self.entry = Entry(time.time(), "id", "1.2.3.4", method, "h", target)
        return in_greenlet(
            lambda: self.forwarder.forward(self.entry, head, body, time.perf_counter(), own=own)
        )

    def call(
        self, method: str = "GET", body: BodyReader | None = None, target: str = "/x"
    ) -> tuple[int, bytes]:
        """The answer, read and settled as the application does it."""
        answer = self.forward(method, body, target)
        whole = answer.whole()
        if whole is None:
            whole = in_greenlet(lambda: b"".join(answer))
        answer.close()
        return answer.status, whole

    def fails(
        self, error: type[ProxyError], method: str = "GET", body: BodyReader | None = None
    ) -> ProxyError:
        with pytest.raises(error) as caught:
            self.forward(method, body)
        return caught.value

    def logged(self) -> list[dict[str, Any]]:
        self.log.flush()
        return [json.loads(line) for line in self.log_path.read_text().splitlines()]

    def close(self) -> None:
        self.forwarder.close()
        for one in self.clients:
            one.close()
        os.close(self.log._fd)


class Make:
    """Makes proxies of one kind, closes them, and looks that every claim was given back."""

    def __init__(self, reactor: Reactor | None, folder: Path) -> None:
        self._reactor, self._folder = reactor, folder
        self._made: list[Proxy] = []

    def __call__(
        self,
        *backends: Backend | str,
        attempts: int = 3,
        connect: float = 20.0,
        response: float = 20.0,
        tls: UpstreamTls = UpstreamTls(),  # noqa: B008 - frozen
        decisions: DecisionSettings | None = None,
        deadline: float = 0.0,
        hedge: HedgeSettings = HedgeSettings(),  # noqa: B008 - frozen
        **retry: Any,
    ) -> Proxy:
        urls = [one if isinstance(one, str) else one.url for one in backends]
        config = PoolConfig(
            retry=RetrySettings(attempts=attempts, **retry),
            timeouts=TimeoutSettings(connect=connect, response=response, idle=5.0),
            tls=tls,
            hedge=hedge,
        )
        self._made.append(
            Proxy(self._reactor, self._folder, *urls, config=config, decisions=decisions, deadline=deadline)
        )
        return self._made[-1]

    def close(self) -> None:
        for proxy in self._made:
            proxy.close()
        for proxy in self._made:
            assert proxy.claims.released == proxy.claims.claimed


@pytest.fixture(params=["greenlets", "threads"])
def make(request: pytest.FixtureRequest, reactor: Reactor, tmp_path: Path) -> Iterator[Make]:
    made = Make(reactor if request.param == "greenlets" else None, tmp_path)
    yield made
    made.close()


# What goes well.


def test_a_whole_answer_is_settled_at_once(make: Make) -> None:
    with Backend(serve(ok(b"hello"))) as backend:
        proxy = make(backend)
        answer = proxy.forward()
        assert proxy.claims.released == []
        assert answer.whole() == b"hello"
        assert proxy.claims.released == [backend.url]
        answer.close()
        answer.close()
        assert proxy.claims.released == [backend.url]


def test_a_streamed_answer_is_settled_when_it_is_closed(make: Make) -> None:
    with Backend(once(head_of(200, "Transfer-Encoding: chunked") + chunked(b"he", b"llo"))) as backend:
        proxy = make(backend)
        answer = proxy.forward()
        assert answer.whole() is None
        assert in_greenlet(lambda: b"".join(answer)) == b"hello"
        assert proxy.claims.released == []
        answer.close()
        answer.close()
        assert proxy.claims.released == [backend.url]


def test_the_log_tells_what_happened(make: Make) -> None:
    with Backend(serve(ok(b"hello"))) as backend:
        proxy = make(backend)
        proxy.call(target="/a?b")
        (entry,) = proxy.logged()
        assert entry.pop("time") > 1e9
        assert 0 < entry.pop("upstream") <= entry.pop("duration") < 5
        assert entry == {
            "id": "id",
            "client": "1.2.3.4",
            "method": "GET",
            "host": "h",
            "target": "/a?b",
            "status": 200,
            "bytes": 5,
            "pool": "p",
            "backend": backend.url,
        }


def test_what_algorithms_want_to_know(make: Make) -> None:
    """Requests, times and outcomes, only while somebody asks for them."""
    with Backend() as backend, refusing() as dead:
        proxy = make(backend)
        proxy.call()
        assert (proxy.claims.requests, proxy.claims.times, proxy.claims.tallies) == ([None], [-1.0], [])
        proxy.claims.special = True
        proxy.forwarder.update(Snapshot("p", 1, PoolSettings(), {}))
        proxy.call()
        assert proxy.claims.requests[1] is None
        assert 0 < proxy.claims.times[1] < 5
        proxy.claims.asks = True
        proxy.claims.members.insert(0, Member(id=dead, url=dead))
        proxy.call(target="/here")
        # Refused at once is not fast.
        assert proxy.claims.times[2] >= 1 > proxy.claims.times[3] > 0
        asked = proxy.claims.requests[2]
        assert asked is not None
        assert asked is proxy.claims.requests[3]
        assert (asked.client, asked.target, asked.header("host")) == ("1.2.3.4", "/here", "h")
        assert proxy.claims.tallies[:2] == [(True, True), (True, False)]


def test_who_is_to_blame(make: Make) -> None:
    """Who refuses, resets or says 503; not who says 404 or 500, nor any for what the client or we do."""
    statuses = iter((200, 404, 500, 503))
    with Backend() as backend, refusing() as dead:
        backend.script = serve(lambda _: answer_of(next(statuses, 200), b"x"))
        proxy = make(backend)
        for _ in range(4):
            proxy.call()
        assert proxy.claims.blamed == [(backend.url, FINE), (backend.url, FAILED)]
        proxy.claims.blamed.clear()
        proxy.claims.members.insert(0, Member(id=dead, url=dead))
        proxy.call()
        assert proxy.claims.blamed == [(dead, GONE)]
        assert proxy.forwarder.accepts(dead, 1.0) is False
        assert proxy.forwarder.accepts(backend.url, 1.0) is True


def test_a_client_that_leaves_within_its_upload_blames_nobody(make: Make) -> None:
    with Backend(lambda peer: peer.wait_closed()) as backend:
        proxy = make(backend)
        body = proxy.client_body(10, b"half")
        proxy.clients[-1].close()
        with pytest.raises(ClientGone):
            proxy.call("POST", body=body)
        assert proxy.claims.blamed == [(backend.url, VOID)]


def test_an_answer_that_takes_too_long_is_a_failure(make: Make) -> None:
    def slow(request: Request) -> bytes:
        time.sleep(0.3 if request.target == "/slow" else 0)
        return ok()

    with Backend(serve(slow)) as backend:
        proxy = make(backend)
        proxy.call(target="/slow")
        assert proxy.claims.blamed == []
        policy = OutlierPolicy(enabled=True, unhealthy_latency=0.25)
        snapshot = Snapshot("p", 1, PoolSettings(outlier=policy), {})
        proxy.guard.update(snapshot)
        proxy.forwarder.update(snapshot)
        proxy.call(target="/slow")
        assert proxy.claims.blamed == [(backend.url, FAILED)]


@pytest.mark.parametrize(("status", "what"), [(200, "succeeded"), (404, "succeeded"), (503, "failed")])
def test_one_request_probes_who_is_ejected(make: Make, status: int, what: str) -> None:
    with Backend(serve(answer_of(status, b"x"))) as backend, Backend() as other:
        proxy = make(other, backend)
        out = Member(id=backend.url, url=backend.url, breaker=Breaker(open=True, until=5.0))
        proxy.guard.update(Snapshot("p", 1, PoolSettings(), {backend.url: out}))
        proxy.guard.arm((backend.url,))
        proxy.call("POST", body=proxy.client_body(2, b"ab"))  # rather one that can be repeated
        assert proxy.claims.told == []
        proxy.call()
        assert [(event.name, event.what, event.until) for event in proxy.claims.told] == [
            (backend.url, what, 5.0)
        ]
        assert proxy.guard.due == ()
        proxy.call()
        assert len(proxy.claims.told) == 1


def test_a_probe_that_fails_costs_its_request_nothing(make: Make) -> None:
    with refusing() as dead, Backend() as other:
        proxy = make(other)
        proxy.claims.members.append(Member(id=dead, url=dead))
        out = Member(id=dead, url=dead, breaker=Breaker(open=True, until=5.0))
        proxy.guard.update(Snapshot("p", 1, PoolSettings(), {dead: out}))
        proxy.guard.arm((dead,))
        assert proxy.call()[0] == 200
        (event,) = proxy.claims.told
        assert (event.what, event.reason) == ("failed", "connect_failed")
        assert proxy.claims.claimed == [dead, other.url]


def test_the_clients_own_backend_is_asked_for(make: Make) -> None:
    with Backend() as first, Backend() as second, refusing() as dead:
        proxy = make(first, second)
        for one in (second, second, first, second):
            answer = proxy.forward(own=one.url)
            assert answer.backend.url == one.url
            answer.close()
        proxy.claims.members.append(Member(id=dead, url=dead))
        answer = proxy.forward(own=dead)
        assert answer.backend.url in (first.url, second.url)
        answer.close()
        assert proxy.claims.claimed[-2] == dead
        assert sorted(proxy.claims.claimed) == sorted(proxy.claims.released)


def test_a_request_that_is_not_drawn_leaves_nothing(make: Make) -> None:
    with Backend() as backend:
        proxy = make(backend)
        assert proxy.call()[0] == 200
        assert (len(proxy.recorder.pending), proxy.claims.explained) == (0, 0)


def test_one_that_is_drawn_is_explained(make: Make) -> None:
    with Backend() as backend, refusing() as dead:
        proxy = make(dead, backend, decisions=DecisionSettings(sample=0.5, rate=0))
        proxy.call()
        proxy.call()
        (one,) = (one for one in proxy.recorder.pending if one.sampled)  # every second one
        assert proxy.claims.explained == len(one.attempts)
        assert (one.id, one.backend, one.status, one.sampled) == ("id", backend.url, 200, True)
        assert {attempt.basis for attempt in one.attempts} == {"shared"}
        assert one.attempts[-1].outcome == "answered"


def test_one_that_fails_is_kept(make: Make) -> None:
    with Backend() as backend, refusing() as dead:
        proxy = make(dead, backend)
        assert proxy.call()[0] == 200
        (one,) = proxy.recorder.pending
        assert [attempt.outcome for attempt in one.attempts] == ["connect_failed", "answered"]
        assert one.attempts[1].excluded == (Excluded(dead, "tried"),)
        assert (proxy.claims.explained, one.sampled, one.status) == (0, False, 200)
    with refusing() as dead:
        proxy = make(dead)
        proxy.fails(ConnectFailed)
        (one,) = proxy.recorder.pending
        assert [attempt.outcome for attempt in one.attempts] == ["connect_failed", "no_backend"]
        assert (one.status, one.code, one.backend) == (502, "connect_failed", "")


def test_a_failed_answer_is_kept_and_a_client_that_went_is_not(make: Make) -> None:
    with Backend(serve(answer_of(503))) as backend:
        proxy = make(backend)
        proxy.call()
        assert [one.status for one in proxy.recorder.pending] == [503]
    half = head_of(200, "Content-Length: 10") + b"hello"
    with Backend(once(half)) as backend:
        proxy = make(backend)
        answer = proxy.forward()
        assert in_greenlet(lambda: next(answer)) == b"hello"
        answer.close()  # nobody wants the rest
        assert not proxy.recorder.pending
    with Backend(cut(half)) as backend:
        proxy = make(backend)
        answer = proxy.forward()
        assert in_greenlet(lambda: next(answer)) == b"hello"
        backend.may_go_on.release()
        with pytest.raises(UpstreamClosed):
            in_greenlet(lambda: next(answer))
        answer.close()
        assert [(one.status, one.code) for one in proxy.recorder.pending] == [(200, "upstream_closed")]


def test_what_is_revealed(make: Make) -> None:
    with Backend() as backend, refusing() as dead:
        shown = DecisionSettings(sample=0, header="X-LB", header_for=("1.2.3.0/24",))
        proxy = make(dead, backend, decisions=shown)
        proxy.claims.special = False
        proxy.claims.canary_is_next = lambda: False  # type: ignore[method-assign]
        answer = proxy.forward()
        value = dict(answer.headers())["X-LB"]
        assert value.endswith(f'version=7, backend="{backend.url}", tried=("{dead}")')
        answer.close()


def test_connections_are_kept_from_request_to_request(make: Make) -> None:
    with several(serve(), serve()) as backends:
        proxy = make(*backends)
        for _ in range(10):
            assert proxy.call() == (200, b"ok")
        assert [backend.connections for backend in backends] == [1, 1]


def test_connections_to_backends_that_left_are_closed(make: Make) -> None:
    with Backend() as backend:
        proxy = make(backend)
        member = Member(id=backend.id, url=backend.url)
        proxy.call()
        proxy.forwarder.update(Snapshot("p", 1, PoolSettings(), {member.id: member}))
        proxy.call()
        assert backend.connections == 1
        proxy.forwarder.update(Snapshot("p", 2, PoolSettings(), {}))
        proxy.call()
        assert backend.connections == 2


# Another try.


GARBAGE = once(b"garbage\r\n\r\n")
BROKEN: dict[str, Script] = {"reset": reset_unanswered, "closed": close_unanswered, "garbage": GARBAGE}


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("fault", BROKEN)
def test_what_is_idempotent_goes_to_another_backend(make: Make, method: str, fault: str) -> None:
    with several(BROKEN[fault], serve()) as (bad, good):
        proxy = make(bad, good)
        body = proxy.client_body(4, b"body") if method == "PUT" else None
        assert proxy.call(method, body)[0] == 200
        assert [len(bad.requests), len(good.requests)] == [1, 1]
        assert good.requests[0].body == (b"body" if method == "PUT" else b"")
        (entry,) = proxy.logged()
        assert (entry["tried"], entry["backend"]) == ([bad.url], good.url)


@pytest.mark.parametrize("method", ["POST", "PATCH", "BREW"])
@pytest.mark.parametrize("fault", BROKEN)
def test_what_is_not_is_never_sent_twice(make: Make, method: str, fault: str) -> None:
    with several(BROKEN[fault], serve()) as (bad, good):
        proxy = make(bad, good)
        proxy.fails(
            BadResponse if fault == "garbage" else UpstreamClosed, method, proxy.client_body(4, b"body")
        )
        assert [len(bad.requests), len(good.requests)] == [1, 0]


@pytest.mark.parametrize("fault", BROKEN)
def test_nor_is_a_post_without_a_body(make: Make, fault: str) -> None:
    for announced in (False, True):
        with several(BROKEN[fault], serve()) as (bad, good):
            proxy = make(bad, good)
            body = proxy.client_body(0) if announced else None
            proxy.fails(BadResponse if fault == "garbage" else UpstreamClosed, "POST", body)
            assert [len(bad.requests), len(good.requests)] == [1, 0]


@pytest.mark.parametrize("kind", ["none", "length", "chunked", "huge"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
def test_anything_is_tried_again_when_nothing_was_sent(make: Make, method: str, kind: str) -> None:
    with refusing() as url, Backend() as good:
        proxy = make(url, good)
        bodies: dict[str, Callable[[], BodyReader | None]] = {
            "none": lambda: None,
            "length": lambda: proxy.client_body(4, b"dy", b"bo"),
            "chunked": lambda: proxy.client_body(CHUNKED, b"4\r\nbody\r\n0\r\n\r\n"),
            "huge": lambda: proxy.client_body(150_000, b"x" * 150_000),
        }
        assert proxy.call(method, bodies[kind]())[0] == 200
        assert len(good.requests[0].body) == {"none": 0, "length": 4, "chunked": 4, "huge": 150_000}[kind]


def test_only_what_retry_on_names_is_tried_again(make: Make) -> None:
    with several(reset_unanswered, serve()) as (bad, good):
        proxy = make(bad, good, on=("connect-failure", "timeout"))
        proxy.fails(UpstreamClosed)
        assert len(good.requests) == 0
    with refusing() as dead, Backend() as good:
        proxy = make(dead, good, on=("reset",))
        proxy.fails(ConnectFailed)
        assert len(good.requests) == 0


def test_an_answer_that_retry_on_names(make: Make) -> None:
    """It is dropped only when another backend takes the request."""
    with several(serve(answer_of(503, b"busy")), serve()) as (bad, good):
        proxy = make(bad, good, on=("503",))
        assert proxy.call() == (200, b"ok")
        (entry,) = proxy.logged()
        assert (entry["tried"], entry["backend"], entry["status"]) == ([bad.url], good.url, 200)
        (told,) = proxy.recorder.pending
        assert [(one.outcome, one.status) for one in told.attempts] == [("answered", 503), ("answered", 200)]
        assert told.attempts[0].detail == "503 is in retry.on: another backend is tried"
        # No algorithm has asked for times, so none are told.
        assert (proxy.claims.times, proxy.claims.tallies) == ([-1.0, -1.0], [])
    # A body that is still on its way belongs to a connection that cannot be used again.
    streamed = head_of(503, "Transfer-Encoding: chunked") + b"4\r\nbusy\r\n"
    with several(once(streamed), serve()) as (bad, good):
        proxy = make(bad, good, on=("503",))
        assert proxy.call() == (200, b"ok")
        assert len(bad.requests) == 1


def test_the_last_such_answer_is_passed_on(make: Make) -> None:
    with several(serve(answer_of(503, b"one")), serve(answer_of(502, b"two"))) as backends:
        proxy = make(*backends, on=("502", "503"))
        assert proxy.call() == (502, b"two")
        (entry,) = proxy.logged()
        assert (entry["tried"], entry["backend"]) == ([backends[0].url], backends[1].url)
        (told,) = proxy.recorder.pending
        assert [one.outcome for one in told.attempts] == ["answered", "answered", "no_backend"]
        assert (told.status, told.backend) == (502, backends[1].url)
    with several(serve(answer_of(503, b"one")), serve()) as (bad, good):
        proxy = make(bad, good, on=("503",), attempts=1)
        assert proxy.call() == (503, b"one")
        assert len(good.requests) == 0


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_it_is_not_dropped_where_that_is_not_safe(make: Make, method: str) -> None:
    with several(serve(answer_of(503, b"busy")), serve()) as (bad, good):
        proxy = make(bad, good, on=("503",))
        assert proxy.call(method, proxy.client_body(4, b"body")) == (503, b"busy")
        assert proxy.call("PUT", proxy.client_body(CHUNKED, b"4\r\nbody\r\n0\r\n\r\n"))[0] == 200
        assert len(bad.requests) + len(good.requests) == 2
        # Without a body there is nothing that could not be sent again, and yet it may not.
        assert proxy.call(method) == (503, b"busy")
        assert len(bad.requests) + len(good.requests) == 3


def test_the_budget_is_used_up(make: Make) -> None:
    with several(reset_unanswered, reset_unanswered) as backends:
        proxy = make(*backends, budget=0, budget_min=0.2, attempts=2)
        codes = [proxy.fails(UpstreamError).code for _ in range(8)]
        # Two in ten seconds; after them the first failure is the answer.
        assert codes == ["upstream_closed"] * 2 + ["retry_budget"] * 6
        assert sum(len(one.requests) for one in backends) == 8 + 2
        assert proxy.forwarder.requests == 8


def test_an_answer_stays_when_the_budget_is_used_up(make: Make) -> None:
    with several(serve(answer_of(503, b"busy")), serve()) as (bad, good):
        proxy = make(bad, good, on=("503",), budget=0, budget_min=0)
        assert proxy.call() == (503, b"busy")
        (entry,) = proxy.logged()
        assert (entry["status"], entry["code"], entry["backend"]) == (503, "retry_budget", bad.url)
        assert "tried" not in entry


def test_what_was_not_sent_needs_no_budget_and_no_pause(make: Make) -> None:
    with refusing() as dead, Backend() as good:
        proxy = make(dead, good, budget=0, budget_min=0, backoff=60, backoff_max=60)
        for _ in range(4):
            assert proxy.call("POST", proxy.client_body(4, b"body"))[0] == 200


def test_there_is_a_pause_before_what_was_sent_is_sent_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with several(reset_unanswered, serve()) as (bad, good):
        proxy = make(bad, good)
        monkeypatch.setattr(proxy.forwarder._policy, "pause", lambda tries, chance: 0.2)
        began = time.monotonic()
        assert proxy.call()[0] == 200
        assert time.monotonic() - began >= 0.19


def test_no_pause_where_there_is_nobody_else(make: Make) -> None:
    with Backend(reset_unanswered) as bad:
        proxy = make(bad, backoff=60, backoff_max=60)
        proxy.forwarder.update(Snapshot("p", 1, PoolSettings(), {bad.url: Member(bad.url, bad.url)}))
        assert proxy.fails(UpstreamClosed).code == "upstream_closed"


def test_no_try_begins_after_the_requests_time(make: Make) -> None:
    with several(reset_unanswered, serve()) as (bad, good):
        proxy = make(bad, good, deadline=1e-6)
        assert proxy.fails(UpstreamClosed).code == "upstream_closed"
        assert len(good.requests) == 0


def test_not_accepted_in_time_is_nothing_sent(make: Make) -> None:
    with deaf() as url, Backend() as good:
        proxy = make(url, good, connect=0.3)
        assert proxy.call("POST", proxy.client_body(4, b"body")) == (200, b"ok")


@pytest.mark.parametrize("how", ["too large", "chunked"])
def test_an_upload_that_was_begun_is_not_sent_again(make: Make, how: str) -> None:
    """It is gone: only small ones of known length are kept."""
    with several(reset_unanswered, serve()) as (bad, good):
        proxy = make(bad, good, max_body=3)
        body = (
            proxy.client_body(4, b"body")
            if how == "too large"
            else proxy.client_body(CHUNKED, b"4\r\nbody\r\n0\r\n\r\n")
        )
        proxy.fails(UpstreamClosed, "PUT", body)
        assert good.requests == []


def test_no_more_than_so_many_attempts(make: Make) -> None:
    with refusing() as one, refusing() as two, refusing() as three, Backend() as good:
        proxy = make(one, two, three, good, attempts=3)
        proxy.fails(ConnectFailed)
        assert proxy.claims.claimed == [one, two, three]
        assert proxy.entry.tried == (one, two, three)


def test_one_attempt_means_no_retry(make: Make) -> None:
    with refusing() as url, Backend() as good:
        make(url, good, attempts=1).fails(ConnectFailed)
        assert good.requests == []


def test_no_backend_is_tried_twice(make: Make) -> None:
    with refusing() as url:
        proxy = make(url, attempts=5)
        proxy.fails(ConnectFailed)
        assert proxy.claims.claimed == [url]


def test_no_backend_at_all(make: Make) -> None:
    error = make().fails(NoBackend)
    assert (error.status, error.code) == (503, "no_backend")


@pytest.mark.parametrize(
    ("fault", "error", "status"),
    [
        (reset_unanswered, UpstreamClosed, 502),
        (GARBAGE, BadResponse, 502),
        (stall, ResponseTimeout, 504),
    ],
)
def test_the_last_fault_is_the_answer(
    make: Make, fault: Script, error: type[ProxyError], status: int
) -> None:
    with several(fault, fault) as backends:
        proxy = make(*backends, response=0.1)
        assert proxy.fails(error).status == status
        assert [len(backend.requests) for backend in backends] == [1, 1]


def test_nothing_to_connect_to_in_time(make: Make) -> None:
    with deaf() as url:
        assert make(url, connect=0.3).fails(ConnectTimeout).status == 504


# What the client does.


def test_a_client_that_goes_away_ends_it(make: Make) -> None:
    with several(serve(), serve()) as (first, second):
        proxy = make(first, second)
        body = proxy.client_body(1_000_000, b"x" * 1000)
        proxy.clients[-1].close()
        proxy.fails(ClientGone, "PUT", body)
        assert second.connections == 0


def test_a_clients_nonsense_ends_it(make: Make) -> None:
    with several(serve(), serve()) as (first, second):
        proxy = make(first, second)
        proxy.fails(BadRequest, "PUT", proxy.client_body(CHUNKED, b"2\r\nok\r\nnonsense\r\n"))
        assert second.connections == 0


def test_a_clients_small_body_that_never_comes_costs_no_backend(make: Make) -> None:
    with Backend() as backend:
        proxy = make(backend)
        body = proxy.client_body(10, b"x")
        proxy.clients[-1].close()
        proxy.fails(ClientGone, "PUT", body)
        assert proxy.claims.claimed == []


# Answers that are given up or break.


def test_an_answer_that_is_given_up_closes_its_connection(make: Make) -> None:
    with Backend(once(head_of(200, "Content-Length: 10") + b"hello")) as backend:
        proxy = make(backend)
        answer = proxy.forward()
        assert in_greenlet(lambda: next(answer)) == b"hello"
        answer.close()
        (entry,) = proxy.logged()
        assert (entry["status"], entry["bytes"], entry["code"]) == (200, 5, "client_gone")


def test_an_answer_that_breaks_is_an_error_and_logged_as_the_backends(make: Make) -> None:
    with Backend(cut(head_of(200, "Content-Length: 10") + b"hello")) as backend:
        proxy = make(backend)
        answer = proxy.forward()
        assert in_greenlet(lambda: next(answer)) == b"hello"
        backend.may_go_on.release()
        with pytest.raises(UpstreamClosed):
            in_greenlet(lambda: next(answer))
        answer.close()
        (entry,) = proxy.logged()
        assert (entry["status"], entry["bytes"], entry["code"]) == (200, 5, "upstream_closed")


@pytest.mark.parametrize("missing", [0, 1])
def test_relayed_bytes_are_counted_also_when_it_breaks(make: Make, missing: int) -> None:
    answer_head = head_of(200, f"Content-Length: {100_000 + missing}")
    with Backend(once(answer_head + b"x" * 100_000)) as backend:
        proxy = make(backend)
        answer = proxy.forward()
        body = proxy.client_body(0)  # for its connection: what it is relayed to
        to, theirs = proxy.clients[-2:]
        got = bytearray()

        def read() -> None:
            while len(got) < 100_001:
                got.extend(theirs.recv(10_000))

        reader = threading.Thread(target=read)
        reader.start()
        assert body.complete
        try:
            in_greenlet(lambda: answer.relay(to, chunked=False, head=b"h"))
            assert not missing
        except UpstreamClosed:
            assert missing
        reader.join(10)
        answer.close()
        (entry,) = proxy.logged()
        assert (entry["bytes"], entry.get("code", "")) == (100_000, "upstream_closed" if missing else "")


# Backends that speak TLS.


def test_tls_that_is_trusted(make: Make, authority: Authority, server_pair: Pair) -> None:
    with Backend(serve(), tls=server_pair.server()) as backend:
        proxy = make(backend, tls=UpstreamTls(ca=str(authority.ca)))
        assert proxy.call("POST", proxy.client_body(4, b"body")) == (200, b"ok")
        assert proxy.call() == (200, b"ok")
        assert backend.connections == 1


def test_tls_that_is_not_trusted(make: Make, server_pair: Pair) -> None:
    """Nothing was sent, so even a POST may go elsewhere."""
    with Backend(serve(), tls=server_pair.server()) as bad, Backend() as good:
        proxy = make(bad, good)
        assert proxy.call("POST", proxy.client_body(4, b"body")) == (200, b"ok")
        assert bad.requests == []
        error = make(bad).fails(TlsFailed)
        assert error.code == "tls_failed"
        assert "its certificate is not accepted: unable to get local issuer certificate" in str(error)
        assert make(bad, tls=UpstreamTls(verify=False)).call() == (200, b"ok")


def test_the_name_that_is_asked_for(make: Make, authority: Authority, server_pair: Pair) -> None:
    ca = str(authority.ca)
    with Backend(serve(), tls=server_pair.server()) as backend:
        by_name = backend.url.replace("127.0.0.1", "localhost")
        assert make(by_name, tls=UpstreamTls(ca=ca)).call() == (200, b"ok")
        assert make(backend, tls=UpstreamTls(ca=ca)).call() == (200, b"ok")
        assert make(backend, tls=UpstreamTls(ca=ca, server_name="backend.example")).call() == (200, b"ok")
        other = make(by_name, tls=UpstreamTls(ca=ca, server_name="other.example"))
        assert "Hostname mismatch" in str(other.fails(TlsFailed))
        assert make(by_name, tls=UpstreamTls(verify=False)).call() == (200, b"ok")
        assert backend.names == ["localhost", None, "backend.example", "other.example", "localhost"]


def test_a_certificate_of_ours(make: Make, authority: Authority, server_pair: Pair) -> None:
    ours = authority.issue("client")
    ca, certificate, key = str(authority.ca), str(ours.certificate), str(ours.key)
    with Backend(serve(), tls=server_pair.server(authority.ca)) as backend:
        assert make(backend, tls=UpstreamTls(ca=ca, certificate=certificate, key=key)).call() == (200, b"ok")
        # With TLS 1.3 a client is told only after its own half of the handshake.
        make(backend, tls=UpstreamTls(ca=ca)).fails(UpstreamClosed)
        assert len(backend.requests) == 1


def test_no_tls_at_all(make: Make) -> None:
    with Backend(answer_anything) as plain:
        error = make(plain.url.replace("http:", "https:")).fails(TlsFailed)
        assert "no TLS: WRONG_VERSION_NUMBER" in str(error)
    with Backend(Peer.wait_closed) as mute, Backend() as good:
        proxy = make(mute.url.replace("http:", "https:"), good, connect=0.2)
        assert proxy.call("POST", proxy.client_body(4, b"body")) == (200, b"ok")
        make(mute.url.replace("http:", "https:"), connect=0.2).fails(ConnectTimeout)
    with refusing() as url:
        make(url.replace("http:", "https:")).fails(ConnectFailed)


def answer_anything(peer: Peer) -> None:
    peer.sock.recv(1000)
    peer.send(answer_of(400))
    peer.wait_closed()
