"""Changes of a head's fields that a route asks for, made ready once at the start. Pure: no I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping

from lb.settings import FieldEdits

_VARIABLE = re.compile(r"\{([a-z_]+)\}")


class Edits:
    """What to take out of a head and what to put at its end; `{name}` in a value is a variable."""

    def __init__(self, settings: FieldEdits) -> None:
        self._gone = {name.lower().encode() for name in (*settings.set, *settings.remove)}
        self._new = [*settings.set.items(), *settings.add.items()]

    def apply(self, lines: bytes, variables: Mapping[str, str]) -> bytes:
        """`lines`, each with its CRLF, after the changes: others keep place and spelling."""
        kept = [
            line
            for line in lines.split(b"\r\n")[:-1]
            if line.partition(b":")[0].strip(b" \t").lower() not in self._gone
        ]
        for name, value in self._new:
            text = _VARIABLE.sub(lambda match: variables.get(match[1], ""), value)
            kept.append(f"{name}: {text}".encode("latin-1", "replace"))
        return b"".join([line + b"\r\n" for line in kept])


def edits(settings: FieldEdits) -> Edits | None:
    """The same, or None when there is nothing to change."""
    return Edits(settings) if settings.set or settings.add or settings.remove else None
