"""One client's connection that speaks HTTP/2 (RFC 9113), and the streams within.

A `Session` has no greenlet: what arrives is read in the hub, and each stream gets a greenlet for as long as
its request lasts. Everything is bounded: what a client may have sent that no backend has taken (the windows),
what it has not read of its answers, how many requests run for it.
"""

from __future__ import annotations

import logging
from collections import deque
from time import monotonic
from typing import Any

from h2.connection import ConnectionState
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    RemoteSettingsChanged,
    RequestReceived,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from hyperframe.frame import GoAwayFrame

from lb.client import Host
from lb.errors import BadRequest
from lb.http2_head import Block, Malformed
from lb.http2_outbox import Outbox
from lb.http2_protocol import MAX_STREAMS, Protocol
from lb.http2_stream import Stream
from lb.proxy.conn import NEVER, Conn
from lb.reply import LINGER

_LOG = logging.getLogger("lb")

MAX_WASTED = 2 * MAX_STREAMS
"""Requests that were reset, refused or malformed beyond those that were served: more end the connection."""
MOST_UNSENT = 262144
"""Bytes that wait at most for the client to read them, control frames and heads of answers apart."""
MOST_CONTROL = 65536
"""Bytes of those, beyond which nothing more is read from a client that does not read."""
PIECE = 65536
"""Bytes: the most that is read at once."""

_LAST_OF_ALL = 2**31 - 1


