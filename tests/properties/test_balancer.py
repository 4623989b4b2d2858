"""The same of the real processes, with few examples: gunicorn, its worker, picks from the shared state."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given

from tests.properties import damage, shapes
from tests.properties.effort import tried
from tests.properties.rig import Bench, turn
from tests.properties.test_requests import bytes_of_sequence, check_damaged, check_well_formed
from tests.support.processes import System

# Finding the smallest example of a failure takes its time.
pytestmark = pytest.mark.timeout(300)


class Behind(Bench):
    """A backend behind real processes."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.balancer = system.balancer(backends=self.backend.url)
        self.address = ("127.0.0.1", self.balancer.port)

    def under_way(self) -> bool:
        # A client may see its end before the backend sees that of a request that was never whole.
        if self.balancer.view.in_flight():
            return True
        turn()
        return super().under_way()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    system = System(tmp_path_factory.mktemp("balancer"))
    try:
        made = Behind(system)
        yield made
        assert all(isinstance(entry, dict) for entry in made.balancer.log)
        made.close()
    finally:
        system.close()


@tried(30)
@given(shapes.sequences(), damage.cuts)
def test_a_well_formed_request_arrives_as_the_same_one(
    bench: Bench, sequence: list[shapes.Message], places: list[int]
) -> None:
    check_well_formed(bench, sequence, places)


@tried(60)
@given(damage.damaged(shapes.sequences().map(bytes_of_sequence)), damage.cuts)
def test_damage_never_becomes_another_request(bench: Bench, data: bytes, places: list[int]) -> None:
    check_damaged(bench, data, places)
