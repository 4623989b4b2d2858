"""What the daemon says: one line per event on standard error, for people or as JSON.

Text that comes from outside (reasons, names) is escaped and cut, so that no backend can write a line of
its own or a terminal's control codes into the log.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO

#: Longest text from outside that is logged, characters.
MOST = 200

Level = Literal["info", "warning", "error"]


def printable(text: str, most: int = MOST) -> str:
    """Return `text` on one line: what is not printable as escapes, and cut to `most` characters."""
    if not text.isprintable():
        text = "".join(
            c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: most + 1]
        )
    return text if len(text) <= most else text[: most - 1] + "…"


class Log:
    """Writes events to `stream` (default: standard error as it is when an event comes)."""

    def __init__(self, as_json: bool = False, stream: TextIO | None = None) -> None:
        self._json = as_json
        self._stream = stream

    def __call__(self, event: str, text: str, level: Level = "info", **fields: str | float) -> None:
        """Log `text` for people, `event` and `fields` for machines. A log that cannot be written is no
        reason to stop: the failure is ignored.
        """
        now = datetime.now(UTC)
        if self._json:
            safe = {k: printable(v) if isinstance(v, str) else v for k, v in fields.items()}
            line = json.dumps(
                {"time": now.isoformat(timespec="milliseconds"), "level": level, "event": event, **safe}
                | {"message": printable(text, 3 * MOST)},
                ensure_ascii=False,
            )
        else:
            mark = "" if level == "info" else f"{level}: "
            stamp = now.replace(tzinfo=None).isoformat(timespec="milliseconds")
            line = f"{stamp}Z lb-health: {mark}{printable(text, 3 * MOST)}"
        stream = self._stream or sys.stderr
        try:
            stream.write(line + "\n")
            stream.flush()
        except (OSError, ValueError):
            pass
