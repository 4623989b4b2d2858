"""The fields of HTTP/2 messages: what a request's say, and how those of an answer are written.

Pure: no I/O. A block is what HPACK gives: names and values in bytes, in order. What RFC 9113, section 8,
calls malformed raises Malformed; what HTTP/1 is refused for as well raises the same ClientError as there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lb.errors import BadRequest, HeaderTooLarge, UriTooLong
from lb.limits import Limits
from lb.proxy.http1 import CODING, CONNECTION, HOP, HOST, LENGTH, NAMES, UNTIL_CLOSE, UPGRADE, content_length
from lb.proxy.http1 import trailer_line as _trailer_line

Block = Sequence[tuple[bytes, bytes]]

ENTRY = 32
"""Bytes that a field counts beyond its name and value (RFC 9113, section 6.5.2)."""

_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+\Z")
_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_TARGET = re.compile(rb"(?:/[^\x00-\x20\x7f]*|\*)\Z")
_NO_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]|\A[ \t]|[ \t]\Z")
_SPECIFIC = frozenset((CODING, CONNECTION, UPGRADE, HOP))
_PSEUDO = frozenset((b":method", b":scheme", b":path", b":authority"))
_MAX_NAMES = 1024
_known_names: set[bytes] = set()


class Malformed(Exception):
    """A stream error of the kind PROTOCOL_ERROR (RFC 9113, section 8.1.1)."""


class RequestHead:
    """What a request's fields say. `length` of its body: a number, or UNTIL_CLOSE (the end of the stream)."""

    __slots__ = ("fields", "length", "method", "path")

    def __init__(self, method: bytes, path: bytes, fields: list[tuple[bytes, bytes]], length: int) -> None:
        self.method = method
        self.path = path
        self.fields = fields
        self.length = length


def read_request(block: Block, ended: bool, limits: Limits) -> RequestHead:
    """Read a request's fields; `ended`: the stream is over with them, so there is no body.

    Host stands for `:authority` (RFC 9113, section 8.3.1), one Cookie field for several (section 8.2.3); a
    body of unknown length is announced as HTTP/1.1 does it. Raises Malformed and ClientError.
    """
    pseudo: dict[bytes, bytes] = {}
    fields: list[tuple[bytes, bytes]] = []
    cookies: list[bytes] = []
    hosts: list[bytes] = []
    length, size, largest = -1, 0, 0
    for name, value in block:
        size += len(name) + len(value) + ENTRY
        if name[:1] == b":":
            if fields or cookies or hosts or name in pseudo or name not in _PSEUDO:
                raise Malformed(f"the pseudo-field {name!r} is unknown, there twice, or too late")
            pseudo[name] = value
            continue
        largest = max(largest, len(name) + len(value))
        _check_field(name, value)
        kind = NAMES[name].kind
        if name == b"cookie":
            cookies.append(value)
        elif kind == HOST:
            hosts.append(value)
        elif kind in _SPECIFIC:
            if name != b"te" or value.lower() != b"trailers":
                raise Malformed(f"the field {name!r} is for one connection")
        else:
            if kind == LENGTH:
                if length >= 0:
                    raise Malformed("more than one Content-Length")
                length = _length(value)
            fields.append((name, value))
    if cookies:
        fields.append((b"cookie", b"; ".join(cookies)))
    method, path = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
    if _METHOD.match(method) is None:
        raise Malformed("the method is none")
    if method == b"CONNECT":
        raise BadRequest("CONNECT is not for a gateway")
    if pseudo.get(b":scheme", b"").lower() not in (b"http", b"https"):
        raise Malformed("the scheme is none of HTTP's")
    if _TARGET.match(path) is None:
        raise Malformed("the path is none")
    if len(method) + len(path) + len(b"  HTTP/2.0") > limits.request_line:
        raise UriTooLong("the method and the path are too long")
    if size > limits.head or len(fields) > limits.fields or largest > limits.field_size:
        raise HeaderTooLarge("there are too many fields, or too large ones")
    authority = pseudo.get(b":authority")
    if authority is not None:
        if any(host.lower() != authority.lower() for host in hosts):
            raise BadRequest("Host and :authority differ")
        hosts = [authority]
    fields[:0] = [(b"host", host) for host in hosts]
    if ended:
        if length > 0:
            raise Malformed("a Content-Length, and no content")
        length = 0
    elif length < 0:
        length = UNTIL_CLOSE
        fields.append((b"transfer-encoding", b"chunked"))
    return RequestHead(method, path, fields, length)


def _check_field(name: bytes, value: bytes) -> None:
    """Is this a field (RFC 9113, section 8.2.1)? Raises Malformed."""
    if name not in _known_names:
        if _NAME.match(name) is None:
            raise Malformed(f"{name!r} is no field's name")
        if len(_known_names) < _MAX_NAMES:
            _known_names.add(name)
    if _NO_VALUE.search(value) is not None:
        raise Malformed(f"the value of {name!r} is none")


def _length(value: bytes) -> int:
    try:
        return content_length(value)
    except ValueError as exc:
        raise Malformed(str(exc)) from None


def read_trailers(block: Block) -> bytes:
    """The trailer fields that may go on, as lines. Raises Malformed."""
    lines = []
    for name, value in block:
        _check_field(name, value)
        if NAMES[name].kind in _SPECIFIC:
            raise Malformed(f"the field {name!r} is for one connection")
        lines.append(_trailer_line(name, value))
    return b"".join(lines)


def answer_fields(status: int, lines: bytes) -> list[tuple[bytes, bytes]]:
    """An answer's status and its end-to-end fields, given as lines, as a block."""
    return [(b":status", b"%d" % status), *fields_of(lines)]


def fields_of(lines: bytes) -> list[tuple[bytes, bytes]]:
    """Fields, given as lines, as a block; the names in lower case."""
    found = []
    for line in lines.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b":")
        found.append((NAMES[name].lower, value.strip(b" \t")))
    return found
