"""A message body on its way through: read piece by piece, never whole.

A `BodyReader` knows where the body ends, says whether it came whole, and gives back what was read beyond
its end. Errors of its source are translated here, once: whoever relays a body can take
every OSError that is left to be the destination's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

from lb.errors import (
    BadRequest,
    BadResponse,
    BodyTooLarge,
    ClientGone,
    IncompleteBody,
    ProxyError,
    RequestTimeout,
    ResponseTimeout,
    UpstreamClosed,
)
from lb.proxy.conn import Answered, Conn, Stream
from lb.proxy.http1 import CHUNKED, UNTIL_CLOSE, ChunkReader, chunk, last_chunk

PIECE = 65536
"""Bytes: the most that is read at once where no shared buffer is at hand."""

TURN = 4 * 1024 * 1024
"""Bytes that a bulk transfer moves before it lets others have a turn: it may never have to wait itself."""


def client_fault(exc: Exception) -> ProxyError:
    """What it means that a client's body cannot be read."""
    if isinstance(exc, TimeoutError):
        return RequestTimeout("the client paused too long in its body")
    if isinstance(exc, EOFError):
        return IncompleteBody(str(exc))
    if isinstance(exc, OSError):
        return ClientGone("the client went away in its body")
    return BadRequest(str(exc))


def upstream_fault(exc: Exception) -> ProxyError:
    """What it means that a backend's body cannot be read."""
    if isinstance(exc, TimeoutError):
        return ResponseTimeout("the backend paused too long in its answer")
    if isinstance(exc, OSError | EOFError):
        return UpstreamClosed("the backend closed within its answer")
    return BadResponse(str(exc))


