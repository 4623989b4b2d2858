"""The gunicorn master, with a change of workers that nobody notices.

gunicorn's own reload ends the old workers in the moment in which it has forked the new ones; until these have
started, requests wait. Here the old ones accept until the new ones do. A stop is announced before it
happens, by `/readyz`, and can be forced by a second signal; beside another master (USR2) it is not announced,
because that one serves. The embedded store is started again when it has died.

gunicorn makes its `Arbiter` without asking anybody: `take_over` gives the one that is there this class.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from lb import boot

_LOG = logging.getLogger("lb")

READY_TIMEOUT = 60.0
"""Seconds that new workers may take until they serve; then they are given up, and the old ones go on."""
LOOK = 0.1
"""Seconds between two looks at workers whose readiness is waited for."""
STOP_MARGIN = 2
"""Seconds beyond what a worker may take to finish, until it is killed."""


def take_over(server: Any) -> None:
    """Make gunicorn's master `server`, which has not started yet, one of ours."""
    server.__class__ = Master
    #: Workers that others take the place of, by process id; and which of them have been told to go.
    server.leaving = {}
    server.told = set()
    #: Who has which place on the scoreboard.
    server.places = {}
    #: Until when (by `monotonic`) those others have to serve.
    server.ready_by = 0.0
    #: Has a TERM come? When (by `monotonic`) what it asks for is begun; 0: not announced.
    server.stopping = False
    server.stop_at = 0.0
    # What gunicorn would start at a USR2 is `python …/gunicorn/__main__.py`, whose modules then hide others.
    server.START_CTX["args"] = list(sys.orig_argv)
    server.START_CTX["args"][0] = sys.executable


def give_place(server: Any, worker: Any) -> None:
    """Before the fork: give `worker` a place on the scoreboard."""
    worker.place = boot.board.take(monotonic())
    if worker.place is None:
        _LOG.warning("one worker too many for /metrics: what it does is not told there")
    else:
        server.places[worker.place] = worker


def say_ready(worker: Any) -> None:
    """In a worker: it accepts from now on. The file of its heartbeats tells it, by not being empty."""
    os.write(worker.tmp.fileno(), b"+")
    worker.tmp.notify()  # to write was to touch it, with a time of another clock


def is_ready(worker: Any) -> bool:
    """In the master: has the worker said so?"""
    return bool(os.fstat(worker.tmp.fileno()).st_size)


