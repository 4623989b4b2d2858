"""What gunicorn's own workers refuse when they have too much to do: `lb.overload`, as WSGI middleware.

gunicorn's `gthread` accepts in one thread, which queues for the others whatever has something to read, in any
number. A WSGI application sees what has got a thread: that is counted, and refused before any work on it. A
task that does nothing, in the same queue, shows how long one waits for a thread. What it keeps for itself
are the connections: idle ones cannot be closed from here.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from random import random
from time import monotonic, perf_counter, time
from typing import Any

from lb.accesslog import Entry
from lb.errors import Overloaded
from lb.overload import LOOK, Overload, Resident, give_back
from lb.service import Service
from lb.wsgi import StartResponse, listener, problem

_LOG = logging.getLogger("lb")

WsgiApp = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


class _Counted:
    """An answer that tells when it is over."""

    def __init__(self, answer: Iterable[bytes], over: Callable[[], None]) -> None:
        self._answer = answer
        self._over = over

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._answer)

    def close(self) -> None:
        """The server is done with it, which it says once (PEP 3333)."""
        try:
            close: Callable[[], None] | None = getattr(self._answer, "close", None)
            if close is not None:
                close()
        finally:
            self._over()


class Queueing:
    """How long a task waits for a thread of a pool, to which `submit` gives it: one of ours always does."""

    def __init__(self, submit: Callable[[Callable[[], None]], object]) -> None:
        self._submit = submit
        self._since = 0.0
        self._arrived = threading.Event()
        self._arrived.set()
        self._waited = 0.0

    def look(self, now: float) -> float:
        """Seconds that the last one has waited, or the one that still does if that is more."""
        if not self._arrived.is_set():
            return max(self._waited, now - self._since)
        self._since = now
        self._arrived.clear()
        try:
            self._submit(self._arrive)
        except RuntimeError:  # the pool is closed: the worker ends
            self._arrived.set()
        return self._waited

    def _arrive(self) -> None:
        self._waited = monotonic() - self._since
        self._arrived.set()


class Admission:
    """The application `app`, as far as the worker is up to it. The control side always is answered."""

    def __init__(self, app: WsgiApp, service: Service) -> None:
        limits = service.settings.limits
        self._app = app
        self._service = service
        self._overload = Overload(limits)
        self._resident = Resident() if limits.memory else None
        self._lock = threading.Lock()
        #: Requests of the data side that have a thread and are not over.
        self.under_way = 0

    @property
    def refused(self) -> int:
        """How many it has refused."""
        return self._overload.refused

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request, or refuse it."""
        if listener(environ, self._service.control_addresses) != "data":
            return self._app(environ, start_response)
        with self._lock:
            why = self._overload.refuses(self.under_way, random())
            if not why:
                self.under_way += 1
        if why:
            return self._refuse(Overloaded(why), environ, start_response)
        try:
            return _Counted(self._app(environ, start_response), self._over)
        except BaseException:
            self._over()
            raise

    def _over(self) -> None:
        with self._lock:
            self.under_way -= 1

    def _refuse(
        self, fault: Overloaded, environ: dict[str, Any], start_response: StartResponse
    ) -> Iterable[bytes]:
        started, service = perf_counter(), self._service
        host, client = environ.get("HTTP_HOST", ""), environ.get("REMOTE_ADDR", "")
        method, target = environ["REQUEST_METHOD"], str(environ.get("RAW_URI") or environ["PATH_INFO"])
        entry = Entry(time(), service.next_id(), client, method, host, target, fault.status, code=fault.code)
        answer = problem(fault, environ, start_response, entry.id)
        entry.duration = perf_counter() - started
        service.log.add(entry)
        return answer

    def watch(self, worker: Any) -> None:
        """Look at the load of `worker`, a gunicorn worker, from now on; in a thread of its own."""
        pool = getattr(worker, "tpool", None)
        queueing = None if pool is None else Queueing(pool.submit)

        def loop() -> None:
            pause = threading.Event()
            while worker.alive and not pause.wait(LOOK):
                try:
                    self._look(worker, queueing)
                except Exception:  # noqa: BLE001 - this loop must not end
                    _LOG.exception("looking at the load failed; going on")

        self._look(worker, queueing)  # before the first request
        threading.Thread(target=loop, daemon=True, name="overload").start()

    def _look(self, worker: Any, queueing: Queueing | None) -> None:
        now, overload = monotonic(), self._overload
        resident = self._resident.read() if self._resident is not None else 0
        waiting = queueing.look(now) if queueing is not None else 0.0
        with self._lock:
            overload.look(now, resident, waiting)
        if overload.tight and overload.tidy(now):
            give_back()
        if overload.stuck(now):
            _LOG.error("beyond limits.memory for too long: leaving to a new worker")
            worker.alive = False
