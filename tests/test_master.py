"""What the master knows of its workers, and tells them; under load: tests/faults."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from gunicorn.config import Config
from gunicorn.workers.base import Worker

from lb import boot, master
from lb.scoreboard import Figures, Place, Scoreboard
from tests.faults.gate import Gate
from tests.support.clients import get
from tests.support.processes import own_system
from tests.support.run import alive, eventually


def test_a_worker_says_that_it_serves() -> None:
    worker = Worker(1, 1, [], None, 30, Config(), None)
    try:
        assert not master.is_ready(worker)
        master.say_ready(worker)
        assert master.is_ready(worker)
        worker.notify()
        assert master.is_ready(worker)
        since = worker.tmp.last_update()
        master.say_ready(worker)
        assert 0 <= worker.tmp.last_update() - since < 60  # by the clock that the master compares it with
    finally:
        worker.tmp.close()


def test_workers_that_never_start_end_it(tmp_path: Path) -> None:
    """All of them fail at the same time; the store is stopped all the same."""
    with own_system(tmp_path) as system:
        gate = Gate(tmp_path)
        gate.shut()
        balancer = system.balancer(workers=4, options=gate.options, wait=False)
        balancer.ended_badly = True
        balancer.process.until(lambda: len(balancer.worker_pids) == 4, "the workers to be forked")
        store = balancer.store_pid
        gate.breaks()
        gate.open()
        assert balancer.process.wait() == 3
        eventually(lambda: not alive(store), "the store to end")


def test_one_worker_more_and_one_less(tmp_path: Path) -> None:
    """Who has to go is told once: a second TERM would find it gone, or at its last words."""
    with own_system(tmp_path) as system:
        backend = system.plain_backend()
        balancer = system.balancer(backends=backend.url)
        (first,) = balancer.worker_pids
        balancer.send(signal.SIGTTIN)
        eventually(lambda: len(balancer.worker_pids) == 2, "another worker")
        (second,) = set(balancer.worker_pids) - {first}
        balancer.send(signal.SIGTTOU)
        eventually(lambda: not alive(first), "the older one to go")
        assert balancer.worker_pids == [second]
        assert get(balancer.port).status == 200


def test_an_end_is_announced_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot, "_ending", bytearray(1))
    assert not boot.announced()
    boot.announce_end()
    assert boot.announced()


def test_places_on_the_scoreboard_come_and_go_with_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is to leave has its own until it has ended; one for whom there is none starts all the same."""
    monkeypatch.setattr(boot, "board", Scoreboard(places=2))
    server = master.Master.__new__(master.Master)
    server.places, server.WORKERS, server.leaving = {}, {}, {}
    workers = [Worker(age, 1, [], None, 30, Config(), None) for age in range(4)]
    try:
        for pid, worker in enumerate(workers[:3], 1):
            master.give_place(server, worker)
            server.WORKERS[pid] = worker
        first, second, third = (worker.place for worker in workers[:3])
        assert (first is None, second is None, third is None) == (False, False, True)
        server.leaving[1] = server.WORKERS[1]
        server._free_places()
        assert set(server.places) == {first, second}
        Place(boot.board, first).write(Figures(False, 1), 0.0)
        assert boot.board.read(0.0).losses == 1
        del server.WORKERS[1]  # it was killed
        server._free_places()
        assert set(server.places) == {second}
        master.give_place(server, workers[3])
        assert workers[3].place == first
        assert boot.board.read(0.0).losses == 1
    finally:
        for worker in workers:
            worker.tmp.close()
