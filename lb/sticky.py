"""Sticky sessions: a cookie that keeps a client at its backend, and that nobody else can read or make.

Pure: the secret, the pool and the time arrive as arguments.

The value of the cookie is TOKEN.DATE.SIGNATURE. TOKEN stands for a backend: HMAC-SHA256 over the names of the
pool and the backend, cut to 128 bits (RFC 2104, section 5). It tells neither address nor id, and finds no
backend but one that the pool has. DATE is when the cookie was made, in hexadecimal seconds since the epoch;
SIGNATURE, another HMAC of 96 bits, keeps it from being changed, so that the balancer itself can end a
session: `Max-Age` only asks the browser to.
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64encode
from collections.abc import Mapping

from lb.model import Backend, Snapshot
from lb.settings import StickySettings

MOST = 4
"""Cookies of the name that are looked at in one request: a browser sends one for each path and domain."""

_SPACE = b" \t"
_COOKIE = re.compile(rb"(\r\n(?i:cookie):)([^\r]*)")


class Bond:
    """Which backend the client of one request belongs to, by its id (`home`), and whether that could serve it
    now (`backend`); "" for none.
    """

    __slots__ = ("_due", "_now", "_secure", "_sticky", "backend", "home")

    def __init__(self, sticky: Sticky, home: str, backend: str, due: bool, secure: bool, now: float) -> None:
        self._sticky = sticky
        self.home = home
        self.backend = backend
        self._due = due
        self._secure = secure
        self._now = now

    def mark(self, lines: bytes, backend: Backend) -> bytes:
        """The fields of the answer that `backend` gave, with the cookie where the client needs a new one.

        It does when it has come to another backend than before, and when more than half of its time is over.
        A backend that takes no new sessions does not prolong the old ones, so that they end.
        """
        lines = self._sticky.without_own(lines)
        if backend.id == self.backend and not (self._due and backend.available):
            return lines
        return lines + self._sticky.line(backend.id, self._secure, self._now)


class Sticky:
    """The sticky sessions of one pool. Without a secret, its own or the fleet's, there are none yet.

    Reading and `update` may go on in different threads.
    """

    def __init__(self, pool: str, settings: StickySettings) -> None:
        self._pool = pool.encode()
        self._settings = settings
        self._name = settings.cookie.encode()
        self._foreign = re.compile(rb"(?m)^(?i:set-cookie):[ \t]*%b[ \t]*=[^\r]*\r\n" % re.escape(self._name))
        self._tails = {secure: self._attributes(secure) for secure in (False, True)}
        tokens: dict[str, bytes] = {}
        names: dict[bytes, str] = {}
        members: Mapping[str, Backend] = {}
        # The secret, the tokens by the backends' ids, the ids by their tokens, the pool: replaced together.
        self._view = (b"", tokens, names, members)

    def update(self, snapshot: Snapshot, secret: bytes) -> None:
        """Take a newer view of the pool, and the secret of the fleet (b"": not known yet)."""
        before, tokens, names, _ = self._view
        secret = self._settings.secret.encode() or secret or before
        members = snapshot.backends
        # Most changes are of health, and of no name.
        if secret and (secret != before or tokens.keys() != members.keys()):
            known = tokens if secret == before else {}
            tokens = {name: known.get(name) or self._token(secret, name) for name in members}
            names = {token: name for name, token in tokens.items()}
        self._view = (secret, tokens, names, members)

    def read(self, head: bytes, secure: bool, now: float) -> tuple[Bond, bytes]:
        """What the cookie of a request says, and the head without it, other cookies as they came.

        `head` is whole, each line with its CRLF. `secure`: did the client come by https? `now` is in seconds
        since the epoch. What is forged, too old or for a backend that is gone says nothing.
        """
        values: list[bytes] = []
        if self._name in head:
            values, head = self._taken_out(head)
        backend, due = self._find(values, now)
        home = "" if backend is None else backend.id
        name = home if backend is not None and backend.keeps_sessions else ""
        return Bond(self, home, name, due, secure, now), head

    def _taken_out(self, head: bytes) -> tuple[list[bytes], bytes]:
        values = []

        def rest(line: re.Match[bytes]) -> bytes:
            pairs = line[2].split(b";")
            kept = []
            for pair in pairs:
                name, sign, value = pair.partition(b"=")
                if sign and name.strip(_SPACE) == self._name:
                    values.append(value.strip(_SPACE))
                else:
                    kept.append(pair)
            if len(kept) == len(pairs):
                return line[0]
            left = b";".join(kept)
            return line[1] + left if left.strip(_SPACE) else b""

        head = _COOKIE.sub(rest, head)
        return values, head

    def _find(self, values: list[bytes], now: float) -> tuple[Backend | None, bool]:
        """The backend that the first good value stands for, and is more than half of its time over?"""
        secret, _, names, members = self._view
        ttl = self._settings.ttl
        for value in values[:MOST]:
            signed, _, signature = value.rpartition(b".")
            token, _, date = signed.partition(b".")
            name = names.get(token)
            if name is None or not hmac.compare_digest(signature, _signature(secret, signed)):
                continue
            age = now - int(date, 16)
            if not ttl or age <= ttl:
                return members[name], 0 < ttl < 2 * age
        return None, False

    def without_own(self, lines: bytes) -> bytes:
        """Fields of an answer without a cookie of our name from the backend, which would end the session."""
        return self._foreign.sub(b"", lines) if self._name in lines else lines

    def line(self, backend: str, secure: bool, now: float) -> bytes:
        """The field that binds a client to `backend`; b"" where nothing is known of that, or of a secret."""
        secret, tokens, _, _ = self._view
        token = tokens.get(backend)
        if token is None:
            return b""
        signed = b"%b.%x" % (token, int(now))
        value = b"%b.%b" % (signed, _signature(secret, signed))
        return b"Set-Cookie: %b=%b%b\r\n" % (self._name, value, self._tails[secure])

    def _attributes(self, by_https: bool) -> bytes:
        """What stands behind the value (RFC 6265, section 4.1)."""
        settings = self._settings
        secure = settings.secure == "always" or (by_https and settings.secure == "auto")
        parts = ["", f"Path={settings.path}"]
        if settings.ttl:
            parts.append(f"Max-Age={settings.ttl}")
        if settings.http_only:
            parts.append("HttpOnly")
        if secure:
            parts.append("Secure")
        # Browsers refuse a cookie that says None without Secure.
        if settings.same_site and (secure or settings.same_site != "none"):
            parts.append(f"SameSite={settings.same_site.capitalize()}")
        return "; ".join(parts).encode()

    def _token(self, secret: bytes, backend: str) -> bytes:
        # Neither a pool's name nor a backend's has a line end in it.
        return _mac(secret, b"backend\n%b\n%b" % (self._pool, backend.encode()), 16)


def sticky_pools(settings: Mapping[str, StickySettings]) -> dict[str, Sticky]:
    """The sticky sessions of those pools that have some, by pool."""
    return {pool: Sticky(pool, one) for pool, one in settings.items() if one.cookie}


def _mac(secret: bytes, text: bytes, size: int) -> bytes:
    return urlsafe_b64encode(hmac.digest(secret, text, "sha256")[:size]).rstrip(b"=")


def _signature(secret: bytes, signed: bytes) -> bytes:
    return _mac(secret, b"cookie\n" + signed, 12)
