"""Knocking at backends that were ejected: when it says that one is there again, and when it ends."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest
from gevent import get_hub

from lb.model import OutlierPolicy
from lb.state import knock as module
from lb.state.green import GreenRuntime
from lb.state.knock import AT_ONCE, Knock, Knocks, Runtime, Watch, hold, pause
from lb.state.threads import ThreadRuntime
from tests.support.green import until
from tests.support.run import eventually, free_port


@pytest.mark.parametrize(
    ("gone", "knocks", "said"),
    [
        (False, [True, True, True], [False, False, False]),  # it was there all along
        (False, [True, False, True], [False, False, True]),
        (False, [False, None, True], [False, False, True]),
        (False, [None, True], [False, False]),
        (True, [True], [True]),
        (True, [None, False, True, True], [False, False, True, True]),
    ],
)
def test_who_was_gone_and_is_there_is_mended(gone: bool, knocks: list[bool | None], said: list[bool]) -> None:
    watch = Watch(gone)
    assert [watch.mended(accepts) for accepts in knocks] == said


def test_who_dies_again_and_again_stays_out_longer() -> None:
    policy = OutlierPolicy(base_ejection_time=30)
    assert [hold(policy, times) for times in (1, 2, 3, 11)] == [0, 3, 6, 30]


def test_knocks_of_several_workers_spread() -> None:
    assert [pause(9, chance) for chance in (0, 0.5, 1)] == pytest.approx([0.9, 1.0, 1.1])


def test_the_first_knocks_come_sooner() -> None:
    pauses = [pause(number, 0.5) for number in range(6)]
    assert pauses == pytest.approx([0.0625, 0.125, 0.25, 0.5, 1.0, 1.0])
    assert pause(100_000, 0.5) == pytest.approx(1.0)


class Door:
    """A port, at which somebody listens or not."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.knocks = 0
        self.listener: socket.socket | None = None

    def open(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port), backlog=512)

    def close(self) -> None:
        if self.listener is not None:
            self.listener.close()
            self.listener = None

    def accepts(self, pool: str, url: str, timeout: float) -> bool:
        self.knocks += 1
        assert (pool, url) == ("p", "http://a:80")
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout).close()
        except ConnectionRefusedError:
            return False
        return True


class Rig:
    """A worker's knocks, with greenlets or threads."""

    def __init__(self, kind: str) -> None:
        self.runtime: Runtime = GreenRuntime(get_hub()) if kind == "greenlets" else ThreadRuntime()
        self.until: Callable[[Callable[[], object], str], None] = until if kind == "greenlets" else eventually
        self.lasts = True
        self.mended = 0

    def knock(self, gone: bool = False, seconds: float = 60.0, hold: float = 0.0) -> Knock:
        return Knock("p", "http://a:80", gone, seconds, hold, lambda: self.lasts, self.tell)

    def tell(self) -> None:
        self.mended += 1

    def over(self, knocks: Knocks) -> None:
        """Wait until nobody knocks any more."""
        self.until(lambda: knocks._running == 0, "the knocking to end")


@pytest.fixture(params=["greenlets", "threads"])
def rig(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(module, "EVERY", 0.01)
    return Rig(request.param)


def test_one_that_is_restarted(rig: Rig) -> None:
    with free_port() as port:
        door = Door(port)
        knocks = Knocks(rig.runtime, door.accepts)
        knocks.begin(rig.knock())
        rig.until(lambda: door.knocks > 3, "some knocks")
        assert rig.mended == 0
        door.open()
        rig.until(lambda: rig.mended > 1, "its return, told again while nothing follows")
        rig.lasts = False
        rig.over(knocks)
        door.close()


def test_one_that_accepts_all_along(rig: Rig) -> None:
    with free_port() as port:
        door = Door(port)
        door.open()
        knocks = Knocks(rig.runtime, door.accepts)
        knocks.begin(rig.knock())
        rig.until(lambda: door.knocks > 5, "some knocks")
        assert rig.mended == 0
        knocks.begin(rig.knock(gone=True))  # one that requests have found gone
        rig.until(lambda: rig.mended, "its return")
        knocks.stop()
        rig.over(knocks)
        door.close()


def test_it_ends_with_the_ejection_and_with_its_time(rig: Rig) -> None:
    knocked: list[str] = []

    def accepts(pool: str, url: str, timeout: float) -> bool:
        knocked.append(url)
        return False

    knocks = Knocks(rig.runtime, accepts)
    knocks.begin(rig.knock(seconds=0.05))
    rig.over(knocks)
    assert knocked
    rig.lasts = False
    before = len(knocked)
    knocks.begin(rig.knock())
    rig.over(knocks)
    assert len(knocked) == before


def test_it_is_not_told_before_the_least_time_is_over(rig: Rig) -> None:
    knocked: list[str] = []

    def accepts(pool: str, url: str, timeout: float) -> bool:
        knocked.append(url)
        return True

    knocks = Knocks(rig.runtime, accepts)
    knocks.begin(rig.knock(gone=True, hold=3600.0))
    rig.until(lambda: len(knocked) > 5, "some knocks")
    assert rig.mended == 0
    knocks.stop()
    rig.over(knocks)


def test_only_so_many_at_a_time_and_all_in_turn(rig: Rig) -> None:
    goes_on = rig.runtime.event()
    begun: list[str] = []

    def accepts(pool: str, url: str, timeout: float) -> bool:
        begun.append(url)
        goes_on.wait(20)
        rig.lasts = False  # each knocks once, those that wait not at all
        return False

    knocks = Knocks(rig.runtime, accepts)
    for _ in range(AT_ONCE + 5):
        knocks.begin(rig.knock())
    rig.until(lambda: len(begun) == AT_ONCE, "the first ones")
    assert (knocks._running, len(knocks._waiting)) == (AT_ONCE, 5)
    goes_on.set()
    rig.over(knocks)
    assert len(begun) == AT_ONCE
    assert not knocks._waiting


def test_those_that_stay_gone_keep_nobody_from_being_found(rig: Rig) -> None:
    knocks = Knocks(rig.runtime, lambda pool, url, timeout: url == "http://back:80")
    for _ in range(2 * AT_ONCE):
        knocks.begin(rig.knock())
    knocks.begin(rig.knock(gone=True)._replace(url="http://back:80"))
    rig.until(lambda: rig.mended, "its return")
    knocks.stop()
    rig.over(knocks)


def test_a_fault_is_logged_and_others_are_knocked_at(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    def accepts(pool: str, url: str, timeout: float) -> bool:
        raise ValueError("no such pool")

    knocks = Knocks(rig.runtime, accepts)
    knocks.begin(rig.knock())
    rig.over(knocks)
    knocks.begin(rig.knock())
    rig.over(knocks)
    assert [record.getMessage() for record in caplog.records] == [
        "pool p: knocking at http://a:80 failed; it stays out for its time"
    ] * 2


def test_the_end_of_a_worker_does_not_wait_for_the_next_turn() -> None:
    before = threading.active_count()
    knocks = Knocks(ThreadRuntime(), lambda pool, url, timeout: False)
    knocks.begin(Rig("threads").knock())
    knocks.stop()  # while it waits for its next turn
    eventually(lambda: threading.active_count() == before, "its thread to end")
