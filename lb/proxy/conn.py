"""Sockets that wait without asking the kernel anew each time.

gevent's own `recv` first runs into EAGAIN, then adds a watcher to epoll and takes it out again, on
every wait. A `Conn` keeps one read watcher started for its whole life and only switches greenlets
in its callback, which saves three system calls a wait. When data arrives that nobody waits for, the
watcher is stopped (epoll is level-triggered: it would spin) and `idle` is told, if it is set.

Deadlines are plain numbers that a `Reactor` sweeps a few times a second: no timer per wait.

`lb.proxy.tls` has one that speaks TLS, `lb.proxy.dial` opens them.
"""

from __future__ import annotations

import _socket
import errno
import socket
import struct
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

from greenlet import getcurrent, greenlet

HEAD = 8192
"""Bytes: the most that is read at once where a request begins. `recv` makes an object of that size before it
knows how much there is; from 64 KiB on, freeing one makes the allocator tidy its heap."""

#: The socket below gevent's and below Python's own wrapper: nothing between a call and the kernel.
RawSocket = _socket.socket

#: What a system call fails with when it is this process, or its host, that has no room for a socket.
OUT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

NEVER = float("inf")
READ, WRITE = 1, 2
_RESET = struct.pack("ii", 1, 0)


class Answered(Exception):
    """Raised in who waits for more of a request: its answer has begun."""


class Stream(Protocol):
    """What the transport needs of a connection. All calls raise OSError, TimeoutError included."""

    timeout: float
    sock: RawSocket

    def recv(self, size: int) -> bytes: ...
    def recv_into(self, buffer: memoryview) -> int: ...
    def sendall(self, data: bytes | memoryview) -> bool: ...
    def readable(self) -> bool: ...
    def close(self) -> None: ...


class Waiter(Protocol):
    """What else greenlets wait for, and the reactor ends such a wait: a stream within a connection."""

    deadline: float
    reader: greenlet | None
    writer: greenlet | None

    def expire(self) -> None: ...
    def interrupt(self, exc: Exception) -> bool: ...


class Reactor:
    """What all connections of one worker process share: the hub, its loop, and the sweep over deadlines.

    `scratch` is one buffer for bulk transfers. It may be used only between two switches: whoever
    has to wait copies out what is left in it.
    """

    SWEEP = 0.05
    """Least seconds between two sweeps; grows with the number of connections, see `_sweep`."""

    def __init__(self, hub: Any) -> None:
        self.hub = hub
        self.loop = hub.loop
        # greenlet's own switch: the hub's method only adds a hook that plain greenlets have no use for.
        self.switch = greenlet.switch.__get__(hub)
        #: When this turn of the loop began, by `monotonic`: near enough for a deadline, and no call.
        self.now = monotonic()
        self._turn = self.loop.check(ref=False)
        self._turn.start(self._begin_turn)
        self.conns: set[Conn] = set()
        #: Swept like the connections.
        self.streams: set[Waiter] = set()
        self.scratch = memoryview(bytearray(524288))
        #: Greenlets that nobody may doom.
        self.spared: set[greenlet] = set()
        #: Greenlets whose wait is to end with an error, see `doom`.
        self.doomed: dict[greenlet, tuple[float, Exception, Conn | None]] = {}
        #: The number of a descriptor from which on connections to backends must not use any more; was there
        #: none for one?
        self.last_number = 1 << 62
        self.starved = False
        self._timer = self.loop.timer(self.SWEEP)
        self._timer.start(self._sweep)

    def _begin_turn(self) -> None:
        self.now = monotonic()

    def _sweep(self) -> None:
        now = self.now
        for conn in [c for c in self.conns if c.deadline <= now]:
            if conn.deadline <= now:  # whoever was woken before may have given this one more time
                conn.expire()
        if self.streams:
            for stream in [s for s in self.streams if s.deadline <= now]:
                if stream.deadline <= now:
                    stream.expire()
        if self.doomed:
            self._give_up(now)
        # At most about one percent of the time goes into sweeping, however many connections there are.
        self._timer.stop()
        self._timer = self.loop.timer(max(self.SWEEP, len(self.conns) * 1e-5))
        self._timer.start(self._sweep)

    def doom(self, who: greenlet, due: float, fault: Exception, spared: Conn | None) -> None:
        """From `due` on (by `monotonic`), `fault` ends the wait of `who` for anything but `spared`."""
        if who in self.spared:
            return
        known = self.doomed.get(who)
        if known is None or due < known[0]:
            self.doomed[who] = (due, fault, spared)

    def _give_up(self, now: float) -> None:
        """Wake those whose time has come, where they wait for a connection."""
        if not any(due <= now for due, _, _ in self.doomed.values()):
            return
        waiters: list[Any] = [*self.conns, *self.streams]
        for conn in waiters:
            waiting = conn.reader or conn.writer
            doom = self.doomed.get(waiting) if waiting is not None else None
            if waiting is not None and doom is not None and doom[0] <= now and doom[2] is not conn:
                del self.doomed[waiting]
                conn.interrupt(doom[1])

    def sleep(self, seconds: float) -> None:
        """Let the calling greenlet wait; nothing ends that early."""
        timer = self.loop.timer(seconds)
        timer.start(getcurrent().switch)
        try:
            self.switch()
        finally:
            timer.close()

    def give_way(self) -> None:
        """Let everybody else who is ready have a turn."""
        self.loop.run_callback(getcurrent().switch)
        self.switch()

    def close(self) -> None:
        """Stop sweeping and close every connection."""
        self._timer.stop()
        self._turn.stop()
        for conn in list(self.conns):
            conn.close()
        gone = ConnectionAbortedError(errno.ECONNABORTED, "closed while waiting")
        for stream in list(self.streams):
            self.loop.run_callback(stream.interrupt, gone)


