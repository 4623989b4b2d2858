"""The soak keeps its word: it goes through faults, says what it did, and fails when a promise is broken."""

from __future__ import annotations

import pytest

from tests.faults.soak import MEMORY, Excuse, Fault, Report, Soak, run
from tests.support.processes import System
from tests.support.run import alive


@pytest.mark.slow
def test_a_few_seconds_of_it(system: System) -> None:
    done = system.process("soak", "-m", "tests.faults.soak", "--minutes", "0.05", "--seed", "7")
    assert done.wait(50) == 0, done.out + done.err
    lines = done.out.splitlines()
    assert lines[0] == "seed 7"
    assert f"{len(lines) - 2} faults, " in lines[-1]
    assert ", 0 failed, " in lines[-1]


@pytest.mark.slow
def test_a_fault_that_nobody_can_bear(capsys: pytest.CaptureFixture[str]) -> None:
    def choice(soak: Soak) -> list[Fault]:
        def kill_them_all() -> None:
            """kill every backend"""
            for one in soak.backends:
                one.kill()
            soak.backends = [soak.system.plain_backend(one.port) for one in soak.backends]

        return [kill_them_all]

    report = run(0.0, 1, choice)
    (broken,) = report.promises_broken()
    assert "requests failed, the first: kill every backend: GET " in broken
    assert "kill every backend" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kill_master", "kill_gunicorn"])
def test_a_balancer_that_is_killed_is_started_anew(name: str) -> None:
    killed: list[int] = []

    def choice(soak: Soak) -> list[Fault]:
        masters = [one.pid for one in soak.balancers]

        def fault() -> None:
            getattr(soak, name)()
            killed.extend(pid for pid in masters if not alive(pid))

        return [fault]

    report = run(0.0, 3, choice)
    assert len(killed) == 1
    assert report.promises_broken() == []
    assert report.refused > 0


REFUSED = "GET /?say=3 #3, connecting: ConnectionRefusedError(111, '...')"
CUT = "GET /?say=4 #4, waiting for the head: IncompleteReadError('...')"
WRONG = "GET /?say=5 #5: answered b'4'"


@pytest.mark.parametrize(
    ("early", "late", "excuse", "refused", "cut", "failed"),
    [
        ([REFUSED, CUT, WRONG], [], None, 0, 0, [REFUSED, CUT, WRONG]),
        ([REFUSED, CUT, WRONG], [], Excuse(1), 0, 1, [REFUSED, WRONG]),
        ([REFUSED, CUT, WRONG], [], Excuse(1, away=True), 1, 1, [WRONG]),
        ([REFUSED] * 50, [REFUSED], Excuse(1, away=True), 50, 0, [REFUSED]),
        ([CUT] * 3, [CUT], Excuse(1), 0, 2, [CUT, CUT]),
        ([CUT] * 5, [], Excuse(1, tries=2), 0, 4, [CUT]),
    ],
)
def test_what_is_lost_with_a_process_is_no_more_than_it_had(
    early: list[str], late: list[str], excuse: Excuse | None, refused: int, cut: int, failed: list[str]
) -> None:
    report = Report()
    report.count(early, late, 2, excuse)
    assert (report.refused, report.cut, report.failed) == (refused, cut, failed)


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (Report(in_flight=2), "2 connections are claimed by nobody"),
        (Report(gained=MEMORY + 1), "a worker has gained 32 MiB"),
        (Report(broken=["HUP: waited in vain"]), "HUP: waited in vain"),
    ],
)
def test_what_breaks_a_promise(report: Report, said: str) -> None:
    assert report.promises_broken() == [said]


def test_what_does_not() -> None:
    assert Report(faults=9, requests=1000, cut=5, gained=MEMORY).promises_broken() == []
