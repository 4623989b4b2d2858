"""A second opinion on HTTP/1.1: reads a message exactly as RFC 9112 has it, or says that it is none.

Written from the grammar and from nothing of `lb`, to judge the bytes that it sends. It takes no liberty that
the RFC merely allows: no bare LF, no folded lines, no list of equal lengths, one Host. Slow and short.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

Fields = tuple[tuple[bytes, bytes], ...]

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# RFC 9110, section 5.5, without the white space around it, which belongs to the line.
VALUE = rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?"
_FIELD = re.compile(rb"(" + TOKEN + rb"):[ \t]*(" + VALUE + rb")[ \t]*")
# What clients send beyond RFC 3986 is one word all the same.
_REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([\x21-\x7e\x80-\xff]+) HTTP/1\.([0-9])")
_STATUS_LINE = re.compile(rb"HTTP/1\.([0-9]) ([1-9][0-9]{2}) ([\t\x20-\x7e\x80-\xff]*)")
# Backends leave out the last space, or write more of them (RFC 9112, section 4, lets a recipient take that).
_LAX_STATUS_LINE = re.compile(rb"HTTP/1\.([0-9]) +([1-9][0-9]{2})(?: +([\t\x20-\x7e\x80-\xff]*))?")
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
_EXTENSION = rb"[ \t]*;[ \t]*" + TOKEN + rb"(?:[ \t]*=[ \t]*(?:" + TOKEN + rb"|" + _QUOTED + rb"))?"
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]+)(?:" + _EXTENSION + rb")*[ \t]*")
# An extension has no meaning for who knows none: one that is not well-formed still has one length.
_LAX_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]+)(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")


class Malformed(Exception):
    """No message, or more than one reading."""


class MalformedBody(Malformed):
    """The same after a head that is one."""


class Incomplete(Exception):
    """The beginning of a message. `head` is the part that is whole, if that is."""

    def __init__(self, why: str, head: Request | Response | None = None) -> None:
        super().__init__(why)
        self.head = head


@dataclass(frozen=True)
class Request:
    method: bytes
    target: bytes
    minor: int
    fields: Fields
    body: bytes = b""
    trailers: Fields = ()

    @property
    def persists(self) -> bool:
        """May another one follow it (RFC 9112, section 9.3)?"""
        options = members(self.fields, b"connection")
        return b"close" not in options and (self.minor > 0 or b"keep-alive" in options)


@dataclass(frozen=True)
class Response:
    status: int
    reason: bytes
    minor: int
    fields: Fields
    body: bytes = b""
    trailers: Fields = ()
    #: Does its body end with the connection?
    until_close: bool = False
    #: Those with 1xx that came before it.
    interim: tuple[Response, ...] = ()

    @property
    def persists(self) -> bool:
        """May another one follow it?"""
        options = members(self.fields, b"connection")
        if self.until_close or b"close" in options:
            return False
        return self.minor > 0 or b"keep-alive" in options


def values(fields: Fields, name: bytes) -> list[bytes]:
    """The values of all fields of that name (in lower case)."""
    return [value for key, value in fields if key.lower() == name]


def members(fields: Fields, name: bytes) -> list[bytes]:
    """The members of all lists of that name, in lower case."""
    parts = [part for value in values(fields, name) for part in value.split(b",")]
    return [member for part in parts if (member := part.strip(b" \t").lower())]


def read_request(data: bytes, at: int = 0, *, lax: bool = False) -> tuple[Request, int]:
    """The request at `at`, and where it ends. `lax`: as a server may find it, after an empty line."""
    if lax and data.startswith(b"\r\n", at):
        at += 2
    first, fields, at = _head(data, at)
    found = _REQUEST_LINE.fullmatch(first)
    if found is None:
        raise Malformed(f"no request line: {first!r}")
    head = Request(found[1], found[2], int(found[3]), fields)
    hosts = values(fields, b"host")
    if len(hosts) > 1 or (not hosts and head.minor):
        raise Malformed("not one Host")
    chunked, length = _framing(fields, head.minor)
    if chunked:
        body, trailers, at = _chunks(data, at, head, lax)
        return Request(head.method, head.target, head.minor, fields, body, trailers), at
    size = length or 0
    if len(data) - at < size:
        raise Incomplete("part of a body", head)
    return Request(head.method, head.target, head.minor, fields, data[at : at + size]), at + size


@dataclass(frozen=True)
class Understood:
    """The requests that a client's bytes are, in their order; what follows them, and why it is none."""

    requests: tuple[Request, ...]
    rest: bytes = b""
    fault: Malformed | Incomplete | None = None

    @property
    def methods(self) -> list[bytes]:
        """Of each request, and what whoever has written the rest takes for the method of that."""
        rest = self.rest.removeprefix(b"\r\n")
        return [request.method for request in self.requests] + [rest.partition(b" ")[0]]


