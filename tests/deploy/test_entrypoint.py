"""The image's entry point: which program a command's first word stands for."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "entrypoint.sh"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder of programs that only say how they were called."""
    for name in ("lb", "lb-health", "lb-agent"):
        path = tmp_path / name
        path.write_text('#!/bin/sh\necho "$$ ${0##*/} $*"\nexit 7\n')
        path.chmod(0o755)
    return tmp_path


def call(programs: Path, *words: str) -> tuple[list[str], bool]:
    """What was called, and was it exec'ed, in the entry point's own process?"""
    process = subprocess.Popen(
        (SCRIPT, *words), stdout=subprocess.PIPE, text=True, env={"PATH": f"{programs}:{os.environ['PATH']}"}
    )
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 7
    pid, *called = out.split()
    return called, int(pid) == process.pid


@pytest.mark.parametrize(
    ("words", "called"),
    [
        ((), ["lb", "serve"]),
        (("serve", "--workers", "2"), ["lb", "serve", "--workers", "2"]),
        (("health", "--interval", "5"), ["lb-health", "--interval", "5"]),
        (("agent",), ["lb-agent"]),
        (("status", "--json"), ["lb", "status", "--json"]),
        (("dispatch",), ["lb", "dispatch"]),  # not installed: `lb` says that there is no such command
        (("--version",), ["lb", "--version"]),
        (("lb", "status"), ["lb", "status"]),
        (("lb-health", "--once"), ["lb-health", "--once"]),
        (("healthcheck",), ["lb", "healthcheck"]),
    ],
)
def test_the_first_word_chooses_the_process(
    programs: Path, words: tuple[str, ...], called: list[str]
) -> None:
    assert call(programs, *words) == (called, True)
