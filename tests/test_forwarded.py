"""What backends are told about the client, and whose word about it counts."""

from __future__ import annotations

import pytest

from lb.forwarded import Forwarding

FIELDS = (
    (b"X-Forwarded-For", b"6.6.6.6, 203.0.113.7"),
    (b"x-forwarded-for", b"10.0.0.9"),
    (b"X-Forwarded-Proto", b"https"),
    (b"X-Forwarded-Port", b"443"),
    (b"X-Forwarded-Host", b"www.example"),
    (b"Forwarded", b"for=203.0.113.7"),
    (b"X-Request-Id", b"abc-1"),
)


def lines(made: Forwarding, peer: str, fields: tuple[tuple[bytes, bytes], ...] = FIELDS) -> list[bytes]:
    return made.lines(peer, "http", "8000", "h.example", fields, "1.1").split(b"\r\n")[:-1]


@pytest.mark.parametrize("made", [Forwarding((), False), Forwarding(("10.0.0.0/8",), False)])
def test_what_a_stranger_says_is_replaced(made: Forwarding) -> None:
    assert set(lines(made, "192.0.2.1")) == {
        b"X-Forwarded-For: 192.0.2.1",
        b"X-Forwarded-Proto: http",
        b"X-Forwarded-Port: 8000",
        b"X-Forwarded-Host: h.example",
        b"Via: 1.1 lb",
    }
    assert made.client("192.0.2.1", FIELDS) == "192.0.2.1"
    assert made.request_id("192.0.2.1", FIELDS) == ""
    assert made.scheme("192.0.2.1", "http", FIELDS) == "http"


def test_what_a_trusted_proxy_says_is_extended() -> None:
    made = Forwarding(("10.0.0.0/8",), True)
    assert set(lines(made, "10.1.1.1")) == {
        b"X-Forwarded-For: 6.6.6.6, 203.0.113.7, 10.0.0.9, 10.1.1.1",
        b"X-Forwarded-Proto: https",
        b"X-Forwarded-Port: 443",
        b"X-Forwarded-Host: www.example",
        b"Via: 1.1 lb",
        b'Forwarded: for=203.0.113.7, for=10.1.1.1;host="h.example";proto=http',
    }
    assert made.client("10.1.1.1", FIELDS) == "203.0.113.7", "the last station that is no proxy of ours"
    assert made.request_id("10.1.1.1", FIELDS) == "abc-1"
    assert made.scheme("10.1.1.1", "http", FIELDS) == "https"


def test_a_trusted_proxys_nonsense_is_not_passed_on() -> None:
    made = Forwarding(("10.0.0.0/8",), False)
    fields = (
        (b"X-Forwarded-Proto", b"gopher"),
        (b"X-Forwarded-Port", b"8o"),
        (b"X-Forwarded-Host", b"a b"),
        (b"X-Request-Id", b"a b"),
        (b"X-Forwarded-For", b"unknown"),
    )
    found = lines(made, "10.1.1.1", fields)
    assert {b"X-Forwarded-Proto: http", b"X-Forwarded-Port: 8000", b"X-Forwarded-Host: h.example"} <= set(
        found
    )
    assert made.request_id("10.1.1.1", fields) == ""
    assert made.client("10.1.1.1", fields) == "10.1.1.1"


@pytest.mark.parametrize(
    ("peer", "trusted"),
    [
        ("10.0.0.1", True),
        ("::ffff:10.0.0.1", True),
        ("11.0.0.1", False),
        ("fd00::1%eth0", True),
        ("", False),
        ("x", False),
    ],
)
def test_who_is_trusted(peer: str, trusted: bool) -> None:
    assert Forwarding(("10.0.0.0/8", "fd00::/8"), False).trusts(peer) is trusted


def test_addresses_in_forwarded() -> None:
    made = Forwarding((), True)
    assert b'Forwarded: for="[2001:db8::1]";host="h.example";proto=http' in lines(made, "2001:db8::1")
    assert b'Forwarded: for=unknown;host="h.example";proto=http' in lines(made, "")
