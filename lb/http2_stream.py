"""One stream of an HTTP/2 connection: a request, and the answer to it.

A `Stream` is to its request what a connection of HTTP/1 is: its body is read from it, the answer written to
it, and the reactor knows it as something that a greenlet waits for. The greenlet that serves it is one of the
worker's pool; what comes from the client is told by the session, in the hub.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable
from time import monotonic, time
from typing import Any, Protocol

from greenlet import getcurrent, greenlet
from h2.errors import ErrorCodes

from lb.accesslog import Entry
from lb.client import Host
from lb.environ import fill_fields
from lb.errors import BadRequest, ClientGone, ProxyError
from lb.http2_head import Block, Malformed, answer_fields, fields_of, read_request, read_trailers
from lb.proxy.answer import Answer
from lb.proxy.body import BodyReader, client_fault
from lb.proxy.conn import NEVER, Reactor
from lb.reply import field_lines
from lb.wsgi import problem

_NO_BODY = io.BytesIO()


class Channel(Protocol):
    """What a stream needs of its connection. None of it waits."""

    host: Host
    reactor: Reactor
    base: dict[str, Any]

    def send_head(self, stream: Stream, fields: Block, end: bool) -> None: ...
    def send_data(self, stream: Stream, data: bytes | memoryview, end: bool) -> None: ...
    def room(self, stream: Stream, own_turn: bool) -> int: ...
    def queue_up(self, stream: Stream) -> None: ...
    def consumed(self, stream: Stream, size: int) -> None: ...
    def reset(self, stream: Stream, code: ErrorCodes) -> None: ...
    def over(self, stream: Stream) -> None: ...


class Stream:
    """A request and its answer. Raises OSError where a connection would, TimeoutError included."""

    __slots__ = (
        "_pieces",
        "block",
        "busy_since",
        "channel",
        "deadline",
        "ended",
        "fault",
        "greenlet",
        "head_sent",
        "id",
        "left",
        "lines",
        "measured",
        "reader",
        "sent_all",
        "status",
        "timeout",
        "trailers",
        "unread",
        "writer",
    )

    def __init__(self, channel: Channel, number: int, block: Block, ended: bool) -> None:
        self.channel = channel
        self.id = number
        self.block = block
        #: Has the client ended its half?
        self.ended = ended
        self.busy_since = monotonic()
        self.greenlet: Any = None
        self.reader: greenlet | None = None
        self.writer: greenlet | None = None
        self.deadline = NEVER
        #: Seconds that each single wait may take.
        self.timeout = channel.host.body_timeout
        #: Why nothing can be read or sent any more.
        self.fault: Exception | None = None
        self._pieces: deque[bytes] = deque()
        #: Bytes of content that wait to be read; and that are still to come, below 0 when that is not known.
        self.unread = 0
        self.left = 0
        #: The request's trailer fields that may go on, as lines.
        self.trailers = b""
        self.status = 0
        self.lines = b""
        self.measured = False
        self.head_sent = False
        #: Is our half ended?
        self.sent_all = False

    # In the hub.

    def on_data(self, data: bytes, ended: bool) -> None:
        """Content came; `ended`: the last. Raises Malformed when it is not as long as was said."""
        if self.left >= 0:
            self.left -= len(data)
            if self.left < 0 or (ended and self.left):
                raise Malformed("the content is not as long as Content-Length says")
        if data:
            self._pieces.append(data)
            self.unread += len(data)
        self.ended = ended

    def on_trailers(self, block: Block) -> None:
        """The fields after the content, the end of the client's half. Raises Malformed."""
        self.trailers = read_trailers(block)
        self.on_data(b"", True)

    def wake_reader(self) -> None:
        """Something came for who waits to read."""
        waiting, self.reader = self.reader, None
        if waiting is not None:
            waiting.switch()

    def wake_writer(self) -> None:
        """It is the turn of who waits to write."""
        waiting, self.writer = self.writer, None
        if waiting is not None:
            waiting.switch()

    def fail(self, fault: Exception) -> None:
        """Nothing comes or goes any more: `fault` ends the wait of who serves it, here or for a backend."""
        if self.fault is None:
            self.fault = fault
            if not self.interrupt(fault) and self.greenlet is not None:
                reason = fault if isinstance(fault, ProxyError) else client_fault(fault)
                self.channel.reactor.doom(self.greenlet, monotonic(), reason, None)

    def expire(self) -> None:
        """The deadline passed: as of a `Conn`."""
        self.deadline = NEVER
        self.interrupt(TimeoutError("timed out"))

    def interrupt(self, exc: Exception) -> bool:
        """Raise `exc` in the greenlet that waits for this stream, if one does. To be called in the hub."""
        waiting = self.reader or self.writer
        self.reader = self.writer = None
        if waiting is not None:
            waiting.throw(exc)
        return waiting is not None

    # In the greenlet.

    def _wait(self) -> None:
        self.deadline = monotonic() + self.timeout
        self.channel.reactor.switch()
        self.deadline = NEVER

    def recv(self, size: int) -> bytes:
        """Wait for content, then read up to `size` bytes; b"" is the end. What is read may be sent anew."""
        while not self._pieces:
            if self.fault is not None:
                raise self.fault
            if self.ended:
                return b""
            self.reader = getcurrent()
            self._wait()
        data = (pieces := self._pieces).popleft()
        if len(data) < size and pieces:
            parts = [data]
            room = size - len(data)
            while pieces and len(pieces[0]) <= room:
                room -= len(pieces[0])
                parts.append(pieces.popleft())
            data = b"".join(parts)
        elif len(data) > size:
            pieces.appendleft(data[size:])
            data = data[:size]
        self.unread -= len(data)
        self.channel.consumed(self, len(data))
        return data

    def sendall(self, data: bytes | memoryview) -> bool:
        """Send it within the windows, in turn with the other streams; returns whether it had to wait."""
        return self._put(data, False)

    def _put(self, data: bytes | memoryview, last: bool) -> bool:
        self._check()
        channel = self.channel
        waited, own_turn, at, size = False, False, 0, len(data)
        while at < size:
            room = channel.room(self, own_turn)
            own_turn = False
            if room <= 0:
                if not waited:
                    # Copied, because `data` may be the scratch buffer, which others use while this one waits.
                    waited, data, at = True, bytes(data[at:]), 0
                    size = len(data)
                channel.queue_up(self)
                self.writer = getcurrent()
                self._wait()
                self._check()
                own_turn = True
                continue
            end = min(at + room, size)
            self.sent_all = last and end == size
            channel.send_data(self, data[at:end], self.sent_all)
            at = end
        return waited

    def _check(self) -> None:
        if self.fault is not None:
            raise ConnectionResetError("the stream is closed")

    def serve(self, data: bytes, fault: ProxyError | None = None) -> None:
        """Handle the request, or answer `fault`."""
        self.channel.reactor.streams.add(self)
        environ = self.channel.base.copy()
        try:
            self._read_head(environ)
            if fault is not None:
                raise fault
        except Malformed as exc:
            self._give_up(ErrorCodes.PROTOCOL_ERROR)
            self._log_refused(BadRequest(str(exc)), 0)
        except ProxyError as exc:
            self._refuse(exc)
        else:
            self._handle(environ)
        self.close()

    def _read_head(self, environ: dict[str, Any]) -> None:
        """Fill `environ`. Raises Malformed and ClientError."""
        head = read_request(self.block, self.ended, self.channel.host.limits)
        self.left = head.length
        fill_fields(environ, head.method, head.path, head.fields, 1, None)
        environ["lb.start"] = self.start_raw
        environ["lb.interim"] = self.interim
        if self.ended:
            environ["wsgi.input"] = _NO_BODY
            return
        body = BodyReader(self, head.length, b"", client_fault)
        if environ["lb.expect"] is not None:
            body.awaited, body.go_on = True, self.go_on
        environ["lb.body"] = environ["wsgi.input"] = body
        if head.length < 0:
            environ["wsgi.input_terminated"] = True

    def _handle(self, environ: dict[str, Any]) -> None:
        result: Any = None
        host = self.channel.host
        try:
            result = host.app(environ, self.start_response)
            self._write(environ, result)
        except TimeoutError:
            self._give_up(ErrorCodes.CANCEL)
        except OSError:
            pass  # the client went away
        except ProxyError:
            # The backend broke in the middle: the client must not take what it has for the whole.
            self._give_up(ErrorCodes.INTERNAL_ERROR)
        except Exception:  # noqa: BLE001 - an application's, and any WSGI server's last resort
            host.crashed(environ)
            if not self.head_sent:
                self._refuse(ProxyError("the application failed"))
            else:
                self._give_up(ErrorCodes.INTERNAL_ERROR)
        finally:
            if type(result) is not tuple and (close := getattr(result, "close", None)) is not None:
                close()

    def _refuse(self, exc: ProxyError) -> None:
        """Answer a request that cannot be served."""
        request_id = self.channel.host.next_id()
        try:
            body = b"".join(problem(exc, {"REQUEST_METHOD": "GET"}, self.start_response, request_id))
            self._head(answer_fields(self.status, self.lines), False)
            self._put(body, True)
        except OSError:
            body = b""
        self._log_refused(exc, len(body), request_id)

    def _log_refused(self, exc: ProxyError, size: int, request_id: str = "") -> None:
        channel = self.channel
        who, request_id = channel.base["REMOTE_ADDR"], request_id or channel.host.next_id()
        entry = Entry(time(), request_id, who, "", "", "", status=exc.status, code=exc.code, bytes=size)
        entry.duration = monotonic() - self.busy_since
        channel.host.log_refused(entry)

    def _give_up(self, code: ErrorCodes) -> None:
        """Send RST_STREAM."""
        self.channel.reset(self, code)
        if self.fault is None:
            self.fault = ClientGone("the stream is over")

    def close(self) -> None:
        """The request is over, one way or the other. May be called again."""
        if self.fault is None and not self.sent_all:
            self._give_up(ErrorCodes.INTERNAL_ERROR)
        if self.fault is None and not self.ended:  # the rest is not wanted (RFC 9113, section 8.1)
            self._give_up(ErrorCodes.NO_ERROR)
        if self.fault is None:
            self.fault = ClientGone("the stream is over")
        self.greenlet = None
        self._pieces.clear()
        if self.unread:
            self.channel.consumed(self, self.unread)
        self.unread = 0
        self.channel.reactor.streams.discard(self)
        self.channel.over(self)

    # The answer.

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        """As in PEP 3333."""
        if exc_info is not None and self.head_sent:
            raise exc_info[1].with_traceback(exc_info[2])
        code, _, reason = status.partition(" ")
        self.start_raw(int(code), reason, *field_lines(headers))
        return self._write_now

    def start_raw(self, status: int, reason: str, lines: bytes, measured: bool) -> None:
        """The same for those who have the fields as `lines`; `measured`: they say how long the body is."""
        self.status, self.lines, self.measured = status, lines, measured

    def interim(self, raw: bytes) -> None:
        """Pass on an interim answer (1xx), given as a whole head of HTTP/1."""
        if self.head_sent:
            return
        if self.fault is not None:
            # The caller would take an OSError for the backend's.
            raise ClientGone("the client went away before its answer")
        first, _, rest = raw.partition(b"\r\n")
        self.channel.send_head(self, answer_fields(int(first.split(b" ")[1]), rest[:-2]), False)

    def go_on(self) -> None:
        """Tell a client that waits for it to send its body."""
        self.interim(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _head(self, fields: Block, end: bool) -> None:
        self._check()
        self.head_sent = True
        self.sent_all = end
        self.channel.send_head(self, fields, end)

    def _end(self) -> None:
        """End our half."""
        self._check()
        self.sent_all = True
        self.channel.send_data(self, b"", True)

    def _write_now(self, data: bytes) -> None:
        if not self.head_sent:
            self._head(answer_fields(self.status, self.lines), False)
        self.sendall(data)

    def _write(self, environ: dict[str, Any], result: Any) -> None:
        status = self.status
        if not status:
            raise RuntimeError("the application answered without calling start_response")
        bodiless = environ["REQUEST_METHOD"] == "HEAD" or status == 204 or status == 304
        whole = b"".join(result) if type(result) is tuple else None
        if not self.head_sent:
            fields = answer_fields(status, self.lines)
            if whole is not None and not (self.measured or bodiless):
                fields.append((b"content-length", b"%d" % len(whole)))
            self._head(fields, bodiless or whole == b"")
        trailers = b""
        if whole is not None:
            if not self.sent_all:
                self._put(whole, True)
        elif type(result) is Answer:
            result.relay(self, chunked=False, head=b"")
            trailers = result.trailers
        else:
            for piece in result:
                if piece and not bodiless:
                    self.sendall(piece)
        if self.sent_all:
            return
        if trailers:
            self._head(fields_of(trailers), True)
        else:
            self._end()

    sock: Any = None

    def recv_into(self, buffer: memoryview) -> int:
        """As `recv`."""
        data = self.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readable(self) -> bool:
        """Has content arrived that nobody has read yet (the end counts)?"""
        return bool(self._pieces) or self.ended
