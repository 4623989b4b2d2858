"""What an `Idempotency-Key` stands for: never for somebody else's, or another request's."""

from __future__ import annotations

import pytest

from lb.algorithms.request import HeadRequest
from lb.errors import IdempotencyKeyInvalid
from lb.idempotency import fingerprint, identity, is_kept, pack, parse_key, unpack

SCOPE = ("header:Authorization", "cookie:session", "ip")
DEFAULT = ("header:Authorization", "header:Cookie")


def asked(*fields: str, client: str = "192.0.2.1") -> HeadRequest:
    return HeadRequest("\r\n".join(["POST /x HTTP/1.1", *fields, "", ""]).encode("latin-1"), client, "/x")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('"8e03978e-40d5"', "8e03978e-40d5"),
        (" 8e03978e-40d5\t", "8e03978e-40d5"),
        ('"a \\"b\\" \\\\"', 'a "b" \\'),
        ('"a, b"', "a, b"),
        ("x" * 255, "x" * 255),
        ('"}{:*"', "}{:*"),
    ],
)
def test_keys(text: str, key: str) -> None:
    assert parse_key(text) == key


@pytest.mark.parametrize(
    "text", ["", '""', "a b", "a, b", '"a", "b"', '"a', 'a"b', "x" * 256, "\x7f", "é", '"é"', '"a\\b"', "a\n"]
)
def test_what_is_no_key(text: str) -> None:
    with pytest.raises(IdempotencyKeyInvalid):
        parse_key(text)


def test_users_are_told_apart() -> None:
    requests = [
        asked(),
        asked(client="192.0.2.2"),
        asked("Authorization: Bearer a"),
        asked("Authorization: Bearer b"),
        asked("Cookie: session=a"),
        asked("Cookie: session=b"),
        asked("Authorization: session=a"),
        asked("Authorization: Bearer a", "Cookie: session=a"),
    ]
    for scope in (SCOPE, DEFAULT):
        assert len({identity(scope, "h", one, "k") for one in requests}) == len(requests)
    assert identity(DEFAULT, "h", requests[0], "k") != identity(DEFAULT, "other", requests[0], "k")
    assert identity(DEFAULT, "h", requests[0], "k") != identity(DEFAULT, "h", requests[0], "K")


def test_the_same_user_is_the_same_elsewhere() -> None:
    scope = ("cookie:session",)
    first = asked("Cookie: theme=dark; session=a", client="192.0.2.1")
    second = asked("Cookie: session=a; theme=light", client="192.0.2.9")
    assert identity(scope, "H.example", first, "k") == identity(scope, "h.example", second, "k")
    # An IPv4 address in an IPv6 one is that address.
    for known in (scope, ("ip",)):
        mapped = asked(client="::ffff:192.0.2.1")
        assert identity(known, "h", mapped, "k") == identity(known, "h", asked(), "k")


def test_no_part_runs_into_the_next() -> None:
    assert fingerprint("POST", "/a", b"b") != fingerprint("POST", "/ab", b"")
    assert fingerprint("POST", "/a", b"3:/b") != fingerprint("POST", "/a3:/b", b"")
    assert fingerprint("POST", "/", b"") != fingerprint("PATCH", "/", b"")
    scope = ("header:A", "header:B")
    assert identity(scope, "h", asked("A: x", "B: y"), "k") != identity(scope, "h", asked("A: xB: y"), "k")
    assert len(fingerprint("POST", "/", b"")) == 32


def test_what_a_client_sends_is_in_no_name() -> None:
    found = identity(DEFAULT, "{evil}", asked("Authorization: *"), "lb:{default}:state")
    assert len(found) == 64
    assert set(found) <= set("0123456789abcdef")


def test_the_last_word() -> None:
    assert all(map(is_kept, (200, 201, 204, 302, 400, 401, 404, 422, 500, 501)))
    assert not any(map(is_kept, (408, 409, 425, 429, 502, 503, 504)))


@pytest.mark.parametrize(
    ("status", "lines", "measured", "body"),
    [
        (201, b"X-A: 1\r\nX-A: 2\r\nContent-Length: 4\r\n", True, b"\0\r\n\xff"),
        (200, b"Content-Type: text/plain\r\n", False, b"chunked before"),
        (204, b"ETag: x\r\n", False, b""),
        (304, b"ETag: x\r\n", False, b""),
        (500, b"", False, b""),
    ],
)
def test_an_answer_is_kept_as_it_came(status: int, lines: bytes, measured: bool, body: bytes) -> None:
    kept = pack(status, "Some Words", lines, measured, body)
    # RFC 9110, section 8.6: not with 204; with 304 it would speak of another answer.
    assert kept.count(b"Content-Length") == (status not in (204, 304))
    head, found = unpack(kept)
    assert (head.status, head.reason, found) == (status, "Some Words", body)
    assert head.lines.startswith(lines)
    assert head.measured is (status not in (204, 304))
    assert head.length == len(body)
