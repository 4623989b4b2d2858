"""The measurement of idle connections, with few of them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support.run import clean_env

ROOT = Path(__file__).parents[2]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loadtest.idle", *options],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env=clean_env(),
    )


def test_it_measures() -> None:
    done = run("--connections", "300", "--most", "100")
    assert (done.returncode, done.stderr) == (0, "")
    found = re.match(r"300 idle connections: (-?[\d.]+) KiB each, at most 100\n", done.stdout)
    assert found, done.stdout
    assert float(found[1]) < 100


def test_too_many_for_this_machine() -> None:
    done = run("--connections", "100000000")
    assert done.returncode == 1
    assert "open files" in done.stderr
