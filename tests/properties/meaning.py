"""What a message means at its other end: which of its fields must arrive there, and how a target is told."""

from __future__ import annotations

import re

from tests.properties.reference import Fields, Request, members

_HOP = {
    b"connection",
    b"proxy-connection",
    b"keep-alive",
    b"te",
    b"transfer-encoding",
    b"content-length",
    b"upgrade",
}
# Said by the balancer itself, or by nobody.
_OWN = {b"x-real-ip", b"x-request-id", b"forwarded"} | {
    b"x-forwarded-" + name for name in (b"for", b"proto", b"host", b"port")
}
_ADDED = [
    b"x-forwarded-for",
    b"x-forwarded-proto",
    b"x-forwarded-port",
    b"via",
    b"x-forwarded-host",
    b"x-request-id",
]
_ABSOLUTE = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?]+)(.*)", re.DOTALL)


def end_to_end(fields: Fields) -> Fields:
    """The fields that are for whoever reads the message in the end; those that frame it show in its body."""
    gone = (set(members(fields, b"connection")) - {b"host"}) | _HOP
    return tuple((name, value) for name, value in fields if name.lower() not in gone)


def asked(request: Request) -> tuple[bytes, bytes, Fields, bytes]:
    """Method, target, fields and body of a client's request, as a backend should see them."""
    target, fields = request.target, request.fields
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute:
        target = absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]
        if request.method == b"OPTIONS" and not absolute[2]:
            target = b"*"  # the whole server (RFC 9112, section 3.2.4)
        rest = tuple(field for field in fields if field[0].lower() != b"host")
        fields = ((b"Host", absolute[1]), *rest)
    kept = tuple(
        (name, value)
        for name, value in end_to_end(fields)
        if b"_" not in name and name.lower() not in _OWN | {b"expect"}
    )
    return request.method, target, kept, request.body


def seen(request: Request, *, host: bool) -> tuple[bytes, bytes, Fields, bytes]:
    """The same of what a backend got, without what the balancer adds; `host`: did the client send one?"""
    fields = list(request.fields)
    own = [fields.pop() for _ in _ADDED][::-1]
    assert [name.lower() for name, _ in own] == _ADDED
    rest = [field for field in end_to_end(tuple(fields)) if field[0].lower() != b"expect"]
    assert not [name for name, _ in rest if name.lower() in _OWN]
    if not host:
        rest = [field for field in rest if field[0].lower() != b"host"]
    return request.method, request.target, tuple(rest), request.body


def may_go_on(trailers: Fields) -> Fields:
    """The trailer fields that may be passed on: none that frames, routes or authorises."""
    never = (
        _HOP
        | _OWN
        | {b"host", b"expect", b"trailer", b"authorization", b"content-type", b"set-cookie", b"via"}
    )
    never |= {b"cookie"}
    return tuple(field for field in trailers if field[0].lower() not in never and b"_" not in field[0])
