"""The PROXY protocol: who a connection is really from."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.proxyprotocol import parse

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def v2(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE + struct.pack(">BBH", 0x20 | command, family, len(body)) + body


IPV4 = socket.inet_aton("192.0.2.1") + socket.inet_aton("10.0.0.1") + struct.pack(">HH", 4711, 80)
IPV6 = socket.inet_pton(socket.AF_INET6, "2001:db8::1") * 2 + struct.pack(">HH", 4711, 80)
GOOD = {
    b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 80\r\n": ("192.0.2.1", "4711"),
    b"PROXY TCP6 2001:db8::1 ::1 4711 80\r\n": ("2001:db8::1", "4711"),
    b"PROXY UNKNOWN\r\n": None,
    b"PROXY UNKNOWN whatever it says\r\n": None,
    v2(1, 0x11, IPV4): ("192.0.2.1", "4711"),
    v2(1, 0x11, IPV4 + b"\x04\0\x01x"): ("192.0.2.1", "4711"),
    v2(1, 0x21, IPV6): ("2001:db8::1", "4711"),
    v2(1, 0x31, bytes(216)): ("", ""),
    v2(0, 0x11, IPV4): None,
    v2(1, 0x00, b""): None,
}


@pytest.mark.parametrize("header", GOOD)
def test_good(header: bytes) -> None:
    assert parse(header + b"GET /") == (GOOD[header], len(header))
    for end in range(len(header)):
        assert parse(header[:end]) is None


@pytest.mark.parametrize(
    "header",
    [
        b"GET / HTTP/1.1\r\n",
        b"PROXY TCP4 192.0.2.1 10.0.0.1 4711\r\n",
        b"PROXY TCP4 2001:db8::1 ::1 4711 80\r\n",
        b"PROXY TCP4 1.2.3.4.5 10.0.0.1 4711 80\r\n",
        b"PROXY TCP4 192.0.2.1 10.0.0.1 99999 80\r\n",
        b"PROXY TCP4 " + b"1" * 200,
        b"PROXY TCP5 1.1.1.1 1.1.1.1 1 1\r\n",
        v2(2, 0x11, IPV4),
        v2(1, 0x11, b"short"),
        v2(1, 0x71, IPV4),
        v2(1, 0x11, bytes(5000)),
    ],
)
def test_bad(header: bytes) -> None:
    with pytest.raises(ValueError):
        parse(header)


@given(
    st.binary(max_size=64), st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21"])
)
def test_never_anything_else(data: bytes, start: bytes) -> None:
    try:
        found = parse(start + data)
    except ValueError:
        return
    assert found is None or 0 < found[1] <= len(start + data)
