"""A server of the program in a thread of its own, for tests whose clients block.

The thread has its own hub, as a worker process has; an application under test runs in its greenlets.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import gevent
from gevent import get_hub
from gevent.event import Event

from lb.accesslog import Entry
from lb.client import WsgiApp
from lb.proxy.conn import RawSocket, Reactor
from lb.server import Server
from lb.settings import ClientSettings, LimitSettings

T = TypeVar("T")

PATIENCE = 20.0
"""Seconds that anything may take at most."""

ENVIRON: dict[str, Any] = {"wsgi.url_scheme": "http", "SERVER_PROTOCOL": "HTTP/1.1", "SCRIPT_NAME": ""}


class Serving:
    """Serves `app` on a port of 127.0.0.1, or on a socket at `path`. Use it as a context manager."""

    def __init__(
        self,
        app: WsgiApp,
        settings: ClientSettings = ClientSettings(),  # noqa: B008 - frozen
        path: Path | None = None,
        limits: LimitSettings = LimitSettings(),  # noqa: B008 - frozen
        tls: ssl.SSLContext | None = None,
        kind: str = "data",
    ) -> None:
        self._app = app
        self._settings = settings
        self._limits = limits
        self._path = path
        self._tls = tls
        self._kind = kind
        #: What was written to the access log.
        self.logged: list[Entry] = []
        self.port = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        return self

    def __exit__(self, *exc: object) -> None:
        self.loop.run_callback_threadsafe(self._stop.set)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        hub = get_hub()
        self.loop = hub.loop
        self._stop = Event()
        self._number = 0
        self.reactor = Reactor(hub)
        self.server = Server(
            self.reactor, self._app, self._settings, self._limits, self._next_id, self.logged.append
        )
        self.server.listen(self._listener(), self._kind, ENVIRON, self._tls)
        self._ready.set()
        self._stop.wait()
        self.server.stop_accepting()
        self.reactor.close()
        gevent.sleep(0)  # who was woken by that may end
        hub.destroy(destroy_loop=True)

    def _listener(self) -> RawSocket:
        if self._path is None:
            listener = socket.create_server(("127.0.0.1", 0), backlog=512)
            self.port = int(listener.getsockname()[1])
        else:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(self._path))
            listener.listen()
        raw = RawSocket(fileno=listener.detach())
        raw.setblocking(False)
        return raw

    def _next_id(self) -> str:
        self._number += 1
        return f"id-{self._number}"

    def call(self, function: Callable[[], T], seconds: float = PATIENCE) -> T:
        """What `function` returns when it runs in a greenlet of the server's thread."""
        results: list[T] = []
        faults: list[BaseException] = []
        done = threading.Event()

        def body() -> None:
            try:
                results.append(function())
            except BaseException as exc:
                faults.append(exc)
            finally:
                done.set()

        self.loop.run_callback_threadsafe(gevent.spawn, body)
        assert done.wait(seconds), f"still running after {seconds:g} s"
        if faults:
            raise faults[0]
        return results[0]

    def until(self, condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
        """Wait until `condition` holds in the server's thread."""

        def wait() -> None:
            with gevent.Timeout(seconds, AssertionError(f"waited {seconds:g} s in vain for {what}")):
                while not condition():
                    gevent.sleep(0.002)

        self.call(wait, seconds + PATIENCE)
