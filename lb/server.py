"""The connections of one worker process: accepting them, the greenlets that serve them, their orderly end."""

from __future__ import annotations

import heapq
import logging
import random
import resource
import socket
import ssl
import sys
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent
from greenlet import getcurrent, greenlet

from lb.accesslog import Entry
from lb.client import Client, Served, WsgiApp
from lb.errors import Overloaded, ProxyError, RequestDeadline
from lb.http2 import Session
from lb.limits import Limits
from lb.overload import LOOK, Overload, Resident, give_back
from lb.proxy.conn import OUT_OF, Conn, RawSocket, Reactor
from lb.proxy.tls import TlsConn
from lb.settings import ClientSettings, LimitSettings
from lb.vitals import Load

_LOG = logging.getLogger("lb")

ACCEPT_AT_ONCE = 8
"""Connections taken in one turn of the loop, so that several workers share a burst."""
ACCEPT_PAUSE = 0.25
"""Seconds without accepting after the process ran out of descriptors."""
IDLE_GRACE = 1.0
"""Seconds that a stopping server leaves an idle connection open: a request may be on its way in it."""

TIME_CHECK = 0.25
"""Seconds between two looks for requests that have taken too long."""

RESERVE = 256
"""Descriptors that connections to the data listener leave to all else (at most an eighth). A quarter of them
is left by those to backends, too: for the control listener, the store, logs.
"""
ROOM = 64
"""Idle connections closed at a time, those first that have idled longest, when descriptors run out."""
SAY_AGAIN = 1.0
"""Seconds for which the log is not told again that descriptors run out."""

_UNACKED = 24
"""Where Linux's `struct tcp_info` has `tcpi_unacked`, of a listener the length of its queue."""
_READ = 1


class Listener:
    """One listening socket, what its connections' environs begin with, and the watcher that accepts."""

    def __init__(
        self, sock: RawSocket, kind: str, environ: dict[str, Any], tls: ssl.SSLContext | None
    ) -> None:
        self.sock = sock
        self.kind = kind
        self.tls = tls
        name = sock.getsockname()
        host, port = (name[0], str(name[1])) if isinstance(name, tuple) else (str(name), "")
        self.environ = {**environ, "lb.listener": kind, "SERVER_NAME": host, "SERVER_PORT": port}
        if tls is not None:
            self.environ["wsgi.url_scheme"] = "https"
        self.watcher: Any = None


