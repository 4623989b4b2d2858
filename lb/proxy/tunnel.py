"""Two connections joined: what one sends the other gets, byte for byte, until both have ended.

What follows a 101 (RFC 9110, section 7.8). No greenlet waits per direction: bytes are moved in the callbacks
of the two connections. Only who has more to send than the other side takes costs one, until it is gone;
meanwhile that direction is not read.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

from greenlet import getcurrent, greenlet

from lb.model import Snapshot
from lb.proxy.conn import NEVER, Conn

PIECE = 65536
"""Bytes: the most that is read at once, and that a direction can hold back."""

LAST_WORDS = 60.0
"""Seconds without a byte after which a tunnel is over of which one side has ended already."""


class _Way:
    """One direction: from `source` to `to`."""

    __slots__ = ("ended", "moved", "sending", "source", "to", "tunnel")

    def __init__(self, tunnel: Tunnel, source: Conn, to: Conn) -> None:
        self.tunnel = tunnel
        self.source = source
        self.to = to
        self.ended = False
        #: Does `to` not take what it is sent?
        self.sending = False
        self.moved = 0

    def on_readable(self) -> None:
        """Move what is there. In the hub."""
        source = self.source
        if self.tunnel.over or self.ended or self.sending:
            return
        self.tunnel.touch()
        while True:
            try:
                data = source.take(PIECE)
            except BlockingIOError:
                return
            except OSError:
                self.tunnel.fail()
                return
            if not data:
                self._end()
                return
            self.moved += len(data)
            self.sending = True
            greenlet(self._send, source.reactor.hub).switch(data)
            if self.still_sending():
                source.pause()
                return
            if not source.pending():
                return

    def still_sending(self) -> bool:
        """Asked of a method, because `_send` has changed it since it was set."""
        return self.sending

    def _send(self, data: bytes) -> None:
        """Send all of it, and read on. In a greenlet of its own, which ends before it waits in most cases."""
        try:
            self.to.sendall(data)
        except OSError:
            self.sending = False
            self.tunnel.fail()
            return
        self.tunnel.touch()
        self.sending = False
        if self.source.readable() and not self.source.closed:  # it had to wait
            self.source.arm()
            if self.source.pending():
                self.source.reactor.loop.run_callback(self.on_readable)

    def _end(self) -> None:
        """`source` has ended its sending half: so does `to`."""
        self.ended = True
        self.source.pause()
        try:
            self.to.end()
        except OSError:
            self.tunnel.fail()
            return
        self.tunnel.one_ended()


class Tunnel:
    """The two directions, and who waits for their end."""

    def __init__(self, client: Conn, backend: Conn, idle: float) -> None:
        self._up = _Way(self, client, backend)
        self._down = _Way(self, backend, client)
        self._idle = idle
        #: Until when it may last, by `monotonic`.
        self.last = NEVER
        self._waiter: greenlet | None = None
        self.over = False
        #: Did a side fail rather than end?
        self.failed = False

    @property
    def to_client(self) -> int:
        """Bytes that the client was sent."""
        return self._down.moved

    def run(self) -> None:
        """Move bytes until both sides have ended, one of them failed, or nothing came for `idle` seconds.

        Neither connection is closed here. To be called in a greenlet, which waits.
        """
        client, backend = self._up.source, self._down.source
        client.idle, backend.idle = self._up.on_readable, self._down.on_readable
        client.expired = backend.expired = self.finish
        client.timeout = backend.timeout = self._idle
        self.touch()
        loop = client.reactor.loop
        for way in (self._up, self._down):
            # What came while nobody watched is not told of again.
            loop.run_callback(way.on_readable)
            way.source.arm()
        self._waiter = getcurrent()
        while not self.over:
            client.reactor.switch()
        self._waiter = None
        for conn in (client, backend):
            conn.idle = conn.expired = None
            conn.deadline = NEVER

    def touch(self) -> None:
        """Something moved."""
        if not self.over:
            due = min(monotonic() + self._idle, self.last)
            self._up.source.deadline = self._down.source.deadline = due

    def end_by(self, last: float) -> None:
        """It is ended at `last` (by `monotonic`), whatever moves; NEVER: not any more."""
        self.last = last
        self.touch()

    def one_ended(self) -> None:
        """One direction is over."""
        if self._up.ended and self._down.ended:
            self.finish()
        else:
            self._idle = min(self._idle, LAST_WORDS)
            self.touch()

    def fail(self) -> None:
        """One side failed."""
        self.failed = self.failed or not self.over
        self.finish()

    def finish(self) -> None:
        """Both directions are over."""
        if not self.over:
            self.over = True
            for way in (self._up, self._down):
                way.source.idle = None
                way.source.deadline = NEVER
            waiter: Any = self._waiter
            if waiter is not None:
                self._up.source.reactor.loop.run_callback(waiter.switch)


class Tunnels:
    """The tunnels to the backends of one pool. Those to a backend that is to be empty (it is drained, or has
    been removed) last `close_delay` more seconds, after `idle` without a byte they end anyhow.
    """

    def __init__(self, idle: float, close_delay: float) -> None:
        self._idle = idle
        self._close_delay = close_delay
        self._running: dict[str, set[Tunnel]] = {}
        self._snapshot: Snapshot | None = None

    def join(self, name: str, client: Conn, backend: Conn) -> Tunnel:
        """A new tunnel, not running yet, between a client and the backend of that id; `leave` forgets it."""
        tunnel = Tunnel(client, backend, self._idle)
        self._running.setdefault(name, set()).add(tunnel)
        self._end_or_not(name, {tunnel})
        return tunnel

    def leave(self, name: str, tunnel: Tunnel) -> None:
        """It is over."""
        left = self._running[name]
        left.discard(tunnel)
        if not left:
            del self._running[name]

    def update(self, snapshot: Snapshot) -> None:
        """The pool has changed."""
        self._snapshot = snapshot
        for name, tunnels in self._running.items():
            self._end_or_not(name, tunnels)

    def _end_or_not(self, name: str, tunnels: set[Tunnel]) -> None:
        known = self._snapshot.backends.get(name) if self._snapshot is not None else None
        stays = self._snapshot is None or (known is not None and known.admin == "ready")
        for tunnel in tunnels:
            if stays != (tunnel.last == NEVER):
                tunnel.end_by(NEVER if stays else monotonic() + self._close_delay)
