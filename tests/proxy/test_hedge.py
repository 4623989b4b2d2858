"""Hedges: what slow is, and two attempts of which the first to answer wins."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gevent
import pytest

from lb.accesslog import Entry
from lb.errors import ClientGone, UpstreamClosed
from lb.model import Backend as Member
from lb.model import Breaker, PoolSettings, Snapshot
from lb.proxy.conn import NEVER, Reactor
from lb.proxy.hedge import ENOUGH, Quantile
from lb.settings import DecisionSettings, HedgeSettings
from tests.proxy.test_forward import Make, Proxy
from tests.support.backends import (
    Backend,
    Peer,
    close_unanswered,
    deaf,
    head_of,
    ok,
    reset_unanswered,
    serve,
    several,
    stall,
)
from tests.support.green import in_greenlet, until

# What slow is: pure, with seeded chance.


def test_nothing_is_slow_until_enough_is_known() -> None:
    times = Quantile()
    for _ in range(ENOUGH - 1):
        times.add(0.01)
        assert times.value() == NEVER
    times.add(0.01)
    assert 0.01 <= times.value() < 0.011


@pytest.mark.parametrize("scale", [0.0005, 0.02, 3.0])
def test_the_quantile_is_at_most_a_bucket_off(scale: float) -> None:
    chance, times = random.Random(7), Quantile()
    drawn = [scale * chance.lognormvariate(0, 0.7) for _ in range(900)]
    for one in drawn:
        times.add(one)
    exact = sorted(drawn)[int(0.95 * len(drawn))]
    # A bucket is 9 % wide; the last 15 times may not be in it yet.
    assert 0.9 * exact <= times.value() <= 1.15 * exact


def test_it_follows_what_changes() -> None:
    times = Quantile()
    for _ in range(5000):
        times.add(0.001)
    for _ in range(5000):
        times.add(0.1)
    assert times.value() > 0.09
    for _ in range(10_000):
        times.add(0.001)
    assert times.value() < 0.0012
    for odd in (0.0, 1e-9, 1e9):  # at its ends
        times.add(odd)


# The race.


@pytest.fixture
def make(reactor: Reactor, tmp_path: Path) -> Iterator[Make]:
    made = Make(reactor, tmp_path)
    yield made
    for proxy in made._made:
        until(lambda proxy=proxy: sorted(proxy.claims.released) == sorted(proxy.claims.claimed), "claims")  # type: ignore[misc]
        proxy.close()


FAST = HedgeSettings(enabled=True, after=0.02)


def held(peer: Peer) -> None:
    """Answer when the test says so."""
    while peer.read_request() is not None:
        peer.backend.may_go_on.acquire(timeout=20)
        peer.send(ok(b"slow"))


def test_a_fast_answer_needs_no_hedge(make: Make) -> None:
    with several(serve(), serve()) as backends:
        proxy = make(*backends, hedge=HedgeSettings(enabled=True, after=10))
        for _ in range(6):
            assert proxy.call() == (200, b"ok")
        assert [len(one.requests) for one in backends] == [3, 3]


@pytest.mark.parametrize("kind", ["stalls", "deaf"])
def test_the_other_backend_answers_first(make: Make, kind: str) -> None:
    with Backend(stall) as slow, deaf() as unheard, Backend() as good:
        proxy = make(slow if kind == "stalls" else unheard, good, hedge=FAST)
        assert proxy.call() == (200, b"ok")
        (entry,) = proxy.logged()
        assert entry["backend"] == good.url
        if kind == "stalls":
            assert slow.closed.acquire(timeout=20)  # its connection was closed at once


def test_the_first_may_still_win(make: Make) -> None:
    with several(held, stall) as (first, second):
        proxy = make(first, second, hedge=FAST)

        def go() -> None:
            while not second.requests:
                gevent.sleep(0.005)
            first.may_go_on.release()

        gevent.spawn(go)
        assert proxy.call() == (200, b"slow")
        assert second.closed.acquire(timeout=20)


def test_a_body_that_streams_is_the_winners(make: Make) -> None:
    def streams(peer: Peer) -> None:
        if peer.read_request() is not None:
            peer.send(head_of(200, "Content-Length: 300000") + b"y" * 300_000)

    with several(stall, streams) as (slow, good):
        proxy = make(slow, good, hedge=FAST)
        assert proxy.call() == (200, b"y" * 300_000)


def test_one_fails_and_the_other_goes_on(make: Make) -> None:
    broken = threading.Event()

    def breaks(peer: Peer) -> None:
        if peer.read_request() is not None:
            broken.wait(20)
            peer.reset()

    with several(breaks, held) as (first, second):
        proxy = make(first, second, hedge=FAST)

        def go() -> None:
            while not second.requests:
                gevent.sleep(0.005)
            broken.set()
            gevent.sleep(0.05)
            second.may_go_on.release()

        gevent.spawn(go)
        assert proxy.call() == (200, b"slow")
    with several(held, close_unanswered) as (first, second):
        proxy = make(first, second, hedge=FAST)

        def end() -> None:
            while not second.requests:
                gevent.sleep(0.005)
            gevent.sleep(0.05)
            first.may_go_on.release()

        gevent.spawn(end)
        assert proxy.call() == (200, b"slow")


def test_a_failure_before_is_a_retry_as_ever(make: Make) -> None:
    with several(reset_unanswered, serve()) as (bad, good):
        proxy = make(bad, good, hedge=HedgeSettings(enabled=True, after=10))
        assert proxy.call() == (200, b"ok")
    with several(reset_unanswered, reset_unanswered) as backends:
        proxy = make(*backends, hedge=HedgeSettings(enabled=True, after=10))
        proxy.fails(UpstreamClosed)


def test_both_fail_and_the_first_says_why(make: Make) -> None:
    """The claims of both are given back."""

    def waits(peer: Peer) -> None:
        if peer.read_request() is not None:
            peer.backend.may_go_on.acquire(timeout=20)
            peer.reset()

    def nonsense(peer: Peer) -> None:
        if peer.read_request() is not None:
            peer.backend.may_go_on.acquire(timeout=20)
            peer.send(b"nonsense\r\n\r\n")

    with several(waits, nonsense) as (first, second):
        proxy = make(first, second, hedge=FAST, attempts=1)

        def go() -> None:
            while not second.requests:
                gevent.sleep(0.005)
            for one in (first, second):
                one.may_go_on.release()

        gevent.spawn(go)
        proxy.fails(UpstreamClosed)
        assert sorted(proxy.claims.claimed) == sorted([first.url, second.url])


def test_who_has_failed_already_is_not_asked_besides(make: Make) -> None:
    with several(reset_unanswered, held) as (bad, slow):
        proxy = make(bad, slow, hedge=HedgeSettings(enabled=True, after=0.1))
        gevent.spawn_later(0.4, slow.may_go_on.release)
        assert proxy.call() == (200, b"slow")
        assert proxy.claims.claimed == [bad.url, slow.url]


def test_never_beyond_the_budget(make: Make) -> None:
    def slow(peer: Peer) -> None:
        while peer.read_request() is not None:
            gevent.sleep(0)
            threading.Event().wait(0.06)
            peer.send(ok(b"slow"))

    with several(slow, slow) as backends:
        proxy = make(*backends, hedge=HedgeSettings(enabled=True, after=0.005), budget=0, budget_min=0.3)
        for _ in range(12):
            assert proxy.call() == (200, b"slow")
        assert sum(len(one.requests) for one in backends) == 12 + 3


@contextmanager
def never_hedged(make: Make) -> Iterator[tuple[Proxy, Backend]]:
    """A slow backend, which is claimed first, and another one, which gets nothing."""
    with several(held, serve()) as (first, second):
        gevent.spawn_later(0.2, first.may_go_on.release)
        yield make(first, second, hedge=FAST), first
        assert len(second.requests) == 0


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_only_what_is_idempotent_and_has_no_body(make: Make, method: str) -> None:
    with never_hedged(make) as (proxy, _):
        assert proxy.call(method, proxy.client_body(1, b"x")) == (200, b"slow")


def test_nor_a_post_that_may_be_repeated(make: Make) -> None:
    with never_hedged(make) as (proxy, _):
        entry = Entry(0.0, "id", "1.2.3.4", "POST", "h", "/x")
        head = b"POST /x HTTP/1.1\r\nHost: h\r\n\r\n"
        answer = in_greenlet(lambda: proxy.forwarder.forward(entry, head, None, 0.0, keyed=True))
        assert answer.whole() == b"slow"


def test_nor_what_becomes_a_tunnel(make: Make) -> None:
    """Two backends would each begin a conversation."""
    with never_hedged(make) as (proxy, _):
        entry = Entry(0.0, "id", "1.2.3.4", "GET", "h", "/x")
        head = b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
        answer = in_greenlet(lambda: proxy.forwarder.forward(entry, head, None, 0.0, upgrade=True))
        assert answer.whole() == b"slow"


def test_nor_one_of_a_client_that_belongs_to_a_backend(make: Make) -> None:
    with never_hedged(make) as (proxy, first):
        assert proxy.forward(own=first.url).whole() == b"slow"


def test_nor_a_request_that_probes(make: Make) -> None:
    """Who is ejected has to answer itself: another one's answer would say that it is well."""
    with several(serve(), held) as (other, out):
        proxy = make(other, out, hedge=FAST)
        member = Member(id=out.url, url=out.url, breaker=Breaker(open=True, until=5.0))
        proxy.guard.update(Snapshot("p", 1, PoolSettings(), {out.url: member}))
        proxy.guard.arm((out.url,))
        gevent.spawn_later(0.2, out.may_go_on.release)
        assert proxy.call() == (200, b"slow")
        assert [(event.name, event.what) for event in proxy.claims.told] == [(out.url, "succeeded")]
        assert len(other.requests) == 0