class Master(Arbiter):  # type: ignore[misc]
    """gunicorn's master process. What it adds to the attributes is made by `take_over`."""

    leaving: dict[int, Any]
    told: set[int]
    places: dict[int, Any]
    ready_by: float
    stopping: bool
    stop_at: float

    @property
    def alone(self) -> bool:
        """Is there no other master, older or newer, that has the same listeners?"""
        older = self.master_pid != 0 and self.master_pid == os.getppid()
        return not older and self.reexec_pid == 0

    # Workers come and go.

    @contextmanager
    def _without_leaving(self) -> Iterator[None]:
        """Show gunicorn only those workers that are to stay: it ends, and waits for, no others."""
        aside = {pid: self.WORKERS.pop(pid) for pid in self.leaving if pid in self.WORKERS}
        try:
            yield
        finally:
            self.WORKERS.update(aside)

    def _staying(self) -> list[Any]:
        """The workers that are not to leave, oldest first."""
        found = [worker for pid, worker in self.WORKERS.items() if pid not in self.leaving]
        return sorted(found, key=lambda worker: int(worker.age))

    def reload(self) -> None:
        """Read the configuration anew and start workers with it; once they serve, the others leave."""
        if self.stopping:
            return
        self.leaving.update(self.WORKERS)
        self.ready_by = monotonic() + READY_TIMEOUT
        with self._without_leaving():
            super().reload()
        self._change()

    def manage_workers(self) -> None:
        """Start those that are missing; let those leave that are too many, or have been replaced."""
        staying = self._staying()
        for worker in staying[: max(len(staying) - self.num_workers, 0)]:
            self.leaving[worker.pid] = worker
        with self._without_leaving():
            super().manage_workers()
        self._change()

    def _waiting(self) -> list[int]:
        """Who is to leave, but serves until others do."""
        return [pid for pid in self.leaving if pid in self.WORKERS and pid not in self.told]

    def _change(self) -> None:
        """Tell workers to leave, once, when all those that stay serve."""
        waiting = self._waiting()
        if not waiting:
            return
        staying = self._staying()
        if len(staying) >= self.num_workers and all(map(is_ready, staying)):
            for pid in waiting:
                self.told.add(pid)
                self.kill_worker(pid, signal.SIGTERM)
        elif self.ready_by and monotonic() > self.ready_by:
            self._give_up(f"do not serve after {READY_TIMEOUT:g} s")

    def _give_up(self, why: str) -> None:
        """End the workers of a reload that was none; those that were to leave stay."""
        _LOG.error("reload: the new workers %s; the old ones go on serving", why)
        self.ready_by = 0.0
        new = self._staying()
        self.leaving = {pid: worker for pid, worker in self.leaving.items() if pid in self.told}
        for worker in new:
            self.leaving[worker.pid] = worker
            self.told.add(worker.pid)
            self.kill_worker(worker.pid, signal.SIGTERM if is_ready(worker) else signal.SIGKILL)
        self.num_workers = len(self._staying())

    def reap_workers(self) -> None:
        """As gunicorn's; but workers of a reload that fail to start end nobody but themselves."""
        while True:
            staying = {worker.pid for worker in self._staying()}
            try:
                super().reap_workers()
                break
            except HaltServer as exc:
                if self.stopping or staying <= self.WORKERS.keys():
                    continue  # everybody ends, or it had been given up before
                if not self._waiting():
                    raise
                self._give_up(f"do not start ({exc.reason})")
        for pid in self.leaving.keys() - self.WORKERS.keys():
            del self.leaving[pid]
            self.told.discard(pid)

    def _free_places(self) -> None:
        """What workers that have ended, in whatever way, held on the scoreboard is there for others."""
        there = set(self.WORKERS.values())
        for number in [number for number, worker in self.places.items() if worker not in there]:
            del self.places[number]
            boot.board.give_up(number)

    # Signals.

    def signal(self, sig: int, frame: Any) -> None:
        """A signal has come. Forked workers have this handler, too, until they have their own."""
        if sig == signal.SIGTERM and os.getpid() == self.pid:
            if self.stopping:
                sig = signal.SIGQUIT
            elif self.alone:
                boot.announce_end()
            self.stopping = True
        super().signal(sig, frame)

    def handle_term(self) -> None:
        """TERM: say that it ends, serve for `drain_delay` more seconds, then let the workers finish."""
        delay = boot.settings().drain_delay
        if not self.alone or delay <= 0:
            raise StopIteration
        self.stop_at = monotonic() + delay
        _LOG.info("draining: ends in %g s", delay)

    def handle_winch(self) -> None:
        """WINCH: let the workers finish and go; beside a new master only: terminals send it, too."""
        if self.reexec_pid or self.cfg.daemon:
            self.num_workers = 0
            self.manage_workers()

    def wait_for_signals(self, timeout: float = 1.0) -> list[int]:
        """Wait for signals, as in each turn of gunicorn's; and look after what it does not know of."""
        boot.mend_store()
        self._free_places()
        if self._waiting():
            timeout = min(timeout, LOOK)
        if self.stop_at:
            timeout = min(timeout, max(self.stop_at - monotonic(), 0.001))
        found: list[int] = super().wait_for_signals(timeout)
        if self.stop_at and monotonic() >= self.stop_at and signal.SIGQUIT not in found:
            raise StopIteration
        return found

    def stop(self, graceful: bool = True) -> None:
        """End all workers. Those that finish in time are not killed in their last moment."""
        self.stopping = True
        finish = self.cfg.graceful_timeout if graceful else 0
        self.cfg.set("graceful_timeout", finish + STOP_MARGIN)
        super().stop(graceful)