class Conn:
    """A non-blocking socket of a greenlet. One greenlet at a time may wait on each direction."""

    __slots__ = (
        "__weakref__",
        "_armed",
        "_read_io",
        "_write_io",
        "deadline",
        "expired",
        "idle",
        "noticed",
        "reactor",
        "reader",
        "sock",
        "timeout",
        "writer",
    )

    def __init__(self, reactor: Reactor, sock: RawSocket, idle: Callable[[], None] | None = None) -> None:
        self.reactor = reactor
        self.sock = sock
        self.reader: greenlet | None = None
        self.writer: greenlet | None = None
        #: Called in the hub when there is something to read and nobody waits for it.
        self.idle = idle
        #: Called in the hub when the deadline of an idle connection has passed; None: `close`.
        self.expired: Callable[[], None] | None = None
        #: Called in the hub when something came, or the end, while `idle` is not set and nobody reads.
        self.noticed: Callable[[], object] | None = None
        self.deadline = NEVER
        #: Seconds that each single wait may take.
        self.timeout = NEVER
        self._armed = True
        self._write_io: Any = None
        self._read_io = reactor.loop.io(sock.fileno(), READ)
        self._read_io.start(self._on_readable)
        reactor.conns.add(self)

    @property
    def closed(self) -> bool:
        """Has `close` been called?"""
        return self._read_io is None

    @property
    def protocol(self) -> str:
        """The protocol that was agreed on within TLS (ALPN, RFC 7301); "" when none was, or without TLS."""
        return ""

    def readable(self) -> bool:
        """Has something arrived that nobody has read yet (the end of the stream counts)?"""
        return not self._armed

    def arm(self) -> None:
        """Watch for input again after something had arrived that nobody waited for."""
        if not self._armed:
            self._armed = True
            self._read_io.start(self._on_readable)

    def pause(self) -> None:
        """Do not watch for input until `arm` is called, or somebody waits for it."""
        self._armed = False
        self._read_io.stop()

    def _on_readable(self) -> None:
        waiting = self.reader
        if waiting is not None:
            self.reader = None
            waiting.switch()
            return
        idle = self.idle
        if idle is not None:
            idle()
            return
        self._armed = False
        self._read_io.stop()
        if self.noticed is not None:
            self.noticed()

    def _on_writable(self) -> None:
        waiting = self.writer
        if waiting is not None:
            self.writer = None
            self._write_io.stop()
            waiting.switch()

    def expire(self) -> None:
        """The deadline passed: wake who waits with TimeoutError, or close an idle connection.

        The deadline of a wait that is over stays set; it means nothing while the connection is in use.
        """
        self.deadline = NEVER
        if not self.interrupt(TimeoutError("timed out")) and self.idle is not None:
            (self.expired or self.close)()

    def interrupt(self, exc: Exception) -> bool:
        """Raise `exc` in the greenlet that waits, if one does. To be called in the hub."""
        waiting = self.reader or self.writer
        if waiting is None:
            return False
        if self.writer is not None:
            self._write_io.stop()
        self.reader = self.writer = None
        waiting.throw(exc)
        return True

    def wait_readable(self) -> None:
        """Switch to the hub until there is something to read. Raises TimeoutError."""
        if not self._armed:
            self.arm()
        self.deadline = self.reactor.now + self.timeout
        self.reader = getcurrent()
        self.reactor.switch()
        if self._read_io is None:
            raise ConnectionAbortedError(errno.ECONNABORTED, "closed while waiting")

    def wait_writable(self) -> None:
        """Switch to the hub until the socket takes more. Raises TimeoutError."""
        if self._write_io is None:
            self._write_io = self.reactor.loop.io(self.sock.fileno(), WRITE)
        self.deadline = self.reactor.now + self.timeout
        self.writer = getcurrent()
        self._write_io.start(self._on_writable)
        self.reactor.switch()
        if self._read_io is None:
            raise ConnectionAbortedError(errno.ECONNABORTED, "closed while waiting")

    def take(self, size: int) -> bytes:
        """Up to `size` bytes that have arrived; b"" is the end of the stream. BlockingIOError: none have."""
        return self.sock.recv(size)

    def pending(self) -> bool:
        """Has this object read what nobody has taken yet? The kernel would not tell of it again."""
        return False

    def ended(self) -> bool:
        """Has the other side ended its stream? False while some of it waits to be read. Raises OSError."""
        try:
            return not self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False

    def recv(self, size: int) -> bytes:
        """Wait for input, then read up to `size` bytes; b"" is the end of the stream."""
        while True:
            self.wait_readable()
            try:
                return self.sock.recv(size)
            except BlockingIOError:
                continue

    def recv_into(self, buffer: memoryview) -> int:
        """Like `recv` into `buffer`, but tries before it waits: for streams that flow."""
        while True:
            try:
                return self.sock.recv_into(buffer)
            except BlockingIOError:
                self.wait_readable()

    def sendall(self, data: bytes | memoryview) -> bool:
        """Send everything; waits only when the socket's buffer is full, and returns whether it was."""
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent == len(data):
            return False
        self._send_rest(data, sent)
        return True

    def _send_rest(self, data: bytes | memoryview, sent: int) -> None:
        # Copied, because `data` may be the scratch buffer, which others use while this one waits.
        rest = memoryview(bytes(data[sent:]))
        while rest:
            self.wait_writable()
            try:
                taken = self.sock.send(rest)
            except BlockingIOError:
                continue
            # In two steps: mypyc evaluates the bounds of such a slice twice.
            rest = rest[taken:]

    def end(self) -> None:
        """End the sending half. Raises OSError."""
        self.sock.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """Close it with a reset: what was sent must not be taken for the whole. May be called again."""
        if self._read_io is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.close()

    def close(self) -> None:
        """Stop watching and close the socket. May be called again. Who still waits is woken with an error."""
        watcher = self._read_io
        if watcher is None:
            return
        self._read_io = None
        self.reactor.conns.discard(self)
        self.deadline = NEVER
        # The watcher goes before the descriptor: its number may be somebody else's a moment later.
        watcher.stop()
        watcher.close()
        if self._write_io is not None:
            self._write_io.stop()
            self._write_io.close()
        self.sock.close()
        for waiting in (self.reader, self.writer):
            if waiting is not None:
                self.reader = self.writer = None
                self.reactor.loop.run_callback(waiting.switch)
