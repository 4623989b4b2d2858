"""What an algorithm may know of a request, read from the bytes of its head only when it is asked for.

Pure. The head has gone through the parser already: each line ends in CRLF, and none is folded.
"""

from __future__ import annotations


class HeadRequest:
    """See `lb.algorithms.base.Request`. `head` is the request line and the fields, each with its CRLF."""

    __slots__ = ("_folded", "_head", "client", "target")

    def __init__(self, head: bytes, client: str, target: str) -> None:
        self._head = head
        self._folded: bytes | None = None
        self.client = client
        self.target = target

    def header(self, name: str) -> str:
        """The value of a field, repeated ones joined by ", " (RFC 9110, section 5.3); "" if there is none."""
        return ", ".join(self._values(name))

    def cookie(self, name: str) -> str:
        """The value of the first cookie of that name, quotes and all (RFC 6265, sections 4.2 and 5.4); "" if
        there is none.
        """
        for line in self._values("cookie"):
            for pair in line.split(";"):
                key, sign, value = pair.partition("=")
                if sign and key.strip(" \t") == name:
                    return value.strip(" \t")
        return ""

    def _values(self, name: str) -> list[str]:
        head, folded = self._head, self._folded
        if folded is None:
            folded = self._folded = head.lower()
        # Made of latin-1 bytes, so that a name of anything else finds nothing.
        wanted = b"\r\n%b:" % name.lower().encode("latin-1", "replace")
        found = []
        at = folded.find(wanted)
        while at >= 0:
            start = at + len(wanted)
            end = folded.find(b"\r\n", start)
            if end < 0:
                end = len(head)
            found.append(head[start:end].strip(b" \t").decode("latin-1"))
            at = folded.find(wanted, end)
        return found
