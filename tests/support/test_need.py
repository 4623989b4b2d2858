"""Skipped on a developer's machine, failed on CI."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.need import need_binary


def test_what_is_there() -> None:
    assert Path(need_binary("sh", "dash")).name == "sh"


@pytest.mark.parametrize("ci", ["", "false", "0"])
def test_what_is_missing_skips(monkeypatch: pytest.MonkeyPatch, ci: str) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(pytest.skip.Exception, match="apt-get install some-package"):
        need_binary("no-such-program", "some-package")


def test_what_is_missing_fails_on_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no-such-program is not on this machine"):
        need_binary("no-such-program", "some-package")
