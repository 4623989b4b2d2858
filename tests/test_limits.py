"""How large a head may be, and how it is refused."""

from __future__ import annotations

import pytest

from lb.errors import BadRequest, HeaderTooLarge, UriTooLong, VersionNotSupported
from lb.limits import Limits
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
    assert not limits.usual
    with pytest.raises(Exception) as caught:
        limits.parse(head)
    assert type(limits.refusal(caught.value, head)) is wanted


def test_any_token_may_be_a_method() -> None:
    limits = Limits(LimitSettings())
    assert limits.usual
    assert limits.parse(b"pUrge! / HTTP/1.1\r\n\r\n", any_method=True).method == b"pUrge!"
