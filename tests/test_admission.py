"""What gunicorn's own workers take and refuse: the middleware as a server calls it, with real threads."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest

from lb.admission import Admission, Queueing
from lb.overload import STUCK
from lb.settings import LimitSettings, LogSettings
from tests.support.run import eventually
from tests.test_app import environ
from tests.test_service import Make, make

__all__ = ["make"]

CONTROL = {"lb.listener": "control"}


class Body:
    """An answer that knows whether it was closed."""

    def __init__(self) -> None:
        self.closed = False

    def __iter__(self) -> Any:
        return iter((b"some", b"thing"))

    def close(self) -> None:
        self.closed = True


class Door:
    """An application behind `Admission`."""

    def __init__(self, make: Make, log: Path, **limits: Any) -> None:
        self.service = make(limits=LimitSettings(**limits), log=LogSettings(access=str(log)))
        self.answers: list[Body] = []
        self.broken = False
        self.admission = Admission(self._app, self.service)
        self.told: list[tuple[str, dict[str, str]]] = []
        self._log = log

    def _app(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if self.broken:
            raise ValueError("broken")
        start_response("200 OK", [])
        self.answers.append(Body())
        return self.answers[-1]

    def come(self, **more: Any) -> Any:
        """One request: what is returned, not closed."""
        return self.admission(
            environ() | {"lb.listener": "data"} | more,
            lambda status, fields: self.told.append((status, dict(fields))),
        )

    @property
    def log(self) -> list[Any]:
        self.service.log.flush()
        return [json.loads(line) for line in self._log.read_text().splitlines()]


def test_requests_are_under_way_until_they_are_closed(make: Make, tmp_path: Path) -> None:
    door = Door(make, tmp_path / "log", requests=2)
    first, second = door.come(), door.come()
    assert b"".join(first) == b"something"
    refused = door.come()
    status, fields = door.told[-1]
    assert (status, fields["Retry-After"]) == ("503 Service Unavailable", "1")
    assert b"overloaded" in b"".join(refused)
    assert not hasattr(refused, "close")
    first.close()
    assert door.answers[0].closed
    third = door.come()
    assert door.told[-1][0] == "200 OK"
    second.close()
    third.close()
    assert door.admission.under_way == 0
    (entry,) = door.log
    assert (entry["status"], entry["code"], entry["target"]) == (503, "overloaded", "/")
    assert entry["id"] == fields["X-Request-Id"]


def test_the_control_side_is_not_counted_and_not_refused(make: Make, tmp_path: Path) -> None:
    door = Door(make, tmp_path / "log", requests=1)
    door.come(**CONTROL)
    assert door.admission.under_way == 0
    door.come()
    door.come(**CONTROL)
    assert [status for status, _ in door.told] == ["200 OK"] * 3


def test_an_application_that_raises_is_not_under_way(make: Make, tmp_path: Path) -> None:
    door = Door(make, tmp_path / "log", requests=1)
    door.broken = True
    with pytest.raises(ValueError, match="broken"):
        door.come()
    assert door.admission.under_way == 0


def test_one_that_stays_beyond_its_memory_leaves(make: Make, tmp_path: Path) -> None:
    door = Door(make, tmp_path / "log", memory=1)
    worker = SimpleNamespace(alive=True)
    door.admission.watch(worker)
    door.come()
    door.come()
    assert [status[:3] for status, _ in door.told] == ["200", "503"]
    assert worker.alive
    door.admission._overload._tight_since -= STUCK
    eventually(lambda: not worker.alive, "it to leave")


def test_how_long_a_task_waits_for_a_thread() -> None:
    with ThreadPoolExecutor(1) as pool:
        queueing = Queueing(pool.submit)
        eventually(lambda: 0 < queueing.look(monotonic()) < 5, "one that was taken at once")
        busy = threading.Event()
        pool.submit(busy.wait)
        try:
            eventually(lambda: queueing.look(monotonic()) > 0.3, "one to have waited")
            assert queueing.look(monotonic() + 100) > 100
        finally:
            busy.set()
        eventually(lambda: queueing.look(monotonic()) < 0.3, "one that is taken at once again")


def test_what_the_last_one_waited_holds_until_the_next_has_arrived() -> None:
    tasks: list[Callable[[], None]] = []
    queueing = Queueing(tasks.append)
    began = monotonic() - 7
    assert queueing.look(began) == 0
    tasks.pop()()
    assert queueing.look(monotonic()) >= 7
    assert queueing.look(monotonic()) >= 7
    tasks.pop()()
    assert queueing.look(monotonic()) < 7


def test_a_closed_pool_is_the_end_of_it() -> None:
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    assert [Queueing(pool.submit).look(monotonic()) for _ in range(2)] == [0, 0]