def test_interim_answers_are_those_of_the_first(make: Make) -> None:
    """Of two backends they would be a mixture, which may belong to the answer of neither."""

    def hints(peer: Peer) -> None:
        if peer.read_request() is not None:
            peer.send(head_of(103, f"Link: </{peer.backend.port}>"))
            peer.wait_closed()

    def hints_and_answers(peer: Peer) -> None:
        if peer.read_request() is not None:
            peer.send(head_of(103, "Link: </first>"))
            peer.backend.may_go_on.acquire(timeout=20)
            peer.send(ok(b"slow"))

    with several(hints_and_answers, hints) as (first, second):
        proxy, heads = make(first, second, hedge=FAST), list[bytes]()

        def go() -> None:
            while not second.requests:
                gevent.sleep(0.005)
            gevent.sleep(0.05)  # its hints are on their way; a mistake shows, if not each time
            first.may_go_on.release()

        gevent.spawn(go)
        entry = Entry(0.0, "id", "1.2.3.4", "GET", "h", "/x")
        head = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
        answer = in_greenlet(lambda: proxy.forwarder.forward(entry, head, None, 0.0, heads.append))
        assert answer.whole() == b"slow"
        assert [b"</first>" in one for one in heads] == [True]


def test_nobody_else_is_no_reason_to_take_a_retry(make: Make) -> None:
    with Backend(held) as only:
        proxy = make(only, hedge=FAST, budget=0, budget_min=0)
        proxy.forwarder.update(Snapshot("p", 1, PoolSettings(), {only.url: Member(only.url, only.url)}))
        gevent.spawn_later(0.2, only.may_go_on.release)
        assert proxy.call() == (200, b"slow")
        assert proxy.forwarder._budget.refused == 0


