from __future__ import annotations

from collections.abc import Iterator

import pytest
from gevent import get_hub

from lb.proxy.conn import Reactor


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    """What connections of greenlets belong to; closes those that are left."""
    made = Reactor(get_hub())
    yield made
    made.close()
