"""What an `Idempotency-Key` stands for, and what is kept of an answer.

Source: draft-ietf-httpapi-idempotency-key-header. Rules of this module: no I/O, no clock, no Redis. Keys,
bodies and what tells users apart come from clients: they are hashed, each part with its length before it, and
never stand in the name of anything.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from gunicorn_h1c import parse_response

from lb.algorithms.hashing import normal_address
from lb.algorithms.request import HeadRequest
from lb.errors import IdempotencyKeyInvalid
from lb.proxy.fields import ResponseHead

_QUOTED = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\]){1,255})"\Z')
_BARE = re.compile(r"[\x21\x23-\x2b\x2d-\x5b\x5d-\x7e]{1,255}\Z")

_TRY_LATER = frozenset((408, 409, 425, 429, 502, 503, 504))
"""Answers that say that the request was not carried out, or that nobody knows: the client may try again."""


def parse_key(text: str) -> str:
    """The key in the field's value: a string (RFC 8941, section 3.3.3), or one without quotes, as many send
    it; 1 to 255 characters. Raises IdempotencyKeyInvalid.
    """
    value = text.strip(" \t")
    match = _QUOTED.match(value)
    if match is not None:
        return re.sub(r"\\(.)", r"\1", match[1])
    if not _BARE.match(value):
        raise IdempotencyKeyInvalid('an Idempotency-Key is one text of 1 to 255 characters: "8e03978e-40d5"')
    return value


def identity(scope: Iterable[str], host: str, request: HeadRequest, key: str) -> str:
    """What the key is kept under: the same only for the same user of the same host.

    `scope` names what tells users apart; a request that has none of it is told by its client's address.
    """
    found: list[bytes] = []
    for word in scope:
        kind, _, name = word.partition(":")
        if kind == "ip":
            value = normal_address(request.client)
        else:
            value = request.header(name) if kind == "header" else request.cookie(name)
        if value:
            found += (word.lower().encode(), value.encode("latin-1", "replace"))
    if not found:
        found = [b"", normal_address(request.client).encode()]
    return _digest((host.lower().encode("latin-1", "replace"), *found, key.encode())).hex()


def fingerprint(method: str, target: str, body: bytes) -> bytes:
    """32 bytes that tell a request from another one with the same key."""
    return _digest((method.encode("latin-1"), target.encode("latin-1", "replace"), body))


def _digest(parts: Iterable[bytes]) -> bytes:
    found = hashlib.sha256()
    for part in parts:
        found.update(b"%d:" % len(part))
        found.update(part)
    return found.digest()


def is_kept(status: int) -> bool:
    """Is an answer with this status the last word on its request?"""
    return status not in _TRY_LATER


def pack(status: int, reason: str, lines: bytes, measured: bool, body: bytes) -> bytes:
    """An answer as it is kept: one HTTP message. `measured`: `lines` say how long the body is."""
    length = b"" if measured or status in (204, 304) else b"Content-Length: %d\r\n" % len(body)
    return b"HTTP/1.1 %d %b\r\n%b%b\r\n%b" % (status, reason.encode("latin-1"), lines, length, body)


def unpack(kept: bytes) -> tuple[ResponseHead, bytes]:
    """Head and body of an answer that was kept. Raises ValueError."""
    parsed = parse_response(kept)
    end = parsed["consumed"]
    fields = parsed["headers"]
    head = ResponseHead("POST", parsed["status"], parsed["message"], 1, fields, kept[:end])
    return head, kept[end:]
