"""What is said of other proxies: counted right, each difference explained."""

from __future__ import annotations

import pytest

from loadtest.bench.binaries import Programs
from tests.http import differential
from tests.http.corpus import CASES, WHY
from tests.http.differential import OWN, Result, differences, main, totals, unexplained

RIGHT, WRONG = Result("", "200, kept"), Result("it was passed on", "200, poisoned")


def results(count: int, **wrong: int) -> dict[str, dict[str, Result]]:
    """Results of the first `count` cases: who fails which of them."""
    return {
        name: {
            case.name: WRONG if wrong.get(name) == number else RIGHT
            for number, case in enumerate(CASES[:count])
        }
        for name in (OWN, "nginx")
    }


def test_only_differences_are_told() -> None:
    found = differences(CASES[:3], results(3, nginx=1))
    assert [(one.case.name, one.outcomes) for one in found] == [
        (CASES[1].name, {OWN: "✓ 200, kept", "nginx": "✗ 200, poisoned"})
    ]
    assert totals(results(3, nginx=1)) == {OWN: 3, "nginx": 2}


def test_a_difference_without_a_sentence_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = differences(CASES[:3], results(3, nginx=1))
    assert unexplained(found) == []
    monkeypatch.setitem(WHY, CASES[1].name, "")
    assert unexplained(found) == [CASES[1].name]


@pytest.mark.peers
@pytest.mark.timeout(300)
def test_every_difference_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0, capsys.readouterr().err
    assert f"lb {len(CASES)}, nginx " in capsys.readouterr().out


def test_what_is_missing_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing(Programs):
        def find(self, name: str) -> None:
            return None

    monkeypatch.setattr(differential, "Programs", Nothing)
    assert main([]) == 1
    assert "nginx is not installed" in capsys.readouterr().err
