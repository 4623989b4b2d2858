"""What one worker holds of one pool, and when its lease has to be told all of it (`redis/held.lua`)."""

from __future__ import annotations

from typing import Final

SAID_ANEW: Final = 1000
"""After so many claims and releases, and four times as many as are held, a call says all that is held: the
lease grows with each of them.
"""


class Held:
    """The books of one worker: the store believes what they give back. Not thread-safe, as `Claims`."""

    def __init__(self) -> None:
        #: Connections by backend, without zeros.
        self.counts: dict[str, int] = {}
        self._entries = 0

    def take(self, name: str) -> None:
        """One more connection of `name`."""
        self.counts[name] = self.counts.get(name, 0) + 1

    def drop(self, name: str) -> bool:
        """One less. False, and nothing done, if none was held."""
        count = self.counts.get(name, 0)
        if count > 1:
            self.counts[name] = count - 1
        elif count:
            del self.counts[name]
        return count > 0

    def opened(self) -> None:
        """The lease has been opened with what is held."""
        self._entries = 0

    def told(self, entries: int) -> None:
        """So many claims and releases are written into the lease."""
        self._entries += entries

    def lengthy(self) -> bool:
        """Is it time to say all that is held?"""
        return self._entries > SAID_ANEW and self._entries > 4 * len(self.counts)

    def whole(self, epoch: str) -> str:
        """The lease's `epoch`, and all that is held, as `redis/claim.lua` takes it; begins to count anew."""
        self._entries = 0
        return "\t".join((epoch, *(f"{name}\t{count}" for name, count in self.counts.items()), ""))
