"""The gunicorn worker class: gevent, with connections that cost no greenlet while they idle.

    worker_class = "lb.worker.Worker"

A thin shell: `lb.server` accepts and serves, `lb.app` answers. On TERM it stops accepting, finishes what
runs and goes; when all workers end, the control side says so until then.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import warnings
from time import monotonic
from typing import Any

import gevent
from gevent import get_hub
from gevent.event import Event
from gevent.monkey import MonkeyPatchWarning
from gunicorn.http.wsgi import base_environ
from gunicorn.workers.ggevent import GeventWorker

from lb import __version__

_LOG = logging.getLogger("lb")

FLUSH_EVERY = 0.1
"""Seconds between two writes of the access log."""
LEAVING_LOOK = 0.05
"""Seconds for which answers do, or do not, end their connections before an announced end."""


class Worker(GeventWorker):  # type: ignore[misc]
    """Serves the listeners of one worker process."""

    alive: bool

    def patch(self) -> None:
        """Patch the standard library, as gunicorn's gevent worker does."""
        with warnings.catch_warnings():
            # The master has loaded redis-py, whose asyncio half, which nobody uses, refers to ssl directly.
            warnings.simplefilter("ignore", MonkeyPatchWarning)
            super().patch()

    def notify(self) -> None:
        """Show the master a sign of life; when it is gone, finish what runs and go."""
        self.tmp.notify()
        if self.alive and self.ppid != os.getppid():
            _LOG.warning("the master is gone: finishing what runs")
            self.alive = False

    def init_process(self) -> None:
        """As gunicorn's; what belongs to the event loop is made in `run`, after the fork."""
        self.stopping = Event()
        super().init_process()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """TERM: finish what runs, then go."""
        super().handle_exit(sig, frame)
        # This is a signal handler; who waits for the event belongs to the loop.
        get_hub().loop.run_callback(self.stopping.set)

    def handle_usr1(self, sig: int, frame: Any) -> None:
        """USR1: open the logs anew."""
        super().handle_usr1(sig, frame)
        gevent.spawn(self._reopen)

    def run(self) -> None:
        """Serve until told to stop."""
        # Imported here because gunicorn patches the standard library after it has imported this module.
        from lb import app, boot, master
        from lb.overload import Resident
        from lb.proxy.conn import Reactor
        from lb.server import Server
        from lb.state.green import GreenRuntime

        hub = get_hub()
        reactor = Reactor(hub)
        self.service = boot.service(GreenRuntime(hub, reactor.streams), reactor)
        app.install(self.service)
        settings = self.service.settings
        server = Server(
            reactor,
            self.wsgi,
            settings.client,
            settings.limits,
            self.service.next_id,
            self.service.log.add,
            self.cfg.workers,
        )
        self.service.vitals.measure(server.load, Resident().read)
        try:
            self.service.start()
            gevent.spawn(self._flush_log)
            self._listen(server)
            # What is here now stays: the collector need not look at it again.
            gc.collect()
            gc.freeze()
            gc.set_threshold(20_000, 20, 100)
            master.say_ready(self)
            self._wait(server)
            # Who only makes place for others has nothing to say about the balancer.
            self.service.draining = ends = boot.ending(self.ppid)
            for sock in self.sockets:
                sock.close()
            server.drain(self.cfg.graceful_timeout, self.notify, ends)
        except SystemExit:
            server.stop_accepting()
            raise
        finally:
            app.uninstall()
            reactor.close()
            boot.leave_if_orphaned(self.ppid)

    def _wait(self, server: Any) -> None:
        """Let it serve until told to stop, or it has no memory left to serve with.

        Before an announced end, more and more answers tell clients that their connection ends: they come back
        at once, so all at the same time would be too many.
        """
        from lb import boot

        delay, began = self.service.settings.drain_delay, 0.0
        while self.alive and not server.overload.stuck(monotonic()):
            self.notify()
            leaving = boot.announced()
            if leaving and delay > 0:
                now = monotonic()
                began = began or now
                server.draining = random.random() < (now - began) / delay
            self.stopping.wait(LEAVING_LOOK if leaving else 1.0)
        if self.alive:
            _LOG.error("beyond limits.memory for too long: leaving to a new worker")

    def _listen(self, server: Any) -> None:
        from lb import boot
        from lb.proxy.conn import RawSocket

        environ = base_environ(self.cfg)
        environ.update(
            {
                "wsgi.url_scheme": "http",
                "wsgi.multithread": True,
                "SERVER_SOFTWARE": f"lb/{__version__}",
                "SERVER_PROTOCOL": "HTTP/1.1",
                "SCRIPT_NAME": "",
            }
        )
        kinds = self.service.kinds_of([sock.getsockname() for sock in self.sockets])
        for sock, kind in zip(self.sockets, kinds, strict=True):
            raw = RawSocket(fileno=os.dup(sock.fileno()))
            raw.setblocking(False)
            server.listen(raw, kind, environ, boot.tls() if kind == "data" else None)

    def _flush_log(self) -> None:
        while True:
            gevent.sleep(FLUSH_EVERY)
            self.service.log.flush()

    def _reopen(self) -> None:
        try:
            self.service.log.reopen()
        except OSError as exc:
            _LOG.error("access log: %s; the old file stays open", exc)
