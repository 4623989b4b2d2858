"""Heads of requests: how large they may be, what it means when the parser does not take one, and those that
are known already.
"""

from __future__ import annotations

import re
from typing import Any

from gunicorn_h1c import (
    InvalidHTTPVersion,
    InvalidRequestMethod,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseError,
    parse_request_fast,
)
from gunicorn_h1c._parser_fast import IncompleteError
from gunicorn_h1c._parser_fast import ParseError as FastParseError

from lb.errors import BadRequest, ClientError, HeaderTooLarge, UriTooLong, VersionNotSupported
from lb.settings import LimitSettings

LONGEST_KNOWN = 2048
"""Bytes: the longest head that is remembered."""
MOST_KNOWN = 512
"""How many heads are remembered."""

# Later minor versions are to be read as the one that we know (RFC 9110, section 2.5).
_LATER = re.compile(rb"([^\r\n]* HTTP/1\.)[2-9]\r\n")

# The fast parser has two exceptions of its own beside those that the package exports.
_MALFORMED = (ParseError, FastParseError)

#: What the parser holds to when it is told nothing: the defaults.
_PARSERS_OWN = (8190, 100, 8190)

_VERSION = re.compile(rb"[^\r\n]* HTTP/[0-9]\.[0-9]\r\n")


class Limits:
    """How large a request's head may be: the parser's own limits, or others."""

    def __init__(self, settings: LimitSettings) -> None:
        #: Bytes of the whole head, of its first line, of one field; and how many fields.
        self.head = settings.head
        self.request_line = settings.request_line
        self.field_size = settings.field_size
        self.fields = settings.fields
        self._options: dict[str, Any] = {}
        sizes = (settings.request_line, settings.fields, settings.field_size)
        if sizes != _PARSERS_OWN:
            self._options = {
                "limit_request_line": settings.request_line,
                "limit_request_fields": settings.fields,
                "limit_request_field_size": settings.field_size,
            }
        #: What heads mean that a client has said more than once: minor version, and the environ's own part.
        self.known: dict[bytes, tuple[int, dict[str, Any]]] = {}

    def learn(self, head: bytes, minor: int, environ: dict[str, Any], base: dict[str, Any]) -> None:
        """Remember what `head` has made of `base`. Clients that poll say the same again and again."""
        if len(self.known) >= MOST_KNOWN:
            self.known.clear()
        meaning = {key: value for key, value in environ.items() if key not in base or base[key] is not value}
        self.known[head] = (minor, meaning)

    def read(self, data: bytes, seen: int) -> tuple[Any, bytes]:
        """The parsed head at the beginning of `data`, of which `seen` bytes were looked at before, and
        `data`, where a later minor version reads as the one that we know.

        Raises IncompleteError while there is no whole head, and ClientError when there will be none.
        """
        while True:
            try:
                if self._options:
                    head = self.parse(data)
                elif seen:
                    head = parse_request_fast(data, seen)
                else:
                    head = parse_request_fast(data)
            except IncompleteError:
                if len(data) > self.head:
                    raise HeaderTooLarge("the head is too large") from None
                raise
            except _MALFORMED as exc:
                fault: Exception = exc
                if isinstance(exc, InvalidRequestMethod):
                    try:
                        head = self.parse(data, any_method=True)
                    except _MALFORMED as again:
                        fault = again
                    else:
                        break
                if isinstance(fault, InvalidHTTPVersion) and (later := _LATER.match(data)):
                    first = later.end()
                    data = b"%b1\r\n%b" % (later[1], data[first:])
                    continue
                raise self.refusal(fault, data) from None
            break
        if head.consumed > self.head:
            raise HeaderTooLarge("the head is too large")
        return head, data

    def parse(self, data: bytes, any_method: bool = False) -> Any:
        """Parse the head in `data`. Any token is a method (RFC 9110, section 9.1) if `any_method`."""
        if any_method:
            return parse_request_fast(data, permit_unconventional_http_method=True, **self._options)
        return parse_request_fast(data, **self._options)

    def refusal(self, exc: Exception, data: bytes) -> ClientError:
        """What it means that the parser does not take the head in `data`."""
        if isinstance(exc, LimitRequestLine):
            return UriTooLong(str(exc))
        if isinstance(exc, InvalidHTTPVersion) and _VERSION.match(data):
            return VersionNotSupported(str(exc))
        # Far more fields than allowed are just an error to it.
        if isinstance(exc, LimitRequestHeaders) or data.count(b"\n") > 2 * self.fields:
            return HeaderTooLarge(str(exc))
        return BadRequest(str(exc))