class BodyReader:
    """The body of a message: `length` bytes, CHUNKED or UNTIL_CLOSE; `buffered` of it came with the head."""

    __slots__ = (
        "_chunks",
        "_fault",
        "_left",
        "_limit",
        "_ready",
        "_seen",
        "_stream",
        "awaited",
        "complete",
        "go_on",
        "length",
        "passed",
        "rest",
    )

    def __init__(
        self,
        stream: Stream,
        length: int,
        buffered: bytes,
        fault: Callable[[Exception], ProxyError],
    ) -> None:
        self._stream = stream
        self._fault = fault
        self.length = length
        #: Does its sender wait for `100 Continue` before it sends it? When the body is relayed to a backend
        #: that one says so; whoever reads it here calls `go_on` first.
        self.awaited = False
        self.go_on: Callable[[], None] | None = None
        #: Has the whole body been read from the stream?
        self.complete = False
        #: Content bytes that `relay` has sent on.
        self.passed = 0
        #: What was read after the end of the body.
        self.rest = b""
        self._ready: list[bytes] = []
        self._left = length
        self._limit = self._seen = 0
        self._chunks = ChunkReader() if length == CHUNKED else None
        if length >= 0 and len(buffered) >= length:
            self.complete = True
            self._left = 0
            self.rest = buffered[length:]
            buffered = buffered[:length]
        elif length > 0:
            self._left = length - len(buffered)
        if buffered:
            self._take(buffered)

    def _take(self, data: bytes) -> None:
        """Sort fresh bytes into content and what follows the body."""
        if self._chunks is not None:
            try:
                pieces = self._chunks.feed(data)
            except ValueError as exc:
                raise self._fault(exc) from None
            self._ready += pieces
            if self._limit:
                self._check_limit(sum(map(len, pieces)))
            if self._chunks.done:
                self.complete = True
                self.rest = self._chunks.rest
        else:
            self._ready.append(data)
            if self._limit:
                self._check_limit(len(data))

    def limit_to(self, most: int) -> None:
        """Let it be at most `most` bytes. Raises BodyTooLarge, now or when more than that has been read."""
        self._limit = most
        self._check_limit(max(self.length, sum(map(len, self._ready))))

    def _check_limit(self, more: int) -> None:
        self._seen += more
        if self._seen > self._limit:
            raise BodyTooLarge(f"the body is larger than {self._limit} bytes")

    @property
    def trailers(self) -> bytes:
        """The trailer fields that may go on, as lines, once it is complete."""
        if self._chunks is not None:
            return self._chunks.trailers
        trailers: bytes = getattr(self._stream, "trailers", b"")
        return trailers

    def _fill(self) -> None:
        """Read once from the stream. Raises what `fault` makes of an error or an early end."""
        left = self._left
        try:
            data = self._stream.recv(min(PIECE, left) if left > 0 else PIECE)
        except OSError as exc:
            raise self._fault(exc) from None
        if not data:
            self._ended()
        elif left > 0:
            self._left = left - len(data)
            self.complete = self._left == 0
            self._ready.append(data)
        else:
            self._take(data)

    def _ended(self) -> None:
        if self.length != UNTIL_CLOSE:
            raise self._fault(EOFError("closed before the end of the body"))
        self.complete = True

    def next_piece(self) -> bytes:
        """The next piece as it arrives; b"" at the end."""
        while not self._ready:
            if self.complete:
                return b""
            self._fill()
        ready = self._ready
        if len(ready) == 1:
            return ready.pop()
        piece = b"".join(ready)
        ready.clear()
        return piece

    def unread(self, data: bytes) -> None:
        """Let `data`, which was read last, be read again."""
        if data:
            self._ready.insert(0, data)

    def buffered(self) -> bytes:
        """What has arrived already, without waiting; may be b""."""
        piece = b"".join(self._ready)
        self._ready.clear()
        return piece

    def relay(self, to: Stream, *, chunked: bool, stop_on_answer: bool = False, head: bytes = b"") -> int:
        """Send all that is left to `to`, `head` before it; returns the number of content bytes.

        With `stop_on_answer` it stops as soon as `to` has something to read: a backend that answers
        before the upload is over has made up its mind. Raises OSError for faults of `to`.
        """
        before = self.passed
        source: Any = self._stream
        if stop_on_answer and isinstance(to, Conn) and hasattr(source, "interrupt"):

            def stop_reading() -> None:
                if source.reader is not None:
                    source.interrupt(Answered())

            to.noticed = stop_reading
            try:
                self._relay(to, chunked, stop_on_answer, head)
            except Answered:
                pass
            finally:
                to.noticed = None
            if self.complete and isinstance(source, Conn):
                # Its last bytes may have been read without a wait: from here on its end would go unnoticed.
                source.arm()
        else:
            self._relay(to, chunked, stop_on_answer, head)
        return self.passed - before

    def _relay(self, to: Stream, chunked: bool, stop_on_answer: bool, head: bytes) -> None:
        piece = self.buffered()
        if chunked or self._chunks is not None or not hasattr(self._stream, "reactor"):
            while True:
                if piece:
                    to.sendall(head + (chunk(piece) if chunked else piece))
                    self.passed += len(piece)
                    head = b""
                    # A body that is here whole gets its end: `to` may be used again.
                    if stop_on_answer and not self.complete and to.readable():
                        return
                elif head and not self.complete:
                    to.sendall(head)
                    head = b""
                if self.complete:
                    break
                piece = self.next_piece()
            if chunked:
                to.sendall(head + last_chunk(self.trailers))
            elif head:
                to.sendall(head)
            return
        if head or piece:
            to.sendall(head + piece)
            self.passed += len(piece)
        if not self.complete:
            self._pour(to, stop_on_answer)

    def _pour(self, to: Stream, stop_on_answer: bool) -> None:
        """Bulk transfer through the shared buffer: no copy into Python objects on the way.

        How much is read at once grows while it flows. What a destination does not take at once is copied
        and held, so a slow one gets little at a time.
        """
        stream: Any = self._stream
        scratch: memoryview = stream.reactor.scratch
        most = len(scratch)
        size, moved = PIECE, 0
        while True:
            left = self._left
            if moved >= TURN:
                moved = 0
                stream.reactor.give_way()
            try:
                got: int = stream.recv_into(scratch[: left if 0 < left < size else size])
            except OSError as exc:
                raise self._fault(exc) from None
            if not got:
                self._ended()
                return
            if left > 0:
                self._left = left = left - got
                self.complete = left == 0
            if to.sendall(scratch[:got]):
                size = PIECE
            elif got == size and size < most:
                size += size
            self.passed += got
            moved += got
            if self.complete or (stop_on_answer and to.readable()):
                return

    def _ask(self) -> None:
        ask, self.go_on = self.go_on, None
        if self.awaited and ask is not None:
            self.awaited = False
            ask()

    # What WSGI asks of wsgi.input, and urllib3's users of Response.raw.

    def read(self, size: int | None = -1, decode_content: bool | None = None) -> bytes:
        """Up to `size` bytes, all of them when `size` is negative or None; b"" at the end."""
        self._ask()
        if size is None or size < 0:
            return b"".join(self)
        out = bytearray()
        while len(out) < size and (piece := self.next_piece()):
            out += piece
        if len(out) > size:
            self._ready.insert(0, bytes(out[size:]))
            del out[size:]
        return bytes(out)

    def readline(self, size: int = -1) -> bytes:
        """One line, newline included."""
        self._ask()
        if size == 0:
            return b""
        out = bytearray()
        while piece := self.next_piece():
            out += piece
            newline = out.find(b"\n")
            end = newline + 1 if newline >= 0 else (size if 0 <= size <= len(out) else 0)
            if 0 <= size < end:
                end = size
            if end:
                self._ready.insert(0, bytes(out[end:])) if len(out) > end else None
                return bytes(out[:end])
        return bytes(out)

    def readlines(self, hint: int = -1) -> list[bytes]:
        """All lines."""
        return BytesIO(self.read()).readlines(hint)

    def stream(self, size: int = PIECE, decode_content: bool | None = None) -> Iterator[bytes]:
        """The pieces as they arrive, content codings left as they are: what a proxy needs."""
        return iter(self)

    def __iter__(self) -> Iterator[bytes]:
        self._ask()
        while piece := self.next_piece():
            yield piece
