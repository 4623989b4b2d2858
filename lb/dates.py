"""Now, as HTTP writes it (RFC 9110, section 5.6.7); worked out once a second."""

from __future__ import annotations

import time
from email.utils import formatdate

_date: tuple[int, str] = (0, "")


def http_date() -> str:
    """The value of a Date field."""
    global _date
    now = int(time.time())
    if _date[0] != now:
        _date = (now, formatdate(now, usegmt=True))
    return _date[1]
