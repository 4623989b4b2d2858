"""How large a request's head may be, and what it means when the parser does not take one."""

from __future__ import annotations

import re
from typing import Any

from gunicorn_h1c import InvalidHTTPVersion, LimitRequestHeaders, LimitRequestLine, parse_request_fast

from lb.errors import BadRequest, ClientError, HeaderTooLarge, UriTooLong, VersionNotSupported
from lb.settings import LimitSettings

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
        if settings != LimitSettings(head=settings.head, body=settings.body):
            self._options = {
                "limit_request_line": settings.request_line,
                "limit_request_fields": settings.fields,
                "limit_request_field_size": settings.field_size,
            }
        #: Are they those that the parser has anyway? Options cost every request.
        self.usual = not self._options

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
