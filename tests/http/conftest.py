from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.http.stage import Stage
from tests.support.processes import Balancer, System

#: Short times, so that what waits for nothing does not hold up the rest.
ENV = {
    "LB_CLIENT_HEADER_TIMEOUT": "2",
    "LB_CLIENT_IDLE_TIMEOUT": "2",
    "LB_CLIENT_HALF_CLOSE": "2",
    "LB_RESPONSE_TIMEOUT": "2",
    "LB_IDLE_TIMEOUT": "2",
}


@dataclass(frozen=True)
class Lane:
    """A stage, and the balancer before it."""

    stage: Stage
    balancer: Balancer


@pytest.fixture(scope="module")
def lane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lane]:
    """One balancer with one backend for all cases."""
    system = System(tmp_path_factory.mktemp("corpus"))
    with Stage() as stage:
        try:
            yield Lane(stage, system.balancer(backends=stage.backend.url, env=ENV))
        finally:
            system.close()
