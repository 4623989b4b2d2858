"""A backend's answer on its way to the client."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from time import perf_counter

from lb.accesslog import AccessLog, Entry
from lb.dates import http_date
from lb.errors import ClientGone, ProxyError, RequestTimeout
from lb.model import Backend
from lb.proxy.conn import Conn, Stream
from lb.proxy.messages import ProxyResponse
from lb.proxy.trace import Trace
from lb.proxy.tunnel import Tunnels


class Settles:
    """Who wants to know when an answer is over: a `lb.proxy.forward.Forwarder`. A class: compiled, a call of
    one costs a fraction of a protocol's.
    """

    tunnels: Tunnels

    def settle(self, answer: Answer, code: str) -> None:
        """`answer` is over, or given up; `code` says why it broke, "" if it did not."""
        raise NotImplementedError


class Unasked(Settles):
    """Settles answers that no backend was asked for: kept ones."""

    def __init__(self, log: AccessLog, tunnels: Tunnels) -> None:
        self.tunnels = tunnels
        self._log = log

    def settle(self, answer: Answer, code: str) -> None:
        """Write the log's entry."""
        entry = answer.entry
        entry.status, entry.bytes, entry.duration = answer.status, answer.sent, answer.duration()
        entry.code = code
        self._log.add(entry)


class Answer:
    """A backend's answer on its way to the client: an iterable of its body that settles when it is closed.

    A worker that knows it may take `relay` instead of iterating: the same bytes, without a copy of each.
    """

    __slots__ = (
        "_done",
        "_forwarder",
        "_response",
        "backend",
        "canary",
        "code",
        "entry",
        "lines",
        "measured",
        "reason",
        "sent",
        "started",
        "status",
        "took",
        "trace",
    )

    def __init__(
        self,
        forwarder: Settles,
        backend: Backend,
        entry: Entry,
        started: float,
        response: ProxyResponse,
        took: float = -1.0,
        canary: bool = False,
    ) -> None:
        self._forwarder = forwarder
        self._response = response
        self.started = started
        self._done = False
        #: Why it broke off, or was not tried again.
        self.code = ""
        self.backend = backend
        self.entry = entry
        #: Seconds until its head came, below 0 where nobody wants to know; was a canary's algorithm used?
        self.took = took
        self.canary = canary
        #: What is written down of the request, if that is kept.
        self.trace: Trace | None = None
        #: Content bytes handed over so far.
        self.sent = 0
        self.status: int = response.status_code
        self.reason: str = response.reason or ""
        #: The end-to-end fields as lines, and whether they say how long the body is.
        self.lines: bytes = response.head.lines
        self.measured: bool = response.head.measured
        # Who has a clock says when an answer without a Date came (RFC 9110, section 6.6.1).
        if not response.head.dated:
            self.lines += f"Date: {http_date()}\r\n".encode()

    def headers(self) -> list[tuple[str, str]]:
        """The end-to-end fields, as WSGI wants them."""
        lines = self.lines.decode("latin-1").split("\r\n")[:-1]
        return [(name, value.strip(" \t")) for name, _, value in (line.partition(":") for line in lines)]

    def whole(self) -> bytes | None:
        """The body, if all of it is here; the answer is settled then, and needs no closing."""
        if self._response.whole is None:
            return None
        body: bytes = self._response.whole
        self._done = True
        self.sent = len(body)
        self._forwarder.settle(self, self.code)
        return body

    def gather(self, most: int) -> bytes | None:
        """The whole body if it has at most `most` bytes, else None. Nothing of it is taken away.

        Raises ProxyError when it breaks off.
        """
        whole: bytes | None = self._response.whole
        if whole is not None:
            return whole if len(whole) <= most else None
        raw = self._response.raw
        found = b""
        try:
            while len(found) <= most and (piece := raw.next_piece()):
                found += piece
        finally:
            raw.unread(found)
        return found if len(found) <= most else None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            piece: bytes = self._response.raw.next_piece()
        except ProxyError as exc:
            self.code = exc.code
            raise
        if not piece:
            raise StopIteration
        self.sent += len(piece)
        return bytes(piece)

    def relay(self, to: Stream, *, chunked: bool, head: bytes) -> None:
        """Send `head` and the whole body to `to`. Raises OSError for its faults, UpstreamError for others."""
        raw = self._response.raw
        try:
            raw.relay(to, chunked=chunked, head=head)
        except ProxyError as exc:
            self.code = exc.code
            raise
        except TimeoutError:
            self.code = RequestTimeout.code
            raise
        finally:
            self.sent += raw.passed

    @property
    def trailers(self) -> bytes:
        """The trailer fields, as lines, once the body is over."""
        return self._response.raw.trailers

    def tunnel(self, client: Conn, head: bytes, ahead: bytes) -> None:
        """Send `head` (101), then join the two connections until both have ended; `ahead` is for the backend.

        Raises OSError when either failed: nothing can be said about that any more, but it was no end.
        """
        conn, first = self._response.hand_over()
        try:
            client.sendall(head + first)
            if ahead:
                conn.sendall(ahead)
            tunnels = self._forwarder.tunnels
            tunnel = tunnels.join(self.backend.id, client, conn)
            try:
                tunnel.run()
            finally:
                tunnels.leave(self.backend.id, tunnel)
                self.sent += len(first) + tunnel.to_client
            if tunnel.failed:
                raise ConnectionResetError(errno.ECONNRESET, "a side of the tunnel failed")
        finally:
            conn.close()

    def close(self) -> None:
        """Give back the connection and the claim, and write the log's entry; later calls do nothing."""
        if self._done:
            return
        self._done = True
        cut = not self._response.raw.complete and self.status != 101
        self._response.close()
        # What nobody but us could have cut short, the client has.
        self._forwarder.settle(self, self.code or (ClientGone.code if cut else ""))

    def discard(self) -> None:
        """Give back the connection and nothing else: another backend is tried."""
        self._done = True
        self._response.close()

    def duration(self) -> float:
        """Seconds since the request came."""
        return perf_counter() - self.started
