"""How large a head may be, and how it is refused."""

from __future__ import annotations

import pytest
from gunicorn_h1c._parser_fast import IncompleteError

from lb.errors import BadRequest, HeaderTooLarge, UriTooLong, VersionNotSupported
from lb.limits import MOST_KNOWN, Limits
from lb.settings import LimitSettings

FIELDS = b"".join(b"X-%d: y\r\n" % number for number in range(9))


@pytest.mark.parametrize(
    ("head", "wanted"),
    [
        (b"GET /" + b"x" * 100 + b" HTTP/1.1\r\nHost: a\r\n\r\n", UriTooLong),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", VersionNotSupported),
        (b"GET / HTTPS/1.1\r\nHost: a\r\n\r\n", BadRequest),
        (b"GET / HTTP/1.1\r\n" + FIELDS + b"\r\n", HeaderTooLarge),
        (b"GET / HTTP/1.1\r\n" + FIELDS * 40 + b"\r\n", HeaderTooLarge),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 100 + b"\r\n\r\n", HeaderTooLarge),
        (b"GET / HTTP/1.1\r\nno field\r\n\r\n", BadRequest),
    ],
)
def test_what_is_not_taken(head: bytes, wanted: type[Exception]) -> None:
    limits = Limits(LimitSettings(request_line=64, fields=8, field_size=64))
    with pytest.raises(wanted) as caught:
        limits.read(head, 0)
    assert type(caught.value) is wanted


def test_any_token_may_be_a_method() -> None:
    for settings in (LimitSettings(), LimitSettings(fields=8)):
        head, _ = Limits(settings).read(b"pUrge! / HTTP/1.1\r\n\r\n", 0)
        assert head.method == b"pUrge!"


def test_a_later_minor_version_reads_as_the_one_we_know() -> None:
    head, data = Limits(LimitSettings()).read(b"get / HTTP/1.7\r\nHost: h\r\n\r\nrest", 0)
    assert (head.method, head.minor_version) == (b"get", 1)
    assert data == b"get / HTTP/1.1\r\nHost: h\r\n\r\nrest"


def test_no_whole_head_yet() -> None:
    limits = Limits(LimitSettings(head=256))
    with pytest.raises(IncompleteError):
        limits.read(b"GET / HTTP/1.1\r\nHost: ", 8)
    with pytest.raises(HeaderTooLarge):
        limits.read(b"GET / HTTP/1.1\r\nHost: " + b"h" * 300, 0)


def test_what_is_learnt_is_what_a_head_adds() -> None:
    limits = Limits(LimitSettings())
    base = {"REMOTE_ADDR": "1.2.3.4", "lb.body": None, "SERVER_PROTOCOL": "HTTP/1.1"}
    limits.learn(b"head", 0, {**base, "SERVER_PROTOCOL": "HTTP/1.0", "HTTP_HOST": "h"}, base)
    assert limits.known == {b"head": (0, {"SERVER_PROTOCOL": "HTTP/1.0", "HTTP_HOST": "h"})}
    for number in range(MOST_KNOWN + 5):
        limits.learn(b"%d" % number, 1, base, base)
    assert len(limits.known) <= MOST_KNOWN