def test_who_goes_away_ends_both(make: Make, reactor: Reactor) -> None:
    with several(stall, stall) as backends:
        proxy = make(*backends, hedge=FAST)

        def run() -> None:
            me = gevent.getcurrent()

            def gone() -> None:
                while not all(one.requests for one in backends):
                    gevent.sleep(0.005)
                reactor.doom(me, 0.0, ClientGone("gone"), None)

            gevent.spawn(gone)
            entry = Entry(0.0, "id", "1.2.3.4", "GET", "h", "/x")
            with pytest.raises(ClientGone):
                proxy.forwarder.forward(entry, b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n", None, 0.0)

        in_greenlet(run)
        for one in backends:
            assert one.closed.acquire(timeout=20)


def test_who_was_outrun_before_it_was_heard_is_sent_nothing(make: Make) -> None:
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, Backend() as good:
        place = listener.getsockname()
        fillers = [socket.socket() for _ in range(8)]
        for one in fillers:
            one.setblocking(False)
            one.connect_ex(place)
        names = {one.getsockname() for one in fillers}

        def hear() -> None:
            name = next(iter(names))
            while name in names:
                conn, name = listener.accept()
                with conn:
                    if name not in names:
                        heard.append(conn.recv(1000))

        proxy = make(f"http://127.0.0.1:{place[1]}", good, hedge=FAST)
        assert proxy.call() == (200, b"ok")
        listener.settimeout(15)
        thread = threading.Thread(target=hear)
        thread.start()
        until(lambda: heard, "the connection that nobody needs any more")
        thread.join()
        for one in fillers:
            one.close()
    assert heard == [b""]


def test_of_two_answers_at_once_the_other_one_is_closed(make: Make) -> None:
    sent = threading.Semaphore(0)

    def large(peer: Peer) -> None:
        if peer.read_request() is not None:
            peer.backend.may_go_on.acquire(timeout=20)
            peer.send(head_of(200, "Content-Length: 300000") + b"y" * 1000)
            sent.release()
            peer.wait_closed()

    with several(large, large) as backends:
        proxy = make(*backends, hedge=FAST)

        def go() -> None:
            while not all(one.requests for one in backends):
                gevent.sleep(0.005)
            for one in backends:
                one.may_go_on.release()
            # While this stands still nobody reads: both are there when the loop looks again.
            assert all(sent.acquire(timeout=20) for _ in backends)

        gevent.spawn(go)
        answer = proxy.forward()
        winner = answer.backend.url
        (other,) = (one for one in backends if one.url != winner)
        until(lambda: other.closed.acquire(blocking=False), "its connection to be closed")
        answer.close()


def test_it_is_told(make: Make) -> None:
    with several(stall, serve()) as (slow, good):
        proxy = make(slow, good, hedge=FAST, decisions=DecisionSettings(sample=1))
        assert proxy.call() == (200, b"ok")
        (told,) = proxy.recorder.pending
        assert [(one.backend, one.outcome, one.hedge) for one in told.attempts] == [
            (slow.url, "outrun", False),
            (good.url, "answered", True),
        ]
        assert not told.failed
