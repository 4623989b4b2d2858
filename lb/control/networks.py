"""Which addresses may be registered as backends over the network.

Whoever may add a backend can make the balancer connect to it, so what is added must lie in
`allowed_backends`. A name is looked up, and all its addresses must. What the name means later is up to
whoever answers for it: where that is not trusted, register addresses. Sockets of this machine
(`http+unix://`) lie in no network and are never taken; a configuration may have them.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from lb.networks import Networks


class NotAllowed(Exception):
    """The address is not one that may be registered."""


class NotFound(Exception):
    """The name has no address."""


def check(url: str, allowed: Iterable[str]) -> None:
    """Raise NotAllowed or NotFound unless all addresses of the (valid) `url` are in the networks `allowed`.

    May wait for a name server.
    """
    parts = urlsplit(url)
    if parts.scheme == "http+unix":
        raise NotAllowed("sockets of this machine cannot be registered; name them in the configuration")
    host = parts.hostname or ""
    networks = Networks(allowed)
    for text in addresses(host):
        if not networks.have(text):
            which = "" if text == host else f", one of the addresses of {host},"
            raise NotAllowed(f"{text}{which} is in none of the networks of `allowed_backends`")


def addresses(host: str) -> list[str]:
    """All addresses of a host, without scopes. Raises NotFound."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise NotFound(f"{host} has no address") from None
    return sorted({str(row[4][0]).partition("%")[0] for row in found})
