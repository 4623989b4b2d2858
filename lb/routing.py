"""Where a request goes: which pool, and what is changed on the way. Pure.

Routes are matched by host first (an exact name before a `*.suffix`, that before any host), then by the
longest path prefix; a prefix ends at a path segment: `/api` matches `/api` and `/api/x`, not `/apix`.
Matched is the decoded path with its dot segments resolved (RFC 3986, section 5.2.4) and without empty
segments, as a backend may read it, so that no spelling slips past a route; forwarded is the path as it came.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

from lb.edits import Edits, edits
from lb.errors import BadRequest
from lb.settings import Route

_SLASHES = re.compile("//+")
_DOTS = re.compile(r"/\.\.?(?:/|\Z)")


class Destination:
    """What a route says. `prefix` is what it takes off the path; `request` and `response` edit the fields."""

    __slots__ = ("plain", "pool", "prefix", "redirect", "request", "response")

    def __init__(self, route: Route) -> None:
        self.pool = route.pool
        self.prefix = resolved(merged(decoded(route.path))).rstrip("/") if route.strip_prefix else ""
        self.redirect = route.redirect == "https"
        self.request: Edits | None = edits(route.request)
        self.response: Edits | None = edits(route.response)
        #: Is there nothing to do but to forward?
        self.plain = not (self.prefix or self.redirect or self.request or self.response)

    def strip(self, target: str) -> str:
        """`target` without the prefix, all else byte for byte. Raises BadRequest where that is not clear."""
        path, mark, query = target.partition("?")
        count = self.prefix.count("/") + 1
        segments = path.split("/")
        if decoded("/".join(segments[:count])) != self.prefix or _DOTS.search(decoded(path)):
            raise BadRequest("the path cannot be taken apart at the route's prefix")
        return "/" + "/".join(segments[count:]) + mark + query


def decoded(path: str) -> str:
    """A path without its percent-encoding."""
    return unquote_to_bytes(path.encode("latin-1")).decode("latin-1") if "%" in path else path


def resolved(path: str) -> str:
    """A decoded path without dot segments (RFC 3986, section 5.2.4)."""
    out: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del out[-1:]
        elif segment != ".":
            out.append(segment)
    if segments and segments[-1] in (".", ".."):
        out.append("")
    return "/" + "/".join(out)


def merged(path: str) -> str:
    """A path without empty segments, as many servers read it."""
    return _SLASHES.sub("/", path)


def host_name(host: str) -> str:
    """The lower-case name in a Host field, without port."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower().rstrip(".")


Table = dict[str, Destination]
"""Path prefix without a slash at its end → where it leads."""


class Router:
    """The routes of a configuration. Without any, everything goes to `default`."""

    def __init__(self, routes: Iterable[Route], default: str) -> None:
        self._exact: dict[str, Table] = {}
        self._suffix: dict[str, Table] = {}
        self._any: Table = {}
        count = 0
        for count, route in enumerate(routes, 1):  # noqa: B007
            host = route.host.lower()
            if not host or host == "*":
                table = self._any
            elif host.startswith("*."):
                table = self._suffix.setdefault(host[1:], {})
            else:
                table = self._exact.setdefault(host, {})
            table.setdefault(resolved(merged(decoded(route.path))).rstrip("/"), Destination(route))
        #: The one destination, if there are no routes: nothing to look up per request.
        self.only = Destination(Route(pool=default)) if count == 0 else None

    def match(self, host: str, path: str) -> Destination | None:
        """Where `path`, decoded and without the query, leads; None when no route matches.

        Costs a look-up per label of the host and segment of the path, however many routes there are. Raises
        BadRequest where it depends on who reads the path: `..` after an empty segment.
        """
        if self.only is not None:
            return self.only
        if "/." not in path and "//" not in path:
            return self._find(host, path)
        found = self._find(host, resolved(merged(path)))
        if "//" in path and "/.." in path and self._find(host, merged(resolved(path))) is not found:
            raise BadRequest("the path leads to different places with and without its empty segments")
        return found

    def _find(self, host: str, path: str) -> Destination | None:
        name = host_name(host)
        tables = [self._exact.get(name)]
        at = name.find(".")
        while at >= 0:
            tables.append(self._suffix.get(name[at:]))
            at = name.find(".", at + 1)
        tables.append(self._any)
        for table in tables:
            if table:
                found = longest(table, path)
                if found is not None:
                    return found
        return None


def longest(table: Table, path: str) -> Destination | None:
    """What the longest prefix of `path` leads to."""
    prefix = path
    while True:
        found = table.get(prefix)
        if found is not None:
            return found
        cut = prefix.rfind("/")
        if cut < 0:
            return None
        prefix = prefix[:cut]
