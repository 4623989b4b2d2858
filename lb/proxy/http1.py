"""HTTP/1.1 message framing, both ways: where a body ends, and how a chunked one is read and written.

Pure functions and small parsers over bytes: no I/O. The rules are those of RFC 9112, section 6
(message body length) and section 7 (chunked); what is not exactly one message raises ValueError.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

CHUNKED = -1
"""The body is chunked."""
UNTIL_CLOSE = -2
"""The body ends with the connection (responses only)."""

RawFields = Iterable[tuple[bytes, bytes]]

# What a field is to a proxy. Hop-by-hop fields end here (RFC 9110, section 7.6.1).
END_TO_END, HOP, CONNECTION, LENGTH, CODING, UPGRADE, HOST, FORWARDED, EXPECT, HOPS, DATE = range(11)
_KINDS = {
    b"connection": CONNECTION,
    b"proxy-connection": HOP,
    b"keep-alive": HOP,
    b"te": HOP,
    b"upgrade": UPGRADE,
    b"transfer-encoding": CODING,
    b"content-length": LENGTH,
    b"host": HOST,
    b"expect": EXPECT,
    b"max-forwards": HOPS,
    b"date": DATE,
    b"x-forwarded-for": FORWARDED,
    b"x-forwarded-proto": FORWARDED,
    b"x-forwarded-host": FORWARDED,
    b"x-forwarded-port": FORWARDED,
    b"forwarded": FORWARDED,
    b"x-real-ip": FORWARDED,
    b"x-request-id": FORWARDED,
}
_MAX_NAMES = 1024


class FieldName:
    """What has been worked out once about one spelling of a field's name."""

    __slots__ = ("environ", "kind", "lower", "text")

    def __init__(self, name: bytes) -> None:
        self.lower = name.lower()
        self.text = name.decode("latin-1")
        self.kind = _KINDS.get(self.lower, END_TO_END)
        key = self.text.upper().replace("-", "_")
        self.environ = key if key in ("CONTENT_LENGTH", "CONTENT_TYPE") else "HTTP_" + key


class FieldNames(dict[bytes, FieldName]):
    """Spelling → `FieldName`, filled as names are met and bounded: a client may send any number of names."""

    def __missing__(self, name: bytes) -> FieldName:
        known = FieldName(name)
        if len(self) < _MAX_NAMES:
            self[name] = known
        return known


NAMES = FieldNames()


def tokens(value: bytes) -> list[bytes]:
    """The lower-case members of a comma-separated list (RFC 9110, section 5.6.1)."""
    return [part for token in value.split(b",") if (part := token.strip(b" \t").lower())]


def content_length(value: bytes) -> int:
    """A Content-Length: ASCII digits only, no sign, no list. Raises ValueError."""
    if not value.isdigit() or len(value) > 18:
        raise ValueError("invalid Content-Length")
    return int(value)


def request_body(fields: RawFields, minor_version: int) -> int:
    """The length of a request's body: a number, or CHUNKED (RFC 9112, section 6.3).

    Raises ValueError when there is more than one way to read it, or none because the last coding is not
    chunked, and UnsupportedTransferCoding for others before that (RFC 9112, section 6.1: 501).
    """
    length, coding = -1, b""
    for name, value in fields:
        kind = NAMES[name].kind
        if kind == LENGTH:
            if length >= 0:
                raise ValueError("more than one Content-Length")
            length = content_length(value)
        elif kind == CODING:
            if coding:
                raise ValueError("more than one Transfer-Encoding")
            coding = value.lower()
            if not coding:
                raise ValueError("empty Transfer-Encoding")
    if coding:
        if length >= 0:
            raise ValueError("Content-Length with Transfer-Encoding")
        if minor_version == 0:
            raise ValueError("Transfer-Encoding in an HTTP/1.0 request")
        if coding != b"chunked":
            codings = tokens(coding)
            if codings[-1:] != [b"chunked"] or codings.count(b"chunked") > 1:
                raise ValueError("chunked is not the last transfer coding, once")
            raise UnsupportedTransferCoding(coding.decode("latin-1"))
        return CHUNKED
    return max(length, 0)


class UnsupportedTransferCoding(Exception):
    """A transfer coding that this proxy does not speak."""