class Session:
    """A connection, from the end of its handshake to its close. It is the `Channel` of its streams."""

    upgraded = False

    def __init__(self, host: Host, conn: Conn, base: dict[str, Any]) -> None:
        self.host = host
        self.conn = conn
        self.reactor = conn.reactor
        #: The environ of each request before its head is filled in.
        self.base = {**base, "SERVER_PROTOCOL": "HTTP/2.0", "lb.start": None, "lb.interim": None}
        #: Those whose greenlet runs, also when they were reset.
        self.streams: dict[int, Stream] = {}
        self.idle_since = monotonic()
        #: When an idle connection is closed.
        self._due = self.idle_since + host.header_timeout
        #: Have the client's settings come?
        self._settled = False
        self._wasted = 0
        self._outbox = Outbox(conn, host.body_timeout, self._on_sent, self._lost)
        #: Is nothing read until the client reads?
        self._paused = False
        #: Does it end when what is gathered is sent? Has it, and only drops what comes?
        self._ending = self._ended = False
        #: Has the client been told to open no more streams?
        self._leaving = False
        #: Streams that wait for the connection's window, or for room to send.
        self._queue: deque[Stream] = deque()
        conn.idle = self._on_readable
        conn.expired = self._on_due
        conn.noticed = None
        conn.deadline = self._due
        self._protocol = protocol = Protocol(host.limits.head)
        protocol.greet()
        self._gather()

    # In the hub.

    def _on_readable(self) -> None:
        conn = self.conn
        while not (conn.closed or self._paused):
            try:
                data = conn.take(PIECE)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lost()
                return
            self.receive(data)
            if not conn.pending():
                return

    def receive(self, data: bytes) -> None:
        """Handle what the client sent."""
        if self._ending:
            return
        protocol = self._protocol
        try:
            events = protocol.receive_data(data)
        except ProtocolError as exc:
            _LOG.debug("an HTTP/2 connection of %s failed: %s", self.base["REMOTE_ADDR"], exc)
            if protocol.state_machine.state != ConnectionState.CLOSED:  # else it has its GOAWAY ready
                self._go_away(exc.error_code)
            self._end()
            return
        except Exception:  # noqa: BLE001 - one connection's fault must not end the worker
            _LOG.exception("reading from an HTTP/2 connection failed")
            self._go_away(ErrorCodes.INTERNAL_ERROR)
            self._end()
            return
        touched: set[Stream] = set()
        # Not even begun: most of what a client can do that opens streams only to reset them.
        resets = {event.stream_id for event in events if isinstance(event, StreamReset)}
        for event in events:
            if isinstance(event, RequestReceived):
                if event.stream_id in resets:
                    self._waste()
                else:
                    self._on_request(event)
            elif isinstance(event, DataReceived):
                self._on_data(event, touched)
            elif isinstance(event, TrailersReceived):
                self._on_trailers(event, touched)
            elif isinstance(event, StreamReset):
                self._on_reset(event.stream_id)
            elif isinstance(event, WindowUpdated):
                self._on_window(event.stream_id)
            elif isinstance(event, RemoteSettingsChanged):
                self._on_settings()
        for stream in touched:
            stream.wake_reader()
        self._wake_writers()
        self._gather()
        if self._outbox.waiting > MOST_UNSENT + MOST_CONTROL and not self._ending:
            self._paused = True
            self.conn.pause()

    def _on_settings(self) -> None:
        if not self._settled:
            self._settled = True
            if not self.streams:
                self._settle(self.host.keepalive)
        for number in self.streams:
            self._on_window(number)

    def _on_window(self, number: int) -> None:
        """The window of a stream, or of the connection (0), has changed."""
        stream = self.streams.get(number)
        if stream is not None and stream.writer is not None and stream not in self._queue:
            self.queue_up(stream)

    def _on_request(self, event: RequestReceived) -> None:
        number = event.stream_id
        if self._ending:
            return
        if len(self.streams) >= MAX_STREAMS:
            self._protocol.reset_stream(number, ErrorCodes.REFUSED_STREAM)
            self._waste()
            return
        block: Any = event.headers[0][1]
        stream = Stream(self, number, block, event.stream_ended is not None)
        self.streams[number] = stream
        self._settle(NEVER)
        self.host.run(stream, b"")

    def _on_data(self, event: DataReceived, touched: set[Stream]) -> None:
        stream = self.streams.get(event.stream_id)
        size = event.flow_controlled_length
        if stream is None or stream.fault is not None:
            self._protocol.acknowledge_received_data(size, event.stream_id)
            return
        padding = size - len(event.data)
        if padding:
            self._protocol.acknowledge_received_data(padding, event.stream_id)
        try:
            stream.on_data(bytes(event.data), event.stream_ended is not None)
        except Malformed as exc:
            self._protocol.acknowledge_received_data(len(event.data), event.stream_id)
            self._spoil(stream, exc)
        else:
            touched.add(stream)

    def _on_trailers(self, event: TrailersReceived, touched: set[Stream]) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is None or stream.fault is not None:
            return
        block: Any = event.headers[0][1]
        try:
            stream.on_trailers(block)
        except Malformed as exc:
            self._spoil(stream, exc)
        else:
            touched.add(stream)

    def _spoil(self, stream: Stream, exc: Malformed) -> None:
        """A stream error (RFC 9113, section 5.4.2)."""
        self.reset(stream, ErrorCodes.PROTOCOL_ERROR)
        stream.fail(BadRequest(str(exc)))

    def _on_reset(self, number: int) -> None:
        stream = self.streams.get(number)
        if stream is not None and stream.fault is None:
            self._waste()
            stream.fail(ConnectionResetError("the client gave up"))

    def _waste(self) -> None:
        """One more request was for nothing (CVE-2023-44487): who does that all the time has to go."""
        self._wasted += 1
        if self._wasted > MAX_WASTED and not self._ending:
            _LOG.debug("an HTTP/2 client, %s, wastes requests", self.base["REMOTE_ADDR"])
            self._go_away(ErrorCodes.ENHANCE_YOUR_CALM)
            self._end()

    def _wake_writers(self) -> None:
        queue = self._queue
        while (
            queue and self._protocol.outbound_flow_control_window > 0 and self._outbox.waiting < MOST_UNSENT
        ):
            queue.popleft().wake_writer()

    def _on_due(self) -> None:
        """The deadline of a connection that was idle when it was set has passed."""
        if monotonic() < self._due:
            self.conn.deadline = self._due
        else:
            self.close()

    def _settle(self, timeout: float) -> None:
        """From now on it may idle for so long; NEVER: it is in use."""
        self._due = NEVER if timeout == NEVER else self.idle_since + timeout
        if not (self._outbox.sending or self._ending):
            self.conn.deadline = self._due

    # Its end.

    @property
    def idle(self) -> bool:
        """Is no request under way, and nothing to be sent?"""
        return not (self.streams or self._outbox.waiting or self._ending)

    def overdue(self, before: float) -> list[Any]:
        """Who serves a request that began before then (by `monotonic`)."""
        return [s.greenlet for s in self.streams.values() if s.busy_since < before and s.greenlet is not None]

    def leave(self) -> None:
        """Tell the client to open no more streams here; those that come all the same are served."""
        if not self._leaving and not self._ending:
            self._leaving = True
            self._go_away(ErrorCodes.NO_ERROR, _LAST_OF_ALL)
            self._gather()

    def _go_away(self, code: ErrorCodes, last: int = -1) -> None:
        """Say GOAWAY. Not by the state machine, for which that would be the end of all streams."""
        self._gather()
        last = self._protocol.highest_inbound_stream_id if last < 0 else last
        self._outbox.push(GoAwayFrame(0, last_stream_id=last, error_code=code).serialize())

    def close(self) -> None:
        """End the connection: GOAWAY, then close. May be called again."""
        if not self._ending and not self.conn.closed:
            self._go_away(ErrorCodes.NO_ERROR)
            self._end()

    def cut(self) -> None:
        """End it in mid-stream."""
        if self._ending:
            self.reactor.loop.run_callback(self._lost)
        else:
            self.close()

    def _end(self) -> None:
        """Send what is gathered, then close. The streams are given up."""
        self._gather()
        self._ending = True
        self.reactor.loop.run_callback(self._finish)

    def _finish(self) -> None:
        """When all is sent, end our half, and read on for a moment: a reset would destroy what was sent."""
        self._fail(ConnectionResetError("the connection is over"))
        conn = self.conn
        if conn.closed or self._outbox.waiting or self._ended:
            return
        self._ended = True
        try:
            conn.end()
        except OSError:
            self._lost()
            return
        conn.idle, conn.expired = self._drop, self._lost
        conn.deadline = monotonic() + LINGER
        conn.arm()

    def _drop(self) -> None:
        """Read, and forget it."""
        try:
            while self.conn.take(PIECE):
                if not self.conn.pending():
                    return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._lost()

    def _lost(self) -> None:
        """The connection is gone. In the hub."""
        self._ending = self._ended = True
        self.conn.close()
        self._outbox.clear()
        self._fail(ConnectionResetError("the client closed its connection"))
        self.host.gone(self)

    def _fail(self, fault: Exception) -> None:
        self._queue.clear()
        for stream in list(self.streams.values()):
            stream.fail(fault)

    # Sending.

    def _gather(self) -> None:
        """Send what the state machine has to say."""
        data = self._protocol.data_to_send()
        if data:
            self._outbox.push(data)

    def _on_sent(self) -> None:
        """All of it is in the socket. In the hub."""
        if self._ending:
            self._finish()
        elif not self._outbox.sending:
            self.conn.deadline = self._due
            if self._paused:
                self._paused = False
                self.conn.arm()
            self._wake_writers()

    # What streams ask of their connection.

    def send_head(self, stream: Stream, fields: Block, end: bool) -> None:
        """Send a HEADERS frame: the head of an answer, an interim one, or its trailers."""
        if stream.fault is None and not self._ending:
            self._protocol.send_headers(stream.id, fields, end_stream=end)
            self._gather()

    def send_data(self, stream: Stream, data: bytes | memoryview, end: bool) -> None:
        """Send a DATA frame, as large as `room` says at most."""
        if stream.fault is None and not self._ending:
            self._protocol.send_data(stream.id, data, end_stream=end)
            self._gather()

    def room(self, stream: Stream, own_turn: bool) -> int:
        """Bytes that a DATA frame of this stream may have now; 0 or less: none. Others may be before it."""
        if self._outbox.waiting >= MOST_UNSENT or (self._queue and not own_turn):
            return 0
        protocol = self._protocol
        return min(protocol.local_flow_control_window(stream.id), protocol.max_outbound_frame_size)

    def queue_up(self, stream: Stream) -> None:
        """Let it have its turn after the others. One without a window is not waited for."""
        if stream.fault is None and self._protocol.streams[stream.id].outbound_flow_control_window > 0:
            self._queue.append(stream)

    def consumed(self, stream: Stream, size: int) -> None:
        """The client may send so much more."""
        if not self._ending:
            self._protocol.acknowledge_received_data(size, stream.id)
            self._gather()

    def reset(self, stream: Stream, code: ErrorCodes) -> None:
        """Send RST_STREAM."""
        if stream.fault is None and not self._ending:
            self._protocol.reset_stream(stream.id, code)
            self._gather()
            if code == ErrorCodes.PROTOCOL_ERROR:
                self._waste()

    def over(self, stream: Stream) -> None:
        """Its greenlet is done with it."""
        if self.streams.pop(stream.id, None) is None:
            return
        if stream.sent_all and self._wasted:
            self._wasted -= 1
        if not self.streams:
            self.idle_since = monotonic()
            self._settle(self.host.keepalive)
