"""Which pool a request belongs to. Pure.

Routes are matched by host first (an exact name before a `*.suffix`, that before any host), then by the
longest path prefix; a prefix ends at a path segment: `/api` matches `/api` and `/api/x`, not `/apix`.
"""

from __future__ import annotations

from collections.abc import Iterable

from lb.settings import Route


def host_name(host: str) -> str:
    """The lower-case name in a Host field, without port."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower().rstrip(".")


class Router:
    """The routes of a configuration. Without any, everything goes to `default`."""

    def __init__(self, routes: Iterable[Route], default: str) -> None:
        self._exact: dict[str, list[tuple[str, str]]] = {}
        self._suffix: dict[str, list[tuple[str, str]]] = {}
        self._any: list[tuple[str, str]] = []
        count = 0
        for count, route in enumerate(routes, 1):  # noqa: B007
            host = route.host.lower()
            prefix = route.path.rstrip("/")
            if not host or host == "*":
                table = self._any
            elif host.startswith("*."):
                table = self._suffix.setdefault(host[1:], [])
            else:
                table = self._exact.setdefault(host, [])
            table.append((prefix, route.pool))
        for table in [self._any, *self._exact.values(), *self._suffix.values()]:
            table.sort(key=lambda entry: -len(entry[0]))
        #: The one pool, if there are no routes: nothing to look up per request.
        self.only = default if count == 0 else None

    def match(self, host: str, path: str) -> str | None:
        """The pool's name, or None when no route matches. `path` is without the query."""
        if self.only is not None:
            return self.only
        name = host_name(host)
        tables = [self._exact.get(name)]
        at = name.find(".")
        while at >= 0:
            tables.append(self._suffix.get(name[at:]))
            at = name.find(".", at + 1)
        tables.append(self._any)
        for table in tables:
            for prefix, pool in table or ():
                if path.startswith(prefix) and (len(path) == len(prefix) or path[len(prefix)] == "/"):
                    return pool
        return None
