"""From a parsed head to a WSGI environ: what a request means, when there is exactly one way to read it.

Pure: no I/O. Beside the keys of PEP 3333 it fills in what WSGI would lose: `lb.fields` (names and values
in bytes, in order), `lb.target` (byte for byte), `lb.head` (the head as it came, if it can go on so).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote_to_bytes

from lb.errors import BadRequest
from lb.proxy.http1 import CODING, CONNECTION, EXPECT, HOST, LENGTH, NAMES, tokens
from lb.wsgi import origin_form

KEYS = (
    "REQUEST_METHOD",
    "PATH_INFO",
    "QUERY_STRING",
    "RAW_URI",
    "wsgi.input",
    "lb.fields",
    "lb.target",
    "lb.head",
    "lb.keep",
    "lb.body",
    "lb.rest",
    "lb.expect",
)
"""The keys that each request sets; None until then."""


# The parser would skip an empty first line, and take a bare LF for one.
_LINE_END = b"\r\n"


def fill(environ: dict[str, Any], head: Any, data: bytes) -> bool:
    """Fill `environ` from `head`, parsed from the beginning of `data`. Returns whether it announces a body.

    Raises BadRequest when it cannot be read in exactly one way (RFC 9112, sections 2.2, 3.2 and 5).
    """
    consumed = head.consumed
    # Each line has its CRLF: the request line, the fields, the empty one. The parser would take a bare LF.
    if data.count(b"\r\n", 0, consumed) != head.header_count + 2 or data[0] in _LINE_END:
        raise BadRequest("a line of the head does not end in CRLF")
    method = environ["REQUEST_METHOD"] = head.method.decode("latin-1")
    fields = environ["lb.fields"] = head.headers
    minor = head.minor_version
    hosts, framed, dropped, clean = 0, False, False, minor == 1
    listed: list[bytes] = []
    for name, value in fields:
        known = NAMES[name]
        key = known.environ
        if key in environ:
            environ[key] = f"{environ[key]}{'; ' if key == 'HTTP_COOKIE' else ', '}{value.decode('latin-1')}"
        else:
            environ[key] = value.decode("latin-1")
        kind = known.kind
        if kind:
            if kind == HOST:
                hosts += 1
            elif kind in (LENGTH, CODING):
                framed = True
            else:
                clean = False
                if kind == EXPECT:
                    environ["lb.expect"] = value
                elif kind == CONNECTION:
                    listed += tokens(value)
        elif not name:
            raise BadRequest("line folding in the head")
        elif b"_" in name:
            dropped = True
    if hosts != 1 and (hosts or minor):
        raise BadRequest("there must be exactly one Host")
    if dropped:
        _drop_ambiguous(environ, fields)
        clean = False
    target = head.path.decode("latin-1")
    if target[0] != "/" and not (target == "*" and method == "OPTIONS"):
        target = _absolute(environ, method, target)
        clean = False
    # Nothing to take out of it: the bytes go on as they came.
    environ["lb.head"] = data[: consumed - 2] if clean else None
    environ["lb.target"] = environ["RAW_URI"] = target
    path, _, environ["QUERY_STRING"] = target.partition("?")
    environ["PATH_INFO"] = unquote_to_bytes(path.encode("latin-1")).decode("latin-1") if "%" in path else path
    if minor == 0:
        environ["SERVER_PROTOCOL"] = "HTTP/1.0"
    # RFC 9112, section 9.3: HTTP/1.1 stays open unless told otherwise, HTTP/1.0 the other way round.
    environ["lb.keep"] = b"close" not in listed and (minor == 1 or b"keep-alive" in listed)
    return framed


def _drop_ambiguous(environ: dict[str, Any], fields: Iterable[tuple[bytes, bytes]]) -> None:
    """Leave out names with `_`: for many servers they are the same as those with `-` (Content_Length)."""
    kept = environ["lb.fields"] = tuple(field for field in fields if b"_" not in field[0])
    for name, _ in fields:
        environ.pop(NAMES[name].environ, None)
    for name, value in kept:
        key = NAMES[name].environ
        text = value.decode("latin-1")
        glue = "; " if key == "HTTP_COOKIE" else ", "
        environ[key] = f"{environ[key]}{glue}{text}" if key in environ else text


def _absolute(environ: dict[str, Any], method: str, target: str) -> str:
    if method == "CONNECT":
        raise BadRequest("CONNECT is not for a gateway")
    target, authority = origin_form(target)
    # RFC 9112, section 3.2.2: the Host field is to be replaced by what the target says.
    environ["HTTP_HOST"] = authority
    encoded = authority.encode("latin-1")
    others = [field for field in environ["lb.fields"] if NAMES[field[0]].kind != HOST]
    environ["lb.fields"] = ((b"Host", encoded), *others)
    return target
