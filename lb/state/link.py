"""The one connection on which a worker's claims reach the store, without waiting in a greenlet.

One call at a time is under way. While it is, claims gather; when its answer comes, the greenlets
it serves run, and after everything else that is ready in this turn of the loop the next call goes out.
redis-py opens the connection (address, password, TLS), hiredis reads the answers.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from time import monotonic
from typing import Any

import hiredis
import redis

from lb.model import Backend
from lb.state.claims import Claims
from lb.state.scripts import linked
from lb.state.wishes import Waiter

STALL = 0.5
"""Seconds without an answer after which the store counts as away."""

RELEASE_DELAY = 0.005
"""Seconds a release waits at most for a claim to travel with."""

_READ = 1
_AGAIN = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Link:
    """Carries the batches of any number of pools. `on_down` is told once when the store stops answering."""

    #: Nothing to lock: one greenlet at a time runs.
    lock: AbstractContextManager[Any] = nullcontext()
    calls: AbstractContextManager[Any] = nullcontext()

    def __init__(self, loop: Any, on_down: Callable[[str], None]) -> None:
        self._loop = loop
        self._on_down = on_down
        self._dirty: list[Claims] = []
        self._flying: list[Claims] = []
        self._scheduled = False
        self._sent_at = 0.0
        self._sock: Any = None
        self._connection: Any = None
        self._watcher: Any = None
        self._reader = hiredis.Reader()
        # Repeating, and begun by `again`: started anew it would have what was left of its time, nothing.
        self._release_timer = loop.timer(0, RELEASE_DELAY)
        self._release_armed = False
        self._releases: set[Claims] = set()
        self._stall_timer = loop.timer(STALL / 4, STALL / 4)

    @property
    def up(self) -> bool:
        """Is there a connection?"""
        return self._sock is not None

    def connect(self, client: redis.Redis) -> None:
        """Open the connection; blocks this greenlet. Raises StoreUnavailable."""
        self.close()
        connection = linked(client)
        plain = connection._sock  # noqa: SLF001 - redis-py has no way to read without waiting
        plain.setblocking(False)
        self._connection = connection
        self._sock = plain
        self._reader = hiredis.Reader()
        self._watcher = self._loop.io(plain.fileno(), _READ)
        self._watcher.start(self._on_readable)
        self._stall_timer.start(self._check_stall)

    def close(self) -> None:
        """Drop the connection, if there is one."""
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
            self._watcher = None
        self._stall_timer.stop()
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None
        self._sock = None
        self._flying.clear()
        for claims in self._dirty:
            claims.queued = False
        self._dirty.clear()

    # What Claims calls.

    def wake(self, waiter: Waiter, pick: Backend | None) -> None:
        """Give `waiter` its pick in the loop's next turn.

        Not at once: a greenlet that switched to another one itself would never be switched back to.
        """
        self._loop.run_callback(waiter.switch, pick)

    def schedule(self, claims: Claims) -> None:
        """`claims` has something to say: after every greenlet that is ready has had its turn."""
        if not claims.queued:
            claims.queued = True
            self._dirty.append(claims)
        if not self._scheduled and not self._flying:
            self._scheduled = True
            self._loop.run_callback(self._flush)

    def release_soon(self, claims: Claims) -> None:
        """`claims` has releases, which may wait `RELEASE_DELAY` for a claim to travel with; not where others
        may wait for a slot, or failures are to be told.
        """
        if claims.capped or claims.guard.pending:
            self.schedule(claims)
            return
        self._releases.add(claims)
        if not self._release_armed:
            self._release_armed = True
            self._release_timer.again(self._flush_releases)

    def _flush_releases(self) -> None:
        self._release_timer.stop()
        self._release_armed = False
        late, self._releases = self._releases, set()
        for claims in late:
            if claims.released and claims.ready:
                self.schedule(claims)

    def _flush(self) -> None:
        self._scheduled = False
        if self._flying or self._sock is None:
            return
        dirty, self._dirty = self._dirty, []
        packed = b""
        for claims in dirty:
            command = claims.batch()
            if command is not None:
                packed += hiredis.pack_command(command)  # type: ignore[arg-type]
                self._flying.append(claims)
                if claims.waiting:
                    claims.queued = True
                    self._dirty.append(claims)
        if not packed:
            return
        self._sent_at = monotonic()
        try:
            sent = self._sock.send(packed)
        except OSError as exc:
            self._down(f"cannot write: {exc}")
            return
        if sent != len(packed):
            # A server that leaves this much unread has stopped; a batch is a few kilobytes.
            self._down("it does not read what it is sent")

    def _on_readable(self) -> None:
        sock = self._sock
        if sock is None:
            return
        try:
            data = sock.recv(65536)
            while isinstance(sock, ssl.SSLSocket) and sock.pending():
                data += sock.recv(65536)  # decrypted already: the kernel would not tell of it again
        except _AGAIN:
            return
        except OSError as exc:
            self._down(f"cannot read: {exc}")
            return
        if not data:
            self._down("it closed the connection")
            return
        self._reader.feed(data)
        flying = self._flying
        answers: list[Any] = []
        while len(answers) < len(flying):
            answer: Any = self._reader.gets()
            if answer is False:
                break
            if isinstance(answer, Exception):
                self._down(str(answer))
                return
            answers.append(answer)
        settled, self._flying = flying[: len(answers)], flying[len(answers) :]
        for claims, answer in zip(settled, answers, strict=True):
            claims.settle(answer)
        if self._dirty and not self._flying and not self._scheduled:
            self._scheduled = True
            self._loop.run_callback(self._flush)

    def _check_stall(self) -> None:
        if self._flying and monotonic() - self._sent_at > STALL:
            # This process may have been the one that was stopped: look before judging.
            self._on_readable()
            if self._flying and self._sock is not None and monotonic() - self._sent_at > STALL:
                self._down(f"no answer within {STALL:g} s")

    def _down(self, why: str) -> None:
        self.close()
        self._on_down(why)