class Server:
    """Serves `app` on its listeners. It is the `Host` of its `Client`s."""

    def __init__(
        self,
        reactor: Reactor,
        app: WsgiApp,
        settings: ClientSettings,
        limits: LimitSettings,
        next_id: Callable[[], str],
        log_refused: Callable[[Entry], None],
        workers: int = 1,
    ) -> None:
        """`workers`: how many processes accept on the same listeners."""
        self.reactor = reactor
        self.app = app
        self.keepalive = settings.keepalive
        self.header_timeout = settings.header
        self.body_timeout = settings.idle
        self.half_close = settings.half_close
        self.stream_close_delay = settings.stream_close_delay
        self.limits = Limits(limits)
        self.next_id = next_id
        self.log_refused = log_refused
        self.draining = False
        #: A `Client` or a `Session` for each connection.
        self.clients: set[Any] = set()
        self._most = settings.connections
        #: The number of a descriptor from which on no more than the reserve is left.
        self._last_number = 1 << 62
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if most > 0:
            reserve = min(RESERVE, most // 8)
            self._last_number, reactor.last_number = most - reserve, most - reserve // 4
        self._proxy_protocol = settings.proxy_protocol
        self._listeners: list[Listener] = []
        self._parked: list[greenlet] = []
        #: Greenlets that serve, or are parked.
        self._made = 0
        self._paused = False
        #: When the log was told last what descriptors are missing for.
        self._said: dict[str, float] = {}
        #: Connections that were accepted since then.
        self._accepted = 0
        self._counted = monotonic()
        self._workers = workers
        self.overload = Overload(limits)
        self._resident = Resident() if limits.memory else None
        self._look = reactor.loop.timer(LOOK)
        self._look.start(self._look_at_load)
        #: Seconds that a request and its answer may take; 0: any number.
        self._request = settings.request
        self._timer: Any = None
        if self._request > 0:
            self._timer = reactor.loop.timer(TIME_CHECK, TIME_CHECK)
            self._timer.start(self._check_time)

    def _check_time(self) -> None:
        """End what has taken too long."""
        now = monotonic()
        for client in self.clients:
            for late in client.overdue(now - self._request):
                fault = RequestDeadline(f"not done within {self._request:g} s")
                self.reactor.doom(late, now, fault, None)

    def load(self) -> Load:
        """What it has to do now."""
        under_way = self._made - len(self._parked)
        return Load(len(self.clients), under_way, self.overload.refused, self.overload.delay)

    def _look_at_load(self) -> None:
        now = monotonic()
        # Anew from this very moment: one that repeats would make up for a long turn by coming at once.
        self._look.stop()
        self._look = self.reactor.loop.timer(LOOK)
        self._look.start(self._look_at_load, update=True)
        overload = self.overload
        resident = self._resident.read() if self._resident is not None else 0
        overload.look(now, resident, self._waiting(now))
        if overload.tight:
            for client in self._idle(now)[:1000]:
                client.close()
            if overload.tidy(now):
                give_back()
        if self.reactor.starved:
            self.reactor.starved = False
            self._out_of_descriptors("no connection to a backend")

    def _waiting(self, now: float) -> float:
        """Seconds that a new connection waits to be accepted: by how many do, and at which pace all workers
        take them, if they do as this one.
        """
        passed, taken = now - self._counted, self._accepted
        self._counted, self._accepted = now, 0
        if self._paused or not taken:
            return 0.0
        waiting = sum(backlog(one.sock) for one in self._listeners if one.kind == "data")
        return waiting * passed / (taken * self._workers)

    def _idle(self, now: float) -> list[Any]:
        """Clients of the data side between two requests. Who has just become idle is not meant."""
        return [
            one
            for one in self.clients
            if one.idle and now - one.idle_since >= IDLE_GRACE and one.base["lb.listener"] == "data"
        ]

    def _out_of_descriptors(self, what: str) -> None:
        """Make room, or accept no more for a moment."""
        now = monotonic()
        if now - self._said.get(what, 0.0) >= SAY_AGAIN:
            self._said[what] = now
            _LOG.error("%s: hardly any descriptor is left (see LimitNOFILE, `ulimit -n`)", what)
        self._pause("data")
        gevent.spawn_later(ACCEPT_PAUSE, self._resume)
        for client in heapq.nsmallest(ROOM, self._idle(now), key=_idle_since):
            client.close()

    def listen(
        self, sock: RawSocket, kind: str, environ: dict[str, Any], tls: ssl.SSLContext | None = None
    ) -> None:
        """Accept connections on `sock`, which must not block; `kind` is "data" or "control".

        With `tls` they speak TLS; a PROXY protocol header comes before it, in plain bytes.
        """
        listener = Listener(sock, kind, environ, tls)
        listener.watcher = self.reactor.loop.io(sock.fileno(), _READ)
        listener.watcher.start(self._on_connection, listener)
        self._listeners.append(listener)

    def _on_connection(self, listener: Listener) -> None:
        for _ in range(ACCEPT_AT_ONCE):
            # The control side answers however busy the data side is.
            if listener.kind == "data" and len(self.clients) >= self._most:
                self._pause("data")
                return
            try:
                sock, peer = accept(listener.sock)
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno in OUT_OF:
                    self._out_of_descriptors(f"cannot accept: {exc.strerror}")
                    self._pause(listener.kind)
                    return
                continue  # that one connection was gone again already
            environ = listener.environ.copy()
            environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = (peer[0], str(peer[1])) if peer else ("", "")
            announced = self._proxy_protocol and listener.kind == "data"
            if listener.tls is None:
                conn = Conn(self.reactor, sock)
            else:
                conn = TlsConn(self.reactor, sock, listener.tls, plain=announced)
            self.clients.add(Client(self, conn, environ, announced))
            self._accepted += 1
            # The kernel gives the lowest number that is free: a high one says that few are.
            if sock.fileno() >= self._last_number and listener.kind == "data":
                self._out_of_descriptors("cannot accept more")
                return

    def _pause(self, kind: str | None) -> None:
        self._paused = True
        for listener in self._listeners:
            if kind in (None, listener.kind):
                listener.watcher.stop()

    def _resume(self) -> None:
        if self._paused and len(self.clients) < self._most:
            self._paused = False
            for listener in self._listeners:
                listener.watcher.start(self._on_connection, listener)

    # What connections ask of their host.

    def speak_http2(self, client: Client, data: bytes) -> None:
        """`client` has agreed on HTTP/2, and `data` is its first: a session takes over the connection."""
        self.clients.discard(client)
        session = Session(self, client.conn, client.base)
        self.clients.add(session)
        session.receive(data)

    def run(self, client: Served, data: bytes) -> None:
        """Let a parked greenlet, or a new one, serve `client`, which has sent `data`; or refuse that."""
        parked = self._parked
        if not parked or self.overload.strict:
            self._admit(client, data)
        else:
            parked.pop().switch(client, data)

    def _admit(self, client: Served, data: bytes) -> None:
        parked = self._parked
        # The control side is there for those who look what is wrong.
        if not isinstance(client, Client) or client.base["lb.listener"] == "data":
            why = self.overload.refuses(self._made - len(parked), random.random())
            if why:
                greenlet(self._refuse, self.reactor.hub).switch(client, data, Overloaded(why))
                return
        if not parked:
            self._made += 1
            greenlet(self._serve, self.reactor.hub).switch(client, data)
        else:
            parked.pop().switch(client, data)

    def _refuse(self, client: Served, data: bytes, fault: ProxyError) -> None:
        """In a greenlet of its own, so that whoever is refused takes none from those who are served."""
        client.greenlet = getcurrent()
        try:
            client.serve(data, fault)
        except Exception:  # noqa: BLE001 - one connection's fault must not end the worker
            _LOG.exception("refusing a request failed")
            client.close()
        self.reactor.doomed.pop(client.greenlet, None)

    def _serve(self, client: Served, data: bytes) -> None:
        """What a greenlet does all its life: serve a connection or a stream, park, serve the next one."""
        wait = self.reactor.switch
        doomed = self.reactor.doomed
        me = getcurrent()
        while True:
            client.greenlet = me
            try:
                client.serve(data)
            except Exception:  # noqa: BLE001 - one connection's fault must not end the worker
                _LOG.exception("serving a connection failed")
                client.close()
            if doomed:
                doomed.pop(me, None)
            self._parked.append(me)
            client, data = wait()

    def gone(self, client: Any) -> None:
        """`client` is closed."""
        self.clients.discard(client)
        if self._paused:
            self._resume()

    def crashed(self, environ: dict[str, Any]) -> None:
        """The application raised what it should not have."""
        _LOG.exception("request %s %r failed", environ.get("REQUEST_METHOD"), environ.get("lb.target"))

    # The end.

    def stop_accepting(self, kinds: tuple[str, ...] = ("data", "control")) -> None:
        """Close the listeners of these kinds; clients are told from here on that their connections end."""
        self.draining = True
        for listener in [one for one in self._listeners if one.kind in kinds]:
            listener.watcher.stop()
            listener.watcher.close()
            listener.sock.close()
            self._listeners.remove(listener)
        for client in list(self.clients):
            client.leave()

    def drain(self, timeout: float, notify: Callable[[], None], tell: bool = False) -> None:
        """Wait up to `timeout` seconds for what runs; `notify` is called all the while.

        Connections that carry another protocol by now are given `stream_close_delay` instead. With `tell` the
        control side is there until the data side is done, to say what goes on, and `timeout` holds for all.
        """
        streams = min(self.stream_close_delay, timeout) if tell else self.stream_close_delay
        self.stop_accepting(("data",) if tell else ("data", "control"))
        began = monotonic()
        while self.clients:
            if self._listeners and not any(client.base["lb.listener"] == "data" for client in self.clients):
                self.stop_accepting()
            now = monotonic()
            passed = now - began
            if passed >= timeout and (late := [c for c in self.clients if not c.upgraded]):
                _LOG.warning("%d connections cut after %g s", len(late), timeout)
                for client in late:
                    client.cut()
            if passed >= streams:
                for client in [c for c in self.clients if c.upgraded]:
                    client.cut()
            # A connection that a request may be on its way in is not cut at once: that request would
            # fail. It gets its answer, with `Connection: close`.
            for client in [c for c in self.clients if c.idle and now - c.idle_since >= IDLE_GRACE]:
                client.close()
            notify()
            gevent.sleep(0.05)
        self.stop_accepting()  # before what answers is taken apart


def accept(listener: RawSocket) -> tuple[RawSocket, Any]:
    """The next connection, not blocking, and its peer. Raises OSError; BlockingIOError: there is none."""
    fd, peer = listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001 - accept() without a wrapper
    sock = RawSocket(listener.family, listener.type, listener.proto, fileno=fd)
    sock.setblocking(False)
    if listener.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock, peer


def backlog(listener: RawSocket) -> int:
    """How many connections wait to be accepted; 0 where nobody knows (unix sockets)."""
    try:
        found = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED + 4)
    except OSError:
        return 0
    return int.from_bytes(found[_UNACKED:], sys.byteorder)


def _idle_since(client: Any) -> float:
    since: float = client.idle_since
    return since