_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_FIELD_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)\Z")
# What no trailer may say once the head has been acted on (RFC 9110, section 6.5.1).
_NEVER_TRAILERS = frozenset(
    (
        b"authorization",
        b"cache-control",
        b"content-encoding",
        b"content-range",
        b"content-type",
        b"cookie",
        b"max-forwards",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"set-cookie",
        b"trailer",
        b"via",
        b"www-authenticate",
    )
)


def trailer_line(name: bytes, value: bytes) -> bytes:
    """A trailer field as a line if it may go on, else b""."""
    known = NAMES[name]
    if known.kind not in (END_TO_END, DATE) or known.lower in _NEVER_TRAILERS or b"_" in name:
        return b""
    return b"%b: %b\r\n" % (name, value)


# Where a ChunkReader is: in the line with a chunk's size, in its data, at its end, after the last chunk.
_SIZE, _DATA, _END, _TRAILER = range(4)


class ChunkReader:
    """Takes the chunked coding off a stream of bytes (RFC 9112, section 7.1).

    Feed it what arrived; it gives back the content in it. `done` turns true after the last chunk and
    the trailer section, `rest` is then what followed, and `trailers` the lines of the trailer fields that may
    go on. Extensions are read and dropped. Strict: CRLF only, hexadecimal digits only.
    """

    __slots__ = ("_left", "_line", "_state", "_trailing", "done", "rest", "trailers")

    MAX_LINE = 4096
    """Bytes: the longest chunk-size line or trailer field."""
    MAX_TRAILERS = 32768
    """Bytes: the longest trailer section."""

    def __init__(self) -> None:
        self._state = _SIZE
        self._left = 0
        self._line = b""
        self._trailing = 0
        self.done = False
        self.rest = b""
        self.trailers = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The pieces of content in `data`. Raises ValueError when it is not the chunked coding."""
        out: list[bytes] = []
        at, end = 0, len(data)
        while at < end:
            if self._state == _DATA:
                piece = data[at : at + self._left]
                out.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if self._left == 0:
                    self._state = _END
                continue
            newline = data.find(b"\n", at)
            if newline < 0:
                self._line += data[at:]
                if len(self._line) > self.MAX_LINE:
                    raise ValueError("chunk line too long")
                break
            line = self._line + data[at : newline + 1]
            self._line = b""
            at = newline + 1
            if len(line) > self.MAX_LINE:
                raise ValueError("chunk line too long")
            if line[-2:] != b"\r\n":
                raise ValueError("bare LF in chunked body")
            self._take_line(line[:-2])
            if self.done:
                self.rest = data[at:]
                break
        return out

    def _take_line(self, line: bytes) -> None:
        if self._state == _END:
            if line:
                raise ValueError("data after the end of a chunk")
            self._state = _SIZE
        elif self._state == _SIZE:
            if b"\r" in line or b"\0" in line:
                raise ValueError("control character in chunk size line")
            digits, extended, extension = line.partition(b";")
            if extended:
                digits = digits.rstrip(b" \t")
                if _CONTROL.search(extension):
                    raise ValueError("control character in chunk extension")
            if len(digits) > 15:
                digits = digits.lstrip(b"0") or b"0"
            if not digits or len(digits) > 15 or digits.strip(b"0123456789abcdefABCDEF"):
                raise ValueError("invalid chunk size")
            self._left = int(digits, 16)
            self._state = _DATA if self._left else _TRAILER
        elif not line:
            self.done = True
        else:
            self._take_trailer(line)

    def _take_trailer(self, line: bytes) -> None:
        field = _FIELD_LINE.match(line)
        if field is None:
            raise ValueError("invalid trailer field")
        self._trailing += len(line) + 2
        if self._trailing > self.MAX_TRAILERS:
            raise ValueError("too many trailer fields")
        if trailer_line(field[1], b""):
            self.trailers += line + b"\r\n"


def chunk(data: bytes) -> bytes:
    """`data` (not empty) as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


def last_chunk(trailers: bytes) -> bytes:
    """The end of a chunked body, with `trailers` as lines."""
    return b"0\r\n%b\r\n" % trailers if trailers else LAST_CHUNK
