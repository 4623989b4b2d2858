"""The fields of a message as they are passed on.

Pure: bytes in, bytes out. Hop-by-hop fields, and those that `Connection` names, end here both ways
(RFC 9110, section 7.6.1); all others keep their spelling, their order and their repetitions. A head with
nothing to take out is passed on as the bytes it came in, which the parser has gone through already.
"""

from __future__ import annotations

from collections.abc import Sequence

from lb.proxy.http1 import (
    CHUNKED,
    CODING,
    CONNECTION,
    DATE,
    END_TO_END,
    HOPS,
    HOST,
    LENGTH,
    NAMES,
    UNTIL_CLOSE,
    UPGRADE,
    content_length,
    tokens,
)

Fields = Sequence[tuple[bytes, bytes]]

_PLAIN = frozenset((b"close", b"keep-alive", b""))
# A message may not make the proxy drop what frames or routes it by naming it in Connection.
_PROTECTED = frozenset((b"host", b"content-length", b"transfer-encoding"))
_KEEP_ALIVE = b"\r\nConnection: keep-alive\r\n"


def nominated(fields: Fields) -> frozenset[bytes]:
    """The lower-case names that this message's `Connection` fields nominate."""
    names: list[bytes] = []
    for name, value in fields:
        if NAMES[name].kind == CONNECTION and value.lower() not in _PLAIN:
            names += tokens(value)
    return frozenset(names) - _PROTECTED


def request_head(method: bytes, target: bytes, fields: Fields, default_host: bytes) -> bytes:
    """The request line and the fields that go on to a backend, without the empty line at the end.

    `default_host` stands in for the Host that an HTTP/1.0 client need not send and HTTP/1.1 asks for.
    """
    gone = nominated(fields)
    out = [b"%b %b HTTP/1.1\r\n" % (method, target)]
    if not any(NAMES[name].kind == HOST for name, _ in fields):
        out.append(b"Host: %b\r\n" % default_host)
    for name, value in fields:
        known = NAMES[name]
        if known.kind in (END_TO_END, HOST, LENGTH, CODING, HOPS, DATE) and known.lower not in gone:
            out.append(b"%b: %b\r\n" % (name, value))
    return b"".join(out)


class ResponseHead:
    """What a backend's head means: the lines that go on, the body's length, whether the connection stays.

    `raw` is all of it, and `fields` are its fields, as they came. `lines` are the end-to-end fields as they
    are written to the client; `measured` says that they carry a Content-Length, `dated` a Date;
    `length` is the body's, or CHUNKED or UNTIL_CLOSE. Nobody changes one: the same head may come again.
    """

    __slots__ = (
        "dated",
        "fields",
        "keep",
        "length",
        "lines",
        "measured",
        "method",
        "raw",
        "reason",
        "status",
    )

    def __init__(
        self, method: str, status: int, reason: bytes, minor_version: int, fields: Fields, head: bytes
    ) -> None:
        """Read `fields` of `head`, the raw bytes. Raises ValueError when there is not exactly one reading.

        The rules for the length are those of RFC 9112, section 6.3, those for the connection of section 9.3.
        """
        self.method, self.status, self.reason = method, status, reason.decode("latin-1")
        self.fields, self.raw = fields, head
        # Each line has its CRLF: the status line, the fields, the empty one. The parser would take a bare LF.
        if head.count(b"\r\n") != len(fields) + 2:
            raise ValueError("a line of the head does not end in CRLF")
        length, coding = -1, b""
        keep = minor_version == 1
        whole, stray, dated = True, False, False
        listed: list[bytes] = []
        for name, value in fields:
            kind = NAMES[name].kind
            if kind == END_TO_END:
                if not name:
                    raise ValueError("line folding in the head")
            elif kind >= HOST:
                dated = dated or kind == DATE
            elif kind == LENGTH:
                if status < 200 or status == 204:
                    whole = False  # there is no content to measure (RFC 9110, section 8.6)
                    stray = stray or value != b"0"
                    continue
                if length >= 0:
                    raise ValueError("more than one Content-Length")
                length = content_length(value)
            elif kind == CONNECTION and value == b"keep-alive" and whole:
                keep = True
                shorter = head.replace(_KEEP_ALIVE, b"\r\n", 1)
                whole = len(shorter) != len(head)
                head = shorter
            else:
                whole = False
                if kind == CONNECTION:
                    listed += tokens(value)
                elif kind == CODING:
                    if coding:
                        raise ValueError("more than one Transfer-Encoding")
                    coding = value.lower() or b"?"
        if coding:
            if length >= 0:
                raise ValueError("Content-Length with Transfer-Encoding")
            if minor_version == 0:
                raise ValueError("Transfer-Encoding in an HTTP/1.0 response")
            if coding != b"chunked":
                raise ValueError("unknown transfer coding")
        self.measured = length >= 0
        self.dated = dated
        if status == 101:
            self.length = UNTIL_CLOSE
            self.lines = response_lines(fields, upgraded=True)
            self.keep = False
            return
        if method == "HEAD" or status == 204 or status == 304:
            self.length = 0
        elif coding:
            self.length = CHUNKED
        else:
            self.length = length if length >= 0 else UNTIL_CLOSE
        if listed:
            keep = b"close" not in listed and (keep or b"keep-alive" in listed)
        # Who announces content that a 204 cannot have may send it, too, and it would be the next answer.
        self.keep = keep and not (status == 204 and (coding or stray))
        first_line = head.index(b"\n") + 1
        self.lines = head[first_line:-2] if whole else response_lines(fields, measured=status != 204)


def response_lines(fields: Fields, *, measured: bool = True, upgraded: bool = False) -> bytes:
    """The end-to-end fields as lines; without Content-Length unless `measured`.

    `upgraded`: they announce another protocol, which is said anew for the next hop.
    """
    gone = nominated(fields)
    lines = [
        b"%b: %b\r\n" % (name, value)
        for name, value in fields
        if ((kind := NAMES[name].kind) == END_TO_END or (kind == LENGTH and measured) or kind >= HOST)
        and NAMES[name].lower not in gone
    ]
    if upgraded:
        protocol = b", ".join([value for name, value in fields if NAMES[name].kind == UPGRADE])
        lines.append(b"Connection: Upgrade\r\nUpgrade: %b\r\n" % protocol)
    return b"".join(lines)


def may_switch(head: bytes, fields: Fields) -> bool:
    """Does a 101 with these fields name what the request with `head` has offered (RFC 9110, section 7.8)?"""
    lines = [line.partition(b":") for line in head.split(b"\r\n")]
    offered = b",".join([value for name, _, value in lines if name.lower() == b"upgrade"])
    named = tokens(b",".join([value for name, value in fields if NAMES[name].kind == UPGRADE]))
    return bool(named) and set(named) <= set(tokens(offered))


def interim_head(status: int, reason: bytes, fields: Fields) -> bytes:
    """An interim answer (1xx) as it goes on, whole."""
    lines = response_lines(fields, measured=False)
    return b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, reason, lines)
