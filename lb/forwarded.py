"""What is said about the client to a backend: X-Forwarded-For and its kin, Forwarded (RFC 7239), Via.

Pure. What an untrusted peer says about itself is replaced; what a trusted proxy says is extended
by the proxy's own address, so that the whole way can be read.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache

from lb.networks import Networks
from lb.proxy.fields import Fields
from lb.proxy.http1 import FORWARDED, NAMES

_ID = re.compile(rb"[A-Za-z0-9._~+/=-]{1,128}\Z")
_PORT = re.compile(rb"[0-9]{1,5}\Z")
_HOST = re.compile(rb"[A-Za-z0-9._~:\[\]-]{1,255}\Z")
_SCHEMES = (b"http", b"https")


class Forwarding:
    """`trusted` are networks (CIDR) of proxies in front; `forwarded`: is RFC 7239's field sent, too?"""

    def __init__(self, trusted: Iterable[str], forwarded: bool) -> None:
        self._trusted = Networks(trusted)
        self._forwarded = forwarded
        #: May the lines for a client depend on nothing but its address, and the listener?
        self.plain = self._trusted.empty and not forwarded

    def trusts(self, peer: str) -> bool:
        """Is `peer` a proxy whose word counts?"""
        return self._trusted.have(peer)

    def client(self, peer: str, fields: Fields) -> str:
        """The client's address: of the way here the last station that is no trusted proxy."""
        if not self.trusts(peer):
            return peer
        stations = [
            part.strip() for value in _values(fields, b"x-forwarded-for") for part in value.split(b",")
        ]
        for station in reversed(stations):
            text = station.decode("latin-1")
            try:
                ipaddress.ip_address(text)
            except ValueError:
                break
            peer = text
            if not self.trusts(text):
                break
        return peer

    def request_id(self, peer: str, fields: Fields) -> str:
        """The X-Request-Id that a trusted proxy gave the request, "" if there is none to keep."""
        if self.trusts(peer):
            found = _values(fields, b"x-request-id")
            if len(found) == 1 and _ID.match(found[0]):
                return found[0].decode("latin-1")
        return ""

    def scheme(self, peer: str, own: str, fields: Fields) -> str:
        """The scheme that the client uses: `own`, or what a trusted proxy says."""
        if not self.trusts(peer):
            return own
        return _kept(fields, b"x-forwarded-proto", own.encode(), _SCHEMES.__contains__).decode()

    def lines(self, peer: str, scheme: str, port: str, host: str, fields: Fields, version: str) -> bytes:
        """The lines for a backend. `fields` are the client's own, `version` is its HTTP version."""
        name = host.encode("latin-1")
        if self.plain:
            return b"%bX-Forwarded-Host: %b\r\n" % (_direct(peer, scheme, port, version), name)
        way = [peer.encode("latin-1")] if peer else []
        proto, at, before = scheme.encode(), port.encode("latin-1"), []
        if self.trusts(peer):
            way = _values(fields, b"x-forwarded-for") + way
            before = _values(fields, b"forwarded")
            proto = _kept(fields, b"x-forwarded-proto", proto, _SCHEMES.__contains__)
            at = _kept(fields, b"x-forwarded-port", at, _PORT.match)
            name = _kept(fields, b"x-forwarded-host", name, _HOST.match)
        out = [b"X-Forwarded-For: %b\r\n" % b", ".join(way)] if way else []
        out.append(b"X-Forwarded-Proto: %b\r\nX-Forwarded-Port: %b\r\n" % (proto, at))
        out.append(b"Via: %b lb\r\nX-Forwarded-Host: %b\r\n" % (version.encode(), name))
        if self._forwarded:
            own = b'for=%b;host="%b";proto=%b' % (_node(peer), host.encode("latin-1"), scheme.encode())
            out.append(b"Forwarded: %b\r\n" % b", ".join([*before, own]))
        return b"".join(out)


def _values(fields: Fields, name: bytes) -> list[bytes]:
    return [
        value for key, value in fields if NAMES[key].kind == FORWARDED and NAMES[key].lower == name and value
    ]


def _kept(fields: Fields, name: bytes, own: bytes, valid: object) -> bytes:
    found = _values(fields, name)
    if len(found) == 1 and callable(valid) and valid(found[0]):
        return found[0]
    return own


def _node(peer: str) -> bytes:
    """An address as RFC 7239, section 6, has it."""
    if ":" in peer:
        return f'"[{peer}]"'.encode("latin-1")
    return peer.encode("latin-1") if peer else b"unknown"


@lru_cache(maxsize=4096)
def _direct(peer: str, scheme: str, port: str, version: str) -> bytes:
    """What is the same for all requests of a client (an address, or "")."""
    who = f"X-Forwarded-For: {peer}\r\n" if peer else ""
    how = f"X-Forwarded-Proto: {scheme}\r\nX-Forwarded-Port: {port}\r\nVia: {version} lb\r\n"
    return (who + how).encode("latin-1")
