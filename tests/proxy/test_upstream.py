"""The connections kept to one backend: which is used, how long they stay, and where a name leads."""

from __future__ import annotations

import resource
import socket
import sys
import threading
import time
from pathlib import Path

import gevent
import pytest

from lb.certificates import client_context
from lb.errors import ConnectFailed, ConnectTimeout, Overloaded
from lb.proxy.conn import Conn, Reactor
from lb.proxy.dial import ThreadConn, TlsThreadConn
from lb.proxy.tls import TlsConn
from lb.proxy.upstream import Upstream, went_away
from lb.settings import UpstreamTls
from tests.support.backends import Backend, Peer, deaf, refusing
from tests.support.certificates import Authority, Pair
from tests.support.green import in_greenlet, until


def hold(peer: Peer) -> None:
    """Keep the connection open until told to let go of it."""
    peer.backend.may_go_on.acquire(timeout=20)


def talk(peer: Peer) -> None:
    """Say something nobody has asked for."""
    peer.send(b"HTTP/1.1 408 Timeout\r\n\r\n")
    peer.backend.may_go_on.acquire(timeout=20)


@pytest.fixture(params=["greenlets", "threads"])
def own_reactor(request: pytest.FixtureRequest, reactor: Reactor) -> Reactor | None:
    return reactor if request.param == "greenlets" else None


def open_one(upstream: Upstream) -> Conn | ThreadConn:
    return in_greenlet(lambda: upstream.connect(5))


def test_the_connection_used_last_is_used_next(own_reactor: Reactor | None) -> None:
    """So that those a quieter time does not need run out."""
    with Backend(hold) as backend:
        upstream = Upstream(backend.url, own_reactor)
        assert upstream.checkout() is None
        first, second = open_one(upstream), open_one(upstream)
        upstream.checkin(first)
        upstream.checkin(second)
        assert upstream.idle == 2
        assert upstream.checkout() is second
        assert upstream.checkout() is first
        assert upstream.checkout() is None
        first.close()
        second.close()


def test_no_more_than_max_idle_are_kept(own_reactor: Reactor | None) -> None:
    with Backend(Peer.wait_closed) as backend:
        upstream = Upstream(backend.url, own_reactor, max_idle=1)
        conns = [open_one(upstream) for _ in range(3)]
        for conn in conns:
            upstream.checkin(conn)
        assert upstream.idle == 1
        assert backend.closed.acquire(timeout=5)
        assert backend.closed.acquire(timeout=5)
        upstream.close()


@pytest.mark.parametrize("options", [{"max_idle": 0}, {"idle_timeout": 0.0}])
def test_none_is_kept_when_none_may_idle(own_reactor: Reactor | None, options: dict[str, float]) -> None:
    with Backend(Peer.wait_closed) as backend:
        upstream = Upstream(backend.url, own_reactor, **options)  # type: ignore[arg-type]
        upstream.checkin(open_one(upstream))
        assert upstream.checkout() is None
        assert backend.closed.acquire(timeout=5)


def test_an_idle_connection_is_closed_after_its_time(reactor: Reactor) -> None:
    with Backend(Peer.wait_closed) as backend:
        upstream = Upstream(backend.url, reactor, idle_timeout=0.1)
        upstream.checkin(open_one(upstream))
        until(lambda: not reactor.conns, "the connection to run out")
        assert upstream.checkout() is None
        assert backend.closed.acquire(timeout=5)


def test_one_that_idled_too_long_is_not_used_by_threads() -> None:
    with Backend(Peer.wait_closed) as backend:
        upstream = Upstream(backend.url, None, idle_timeout=0.05)
        upstream.checkin(open_one(upstream))
        time.sleep(0.06)  # the time itself is what is tested
        assert upstream.checkout() is None
        assert backend.closed.acquire(timeout=5)


def test_a_connection_in_use_has_no_deadline(reactor: Reactor) -> None:
    with Backend(hold) as backend:
        upstream = Upstream(backend.url, reactor, idle_timeout=0.1)
        upstream.checkin(open_one(upstream))
        conn = upstream.checkout()
        assert isinstance(conn, Conn)
        gevent.sleep(0.3)
        assert not conn.closed
        conn.close()


def test_one_that_the_backend_closed_is_not_used(own_reactor: Reactor | None) -> None:
    with Backend(hold) as backend:
        upstream = Upstream(backend.url, own_reactor)
        conn = open_one(upstream)
        upstream.checkin(conn)
        backend.may_go_on.release()
        if own_reactor is not None:
            until(lambda: not own_reactor.conns, "the end to be seen")
        else:
            until(conn.readable, "the end to be seen")
        assert upstream.checkout() is None