def read_requests(data: bytes) -> Understood:
    """All requests in a client's bytes, until one that says that it is the last."""
    found: list[Request] = []
    at = 0
    while data[at:].strip(b"\r\n"):
        try:
            request, at = read_request(data, at, lax=True)
        except (Malformed, Incomplete) as exc:
            return Understood(tuple(found), data[at:], exc)
        found.append(request)
        if not request.persists:
            break
    return Understood(tuple(found))


def read_response(
    data: bytes, at: int = 0, *, method: bytes = b"GET", ended: bool = False, lax: bool = False
) -> tuple[Response, int]:
    """The answer at `at` to a request with that method, and where it ends; `ended`: no more will come.

    `lax`: as a backend may write it.
    """
    interim: list[Response] = []
    while True:
        first, fields, at = _head(data, at)
        found = (_LAX_STATUS_LINE if lax else _STATUS_LINE).fullmatch(first)
        if found is None:
            raise Malformed(f"no status line: {first!r}")
        head = Response(int(found[2]), found[3] or b"", int(found[1]), fields)
        if head.status == 101:
            raise Malformed("101 that nobody asked for")
        if head.status >= 200:
            break
        interim.append(head)
    parts = (head.status, head.reason, head.minor, fields)
    before = tuple(interim)
    if head.status == 204 and lax:  # there is no content to measure: nobody reads its length
        fields = tuple(field for field in fields if field[0].lower() != b"content-length")
    elif head.status == 204 and (values(fields, b"content-length") or values(fields, b"transfer-encoding")):
        raise Malformed("a length in a 204")
    chunked, length = _framing(fields, head.minor)
    if method == b"HEAD" or head.status in (204, 304):
        return Response(*parts, interim=before), at
    if chunked:
        body, trailers, at = _chunks(data, at, head, lax)
        return Response(*parts, body, trailers, interim=before), at
    if length is None:
        if not ended:
            raise Incomplete("a body that ends with the connection", head)
        return Response(*parts, data[at:], until_close=True, interim=before), len(data)
    if len(data) - at < length:
        raise Incomplete("part of a body", head)
    return Response(*parts, data[at : at + length], interim=before), at + length


def read_responses(data: bytes, methods: Sequence[bytes]) -> list[Response]:
    """The answers that a client got until the end, to requests with these methods or the first of them."""
    found: list[Response] = []
    at = 0
    for method in methods:
        if at == len(data):
            break
        response, at = read_response(data, at, method=method, ended=True)
        found.append(response)
        if not response.persists:
            break
    if at != len(data):
        raise Malformed(f"bytes after the last answer: {data[at : at + 100]!r}")
    return found


def _head(data: bytes, at: int) -> tuple[bytes, Fields, int]:
    end = data.find(b"\r\n\r\n", at)
    if end < 0:
        raise Incomplete("part of a head")
    first, *lines = data[at:end].split(b"\r\n")
    return first, _fields(lines), end + 4


def _fields(lines: list[bytes]) -> Fields:
    found = [(line, _FIELD.fullmatch(line)) for line in lines]
    for line, match in found:
        if match is None:
            raise Malformed(f"no field: {line!r}")
    return tuple((match[1], match[2]) for _, match in found if match is not None)


def _framing(fields: Fields, minor: int) -> tuple[bool, int | None]:
    """Is it chunked, how long is it otherwise? RFC 9112, sections 6.1 to 6.3."""
    lengths, codings = values(fields, b"content-length"), values(fields, b"transfer-encoding")
    if codings and (lengths or minor == 0):
        raise Malformed("a coding with a length, or in HTTP/1.0")
    if codings and [coding.lower() for coding in codings] != [b"chunked"]:
        raise Malformed(f"codings: {codings}")
    if len(lengths) > 1 or (lengths and not re.fullmatch(rb"[0-9]+", lengths[0])):
        raise Malformed(f"lengths: {lengths}")
    return bool(codings), int(lengths[0]) if lengths else None


def _chunks(data: bytes, at: int, head: Request | Response, lax: bool) -> tuple[bytes, Fields, int]:
    body = b""
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            raise Incomplete("part of a chunk's line", head)
        line = (_LAX_CHUNK_LINE if lax else _CHUNK_LINE).fullmatch(data[at:end])
        if line is None:
            raise MalformedBody(f"no chunk size: {data[at:end]!r}")
        size, at = int(line[1], 16), end + 2
        if not size:
            break
        if data[at + size : at + size + 2] not in (b"", b"\r", b"\r\n"):
            raise MalformedBody("a chunk that does not end with its size")
        if len(data) < at + size + 2:
            raise Incomplete("part of a chunk", head)
        body += data[at : at + size]
        at += size + 2
    lines: list[bytes] = []
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            raise Incomplete("part of the trailers", head)
        line_of_trailer, at = data[at:end], end + 2
        if not line_of_trailer:
            try:
                return body, _fields(lines), at
            except Malformed as exc:
                raise MalformedBody(str(exc)) from None
        lines.append(line_of_trailer)
