"""The PROXY protocol before a real balancer: who is believed to ask, and what is not taken for a header."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterator

import pytest

from tests.support.backends import Backend, Request
from tests.support.clients import Client, get, request
from tests.support.processes import Balancer, own_system

Place = tuple[Backend, Balancer]
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
PROXY, LOCAL = 0x21, 0x20
TCP4, TCP6, UNIX, UNSPEC = 0x11, 0x21, 0x31, 0x00


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with own_system(tmp_path_factory.mktemp("proxy")) as system, Backend() as backend:
        env = {
            "LB_PROXY_PROTOCOL": "true",
            "LB_CLIENT_HEADER_TIMEOUT": "1",
            "LB_TRUSTED_PROXIES": "192.0.2.7",
        }
        yield backend, system.balancer(backends=backend.url, env=env)


def second(command: int, family: int, addresses: bytes = b"", *tlvs: tuple[int, bytes]) -> bytes:
    """A header of version 2."""
    payload = addresses + b"".join(
        bytes([kind]) + len(value).to_bytes(2, "big") + value for kind, value in tlvs
    )
    return SIGNATURE + bytes([command, family]) + len(payload).to_bytes(2, "big") + payload


def inet(source: str, target: str, port: int) -> bytes:
    """The addresses and ports of a header of version 2."""
    ends = b"".join(ipaddress.ip_address(one).packed for one in (source, target))
    return ends + port.to_bytes(2, "big") + (443).to_bytes(2, "big")


V4, V6 = inet("192.0.2.1", "198.51.100.1", 4711), inet("2001:db8::1", "2001:db8::2", 4711)
TLVS = ((0x01, b"h2"), (0x02, b"www.example.com"), (0x20, b"\x01\0\0\0\0" + b"x" * 200), (0xE0, b"own"))

HEADERS: dict[str, tuple[bytes, str]] = {
    "v1 TCP4": (b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 443\r\n", "192.0.2.1"),
    "v1 TCP6": (b"PROXY TCP6 2001:db8::1 2001:DB8::2 4711 443\r\n", "2001:db8::1"),
    "v1 UNKNOWN": (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
    "v1 UNKNOWN with more": (b"PROXY UNKNOWN " + b"f" * 80 + b"\r\n", "127.0.0.1"),
    "v2 TCP4": (second(PROXY, TCP4, V4), "192.0.2.1"),
    "v2 TCP6": (second(PROXY, TCP6, V6), "2001:db8::1"),
    "v2 TCP4 with TLVs": (second(PROXY, TCP4, V4, *TLVS), "192.0.2.1"),
    "v2 TCP6 with TLVs": (second(PROXY, TCP6, V6, *TLVS), "2001:db8::1"),
    "v2 with long TLVs": (second(PROXY, TCP4, V4, (0x04, b"\0" * 4000)), "192.0.2.1"),
    "v2 LOCAL": (second(LOCAL, UNSPEC), "127.0.0.1"),
    "v2 LOCAL with an address": (second(LOCAL, TCP4, V4), "127.0.0.1"),
    "v2 UNSPEC": (second(PROXY, UNSPEC, b"", *TLVS), "127.0.0.1"),
}


def asked(place: Place, client: Client, *fields: str) -> Request:
    """What the backend sees of a request on that connection."""
    assert client.get("/", *fields).status == 200
    return place[0].requests[-1]


@pytest.mark.parametrize("pieces", ["whole", "with the request", "in bytes"])
@pytest.mark.parametrize("name", HEADERS)
def test_headers(place: Place, name: str, pieces: str) -> None:
    """It holds for all requests of the connection, however it comes."""
    header, wanted = HEADERS[name]
    with Client(place[1].port) as client:
        if pieces == "with the request":
            client.send(header + request("GET", "/first"))
            assert client.read_answer().status == 200
            assert place[0].requests[-1].values("X-Forwarded-For") == [wanted]
        elif pieces == "in bytes" and len(header) < 1000:
            for byte in header:
                client.send(bytes([byte]))
        else:
            client.send(header)
        for _ in range(2):
            assert asked(place, client, "X-Forwarded-For: 203.0.113.9").values("X-Forwarded-For") == [wanted]


def test_the_announced_client_may_be_a_trusted_proxy(place: Place) -> None:
    """Whose word counts is decided by the address that is announced."""
    with Client(place[1].port) as client:
        client.send(b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n")
        seen = asked(place, client, "X-Forwarded-For: 203.0.113.9")
        assert seen.values("X-Forwarded-For") == ["203.0.113.9, 192.0.2.7"]


BAD = {
    "none": request("GET", "/none"),
    "v1 without addresses": b"PROXY TCP4\r\n",
    "v1 with a name": b"PROXY TCP4 a.example 198.51.100.1 4711 443\r\n",
    "v1 of the other family": b"PROXY TCP4 2001:db8::1 2001:db8::2 4711 443\r\n",
    "v1 with a port too high": b"PROXY TCP4 192.0.2.1 198.51.100.1 65536 443\r\n",
    "v1 with a space too many": b"PROXY TCP4  192.0.2.1 198.51.100.1 4711 443\r\n",
    "v1 that ends in LF": b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 443\n" + request("GET", "/lf"),
    "v1 that is too long": b"PROXY UNKNOWN " + b"f" * 100,
    "v1 of another case": b"proxy TCP4 192.0.2.1 198.51.100.1 4711 443\r\n",
    "v2 of another version": second(0x11, TCP4, V4),
    "v2 with another command": second(0x22, TCP4, V4),
    "v2 that is too short": second(PROXY, TCP4, V4[:8]),
    "v2 for IPv6 that is too short": second(PROXY, TCP6, V4),
    "v2 that is too long": SIGNATURE + bytes([PROXY, TCP4]) + b"\xff\xff",
    "v2 with a broken signature": SIGNATURE[:-1] + b"x" + second(PROXY, TCP4, V4)[12:],
    "noise": b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_header(place: Place, name: str) -> None:
    """The connection is closed without a word: nobody knows who asks."""
    backend, balancer = place
    before = len(backend.requests)
    with Client(balancer.port) as client:
        began = time.monotonic()
        client.send(BAD[name])
        assert client.at_end()
        assert time.monotonic() - began < 0.9, "it was waited for"
    assert len(backend.requests) == before


@pytest.mark.parametrize("part", [b"", b"PROXY TCP4 192.0.2", SIGNATURE, second(PROXY, TCP4, V4)[:20]])
def test_a_header_that_does_not_come(place: Place, part: bytes) -> None:
    """It has the time of a head, `client.header`, and is closed then without a word."""
    with Client(place[1].port) as client:
        began = time.monotonic()
        client.send(part)
        assert client.at_end()
        assert 0.9 < time.monotonic() - began < 4


def test_the_control_side_has_none(place: Place) -> None:
    assert get(place[1].control, "/healthz").status == 200


def test_a_header_and_then_nothing(place: Place) -> None:
    with Client(place[1].port) as client:
        client.send(HEADERS["v1 TCP4"][0])
        assert client.at_end()
