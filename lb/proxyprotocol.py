"""The PROXY protocol, versions 1 and 2: who a connection that a proxy in front has opened is really from.

Pure. The protocol is HAProxy's (doc/proxy-protocol.txt).
"""

from __future__ import annotations

import ipaddress
import re

_V1 = re.compile(rb"PROXY (TCP4|TCP6) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) ([0-9]{1,5}) ([0-9]{1,5})\Z")
_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_V1_LONGEST = 107
_V2_LONGEST = 16 + 4096

Source = tuple[str, str]
"""(address, port); ("", "") where the proxy does not say."""


def parse(data: bytes) -> tuple[Source | None, int] | None:
    """Who the header at the beginning of `data` says the client is, and the header's length in bytes.

    The source is None where the connection is the proxy's own (a health check). Returns None while the
    header is not whole. Raises ValueError when it is none.
    """
    if data.startswith(_SIGNATURE[: len(data)]):
        return _version_2(data) if len(data) >= 16 else None
    if not data.startswith(b"PROXY "[: len(data)]):
        raise ValueError("no PROXY protocol header")
    end = data.find(b"\r\n", 0, _V1_LONGEST)
    if end < 0:
        if len(data) >= _V1_LONGEST:
            raise ValueError("PROXY line too long")
        return None
    line = data[:end]
    if line == b"PROXY UNKNOWN" or line.startswith(b"PROXY UNKNOWN "):
        return None, end + 2
    match = _V1.match(line)
    if match is None:
        raise ValueError("invalid PROXY line")
    version = 4 if match[1] == b"TCP4" else 6
    addresses = [ipaddress.ip_address(match[number].decode()) for number in (2, 3)]
    if any(address.version != version for address in addresses) or int(match[4]) > 65535:
        raise ValueError("invalid PROXY line")
    return (str(addresses[0]), str(int(match[4]))), end + 2


def _version_2(data: bytes) -> tuple[Source | None, int] | None:
    command, family = data[12], data[13]
    length = 16 + int.from_bytes(data[14:16], "big")
    if command >> 4 != 2 or command & 15 > 1 or length > _V2_LONGEST:
        raise ValueError("invalid PROXY header")
    if len(data) < length:
        return None
    kind = family >> 4
    if command & 15 == 0 or kind == 0:  # LOCAL, or UNSPEC
        return None, length
    if kind == 3:  # a unix socket has no address worth telling
        return ("", ""), length
    size = {1: 4, 2: 16}.get(kind)
    if size is None or length < 16 + 2 * size + 4:
        raise ValueError("invalid PROXY header")
    address = ipaddress.ip_address(data[16 : 16 + size])
    port = int.from_bytes(data[16 + 2 * size : 18 + 2 * size], "big")
    return (str(address), str(port)), length
