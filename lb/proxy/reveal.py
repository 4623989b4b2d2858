"""The field of an answer that says who gave it, and by which algorithm: for debugging, and for few.

Pure. Who gets it goes by the client's address; of others nobody learns what stands behind the balancer.
"""

from __future__ import annotations

from collections.abc import Sequence

from lb.accesslog import Entry
from lb.networks import Networks
from lb.settings import DecisionSettings


class Reveal:
    """The field `name`, for clients in `networks` (CIDR)."""

    def __init__(self, name: str, networks: Sequence[str]) -> None:
        self.name = name
        self._clients = Networks(networks)

    def value(self, entry: Entry, backend: str = "", algorithm: str = "", version: int = 0) -> str:
        """A dictionary (RFC 9651, section 3.2) of what is known; "" for those who may not see it."""
        if not self._clients.have(entry.client):
            return ""
        parts = [f'id="{entry.id}"']
        if entry.pool:
            parts.append(f'pool="{entry.pool}"')
        if backend:
            parts += [f'algorithm="{algorithm}"', f"version={version}", f'backend="{backend}"']
        if entry.tried:
            parts.append("tried=({})".format(" ".join(f'"{name}"' for name in entry.tried)))
        return ", ".join(parts)

    def line(self, entry: Entry, backend: str, algorithm: str, version: int) -> bytes:
        """The whole line, or b""."""
        value = self.value(entry, backend, algorithm, version)
        return f"{self.name}: {value}\r\n".encode("latin-1", "replace") if value else b""


def reveal(settings: DecisionSettings) -> Reveal | None:
    """What `settings` ask for; None: nothing is revealed."""
    return Reveal(settings.header, settings.header_for) if settings.header else None