def test_one_on_which_the_backend_speaks_unasked_is_not_used(own_reactor: Reactor | None) -> None:
    """It would be taken for the answer to the next request."""
    with Backend(talk) as backend:
        upstream = Upstream(backend.url, own_reactor)
        conn = open_one(upstream)
        until(lambda: conn.readable() or _has_data(conn), "what it says")
        upstream.checkin(conn)
        gevent.sleep(0.01)
        assert upstream.checkout() is None


def _has_data(conn: Conn | ThreadConn) -> bool:
    try:
        return bool(conn.sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


def test_went_away_asks_the_kernel(own_reactor: Reactor | None) -> None:
    """The loop need not have seen the end yet."""
    with Backend(hold) as backend:
        conn = open_one(Upstream(backend.url, own_reactor))
        conn.timeout = 30
        began = time.monotonic()
        assert not went_away(conn)
        assert time.monotonic() - began < 1
        backend.may_go_on.release()
        backend.__exit__(None, None, None)  # joins its threads: the connection is closed by now
        assert went_away(conn)
        conn.close()


def test_close_closes_what_idles_and_what_comes_back(own_reactor: Reactor | None) -> None:
    with Backend(Peer.wait_closed) as backend:
        upstream = Upstream(backend.url, own_reactor)
        idle, used = open_one(upstream), open_one(upstream)
        upstream.checkin(idle)
        upstream.close()
        assert backend.closed.acquire(timeout=5)
        upstream.checkin(used)
        assert backend.closed.acquire(timeout=5)
        assert upstream.idle == 0


def test_threads_may_take_and_give_at_once() -> None:
    """One connection and many takers: who comes too late gets None, not an error."""
    with Backend(hold) as backend:
        upstream = Upstream(backend.url, None)
        upstream.checkin(open_one(upstream))
        errors: list[BaseException] = []
        before = sys.getswitchinterval()

        def work() -> None:
            try:
                for _ in range(10_000):
                    conn = upstream.checkout()
                    if conn is not None:
                        upstream.checkin(conn)
            except BaseException as exc:
                errors.append(exc)

        threads = [threading.Thread(target=work) for _ in range(4)]
        sys.setswitchinterval(1e-6)
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
        finally:
            sys.setswitchinterval(before)
        upstream.close()
        assert errors == []


# Where it is.


def test_a_name_is_tried_at_each_of_its_addresses(own_reactor: Reactor | None) -> None:
    """The second may be the one that listens, as with localhost on a machine that has IPv6."""
    with Backend(hold) as backend, refusing() as url:
        upstream = Upstream(f"http://localhost:{backend.port}", own_reactor)
        conn = in_greenlet(lambda: upstream.connect(5))
        conn.close()
        refused = int(url.rpartition(":")[2])
        upstream._addresses.insert(0, (socket.AF_INET, ("127.0.0.1", refused)))
        conn = in_greenlet(lambda: upstream.connect(5))
        assert conn.sock.getpeername() == ("127.0.0.1", backend.port)
        conn.close()


def test_a_name_is_looked_up_again_after_a_failure(own_reactor: Reactor | None) -> None:
    with Backend(hold) as backend, refusing() as url:
        upstream = Upstream(f"http://localhost:{backend.port}", own_reactor)
        refused = int(url.rpartition(":")[2])
        upstream._addresses, upstream._resolved_at = (
            [(socket.AF_INET, ("127.0.0.1", refused))],
            time.monotonic(),
        )
        with pytest.raises(ConnectFailed):
            in_greenlet(lambda: upstream.connect(5))
        in_greenlet(lambda: upstream.connect(5)).close()


def test_a_name_without_address(own_reactor: Reactor | None) -> None:
    upstream = Upstream("http://nowhere.invalid:80", own_reactor)
    with pytest.raises(ConnectFailed, match="cannot look up the name"):
        in_greenlet(lambda: upstream.connect(5))


def test_refused(own_reactor: Reactor | None) -> None:
    with refusing() as url, pytest.raises(ConnectFailed, match="refused"):
        in_greenlet(lambda: Upstream(url, own_reactor).connect(5))


def test_no_answer_in_time(own_reactor: Reactor | None) -> None:
    began = time.monotonic()
    with deaf() as url, pytest.raises(ConnectTimeout, match=r"0\.2 s"):
        in_greenlet(lambda: Upstream(url, own_reactor).connect(0.2))
    assert time.monotonic() - began < 2


def test_does_it_accept_connections(
    own_reactor: Reactor | None, authority: Authority, tmp_path: Path
) -> None:
    """Nothing is said there, TLS neither, and nothing is kept."""
    tls = client_context(UpstreamTls(ca=str(authority.ca)), "tls")
    heard: list[bytes] = []

    def listen(peer: Peer) -> None:
        heard.append(peer.sock.recv(100))
        peer.backend.closed.release()

    def accepts(url: str) -> bool | None:
        upstream = Upstream(url, own_reactor, tls=tls)
        found = in_greenlet(lambda: upstream.accepts(0.2))
        assert upstream.idle == 0
        return found

    with Backend(listen) as plain, Backend(listen, path=tmp_path / "s") as unix:
        for backend in (plain, unix):
            assert accepts(backend.url) is True
            assert backend.closed.acquire(timeout=20)
        assert accepts(plain.url.replace("http:", "https:")) is True
        assert plain.closed.acquire(timeout=20)
    assert heard == [b""] * 3
    with refusing() as url:
        assert accepts(url) is False
    with deaf() as url:
        assert accepts(url) is False
    assert accepts("http+unix://%2Fnone%2Fsuch") is False


def test_connections_with_tls_are_kept_and_their_sessions_taken_up(
    own_reactor: Reactor | None, server_pair: Pair, authority: Authority
) -> None:
    """Tickets, which come when the connection idles already, are no reason to close it."""
    tls = client_context(UpstreamTls(ca=str(authority.ca)), "tls")
    with Backend(Peer.wait_closed, tls=server_pair.server()) as backend:
        upstream = Upstream(backend.url, own_reactor, tls=tls)
        first, second = open_one(upstream), open_one(upstream)
        assert isinstance(first, TlsConn | TlsThreadConn)
        assert isinstance(second, TlsConn | TlsThreadConn)
        until(lambda: not first.readable() and first.session.has_ticket, "a ticket")
        upstream.checkin(first)
        upstream.checkin(second)
        gevent.sleep(0.05)
        assert upstream.checkout() is second
        assert not went_away(second)
        third = open_one(upstream)
        assert isinstance(third, TlsConn | TlsThreadConn)
        assert (first.resumed, second.resumed, third.resumed) == (False, False, True)
        assert upstream.checkout() is first
        backend.hang_up()
        until(lambda: went_away(first), "the end")
        for conn in (first, second, third):
            conn.close()


def test_https_is_never_spoken_without_tls() -> None:
    with pytest.raises(ValueError, match="no TLS"):
        Upstream("https://127.0.0.1:1", None)


def test_a_host_that_can_be_no_name(own_reactor: Reactor | None, authority: Authority) -> None:
    tls = client_context(UpstreamTls(ca=str(authority.ca)), "tls")
    with Backend(Peer.wait_closed) as backend:
        upstream = Upstream(f"https://127.0.0.1:{backend.port}", own_reactor, tls=tls, server_name="a..b")
        with pytest.raises(ConnectFailed):
            open_one(upstream)


def test_a_unix_socket(own_reactor: Reactor | None, tmp_path: Path) -> None:
    with Backend(hold, path=tmp_path / "a socket") as backend:
        conn = in_greenlet(lambda: Upstream(backend.url, own_reactor).connect(5))
        conn.close()
    with pytest.raises(ConnectFailed, match="No such file"):
        in_greenlet(lambda: Upstream("http+unix://%2Fnone%2Fsuch", own_reactor).connect(5))


def test_ipv6(own_reactor: Reactor | None) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with listener:
        conn = in_greenlet(
            lambda: Upstream(f"http://[::1]:{listener.getsockname()[1]}", own_reactor).connect(5)
        )
        conn.close()


def test_an_upstream_that_was_not_mounted_says_so() -> None:
    with pytest.raises(RuntimeError, match="not mounted"):
        Upstream("http://127.0.0.1:1", None).send(None)


def test_without_a_descriptor_no_backend_is_to_blame(own_reactor: Reactor | None) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Backend(hold) as backend:
        upstream = Upstream(backend.url, own_reactor)

        def starve() -> None:
            with socket.socket() as free:
                number = free.fileno()
            resource.setrlimit(resource.RLIMIT_NOFILE, (number, before[1]))
            try:
                with pytest.raises(Overloaded, match="Too many open files") as caught:
                    upstream.connect(5)
                assert upstream.accepts(5) is None
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
            assert not caught.value.safe_to_retry(True)

        in_greenlet(starve)
        if own_reactor is not None:
            assert own_reactor.starved
        open_one(upstream).close()
