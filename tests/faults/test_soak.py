"""The soak keeps its word: it goes through faults, says what it did, and fails when a promise is broken."""

from __future__ import annotations

import pytest

from tests.faults.soak import MEMORY, Fault, Report, Soak, run
from tests.support.processes import System


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
