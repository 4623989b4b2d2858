"""What a connection has to send, gathered and sent once in each turn of the loop.

Whoever adds to it does not wait: what all streams say in one turn goes out in one piece. A greenlet sends it,
which lives only as long as the socket makes it wait.
"""

from __future__ import annotations

from collections.abc import Callable

from greenlet import greenlet

from lb.proxy.conn import Conn


class Outbox:
    """Bytes on their way into `conn`; in the hub `sent` is told when all are gone, `failed` of an OSError."""

    def __init__(
        self, conn: Conn, timeout: float, sent: Callable[[], None], failed: Callable[[], None]
    ) -> None:
        self._conn = conn
        #: Seconds that the client may take no byte.
        self._timeout = timeout
        self._sent = sent
        self._failed = failed
        self._parts: list[bytes] = []
        self._due = False
        #: Bytes that the socket has not taken.
        self.waiting = 0
        #: Is the connection's deadline in use?
        self.sending = False

    def push(self, data: bytes) -> None:
        """Send `data` at the end of this turn."""
        if self._conn.closed:
            return
        self._parts.append(data)
        self.waiting += len(data)
        if not (self._due or self.sending):
            self._due = True
            self._conn.reactor.loop.run_callback(self._flush)

    def clear(self) -> None:
        """Forget it all: the connection is gone."""
        self._parts.clear()
        self.waiting = 0

    def _flush(self) -> None:
        self._due = False
        if not self._conn.closed:
            self.sending = True
            greenlet(self._send, self._conn.reactor.hub).switch()

    def _send(self) -> None:
        conn, parts = self._conn, self._parts
        loop = conn.reactor.loop
        try:
            while parts:
                data = parts[0] if len(parts) == 1 else b"".join(parts)
                parts.clear()
                conn.timeout = self._timeout
                conn.sendall(data)
                self.waiting -= len(data)
        except OSError:
            loop.run_callback(self._failed)
            return
        self.sending = False
        loop.run_callback(self._sent)
