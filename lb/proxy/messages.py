"""A request and its answer in the types of `requests`, without what a proxy has no use for.

Both are made once per request, so they hold bytes as they came; what `requests` promises beyond that
(`url`, `headers`) is worked out when somebody reads it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any, ClassVar

from requests import PreparedRequest, Response
from requests.cookies import RequestsCookieJar
from requests.structures import CaseInsensitiveDict

from lb.proxy.body import PIECE, BodyReader, upstream_fault
from lb.proxy.conn import NEVER, Conn
from lb.proxy.dial import ThreadConn
from lb.proxy.fields import ResponseHead
from lb.proxy.http1 import UNTIL_CLOSE
from lb.proxy.upstream import Upstream, went_away


class _Nowhere:
    """The stream behind a body that is here already."""

    timeout = NEVER

    def recv(self, size: int) -> bytes:
        return b""


_NOWHERE: Any = _Nowhere()
_AT_ONCE = timedelta(0)


class Pieces:
    """A body as users of `requests` give it, a file or an iterable of bytes, as a stream."""

    timeout = NEVER

    def __init__(self, source: Any) -> None:
        read = getattr(source, "read", None)
        self._pieces = iter(source) if read is None else iter(lambda: read(PIECE) or b"", b"")
        self._rest = b""

    def recv(self, size: int) -> bytes:
        """Up to `size` bytes; b"" at the end."""
        piece = self._rest
        while not piece:
            try:
                piece = next(self._pieces)
            except StopIteration:
                return b""
        self._rest = piece[size:]
        return piece[:size]


class ProxyRequest(PreparedRequest):
    """A request on its way to a backend: the head as bytes, the body as bytes, a `BodyReader` or None.

    `url` and `headers` are worked out only when somebody reads them.
    """

    #: Takes the head of each interim answer (1xx), ready to be sent on; None: they are dropped.
    interim: Any = None
    #: How many there were.
    interims: int = 0
    #: Is told of the connection, where two attempts race (`lb.proxy.hedge`).
    race: Any = None
    #: Did it ask to change the protocol?
    upgrade: bool = False

    def __init__(
        self, method: str, upstream: Upstream, target: str, head: bytes, body: BodyReader | bytes | None
    ) -> None:
        # Not PreparedRequest.__init__: it sets up hooks and cookies that a proxy has no use for.
        self.method = method
        self.upstream = upstream
        self.target = target
        self.head = head
        self.payload = body

    @property
    def body(self) -> Any:  # type: ignore[override]
        """The body, under the name `requests` has for it."""
        return self.payload

    @property
    def url(self) -> str:  # type: ignore[override]
        """The whole URL at the backend."""
        return self.upstream.url + self.target

    @property
    def headers(self) -> CaseInsensitiveDict[str]:  # type: ignore[override]
        """The fields that are sent; repeated ones joined."""
        lines = self.head.decode("latin-1").split("\r\n")[1:-2]
        return _fields_dict(line.split(": ", 1) for line in lines)


class ProxyResponse(Response):
    """A backend's answer. `head` is its head, and what that means.

    `whole` is the body, when all of it came with the head: the connection is free again then. Otherwise
    `raw` is a `BodyReader`, and `close` gives the connection back.
    """

    # What Response.__init__ sets for each instance, once for all: most answers never read them.
    _content: Any = False
    _content_consumed = False
    encoding = None
    elapsed = _AT_ONCE
    history: ClassVar[list[Response]] = []  # type: ignore[misc]
    _next = None
    connection: Any = None
    request: Any
    _reader: BodyReader | None = None
    _conn: Any = None

    def __init__(self, head: ResponseHead, request: ProxyRequest | None, whole: bytes | None) -> None:
        """`request` is None when no backend was asked: the answer is one that was kept."""
        self.status_code = head.status
        self.reason = head.reason
        self.head = head
        self.request = request
        self.whole = whole

    @property
    def raw(self) -> BodyReader:
        """The body, to be read piece by piece."""
        if self._reader is None:
            whole = self.whole or b""
            self._reader = BodyReader(_NOWHERE, len(whole), whole, upstream_fault)
        return self._reader

    def hand_over(self) -> tuple[Any, bytes]:
        """The connection, for another protocol (101), and what has arrived on it after the head."""
        conn, self._conn = self._conn, None
        return conn, self.raw.buffered()

    def stream_from(self, conn: Conn | ThreadConn, rest: bytes, keep: bool) -> None:
        """The body comes from `conn`, `rest` of it is here; `keep` says whether the connection can stay."""
        self._reader = BodyReader(conn, self.head.length, rest, upstream_fault)
        self._conn = conn
        self._keep = keep

    @property
    def url(self) -> str:  # type: ignore[override]
        """Where it came from."""
        return str(self.request.url)

    @property
    def headers(self) -> CaseInsensitiveDict[str]:  # type: ignore[override]
        """The fields; repeated ones joined."""
        return _fields_dict((n.decode("latin-1"), v.decode("latin-1")) for n, v in self.head.fields)

    @property
    def cookies(self) -> RequestsCookieJar:  # type: ignore[override]
        """None: a proxy passes them on as fields, and keeps none."""
        return RequestsCookieJar()

    def read_whole(self) -> ProxyResponse:
        """Read the body into `content`, and give the connection back."""
        try:
            self._content = self.raw.read()
        finally:
            self.close()
        self._content_consumed = True
        return self

    def close(self) -> None:
        """Give the connection back, or end it when the body was not read to its end."""
        conn, self._conn = self._conn, None
        if conn is None:
            return
        reader = self.raw
        whole = reader.complete and not reader.rest and self.head.length != UNTIL_CLOSE
        # A body is read to its last byte, no further: what is too much of it may wait in the kernel, and the
        # loop may not have turned since. The next request would take it for its answer.
        if self._keep and whole and not went_away(conn):
            self.request.upstream.checkin(conn)
        else:
            conn.close()


def _fields_dict(pairs: Iterable[Any]) -> CaseInsensitiveDict[str]:
    fields: CaseInsensitiveDict[str] = CaseInsensitiveDict()
    for name, value in pairs:
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields
