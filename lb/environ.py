"""From a parsed head to a WSGI environ: what a request means, when there is exactly one way to read it.

Pure: no I/O. Beside the keys of PEP 3333 it fills in what WSGI would lose: `lb.fields` (names and values
in bytes, in order), `lb.target` (byte for byte), `lb.head` (the head as it came, if it can go on so).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote_to_bytes

from lb.errors import BadRequest, ExpectationFailed, LastHop, MethodNotServed
from lb.proxy.http1 import CODING, CONNECTION, EXPECT, HOPS, HOST, LENGTH, NAMES, UPGRADE, tokens
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
    "lb.upgrade",
    "lb.hop",
)
"""The keys that each request sets; None until then."""


_MAX_HOSTS = 1024
_HOST = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]{2,45}\]|(?:[A-Za-z0-9._~!$&'()*+;=-]|%[0-9A-Fa-f]{2}){1,255})(?::(\d{0,5}))?\Z"
)
_known_hosts: set[bytes] = set()


def check_host(value: bytes) -> None:
    """Is this a host and perhaps a port (RFC 3986, section 3.2.2)? Raises BadRequest.

    An http URI without a host is none (RFC 9110, section 4.2.1), and a comma would be two of them in one.
    """
    if value in _known_hosts:
        return
    match = _HOST.match(value)
    if match is None or int(match[1] or 0) > 65535:
        raise BadRequest("the Host is no host")
    if len(_known_hosts) < _MAX_HOSTS:
        _known_hosts.add(value)


def fill(environ: dict[str, Any], head: Any, data: bytes) -> bool:
    """Fill `environ` from `head`, parsed from the beginning of `data`. Returns whether it announces a body.

    Raises BadRequest when it cannot be read in exactly one way (RFC 9112, sections 2.2, 3.2 and 5).
    """
    consumed = head.consumed
    method, path = head.method, head.path
    # Each line has its CRLF: the request line, the fields, the empty one. The parser would take a bare LF,
    # an empty line before the first one, and any number of spaces in that.
    if (
        data.count(b"\r\n", 0, consumed) != head.header_count + 2
        or data.find(b"\r\n") != len(method) + len(path) + 10
    ):
        raise BadRequest("a line of the head does not end in CRLF, or the first one has too many spaces")
    return fill_fields(environ, method, path, head.headers, head.minor_version, data[: consumed - 2])


def fill_fields(
    environ: dict[str, Any], method: bytes, path: bytes, fields: Any, minor: int, raw: bytes | None
) -> bool:
    """The same from the parts of a head; `raw` is the head as it came, if it may go on so."""
    environ["REQUEST_METHOD"] = method.decode("latin-1")
    environ["lb.fields"] = fields
    hosts, framed, dropped, clean = 0, False, False, minor == 1 and raw is not None
    listed: list[bytes] = []
    hops: list[tuple[int, bytes]] = []
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
                if value not in _known_hosts:
                    check_host(value)
            elif kind in (LENGTH, CODING):
                framed = True
            else:
                clean = False
                if kind == CONNECTION:
                    listed += tokens(value)
                elif kind in (EXPECT, UPGRADE, HOPS):
                    hops.append((kind, value))
        elif not name:
            raise BadRequest("line folding in the head")
        elif b"_" in name:
            dropped = True
    if hosts != 1 and (hosts or minor):
        raise BadRequest("there must be exactly one Host")
    if dropped:
        _drop_ambiguous(environ, fields)
        clean = False
    if hops:
        _count_hops(environ, method, hops)
        if minor:
            _hop_by_hop(environ, hops, listed, framed)
    target = path.decode("latin-1")
    if b"#" in path:
        raise BadRequest("a fragment in the request target")
    if target[0] != "/" and not (target == "*" and method == b"OPTIONS"):
        target = _absolute(environ, method, target)
        clean = False
    elif method == b"CONNECT":
        raise BadRequest("CONNECT is not for a gateway")
    # Nothing to take out of it: the bytes go on as they came.
    environ["lb.head"] = raw if clean else None
    environ["lb.target"] = environ["RAW_URI"] = target
    path_text, _, environ["QUERY_STRING"] = target.partition("?")
    environ["PATH_INFO"] = (
        unquote_to_bytes(path_text.encode("latin-1")).decode("latin-1") if "%" in path_text else path_text
    )
    if minor == 0:
        environ["SERVER_PROTOCOL"] = "HTTP/1.0"
    # RFC 9112, section 9.3: HTTP/1.1 stays open unless told otherwise, HTTP/1.0 the other way round.
    environ["lb.keep"] = b"close" not in listed and (minor > 0 or b"keep-alive" in listed)
    return framed


def _hop_by_hop(
    environ: dict[str, Any], hops: list[tuple[int, bytes]], listed: list[bytes], framed: bool
) -> None:
    """Which of the fields that are for the next hop only are said anew to the backend.

    Upgrade (RFC 9110, section 7.8) where it was meant for us, too, and no body comes before it; not to h2c,
    a tunnel of requests that nobody looks at.
    """
    lines = []
    upgrade = b", ".join([value for kind, value in hops if kind == UPGRADE])
    if upgrade and b"upgrade" in listed and not framed and b"h2c" not in tokens(upgrade):
        lines.append(b"Connection: Upgrade\r\nUpgrade: %b\r\n" % upgrade)
        environ["lb.upgrade"] = True
    for kind, value in hops:
        if kind == EXPECT:
            if value.lower() != b"100-continue":
                raise ExpectationFailed("an unknown expectation")
            if framed:
                environ["lb.expect"] = value
    if environ["lb.expect"] is not None:
        lines.append(b"Expect: 100-continue\r\n")
    environ["lb.hop"] = b"".join(lines)


def _count_hops(environ: dict[str, Any], method: bytes, hops: list[tuple[int, bytes]]) -> None:
    """Take one from Max-Forwards, which each intermediary on the way does for these methods.

    Raises what is answered here instead when there is none left (RFC 9110, section 7.6.2), or BadRequest.
    """
    counts = [value for kind, value in hops if kind == HOPS]
    if not counts or method not in (b"TRACE", b"OPTIONS"):
        return
    if len(counts) > 1 or not counts[0].isdigit() or len(counts[0]) > 18:
        raise BadRequest("Max-Forwards is no number")
    left = int(counts[0]) - 1
    if left < 0:
        raise LastHop("no more hops") if method == b"OPTIONS" else MethodNotServed("TRACE ends here")
    environ["HTTP_MAX_FORWARDS"] = str(left)
    environ["lb.fields"] = tuple(
        (name, str(left).encode()) if NAMES[name].kind == HOPS else (name, value)
        for name, value in environ["lb.fields"]
    )


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


def _absolute(environ: dict[str, Any], method: bytes, target: str) -> str:
    if method == b"CONNECT":
        raise BadRequest("CONNECT is not for a gateway")
    whole = target
    target, authority = origin_form(target)
    if method == b"OPTIONS" and whole.endswith("://" + authority):
        target = "*"  # the server as a whole (RFC 9112, section 3.2.4)
    check_host(authority.encode("latin-1"))
    # RFC 9112, section 3.2.2: the Host field is to be replaced by what the target says.
    environ["HTTP_HOST"] = authority
    encoded = authority.encode("latin-1")
    others = [field for field in environ["lb.fields"] if NAMES[field[0]].kind != HOST]
    environ["lb.fields"] = ((b"Host", encoded), *others)
    return target
