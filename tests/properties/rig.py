"""The balancer without its processes; its backend and clients on real sockets in one hub: fast, in step."""

from __future__ import annotations

import io
import json
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
from gevent import get_hub
from gevent import socket as green

from lb import app
from lb.certificates import client_contexts
from lb.proxy.conn import RawSocket, Reactor
from lb.server import Server
from lb.service import Service
from lb.settings import BackendSpec, LogSettings, PoolConfig, Settings, TimeoutSettings
from lb.state.green import GreenRuntime
from tests.properties.reference import Incomplete, Malformed, Request, read_request, values
from tests.support.green import in_greenlet
from tests.support.serving import ENVIRON

PATIENCE = 3.0
"""Seconds after which something hangs."""

TURNS = 25
"""Turns of the loop that an answer takes, and some more."""

Answering = Callable[[Request], tuple[list[bytes], bool]]
"""The pieces of an answer to a request, and whether the connection is closed after it."""


def turn() -> None:
    """Let the loop look for input once. Not sleep(0): callbacks that are put off run before it looks."""
    gevent.sleep(1e-6)


def marker(request: Request) -> bytes:
    """What only an answer to this request says."""
    return b"<%b %b %d>" % (request.method, request.target, len(request.body))


def plain(request: Request) -> tuple[list[bytes], bool]:
    """A short answer that says what it is to."""
    content = marker(request)
    head = b"HTTP/1.1 200 OK\r\nX-Marker: %b\r\nContent-Length: %d\r\n\r\n" % (content, len(content))
    return [head if request.method == b"HEAD" else head + content], False


class Backend:
    """Reads by the reference and keeps what it read."""

    def __init__(self) -> None:
        self.answering: Answering = plain
        #: Messages that came whole, and which connection each came on.
        self.requests: list[Request] = []
        self.came_on: list[int] = []
        #: What was left when a connection ended within a message.
        self.parts: list[bytes] = []
        #: What is no message at all, and why.
        self.faults: list[str] = []
        self.accepted = 0
        self.open: set[Any] = set()
        #: Connections with part of a message.
        self.within: set[Any] = set()
        self._listener = green.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(100)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._acceptor = gevent.spawn(self._accept)

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.accepted += 1
            gevent.spawn(self._serve, sock, self.accepted)

    def _serve(self, sock: Any, number: int) -> None:
        self.open.add(sock)
        try:
            self._read(sock, number)
        except OSError:
            pass
        finally:
            self.open.discard(sock)
            self.within.discard(sock)
            sock.close()

    def _read(self, sock: Any, number: int) -> None:
        data, told = b"", False
        while True:
            try:
                request, end = read_request(data)
            except Malformed as exc:
                self.faults.append(f"{exc} in {data!r}")
                return
            except Incomplete as exc:
                head = exc.head
                if head is not None and not told and values(head.fields, b"expect"):
                    told = True
                    sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                if data:
                    self.within.add(sock)
                try:
                    more = sock.recv(65536)
                except OSError:
                    more = b""
                if not more:
                    if data:
                        self.parts.append(data)
                    return
                data += more
                continue
            self.within.discard(sock)
            data, told = data[end:], False
            self.requests.append(request)
            self.came_on.append(number)
            pieces, close = self.answering(request)
            for piece in pieces:
                sock.sendall(piece)
                turn()
            if close:
                return

    def close(self) -> None:
        self._acceptor.kill()
        self._listener.close()
        for sock in list(self.open):
            sock.close()


