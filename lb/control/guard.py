"""Who may ask the control side, and from where.

With a token set, whoever does not send it learns nothing (RFC 6750). Without one the listener is loopback
only, which keeps out other machines, but not the web pages in a browser on this one. Two checks do:

- *Host*: a page whose own name has been made to point here (DNS rebinding) sends that name. Only addresses,
  `localhost` and the name that the listener is bound by are ours; anything else is answered 421.
- *Origin*: a page elsewhere can send simple requests across sites. What changes something is refused (403)
  when a browser says that it comes from another origin, and bodies must be `application/json`, which a
  browser sends across sites only with leave (CORS) that is never given.
"""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

import falcon

from lb.config_checks import split_bind
from lb.control.problems import Problem
from lb.settings import Settings

OPEN = frozenset(("/healthz", "/readyz"))
"""What probes ask, who have neither a token nor a say in the Host they send."""

_SAFE = frozenset(("GET", "HEAD", "OPTIONS"))
_PORTS = {"http": 80, "https": 443}


class Guard:
    """Middleware that refuses requests before anything looks at them."""

    def __init__(self, settings: Settings) -> None:
        self._token = settings.control_token.encode()
        bind = split_bind(settings.control_bind)
        #: Names that are ours; None: there is no name to check, nothing but this machine can reach a path.
        self._names = None if isinstance(bind, str) else frozenset(("localhost", bind[0].lower()))

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Raise the problem there is with `req`; called by the framework."""
        if req.path not in OPEN:
            self._check_caller(req)
        if req.method not in falcon.COMBINED_METHODS:
            raise Problem(501, f"there is no method {req.method[:32]!r} here")
        origin = req.env.get("HTTP_ORIGIN")
        if origin is not None and req.method not in _SAFE and not same_origin(origin, _host(req)):
            raise Problem(403, "changes are not taken from pages of another origin")

    def _check_caller(self, req: falcon.Request) -> None:
        if self._token:
            if not has_token(req.env.get("HTTP_AUTHORIZATION", ""), self._token):
                raise Problem(
                    401,
                    "send Authorization: Bearer with the control token",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        elif self._names is not None and not is_ours(_host(req), self._names):
            raise Problem(
                421, "this Host is not served: ask by address, by localhost or by the name of `control_bind`"
            )


def _host(req: falcon.Request) -> str:
    found: str = req.env.get("HTTP_HOST", "")
    return found


def has_token(authorization: str, token: bytes) -> bool:
    """Does the value of an Authorization field carry `token`? Takes the same time wherever they differ."""
    scheme, _, given = authorization.partition(" ")
    return hmac.compare_digest(given.encode("latin-1"), token) and scheme.lower() == "bearer"


def is_ours(host: str, names: frozenset[str]) -> bool:
    """Is the value of a Host field an address, or one of `names`? No browser leaves it out."""
    if not host:
        return True
    name = _split(host)[0]
    if name in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def same_origin(origin: str, host: str) -> bool:
    """Is `origin`, as a browser writes it, where `host` was asked? `null` is not."""
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError:
        return False
    default = _PORTS.get(parts.scheme, 0)
    name, asked = _split(host)
    return bool(default) and parts.hostname == name and str(port or default) == (asked or str(default))


def _split(host: str) -> tuple[str, str]:
    """Name, in lower case and without brackets, and port ("": none)."""
    if host.startswith("["):
        name, _, rest = host[1:].partition("]")
        return (name.lower() if rest[:1] in ("", ":") else ""), rest[1:]
    name, _, port = host.partition(":")
    return name.lower(), port
