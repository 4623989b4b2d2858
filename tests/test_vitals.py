"""What a worker tells of itself, once a beat and when it is asked."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from math import isnan
from pathlib import Path

import pytest

from lb.certificates import client_contexts
from lb.control import Control
from lb.scoreboard import Place, Scoreboard, Totals
from lb.service import Service
from lb.settings import LogSettings, PoolConfig, Settings
from lb.state.threads import ThreadRuntime
from lb.vitals import Load
from tests.support.run import eventually

POOLS = {"a": PoolConfig(), "b": PoolConfig()}


class Worker:
    """The parts of a worker whose store cannot be reached, at a place of its own."""

    def __init__(self, folder: Path) -> None:
        self.board = Scoreboard()
        self.board.name_pools(POOLS)
        self.service = self.join(folder)

    def join(self, folder: Path) -> Service:
        settings = Settings(redis_url=f"unix://{folder}/nothing", pools=POOLS, log=LogSettings(access=""))
        return Service(
            settings,
            ThreadRuntime(),
            None,
            Control(settings),
            client_contexts(POOLS),
            place=Place(self.board, self.board.take(0.0)),
        )

    def shown(self, now: float) -> Totals:
        """What somebody else reads."""
        return self.board.read(now)


@pytest.fixture
def worker(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Worker]:
    caplog.set_level(logging.CRITICAL, "lb")
    made = Worker(tmp_path)
    yield made
    made.service.stop()


def test_it_tells_what_its_parts_know(worker: Worker) -> None:
    service = worker.service
    service.vitals.measure(lambda: Load(1, 2, 3, 0.5), lambda: 4)
    service.start()
    service.log.dropped = 5
    service.forwarders["b"]._budget.refused = 6
    found = service.vitals.read()
    assert (found.workers, found.degraded, found.losses) == (1, 1, service.fleet.degraded_count)
    assert found.losses == 1
    assert (found.connections, found.in_flight, found.refused, found.delay) == (1, 2, 3, 0.5)
    assert (found.resident, found.lost_lines) == (4, 5)
    assert found.retries == {"a": 0, "b": 6}


def test_what_the_worker_class_does_not_know_is_left_open(worker: Worker) -> None:
    worker.service.start()
    found = worker.service.vitals.read()
    assert isnan(found.connections)
    assert isnan(found.resident)
    assert found.refused == 0


def test_it_tells_by_itself(worker: Worker) -> None:
    """Others read it, who do not ask."""
    service = worker.service
    service.start()
    service.log.dropped = 7
    eventually(lambda: worker.shown(0.0).lost_lines == 7, "a beat")


def test_a_fault_does_not_end_that(worker: Worker) -> None:
    service = worker.service
    faults: list[int] = []

    def load() -> Load:
        if faults:
            return Load()
        faults.append(1)
        raise OSError("for once")

    service.fleet.start()
    service.vitals.measure(Load, lambda: 1)
    service.vitals.start()
    service.vitals.measure(load, lambda: 1)
    service.log.dropped = 8
    eventually(lambda: faults and worker.shown(0.0).lost_lines == 8, "a beat after that")


def test_the_last_word_stays(tmp_path: Path, worker: Worker) -> None:
    """What was counted since the last beat is not lost, and nothing is told afterwards."""
    service = worker.join(tmp_path)
    service.start()
    assert service.vitals.read().workers == 1
    service.log.dropped = 9
    service.stop()
    found = worker.shown(0.0)
    assert (found.workers, found.lost_lines) == (0, 9)
    service.log.dropped = 10
    service.vitals.tell()
    assert worker.shown(0.0).lost_lines == 9