class Bench:
    """A backend, and a balancer in front of it at `address`, whatever process that is in."""

    def __init__(self) -> None:
        self.backend = in_greenlet(Backend)
        self.address: tuple[str, int] = ("", 0)

    def close(self) -> None:
        self.backend.close()

    def begin(self, answering: Answering = plain) -> None:
        """Forget what was before."""
        backend = self.backend
        backend.answering = answering
        for kept in (backend.requests, backend.came_on, backend.parts, backend.faults):
            kept.clear()

    def exchange(self, pieces: list[bytes], *, end: bool = True, slow: bool = False) -> tuple[bytes, bool]:
        """All bytes that a client of its own gets until the balancer closes; and was it by a reset?

        It sends the pieces one after the other, `slow` with time for an answer between, and then, with `end`,
        ends its sending half.
        """
        return in_greenlet(lambda: self._exchange(pieces, end, slow), 3 * PATIENCE)

    def _exchange(self, pieces: list[bytes], end: bool, slow: bool) -> tuple[bytes, bool]:
        sock = green.create_connection(self.address)
        sock.settimeout(PATIENCE)
        got, reset = bytearray(), False
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                for piece in pieces:
                    sock.sendall(piece)
                    for _ in range(TURNS if slow else 1):
                        turn()
                if end:
                    sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # closed already: there may be an answer all the same
            try:
                while data := sock.recv(65536):
                    got += data
            except ConnectionResetError:
                reset = True
            except TimeoutError:
                raise AssertionError(f"not closed after {bytes(got)!r}") from None
        finally:
            sock.close()
        self._settle()
        return bytes(got), reset

    def _settle(self) -> None:
        """Wait until nothing is under way."""
        until = monotonic() + PATIENCE
        while self.under_way():
            assert monotonic() < until, f"left: {self.backend.within}"
            turn()

    def under_way(self) -> bool:
        return bool(self.backend.within)

    def check(self) -> None:
        """Every message at the backend was one."""
        assert not self.backend.faults


class _Keeper(logging.Handler):
    """Keeps what is logged as an error."""

    def __init__(self, kept: list[logging.LogRecord]) -> None:
        super().__init__(logging.ERROR)
        self._kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        self._kept.append(record)


class Rig(Bench):
    """A balancer with one pool of one backend, and no store."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        hub = get_hub()
        self.reactor = Reactor(hub)
        self._log = folder / "access.log"
        timeouts = TimeoutSettings(connect=PATIENCE, response=PATIENCE, idle=PATIENCE)
        self._settings = Settings(
            redis_url=f"unix://{folder}/nothing-here",
            pools={"default": PoolConfig(backends=(BackendSpec(self.backend.url),), timeouts=timeouts)},
            log=LogSettings(access=str(self._log)),
        )
        contexts = client_contexts(self._settings.pools)
        self.service = Service(self._settings, GreenRuntime(hub), self.reactor, _no_control, contexts)
        app.install(self.service)
        self.server = Server(
            self.reactor,
            app.application,
            self._settings.client,
            self._settings.limits,
            self.service.next_id,
            self.service.log.add,
        )
        listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.address = listener.getsockname()
        raw = RawSocket(fileno=listener.detach())
        raw.setblocking(False)
        self.server.listen(raw, "data", ENVIRON)
        # What nobody caught: the program's log of errors, and what the hub prints.
        self._said: list[logging.LogRecord] = []
        self._handler = _Keeper(self._said)
        logging.getLogger("lb").addHandler(self._handler)
        self._hub = hub
        self._stream = hub.exception_stream
        hub.exception_stream = self._printed = io.StringIO()

    def close(self) -> None:
        self._hub.exception_stream = self._stream
        logging.getLogger("lb").removeHandler(self._handler)
        self.server.stop_accepting()
        self.reactor.close()
        super().close()
        app.uninstall()
        gevent.sleep(0)

    def begin(self, answering: Answering = plain) -> None:
        super().begin(answering)
        self._said.clear()
        self._printed.seek(0)
        self._printed.truncate()
        self.entries()

    def under_way(self) -> bool:
        return bool(self.server.clients or self.backend.within)

    def check(self) -> None:
        """The same; nothing broke, and no claim is left."""
        super().check()
        assert not [record.getMessage() for record in self._said]
        assert not self._printed.getvalue()
        claims = self.service.fleet.claims["default"]
        assert not any(claims.held.counts.values()), claims.held.counts

    def entries(self) -> list[dict[str, Any]]:
        """What was logged since the last call; each line is one object."""
        self.service.log.flush()
        if not self._log.exists():
            return []
        data = self._log.read_bytes()
        os.truncate(self._log, 0)
        assert not data or data.endswith(b"\n")
        found = [json.loads(line) for line in data.split(b"\n")[:-1]]
        assert all(isinstance(entry, dict) for entry in found)
        return found


def _no_control(environ: dict[str, Any], start_response: Any) -> tuple[bytes, ...]:
    raise AssertionError("a request came to the control side")
