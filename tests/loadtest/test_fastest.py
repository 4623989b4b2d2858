from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from loadtest.bench import fastest

PROGRAM = Path(fastest.__file__)


def chosen(*pythons: str) -> str:
    done = subprocess.run(
        [sys.executable, PROGRAM, *pythons], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def test_who_cannot_run_it_is_passed_over(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    assert chosen(str(old), "/no/such/python", sys.executable) == sys.executable


def test_a_slower_one_is_not_chosen(tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.write_text(f"#!/bin/sh\n{sys.executable} \"$@\" | sed 's/^/9/'\n")
    slow.chmod(0o755)
    assert chosen(str(slow), sys.executable) == sys.executable


def test_the_first_when_none_will_do() -> None:
    assert chosen("/no/such/python", "/nor/this") == "/no/such/python"
