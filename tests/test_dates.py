"""Dates as HTTP writes them."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

from lb.dates import http_date


def test_it_is_now() -> None:
    found = http_date()
    assert found.endswith(" GMT")
    assert abs(parsedate_to_datetime(found).timestamp() - time.time()) < 2
